"""BERT's WordPiece: vocab.txt, or a tokenizer.json of this kind, for the text encoder."""

import json

import numpy as np
import pytest

from flamingo_jax.checkpoint.export import export, open_checkpoint
from flamingo_jax.data.interleave import tokenise_text
from flamingo_jax.tokenizers import base as tokenizer_lib
from flamingo_jax.tokenizers.base import Tokenizer
from flamingo_jax.tokenizers.huggingface import HuggingFaceTokenizer
from flamingo_jax.tokenizers.load import load_tokenizer
from tests.tokenizers import bert_like

TEXT = "A cat's bikes"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return bert_like.directory(tmp_path_factory.mktemp("bert"))


def spelled(tokenizer, ids):
    return [tokenizer._tokenizer.id_to_token(int(i)) for i in ids]


def test_cls_and_sep_are_around_a_caption(published):
    made = load_tokenizer(published, ())
    assert isinstance(made, Tokenizer) and made.writes_bos
    words = spelled(made, tokenise_text(TEXT, made))
    assert (words[0], words[-1]) == ("[CLS]", "[SEP]") and words[1:5] == ["a", "cat", "'", "s"]
    assert (made.pad_id, made.vocab_size) == (0, len(bert_like.vocabulary()))
    assert made.id("[UNK]") in made.encode("🦩")
    ids = made.encode("[SEP] a [CLS]")  # a caption cannot end itself
    assert not {made.bos_id, made.eos_id} & set(ids)
    assert made.decode(made.encode("a dog on a bike")) == "a dog on a bike"


def test_a_tokenizer_json_alone_says_what_is_around_a_text(published, tmp_path):
    load_tokenizer(published, ()).save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    for fields in (None, {"do_lower_case": True}, {"cls_token": "[CLS]", "sep_token": "[SEP]"}):
        if fields is not None:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
        made = load_tokenizer(tmp_path, ())
        assert (made.id("[CLS]"), made.id("[SEP]")) == (made.bos_id, made.eos_id)


def test_other_names_of_the_pieces(tmp_path):
    pieces = [f"<{piece[1:-1].lower()}>" for piece in bert_like.SPECIAL]
    pieces += bert_like.vocabulary()[len(bert_like.SPECIAL) :]
    names = {f"{name}_token": f"<{name}>" for name in ("cls", "sep", "pad")}
    unknown = {"unk_token": {"content": "<unk>", "lstrip": False}}
    made = load_tokenizer(bert_like.directory(tmp_path, pieces, **names, **unknown), ())
    assert (made.pad_id, made.bos_id, made.eos_id) == (0, 2, 3)
    assert made.encode("🦩") == [1]


def test_save_load_and_export(published, tmp_path):
    made = load_tokenizer(published, ())
    made.save(tmp_path / "saved")
    weights = {"contrastive/text": {"w": np.ones((2, 2), np.float32)}}
    export(
        tmp_path / "model",
        weights,
        kind="contrastive",
        config={},
        tokenizer=published,
        preprocessing={},
        step=1,
    )
    assert list(tokenizer_lib.files(published)) == ["vocab.txt"]
    for place in (tmp_path / "saved", open_checkpoint(tmp_path / "model").tokenizer):
        again = load_tokenizer(place, ())
        assert isinstance(again, HuggingFaceTokenizer)
        assert tokenise_text(TEXT, again).tolist() == tokenise_text(TEXT, made).tolist()


@pytest.mark.parametrize(
    ("content", "config", "message"),
    [
        (b"[PAD]\n\xff\n", {}, r"vocab.txt is no vocab.txt: it is not UTF-8"),
        (b"", {}, r"no piece '\[CLS\]' among its 1 lines; expected \[CLS\], \[SEP\]"),
        (b"a\nb\n[UNK]\nb\n", {}, r"'b' twice, on the lines 2 and 4"),
        (None, {"cls_token": "<cls>"}, r"no piece '<cls>'"),
        (None, {"do_lower_case": "no"}, r"do_lower_case is 'no'; expected true or false"),
    ],
)
def test_damaged_files_are_named_in_one_line(published, tmp_path, content, config, message):
    file = tmp_path / "vocab.txt"
    file.write_bytes((published / "vocab.txt").read_bytes() if content is None else content)
    if config:
        names = {"cls_token": "[CLS]", "sep_token": "[SEP]"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(names | config))
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(tmp_path, ())
    assert len(str(error.value).splitlines()) == 1
