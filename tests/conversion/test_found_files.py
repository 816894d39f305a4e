"""Directories of models as they are found: broken configs, tokenizers and weights.

Each case changes one thing of a tiny LLaMA. One error names what is wrong, and no output is left.
"""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.conversion import mapping, publishers, values
from flamingo_jax.conversion.publishers import Inputs
from flamingo_jax.conversion.reading import ConversionError, InMemory
from flamingo_jax.core.paths import Path
from tests.conversion.found_llama import (
    HEAD,
    LFS,
    MLP,
    TABLE,
    UP,
    WIDTH,
    change_weights,
    config,
    convert,
    describe,
    put,
    weights,
)

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")


def with_value(name, value, dtype=None):
    tensor = weights()[name].to(dtype) if dtype else weights()[name]
    tensor.view(-1)[3] = value
    return lambda d: change_weights(d, **{name.replace(".", "__"): tensor})


def fewer_rows(directory):
    few = {name.replace(".", "__"): weights()[name][:100].clone() for name in (HEAD, TABLE)}
    change_weights(directory, **few)


def half(directory):
    state = {name: w.half() for name, w in weights().items()}
    state[UP][0, 0] = float("inf")
    safetensors.save_file(state, directory / "model.safetensors")


REFUSED = {
    "a NaN": (
        with_value("model.norm.weight", np.nan),
        r"1 weights are not finite .*norm\.weight: 1",
    ),
    "float16 with an Inf": (half, r"not finite \(NaN or Inf\): .*up_proj\.weight: 1 of 96 numbers"),
    "too large for float32": (
        with_value(UP, 1e300, torch.float64),
        r"1 numbers of .*up_proj\.weight \(float64\) are too large for float32",
    ),
    "no head": (lambda d: change_weights(d, lm_head__weight=None), r"\(1\): lm_head\.weight"),
    "a head that should be tied": (
        config(tie_word_embeddings=True),
        r"lm_head\.weight is model\.embed_tokens\.weight .*, but in the files they differ",
    ),
    "a weight too many": (
        lambda d: change_weights(d, model__extra=torch.zeros(2)),
        r"Only in the files \(1\): model\.extra",
    ),
    "GPTQ": (
        lambda d: change_weights(
            d,
            **{
                UP.replace(".", "__"): None,
                UP.replace(".", "__")[:-8] + "__qweight": torch.zeros(2, 2, dtype=torch.int32),
                UP.replace(".", "__")[:-8] + "__scales": torch.zeros(2, 2),
            },
        ),
        r"2 weights of the files are quantised \(GPTQ or AWQ\): .*up_proj\.qweight",
    ),
    "8 bits": (
        lambda d: change_weights(
            d,
            **{
                UP.replace(".", "__"): torch.zeros((MLP, WIDTH), dtype=torch.int8),
                UP.replace(".", "__")[:-8] + "__SCB": torch.zeros(MLP),
            },
        ),
        r"quantised \(bitsandbytes\): .*up_proj\.SCB",
    ),
    "an adapter's weights": (
        lambda d: change_weights(d, base__lora_A__weight=torch.zeros(2, 2)),
        r"adapters \(LoRA\): base\.lora_A\.weight",
    ),
    "fewer rows than pieces": (fewer_rows, r"has \d+ pieces, and the model's token table has 100"),
    "tiktoken": (
        lambda d: put(d, "tokenizer.model", "IQ== 0\nIg== 1\n" * 90),
        "tokenizer.model is a list of ranks of tiktoken",
    ),
    "a pointer of Git LFS": (
        lambda d: put(d, "tokenizer.model", "version https://git-lfs.github.com/spec/v1\n"),
        "tokenizer.model is a pointer of Git LFS",
    ),
    "weights that are a pointer of Git LFS": (
        lambda d: put(d, "model.safetensors", LFS),
        "model.safetensors is a pointer of Git LFS",
    ),
    "pickled weights that are a pointer of Git LFS": (
        lambda d: ((d / "model.safetensors").unlink(), put(d, "pytorch_model.bin", LFS)),
        "pytorch_model.bin is a pointer of Git LFS",
    ),
    "tokenizer.json is a pointer of Git LFS": (
        lambda d: ((d / "tokenizer.model").unlink(), put(d, "tokenizer.json", LFS)),
        "tokenizer.json is a pointer of Git LFS",
    ),
    "an empty tokenizer.model": (
        lambda d: put(d, "tokenizer.model", ""),
        "tokenizer.model is empty; expected SentencePiece's file",
    ),
    "a config with NaN": (
        config(rope_theta=float("nan")),
        r"does not describe a model that can be: rotary_base is nan; expected a number above 0",
    ),
    "weights in the place of the tokenizer": (
        lambda d: shutil.copy(d / "model.safetensors", d / "tokenizer.model"),
        "tokenizer.model is no model of SentencePiece",
    ),
    "no tokenizer": (
        lambda d: (d / "tokenizer.model").unlink(),
        "neither tokenizer.model nor tokenizer.json",
    ),
    "a damaged tokenizer.json": (
        lambda d: ((d / "tokenizer.model").unlink(), put(d, "tokenizer.json", "{}")),
        "tokenizer.json is no tokenizer of Hugging Face",
    ),
    **{
        f"tokenizer_config.json is {text}": (
            lambda d, text=text: put(d, "tokenizer_config.json", text),
            message,
        )
        for text, message in {
            "[1]": "tokenizer_config.json holds a list; expected an object",
            "null": "tokenizer_config.json holds a NoneType; expected an object",
            "{": "tokenizer_config.json is not valid JSON",
            '{"eos_token": 3}': "eos_token is 3; expected a string, or an object",
            '{"add_bos_token": "yes"}': "add_bos_token is 'yes'; expected true or false",
            '{"added_tokens_decoder": [1]}': "tokenizer_config.json is damaged",
        }.items()
    },
    "added_tokens.json is a list": (lambda d: put(d, "added_tokens.json", [1]), "holds a list"),
    "an id in added_tokens.json": (
        lambda d: put(d, "added_tokens.json", {"<x>": None}),
        "added_tokens.json is damaged",
    ),
    "ends": (
        lambda d: put(d, "generation_config.json", {"eos_token_id": ["2"]}),
        r"eos_token_id is \['2'\]; expected an id or a list of ids",
    ),
    "unknown scaling": (
        config(rope_scaling={"type": "dynamic", "factor": 2.0}),
        "type is 'dynamic'; supported is 'default' or 'linear' or 'llama3'",
    ),
    "scaling without its kind": (config(rope_scaling={"factor": 2.0}), "no kind of scaling"),
    "scaling of each layer": (
        config(rope_parameters={"full_attention": {"rope_type": "linear", "factor": 2}}),
        "rotary positions has full_attention",
    ),
    "scaling that is text": (config(rope_scaling="linear"), "is 'linear'; expected an object"),
    "a part of the head is turned": (config(partial_rotary_factor=0.5), "factor is 0.5"),
    "another activation": (config(hidden_act="gelu"), "hidden_act is 'gelu'; supported is 'silu'"),
    "a width that is text": (config(hidden_size="8"), "config"),
    "heads that are a list": (config(num_attention_heads=[2]), "config"),
    "a billion layers": (config(num_hidden_layers=10**9), "describes 1000000000 layers, and the"),
    "no heads": (config(num_attention_heads=0), "config"),
    "quantization_config": (config(quantization_config={"bits": 4}), "quantization_config is"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_one_error_and_leaves_nothing(found, tmp_path, name):
    change, message = REFUSED[name]
    change(found)
    with pytest.raises(ConversionError, match=message):
        convert(found, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_export_that_is_there_stays_when_its_replacement_is_refused(found, tmp_path):
    first = convert(found, tmp_path / "out")
    with_value("model.norm.weight", np.nan)(found)
    with pytest.raises(ConversionError, match="not finite"):
        convert(found, tmp_path / "out")
    again = open_checkpoint(tmp_path / "out")  # which verifies the hash
    np.testing.assert_array_equal(again.params["lm"]["embedding"], first.params["lm"]["embedding"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_all_weights_that_are_not_finite_are_named_after_one_pass():
    class Counting(InMemory):
        reads = 0

        def read(self, name):
            self.reads += 1
            return super().read(name)

    broken = np.array([1.0, np.nan, np.inf], np.float32)
    files = Counting({"a": broken, "b": np.ones(3), "c": -broken, "d": broken})
    with pytest.raises(ConversionError, match=r"2 weights .*: a: 2 of 3 numbers; c: 2 of 3"):
        values.Checked(files, ["b", "a", "c"]).read("a")  # d is skipped by the mapping
    assert files.reads == 3


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("transposed", [False, True])
def test_numbers_that_are_not_finite_are_counted_in_blocks(dtype, transposed, monkeypatch):
    monkeypatch.setattr(values, "_BLOCK", 10)
    array = np.arange(-30, 30).reshape(6, 10).astype(jnp.dtype(dtype))
    array = array.T if transposed else array
    assert values.count_not_finite(array) == 0
    array[1, 2], array[5, 3], array[3, 3] = np.nan, np.inf, -np.inf
    assert values.count_not_finite(array) == 3


@pytest.mark.parametrize("source", ["clip", "timm_vit", "idefics", "mllama", "open_clip"])
@pytest.mark.parametrize("content", [[1], None, {"vision_config": 3}, {"architecture": 3}])
def test_an_odd_config_of_any_source_is_one_error(found, source, content):
    put(found, "config.json", content)
    put(found, "open_clip_config.json", content)
    with pytest.raises(ConversionError):
        mapping.plan(publishers.describe(source, Inputs(Path(found))))


def test_a_number_of_layers_that_is_text_is_one_error(found):
    conversion = describe(found)
    # in tests the class checks its types, outside it does not
    object.__setattr__(conversion.model.lm, "num_layers", "1")
    with pytest.raises(ConversionError, match="a model that cannot be: TypeError"):
        mapping.plan(conversion)
