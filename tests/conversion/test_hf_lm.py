"""Conversion of open language models: directories, configs that are refused, published sizes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from configs import lm_open
from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.conversion import hf_lm, lm_families, mapping, writing
from flamingo_jax.conversion.publishers import Inputs
from flamingo_jax.conversion.reading import ConversionError
from flamingo_jax.core import trees
from flamingo_jax.core.config import from_dict
from flamingo_jax.core.paths import Path
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.nn.embed import RotaryScaling
from flamingo_jax.tokenizers.load import load_tokenizer
from flamingo_jax.tokenizers.sentencepiece import train_sentencepiece
from flamingo_jax.training.config import TrainConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 400,
}
OPT = {
    "model_type": "opt",
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}
MPT = {
    "model_type": "mpt",
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 2,
    "vocab_size": 50,
    "attn_config": {"alibi": True},
}
GEMMA = {"model_type": "gemma3_text"}
STRETCHED = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4}
ROWS = {"model.embed_tokens.weight": jax.ShapeDtypeStruct((400, 32), np.float32)}


def byte_level(*, with_bos):
    """A tokenizer.json of single bytes, with a post-processor that writes <s> or nothing."""
    names = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = tokenizers.Tokenizer(models.BPE({name: k for k, name in enumerate(names)}, []))
    made.pre_tokenizer, made.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    made.add_special_tokens(["<s>", "</s>"])
    if with_bos:
        made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return made


def write_tokenizer(directory, *, with_bos=True, **fields):
    (directory / "tokenizer.json").write_text(byte_level(with_bos=with_bos).to_str())
    said = {"bos_token": "<s>", "eos_token": "</s>", **fields}
    (directory / "tokenizer_config.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A LLaMA in several files, as transformers writes it; 258 pieces and a table of 400 rows."""
    directory = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    model.save_pretrained(directory, max_shard_size="40KB")
    write_tokenizer(directory)
    return directory, model


@pytest.mark.parity
def test_a_directory_becomes_an_export_with_its_tokenizer(published, tmp_path):
    directory, model = published
    assert len(list(directory.glob("*.safetensors"))) > 1
    writing.write(hf_lm.conversion(Inputs(Path(directory))), tmp_path / "lm")
    opened = open_checkpoint(tmp_path / "lm")
    config = from_dict(ModelConfig, opened.model_config)
    assert opened.kind == "language_model" and config.new_tokens == ()
    assert (
        config.lm.vocab_size,
        config.lm.kv_heads,
        config.lm.norm_epsilon,
        config.lm.activation,
    ) == (
        400,
        2,
        1e-6,
        "swiglu",
    )
    theirs = model.state_dict()
    weights = trees.flatten(opened.params)
    np.testing.assert_array_equal(
        weights["lm/embedding"][:400], theirs["model.embed_tokens.weight"]
    )
    assert not np.any(weights["lm/embedding"][400:]) and weights["lm/embedding"].shape == (512, 32)
    np.testing.assert_array_equal(weights["lm/head"][:400], theirs["lm_head.weight"])
    value = theirs["model.layers.1.self_attn.v_proj.weight"].reshape(2, 8, 32)  # [G, K, D]
    np.testing.assert_array_equal(
        weights["lm/blocks/block/attention/value/w"][1], value.permute(2, 0, 1)
    )
    tokenizer = load_tokenizer(opened.tokenizer, ("<EOC>", "<image>"))
    assert (tokenizer.vocab_size, tokenizer.eoc_id, tokenizer.id("<image>")) == (400, 400, 401)
    assert list(tokenizer.start_ids) == [0]
    ids = tokenizer.encode("a<EOC>b")
    # no piece has the id 399
    assert tokenizer.decode([*tokenizer.start_ids, *ids, 399]) == "a<EOC>b"


