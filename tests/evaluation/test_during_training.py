"""Evaluation during training: what the contrastive stage measures.

And what a stage cannot measure.
"""

import functools

import jax
import pytest

from flamingo_jax.core import paths
from flamingo_jax.core.config import ConfigError, from_dict
from flamingo_jax.core.processes import Cluster
from flamingo_jax.evaluation import during_training
from flamingo_jax.evaluation.benchmarks.contrastive_task import RECALLS
from flamingo_jax.evaluation.config import EvaluateConfig
from flamingo_jax.evaluation.run import run
from flamingo_jax.evaluation.task import TaskError
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.sharding.mesh import make_mesh
from flamingo_jax.tokenizers.load import load_tokenizer
from flamingo_jax.training import logs
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.run import compile as compile_run
from flamingo_jax.training.run import train
from tests.training import small

TASKS = ("world_retrieval", "world_zero_shot")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small.make_world(tmp_path_factory.mktemp("world"))


def config_of(stage, world, *tasks):
    config = small.with_world(small.get_config(stage), world)
    config.evaluate.update(every=3, tasks=tasks, n=32, data={"world": str(world)})
    return from_dict(TrainConfig, config)


@pytest.fixture(scope="module")
def went_on():
    """What `go_on` was called for in the run of `workdir`."""
    return []


@pytest.fixture(scope="module")
def workdir(world, went_on, tmp_path_factory):
    """A contrastive run of six steps, evaluated after three steps and at the end."""
    directory = tmp_path_factory.mktemp("run")
    config = config_of("contrastive", world, *TASKS)
    go_on = lambda: went_on.append("a task")
    evaluation = functools.partial(during_training.evaluation, go_on=go_on)
    train(config, directory, evaluation=evaluation, devices=jax.devices()[:1])
    return directory


def test_it_is_measured_as_often_as_was_asked(workdir):
    found = [
        line
        for line in logs.read(workdir / "metrics.jsonl")
        if any(name.startswith("evaluate/") for name in line)
    ]
    assert [line["step"] for line in found] == [3, 6]
    names = {f"evaluate/world_retrieval/0/{metric}" for metric in RECALLS}
    names |= {f"evaluate/world_zero_shot/0/{metric}" for metric in ("top1", "top5")}
    assert all({name for name in line if name.startswith("evaluate/")} == names for line in found)


def test_it_may_be_given_up_after_each_task(workdir, went_on):
    assert went_on == ["a task"] * 4


def test_evaluate_gives_what_the_hook_gave(workdir, world, tmp_path, capsys):
    """`evaluate` gives the export of the last step the same numbers for the same seed and n.

    It writes the report, too.
    """
    settings = {
        "n": 32,
        "seed": 1,
        "data": {"world": str(world)},
        "inference": InferenceConfig(images_per_pass=32),
    }
    run(
        EvaluateConfig(tasks=TASKS, **settings),
        str(workdir / "export"),
        str(tmp_path),
        Cluster("off"),
    )
    rows = paths.read_json(tmp_path / "results.json")
    found = {f"evaluate/{row['task']}/{row['shots']}/{row['metric']}": row["value"] for row in rows}
    last = [line for line in logs.read(workdir / "metrics.jsonl") if line["step"] == 6]
    assert found == {
        name: value for line in last for name, value in line.items() if name.startswith("evaluate/")
    }
    assert {(row["decoding"], row["n"], row["step"]) for row in rows} == {("cosine", 32, 6)}
    assert {row["ensemble"] for row in rows if row["task"] == "world_zero_shot"} == {2}
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 64
    assert (tmp_path / "losses.png").exists() and list(
        (tmp_path / "features").rglob("embeddings.npy")
    )
    assert (
        "i2t R@1" in (tmp_path / "table.md").read_text() and "t2i R@10" in capsys.readouterr().out
    )


def test_tasks_of_two_kinds_are_refused(world, tmp_path):
    config = EvaluateConfig(tasks=("world_retrieval", "format"), data={"world": str(world)})
    with pytest.raises(
        ValueError,
        match="'world_retrieval' compares embeddings .* 'format' prompts .* Leave one of them out",
    ):
        run(config, "nowhere", str(tmp_path), Cluster("off"))


@pytest.mark.parametrize(
    ("stage", "task", "message"),
    [
        ("language_model", "vqav2", "'vqav2', got none: pass --config.evaluate.data.vqav2=DIR"),
        ("contrastive", "format", "'format', and the contrastive stage answers no prompts"),
        (
            "language_model",
            "world_retrieval",
            "'world_retrieval', which compares .* language_model stage has no text",
        ),
    ],
)
def test_a_stage_says_what_it_cannot_measure(world, stage, task, message):
    tokenizer = load_tokenizer(world / "tokenizer", ())
    config = config_of(stage, world, task).resolved(tokenizer.vocab_size)
    run = compile_run(config, make_mesh(config.mesh, jax.devices()[:1]))
    with pytest.raises((ConfigError, TaskError), match=message):
        during_training.evaluation(run, tokenizer)
