"""Tokenizers as they are found next to a model: odd names, added tokens, several ends."""

import dataclasses
import json

import pytest

from flamingo_jax.conversion import published_tokenizer
from flamingo_jax.core.paths import Path
from flamingo_jax.tokenizers.huggingface import HuggingFaceTokenizer
from flamingo_jax.tokenizers.load import load_tokenizer
from tests.conversion.found_llama import (
    ROWS,
    config,
    convert,
    describe,
    put,
)
from tests.conversion.test_hf_lm import byte_level

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")


def test_a_file_of_weights_has_the_tokenizer_next_to_it(found, tmp_path):
    """Named as --input, the weights do not become tokenizer.model."""
    opened = convert(found / "model.safetensors", tmp_path / "out")
    assert opened.tokenizer.read_bytes() == (found / "tokenizer.model").read_bytes()


def test_tiktokens_file_next_to_tokenizer_json_is_passed_over(found, tmp_path):
    put(found, "tokenizer.model", "IQ== 0\nIg== 1\n" * 90)
    put(found, "tokenizer.json", byte_level(with_bos=True).to_str())
    put(found, "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    assert "tokenizer.model is not used" in describe(found).notes[0]
    opened = convert(found, tmp_path / "out")
    assert opened.tokenizer.name == "tokenizer.json"


@pytest.mark.parametrize("fields", [None, {}, {"bos_token": None, "eos_token": None}])
def test_special_tokens_are_those_of_the_config_where_the_tokenizer_names_none(
    found, tmp_path, fields
):
    (found / "tokenizer.model").unlink()
    put(found, "tokenizer.json", byte_level(with_bos=True).to_str())
    config(bos_token_id=0, eos_token_id=1)(found)
    if fields is not None:
        put(found, "tokenizer_config.json", fields)
    loaded = load_tokenizer(convert(found, tmp_path / "out").tokenizer)
    assert (loaded.bos_id, loaded.eos_id, loaded.start_ids) == (0, 1, [0])


def test_special_tokens_may_be_objects(found, tmp_path):
    (found / "tokenizer.model").unlink()
    put(found, "tokenizer.json", byte_level(with_bos=False).to_str())
    said = {
        "add_bos_token": None,
        "bos_token": {"content": "<s>"},
        "eos_token": {"content": "</s>"},
    }
    put(found, "tokenizer_config.json", said)
    loaded = load_tokenizer(convert(found, tmp_path / "out").tokenizer)
    assert (loaded.bos_id, loaded.eos_id, loaded.start_ids) == (0, 1, [])


START, END = ROWS - 2, ROWS - 1


def chat(directory, form):
    """Two added tokens in one of the publishers' forms, the second of which ends a turn."""
    decoder = {
        str(number): {"content": token, "special": True}
        for number, token in ((START, "<|im_start|>"), (END, "<|im_end|>"))
    }
    said = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    if form == "added_tokens.json":
        put(directory, form, {"<|im_start|>": START, "<|im_end|>": END})
    elif form == "tokenizer_config.json":
        said["added_tokens_decoder"] = decoder
    else:
        (directory / "tokenizer.model").unlink()
        content = json.loads(byte_level(with_bos=True).to_str())
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number, token in decoder.items():
            content["added_tokens"].append({"id": int(number), **flags, **token})
        put(directory, form, content)
    put(directory, "tokenizer_config.json", said)
    put(directory, "generation_config.json", {"eos_token_id": [2, END]})


@pytest.mark.parametrize("form", ["added_tokens.json", "tokenizer_config.json", "tokenizer.json"])
def test_added_tokens_and_several_ends_reach_generation(found, tmp_path, form):
    chat(found, form)
    opened = convert(found, tmp_path / "out")
    text = "<|im_start|>user hi<|im_end|>"
    prompts = load_tokenizer(opened.tokenizer, (), in_prompts=True)
    ids = prompts.encode(text)
    assert (ids[0], ids[-1]) == (START, END)
    assert prompts.vocab_size == ROWS and set(prompts.markers.ends) == {2, END}
    assert prompts.decode([START]) == "<|im_start|>"
    assert prompts.decode(ids).startswith("<|im_start|>user hi")
    # The text of a document cannot end it.
    document = load_tokenizer(opened.tokenizer, ()).encode(text)
    assert document[0] == START and END not in document
    # New tokens come after all rows.
    assert load_tokenizer(opened.tokenizer, ("<EOC>",)).eoc_id == ROWS


def test_decoding_stops_at_each_of_the_ends(found, tmp_path):
    from flamingo_jax.inference.model import Flamingo

    chat(found, "added_tokens.json")
    convert(found, tmp_path / "out")
    engine = Flamingo.load(tmp_path / "out").engine
    assert set(engine.stop) == {2, END}


def test_added_tokens_and_ends_without_a_row_are_named(found):
    put(found, "added_tokens.json", {"[PAD]": ROWS})
    put(found, "generation_config.json", {"eos_token_id": [2, ROWS + 1, -1]})
    described = describe(found)
    assert described.notes == (
        f"1 added tokens have no row in the token table: {ROWS}.",
        f"1 ids that end an answer have no row in the token table: {ROWS + 1}.",
    )
    assert "[PAD]" not in described.markers.in_text and described.markers.ends == (2,)


def test_a_tokenizer_that_is_damaged_in_an_export_is_one_error(found, tmp_path):
    from flamingo_jax.checkpoint.arrays import CheckpointError
    from flamingo_jax.inference.model import Flamingo

    convert(found, tmp_path / "out")
    put(tmp_path / "out", "tokenizer.model", "IQ== 0\n")
    with pytest.raises(
        CheckpointError, match=r"is damaged: tokenizer\.model: cut off: got 7 bytes"
    ):
        Flamingo.load(tmp_path / "out")
    with pytest.raises(ValueError, match="holds a list; expected an object"):
        put(tmp_path, "tokenizer_config.json", [1])
        put(tmp_path, "tokenizer.json", byte_level(with_bos=True).to_str())
        HuggingFaceTokenizer.load(tmp_path)


def test_the_tokenizer_of_a_larger_model_is_loaded_with_its_new_tokens(found):
    published = published_tokenizer.load(Path(found), rows=ROWS)
    markers = dataclasses.replace(published.markers, vocab_size=ROWS + 5)
    larger = published.in_model(markers, ("<EOC>", "<image>"))
    assert larger.loaded.id("<image>") == ROWS + 6 and published.loaded.vocab_size == ROWS
