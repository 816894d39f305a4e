"""Text to ids and back, for words and for pieces with byte fallback; ids of the new tokens."""

import os

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.core.paths import PathError
from flamingo_jax.tokenizers.base import Tokenizer, files
from flamingo_jax.tokenizers.load import load_tokenizer
from flamingo_jax.tokenizers.markers import Markers
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer, train_sentencepiece


def test_special_ids(words, pieces):
    for tokenizer in (words, pieces):
        assert isinstance(tokenizer, Tokenizer)
        assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
        assert tokenizer.eoc_id == tokenizer.vocab_size  # the first new token
    assert words.id("<image>") == words.vocab_size + 1
    with pytest.raises(ValueError, match="'<image>' is neither"):
        pieces.id("<image>")


@pytest.mark.parametrize("name", ["tokenizer.model", "prompt.json"])
def test_a_pipe_is_no_tokenizer(words, tmp_path, name):
    words.save(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(PathError, match=f"Cannot read .*{name}: it is a pipe"):
        load_tokenizer(tmp_path)


def test_words_are_one_piece_each(words):
    expected = [words.id(piece) for piece in ("▁w3", "▁intro", "<EOC>", "<image>", "▁w3")]
    assert words.encode("w3  intro <EOC><image> w3") == expected
    assert words.id("<EOC>") == words.eoc_id
    assert words.encode("unheard-of") == [3]


@given(text=st.lists(st.integers(0, 39).map("w{}".format)).map(" ".join))
def test_words_come_back(words, text):
    assert words.decode(words.encode(text)) == text


@given(text=st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"])))
def test_any_text_comes_back(pieces, text):
    """Byte fallback keeps spaces, control characters and all scripts."""
    assert pieces.decode(pieces.encode(text)) == text


CHUNKS = [" a", "pets!", "<EOC>", "<image>", "🦩 ", "<pad>", "<BOS>"]


@given(chunks=st.lists(st.sampled_from(CHUNKS)))
def test_a_text_has_new_tokens_but_no_special_ones(pieces, chunks):
    text = "".join(chunks)
    ids = pieces.encode(text)
    assert pieces.decode(ids) == text
    assert ids.count(pieces.eoc_id) == chunks.count("<EOC>")
    # The strings of special tokens in a text are only text.
    assert not {pieces.pad_id, pieces.bos_id, pieces.eos_id} & set(ids)


def test_leading_space_makes_a_difference(pieces):
    assert pieces.encode(" My cat") != pieces.encode("My cat")


def test_control_tokens_have_no_text(words):
    ids = [words.bos_id, *words.encode("w1"), words.eos_id, words.pad_id]
    assert words.decode(ids) == "w1"


@pytest.mark.parametrize("token", [-1, 10_000])
def test_unknown_ids_are_refused(words, token):
    with pytest.raises(ValueError, match=f"Token id {token} is out of range"):
        words.decode([token])


def test_save_and_load(words, tmp_path):
    words.save(tmp_path)
    again = SentencePieceTokenizer.load(tmp_path, words.new_tokens)
    assert again.encode("w3 w5<EOC>") == words.encode("w3 w5<EOC>")
    with pytest.raises(FileNotFoundError, match=r"No tokenizer at .*nothing"):
        SentencePieceTokenizer.load(tmp_path / "nothing")


def test_a_table_with_more_rows_than_pieces_moves_the_new_tokens(words, tmp_path):
    """prompt.json is saved with the tokenizer; a row without a piece has no text."""
    words.save(tmp_path)
    assert sorted(files(tmp_path)) == ["tokenizer.model"]  # the paper's markers need no file
    content = (tmp_path / "tokenizer.model").read_bytes()
    wide = SentencePieceTokenizer(content, words.new_tokens, Markers(bos=False, vocab_size=500))
    wide.save(tmp_path / "wide")
    again = SentencePieceTokenizer.load(tmp_path / "wide", words.new_tokens)
    assert sorted(files(tmp_path / "wide")) == ["prompt.json", "tokenizer.model"]
    assert (again.vocab_size, again.eoc_id, again.id("<image>")) == (500, 500, 501)
    assert list(again.start_ids) == []
    assert again.encode("w3<EOC>") == [words.id("▁w3"), 500]
    assert again.decode([words.vocab_size, 499, *again.encode("w3<EOC>")]) == "w3<EOC>"
    with pytest.raises(ValueError, match="out of range"):
        again.decode([502])


def test_a_table_with_fewer_rows_than_pieces_refuses_the_pieces_beyond(words, tmp_path):
    words.save(tmp_path)
    content = (tmp_path / "tokenizer.model").read_bytes()
    narrow = SentencePieceTokenizer(content, (), Markers(vocab_size=words.id("▁w3")))
    assert narrow.eoc_id == -1
    with pytest.raises(ValueError, match=f"the model's table has {words.id('▁w3')} rows"):
        narrow.encode("w3")
    with pytest.raises(ValueError, match="neither a new token"):
        narrow.id("▁w3")


def test_eos_fills_rows_where_there_is_no_padding_piece(tmp_path):
    """As LLaMA's."""
    with (tmp_path / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c"] * 9),
            model_writer=file,
            model_type="word",
            vocab_size=20,
            hard_vocab_limit=False,
            pad_id=-1,
            minloglevel=2,
        )
    tokenizer = SentencePieceTokenizer.load(tmp_path)
    assert tokenizer.pad_id == tokenizer.eos_id == 2


def test_no_new_tokens(words, tmp_path):
    words.save(tmp_path)
    plain = SentencePieceTokenizer.load(tmp_path, ())
    assert plain.encode("<EOC> w1") == [3, plain.id("▁w1")]
    assert plain.eoc_id == -1
    assert isinstance(plain, Tokenizer)
    with pytest.raises(ValueError, match="'<EOC>' is neither"):
        plain.id("<EOC>")
    with pytest.raises(ValueError, match="distinct"):
        SentencePieceTokenizer.load(tmp_path, ("<EOC>", "<EOC>"))


def test_overlapping_new_tokens_prefer_the_longer(words, tmp_path):
    words.save(tmp_path)
    tokenizer = SentencePieceTokenizer.load(tmp_path, ("<i>", "<i><j>"))
    assert tokenizer.encode("<i><j><i>") == [tokenizer.vocab_size + 1, tokenizer.vocab_size]


def test_training_is_deterministic(tmp_path):
    for name in "ab":
        train_sentencepiece(["one two three", "four five six"] * 9, tmp_path / name, 300, "bpe")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_nothing_is_normalised(model_type, tmp_path):
    """No NFKC, as for Chinchilla: ligature, superscript, full-width letter, split accent stay."""
    train_sentencepiece(["my cat and my dog"] * 20, tmp_path / "model", 300, model_type)
    tokenizer = SentencePieceTokenizer.load(tmp_path / "model")
    text = "ﬁ x² Ａ e\u0301 é №  \u00a0\t\r\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size >= 256 + 4  # a piece for each byte, and four special pieces
