"""checkpoint.export: exports are complete or absent; `open_checkpoint` opens exports and runs."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flamingo_jax.checkpoint import arrays, manifest
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.card import read_card
from flamingo_jax.checkpoint.export import export, open_checkpoint
from flamingo_jax.checkpoint.partial import frozen_record
from flamingo_jax.checkpoint.store import Store
from flamingo_jax.core import paths, trees

LM = {
    "lm/embed": {"w": np.arange(32, dtype=np.float32).reshape(8, 4)},
    "lm/layers/attention/query": {
        "w": np.linspace(-1, 1, 2 * 4 * 4, dtype=np.float32).reshape(2, 4, 4)
    },
}
XATTN = {
    "flamingo/xattn/query": {"w": jnp.ones((4, 4))},
    "flamingo/new_tokens": {"w": jnp.full((1, 4), 0.5)},
}
MODEL = {"lm": {"width": 4, "vocab_size": 8}, "new_tokens": ["<EOC>", "<image>"]}


def export_lm(directory, params=LM, **changes):
    tokenizer = paths.write_atomically(directory.parent / "made" / "tokenizer.model", b"pieces")
    keywords = {"kind": "language_model", "config": MODEL, "tokenizer": tokenizer, "step": 7}
    return export(directory, params, preprocessing={"image_size": 32}, **(keywords | changes))


def assert_same(got, expected):
    got, expected = trees.flatten(got), trees.flatten(expected)
    assert got.keys() == expected.keys()
    for path, leaf in expected.items():
        assert got[path].dtype == leaf.dtype
        np.testing.assert_array_equal(np.asarray(got[path]), np.asarray(leaf))


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    """An export of a language model, which tests must not change."""
    return export_lm(tmp_path_factory.mktemp("lm") / "export")


@pytest.fixture
def copy_of_lm(lm, tmp_path):
    """A copy of `lm`, which tests may damage."""
    return shutil.copytree(lm, tmp_path / "own")


@pytest.fixture(scope="module")
def run(lm, tmp_path_factory):
    """A flamingo run with the steps 1 and 2; its frozen tower is the export `lm`."""
    workdir = tmp_path_factory.mktemp("flamingo")
    config = {
        "stage": "flamingo",
        "model": MODEL,
        "data": {"tokenizer": str(lm / "tokenizer.model"), "image_size": 32},
        "frozen": {"lm": frozen_record(lm, "lm", "flamingo/lm")},
    }
    with Store(workdir, config) as store:
        for step in (1, 2):
            trainable = jax.tree.map(lambda x, by=step: x * by, XATTN)
            state = {
                "trainable": trainable,
                "opt_state": {"mu": trainable},
                "step": jnp.int32(step),
            }
            store.save(step, state, {"pages": step})
    return workdir


def flamingo_params(step):
    lm = {f"flamingo/{module}": weights for module, weights in LM.items()}
    return trees.merge(lm, jax.tree.map(lambda x: x * step, XATTN))


def test_round_trip(lm):
    opened = open_checkpoint(lm)
    assert_same(opened.params, LM)
    assert (opened.kind, opened.step, opened.path) == ("language_model", 7, lm)
    assert opened.model_config == MODEL
    assert opened.new_tokens == ("<EOC>", "<image>")
    assert opened.preprocessing == {"image_size": 32}
    assert opened.tokenizer == lm / "tokenizer.model" and opened.tokenizer.read_bytes() == b"pieces"
    assert not [p for p in lm.parent.iterdir() if "tmp" in p.name]


def test_relative_paths(lm, run, monkeypatch):
    monkeypatch.chdir(lm.parent)
    assert_same(open_checkpoint("export").params, LM)
    monkeypatch.chdir(run)
    opened = open_checkpoint("checkpoints/1")
    assert_same(opened.params, flamingo_params(1))
    # the path is not made absolute, so that a report contains no path of this machine
    assert str(opened.path) == "checkpoints/1"
    assert_same(open_checkpoint(".").params, flamingo_params(2))
    monkeypatch.chdir(run / "checkpoints" / "1")
    assert_same(open_checkpoint(".").params, flamingo_params(1))


def test_model_json(lm):
    card = read_card(lm)[1]
    assert card["parameters"] == 8 * 4 + 2 * 4 * 4
    assert card["created_by"].startswith("flamingo_jax ")
    assert card["content_hash"] == trees.content_hash(LM)


def test_the_hash_depends_on_the_weights_alone(lm, tmp_path):
    again = export_lm(tmp_path / "again", jax.tree.map(jnp.asarray, LM), step=8)
    other = export_lm(tmp_path / "other", LM | {"lm/embed": {"w": LM["lm/embed"]["w"] + 1}})
    recorded = read_card(lm)[1]["content_hash"]
    assert read_card(again)[1]["content_hash"] == recorded
    assert read_card(other)[1]["content_hash"] != recorded


def test_the_hash_read_back_from_disk_is_the_same(lm):
    """A cluster computes the hash so, because no process has all weights."""
    stored = {
        name: arrays.read_here(lm / "weights", name) for name in arrays.describe(lm / "weights")
    }
    assert trees.content_hash(trees.unflatten(stored)) == trees.content_hash(LM)


def test_dtypes_are_kept_and_sharded_weights_come_together(tmp_path):
    mesh = jax.make_mesh((1, 2, 4), ("replica", "data", "model"), axis_types=(AxisType.Auto,) * 3)
    split = NamedSharding(mesh, PartitionSpec("data", "model"))
    params = {
        "lm": {
            "a": jnp.arange(64, dtype=jnp.bfloat16).reshape(8, 8),
            "b": np.arange(3, dtype=np.int32),
        }
    }
    sharded = {"lm": {"a": jax.device_put(params["lm"]["a"], split), "b": params["lm"]["b"]}}
    opened = open_checkpoint(export_lm(tmp_path / "export", sharded))
    assert_same(opened.params, params)


def test_placement_decides_dtype_and_sharding(lm, run):
    mesh = jax.make_mesh((1, 2, 4), ("replica", "data", "model"), axis_types=(AxisType.Auto,) * 3)
    split = NamedSharding(mesh, PartitionSpec(None, "model"))

    def place(path, stored):
        assert path in trees.flatten(flamingo_params(1) | LM)
        return jax.ShapeDtypeStruct(stored.shape, jnp.bfloat16, sharding=split)

    expected = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), flamingo_params(2))
    for opened, params in (
        (open_checkpoint(lm, placement=place), LM),
        (open_checkpoint(run, placement=place), expected),
    ):
        assert_same(opened.params, jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params))
        assert all(leaf.sharding == split for leaf in jax.tree.leaves(opened.params))


def test_an_export_replaces_the_one_before(tmp_path):
    export_lm(tmp_path / "export", step=1)
    paths.write_atomically(tmp_path / "export" / "stray", "x")
    opened = open_checkpoint(
        export_lm(tmp_path / "export", {"lm": {"w": np.ones(3, np.float32)}}, step=2)
    )
    assert opened.step == 2
    assert_same(opened.params, {"lm": {"w": np.ones(3, np.float32)}})
    assert sorted(p.name for p in (tmp_path / "export").iterdir()) == [
        "manifest.json",
        "model.json",
        "tokenizer.model",
        "weights",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export", "made"]


def test_the_model_card_of_the_one_before_is_kept(tmp_path):
    """A person may have written in it."""
    directory = export_lm(tmp_path / "export")
    (directory / "MODEL_CARD.md").write_text("mine")
    export_lm(directory, step=8)
    assert (directory / "MODEL_CARD.md").read_text() == "mine"
    assert read_card(directory)[1]["step"] == 8


def test_an_export_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    export_lm(tmp_path / "export", step=1)

    def full(path, value):
        raise paths.PathError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(paths, "write_json", full)
        with pytest.raises(paths.PathError, match="No space left"):
            export_lm(tmp_path / "export", step=2)
    assert open_checkpoint(tmp_path / "export").step == 1
    # the files of the failed export do not matter
    assert open_checkpoint(export_lm(tmp_path / "export", step=3)).step == 3


def test_on_an_object_store_model_json_goes_first_away_and_comes_last(tmp_path, monkeypatch):
    """A directory cannot be renamed there, so it is written in place, and is no export then."""
    monkeypatch.setattr(paths, "is_local", lambda path: False)
    export_lm(tmp_path / "export", step=1)
    there = []
    write = paths.write_atomically

    def full(path, content):
        if path.name == "model.json":
            there.extend(sorted(p.name for p in (tmp_path / "export").iterdir()))
            raise paths.PathError("No space left on device")
        return write(path, content)

    monkeypatch.setattr(paths, "write_atomically", full)
    with pytest.raises(paths.PathError, match="No space left"):
        export_lm(tmp_path / "export", step=2)
    assert there == ["manifest.json", "tokenizer.model", "weights"]
    with pytest.raises(CheckpointError, match="not a complete one"):
        open_checkpoint(tmp_path / "export")
    monkeypatch.setattr(paths, "write_atomically", write)
    assert open_checkpoint(export_lm(tmp_path / "export", step=3)).step == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export", "made"]


def test_a_model_without_text_has_no_tokenizer(tmp_path):
    config = {"vision": {}}
    opened = open_checkpoint(
        export_lm(tmp_path / "export", kind="contrastive", config=config, tokenizer=None)
    )
    assert opened.tokenizer is None and opened.new_tokens == ()


def test_bad_exports(tmp_path):
    with pytest.raises(
        CheckpointError, match="kind 'lm'; expected one of language_model, contrastive, flamingo"
    ):
        export_lm(tmp_path / "export", kind="lm")
    with pytest.raises(CheckpointError, match="There is no tokenizer at"):
        export_lm(tmp_path / "export", tokenizer=tmp_path / "none")
    with pytest.raises(CheckpointError, match="'lm/w' has zero size"):
        export_lm(tmp_path / "export", {"lm": {"w": np.ones((0, 2), np.float32)}})
    with pytest.raises(
        CheckpointError, match="'lm/w' is float64, which JAX would read back as float32"
    ):
        export_lm(tmp_path / "export", {"lm": {"w": np.ones(2)}})
    with pytest.raises(paths.PathError, match="Give a writable place"):
        export(
            "/proc/nowhere",
            LM,
            kind="flamingo",
            config={},
            tokenizer=None,
            preprocessing={},
            step=0,
        )
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    "which, step", [(".", 2), ("checkpoints/1", 1), ("checkpoints/2", 2), ("checkpoints/2/", 2)]
)
def test_a_run_opens_with_its_frozen_tower_and_without_optimizer_state(
    run, lm, which, step, monkeypatch
):
    read = []
    original = arrays.read
    monkeypatch.setattr(
        arrays, "read", lambda directory, like: read.extend(like) or original(directory, like)
    )
    opened = open_checkpoint(f"{run}/{which}")
    assert_same(opened.params, flamingo_params(step))
    assert (opened.kind, opened.step, opened.path) == (
        "flamingo",
        step,
        run / "checkpoints" / str(step),
    )
    assert opened.model_config == MODEL and opened.preprocessing == {"image_size": 32}
    assert opened.tokenizer == lm / "tokenizer.model"
    assert sorted(read) == sorted(
        [f"trainable/{path}" for path in trees.flatten(XATTN)] + list(trees.flatten(LM))
    )


def test_a_workdir_opens_its_export_only_without_steps(run, lm, tmp_path):
    workdir = paths.Path(shutil.copytree(run, tmp_path / "run"))
    shutil.copytree(lm, workdir / "export")
    assert open_checkpoint(workdir).kind == "flamingo"
    (workdir / "checkpoints").rmtree()
    assert open_checkpoint(workdir).path == workdir / "export"


def test_a_weight_of_the_tower_that_was_trained_is_the_trained_one(lm, tmp_path):
    trained = {"flamingo/lm/embed": {"w": jnp.zeros((8, 4))}}
    config = {"stage": "flamingo", "model": MODEL, "data": {"tokenizer": str(lm), "image_size": 32}}
    with Store(
        tmp_path, config | {"frozen": {"lm": frozen_record(lm, "lm", "flamingo/lm")}}
    ) as store:
        store.save(1, {"trainable": trained, "step": jnp.int32(1)}, {})
    params = trees.flatten(open_checkpoint(tmp_path).params)
    assert params.keys() == {f"flamingo/{path}" for path in trees.flatten(LM)}
    assert not np.any(params["flamingo/lm/embed/w"])


def test_what_is_no_checkpoint(tmp_path):
    expected = (
        "Expected an export, a WORKDIR with checkpoints/ or export/, or WORKDIR/checkpoints/STEP"
    )
    with pytest.raises(CheckpointError, match=f"no such directory. {expected}"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(
        CheckpointError, match=f"is not a checkpoint, or not a complete one. {expected}"
    ):
        open_checkpoint(tmp_path)
    (tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="not a complete one"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no complete checkpoint of step 5; it holds none"):
        open_checkpoint(tmp_path / "checkpoints" / "5")
    with pytest.raises(
        CheckpointError, match=r"There is no export at .* Give the directory of a finished stage"
    ):
        read_card(tmp_path)


def test_a_damaged_model_json(copy_of_lm):
    card = copy_of_lm / "model.json"
    text = card.read_text()
    card.write_text(text[:30])
    with pytest.raises(CheckpointError, match=r"is damaged: .*model\.json is not valid JSON"):
        open_checkpoint(copy_of_lm)
    card.write_text(json.dumps({"kind": "flamingo"}))
    with pytest.raises(
        CheckpointError, match=r"model\.json lacks config, content_hash, preprocessing, step"
    ):
        open_checkpoint(copy_of_lm)


@pytest.mark.parametrize("damage", ["cut", "no file", "no weights", "no list"])
def test_damaged_weights(copy_of_lm, damage):
    if damage == "no weights":
        shutil.rmtree(copy_of_lm / "weights")
    elif damage == "no list":
        (copy_of_lm / "weights" / "_METADATA").write_text("{")
    for file in (copy_of_lm / "weights").rglob("d/*"):
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:50])
        elif damage == "no file":
            file.unlink()
    with pytest.raises(CheckpointError, match=r"export .* is damaged: weights/.*: (missing|cut)"):
        open_checkpoint(copy_of_lm)
    as_of_an_older_version(copy_of_lm)
    with pytest.raises(CheckpointError, match=r"damaged or incomplete|There are no arrays"):
        open_checkpoint(copy_of_lm)


def as_of_an_older_version(export):
    """Removes what exports of version 0.4.0 did not have."""
    (export / "manifest.json").unlink()
    card = json.loads((export / "model.json").read_text())
    del card["manifest"]
    (export / "model.json").write_text(json.dumps(card))


def test_other_weights_than_the_hash_says(copy_of_lm):
    arrays.write(copy_of_lm / "weights", trees.flatten(jax.tree.map(lambda x: x + 1, LM)))
    as_of_an_older_version(copy_of_lm)
    with pytest.raises(CheckpointError, match="were changed since it was made: got hash"):
        open_checkpoint(copy_of_lm)


def test_a_missing_tokenizer(copy_of_lm, lm):
    (copy_of_lm / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"export .* is damaged: tokenizer.model: missing"):
        open_checkpoint(copy_of_lm)
    assert open_checkpoint(copy_of_lm, tokenizer=lm).tokenizer == lm / "tokenizer.model"


def test_a_tower_that_moved(run, lm, tmp_path):
    workdir = paths.Path(shutil.copytree(run, tmp_path / "run"))
    elsewhere = shutil.copytree(lm, tmp_path / "elsewhere")
    config = workdir / "checkpoints" / "2" / "config" / "metadata"
    config.write_text(config.read_text().replace(str(lm), str(tmp_path / "gone")))
    step = workdir / "checkpoints" / "2"
    manifest.write(step, manifest.entries(step, manifest.files(step)))
    with pytest.raises(
        CheckpointError, match=r"Tower 'lm' of .*gone.*\{'lm': PATH\} as .towers. of"
    ):
        open_checkpoint(workdir)
    opened = open_checkpoint(workdir, {"lm": elsewhere, "vision": None}, tokenizer=elsewhere)
    assert_same(opened.params, flamingo_params(2))


def test_another_tower_is_refused(run, tmp_path):
    other = export_lm(tmp_path / "other", jax.tree.map(lambda x: x + 1, LM))
    with pytest.raises(
        CheckpointError,
        match=r"is not the one that .* was trained with: got hash .*towers\.lm=PATH",
    ):
        open_checkpoint(run, {"lm": other})


def test_towers_that_have_no_place(run, lm):
    with pytest.raises(CheckpointError, match=r"has no towers \['vision'\]; it has \['lm'\]"):
        open_checkpoint(run, {"vision": lm})
    with pytest.raises(CheckpointError, match="is self-contained"):
        open_checkpoint(lm, {"lm": lm})
