"""Llama 3.2 Vision imported equals transformers' own, on random weights: logits at every position.

Tokens before the first image are those of Meta's code, where attention gives them 0 as the
feed-forward layer does: transformers multiplies the second alone by the mask. `as_meta_does` does
the same for the first.

Tolerance 1e-4 of the largest logit: float32 sums in another order, through a ViT of two stages and
two stacks of layers.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.conversion import mllama
from flamingo_jax.conversion.mapping import load_params
from flamingo_jax.conversion.reading import InMemory
from flamingo_jax.data.schema import Batch
from flamingo_jax.models import api
from flamingo_jax.models.media_context import first_images
from tests.parity import cached_logits

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4
V, TILES, IMAGE_SIZE = 96, 4, 28
IMAGE = V  # the id of <|image|>
MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])
DEVIATION = np.float32([0.26862954, 0.26130258, 0.27577711])
# Of each image: the number of its arrangement from 1 (1x2, 2x2, 1x1; ...), and its tiles.
ARRANGED = np.array([[2, 6, 1], [1, 5, 8], [3, 1, 2]])
NUM_TILES = np.array([[2, 4, 1], [1, 2, 4], [3, 1, 2]])


def config_of(vocab_size=V):
    """A config with cross-attention before the 2nd and the 4th of four blocks."""
    from transformers import MllamaConfig

    return MllamaConfig(
        image_token_index=vocab_size,
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 6,
            "cross_attention_layers": [1, 4],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-2,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_global_layers": 2,
            "attention_heads": 2,
            "image_size": IMAGE_SIZE,
            "patch_size": 14,
            "intermediate_layers_indices": [0, 2],
            "vision_output_dim": 48,
            "norm_eps": 1e-2,
            "max_num_tiles": TILES,
        },
    )


@functools.cache
def reference(vocab_size=V):
    """Their model with random weights, none of them at the value it is born with."""
    import torch
    from transformers import MllamaForConditionalGeneration

    torch.set_num_threads(1)
    config = config_of(vocab_size)
    config._attn_implementation = "eager"
    model = MllamaForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            fan_in = weight[0].numel() if weight.ndim > 1 else 1
            if "norm" in name:
                weight.copy_((1.0 if name.endswith("weight") else 0.0) + 0.3 * noise)
            elif "gate" in name.rpartition(".")[2]:
                weight.copy_(0.7 + 0.3 * noise)
            elif "embed" in name or weight.ndim < 2:
                weight.copy_(0.5 * noise)
            else:
                weight.copy_(noise * 1.2 * fan_in**-0.5)
    return model


@functools.cache
def ours():
    """(our model, its weights) through the mapping."""
    theirs = reference()
    files = InMemory({name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    described = mllama.describe(theirs.config.to_dict(), files, {})
    return api.flamingo(described.model.flamingo()), load_params(described)


def frames() -> np.ndarray:
    """Tiles [3 rows, 3 images, 4, S, S, 3]; those that an image has not are 0."""
    rng = np.random.default_rng(1)
    made = rng.integers(0, 256, (3, 3, TILES, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    return made * is_tile()[..., None, None, None]


def is_tile() -> np.ndarray:
    return np.arange(TILES) < NUM_TILES[:, :, None]


def sequences() -> tuple[np.ndarray, np.ndarray]:
    """Tokens and phi of three sequences.

    Text first and images side by side; an image first, and one at the end; (but for the images)
    text alone.
    """
    rows = [
        [1, 5, 6, IMAGE, IMAGE, 7, 8, 9, IMAGE, 10, 11, 12],
        [IMAGE, 1, 20, 21, IMAGE, 22, 23, 24, 25, 26, 27, IMAGE],
        [1, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40],
    ]
    tokens = np.asarray(rows, np.int32)
    return tokens, np.cumsum(tokens == IMAGE, axis=1, dtype=np.int32)


def their_mask(tokens: np.ndarray) -> np.ndarray:
    """Returns [B, T, N, tiles]: what their processor makes of the tokens."""
    from transformers.models.mllama import processing_mllama

    spans = [processing_mllama.get_cross_attention_token_mask([*row], IMAGE) for row in tokens]
    return processing_mllama.convert_sparse_cross_attention_mask_to_dense(
        spans, NUM_TILES.tolist(), TILES, tokens.shape[1]
    )


@contextlib.contextmanager
def as_meta_does(model):
    """Their model, where attention gives 0 to a token that sees no image."""
    layers = [layer for layer in model.model.language_model.layers if hasattr(layer, "cross_attn")]

    def remember(layer, _, named):
        layer.cross_attn.sees = named["full_text_row_masked_out_mask"]

    def masked(attention, _, outputs):
        return attention.sees[:, 0] * outputs[0], outputs[1]

    handles = [layer.register_forward_pre_hook(remember, with_kwargs=True) for layer in layers]
    handles += [layer.cross_attn.register_forward_hook(masked) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def normalised() -> np.ndarray:
    """[B, N, tiles, 3, S, S] in their normalisation; padding is 0 after it."""
    pixels = (frames().astype(np.float32) / 255 - MEAN) / DEVIATION
    return (pixels * is_tile()[..., None, None, None]).transpose(0, 1, 2, 5, 3, 4)


def of_images(mask: np.ndarray) -> dict:
    """The arguments of their model that describe the images."""
    import torch

    arguments = {
        "pixel_values": normalised(),
        "aspect_ratio_ids": ARRANGED,
        "aspect_ratio_mask": is_tile().astype(np.int64),
        "cross_attention_mask": mask,
    }
    return {name: torch.from_numpy(array.copy()) for name, array in arguments.items()}


def their_logits(tokens: np.ndarray) -> np.ndarray:
    import torch

    given = of_images(their_mask(tokens))
    with torch.no_grad():
        return reference()(input_ids=torch.from_numpy(tokens).long(), **given).logits.numpy()


@functools.cache
def program(prefix: int):
    return cached_logits.program(ours()[0], 3, 3, prefix=prefix)


def our_logits(tokens: np.ndarray, phi: np.ndarray, *, prefix: int = 0) -> np.ndarray:
    flat = frames().reshape(9, *frames().shape[2:])
    inputs = map(jnp.asarray, (tokens, phi, flat, frame_mask()))
    logits = np.asarray(program(prefix)(ours()[1], *inputs))
    assert (logits[..., V:] < -1e29).all()
    return logits[..., :V]


def frame_mask() -> np.ndarray:
    return (ARRANGED[:, :, None] * is_tile()).reshape(9, TILES).astype(np.int8)


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def test_logits_are_theirs():
    """Several images of several tiles, side by side and apart, and a row without an image."""
    tokens, phi = sequences()
    with as_meta_does(reference()):
        expected = their_logits(tokens)
    assert_same(our_logits(tokens, phi), expected)
    # here, images matter, also the first of two side by side
    for other in (np.zeros_like(phi), np.where(phi == 2, 0, phi)):
        assert np.abs(our_logits(tokens, other) - expected).max() > 0.1 * np.abs(expected).max()


def test_transformers_differs_where_text_comes_before_the_first_image():
    """There its attention is over all tiles of all images; see `conversion.mllama`."""
    tokens, phi = sequences()
    got, expected = our_logits(tokens, phi), their_logits(tokens)
    assert_same(got[1], expected[1])
    assert np.abs(got - expected)[[0, 2]].max() > 0.1 * np.abs(expected).max()


def test_decoding_from_the_cache_gives_their_logits():
    """The prefix ends after images side by side, which the answers attend."""
    tokens, phi = sequences()
    tokens[0, 5:] = [8, 9, 10, 11, 12, 13, 14]
    tokens[1] = [IMAGE, 1, IMAGE, IMAGE, 21, 22, 23, 24, 25, 26, 27, 28]
    phi = np.cumsum(tokens == IMAGE, axis=1, dtype=np.int32)
    with as_meta_does(reference()):
        expected = their_logits(tokens)
    assert_same(our_logits(tokens, phi, prefix=6), expected)


def test_what_a_token_attends_is_what_their_processor_lets_it():
    rng = np.random.default_rng(2)
    tokens = np.where(rng.random((3, 12)) < 0.4, IMAGE, 5).astype(np.int32)
    tokens[:, 7:] = 5
    tokens[np.cumsum(tokens == IMAGE, axis=1) > 3] = 5
    phi = np.cumsum(tokens == IMAGE, axis=1, dtype=np.int32)
    first = np.asarray(first_images(jnp.asarray(phi)))
    numbers = np.arange(1, 4)
    ours = (numbers >= first[:, :, None]) & (numbers <= phi[:, :, None])
    assert (ours.sum(-1) > 1).any() and (ours.sum(-1) == 0).any()
    np.testing.assert_array_equal(ours[..., : phi.max()], their_mask(tokens)[..., 0] > 0)


def test_training_minimises_what_their_logits_say():
    """A tag is never predicted, so that it has no loss."""
    import torch

    model, params = ours()
    tokens, phi = sequences()
    with as_meta_does(reference()):
        log_p = torch.log_softmax(torch.from_numpy(their_logits(tokens)), -1).numpy()
    targets = tokens[:, 1:]
    picked = np.take_along_axis(log_p[:, :-1], np.minimum(targets, V - 1)[..., None], axis=-1)
    expected = np.where(targets < V, -picked[..., 0], 0)
    batch = Batch(
        tokens=jnp.asarray(tokens),
        segment=jnp.ones(tokens.shape, jnp.int32),
        loss_weights=jnp.ones(tokens.shape, jnp.float32),
        media_index=jnp.asarray(phi),
        media_slot=jnp.arange(9, dtype=jnp.int32).reshape(3, 3),
        frames=jnp.asarray(frames().reshape(9, *frames().shape[2:])),
        frame_mask=jnp.asarray(frame_mask()),
    )
    got = jax.jit(model.token_losses)(params, batch)
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
