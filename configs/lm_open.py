"""Open language models, as a tower for Flamingo or to train further: where they are published, and their shapes.

    COMMAND  python -m flamingo_jax.convert --source=hf_lm --input=DIR --output=OUT
             python -m flamingo_jax.plan --config=configs/lm_open.py:mistral_7b --topology=v4:4x4x4
             python -m flamingo_jax.train --config=configs/lm_open.py:mistral_7b --config.initial=OUT --config.data.tokenizer=OUT --workdir=WORKDIR
    EXPECTED `convert` reads the publisher's files in DIR, each weight once. OUT then is what --config.towers.lm of a Flamingo run takes, with
             the options below as its config.model.lm. The plan says "fits", 25.1 of 32 GiB.

The numbers of weights are those of transformers' own models (tests/conversion/test_hf_lm.py builds both). V is the number of rows of the
table, which may be more than the tokenizer has pieces: 50,432 of MPT for 50,277.
"""

from ml_collections import config_dict

from configs import base


class Model:
    """One published model."""

    def __init__(self, published: str, weights: int, options: dict[str, object]):
        """`published`: publisher/name; `weights`: how many; `options`: of the block, as in config.model.lm."""
        self.published, self.weights, self.options = published, weights, options


def _sizes(vocab_size: int, num_layers: int, width: int, num_heads: int, mlp_width: int) -> dict[str, object]:
    return {
        "vocab_size": vocab_size,
        "num_layers": num_layers,
        "width": width,
        "num_heads": num_heads,
        "mlp_width": mlp_width,
    }


_LLAMA: dict[str, object] = {
    "norm_epsilon": 1e-5,
    "position": "rotary",
    "activation": "swiglu",
    "mlp_bias": False,
    "tied_head": False,
}
_QWEN2: dict[str, object] = {**_LLAMA, "norm_epsilon": 1e-6, "rotary_base": 1e6, "qkv_bias": True}
_NEOX: dict[str, object] = {
    "norm": "layer",
    "position": "rotary",
    "activation": "gelu_exact",
    "attention_bias": True,
    "tied_head": False,
}
_MPT: dict[str, object] = {
    "norm": "layer",
    "norm_bias": False,
    "position": "alibi",
    "activation": "gelu_exact",
    "mlp_bias": False,
}
_LEARNED: dict[str, object] = {"norm": "layer", "position": "learned", "attention_bias": True}
_STRETCHED: dict[str, object] = {"factor": 32.0, "low": 1.0, "high": 4.0, "original_length": 8192}

# With D the width and M the feed-forward's, a layer of LLaMA has 4 D^2 + 3 D M + 2 D weights, of which keys and values take the share
# G / H of D^2 each; a layer of GPT 12 D^2 + 13 D with all biases, 12 D^2 + 2 D without. A table has V D, an untied head as many.
MODELS: dict[str, Model] = {
    "llama_7b": Model(
        "huggyllama/llama-7b", 6_738_415_616, _sizes(32_000, 32, 4096, 32, 11_008) | _LLAMA | {"norm_epsilon": 1e-6}
    ),
    "llama2_7b": Model("meta-llama/Llama-2-7b-hf", 6_738_415_616, _sizes(32_000, 32, 4096, 32, 11_008) | _LLAMA),
    "llama3_8b": Model(
        "meta-llama/Meta-Llama-3-8B",
        8_030_261_248,
        _sizes(128_256, 32, 4096, 32, 14_336) | _LLAMA | {"num_kv_heads": 8, "rotary_base": 5e5},
    ),
    "llama3.2_1b": Model(
        "meta-llama/Llama-3.2-1B",
        1_235_814_400,
        _sizes(128_256, 16, 2048, 32, 8192)
        | _LLAMA
        | {"num_kv_heads": 8, "rotary_base": 5e5, "rotary_scaling": _STRETCHED, "tied_head": True},
    ),
    "mistral_7b": Model(
        "mistralai/Mistral-7B-v0.1",
        7_241_732_096,
        _sizes(32_000, 32, 4096, 32, 14_336) | _LLAMA | {"num_kv_heads": 8, "sliding_window": 4096},
    ),
    "qwen2_7b": Model(
        "Qwen/Qwen2-7B", 7_615_616_512, _sizes(152_064, 28, 3584, 28, 18_944) | _QWEN2 | {"num_kv_heads": 4}
    ),
    "qwen2_0.5b": Model(
        "Qwen/Qwen2-0.5B",
        494_032_768,
        _sizes(151_936, 24, 896, 14, 4864) | _QWEN2 | {"num_kv_heads": 2, "tied_head": True},
    ),
    "pythia_1.4b": Model(
        "EleutherAI/pythia-1.4b",
        1_414_647_808,
        _sizes(50_304, 24, 2048, 16, 8192) | _NEOX | {"parallel_residual": True, "rotary_fraction": 0.25},
    ),
    "redpajama_3b": Model(
        "togethercomputer/RedPajama-INCITE-Base-3B-v1", 2_775_864_320, _sizes(50_432, 32, 2560, 32, 10_240) | _NEOX
    ),
    # Beside a layer's 12 D^2 + 2 D, norms of D on queries and keys.
    "mpt_1b": Model(
        "mosaicml/mpt-1b-redpajama-200b",
        1_311_442_944,
        _sizes(50_432, 24, 2048, 16, 8192) | _MPT | {"qk_norm": True},
    ),
    "mpt_7b": Model("mosaicml/mpt-7b", 6_649_286_656, _sizes(50_432, 32, 4096, 32, 16_384) | _MPT),
    # Without the 2 rows before the positions, which no text uses.
    "opt_1.3b": Model(
        "facebook/opt-1.3b", 1_315_753_984, _sizes(50_272, 24, 2048, 32, 8192) | _LEARNED | {"activation": "relu"}
    ),
    "gpt2": Model(
        "openai-community/gpt2", 124_439_808, _sizes(50_257, 12, 768, 12, 0) | _LEARNED | {"max_length": 1024}
    ),
}


def get_config(name: str = "llama2_7b") -> config_dict.ConfigDict:
    """Returns a run that trains one of `MODELS` further on packed text.

    Args:
        name: of the model.

    Raises:
        KeyError: there is no such model.
    """
    config = base.get_config()
    config.name = f"lm_{name}"
    config.stage = "language_model"
    config.model.lm.update(MODELS[name].options)
    config.data.tokenizer = "/data/lm"  # what `convert` wrote
    # Documents of 512 tokens or more fill the rows; `--pipeline=pool --rows_per_group=16` says what suits the data.
    config.data.datasets = {
        "text": base.dataset("text", "/data/text", batch_size=128, length=2048, documents_per_row=4, rows_per_group=16)
    }
    config.steps = 10_000
    config.optimizer.update(learning_rate=2e-5, warmup_steps=500, schedule="cosine", final_fraction=0.1)
    config.mesh.update(data=32, model=2)
    return config
