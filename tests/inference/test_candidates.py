"""Candidates after a prompt, and prompts in parts, with a vocabulary of LLaMA's kind."""

import logging

import jaxtyping
import numpy as np
import pytest

from flamingo_jax.data.captions import tokenise_pair
from flamingo_jax.data.interleave import IMAGE, tokenise
from flamingo_jax.inference import prompt as prompt_lib
from flamingo_jax.inference.candidates import Candidates, as_candidates
from flamingo_jax.inference.prompt import PromptError, read
from flamingo_jax.tokenizers.markers import Markers
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer
from tests.inference import tiny
from tests.tokenizers import llama_like

PICTURE = np.zeros((4, 4, 3), np.uint8)


@pytest.fixture(scope="module")
def llama():
    return SentencePieceTokenizer(llama_like.model(), llama_like.NEW)


@pytest.fixture(autouse=True)
def _warnings_again():
    prompt_lib.warn_once.cache_clear()


def after(tokenizer, parts, candidates, **settings):
    """The token sequences of the prompt with each candidate."""
    prompt, tokens = Candidates(tokenizer).after(read(parts, tokenizer), candidates, **settings)
    assert len(prompt.tokens) == len(prompt.media_index)
    return [[*prompt.tokens.tolist(), *ids] for ids in tokens]


@pytest.mark.parametrize(
    "prefix", ["Is it hateful? Answer:", "Output:", "Caption: a person", "Question: what is it? "]
)
def test_a_candidate_is_what_a_support_example_is(llama, prefix):
    """So a model that has read the examples knows the answer (a LLaMA ranked 0.275 of 1.0)."""
    for before in ([], [PICTURE], [PICTURE, "Output: a cat<EOC>", PICTURE]):
        found = after(llama, [*before, prefix], ["yes", "a dog"], separator=" ")
        for ids, answer in zip(found, ("yes", "a dog"), strict=True):
            whole = read([*before, f"{prefix} {answer}"], llama)
            assert ids == whole.tokens.tolist()


def test_all_candidates_are_scored_from_the_same_place(llama):
    """One of them changes the last word of the prompt; each is the tokens of the whole text."""
    prompt = read(["Is it hate"], llama)
    cut, tokens = Candidates(llama).after(prompt, ["ful", " yes"])
    assert 0 < len(cut.tokens) < len(prompt.tokens)
    for ids, text in zip(tokens, ("ful", " yes"), strict=True):
        assert [*cut.tokens, *ids] == [llama.bos_id, *llama.encode("Is it hate" + text)]


def test_a_prompt_keeps_a_token(llama):
    """Without <BOS> a candidate may change all of it."""
    plain = SentencePieceTokenizer(llama_like.model(), llama_like.NEW, Markers(bos=False))
    cut, (ids,) = Candidates(plain).after(read(["hate"], plain), ["ful"])
    assert len(cut.tokens) >= 1 and ids
    assert plain.decode([*cut.tokens, *ids]) == "hateful"


def test_an_empty_candidate_stays_empty(llama):
    _, tokens = Candidates(llama).after(read(["Answer: "], llama), ["yes", ""])
    assert tokens[0] and tokens[1] == ()


@pytest.mark.parametrize("text", ["Question: what is it? Answer:", "a cat<EOC>Output: a dog"])
def test_parts_have_the_tokens_of_the_joined_text(llama, text):
    whole = read([text], llama).tokens.tolist()
    pictured = read([PICTURE, text], llama).tokens.tolist()
    page = tokenise([IMAGE, text, IMAGE], llama)[0].tolist()
    for cut in range(len(text)):
        parts = [text[:cut], "", text[cut:]]
        assert read(parts, llama).tokens.tolist() == whole
        assert read([PICTURE, *parts], llama).tokens.tolist() == pictured
        assert tokenise([IMAGE, *parts, IMAGE], llama)[0].tolist() == page
    with pytest.raises(PromptError, match="part 1 has an <image> tag"):
        read(["a <ima", "ge> b"], llama)


def test_the_space_of_a_pair_is_the_space_of_its_first_word(llama):
    with_space = tokenise_pair("cat on a bike", llama, space_prefix=True).tolist()
    start = [llama.bos_id, llama.id("<image>")]
    assert with_space[:3] == [*start, llama.id("▁cat")]
    assert tokenise_pair("cat", llama).tolist()[2:4] == [llama.id("c"), llama.id("at")]


def test_a_prompt_that_ends_in_a_space_warns_once(llama, words, caplog):
    with caplog.at_level(logging.WARNING):
        read(["output : "], words)  # a word has its space, and a space alone is nothing
        read(["Answer:"], llama)
        read(["Answer: ", PICTURE], llama)
        assert not caplog.records
        read(["Answer: "], llama)
        read([PICTURE, "Output: "], llama)
    (record,) = caplog.records
    assert "it ends in a space" in record.message and "Leave the space out" in record.message


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tiny.tokenizer(tmp_path_factory.getbasetemp())


def test_candidates_that_go_on_in_the_last_word_warn(llama, words, caplog):
    with caplog.at_level(logging.WARNING):
        after(words, ["output :"], ["red"])
        after(llama, ["Answer:"], [" yes"])
        after(llama, [PICTURE], ["yes"])
        after(llama, ["Answer: ("], ["yes"])
        assert not caplog.records
        after(llama, ["Answer:"], ["yes"])
    (record,) = caplog.records
    assert "begin without a space" in record.message


def test_candidates_of_words_need_no_space(words):
    """As in the demo: `score(prompt, ["red", "green"])`."""
    assert after(words, ["output :"], ["red"]) == after(words, ["output :"], [" red"])


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ("red", "got str 'red'; expected a list of str"),
        (b"red", "got bytes"),
        (3, "got int '3'"),
        ({"red", "green"}, "got a set; expected a list"),
        (["red", 3], "candidate 1 is int; expected a str"),
    ],
)
def test_wrong_candidates(candidates, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(PromptError, match=message):
        as_candidates(candidates)
