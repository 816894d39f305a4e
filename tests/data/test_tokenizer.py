"""Text to ids and back, for words and for pieces with byte fallback; the new tokens stand behind the pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data.tokenizer import SentencePieceTokenizer, Tokenizer, train_sentencepiece


def test_special_ids(words, pieces):
    for tokenizer in (words, pieces):
        assert isinstance(tokenizer, Tokenizer)
        assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
        assert tokenizer.eoc_id == tokenizer.vocab_size  # the first new token
    assert words.id("<image>") == words.vocab_size + 1
    with pytest.raises(ValueError, match="'<image>' is neither"):
        pieces.id("<image>")


def test_words_are_one_piece_each(words):
    assert words.encode("w3  intro <EOC><image> w3") == [
        words.id("▁w3"),
        words.id("▁intro"),
        words.eoc_id,
        words.id("<image>"),
        words.id("▁w3"),
    ]
    assert words.encode("unheard-of") == [3]


@given(text=st.lists(st.integers(0, 39).map("w{}".format)).map(" ".join))
def test_words_come_back(words, text):
    assert words.decode(words.encode(text)) == text


@given(text=st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"])))
def test_any_text_comes_back(pieces, text):
    """The byte-fallback model loses nothing, be it spaces, control characters or any script."""
    assert pieces.decode(pieces.encode(text)) == text


@given(chunks=st.lists(st.sampled_from([" a", "pets!", "<EOC>", "<image>", "🦩 ", "<pad>", "<BOS>"])))
def test_new_tokens_stand_in_the_text(pieces, chunks):
    text = "".join(chunks)
    ids = pieces.encode(text)
    assert pieces.decode(ids) == text
    assert ids.count(pieces.eoc_id) == chunks.count("<EOC>")
    assert not {pieces.pad_id, pieces.bos_id, pieces.eos_id} & set(ids)  # their strings in a text are just text


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
    """As for Chinchilla, no NFKC: a ligature, a superscript, a full-width letter and a split accent stay what they are."""
    train_sentencepiece(["my cat and my dog"] * 20, tmp_path / "model", 300, model_type)
    tokenizer = SentencePieceTokenizer.load(tmp_path / "model")
    text = "ﬁ x² Ａ e\u0301 é №  \u00a0\t\r\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size >= 256 + 4  # a piece for each byte, and the four special ones
