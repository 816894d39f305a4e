"""The directory of a tiny LLaMA with a SentencePiece tokenizer, as a publisher writes it.

A test changes one thing of it. The fixtures `published` and `found` (conftest.py) make it.
"""

import json

import numpy as np
import pytest

from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.conversion import publishers, writing
from flamingo_jax.conversion.publishers import Inputs
from flamingo_jax.core.paths import Path

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

WIDTH, HEADS, MLP, ROWS = 8, 2, 12, 300
CONFIG = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "vocab_size": ROWS,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPES = {
    "model.embed_tokens": (ROWS, WIDTH),
    "lm_head": (ROWS, WIDTH),
    "model.norm": (WIDTH,),
    "model.layers.0.input_layernorm": (WIDTH,),
    "model.layers.0.post_attention_layernorm": (WIDTH,),
    **{f"model.layers.0.self_attn.{part}_proj": (WIDTH, WIDTH) for part in "qkvo"},
    "model.layers.0.mlp.gate_proj": (MLP, WIDTH),
    "model.layers.0.mlp.up_proj": (MLP, WIDTH),
    "model.layers.0.mlp.down_proj": (WIDTH, MLP),
}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n"
HEAD, TABLE, UP = "lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"


def weights(seed=0):
    rng = np.random.default_rng(seed)
    return {
        f"{name}.weight": torch.from_numpy(rng.normal(size=shape).astype(np.float32))
        for name, shape in SHAPES.items()
    }


def describe(place):
    return publishers.describe("hf_lm", Inputs(Path(place)))


def convert(place, output):
    """Converts; returns the opened export."""
    return open_checkpoint(writing.write(describe(place), output))


def put(directory, name, content):
    (directory / name).write_text(content if isinstance(content, str) else json.dumps(content))


def change_weights(directory, **changed):
    state = {**weights(), **{name.replace("__", "."): w for name, w in changed.items()}}
    kept = {name: w for name, w in state.items() if w is not None}
    safetensors.save_file(kept, directory / "model.safetensors")


def config(**fields):
    return lambda d: put(d, "config.json", {**CONFIG, **fields})