def test_whether_a_text_begins_with_bos_is_what_the_files_say(published, tmp_path):
    """They say it by add_bos_token, else by what the tokenizer does.

    A padding piece without a row is not used.
    """
    directory, _ = published
    for file in directory.iterdir():
        if not file.name.startswith("tokenizer"):
            (tmp_path / file.name).symlink_to(file)
    for with_bos, fields, expected in [
        (True, {}, True),
        (False, {}, False),
        (False, {"add_bos_token": True}, True),
        (True, {"add_bos_token": False}, False),
    ]:
        write_tokenizer(tmp_path, with_bos=with_bos, **fields)
        assert hf_lm.conversion(Inputs(Path(tmp_path))).markers.bos is expected
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ConversionError, match="neither tokenizer.model nor tokenizer.json"):
        hf_lm.conversion(Inputs(Path(tmp_path)))
    (tmp_path / "tokenizer_config.json").unlink()
    train_sentencepiece(["a b c"] * 9, tmp_path / "tokenizer.model", 20, "word")
    assert hf_lm.conversion(Inputs(Path(tmp_path))).markers.bos is True


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {**LLAMA, "model_type": "bert"},
            "model_type is 'bert'; supported is 'llama' or 'mistral'",
        ),
        ({**LLAMA, "hidden_act": "gelu"}, "hidden_act is 'gelu'; supported is 'silu'"),
        (
            {**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "type is 'dynamic'; supported is 'default' or",
        ),
        ({**LLAMA, "rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({**LLAMA, "quantization_config": {"bits": 4}}, "quantization_config is"),
        ({**LLAMA, "num_attention_heads": 5}, "not divisible by num_heads 5"),
        ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, "has no hidden_size"),
        (
            {**LLAMA, "model_type": "qwen2", "use_sliding_window": True},
            "use_sliding_window is True; supported is False",
        ),
        ({**LLAMA, "model_type": "gpt_neox"}, "hold no embed_in.weight"),
        (
            {**LLAMA, "model_type": "qwen3", "use_sliding_window": True},
            "use_sliding_window is True; supported is False",
        ),
        (
            {**LLAMA, "model_type": "gemma2", "hidden_activation": "gelu"},
            "hidden_activation is 'gelu'; supported is 'gelu_pytorch_tanh'",
        ),
        (
            {**LLAMA, **GEMMA, "layer_types": ["full_attention", "sliding_attention"]},
            "every n-th, 'full_attention'. This model cannot",
        ),
        (
            {**LLAMA, **GEMMA, "rope_parameters": {"sliding_attention": {"factor": 8.0}}},
            "have factor 8.0 and no kind of scaling",
        ),
        (
            {**LLAMA, **GEMMA, "rope_parameters": {"sliding_attention": STRETCHED}},
            "layers with a window are scaled",
        ),
        ({**LLAMA, **GEMMA, "use_bidirectional_attention": True}, "use_bidirectional_attention is"),
        ({"model_type": "gemma3", "text_config": 3}, "text_config is 3; expected an object"),
        (
            {"model_type": "gemma3", "text_config": {}, "quantization_config": {"bits": 4}},
            "quantization_config is",
        ),
        (
            {**OPT, "do_layer_norm_before": False},  # the 350M
            "do_layer_norm_before is False; supported is True",
        ),
        ({**OPT, "word_embed_proj_dim": 16}, "word_embed_proj_dim is 16; supported is 32"),
        ({**MPT, "attn_config": {"alibi": False}}, "alibi is False"),
        ({**MPT, "attn_config": {"clip_qkv": 6}}, "clip_qkv is 6"),
        ({**MPT, "norm_type": "rmsnorm"}, "norm_type is 'rmsnorm'"),
    ],
)
def test_what_the_block_cannot_compute_is_refused_by_name(content, message):
    rows = {**ROWS, "transformer.wte.weight": ROWS["model.embed_tokens.weight"]}
    with pytest.raises(ConversionError, match=message):
        lm_families.describe(content, rows)


def test_rotary_positions_as_both_generations_of_files_write_them():
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}
    new = {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}}
    a, b = (lm_families.describe({**LLAMA, **fields}, ROWS)[0] for fields in (old, new))
    assert a == b and (a.rotary_base, a.rotary_scaling) == (5e5, RotaryScaling(factor=2.0))
    third = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    lm = lm_families.describe({**LLAMA, "rope_scaling": third}, ROWS)[0]
    assert lm.rotary_scaling == RotaryScaling(8.0, 1.0, 4.0, 8192)


