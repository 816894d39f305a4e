"""A whole evaluation in this process.

RICES, the journal, the report, hidden answers and embeddings, as the command line has them.
"""

import dataclasses
import functools
import json
import shutil

import PIL.Image
import pytest

from flamingo_jax.core import agreement
from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.paths import PathError, only_writer
from flamingo_jax.core.processes import Cluster
from flamingo_jax.evaluation import few_shot, registry
from flamingo_jax.evaluation.config import EvaluateConfig
from flamingo_jax.evaluation.metrics.ranking import RANKING
from flamingo_jax.evaluation.run import run
from flamingo_jax.evaluation.task import TaskError
from flamingo_jax.sharding.mesh import MeshConfig
from tests.evaluation.in_memory import Colours
from tests.evaluation.test_programs import write_export
from tests.inference import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    return str(write_export(base / "exports" / "run", "flamingo", base))


@pytest.fixture
def config(monkeypatch):

    ranked = Colours(name="ranked_colours", metrics=(RANKING,), num_test=6)
    hidden = Colours(name="hidden_colours", hidden=True, num_test=6)
    for benchmark in (ranked, hidden):
        monkeypatch.setitem(
            registry.TASKS, benchmark.name, functools.partial(few_shot.make, benchmark=benchmark)
        )
    inference = dataclasses.replace(tiny.CONFIG, max_new_tokens=3)
    data = {"ranked_colours": "here", "hidden_colours": "here"}
    return EvaluateConfig(
        tasks=("ranked_colours",),
        shots=(2,),
        n=0,
        seed=1,
        batch_size=8,
        data=data,
        inference=inference,
    )


def test_rices_with_an_ensemble(checkpoint, config, tmp_path, capsys):
    config = dataclasses.replace(config, selection="rices", ensemble=2, num_support=7)
    run(config, checkpoint, str(tmp_path), Cluster("off"))
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert (row["selection"], row["ensemble"], row["split"], row["shots"], row["n"]) == (
        "rices",
        2,
        "test",
        2,
        6,
    )
    assert (row["task"], row["metric"], row["decoding"]) == (
        "ranked_colours",
        "ranking",
        "log_likelihood",
    )
    assert "ranked_colours" in capsys.readouterr().out
    assert list((tmp_path / "features").rglob("embeddings.npy"))
    journal = (tmp_path / "predictions" / "ranked_colours-2.jsonl").read_bytes()
    assert len(journal.splitlines()) == 1 + 6
    predictions = (tmp_path / "predictions.jsonl").read_bytes()
    run(config, checkpoint, str(tmp_path), Cluster("off"))
    assert (tmp_path / "predictions.jsonl").read_bytes() == predictions
    assert (tmp_path / "predictions" / "ranked_colours-2.jsonl").read_bytes() == journal
    assert "replaces" not in capsys.readouterr().out
    (tmp_path / "results.json").write_text(json.dumps([{**row, "task": "others"}]))
    run(config, checkpoint, str(tmp_path), Cluster("off"))
    replaced = "results.json had results of others, which this run replaces. All answers are kept"
    assert replaced in capsys.readouterr().out
    (tmp_path / "results.json").write_text("[3]")
    run(config, checkpoint, str(tmp_path), Cluster("off"))
    assert "results.json is damaged, and is replaced." in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text()) == [row]


def test_where_answers_are_hidden_a_submission_is_written(checkpoint, config, tmp_path, capsys):
    run(
        dataclasses.replace(config, tasks=("hidden_colours",)),
        checkpoint,
        str(tmp_path),
        Cluster("off"),
    )
    submission = json.loads((tmp_path / "submissions" / "hidden_colours-2.json").read_text())
    assert [sorted(entry) for entry in submission] == [["answer", "question_id"]] * 7
    assert sorted(entry["question_id"] for entry in submission) == list(range(7))
    # The server expects this question too, which was not asked.
    assert submission[-1] == {"question_id": 6, "answer": ""}
    assert json.loads((tmp_path / "results.json").read_text()) == []
    assert "hidden_colours-2.json is for the server" in capsys.readouterr().out


