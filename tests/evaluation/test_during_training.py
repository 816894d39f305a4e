"""Evaluation during training: what the contrastive stage measures.

And what a stage cannot measure.
"""

import dataclasses
import functools

import jax
import pytest

from flamingo_jax.core import paths
from flamingo_jax.core.config import ConfigError, from_dict
from flamingo_jax.core.processes import Cluster
from flamingo_jax.evaluation import during_training, registry
from flamingo_jax.evaluation.benchmarks.contrastive_task import RECALLS
from flamingo_jax.evaluation.config import EvaluateConfig
from flamingo_jax.evaluation.few_shot import FewShotTask
from flamingo_jax.evaluation.metrics import METRICS, MissingResourceError
from flamingo_jax.evaluation.run import run
from flamingo_jax.evaluation.task import TaskError
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.sharding.mesh import make_mesh
from flamingo_jax.tokenizers.load import load_tokenizer
from flamingo_jax.training import logs
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.run import compile as compile_run
from flamingo_jax.training.run import train
from tests.evaluation import in_memory
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


@pytest.fixture
def colours(monkeypatch):
    """Registers a benchmark in memory by its name; returns the function that does it."""

    def register(**fields):
        benchmark = in_memory.Colours(validation_queries=8, **fields)
        monkeypatch.setitem(registry.BENCHMARKS, benchmark.name, benchmark)
        monkeypatch.setitem(
            registry.TASKS, benchmark.name, lambda data, protocol: FewShotTask(benchmark, protocol)
        )

    return register


@pytest.fixture(scope="module")
def compiled(world):
    """A flamingo run and its tokenizer; nothing is compiled yet."""
    tokenizer = load_tokenizer(world / "tokenizer")
    config = config_of("flamingo", world, "format").resolved(tokenizer.vocab_size)
    return compile_run(config, make_mesh(config.mesh, jax.devices()[:1])), tokenizer


def asked(compiled, **fields):
    """Returns (tasks, inference) of each model that an evaluation makes."""
    run, tokenizer = compiled
    settings = dataclasses.replace(run.config.evaluate, **fields)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, evaluate=settings))
    found = []

    def evaluate_all(model, tasks, *, log):
        found.append((tasks, model))
        return [], []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(during_training, "evaluate_all", evaluate_all)
        patch.setattr(during_training, "Flamingo", lambda *args, config, **options: config)
        during_training.evaluation(run, tokenizer)({})
    return found


def test_a_benchmark_is_asked_as_in_the_paper(compiled, colours):
    """Validation queries and beam search; tasks of the world have neither."""
    colours()
    names = ("format", "colours", "bind2")
    (world, greedy), (benchmarks, beam) = asked(
        compiled, tasks=names, shots=(0, 2), n=4, num_support=10, text_examples=1
    )
    assert [each.name for each in (*world, *benchmarks)] == ["format", "bind2", "colours"]
    assert (greedy.decoding, beam.decoding, beam.beams) == ("greedy", "beam", 3)
    (task,) = benchmarks
    assert all(episode.query_id.startswith("train/") for episode in task.episodes(2))
    assert [len(task.episodes(shots)[0].support_ids) for shots in (0, 2)] == [1, 2]
    assert task.setting(0)["split"] == "validation, from train"
    ((_, one_way),) = asked(compiled, tasks=names, n=4, num_support=10, decoding="greedy")
    assert one_way.decoding == "greedy"


def test_what_cannot_be_asked_is_an_error_before_anything_is_compiled(compiled, colours):
    colours(hidden=True)
    asked(compiled, tasks=("colours",), n=4, num_support=10)  # the training split has answers
    with pytest.raises(ConfigError, match="'colours', and the right answers of its split test are"):
        asked(compiled, tasks=("colours",), n=4, split="test")
    with pytest.raises(TaskError, match="split=validation needs 2048 test supports"):
        asked(compiled, tasks=("colours",), n=4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": {"world": "/none"}}, "There is no dataset at /none/test_images"),
        ({"n": 10_000}, "'format': got n=10000; .* query pictures"),
        ({"shots": (500,)}, "There are only .* make a world with more, or take fewer shots"),
    ],
)
def test_what_a_world_lacks_is_an_error_before_anything_is_compiled(compiled, fields, message):
    with pytest.raises((TaskError, FileNotFoundError), match=message):
        asked(compiled, tasks=("format",), **fields)


def test_what_a_metric_lacks_is_an_error_before_anything_is_compiled(
    compiled, colours, monkeypatch
):
    def missing():
        raise MissingResourceError("exact_match needs a program")

    colours()
    needy = dataclasses.replace(METRICS["exact_match"], check=missing)
    monkeypatch.setitem(METRICS, "exact_match", needy)
    with pytest.raises(MissingResourceError, match="needs a program"):
        asked(compiled, tasks=("colours",), n=4, num_support=10)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("fields", "message"),
    [({"n": 10_000}, "got n=10000"), ({"data": {"world": "/none"}}, "/none/test_images")],
)
def test_a_contrastive_run_says_what_a_world_lacks(world, task, fields, message):
    tokenizer = load_tokenizer(world / "tokenizer", ())
    config = config_of("contrastive", world, task).resolved(tokenizer.vocab_size)
    config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, **fields))
    run = compile_run(config, make_mesh(config.mesh, jax.devices()[:1]))
    with pytest.raises((TaskError, FileNotFoundError), match=message):
        during_training.evaluation(run, tokenizer)
