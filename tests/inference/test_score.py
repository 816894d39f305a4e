"""Log-likelihood ranking: against the sum of token losses of prompt + candidate, one at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.inference import score
from tests.inference.test_decode import LONGEST, PROMPTS, history_model, log_probs_after, prefix_of

CANDIDATES = [
    [(1,), (2, 3), (3, 1, 2)],
    [(2,), (2, 2), (1,)],
    [(3, 3, 3), (1,), (2, 4)],
    [(4,), (1, 1)],
]


def padded():
    tokens, length = np.zeros((4, 3, LONGEST), np.int32), np.zeros((4, 3), np.int32)
    for row, candidates in enumerate(CANDIDATES):
        for column, candidate in enumerate(candidates):
            tokens[row, column, : len(candidate)], length[row, column] = candidate, len(candidate)
    return jnp.asarray(tokens), jnp.asarray(length)


def expected(row, candidate, normalise):
    total = sum(
        log_probs_after([*PROMPTS[row], *candidate[:at]])[token]
        for at, token in enumerate(candidate)
    )
    return total / len(candidate) if normalise == "mean" else total


@pytest.mark.parametrize(("normalise", "per_pass"), [("sum", 16), ("sum", 2), ("mean", 1)])
def test_scores_are_sums_of_log_probabilities(normalise, per_pass):
    """Candidates of unequal number and length, after prompts of unequal length, in several passes.

    Tolerance 1e-5: float32 sums.
    """
    tokens, length = padded()
    function = jax.jit(
        lambda prefix: score.score(
            history_model, prefix, tokens, length, normalise=normalise, per_pass=per_pass
        )
    )
    found = function(prefix_of(PROMPTS))
    for row, candidates in enumerate(CANDIDATES):
        for column, candidate in enumerate(candidates):
            np.testing.assert_allclose(
                found[row, column], expected(row, candidate, normalise), rtol=1e-5
            )
    assert np.isneginf(found[3, 2])  # there is no such candidate


def test_one_token_candidates_need_no_further_pass():
    """Their scores are entries of the prompt's last distribution, exactly.

    The model is not called at all.
    """
    prefix = prefix_of(PROMPTS)
    tokens = jnp.broadcast_to(jnp.arange(3, dtype=jnp.int32)[None, :, None], (4, 3, 1))

    def refuse(*arguments):
        raise AssertionError("the model was called")

    found = score.score(refuse, prefix, tokens, jnp.ones((4, 3), jnp.int32))
    np.testing.assert_array_equal(found, prefix.log_probs[:, :3])
