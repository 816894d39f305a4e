"""Conversion of Llama 3.2 Vision: the table at published sizes, the config, and other models."""

import dataclasses
import importlib
import json

import numpy as np
import pytest

from flamingo_jax.conversion import mapping, mllama
from flamingo_jax.conversion.publishers import Inputs
from flamingo_jax.conversion.reading import ConversionError
from flamingo_jax.core.config import from_dict
from flamingo_jax.core.paths import Path
from flamingo_jax.training.config import TrainConfig
from tests.conversion.described import Described, shapes_of

# config.json of the hub, without fields that have the default of their class
VISION = {"image_size": 560}
LLAMA3 = {
    "rope_theta": 500_000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
LARGE = {
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 100,
    "num_attention_heads": 64,
    "cross_attention_layers": list(range(3, 100, 5)),
}


def published(**text):
    return {
        "model_type": "mllama",
        "image_token_index": 128_256,
        "text_config": {"model_type": "mllama_text_model", **LLAMA3, **text},
        "vision_config": {"model_type": "mllama_vision_model", **VISION},
    }


SIZES = {
    "mllama_11b": (published(), 10_670_220_835),
    "mllama_90b": (published(**LARGE), 88_593_355_323),
}


def their_shapes(config):
    import transformers

    return shapes_of(transformers.MllamaForConditionalGeneration, config)


def as_published(shapes):
    """The names of the publisher's files, which transformers 5 reads as others."""

    def name(own):
        if own.startswith("model.language_model."):
            return own.replace("model.language_model.", "language_model.model.", 1)
        return own.removeprefix("model.").replace("lm_head", "language_model.lm_head", 1)

    return {name(own): shape for own, shape in shapes.items()}


@pytest.mark.parity
@pytest.mark.parametrize("name", ["mllama_11b", pytest.param("mllama_90b", marks=pytest.mark.slow)])
def test_published_sizes_map_one_to_one_and_count_exactly(name):
    """Each weight is read, under both kinds of names; the model is that of our config."""
    config, count = SIZES[name]
    shapes = their_shapes(config)
    assert sum(np.prod(leaf.shape) for leaf in shapes.values()) == count
    for files in (shapes, as_published(shapes)):
        described = mllama.describe(config, Described(files), {})
        plan = mapping.plan(described)
        assert not plan.skipped
        assert sum(np.prod(weight.shape) for weight in plan.weights) == count
        assert {str(weight.dtype) for weight in plan.weights} == {"bfloat16"}
    further = from_dict(TrainConfig, importlib.import_module(f"configs.{name}").get_config()).model
    assert dataclasses.replace(
        described.model, lm=dataclasses.replace(described.model.lm, remat=further.lm.remat)
    ) == further.of_stage("flamingo")


TINY = {
    "model_type": "mllama",
    "image_token_index": 32,
    "text_config": {
        "vocab_size": 32,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 6,
        "cross_attention_layers": [1, 4],
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
    },
    "vision_config": {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 28,
        "intermediate_layers_indices": [0, 1],
        "vision_output_dim": 24,
    },
}


def changed(**text):
    return TINY | {"text_config": TINY["text_config"] | text}


@pytest.fixture(scope="module")
def tiny_shapes():
    return their_shapes(TINY)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TINY | {"model_type": "llama"}, "model_type is 'llama'; supported is 'mllama'"),
        (changed(hidden_act="gelu"), "hidden_act is 'gelu'; supported is 'silu'"),
        (changed(tie_word_embeddings=True), "tie_word_embeddings is True; supported is False"),
        (TINY | {"quantization_config": {"bits": 4}}, "quantization_config is .*supported is None"),
        (changed(cross_attention_layers=[]), "cross_attention_layers is []; expected some of"),
        (changed(cross_attention_layers=[1, 1]), "each of them once"),
        (changed(cross_attention_layers=[1, 9]), "the numbers 0 to 5"),
        (changed(cross_attention_layers=[1, 2]), "supported is a layer before every n-th"),
        (changed(cross_attention_layers=[0, 5]), "supported is a layer before every n-th"),
        (changed(rope_scaling={"rope_type": "yarn"}), "rope_type is 'yarn'"),
        (TINY | {"image_token_index": 40}, "image_token_index is 40, and the embedding has 40"),
    ],
)
def test_another_config_is_refused(tiny_shapes, config, message):
    with pytest.raises(ConversionError, match=message.replace("[]", r"\[\]")):
        mllama.describe(config, Described(tiny_shapes), {})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(intermediate_size=16), "other shapes than the model"),
        (changed(num_key_value_heads=2), "other shapes than the model"),
        (
            changed(num_hidden_layers=9, cross_attention_layers=[1, 4, 7]),
            r"Only expected \(\d+\): .*layers.6",
        ),
        (changed(cross_attention_layers=[0, 3]), r"Only expected .*layers.0.cross_attn"),
    ],
)
def test_a_config_of_other_weights_is_refused_with_names_on_both_sides(
    tiny_shapes, config, message
):
    with pytest.raises(ConversionError, match=message):
        mapping.plan(mllama.describe(config, Described(tiny_shapes), {}))


def test_the_dry_run_names_the_layers_that_a_weight_is_made_of(tiny_shapes):
    from flamingo_jax.conversion import writing

    table = writing.table(mllama.describe(TINY, Described(tiny_shapes), {}))
    assert "layers.{layer}.cross_attn.q_proj.weight (1..4 by 3)" in table
    assert "layers.{layer}.self_attn.q_proj.weight (0..5, 4 of them)" in table


def test_the_tokenizer_says_whether_it_is_an_instruct_model(tmp_path):
    def form(fields):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
        return mllama.form_of(Path(tmp_path))

    assert form({"eos_token": "<|eot_id|>"}) == "instruct"
    assert form({"eos_token": {"content": "<|eot_id|>"}}) == "instruct"
    assert form({"eos_token": "<|end_of_text|>"}) == form({}) == "base"
    with pytest.raises(ConversionError, match="form is 'chat'; expected one of base, instruct"):
        mllama.conversion(Inputs(Path(tmp_path), options={"form": "chat"}))
