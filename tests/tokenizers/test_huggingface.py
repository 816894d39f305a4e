"""tokenizer.json behind the Protocol.

Byte-level pieces as of GPT-2, and pieces with byte fallback as of Llama.
"""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from flamingo_jax.checkpoint.export import export, open_checkpoint
from flamingo_jax.tokenizers import base as tokenizer_lib
from flamingo_jax.tokenizers.base import Tokenizer
from flamingo_jax.tokenizers.huggingface import HuggingFaceTokenizer
from flamingo_jax.tokenizers.load import load_tokenizer
from flamingo_jax.tokenizers.markers import Markers
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer

LINES = [
    "Cute pics of my pets!",
    "My puppy sitting in the grass.",
    "an <image> and the output of <image>",
] * 9
NEW = ("<EOC>", "<image>")


def gpt2_like() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    made.train_from_iterator(LINES, trainer)
    made.add_special_tokens(["<EOC>"])  # a vocabulary that has a piece of that name already
    end = made.token_to_id("<|endoftext|>")
    made.post_processor = processors.TemplateProcessing(
        "<|endoftext|> $A", special_tokens=[("<|endoftext|>", end)]
    )
    made.enable_truncation(4)
    made.enable_padding(length=4)
    return made


def llama_like() -> tokenizers.Tokenizer:
    """A space is put before the text and taken off again, unknown characters fall back to bytes."""
    names = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdefghijklmnop",
        "▁a",
        "▁b",
        "ab",
    ]
    vocabulary = {name: k for k, name in enumerate(names)}
    merges = [("▁", "a"), ("▁", "b"), ("a", "b")]
    made = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("huggingface")
    gpt2, llama = root / "gpt2", root / "llama"
    for directory, made in ((gpt2, gpt2_like()), (llama, llama_like())):
        directory.mkdir()
        (directory / "tokenizer.json").write_text(made.to_str())
    (gpt2 / "special_tokens_map.json").write_text(
        '{"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}'
    )
    eos = {"__type": "AddedToken", "content": "</s>", "lstrip": False}
    (llama / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": eos, "pad_token": None})
    )
    (llama / "special_tokens_map.json").write_text('{"bos_token": "a", "pad_token": "<unk>"}')
    return {"gpt2": gpt2, "llama": llama}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def loaded(request, directories) -> Tokenizer:
    return load_tokenizer(directories[request.param], NEW)


def test_new_tokens_stand_behind_the_vocabulary_of_the_file(directories):
    gpt2 = HuggingFaceTokenizer.load(directories["gpt2"], NEW)
    assert isinstance(gpt2, Tokenizer)
    own = tokenizers.Tokenizer.from_file(str(directories["gpt2"] / "tokenizer.json"))
    assert gpt2.vocab_size == own.get_vocab_size()
    assert own.token_to_id("<EOC>") == gpt2.vocab_size - 1  # the file's own is not used
    assert (gpt2.eoc_id, gpt2.id("<image>")) == (gpt2.vocab_size, gpt2.vocab_size + 1)
    assert gpt2.encode("my<EOC>") == [*gpt2.encode("my"), gpt2.vocab_size]
    assert HuggingFaceTokenizer.load(directories["gpt2"], ()).eoc_id == gpt2.vocab_size - 1
    with pytest.raises(ValueError, match="'Ġelephant' is neither"):
        gpt2.id("Ġelephant")


def test_special_pieces_are_those_of_the_files_or_of_the_arguments(directories):
    gpt2 = HuggingFaceTokenizer.load(directories["gpt2"])
    assert gpt2.bos_id == gpt2.eos_id == gpt2.pad_id == gpt2.id("<|endoftext|>")
    llama = HuggingFaceTokenizer.load(directories["llama"] / "tokenizer.json")
    assert (llama.bos_id, llama.eos_id, llama.pad_id) == (1, 2, 0)
    other = HuggingFaceTokenizer.load(directories["llama"], bos="a", eos="b", pad="</s>")
    assert [other.id(piece) for piece in ("a", "b", "</s>")] == [
        other.bos_id,
        other.eos_id,
        other.pad_id,
    ]
    with pytest.raises(ValueError, match="no piece '<none>', the bos token"):
        HuggingFaceTokenizer.load(directories["llama"], bos="<none>")


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_any_text_comes_back(loaded, text):
    assert loaded.decode(loaded.encode(text)) == text


