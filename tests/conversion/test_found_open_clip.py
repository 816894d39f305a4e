"""open_clip's files of weights without a config: the sizes are read from the shapes."""

import jax
import numpy as np
import pytest

from flamingo_jax.conversion import mapping, publishers
from flamingo_jax.conversion.publishers import Inputs
from flamingo_jax.conversion.reading import ConversionError, InMemory
from flamingo_jax.core.paths import Path
from tests.conversion.found_llama import put

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")


def open_clip_weights(width, layers, mlp):
    """The image tower of open_clip, with names and shapes as in its files."""
    block = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (mlp, width),
        "mlp.c_fc.bias": (mlp,),
        "mlp.c_proj.weight": (width, mlp),
        "mlp.c_proj.bias": (width,),
        **{f"{norm}.{end}": (width,) for norm in ("ln_1", "ln_2") for end in ("weight", "bias")},
    }
    shapes = {
        "conv1.weight": (width, 3, 14, 14),
        "class_embedding": (width,),
        "positional_embedding": (5, width),
        "proj": (width, 4),
        **{
            f"{norm}.{end}": (width,)
            for norm in ("ln_pre", "ln_post")
            for end in ("weight", "bias")
        },
        **{
            f"transformer.resblocks.{i}.{name}": shape
            for i in range(layers)
            for name, shape in block.items()
        },
    }
    return {f"visual.{name}": torch.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("sizes", "heads"), [((384, 12, 1536), 6), ((1280, 32, 5120), 16), ((1408, 40, 6144), 16)]
)
def test_the_heads_of_a_published_open_clip_are_looked_up(monkeypatch, sizes, heads):
    """H/14 has 16 heads of 80 and g/14 has 16 of 88; heads of 64 load too, and are wrong."""
    from flamingo_jax.conversion import open_clip

    width, layers, mlp = sizes
    names = {
        "visual.conv1.weight": (width, 3, 14, 14),
        "visual.positional_embedding": (257, width),
        **{
            f"visual.transformer.resblocks.{i}.mlp.c_fc.weight": (mlp, width) for i in range(layers)
        },
    }

    class Described(InMemory):
        def __init__(self):
            pass

        def names(self):
            return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in names.items()}

    made = open_clip.config_of_weights(Described(), "gelu_exact", features="patches")
    assert (made.num_heads, made.width, made.mlp_width) == (heads, width, mlp)


def test_the_heads_of_another_open_clip_are_asked_for(tmp_path):
    safetensors.save_file(open_clip_weights(16, 1, 64), tmp_path / "open_clip_model.safetensors")
    options = {"activation": "gelu_exact"}

    def run(**more):
        return publishers.describe("open_clip", Inputs(Path(tmp_path), options=options | more))

    with pytest.raises(ConversionError, match="No published model has width 16.*option=heads="):
        run()
    with pytest.raises(ConversionError, match="heads is 'many'; expected a number"):
        run(heads="many")
    with pytest.raises(ConversionError, match="num_heads|divide"):
        run(heads="3")
    assert run(heads="4").model.vit.num_heads == 4
    mapping.plan(run(heads="4"))
    put(tmp_path, "open_clip_config.json", {"model_cfg": {"vision_cfg": {"layers": 1}}})
    with pytest.raises(ConversionError, match="heads was given, but .* says it: leave it out"):
        publishers.describe("open_clip", Inputs(Path(tmp_path), options={"heads": "4"}))
