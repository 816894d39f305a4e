"""Loggers by name: what the services are told, a user's own, and what never ends a run."""

import dataclasses
import importlib.util
import sys
import time
import types

import pytest

from flamingo_jax.core.config import ConfigError, FieldError, from_dict
from flamingo_jax.core.paths import Path
from flamingo_jax.training import logs
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.hooks import HooksConfig
from flamingo_jax.training.loggers import chosen
from tests.training import small
from tests.training.loggers import own_loggers

REPORT = {"loss": 1.5, "gates/dense": [0.0, 0.25]}
OWN = own_loggers.__name__


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A busy machine may take long to import what a logger needs."""
    monkeypatch.setattr(logs, "CLOSE_SECONDS", 600.0)


def log(path, *names, reports=1, step=0):
    """Writes reports to the loggers of a run in `path`; returns the lines for people."""
    said, config = [], from_dict(TrainConfig, small.get_config("language_model"))
    hooks = dataclasses.replace(config.hooks, loggers=names, tensorboard=True)
    config = dataclasses.replace(config, hooks=hooks)
    with logs.all_logs(
        Path(path),
        step,
        steps=8,
        title="x",
        others=lambda: chosen.sinks(config, Path(path), step, said.append),
        progress=False,
        report=said.append,
    ) as write:
        for i in range(reports):
            write(step + i + 1, REPORT)
    return said


def test_the_default_is_what_runs_had_before(tmp_path):
    assert HooksConfig().loggers == ("jsonl", "tensorboard")
    assert log(tmp_path, *HooksConfig().loggers) == []
    assert {each.name for each in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}


def test_metrics_jsonl_is_always_written(tmp_path):
    log(tmp_path, f"{OWN}:recorder")
    assert [row["step"] for row in logs.read(tmp_path / "metrics.jsonl")] == [1]
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("names", [("wandbs",), ("a:b:c",), ("module:",), (":function",)])
def test_an_unknown_name_is_refused_with_the_names(names):
    with pytest.raises(FieldError, match=r"jsonl, tensorboard, wandb, clearml, or MODULE:FUNCTION"):
        HooksConfig(loggers=names)


def test_a_name_twice_is_refused():
    with pytest.raises(FieldError, match="expected each name once"):
        HooksConfig(loggers=("jsonl", "wandb", "wandb"))


@pytest.mark.parametrize("name", ["wandb", "clearml"])
def test_a_missing_package_is_one_line_that_names_the_extra(name, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"pip install 'flamingo_jax\[{name}\]', or leave"):
        chosen.check(("jsonl", name))


def test_the_folder_that_wandb_makes_is_no_package(monkeypatch, tmp_path):
    (tmp_path / "wandb" / "offline-run-1").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match="the package wandb is not installed"):
        chosen.check(("wandb",))


@pytest.mark.parametrize("name", ["no_such_module:make", f"{OWN}:missing", f"{OWN}:MADE"])
def test_an_own_logger_that_is_none_is_refused(name):
    with pytest.raises(ConfigError, match=r"--config\.hooks\.loggers="):
        chosen.check((name,))


def test_an_own_logger_gets_the_run_and_its_reports(tmp_path):
    assert log(tmp_path, "jsonl", f"{OWN}:recorder", reports=3, step=4) == []
    (made,) = own_loggers.MADE
    assert made.written == [(5, REPORT), (6, REPORT), (7, REPORT)] and made.closed
    assert (made.run.name, made.run.restored_step) == ("small_language_model", 4)
    assert made.run.workdir == Path(tmp_path) and made.run.config["steps"] == made.run.steps == 6


@pytest.mark.parametrize(
    ("logger", "reason"),
    [
        ("Offline", "ConnectionError: no route to the service"),
        ("LosesAll", "OSError: quota of the service is used up"),
    ],
)
def test_a_logger_that_fails_is_a_line_and_a_count(tmp_path, logger, reason):
    name = f"{OWN}:{logger}"
    said = log(tmp_path, "jsonl", name, reports=3)
    assert said[-1] == f"{name}: 3 reports were not written: {reason}."
    assert len(said) <= 2  # and, where it is tried again, the warning when it failed first
    assert len(logs.read(tmp_path / "metrics.jsonl")) == 3


class Calls:
    """Stands in for a package: records each call; returns itself."""

    def __init__(self, **values):
        self.calls = []
        vars(self).update(values)

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self

        return call

    def named(self, name):
        return [(args, kwargs) for each, args, kwargs in self.calls if each == name]


def install(monkeypatch, name, module):
    spec = types.SimpleNamespace(origin=f"{name}.py")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: spec if n == name else find(n))
    monkeypatch.setitem(sys.modules, name, module)


def test_what_wandb_is_told(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    module = Calls(offline=True, dir="/runs/wandb/offline")
    install(monkeypatch, "wandb", module)
    assert log(tmp_path, "wandb") == ["wandb: this run is at /runs/wandb/offline."]
    log(tmp_path, "wandb", step=1)
    first, second = (kwargs for _, kwargs in module.named("init"))
    assert first["id"] == second["id"] and first["resume"] == "allow"  # one run, in two starts
    assert first["project"] == "flamingo_jax" and first["dir"] == str(tmp_path)
    assert first["config"]["model"]["lm"]["width"] == 16
    assert module.named("log")[1] == (
        ({"loss": 1.5, "gates/dense/0": 0.0, "gates/dense/1": 0.25, "step": 2},),
        {},
    )
    assert module.named("define_metric")[0] == (("*",), {"step_metric": "step"})
    assert len(module.named("finish")) == 2


def test_what_clearml_is_told(monkeypatch, tmp_path):
    task = Calls(id="abc", is_offline=lambda: False)
    install(monkeypatch, "clearml", types.SimpleNamespace(Task=task))
    log(tmp_path, "clearml")
    log(tmp_path, "clearml", step=1)
    first, second = (kwargs for _, kwargs in task.named("init"))
    assert (first["continue_last_task"], second["continue_last_task"]) == (False, "abc")
    assert [call for call in task.named("report_scalar") if call[1]["iteration"] == 2] == [
        (("loss", "loss", 1.5), {"iteration": 2}),
        (("gates/dense", "0", 0.0), {"iteration": 2}),
        (("gates/dense", "1", 0.25), {"iteration": 2}),
    ]
    assert len(task.named("close")) == 2 and task._report_subprocess_enabled is False


def test_wandb_itself_offline(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (said,) = log(tmp_path, "wandb", reports=3)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert said.startswith(f"wandb: this run is at {tmp_path}/wandb/offline-run-")
    end = time.monotonic() + 60  # a process of wandb's writes the file
    while b"gates/dense/1" not in file.read_bytes():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.filterwarnings("ignore")  # of what it imports, and that it forks
def test_clearml_itself_offline(monkeypatch, tmp_path):
    monkeypatch.setenv("CLEARML_OFFLINE_MODE", "1")  # it reads this when it is imported
    pytest.importorskip("clearml")
    monkeypatch.setenv("CLEARML_CACHE_DIR", str(tmp_path / "cache"))
    said = log(tmp_path, "clearml", reports=3)
    assert said[0].startswith("clearml: this run is at ")
