"""`plan` from the user's side: JSON, tables, exit status, and one line for each mistake."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from flamingo_jax.core.config import ConfigError, from_dict
from flamingo_jax.data.config import DataConfig, DatasetConfig
from flamingo_jax.planning import planner, program, summary
from flamingo_jax.training import datasets_per_step
from flamingo_jax.training.config import TrainConfig
from tests.training import small

KEYS = set(
    "topology chips mesh hbm_capacity_bytes hbm_bytes parameters model_flops hardware_flops "
    "collectives compute_seconds communication_seconds exposed_communication_seconds step_seconds "
    "mfu fits".split()
)


def config(stage, **mesh):
    described = small.get_config(stage)
    described.mesh.update(mesh or {"data": 4})
    return from_dict(TrainConfig, described)


@pytest.fixture(scope="module")
def planned():
    return planner.make_plan(config("language_model"), "v4:2x2x1")


@pytest.mark.tpu_compiler
def test_json_has_the_keys_of_the_contract(planned):
    data = json.loads(json.dumps(summary.to_json(planned)))
    assert set(data) >= KEYS
    assert set(data["hbm_bytes"]) >= {"arguments", "temporaries", "total"}
    for row in data["collectives"]:
        assert set(row) >= {"kind", "axis", "bytes", "count", "overlapped"}
    assert data["fits"] is True
    assert (data["chips"], data["mesh"]) == (4, {"replica": 1, "data": 4, "model": 1})
    seconds = data["compute_seconds"] + data["exposed_communication_seconds"]
    assert data["step_seconds"] == pytest.approx(seconds)
    assert sum(data["parts"].values()) == pytest.approx(data["compute_seconds"])
    assert data["mfu"] == pytest.approx(data["model_flops"] / (data["step_seconds"] * 4 * 2.75e14))
    assert data["days"] == pytest.approx(6 * data["step_seconds"] / 86_400)
    assert "estimates" in data["times_are"]
    assert data["hbm_bytes"]["total"] < data["hbm_capacity_bytes"] == 32 << 30


@pytest.mark.tpu_compiler
def test_gradients_cross_the_data_axis(planned):
    """The gradient of every weight is reduced once, in one form or another."""
    rows = summary.to_json(planned)["collectives"]
    assert {row["axis"] for row in rows} == {"data"}
    weights = planned.program.parameters["total"]
    assert sum(row["bytes"] for row in rows) >= 2 * weights * 3 / 4


@pytest.mark.tpu_compiler
def test_text_says_what_the_numbers_are(planned):
    text = summary.to_text(planned)
    for word in ("v4-8", "weights", "HBM per chip", "capacity", "estimate", "MFU", "exposed"):
        assert word in text
    assert "Assumed: text: 32 real tokens" in text


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_programs_of_evaluation(name):
    prompts = program.Prompts(rows=4, shots=1, length=32, new_tokens=4)
    found = planner.make_plan(
        config("flamingo", data=2, model=2), "v4:2x2x1", program=name, prompts=prompts
    )
    data = summary.to_json(found)
    assert found.fits and data["days"] is None and data["step_seconds"] > 0
    assert ("vision" in data["parts"]) == (name == "prefill")
    assert (data["model_flops_by_part"]["vision"] > 0) == (name == "prefill")
    assert any("model" in row["axis"] for row in data["collectives"])


@pytest.mark.tpu_compiler
def test_what_does_not_fit_ends_with_status_3_and_names_the_largest_buffers(run_program, tmp_path):
    arguments = [
        "--config=tests/training/small.py:language_model",
        "--config.mesh.data=4",
        "--topology=v4:2x2x1",
        "--config.data.datasets.text.batch_size=262144",
        f"--json={tmp_path}/plan.json",
    ]
    done = run_program("-m", "flamingo_jax.plan", *arguments, status=3)
    assert "DOES NOT FIT" in done.stdout and "GiB" in done.stdout
    data = json.loads((tmp_path / "plan.json").read_text())
    assert (data["fits"], data["mfu"], data["step_seconds"]) == (False, None, None)
    sizes = [buffer["num_bytes"] for buffer in data["largest_buffers"]]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 1 << 30
    assert data["hbm_bytes"]["total"] > data["hbm_capacity_bytes"]


@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"topology": "v4:8x12x17"}, "The nearest"),
        ({"mesh.data": 3}, {}, "config.mesh"),
        ({"mesh.model": 8}, {}, "config.mesh"),
        ({"mesh.data": 1, "mesh.model": 4, "model.lm.num_heads": 2}, {}, "does not divide"),
        ({"data.datasets.text.batch_size": 6}, {}, "batch shards"),
        ({"data.datasets.text.chunks": 2}, {}, r"text.chunks is 2, and a data shard has 1 row"),
        ({}, {"fill": {"txt": program.RowContent(3.0, None)}}, "--fill names"),
        ({}, {"fill": {"text": program.RowContent(40.0, None)}}, "room for 32"),
        ({}, {"datasets": ["pages"]}, "--datasets names"),
        ({}, {"program": "decode", "prompts": program.Prompts(rows=3)}, "batch shards"),
    ],
)
def test_mistakes_are_found_before_anything_is_compiled(changes, options, message):
    described = small.get_config("language_model")
    described.mesh.data = 4
    described.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message) as error:
        planner.make_plan(from_dict(TrainConfig, described), **{"topology": "v4:2x2x1", **options})
    assert "\n" not in str(error.value)


def test_fill_in_another_notation_is_an_error():
    with pytest.raises(ConfigError, match="NAME=TOKENS"):
        planner.parse_fill(["text"])


def test_a_mistake_ends_the_program_with_one_line(run_program):
    arguments = ["--config=tests/training/small.py:language_model", "--topology=v4:9x9x9"]
    done = run_program("-m", "flamingo_jax.plan", *arguments, status=1)
    assert len(done.stderr.splitlines()) == 1 and "no TPU slice 'v4:9x9x9'" in done.stderr
    assert not done.stdout


@pytest.mark.tpu_compiler
def test_contrastive_has_nothing_to_decode():
    with pytest.raises(ConfigError, match="nothing to decode"):
        planner.make_plan(config("contrastive"), "v4:2x2x1", program="decode")


def in_turn():
    """Returns the run of `planned` with its dataset under two names, in turn."""
    described = config("language_model")
    (dataset,) = described.data.datasets.values()
    data = dataclasses.replace(described.data, datasets={"first": dataset, "second": dataset})
    return dataclasses.replace(described, data=data, mixing="round_robin")


@pytest.mark.tpu_compiler
def test_a_round_of_round_robin_is_an_update_with_each_dataset(planned):
    one, both = summary.to_json(planned), planner.make_plan(in_turn(), "v4:2x2x1")
    found = summary.to_json(both)
    for key in ("step_seconds", "model_flops", "hardware_flops"):
        assert found[key] == pytest.approx(2 * one[key])
    for key in ("days", "mfu", "tokens_per_second", "hbm_bytes"):
        assert found[key] == pytest.approx(one[key])
    assert "a round of 2 updates" in summary.to_text(both)


def test_a_round_fills_datasets_that_it_has():
    rows = {"third": program.RowContent(3.0, None)}
    with pytest.raises(ConfigError, match=r"--fill names \['third'\]"):
        planner.make_plan(in_turn(), "v4:2x2x1", fill=rows)


@pytest.mark.parametrize(("attend", "kept"), [("last", 1), ("all", 4)])
def test_decoding_reads_the_keys_of_all_images_that_a_token_attends(attend, kept, mesh_of_one):
    """Prompts of 3 shots have 4 images; each cross-attention layer counts as many keys."""
    described = small.get_config("flamingo")
    described.model.xattn.attend = attend
    run = from_dict(TrainConfig, described)
    prompts = program.Prompts(rows=2, shots=3, length=32, new_tokens=4)
    found = program.inference(run, mesh_of_one, "decode", prompts)
    media = found.lowered.in_avals[0][1]["media"]
    lm, model = described.model.lm, described.model
    layers = run.model.xattn.num_layers(lm.num_layers)
    heads, latents = model.xattn.num_heads or lm.num_heads, model.resampler.num_latents
    size = model.xattn.head_dim or lm.width // heads
    assert media["key"].shape == (layers, 2, kept, latents, heads, size)
    prompts = dataclasses.replace(prompts, shots=0)
    fewer = program.inference(run, mesh_of_one, "decode", prompts).needed.flops["xattn"]
    pair = 2 * layers * heads * size * 2
    assert found.needed.flops["xattn"] - fewer == 2 * latents * (kept - 1) * pair


@pytest.fixture
def mesh_of_one():
    from flamingo_jax.sharding.mesh import MeshConfig, make_mesh

    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.mark.parametrize("pool", [None, 5])
def test_abstract_batch_is_what_the_loader_makes(pool):
    """Shapes and dtypes are those of the training tests' batch, which has the loader's form."""
    made = small.batch(rows=4, length=24, images=3, seed=0, num_shards=2)
    dataset = DatasetConfig("interleaved", "", batch_size=4, length=24, max_images=3, pool=pool)
    abstract = program.abstract_batch(
        DataConfig("", small.SIZE, {"pages": dataset}), dataset, num_shards=2
    )
    shapes = jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), abstract)
    expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made)
    if pool:
        assert shapes.frames == ((10, 1, 32, 32, 3), np.uint8)
        assert shapes.frame_mask == ((10, 1), np.bool_)
    else:
        assert shapes == expected


def test_merged_batch_is_as_the_loader_merges():
    one, two = small.batch(4, 24, 3, seed=0), small.batch(8, 16, 1, seed=1)
    merged = datasets_per_step.merge({"a": one, "b": two}, {"a": 1.0, "b": 0.5})
    abstract = program._merge(
        [jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), b) for b in (one, two)]
    )
    assert jax.tree.map(lambda x: x.shape, merged) == jax.tree.map(lambda x: x.shape, abstract)


def test_fill():
    found = planner.parse_fill(["m3w=210:3.5", "align=12.4"])
    assert found == {"m3w": (210.0, 3.5), "align": (12.4, None)}


@pytest.mark.parametrize("wrong", [{"rows": -3}, {"shots": -1}, {"length": 0}, {"new_tokens": -1}])
def test_prompts_out_of_range(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ConfigError, match=f"{name} is {value}; expected a whole number"):
        program.Prompts(**wrong)
