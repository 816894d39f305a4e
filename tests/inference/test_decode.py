"""Decoding: against brute force on a small model, and cached against uncached on the real one."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.core.stack import unrolled
from flamingo_jax.data.schema import Batch
from flamingo_jax.inference import decode
from flamingo_jax.inference.methods import BeamSearch
from flamingo_jax.models import api, frozen
from flamingo_jax.models.cache import Media
from flamingo_jax.models.lm import LMConfig
from tests.inference import tiny

V, PAD, STOP = 5, 0, 4
LONGEST = 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """The whole history of each sequence, as a cache.

    It must be reordered with its beam, or the answers are wrong.
    """

    tokens: jax.Array  # [1, B, S]

    def repeat(self, times):
        return Memory(jnp.repeat(self.tokens, times, axis=1))

    def take(self, rows):
        return Memory(self.tokens[:, rows])


TABLE = jax.random.normal(jax.random.key(0), (97, V)) * 1.5


def history_model(cache, tokens, positions, media_index, media=None, chunk=None):
    """Logits that depend on all tokens before, by a hash of them.

    The answer differs for every history.
    """
    put = jax.vmap(lambda row, new, at: jax.lax.dynamic_update_slice(row, new, (at,)))
    memory = put(cache.tokens[0], tokens, positions[:, 0])
    visible = jnp.arange(memory.shape[1])[None, None, :] <= positions[:, :, None]
    places = jnp.arange(1, memory.shape[1] + 1)
    code = jnp.sum(jnp.where(visible, (memory * (places * places)[None])[:, None], 0), axis=-1) % 97
    return TABLE[code], Memory(memory[None])


def prefix_of(prompts, room=LONGEST):
    longest = max(map(len, prompts))
    # padding that is a real token: it must not be seen
    tokens = np.full((len(prompts), longest), 3, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    cache = Memory(jnp.zeros((1, len(prompts), longest + room), jnp.int32))
    length = jnp.asarray([len(prompt) for prompt in prompts], jnp.int32)
    return decode.prefill(history_model, cache, jnp.asarray(tokens), length, jnp.zeros_like(tokens))


def log_probs_after(sequence):
    return _log_probs_after(tuple(sequence))


@functools.cache
def _log_probs_after(sequence):
    tokens = jnp.asarray([sequence], jnp.int32)
    positions = jnp.arange(len(sequence), dtype=jnp.int32)[None]
    logits, _ = history_model(
        Memory(jnp.zeros((1, 1, len(sequence)), jnp.int32)), tokens, positions, None
    )
    return np.asarray(jax.nn.log_softmax(logits[0, -1]))


def brute_force(prompt, penalty=0.0):
    """Every answer of up to LONGEST tokens with its score, best first."""
    after = {(): log_probs_after(prompt)}
    answers = []
    for size in range(1, LONGEST + 1):
        for answer in itertools.product(range(V), repeat=size):
            if STOP in answer[:-1] or (size < LONGEST and answer[-1] != STOP):
                continue
            for end in range(1, size):
                if answer[:end] not in after:
                    after[answer[:end]] = log_probs_after([*prompt, *answer[:end]])
            score = sum(after[answer[:at]][answer[at]] for at in range(size))
            answers.append((score / size**penalty, answer + (PAD,) * (LONGEST - size)))
    return sorted(answers, reverse=True)


PROMPTS = ([1], [1, 2, 3], [1, 2, 2, 1, 3], [1, 4])


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_equals_brute_force(penalty):
    """Unequal prompts in one batch: each of the best answers and its score.

    Scores are sums in float32, equal to 1e-5.
    """
    search = jax.jit(
        lambda prefix: decode.beam_search(
            history_model,
            prefix,
            BeamSearch(100, length_penalty=penalty, max_new_tokens=LONGEST),
            stop=(STOP,),
            pad_id=PAD,
        )
    )
    found = search(prefix_of(PROMPTS))
    for row, prompt in enumerate(PROMPTS):
        expected = brute_force(prompt, penalty)
        count = min(len(expected), 100)
        np.testing.assert_allclose(
            found.score[row, :count], [score for score, _ in expected[:count]], rtol=1e-5
        )
        assert [tuple(tokens) for tokens in np.asarray(found.tokens[row, :8]).tolist()] == [
            answer for _, answer in expected[:8]
        ]
        assert np.all(np.isneginf(found.score[row, count:]))


def slow_beam_search(prompt, beams, stops=(STOP,), ends="any"):
    """Beam search in plain Python: the textbook, one prompt at a time."""
    live, done = [(0.0, ())], []
    for _ in range(LONGEST):
        grown = sorted(
            (
                (score + gain, (*answer, token))
                for score, answer in live
                for token, gain in enumerate(log_probs_after([*prompt, *answer]))
            ),
            reverse=True,
        )
        ending = [
            pair for pair in (grown if ends == "any" else grown[:beams]) if pair[1][-1] in stops
        ]
        done = sorted(done + ending, reverse=True)[:beams]
        live = [pair for pair in grown if pair[1][-1] not in stops][:beams]
    return sorted(done + live, reverse=True)[:beams]


@pytest.mark.parametrize(
    ("beams", "stops", "ends"),
    [
        (2, (STOP,), "any"),
        (3, (STOP,), "any"),
        (3, (STOP, 2), "any"),
        (2, (STOP,), "best"),
        (3, (STOP, 2), "best"),
    ],
)
def test_a_narrow_beam_equals_the_textbook(beams, stops, ends):
    """Reordering of the cache, finished beams and early ending, with a beam that prunes.

    Scores are equal to 1e-5.
    """
    found = jax.jit(
        lambda prefix: decode.beam_search(
            history_model,
            prefix,
            BeamSearch(beams, ends=ends, max_new_tokens=LONGEST),
            stop=stops,
            pad_id=PAD,
        )
    )(prefix_of(PROMPTS))
    for row, prompt in enumerate(PROMPTS):
        expected = slow_beam_search(prompt, beams, stops, ends)
        # A row that is over may hold fewer finished answers than an exhaustive run would list; the
        # best is always there.
        assert tuple(found.tokens[row, 0].tolist()) == expected[0][1] + (PAD,) * (
            LONGEST - len(expected[0][1])
        )
        np.testing.assert_allclose(found.score[row], [score for score, _ in expected], rtol=1e-5)


def test_greedy_takes_the_best_token_each_time_and_pads_after_the_stop():
    found = jax.jit(
        lambda prefix: decode.greedy(
            history_model, prefix, max_new_tokens=LONGEST, stop=(STOP,), pad_id=PAD
        )
    )(prefix_of(PROMPTS))
    stopped = 0
    for row, prompt in enumerate(PROMPTS):
        answer, score = [], 0.0
        while len(answer) < LONGEST and STOP not in answer:
            log_probs = log_probs_after([*prompt, *answer])
            answer.append(int(log_probs.argmax()))
            score += log_probs.max()
        stopped += len(answer) < LONGEST
        assert found.tokens[row, 0].tolist() == answer + [PAD] * (LONGEST - len(answer))
        np.testing.assert_allclose(found.score[row, 0], score, rtol=1e-5)
    assert 0 < stopped < len(PROMPTS)  # both endings were seen


def test_answers_that_end_in_a_poor_token_are_left_out_where_only_the_best_may_end():
    """The two searches differ on these prompts, so the test above tells them apart."""
    assert any(
        slow_beam_search(prompt, 2) != slow_beam_search(prompt, 2, ends="best")
        for prompt in PROMPTS
    )


def test_one_beam_is_greedy():
    ends = {"stop": (STOP,), "pad_id": PAD}
    one_beam = BeamSearch(1, max_new_tokens=LONGEST)
    both = lambda prefix: (
        decode.beam_search(history_model, prefix, one_beam, **ends),
        decode.greedy(history_model, prefix, max_new_tokens=LONGEST, **ends),
    )
    one, greedy = jax.jit(both)(prefix_of(PROMPTS))
    ended = np.asarray((greedy.tokens == STOP).any(axis=-1)[:, 0])
    # Where greedy runs into the bound, a shorter finished answer may score higher: beam search
    # rightly prefers it.
    np.testing.assert_array_equal(np.asarray(one.tokens)[ended], np.asarray(greedy.tokens)[ended])
    assert np.all(np.asarray(one.score) >= np.asarray(greedy.score) - 1e-5)


def test_a_beam_of_nan_is_not_dropped_for_the_others():
    """After one word the logits are NaN, of either sign: `top_k` puts one sign first, one last."""

    def broken(sign, cache, tokens, *inputs):
        logits, cache = history_model(cache, tokens, *inputs)
        return jnp.where((tokens == 1)[..., None], sign * jnp.float32(np.nan), logits), cache

    @jax.jit
    def search(sign, prefix):
        extend, method = functools.partial(broken, sign), BeamSearch(4, max_new_tokens=LONGEST)
        return decode.beam_search(extend, prefix, method, stop=(STOP,), pad_id=PAD)

    for sign in (1.0, -1.0):
        found = search(jnp.float32(sign), prefix_of(PROMPTS[:2]))
        assert np.isposinf(found.score[:, 0]).all()


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_the_table_of_distances_changes_nothing(fused, apart):
    """Relative positions with the projected distances in the cache, and without.

    The same logits, in prefill and after (float32: 1e-5).
    """
    config = LMConfig(8, num_layers=2, width=8, num_heads=2, vocab_multiple=8)
    model = api.language_model(dataclasses.replace(config, fused=fused))
    params = tiny.weights(jax.eval_shape(api.language_model(config).init, jax.random.key(0)))
    if fused:
        blocks = frozen.compute_form_of_blocks(config, trees.subtree(params, "lm/blocks"))
        rest = {
            module: value for module, value in params.items() if not module.startswith("lm/blocks")
        }
        params = rest | {f"lm/blocks/{module}": value for module, value in blocks.items()}
    if apart:
        blocks = trees.under(params, "lm/blocks")
        params = {
            module: unrolled(value) if module in blocks else value
            for module, value in params.items()
        }
    tokens = jnp.asarray([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]], jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(6, dtype=jnp.int32)[None], tokens.shape)

    @functools.partial(jax.jit, static_argnames="with_table")
    def logits(params, *, with_table):
        cache = model.empty_cache(2, 6, jnp.float32, params if with_table else None)
        cache = cache.unrolled() if apart else cache
        assert set(cache.shared) == ({"relative"} if with_table else set())
        first, cache = model.extend(params, cache, tokens[:, :4], positions[:, :4], tokens[:, :4])
        cache = cache.repeat(2).take(jnp.asarray([0, 2]))  # beams share the table
        second, _ = model.extend(params, cache, tokens[:, 4:], positions[:, 4:], tokens[:, 4:])
        return jnp.concatenate([first, second], axis=1)

    np.testing.assert_allclose(
        logits(params, with_table=True), logits(params, with_table=False), atol=1e-5
    )


@pytest.mark.parametrize("kind", ["flamingo", "language_model"])
def test_cached_decoding_equals_the_uncached_forward(kind, tmp_path_factory):
    """Token by token, for prompts of unequal length with images and videos.

    Float32, so sums in another order: 1e-4 on log-probabilities.
    """
    words = tiny.tokenizer(tmp_path_factory.getbasetemp())
    model, params = tiny.parts(words.vocab_size, kind)
    rng = np.random.default_rng(0)
    length, total, steps = np.asarray([5, 9, 12], np.int32), 16, 4
    tokens = rng.integers(4, words.vocab_size, (3, total)).astype(np.int32)
    phi = np.minimum(np.cumsum(rng.random((3, total)) < 0.3, axis=1), [[1], [2], [3]]).astype(
        np.int32
    )
    phi = np.where(
        np.arange(total)[None] >= length[:, None], phi[np.arange(3), length - 1][:, None], phi
    )  # answers attend the last image
    frames = np.stack([tiny.image(seed) for seed in range(8)]).reshape(4, 2, *tiny.image(0).shape)
    # a video, two images, a video
    mask = np.asarray([[True, True], [True, False], [True, False], [True, True]])
    slot = np.asarray([[2, -1, -1], [0, 3, -1], [1, 0, 2]], np.int32)
    media = Media(
        jax.jit(model.encode)(params, jnp.asarray(frames), jnp.asarray(mask)), jnp.asarray(slot)
    )

    batch = Batch(
        tokens, np.ones_like(tokens), np.ones(tokens.shape, np.float32), phi, slot, frames, mask
    )
    expected = -np.asarray(jax.jit(model.token_losses)(params, batch))  # [3, total - 1]

    @jax.jit
    def cached(params, prompt, length, phi, answer, media):
        extend = lambda *arguments: model.extend(params, *arguments)
        prefix = decode.prefill(
            extend, model.empty_cache(3, 12 + steps, jnp.float32), prompt, length, phi, media
        )
        found, cache, log_probs = [], prefix.cache, prefix.log_probs
        for t in range(steps):
            found.append(log_probs[jnp.arange(3), answer[:, t]])
            logits, cache = extend(
                cache,
                answer[:, t : t + 1],
                (prefix.length + t)[:, None],
                prefix.media_index[:, None],
            )
            log_probs = jax.nn.log_softmax(logits[:, 0])
        return jnp.stack(found, axis=1)

    answer = np.stack([tokens[row, size : size + steps] for row, size in enumerate(length)])
    got = cached(params, tokens[:, :12], length, phi[:, :12], answer, media)
    for row, size in enumerate(length):
        np.testing.assert_allclose(got[row], expected[row, size - 1 : size - 1 + steps], atol=1e-4)
