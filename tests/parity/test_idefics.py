"""IDEFICS imported equals transformers' own, on random weights.

Logits at every position, and the tokens that are generated.

Tolerance 1e-4 of the largest logit: float32 sums in another order, through a ViT, a resampler and
two stacks of layers.
"""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.conversion import idefics
from flamingo_jax.conversion.mapping import load_params
from flamingo_jax.conversion.reading import InMemory
from flamingo_jax.data.interleave import IMAGE, tokenise
from flamingo_jax.data.schema import Batch
from flamingo_jax.models import api
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer, train_sentencepiece
from tests.parity import cached_logits

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4
ADDED = {96: idefics.AROUND, 97: "<image>", 98: idefics.END_OF_UTTERANCE}
IMAGE_SIZE = 28


@dataclasses.dataclass(frozen=True)
class Variant:
    every: int = 1
    alpha: str = "float"
    qk_norm: bool = True
    perceiver_qk_norm: bool = True
    layers: int = 4
    vocab_size: int = 96


VARIANTS = {
    "9b and 80b": Variant(every=2, alpha="float"),
    "vector gates": Variant(
        every=1, alpha="vector", qk_norm=False, perceiver_qk_norm=False, layers=2
    ),
    "every 4th": Variant(every=4, alpha="vector", perceiver_qk_norm=False),
    "every 3rd": Variant(every=3, qk_norm=False, layers=3),
}


