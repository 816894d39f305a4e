"""Text of tokens one by one: the pieces are final, and together the text of all tokens."""

import hypothesis
import hypothesis.strategies as st
import pytest

from flamingo_jax.inference.text_pieces import TextPieces
from flamingo_jax.tokenizers.huggingface import HuggingFaceTokenizer
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer
from tests.tokenizers import bert_like, llama_like

KINDS = ("bytes of GPT-2", "words of BERT", "LLaMA", "LLaMA as JSON")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    place, content = tmp_path_factory.mktemp("tokenizers"), llama_like.model()
    gpt2 = llama_like.json_directory(place / "gpt2", llama_like.byte_level())
    bert = bert_like.directory(place / "bert")
    as_json = llama_like.json_directory(place / "json", llama_like.metaspace(content, "first"))
    return dict(
        zip(
            KINDS,
            (
                HuggingFaceTokenizer.load(gpt2),
                HuggingFaceTokenizer.load(bert),
                SentencePieceTokenizer.load(llama_like.directory(place / "llama", content)),
                HuggingFaceTokenizer.load(as_json),
            ),
            strict=True,
        )
    )


def pieces_of(tokenizer, ids):
    pieces = TextPieces(tokenizer)
    return [*(pieces.add([number]) for number in ids), pieces.end()]


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.given(data=st.data())
def test_the_pieces_are_the_text(tokenizers, kind, data):
    """Any tokens, also bytes that are no text: what was given out is never taken back."""
    tokenizer = tokenizers[kind]
    some = list(range(tokenizer.vocab_size + len(tokenizer.new_tokens)))
    few = [number for number in some if tokenizer.is_byte(number)] or some
    one = st.one_of(st.sampled_from(some), st.sampled_from(few))
    ids = data.draw(st.lists(one, max_size=12))
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["bytes of GPT-2", "LLaMA", "LLaMA as JSON"])
def test_no_character_is_given_out_in_parts(tokenizers, kind):
    tokenizer, text = tokenizers[kind], "a 東京 é 🦩 dog"
    ids = tokenizer.encode(text)
    found = pieces_of(tokenizer, ids)
    assert "".join(found) == tokenizer.decode(ids) and len(ids) > len(text)
    assert not any("\ufffd" in piece for piece in found)
    assert sum(bool(piece) for piece in found) > 4


def test_bytes_that_stay_broken_come_at_the_end(tokenizers):
    tokenizer = tokenizers["LLaMA"]
    flamingo = tokenizer.encode("🦩")
    found = pieces_of(tokenizer, [*tokenizer.encode("a"), *flamingo[-4:-1]])
    assert found[:-1] == ["a", "", "", ""] and set(found[-1]) == {"\ufffd"}


def test_bytes_are_known(tokenizers):
    assert {
        kind: tokenizers[kind].is_byte(tokenizers[kind].id("<0xC3>")) for kind in KINDS[2:]
    } == dict.fromkeys(KINDS[2:], True)
    for kind in KINDS:
        end = tokenizers[kind].eos_id
        assert not tokenizers[kind].is_byte(end)
        assert not tokenizers[kind].is_byte(tokenizers[kind].eoc_id)
