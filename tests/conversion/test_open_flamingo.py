"""Conversion of OpenFlamingo's files, in both directions, and files that do not fit together."""

import dataclasses

import numpy as np
import pytest

from flamingo_jax.checkpoint import export as export_lib
from flamingo_jax.checkpoint import int8_export
from flamingo_jax.conversion import mapping, publishers, writing
from flamingo_jax.conversion.export_open_flamingo import state_dict
from flamingo_jax.conversion.mapping import Constant, load_params
from flamingo_jax.conversion.reading import ConversionError
from flamingo_jax.core import trees
from flamingo_jax.core.config import to_dict
from flamingo_jax.core.paths import Path
from flamingo_jax.models import sizes
from tests.parity import open_flamingo_models as models

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.parity
FAMILIES = {"mpt": 1, "gpt_neox": 2, "llama": 4, "opt": 2}


@pytest.fixture(scope="module")
def describe(tmp_path_factory):
    """Returns (family, every, checkpoint=None, new_tokens=3) -> Conversion, from files."""

    def run(family, every, checkpoint=None, **options):
        directory = tmp_path_factory.mktemp(family)
        return publishers.describe(
            "open_flamingo",
            models.write(models.build(family, every, **options), directory, checkpoint),
        )

    return run


def arrays(model):
    return {name: leaf.numpy() for name, leaf in model.checkpoint().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_back_and_forth_is_exact(family, describe):
    """Theirs -> ours -> theirs, equal to the bit and with the same names.

    A head gets the names of old and new versions of transformers.
    """
    conversion = describe(family, FAMILIES[family])
    params = load_params(conversion)
    written, theirs = (
        state_dict(conversion.model, params),
        arrays(models.build(family, FAMILIES[family])),
    )
    aliases = {"lang_encoder.lm_head.weight", "lang_encoder.embed_out.weight"}
    frozen = {"lang_encoder.model.decoder.embed_positions.weight"}  # kept for its name, "embed"
    assert written.keys() - aliases == theirs.keys() - aliases - frozen
    assert conversion.model.lm.tied_head == (not written.keys() & aliases)
    for name in written.keys() & theirs.keys():
        np.testing.assert_array_equal(written[name], theirs[name], err_msg=name)
    again = load_params(
        describe(
            family, FAMILIES[family], {k: torch.from_numpy(v.copy()) for k, v in written.items()}
        )
    )
    flat = trees.flatten(again)
    for path, leaf in trees.flatten(params).items():
        np.testing.assert_array_equal(flat[path], leaf, err_msg=path)


def test_their_class_reads_what_we_write(describe):
    """load_state_dict finds all trained weights, and the model computes the same."""
    conversion = describe("gpt_neox", 2)
    written = {
        k: torch.from_numpy(v.copy())
        for k, v in state_dict(conversion.model, load_params(conversion)).items()
    }
    theirs = models.build("gpt_neox", 2).flamingo
    found = theirs.load_state_dict(written, strict=False)
    # for older versions of transformers
    assert found.unexpected_keys == ["lang_encoder.embed_out.weight"]
    frozen = (
        "vision_encoder.",
        "lang_encoder.old_decoder_blocks.",
        "lang_encoder.gated_cross_attn_layers.",
    )
    missing = [
        name
        for name in found.missing_keys
        if ".decoder_layer." not in name and not name.startswith(frozen)
    ]
    assert [name for name in missing if "final_layer_norm" not in name] == []


def test_export_back_through_the_program_s_function(describe, tmp_path):
    conversion = describe("mpt", 1)
    export = writing.write(conversion, tmp_path / "export")
    out = Path(tmp_path) / "checkpoint.pt"
    assert "in the names of OpenFlamingo" in publishers.write_back("open_flamingo", export, out)
    written = torch.load(str(out), weights_only=True)
    for name, leaf in models.build("mpt", 1).checkpoint().items():
        if name != "lang_encoder.lm_head.weight":
            assert torch.equal(written[name], leaf), name
    rounded = int8_export.write(export, tmp_path / "int8")
    with pytest.raises(ConversionError, match="int8 is in 8 bits, which OpenFlamingo cannot read"):
        publishers.write_back("open_flamingo", Path(rounded), Path(tmp_path) / "other.pt")


def test_training_files_frozen_copies_and_doubles_are_seen_through(describe):
    """{"model_state_dict": {"module.x": ...}} with all other entries of FSDP and version 1."""
    whole = {
        f"module.{name}": leaf
        for name, leaf in models.build("mpt", 2).flamingo.state_dict().items()
    }
    assert any("gated_cross_attn_layers." in name for name in whole)
    assert any(".decoder_layer." in name for name in whole)
    assert any("old_decoder_blocks." in name for name in whole)
    plain, nested = describe("mpt", 2), describe("mpt", 2, {"epoch": 3, "model_state_dict": whole})
    flat = trees.flatten(load_params(nested))
    for path, leaf in trees.flatten(load_params(plain)).items():
        np.testing.assert_array_equal(flat[path], leaf, err_msg=path)
    skipped = mapping.plan(nested).skipped
    assert (
        skipped["lang_encoder.transformer.blocks.0.decoder_layer.attn.Wqkv.weight"]
        == "a frozen copy of what --lm holds"
    )


def test_the_head_s_missing_rows_are_zeros_and_said_so(describe):
    """The deprecated 9B does not contain the output rows of the new tokens."""
    checkpoint = models.build("llama", 4).checkpoint()
    del checkpoint["lang_encoder.lm_head.weight"]
    conversion = describe("llama", 4, checkpoint)
    (fill,) = (rule for rule in conversion.rules if isinstance(rule, Constant))
    assert fill.target == "flamingo/new_tokens/output"
    assert "NOT IN THE CHECKPOINT" in writing.table(conversion)
    params = load_params(conversion)
    assert not np.any(params["flamingo/new_tokens"]["output"])
    own = models.build("llama", 4).lm.state_dict()["lm_head.weight"].numpy()
    np.testing.assert_array_equal(params["flamingo/lm"]["head"][: models.PIECES], own)


def test_what_the_model_is(describe):
    conversion = describe("mpt", 2, new_tokens=2)
    model = conversion.model
    assert model.new_tokens == ("<EOC>", "<image>")
    assert (model.xattn.every, model.xattn.offset) == (2, 1)
    assert (model.resampler.num_layers, model.resampler.num_latents) == (6, 64)
    assert model.lm.vocab_size == models.PIECES
    assert (conversion.markers.bos, conversion.markers.vocab_size) == (False, models.PIECES)
    assert conversion.preprocessing == {
        "image_size": models.IMAGE_SIZE,
        "image_fit": "crop",
        "background": "none",
    }
    assert model.vit.activation == "quick_gelu"


def _without(name):
    return lambda state: {key: leaf for key, leaf in state.items() if name not in key}


WTE = "lang_encoder.transformer.wte.weight"
BLOCK = "lang_encoder.transformer.blocks.1.gated_cross_attn_layer"
WRONG = {
    "another depth": (
        _without("blocks.3.gated"),
        r"before the blocks 1; with the 4 blocks .* expected 1, 3",
    ),
    "no gated layers": (_without("gated_cross_attn_layer"), "has gated layers in none of"),
    "a missing weight": (
        _without("blocks.1.gated_cross_attn_layer.ff.3"),
        r"Only expected \(1\): .*blocks.1.*ff.3",
    ),
    "an unknown weight": (
        lambda state: {**state, "perceiver.media_time_embs": torch.zeros(2, 1, 32)},
        r"Only in the files \(1\): perceiver.media_time_embs",
    ),
    "another tokenizer": (
        lambda state: {**state, WTE: state[WTE][:-2]},
        "has 51 rows and the tokenizer of --lm 50 pieces",
    ),
    "another width": (
        lambda state: {**state, f"{BLOCK}.attn.norm.weight": torch.zeros(48)},
        "of width 48, --lm has 32",
    ),
    "another encoder": (
        lambda state: {**state, "perceiver.latents": torch.zeros(64, 48)},
        "reads features 48 wide, --vision gives 32",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_belong_together_is_refused(name, describe):
    change, message = WRONG[name]
    with pytest.raises(ConversionError, match=message):
        load_params(describe("mpt", 2, change(models.build("mpt", 2).checkpoint())))


def test_towers_must_be_given(tmp_path):
    with pytest.raises(ConversionError, match="Give its frozen parts too: --lm=DIR"):
        publishers.describe("open_flamingo", publishers.Inputs(Path(tmp_path) / "checkpoint.pt"))


def test_what_has_no_way_back_is_one_error(describe, tmp_path):
    """An NFNet Flamingo, which is the paper's, and a model with a NaN."""
    conversion = describe("mpt", 1)
    params, nfnet = load_params(conversion), sizes.NFNETS["F0"]
    paper = dataclasses.replace(conversion.model, vit=None, vision=nfnet)
    with pytest.raises(ConversionError, match="has an NFNet as its vision encoder"):
        state_dict(paper, params)
    params["flamingo/resampler"]["latents"] = params["flamingo/resampler"]["latents"] * np.nan
    out, export = Path(tmp_path) / "checkpoint.pt", Path(tmp_path) / "export"
    export_lib.export(
        export,
        params,
        kind="flamingo",
        config=to_dict(conversion.model),
        tokenizer=None,
        preprocessing={},
        step=0,
    )
    with pytest.raises(ConversionError, match="1 weights are not finite .*: perceiver.latents"):
        publishers.write_back("open_flamingo", export, out)
    assert not out.exists()


def test_a_model_of_another_geometry_has_no_way_back(describe):
    conversion = describe("mpt", 1)
    params, model = load_params(conversion), conversion.model
    other = dataclasses.replace(model.xattn, gate="vector")
    with pytest.raises(ConversionError, match=r"xattn.gate = 'vector' \(theirs: 'scalar'\)"):
        state_dict(dataclasses.replace(model, xattn=other), params)
    params["flamingo/new_tokens"]["output"] = params["flamingo/new_tokens"]["output"] + 1
    with pytest.raises(ConversionError, match="trained apart"):
        state_dict(model, params)
