"""The search of fine-tuning, with the real training and evaluation, on a few small pictures."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from etils import epath

from data_pipelines import run as pipelines
from data_pipelines.benchmarks.records import BenchmarkRequest
from data_pipelines.on_beam import Execution
from flamingo_jax.core.config import from_dict
from flamingo_jax.core.paths import read_json
from flamingo_jax.core.processes import Cluster
from flamingo_jax.data.config import DatasetConfig
from flamingo_jax.evaluation import during_training, few_shot, fine_tuning, registry
from flamingo_jax.evaluation.config import FineTuneConfig
from flamingo_jax.training import logs
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.run import train
from tests.evaluation.fixtures.easy_vqa import make_questions
from tests.training import small

SUPPORTS = 4


@pytest.mark.slow
def test_a_search_from_official_files_to_table_2(tmp_path, monkeypatch):
    few = dataclasses.replace(registry.BENCHMARKS["easy_vqa"], validation_queries=4)
    monkeypatch.setitem(registry.BENCHMARKS, "easy_vqa", few)
    factory = functools.partial(few_shot.make, benchmark=few)
    monkeypatch.setitem(registry.TASKS, "easy_vqa", factory)
    data = tmp_path / "easy_vqa"
    make_questions(epath.Path(data), train=24, test=2)
    request = BenchmarkRequest(input=str(data), task="easy_vqa", num_support=SUPPORTS)
    pipelines.make("benchmark", request, str(tmp_path / "records"), Execution(num_workers=1))

    world = small.make_world(tmp_path / "world")
    initial = small.make_export(
        tmp_path / "flamingo", world, "flamingo", rng=np.random.default_rng(1)
    )
    described = small.with_world(small.get_config("flamingo"), world)
    described.update(steps=4, initial=str(initial), unfrozen=("vision",))
    described.towers.update(lm=None, vision=None)
    described.evaluate.update(
        n=0, num_support=SUPPORTS, decoding="greedy", data={"easy_vqa": str(data)}
    )
    run = from_dict(TrainConfig, described)
    answers = DatasetConfig(
        "pairs", str(tmp_path / "records"), batch_size=4, length=16, loss_on="answers"
    )
    run = dataclasses.replace(
        run, data=dataclasses.replace(run.data, datasets={"answers": answers})
    )
    grid = {"rate": {name: f"optimizer.learning_rate={name}" for name in ("1e-2", "1e-3")}}
    config = FineTuneConfig("easy_vqa", run, grid, rungs=(0.5, 1.0))

    workdir, lines = tmp_path / "search", []
    real = functools.partial(
        train, evaluation=during_training.evaluation, devices=jax.devices()[:1]
    )
    best = fine_tuning.search(config, workdir, train=real, report=lines.append)
    known = read_json(workdir / "grid.json")
    assert [list(known[f"rate_{name}"]) for name in ("1e-2", "1e-3")].count(["2"]) == 1
    assert list(known[best.name]) == ["2", "4"]
    steps = [line["step"] for line in logs.read(best.workdir / "metrics.jsonl") if "loss" in line]
    assert steps == [1, 2, 3, 4]  # the second part goes on from the first
    never = lambda config, workdir: pytest.fail("all runs are known")
    assert fine_tuning.search(config, workdir, train=never, report=lines.append) == best

    table = fine_tuning.test(config, best, workdir, Cluster("off"))
    (row,) = read_json(workdir / "report" / "results.json")
    assert (row["task"], row["shots"], row["n"]) == ("easy_vqa", 0, 8)
    assert row["num_text_examples"] == 0 and row["step"] == 4
    assert "82.0" in table  # of the published row
