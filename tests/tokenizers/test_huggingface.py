"""tokenizer.json: byte-level pieces as in GPT-2, and pieces with byte fallback as in Llama."""

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
    made.add_special_tokens(["<EOC>"])  # the vocabulary has a piece of this name already
    end = made.token_to_id("<|endoftext|>")
    made.post_processor = processors.TemplateProcessing(
        "<|endoftext|> $A", special_tokens=[("<|endoftext|>", end)]
    )
    made.enable_truncation(4)
    made.enable_padding(length=4)
    return made


def llama_like() -> tokenizers.Tokenizer:
    """Adds a space before the text and removes it in decoding; unknown characters become bytes."""
    byte_names = [f"<0x{byte:02X}>" for byte in range(256)]
    names = ["<unk>", "<s>", "</s>", *byte_names, "▁", *"abcdefghijklmnop", "▁a", "▁b", "ab"]
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


def test_new_tokens_are_after_the_vocabulary_of_the_file(directories):
    gpt2 = HuggingFaceTokenizer.load(directories["gpt2"], NEW)
    assert isinstance(gpt2, Tokenizer)
    plain = tokenizers.Tokenizer.from_file(str(directories["gpt2"] / "tokenizer.json"))
    assert gpt2.vocab_size == plain.get_vocab_size()
    assert plain.token_to_id("<EOC>") == gpt2.vocab_size - 1  # the <EOC> of the file is not used
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
    expected = [other.id(piece) for piece in ("a", "b", "</s>")]
    assert [other.bos_id, other.eos_id, other.pad_id] == expected
    with pytest.raises(ValueError, match="no piece '<none>', the bos token"):
        HuggingFaceTokenizer.load(directories["llama"], bos="<none>")


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_any_text_comes_back(loaded, text):
    assert loaded.decode(loaded.encode(text)) == text


CHUNKS = [" a", "pets!", "<EOC>", "<image>", "🦩 ", "</s>", "<|endoftext|>", "<unk>"]


@given(chunks=st.lists(st.sampled_from(CHUNKS)))
def test_a_text_has_new_tokens_but_no_special_ones(loaded, chunks):
    text = "".join(chunks)
    ids = loaded.encode(text)
    assert loaded.decode(ids) == text
    assert ids.count(loaded.eoc_id) == chunks.count("<EOC>")
    assert not {loaded.bos_id, loaded.eos_id} & set(ids)
    assert loaded.decode([loaded.bos_id, *ids, loaded.eos_id, loaded.pad_id]) == text


def special_ids(tokenizer: Tokenizer) -> tuple[int, int, int]:
    return tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id


def test_save_load_and_files(loaded, tmp_path):
    loaded.save(tmp_path)
    again = load_tokenizer(tmp_path, NEW)
    assert isinstance(again, HuggingFaceTokenizer)
    assert special_ids(again) == special_ids(loaded)
    assert again.encode("my cat<EOC>") == loaded.encode("my cat<EOC>")
    assert sorted(tokenizer_lib.files(tmp_path)) == ["tokenizer.json", "tokenizer_config.json"]


def test_special_pieces_need_a_row_of_the_models_table(directories):
    """<EOS> replaces a padding piece without a row; <EOS> without a row is an error."""
    content = (directories["llama"] / "tokenizer.json").read_bytes()
    made = HuggingFaceTokenizer(
        content, bos="<unk>", eos="<s>", pad="</s>", markers=Markers(vocab_size=2)
    )
    assert (made.bos_id, made.eos_id, made.pad_id) == (0, 1, 1)
    with pytest.raises(
        ValueError, match=r"The eos token '</s>' is piece 2 .*, and the model's table has 2 rows"
    ):
        HuggingFaceTokenizer(content, bos="<unk>", eos="</s>", markers=Markers(vocab_size=2))


def test_whether_the_file_writes_bos(directories):
    assert HuggingFaceTokenizer.load(directories["gpt2"]).writes_bos  # its post-processor
    assert not HuggingFaceTokenizer.load(directories["llama"]).writes_bos


def test_load_chooses_the_library_by_the_file(words, directories, tmp_path):
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


def test_an_export_contains_its_tokenizer(directories, tmp_path):
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
    assert special_ids(again) == special_ids(before)