def test_gemma_3_with_and_without_its_images():
    """The files of the 4B name what differs from the defaults of transformers, and have images."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    whole = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 1152}}
    names = {
        "language_model.model.embed_tokens.weight": jax.ShapeDtypeStruct(
            (262_208, 2560), "bfloat16"
        ),
        "vision_tower.vision_model.post_layernorm.bias": jax.ShapeDtypeStruct((1152,), "bfloat16"),
    }
    lm, rules = lm_families.describe(whole, names)
    assert (lm.num_layers, lm.num_heads, lm.kv_heads, lm.head_size) == (34, 8, 4, 256)
    assert (lm.rotary_base, lm.local_rotary_base) == (1e6, 1e4) and lm.tied_head
    assert (lm.rotary_scaling, lm.logit_cap) == (RotaryScaling(factor=8.0), 0.0)
    assert lm.windows == (*(1024,) * 5, 0) * 5 + (1024,) * 4
    skipped = {rule.source for rule in rules if isinstance(rule, mapping.Skip)}
    assert any("vision_tower" in source for source in skipped)
    nested = {"full_attention": {**STRETCHED, "rope_theta": 1e6}, "sliding_attention": {}}
    new = {**text, "model_type": "gemma3_text", "rope_scaling": None, "rope_parameters": nested}
    kinds = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(34)]
    assert lm_families.describe({**new, "layer_types": kinds}, names)[0] == lm
    every = {"layer_types": ["full_attention"] * 34}
    plain = lm_families.describe({**new, **every}, names)[0]
    assert (plain.sliding_window, plain.global_every, plain.local_rotary_base) == (0, 0, 0)


def test_names_without_a_prefix_buffers_and_a_head_that_is_tied():
    """GPT-2 as it was first published: each weight is read once, or skipped with a reason."""
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50)
        )
    files = {
        name.removeprefix("transformer."): leaf.shape for name, leaf in model.state_dict().items()
    }
    files |= {"h.0.attn.bias": (1, 1, 16, 16), "h.1.attn.masked_bias": ()}
    files = {name: jax.ShapeDtypeStruct(tuple(shape), np.float32) for name, shape in files.items()}
    lm, rules = lm_families.describe(model.config.to_dict(), files)
    plan = mapping.check(
        rules, files, mapping.targets("language_model", ModelConfig(lm=lm, new_tokens=()))
    )
    assert set(plan.skipped) == {"h.0.attn.bias", "h.1.attn.masked_bias", "lm_head.weight"}
    del files["h.1.mlp.c_fc.bias"]
    with pytest.raises(ConversionError, match=r"Only expected \(1\): h\.1\.mlp\.c_fc\.bias"):
        mapping.check(
            rules, files, mapping.targets("language_model", ModelConfig(lm=lm, new_tokens=()))
        )


def llama_fields(rows, layers, width, heads, groups, mlp, **others):
    sizes = {
        "vocab_size": rows,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
    }
    return {
        "model_type": "llama",
        **sizes,
        "num_key_value_heads": groups,
        "intermediate_size": mlp,
        "rms_norm_eps": 1e-5,
        **others,
    }


def neox_fields(rows, layers, width, heads, mlp, **others):
    sizes = {
        "vocab_size": rows,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
    }
    return {"model_type": "gpt_neox", **sizes, "intermediate_size": mlp, **others}


SCALED = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
QWEN3 = {"model_type": "qwen3", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "head_dim": 128}
OLMO2 = {"model_type": "olmo2", "rms_norm_eps": 1e-6, "rope_theta": 5e5}
GEMMA2 = {
    "model_type": "gemma2",
    "rms_norm_eps": 1e-6,
    "head_dim": 256,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
}
GEMMA3 = {  # as the 1B's file has it
    **GEMMA2,
    "model_type": "gemma3_text",
    "rope_theta": 1_000_000,
    "rope_local_base_freq": 10_000,
    "rope_scaling": None,
    "attn_logit_softcapping": None,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
}
QWEN2 = {"model_type": "qwen2", "rms_norm_eps": 1e-6, "rope_theta": 1e6}
PUBLISHED = {
    "llama_7b": llama_fields(32_000, 32, 4096, 32, 32, 11_008, rms_norm_eps=1e-6),
    "llama2_7b": llama_fields(32_000, 32, 4096, 32, 32, 11_008),
    "llama3_8b": llama_fields(128_256, 32, 4096, 32, 8, 14_336, rope_theta=5e5),
    "llama3.2_1b": llama_fields(
        128_256,
        16,
        2048,
        32,
        8,
        8192,
        rope_theta=5e5,
        head_dim=64,
        tie_word_embeddings=True,
        rope_scaling=SCALED,
        max_position_embeddings=131_072,
    ),
    "mistral_7b": llama_fields(
        32_000, 32, 4096, 32, 8, 14_336, model_type="mistral", sliding_window=4096
    ),
    "qwen2_7b": llama_fields(152_064, 28, 3584, 28, 4, 18_944, **QWEN2),
    "qwen2_0.5b": llama_fields(151_936, 24, 896, 14, 2, 4864, tie_word_embeddings=True, **QWEN2),
    "qwen3_0.6b": llama_fields(151_936, 28, 1024, 16, 8, 3072, tie_word_embeddings=True, **QWEN3),
    "qwen3_8b": llama_fields(151_936, 36, 4096, 32, 8, 12_288, **QWEN3),
    "olmo2_7b": llama_fields(100_352, 32, 4096, 32, 32, 11_008, **OLMO2),
    "gemma2_2b": llama_fields(256_000, 26, 2304, 8, 4, 9216, **GEMMA2),
    "gemma2_9b": llama_fields(256_000, 42, 3584, 16, 8, 14_336, **GEMMA2),
    "gemma3_1b": llama_fields(262_144, 26, 1152, 4, 1, 6912, **GEMMA3),
    "pythia_1.4b": neox_fields(
        50_304, 24, 2048, 16, 8192, rotary_pct=0.25, use_parallel_residual=True
    ),
    "redpajama_3b": neox_fields(
        50_432, 32, 2560, 32, 10_240, rotary_pct=1.0, use_parallel_residual=False
    ),
    "mpt_1b": {
        "model_type": "mosaic_gpt",
        "vocab_size": 50_432,
        "n_layers": 24,
        "d_model": 2048,
        "n_heads": 16,
        "mlp_ratio": 4,
        "alibi": True,
        "alibi_bias_max": 8,
        "attn_qk_ln": True,
        "no_bias": True,
    },
    "mpt_7b": {
        "model_type": "mpt",
        "vocab_size": 50_432,
        "n_layers": 32,
        "d_model": 4096,
        "n_heads": 32,
        "expansion_ratio": 4,
        "attn_config": {"alibi": True, "alibi_bias_max": 8, "qk_ln": False},
        "no_bias": True,
    },
    "opt_1.3b": {
        "model_type": "opt",
        "vocab_size": 50_272,
        "num_hidden_layers": 24,
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "ffn_dim": 8192,
        "max_position_embeddings": 2048,
        "word_embed_proj_dim": 2048,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 50_257,
        "n_layer": 12,
        "n_embd": 768,
        "n_head": 12,
        "n_positions": 1024,
    },
}
ABSENT = {"mpt_1b"}  # transformers has no class for it


def options(name):
    """Returns the options of a model in configs/lm_open.py."""
    return from_dict(TrainConfig, lm_open.get_config(name)).model.lm


@pytest.mark.parametrize("name", lm_open.MODELS)
def test_full_sizes_are_the_published_ones(name):
    """configs/lm_open.py agrees with the publisher's config.json, also in the number of weights."""
    rows = {
        f"{lm_families.FAMILIES[PUBLISHED[name]['model_type']].embedding}": jax.ShapeDtypeStruct(
            (PUBLISHED[name]["vocab_size"], 1), np.float32
        )
    }
    described, _ = lm_families.describe(PUBLISHED[name], rows)
    assert described == dataclasses.replace(options(name), remat="none")
    unpadded = ModelConfig(lm=dataclasses.replace(described, vocab_multiple=1), new_tokens=())
    assert (
        trees.count(trees.unflatten(mapping.targets("language_model", unpadded)))
        == lm_open.MODELS[name].weights
    )


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted(lm_open.MODELS.keys() - ABSENT))
def test_full_sizes_are_those_of_transformers(name):
    """Its model has as many weights, and ours reads each of them. Neither is made in memory."""
    kind, fields = (
        PUBLISHED[name]["model_type"],
        {k: v for k, v in PUBLISHED[name].items() if k != "model_type"},
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(kind, **fields)
        )
    unused = 2 * fields["hidden_size"] if kind == "opt" else 0  # rows before the positions
    assert sum(leaf.numel() for leaf in model.parameters()) == lm_open.MODELS[name].weights + unused
    files = {
        key: jax.ShapeDtypeStruct(tuple(leaf.shape), jnp.float32)
        for key, leaf in model.state_dict().items()
    }
    lm, rules = lm_families.describe(model.config.to_dict(), files)
    assert lm == dataclasses.replace(options(name), remat="none")
    mapping.check(
        rules, files, mapping.targets("language_model", ModelConfig(lm=lm, new_tokens=()))
    )


@pytest.mark.parametrize("name", lm_open.MODELS)
def test_the_configs_batches_divide(name):
    config = lm_open.get_config(name)
    for dataset in config.data.datasets.values():
        assert dataset.batch_size % (config.mesh.replica * config.mesh.data) == 0
    assert config.model.lm.num_heads % config.mesh.model == 0