@given(
    chunks=st.lists(
        st.sampled_from(
            [" a", "pets!", "<EOC>", "<image>", "🦩 ", "</s>", "<|endoftext|>", "<unk>"]
        )
    )
)
def test_new_tokens_stand_in_the_text_and_special_ones_do_not(loaded, chunks):
    text = "".join(chunks)
    ids = loaded.encode(text)
    assert loaded.decode(ids) == text
    assert ids.count(loaded.eoc_id) == chunks.count("<EOC>")
    assert not {loaded.bos_id, loaded.eos_id} & set(ids)
    assert loaded.decode([loaded.bos_id, *ids, loaded.eos_id, loaded.pad_id]) == text


def test_save_load_and_files(loaded, tmp_path):
    loaded.save(tmp_path)
    again = load_tokenizer(tmp_path, NEW)
    assert isinstance(again, HuggingFaceTokenizer)
    assert (again.bos_id, again.eos_id, again.pad_id) == (
        loaded.bos_id,
        loaded.eos_id,
        loaded.pad_id,
    )
    assert again.encode("my cat<EOC>") == loaded.encode("my cat<EOC>")
    assert sorted(tokenizer_lib.files(tmp_path)) == ["tokenizer.json", "tokenizer_config.json"]


def test_special_pieces_need_a_row_of_the_models_table(directories):
    """<EOS> fills rows in place of a padding piece without a row.

    For <EOS> itself there is nothing else.
    """
    content = (directories["llama"] / "tokenizer.json").read_bytes()
    made = HuggingFaceTokenizer(
        content, bos="<unk>", eos="<s>", pad="</s>", markers=Markers(vocab_size=2)
    )
    assert (made.bos_id, made.eos_id, made.pad_id) == (0, 1, 1)
    with pytest.raises(
        ValueError, match=r"The eos token '</s>' is piece 2 .*, and the model's table has 2 rows"
    ):
        HuggingFaceTokenizer(content, bos="<unk>", eos="</s>", markers=Markers(vocab_size=2))


def test_whether_the_file_itself_writes_bos(directories):
    assert HuggingFaceTokenizer.load(directories["gpt2"]).writes_bos  # its post-processor
    assert not HuggingFaceTokenizer.load(directories["llama"]).writes_bos


def test_load_takes_what_is_there(words, directories, tmp_path):
    words.save(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), SentencePieceTokenizer)
    assert list(tokenizer_lib.files(tmp_path)) == ["tokenizer.model"]
    assert isinstance(load_tokenizer(directories["gpt2"] / "tokenizer.json"), HuggingFaceTokenizer)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.model or .*tokenizer\.json"):
        load_tokenizer(tmp_path / "empty")


def test_damaged_files_are_named(directories, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"are no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((directories["gpt2"] / "tokenizer.json").read_bytes())
    with pytest.raises(ValueError, match="Nothing says which piece stands behind a document"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is not JSON"):
        load_tokenizer(tmp_path)


def test_a_model_takes_its_tokenizer_along(directories, tmp_path):
    weights = {"lm/embed": {"w": np.ones((2, 2), np.float32)}}
    export(
        tmp_path / "model",
        weights,
        kind="language_model",
        config={},
        tokenizer=directories["llama"],
        preprocessing={},
        step=1,
    )
    opened = open_checkpoint(tmp_path / "model")
    again, before = load_tokenizer(opened.tokenizer), load_tokenizer(directories["llama"])
    assert (again.bos_id, again.eos_id, again.pad_id) == (
        before.bos_id,
        before.eos_id,
        before.pad_id,
    )
