"""checkpoint.partial: towers fit a model exactly, or an error names the first wrong weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flamingo_jax.checkpoint import arrays
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.card import read_card
from flamingo_jax.checkpoint.export import export
from flamingo_jax.checkpoint.partial import frozen_record, load_towers
from flamingo_jax.core import trees

rng = np.random.default_rng(0)


def weight(*shape):
    return rng.normal(size=shape).astype(np.float32)


LM = {"lm/embed": {"w": weight(8, 4)}, "lm/layers/query": {"w": weight(2, 4, 4)}}
CLIP = {
    "contrastive/vision/stem": {"w": weight(3, 4)},
    "contrastive/text/embed": {"w": weight(5, 4)},
    "contrastive": {"log_temperature": weight()},
}
SKIP = ("contrastive/text/.*", "contrastive/log_temperature")


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    base = tmp_path_factory.mktemp("towers")
    options = {"config": {}, "tokenizer": None, "preprocessing": {}, "step": 1}
    return {
        "lm": export(base / "lm" / "export", LM, kind="language_model", **options),
        "clip": export(base / "clip", CLIP, kind="contrastive", **options),
    }


@pytest.fixture
def sources(exports):
    return {
        "flamingo/lm": (exports["lm"], "lm"),
        "flamingo/vision": (exports["clip"], "contrastive/vision"),
    }


def model(dtype=jnp.float32):
    return {
        "flamingo/lm/embed": {"w": jnp.zeros((8, 4), dtype)},
        "flamingo/lm/layers/query": {"w": jnp.zeros((2, 4, 4), dtype)},
        "flamingo/vision/stem": {"w": jnp.zeros((3, 4), dtype)},
        "flamingo/xattn": {"gate": jnp.full((2,), 3.0)},
    }


def test_towers_take_their_places_and_the_rest_stays(sources):
    params = model()
    got = load_towers(params, sources, skip=SKIP)
    assert got["flamingo/xattn"]["gate"] is params["flamingo/xattn"]["gate"]
    np.testing.assert_array_equal(got["flamingo/lm/layers/query"]["w"], LM["lm/layers/query"]["w"])
    np.testing.assert_array_equal(got["flamingo/lm/embed"]["w"], LM["lm/embed"]["w"])
    np.testing.assert_array_equal(
        got["flamingo/vision/stem"]["w"], CLIP["contrastive/vision/stem"]["w"]
    )
    assert trees.flatten(got).keys() == trees.flatten(params).keys()


def test_abstract_weights_get_their_sharding_and_dtype(sources):
    """The cast rounds like numpy (to nearest, ties to even), so results are equal to the bit."""
    mesh = jax.make_mesh((1, 2, 4), ("replica", "data", "model"), axis_types=(AxisType.Auto,) * 3)
    split = NamedSharding(mesh, PartitionSpec(None, "model"))
    towers = {
        module: weights for module, weights in model(jnp.bfloat16).items() if "xattn" not in module
    }
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), towers
    )
    abstract["flamingo/xattn"] = {"gate": jax.ShapeDtypeStruct((2,), jnp.float32)}
    got = load_towers(abstract, sources, skip=SKIP)
    for name, expected in LM.items():
        leaf = got[f"flamingo/{name}"]["w"]
        assert leaf.sharding == split and leaf.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(leaf), expected["w"].astype(jnp.bfloat16))
    assert isinstance(got["flamingo/xattn"]["gate"], jax.ShapeDtypeStruct)


def test_only_the_named_weights_are_read(sources, monkeypatch):
    read = []
    original = arrays.read
    monkeypatch.setattr(
        arrays, "read", lambda directory, like: read.extend(like) or original(directory, like)
    )
    load_towers(model(), sources, skip=SKIP)
    assert sorted(read) == ["contrastive/vision/stem/w", "lm/embed/w", "lm/layers/query/w"]


def test_a_workdir_stands_for_its_export(exports):
    got = load_towers(
        {"flamingo/lm" + m[2:]: w for m, w in LM.items()},
        {"flamingo/lm": (exports["lm"].parent, "lm")},
    )
    np.testing.assert_array_equal(got["flamingo/lm/embed"]["w"], LM["lm/embed"]["w"])


def test_a_missing_tower(sources, tmp_path):
    with pytest.raises(
        CheckpointError,
        match=r"There is no export at .*nothing.* Give the directory of a finished stage",
    ):
        load_towers(model(), sources | {"flamingo/lm": (tmp_path / "nothing", "lm")}, skip=SKIP)
    with pytest.raises(CheckpointError, match="There is no export"):
        frozen_record(tmp_path / "nothing", "lm", "flamingo/lm")


def test_source_weights_that_go_nowhere(sources):
    with pytest.raises(
        CheckpointError,
        match=r"holds 1 weights that go nowhere: contrastive/log_temperature\. Give",
    ):
        load_towers(model(), sources, skip=SKIP[:1])


def test_a_tower_with_other_weights(sources):
    params = model()
    params["flamingo/vision/head"] = {"w": jnp.zeros(3)}
    with pytest.raises(
        CheckpointError,
        match=r"Only in the checkpoint \(0\): none\. Only in the model \(1\): head/w",
    ):
        load_towers(params, sources, skip=SKIP)
    params = model()
    del params["flamingo/lm/embed"]
    with pytest.raises(
        CheckpointError, match=r"'flamingo/lm' .*Only in the checkpoint \(1\): embed/w"
    ):
        load_towers(params, sources, skip=SKIP)


def test_a_tower_of_another_shape(sources):
    params = model()
    params["flamingo/lm/embed"] = {"w": jnp.zeros((8, 5))}
    with pytest.raises(CheckpointError, match=r"embed/w: got \(8, 4\), expected \(8, 5\)"):
        load_towers(params, sources, skip=SKIP)


def test_each_weight_is_used_once(exports, sources):
    params = model()
    params["flamingo/again/stem"] = {"w": jnp.zeros((3, 4))}
    twice = sources | {"flamingo/again": (exports["clip"], "contrastive/vision")}
    with pytest.raises(
        CheckpointError, match="contrastive/vision/stem/w are taken twice, or taken and skipped"
    ):
        load_towers(params, twice, skip=SKIP)
    with pytest.raises(CheckpointError, match="taken and skipped"):
        load_towers(model(), sources, skip=(*SKIP, "contrastive/vision/.*"))


def test_a_skip_row_that_names_nothing(sources):
    with pytest.raises(
        CheckpointError, match=r"Rows of `skip` name no weight of the towers: \['contrastive/txt/"
    ):
        load_towers(model(), sources, skip=(*SKIP, "contrastive/txt/.*"))


def test_frozen_record(exports):
    record = frozen_record(exports["lm"].parent, "lm", "flamingo/lm")
    assert record == {
        "path": str(exports["lm"]),
        "hash": read_card(exports["lm"])[1]["content_hash"],
        "source": "lm",
        "target": "flamingo/lm",
    }
