"""Sampling from the nucleus, on the model one can enumerate (see test_decode)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.inference import decode
from tests.inference.test_decode import (
    LONGEST,
    PAD,
    STOP,
    history_model,
    log_probs_after,
    prefix_of,
)

PROMPT = [1, 2, 3]
MANY = 4000


@jax.jit
def draw(prefix, seed, temperature, top_p):
    sampling = decode.Sampling(seed, temperature, top_p)
    return decode.sample(
        history_model, prefix, sampling, max_new_tokens=LONGEST, stop=(STOP,), pad_id=PAD
    )


def drawn(prompts, seeds, *, temperature=1.0, top_p=1.0):
    rows = len(prompts)
    return draw(
        prefix_of(prompts),
        jnp.asarray(seeds, jnp.uint32),
        jnp.full(rows, temperature, jnp.float32),
        jnp.full(rows, top_p, jnp.float32),
    )


def expected(temperature, top_p):
    """First-token probabilities: sorted, cut when their sum reaches top_p, and normalised again."""
    probability = np.exp(log_probs_after(PROMPT) / temperature)
    probability /= probability.sum()
    kept, total = np.zeros_like(probability), 0.0
    for token in np.argsort(-probability):
        kept[token] = probability[token]
        total += probability[token]
        if total >= top_p:
            break
    return kept / kept.sum()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.0, 0.7), (2.0, 0.8), (0.5, 1.0)])
def test_tokens_come_as_often_as_they_should(temperature, top_p):
    """Of 4000 rows, within 4 standard errors; never one from outside of the nucleus."""
    first = np.asarray(
        drawn([PROMPT] * MANY, range(MANY), temperature=temperature, top_p=top_p).tokens[:, 0, 0]
    )
    share = np.bincount(first, minlength=5) / MANY
    wanted = expected(temperature, top_p)
    assert np.all(np.abs(share - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / MANY) + 1e-9)
    assert share.max() < 1


def test_the_smallest_nucleus_is_greedy():
    prompts = [[1], [1, 2, 3], [1, 2, 2, 1, 3], [1, 4]]
    greedy = decode.greedy(
        history_model, prefix_of(prompts), max_new_tokens=LONGEST, stop=(STOP,), pad_id=PAD
    )
    found = drawn(prompts, range(4), top_p=1e-6)
    np.testing.assert_array_equal(found.tokens, greedy.tokens)
    np.testing.assert_allclose(found.score, greedy.score, rtol=1e-6)


def test_an_answer_depends_on_its_prompt_and_seed_alone():
    """Other rows, another order, another length of padding: the same tokens."""
    prompts, seeds = [[1], [1, 2, 3], [1, 4], [1, 2, 3]], [7, 8, 9, 10]
    together = np.asarray(drawn(prompts, seeds).tokens)
    turned = np.asarray(drawn([[1, 2, 2, 2, 2], *prompts[::-1]], [1, *seeds[::-1]]).tokens)[:0:-1]
    np.testing.assert_array_equal(together, turned)
    others = np.asarray(drawn([PROMPT] * MANY, range(MANY)).tokens)
    assert len({tuple(row) for row in others[:50, 0].tolist()}) > 5  # seeds do differ


def test_the_score_is_the_models_own_log_probability():
    """Whatever the temperature and the nucleus (float32 sums: 1e-5)."""
    found = drawn([PROMPT] * MANY, range(MANY), temperature=3.0, top_p=0.9)
    for tokens, score in zip(found.tokens[:20, 0].tolist(), found.score[:20, 0], strict=True):
        answer = tokens[: tokens.index(STOP) + 1] if STOP in tokens else tokens
        total = sum(
            log_probs_after([*PROMPT, *answer[:at]])[token] for at, token in enumerate(answer)
        )
        np.testing.assert_allclose(score, total, rtol=1e-5)