def test_an_output_has_one_writer(config, tmp_path):
    """Before anything is loaded."""
    with only_writer(tmp_path), pytest.raises(PathError, match="Another run writes to"):
        run(config, "nowhere", str(tmp_path), Cluster("off"))


@pytest.mark.parametrize("selection", ["random", "rices"])
def test_what_a_later_task_lacks_is_an_error_before_anything_is_loaded(config, selection, tmp_path):
    tasks, data = ("ranked_colours", "coco"), {**config.data, "coco": str(tmp_path / "coco")}
    config = dataclasses.replace(config, tasks=tasks, data=data, selection=selection)
    with pytest.raises(TaskError, match="coco"):
        run(config, "nowhere", str(tmp_path), Cluster("off"))


def test_a_world_that_is_missing_is_an_error_before_anything_is_loaded(config, tmp_path):
    data = {**config.data, "world": str(tmp_path / "nothing")}
    config = dataclasses.replace(config, tasks=("ranked_colours", "bind2"), data=data)
    with pytest.raises(FileNotFoundError, match="nothing"):
        run(config, "nowhere", str(tmp_path), Cluster("off"))


def test_processes_that_disagree_end_before_anything_is_loaded(
    checkpoint, config, tmp_path, monkeypatch
):
    """The config and the content of the checkpoint are compared; it may be at another place."""
    compared = []

    def check(facts):
        compared.append(facts)
        raise agreement.AgreementError

    monkeypatch.setattr(agreement, "check", check)
    cluster = Cluster("off")
    cluster.count = 2
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    step = tmp_path / "step"
    other = write_export(step, "flamingo", tmp_path)
    card = json.loads((other / "model.json").read_text()) | {"step": 3}
    (other / "manifest.json").unlink(missing_ok=True)
    del card["manifest"]
    (other / "model.json").write_text(json.dumps(card))
    for place in (checkpoint, copy, other):
        with pytest.raises(agreement.AgreementError):
            run(config, str(place), str(tmp_path / "out"), cluster)
    changed = dataclasses.replace(config, seed=2)
    with pytest.raises(agreement.AgreementError):
        run(changed, checkpoint, str(tmp_path / "out"), cluster)
    first, moved, another, seed = compared
    assert first == moved
    differences = lambda theirs: agreement.differences([first, theirs], ["a", "b"])
    assert any("checkpoint.step is 3 on process 1 (b)" in line for line in differences(another))
    assert any("checkpoint.files is [" in line for line in differences(another))
    assert differences(seed) == ["config.seed is 2 on process 1 (b), 1 on process 0 (a)"]


def test_a_task_or_a_number_of_shots_twice_is_refused():
    with pytest.raises(ConfigError, match="tasks has 'coco' twice"):
        EvaluateConfig(tasks=("coco", "okvqa", "coco"))
    with pytest.raises(ConfigError, match=r"shots is \(4, 4\); expected each number once"):
        EvaluateConfig(tasks=("coco",), shots=(4, 4))


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"zero": False}, "mesh.zero=False has no effect on an evaluation"),
        ({"sequence_parallel": False}, "mesh.sequence_parallel=False has no effect"),
        ({"model_chips": (4, 4)}, "a block of 16 chips, and mesh.model is 1"),
    ],
)
def test_fields_of_the_mesh_without_effect_are_refused(mesh, message):
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig(mesh=MeshConfig(**mesh))


def test_embed(checkpoint, config, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    PIL.Image.fromarray(tiny.image(0)).save(tmp_path / "in" / "a.png")
    run(
        dataclasses.replace(config, tasks=("embed",), data={"embed": str(tmp_path / "in")}),
        checkpoint,
        str(tmp_path / "out"),
        Cluster("off"),
    )
    assert (
        tmp_path / "out" / "keys.txt"
    ).read_text() == "a.png\n" and "1 images of" in capsys.readouterr().out