@functools.cache
def reference(variant: Variant):
    """Their model with random weights, none of them at the value it is born with."""
    import torch
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    torch.set_num_threads(1)
    config = IdeficsConfig(
        vocab_size=variant.vocab_size,
        additional_vocab_size=len(ADDED),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=variant.layers,
        num_attention_heads=4,
        cross_layer_interval=variant.every,
        qk_layer_norms=variant.qk_norm,
        alpha_type=variant.alpha,
        use_resampler=True,
        perceiver_config={
            "use_resampler": True,
            "resampler_n_latents": 3,
            "resampler_depth": 2,
            "resampler_n_heads": 2,
            "resampler_head_dim": 6,
            "qk_layer_norms_perceiver": variant.perceiver_qk_norm,
        },
        vision_config={
            "embed_dim": 16,
            "image_size": IMAGE_SIZE,
            "patch_size": 14,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
    )
    model = IdeficsForVisionText2Text(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            fan_in = weight[0].numel() if weight.ndim > 1 else 1
            if "norm" in name or "layrnorm" in name:
                weight.copy_((1.0 if name.endswith("weight") else 0.0) + 0.3 * noise)
            elif "alpha" in name:
                weight.copy_(0.7 + 0.3 * noise)
            elif "embed" in name or "latents" in name or weight.ndim < 2:
                weight.copy_(0.5 * noise)
            else:
                weight.copy_(noise * 1.2 * fan_in**-0.5)
    return model


@functools.cache
def ours(variant: Variant, unseen: idefics.Unseen = "zero"):
    """(our model, its weights) through the mapping."""
    theirs = reference(variant)
    files = InMemory({name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    described = idefics.describe(theirs.config.to_dict(), files, ADDED, unseen=unseen)
    return api.flamingo(described.model.flamingo()), load_params(described)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)


def sequences() -> tuple[np.ndarray, np.ndarray]:
    """Tokens and phi of three sequences.

    Text first, two images side by side, and (but for the images) text alone.
    """
    around, image, end = 96, 97, 98
    rows = [
        [1, 5, 6, around, image, around, 7, 8, 9, around, image, around, 10, 11],
        [1, around, image, around, image, around, 20, 21, end, 22, 23, around, image, around],
        [1, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42],
    ]
    tokens = np.asarray(rows, np.int32)
    return tokens, np.cumsum(tokens == image, axis=1, dtype=np.int32)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer of words with IDEFICS' signs."""
    path = tmp_path_factory.mktemp("words") / "tokenizer.model"
    train_sentencepiece(
        [" ".join(f"w{number}" for number in range(8))] * 3, path, 32, model_type="word"
    )
    added = tuple(ADDED.values())
    return SentencePieceTokenizer(path.read_bytes(), added, idefics.markers(added, 0))


def their_mask(phi: np.ndarray, num_images: int):
    import torch

    return torch.from_numpy(phi[:, :, None] == np.arange(1, num_images + 1))


def normalised(frames: np.ndarray):
    """[B, N, 3, S, S] in their normalisation."""
    import torch

    mean, std = (
        np.float32([0.48145466, 0.4578275, 0.40821073]),
        np.float32([0.26862954, 0.26130258, 0.27577711]),
    )
    return torch.from_numpy(
        ((frames.astype(np.float32) / 255 - mean) / std).transpose(0, 1, 4, 2, 3).copy()
    )


@contextlib.contextmanager
def without_gate(model):
    """Their model as first published: the attention of a token that sees no image is kept."""

    def opened(layer, positional, named):
        return positional, named | {
            "cross_attention_gate": named["cross_attention_gate"].new_ones(())[None, None]
        }

    layers = model.model.gated_cross_attn_layers
    handles = [layer.register_forward_pre_hook(opened, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def their_logits(model, tokens: np.ndarray, phi: np.ndarray, frames: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        out = model(
            input_ids=torch.from_numpy(tokens).long(),
            pixel_values=normalised(frames),
            image_attention_mask=their_mask(phi, frames.shape[1]),
        )
    return out.logits.numpy()


def our_logits(
    variant: Variant,
    tokens: np.ndarray,
    phi: np.ndarray,
    frames: np.ndarray,
    *,
    unseen="zero",
    prefix: int = 0,
) -> np.ndarray:
    """Of the whole sequences at once, as a prompt is read.

    Or (but for the prefix) of one token after the other from the cache.
    """
    model, params = ours(variant, unseen)
    run = cached_logits.program(model, *frames.shape[:2], prefix=prefix)
    flat = frames.reshape(-1, 1, *frames.shape[2:])
    mask = np.ones(flat.shape[:2], bool)
    return np.asarray(run(params, *map(jnp.asarray, (tokens, phi, flat, mask))))


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def all_frames() -> np.ndarray:
    return images(3 * 3).reshape(3, 3, IMAGE_SIZE, IMAGE_SIZE, 3)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_theirs(name):
    """Each token attends the last image before it, and nothing before the first."""
    variant = VARIANTS[name]
    tokens, phi = sequences()
    expected = their_logits(reference(variant), tokens, phi, all_frames())
    assert_same(our_logits(variant, tokens, phi, all_frames()), expected)
    blind = their_logits(reference(variant), tokens, np.zeros_like(phi), all_frames())
    # here, images matter
    assert np.abs(blind - expected)[:2].max() > 1000 * TOLERANCE * np.abs(expected).max()


def test_logits_are_theirs_without_the_gate_for_tokens_that_see_nothing():
    """As first published.

    Softmax over a row that is masked throughout, the mean over all images.
    """
    variant = VARIANTS["9b and 80b"]
    tokens, phi = sequences()
    gated = their_logits(reference(variant), tokens, phi, all_frames())
    with without_gate(reference(variant)):
        expected = their_logits(reference(variant), tokens, phi, all_frames())
    # it makes a difference
    assert np.abs(gated - expected).max() > 1000 * TOLERANCE * np.abs(expected).max()
    assert_same(our_logits(variant, tokens, phi, all_frames(), unseen="average"), expected)


def test_decoding_from_the_cache_gives_their_logits():
    """The prefix holds all images of a row, as a prompt does."""
    variant = VARIANTS["9b and 80b"]
    tokens, phi = (x[:2, :] for x in sequences())
    frames = all_frames()[:2]
    tokens = np.concatenate([tokens, tokens[:, 5:8]], axis=1)
    phi = np.concatenate([phi, phi[:, -1:].repeat(3, axis=1)], axis=1)
    expected = their_logits(reference(variant), tokens, phi, frames)
    assert_same(our_logits(variant, tokens, phi, frames, prefix=14), expected)


def test_training_minimises_what_their_logits_say():
    """Their own loss fails on transformers 5.23, which forgets the additional columns.

    So it is taken from their logits.
    """
    import torch

    variant = VARIANTS["9b and 80b"]
    model, params = ours(variant)
    tokens, phi = sequences()
    frames = all_frames()
    log_p = torch.log_softmax(
        torch.from_numpy(their_logits(reference(variant), tokens, phi, frames)), -1
    ).numpy()
    expected = -np.take_along_axis(log_p[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
    batch = Batch(
        tokens=jnp.asarray(tokens),
        segment=jnp.ones(tokens.shape, jnp.int32),
        loss_weights=jnp.ones(tokens.shape, jnp.float32),
        media_index=jnp.asarray(phi),
        media_slot=jnp.arange(9, dtype=jnp.int32).reshape(3, 3),
        frames=jnp.asarray(frames.reshape(9, 1, *frames.shape[2:])),
        frame_mask=jnp.ones((9, 1), bool),
    )
    got = jax.jit(model.token_losses)(params, batch)
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def test_the_last_image_is_what_their_processor_lets_a_token_attend(words):
    """The phi of `tokenise`, on the text form that their processor writes, equals its own masks."""
    import torch
    from transformers.models.idefics import processing_idefics

    tokens, phi = tokenise(["w1 w2", IMAGE, "w3", IMAGE, IMAGE, "w4"], words, close=False)
    pieces = [idefics.AROUND, "<image>", idefics.AROUND]
    expected = ["<BOS>", "▁w1", "▁w2", *pieces, "▁w3", *pieces, *pieces[1:], "▁w4"]
    assert tokens.tolist() == [words.id(piece) for piece in expected]

    class TheirTokenizer:
        eos_token_id = words.eos_id
        convert_tokens_to_ids = staticmethod(words.id)

    ids = torch.from_numpy(tokens).long()[None]
    last, _ = processing_idefics.image_attention_mask_for_packed_input_ids_pt(ids, TheirTokenizer())
    np.testing.assert_array_equal(phi, last[0].numpy() + 1)
