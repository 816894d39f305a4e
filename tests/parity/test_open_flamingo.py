"""OpenFlamingo imported equals its own `Flamingo` class, on random weights.

Logits at every position, and the tokens that are generated.

Tolerance 1e-4 of the largest logit: float32 sums in another order, through a ViT, a resampler and
two stacks of layers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.conversion import publishers
from flamingo_jax.conversion.mapping import load_params
from flamingo_jax.inference import decode
from flamingo_jax.inference.methods import BeamSearch
from flamingo_jax.models import api
from flamingo_jax.models.cache import Media
from tests.parity import open_flamingo_models as models

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4
# family -> a gated layer for every n blocks
MODELS = {"mpt": 1, "gpt_neox": 2, "llama": 4, "opt": 2}
LENGTH, MOST_IMAGES = 12, 3
IMAGES_AT = {1: (3,), 2: (0, 7), 3: (2, 5, 6)}  # {images of a sequence: positions of their tags}


@pytest.fixture(scope="module", params=list(MODELS))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def imported(family, tmp_path_factory):
    """Returns (theirs, our functions, our weights)."""
    theirs = models.build(family, MODELS[family])
    conversion = publishers.describe(
        "open_flamingo", models.write(theirs, tmp_path_factory.mktemp(family))
    )
    return theirs.flamingo, api.flamingo(conversion.model.flamingo()), load_params(conversion)


@functools.cache
def _prompts(num_images):
    """Two sequences: tokens [2, L], frames [2, N, S, S, 3].

    Text may come before the first image, and images follow each other.
    """
    rng = np.random.default_rng(num_images)
    tokens = rng.integers(2, models.PIECES, (2, LENGTH))
    tokens[:, IMAGES_AT[num_images]] = models.IMAGE
    tokens[0, -2] = models.EOC
    return tokens, rng.integers(
        0, 256, (2, num_images, models.IMAGE_SIZE, models.IMAGE_SIZE, 3), np.uint8
    )


def _media(frames):
    """(frames [2*N, 1, S, S, 3], frame_mask, slot [2, N]); N is the most images of a prompt."""
    num_images = frames.shape[1]
    slot = np.full((2, MOST_IMAGES), -1, np.int32)
    slot[:, :num_images] = np.arange(2 * num_images).reshape(2, -1)
    pool = np.zeros((2 * MOST_IMAGES, 1, *frames.shape[2:]), np.uint8)
    pool[: 2 * num_images, 0] = frames.reshape(-1, *frames.shape[2:])
    return jnp.asarray(pool), jnp.ones((len(pool), 1), bool), jnp.asarray(slot)


def _phi(tokens):
    return jnp.asarray(np.cumsum(tokens == models.IMAGE, axis=1), jnp.int32)


@pytest.fixture(scope="module")
def logits(imported):
    _, functions, params = imported

    @jax.jit
    def run(params, tokens, phi, frames, frame_mask, slot):
        pool = functions.encode(params, frames, frame_mask)
        cache = functions.empty_cache(len(tokens), LENGTH, pool.dtype)
        positions = jnp.broadcast_to(jnp.arange(LENGTH)[None], tokens.shape)
        return functions.extend(params, cache, tokens, positions, phi, Media(pool, slot))[0]

    return lambda tokens, frames: run(
        params, jnp.asarray(tokens, jnp.int32), _phi(tokens), *_media(frames)
    )


@pytest.mark.parametrize("num_images", IMAGES_AT)
def test_logits(imported, logits, num_images):
    import torch

    tokens, frames = _prompts(num_images)
    ids = torch.tensor(tokens)
    with torch.no_grad():
        expected = imported[0](
            vision_x=models.pixels(frames), lang_x=ids, attention_mask=torch.ones_like(ids)
        ).logits
    got = np.asarray(logits(tokens, frames))
    assert got.shape == expected.shape
    scale = float(expected.abs().max())
    assert scale > 0.5
    np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=TOLERANCE * scale)
    # The comparison would notice an image in another's place.
    moved = np.asarray(logits(tokens, np.roll(frames, 1, axis=0)))
    assert np.abs(moved - got).max() > 100 * TOLERANCE * scale


NEW = 6  # tokens of an answer
STOP = {"stop": (models.EOC,), "pad_id": 0}


@pytest.fixture(scope="module")
def answers(imported):
    """Our answers to two prompts.

    (prompts without their padding, frames) -> (greedy [2, 1, NEW], the best of 3 beams first [2, 3,
    NEW]).
    """
    _, functions, params = imported

    @jax.jit
    def run(params, tokens, length, phi, frames, frame_mask, slot):
        extend = functools.partial(functions.extend, params)
        pool = functions.encode(params, frames, frame_mask)
        cache = functions.empty_cache(len(tokens), LENGTH + NEW, pool.dtype)
        prefix = decode.prefill(extend, cache, tokens, length, phi, Media(pool, slot))
        method = BeamSearch(3, ends="best", max_new_tokens=NEW)
        beams = decode.beam_search(extend, prefix, method, **STOP)
        return decode.greedy(extend, prefix, max_new_tokens=NEW, **STOP).tokens, beams.tokens

    def answer(prompts, frames):
        length = jnp.asarray([len(prompt) for prompt in prompts], jnp.int32)
        tokens = np.stack([np.pad(prompt, (0, LENGTH - len(prompt))) for prompt in prompts])
        out = run(params, jnp.asarray(tokens, jnp.int32), length, _phi(tokens), *_media(frames))
        return [np.asarray(tokens) for tokens in out]

    return answer


@pytest.mark.parametrize("num_images", [1, 3])
def test_generated_tokens(imported, answers, num_images):
    """Greedy and with 3 beams, length penalty 0 on both sides.

    Theirs pads prompts on the left, ours on the right.

    Theirs runs without its cache: with it, on this transformers, the scores of OPT's beams are not
    those of its own forward.
    """
    import torch

    tokens, frames = _prompts(num_images)
    prompts = [tokens[0], tokens[1, : LENGTH - 2]]
    padded = torch.tensor(np.stack([prompts[0], np.pad(prompts[1], (2, 0))]))
    mask = torch.ones_like(padded)
    mask[1, :2] = 0
    for beams, got in zip((1, 3), answers(prompts, frames), strict=True):
        with torch.no_grad():
            generated = imported[0].generate(
                vision_x=models.pixels(frames), lang_x=padded, attention_mask=mask,
                max_new_tokens=NEW, num_beams=beams, do_sample=False, length_penalty=0.0,
                pad_token_id=0, use_cache=False,
            )  # fmt: skip
        for row in range(2):
            assert _until_eoc(got[row, 0]) == _until_eoc(generated[row, LENGTH:].numpy())


def _until_eoc(tokens):
    ids = tokens.tolist()
    return ids[: ids.index(models.EOC) + 1] if models.EOC in ids else ids
