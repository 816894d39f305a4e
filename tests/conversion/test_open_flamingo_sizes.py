"""Conversion of OpenFlamingo 3B, 4B and 9B at their published sizes, without making weights.

Their own class says the names and shapes. The table fits them, and so do the configs.
"""

import dataclasses
import importlib

import jax
import numpy as np
import pytest

from flamingo_jax.conversion import clip, lm_families, mapping, open_flamingo, reading
from flamingo_jax.conversion.mapping import Conversion
from flamingo_jax.core.config import from_dict
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.tokenizers.markers import Markers
from flamingo_jax.training.config import TrainConfig
from tests.parity import stand_ins

pytestmark = pytest.mark.parity

PIECES = 50_277  # of GPT-NeoX' tokenizer
MPT = {"vocab_size": 50_432, "expansion_ratio": 4, "no_bias": True}
# model_type, config.json, norms on queries and keys (which transformers' class does not have),
# one layer for so many blocks
SIZES = {
    "open_flamingo_3b": ("mpt", MPT | {"n_layers": 24, "d_model": 2048, "n_heads": 16}, True, 1),
    "open_flamingo_4b": (
        "gpt_neox",
        {
            "vocab_size": 50_432,
            "num_hidden_layers": 32,
            "hidden_size": 2560,
            "num_attention_heads": 32,
            "intermediate_size": 10_240,
            "rotary_pct": 1.0,
            "use_parallel_residual": False,
        },
        False,
        2,
    ),
    "open_flamingo_9b": ("mpt", MPT | {"n_layers": 32, "d_model": 4096, "n_heads": 32}, False, 4),
}
BLOCKS = {"mpt": "transformer.blocks", "gpt_neox": "gpt_neox.layers"}


class Described(reading.InMemory):
    """Names and shapes of a module, without its weights."""

    def __init__(self, module):
        self._shapes = {
            name: jax.ShapeDtypeStruct(tuple(leaf.shape), np.float32)
            for name, leaf in module.state_dict().items()
        }

    def names(self):
        return self._shapes


def towers(kind, fields, qk_norm):
    """(their language model and vision encoder without weights, and the conversion of each)."""
    import transformers

    lm = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **fields)
    )
    vision = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            patch_size=14,
            hidden_act="quick_gelu",
        )
    )
    files, content = Described(lm), {**fields, "model_type": kind}
    if qk_norm:
        content["attn_config"] = {"qk_ln": True}
        norm = jax.ShapeDtypeStruct((fields["d_model"],), np.float32)
        blocks = [f"transformer.blocks.{layer}.attn" for layer in range(fields["n_layers"])]
        files.names().update(
            {f"{block}.{name}_ln.weight": norm for block in blocks for name in "qk"}
        )
    described, rules = lm_families.describe(content, files.names())
    of_lm = Conversion(
        "language_model",
        ModelConfig(lm=described, new_tokens=()),
        rules,
        files,
        markers=Markers(bos=False),
    )
    seen = clip.vision_config(vision.config.to_dict(), features="patches")
    source = (
        "vision_model."
        if any(name.startswith("vision_model.") for name in vision.state_dict())
        else ""
    )
    tower = mapping.with_prefixes(clip.tower_rules(seen, source=source), target="vision/")
    return lm, Conversion("vision", ModelConfig(vit=seen), tower, Described(vision)), of_lm


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_map_one_to_one_and_are_the_configs(name):
    """Every weight of the checkpoint and of both towers is read or skipped by name.

    The model is that of the config to train it further.
    """
    import torch

    kind, fields, qk_norm, every = SIZES[name]
    of = stand_ins.load("open_flamingo.src.flamingo")
    mixin = stand_ins.load("open_flamingo.src.flamingo_lm").FlamingoLMMixin
    with torch.device("meta"):
        lm, vision, of_lm = towers(kind, fields, qk_norm)
        encoder = type("Encoder", (), {"visual": torch.nn.Identity()})
        stand_ins.load("open_flamingo.src.utils").extend_instance(lm, mixin)
        lm.set_decoder_layers_attr_name(BLOCKS[kind])
        lm.resize_token_embeddings(PIECES + 3, mean_resizing=False)
        theirs = of.Flamingo(
            encoder, lm, PIECES, PIECES + 1, vis_dim=1024, cross_attn_every_n_layers=every
        )
    described = open_flamingo.join(Described(theirs), of_lm, vision, pieces=PIECES)
    plan = mapping.plan(described)
    made = {weight.target.split("/")[1] for weight in plan.weights}
    assert made == {"vision", "resampler", "xattn", "lm", "new_tokens"}
    further = from_dict(TrainConfig, importlib.import_module(f"configs.{name}").get_config()).model
    lm_config = dataclasses.replace(described.model.lm, remat=further.lm.remat)
    assert dataclasses.replace(described.model, lm=lm_config) == further.of_stage("flamingo")
