"""The look-up probe.

A model that looks names up has accuracy 1 and the nll of its certainty; a model that guesses has
what guessing gives.
"""

import math

import numpy as np
import pytest

from flamingo_jax.core.finite import NonFiniteError
from flamingo_jax.evaluation.lm_lookup import lookup_probe
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer, train_sentencepiece
from flamingo_jax.world.text import WORDS, lookup_pages


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_sentencepiece([" ".join(WORDS)] * 3, path, 1000, "word")
    return SentencePieceTokenizer.load(path)


def reader(certainty):
    """A model with probability `certainty` for the token after the last equal "KEY :".

    The rest is even on other ids. The model reads only the past.
    """

    def token_nll(tokens, segment):
        losses = np.full((tokens.shape[0], tokens.shape[1] - 1), 50.0)
        for row, length in enumerate(segment.sum(axis=1)):
            past, target = tokens[row, : length - 1].tolist(), tokens[row, length - 1]
            key = past[-2:]
            at = max(i for i in range(len(past) - 2) if past[i : i + 2] == key)
            losses[row, length - 2] = -math.log(
                certainty if past[at + 2] == target else (1 - certainty) / 99
            )
        return losses

    return token_nll


@pytest.mark.parametrize("ways", [2, 4, 6])
def test_a_model_that_looks_up_is_right(tokenizer, ways):
    found = lookup_probe(reader(0.8), tokenizer, ways, 20, 0)
    assert found["accuracy"] == 1.0
    assert found["nll"] == pytest.approx(-math.log(0.8))


@pytest.mark.parametrize("ways", [2, 4])
def test_copying_any_name_is_chance(tokenizer, ways):
    """The model prefers one name (n = 400, three standard errors)."""

    def token_nll(tokens, segment):
        return np.broadcast_to(tokens[:, 1:] * 0.01, tokens[:, 1:].shape)

    found = lookup_probe(token_nll, tokenizer, ways, 400, 0)
    assert found["accuracy"] == pytest.approx(1 / ways, abs=3 * (0.25 / 400) ** 0.5)


def test_calls_have_one_shape_and_show_whole_pages(tokenizer):
    seen = []

    def token_nll(tokens, segment):
        seen.append((tokens, segment))
        return np.zeros((tokens.shape[0], tokens.shape[1] - 1), np.float32)

    for ways in (2, 4, 6):
        lookup_probe(token_nll, tokenizer, ways, 5, 3)
    assert {tokens.shape for tokens, _ in seen} == {(5, 64)}
    assert len(seen) == 2 + 4 + 6
    tokens, segment = seen[0]
    page = lookup_pages(2, 5, 3)[0]
    assert tokens[0, 0] == tokenizer.bos_id
    assert tokenizer.decode(tokens[0, : segment[0].sum()]) == f"{page.prompt} {page.candidates[0]}"
    assert (tokens[segment == 0] == tokenizer.pad_id).all()


def test_only_the_answer_counts(tokenizer):
    """A loss everywhere but on the answer changes nothing."""

    def token_nll(tokens, segment):
        losses = np.full((tokens.shape[0], tokens.shape[1] - 1), 7.0)
        losses[np.arange(len(tokens)), segment.sum(axis=1) - 2] = 0.5
        return losses

    assert lookup_probe(token_nll, tokenizer, 4, 10, 0)["nll"] == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_that_are_not_finite_are_refused(tokenizer, bad):
    """The smallest of NaN is the first: the accuracy would be that of guessing, without a word."""

    def token_nll(tokens, segment):
        losses = np.ones(tokens[:, 1:].shape)
        losses[3] = bad
        return losses

    with pytest.raises(NonFiniteError, match="Losses of the language model are not finite: 4 of"):
        lookup_probe(token_nll, tokenizer, 4, 10, 0)
