"""Tokens of a text after another text: the tokenizers of this project, and odd public ones.

tests/parity/test_tokenizers.py compares with transformers.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.tokenizers.base import files
from flamingo_jax.tokenizers.load import load_tokenizer
from flamingo_jax.tokenizers.markers import Markers
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer
from tests.tokenizers import llama_like
from tests.tokenizers.llama_like import NEW


@pytest.fixture(scope="module")
def content():
    return llama_like.model()


@pytest.fixture(scope="module")
def llama(content):
    return SentencePieceTokenizer(content, NEW)


def names(tokenizer, ids):
    return [
        tokenizer.new_tokens[i - tokenizer.vocab_size]
        if i >= tokenizer.vocab_size
        else tokenizer._pieces.id_to_piece(i)
        for i in ids
    ]


TEXT = st.text(st.sampled_from("My cat.\n <EOC>🦩é"), max_size=9)


@given(before=TEXT, text=TEXT)
def test_pieces_of_this_project_are_the_same_alone_and_after_a_text(pieces, before, text):
    """So the tokens of all texts are those of version 0.4.0."""
    across = "<EOC>" in before + text and before + text != ""
    if not across:
        assert pieces.encode_after(before, text) == pieces.encode(text)
    changed, ids = pieces.join(before, text)
    head = pieces.encode(before)
    joined = head[: len(head) - changed] + ids
    assert pieces.decode(joined) == before + text


def test_a_model_of_words_begins_each_text_with_a_word(words):
    """It has no piece without a space. "w1" means the same as " w1"."""
    for text in ("w1", " w1"):
        assert words.encode_after("a", text) == [words.id("▁w1")]
        assert words.join("a", text) == (0, [words.id("▁w1")])
        assert words.encode_after("<image>", text) == [words.id("▁w1")]
    assert words.join("w1<E", "OC>") == (1, [words.id("▁w1"), words.eoc_id])


@pytest.mark.parametrize(
    ("before", "text", "changed", "expected"),
    [
        ("Answer:", " yes", 0, ["▁yes"]),
        ("", " yes", 0, ["▁", "▁yes"]),  # SentencePiece's own tokens at the start
        ("", "yes", 0, ["▁yes"]),
        ("Answer: ", "yes", 1, ["▁yes"]),
        ("Output:<EOC>", " yes", 0, ["▁yes"]),
        ("<image>", "yes", 0, ["y", "es"]),
        ("Is it hate", "ful", 1, ["▁hateful"]),
        ("Output:<E", "OC> yes", 3, ["<EOC>", "▁yes"]),
        ("Answer:", "", 0, []),
    ],
)
def test_after_a_text_of_llama(llama, before, text, changed, expected):
    found, ids = llama.join(before, text)
    assert names(llama, ids) == expected
    assert (found > 0) == (changed > 0)
    head = llama.encode(before)
    assert head[: len(head) - found] + ids == llama.encode(before + text)


def test_a_text_that_a_piece_joins_is_spelled_without_it(llama):
    """The prompt's own tokens stay, and together they are the text."""
    head = llama.encode("Answer: ")
    ids = llama.encode_after("Answer: ", "yes")
    assert names(llama, ids) == ["y", "es"]
    assert llama.decode(head + ids) == "Answer: yes"


@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        {"model_type": "unigram", "normalization_rule_name": "nfkc"},
        {"add_dummy_prefix": False, "normalization_rule_name": "nmt_nfkc"},
        {"treat_whitespace_as_suffix": True},
        {"model_type": "char", "byte_fallback": False},
    ],
    ids=["T5", "NFKC", "Gemma", "suffix", "characters"],
)
def test_the_joined_text_is_the_rule_for_every_kind_of_model(options):
    tokenizer = SentencePieceTokenizer(llama_like.model(**options), NEW)
    text = "Question: what  is it? Answer: ﬁ e\u0301 yes<EOC> Output: a cat"
    whole = tokenizer.encode(text)
    for cut in range(len(text)):
        head = tokenizer.encode(text[:cut])
        changed, ids = tokenizer.join(text[:cut], text[cut:])
        assert head[: len(head) - changed] + ids == whole
        assert changed or tokenizer.encode_after(text[:cut], text[cut:]) == ids


def test_an_end_of_chunk_that_is_a_line_break_does_not_begin_a_text(content):
    """As in IDEFICS: `<EOC>` is LLaMA's piece for the line break, and a line goes on after it."""
    markers = Markers(end_of_chunk="<0x0A>", closes_chunks=False)
    tokenizer = SentencePieceTokenizer(content, ("<image>",), markers)
    assert tokenizer.encode("a cat<EOC>Output: dog") == tokenizer.encode("a cat\nOutput: dog")
    assert tokenizer.encode_after("a cat<EOC>", "Output") == tokenizer.encode_after("a\n", "Output")


SAID = [
    ({}, {}, "first"),
    ({"legacy": False}, {}, "first"),
    ({"legacy": True}, {"pre_tokenizer": None}, "always"),
    ({"legacy": None, "add_prefix_space": False}, {}, "never"),
    ({}, {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend"}]}}, "always"),
    ({}, {"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}}, "first"),
    ({}, {"pre_tokenizer": {"type": "Metaspace", "add_prefix_space": True}}, "always"),
    ({}, {"normalizer": {"type": "Replace"}}, "never"),
    ([], {}, "first"),
]
WRITTEN = {
    "first": ["▁cat", "<EOC>", "c", "at", "<EOC>", "▁cat"],
    "always": ["▁cat", "<EOC>", "▁cat", "<EOC>", "▁", "▁cat"],
    "never": ["c", "at", "<EOC>", "c", "at", "<EOC>", "▁cat"],
}


@pytest.mark.parametrize(("config", "json_file", "scheme"), SAID)
def test_the_files_say_where_the_prefix_is(tmp_path, content, config, json_file, scheme):
    """And so does a copy of them in an export."""
    llama_like.directory(tmp_path, content)
    if config != {}:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if json_file:
        (tmp_path / "tokenizer.json").write_text(json.dumps(json_file))
    copy, saved = tmp_path / "copy", tmp_path / "saved"
    copy.mkdir()
    for name, written in files(tmp_path).items():
        (copy / name).write_bytes(written)
    load_tokenizer(copy, NEW).save(saved)
    for place in (tmp_path, copy, saved):
        tokenizer = load_tokenizer(place, NEW)
        ids = tokenizer.encode("cat<EOC>cat<EOC> cat")
        assert names(tokenizer, ids) == WRITTEN[scheme]
        assert tokenizer.decode(ids) == "cat<EOC>cat<EOC> cat"


def test_an_export_of_0_4_0_keeps_its_tokens(tmp_path, content):
    """It says nothing, and its model was trained with a prefix after each new token."""
    llama_like.directory(tmp_path, content)
    (tmp_path / "model.json").write_text("{}")
    tokenizer = load_tokenizer(tmp_path, NEW)
    assert names(tokenizer, tokenizer.encode("cat<EOC>cat<EOC> cat")) == WRITTEN["always"]
    assert json.loads(files(tmp_path)["tokenizer_config.json"])["legacy"] is True


def test_a_tokenizer_of_this_project_needs_no_other_file(words, pieces, tmp_path):
    for tokenizer in (words, pieces):
        tokenizer.save(tmp_path)
        assert [*files(tmp_path)] == ["tokenizer.model"]
