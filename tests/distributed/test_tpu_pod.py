"""Training on a pod of four workers, through launch/tpu_pod.sh.

Each worker is a process with its own home and working folder; workers share only the workdir.
gcloud is replaced (tests/launch/gcloud.py); the program, the cluster, the collectives and the
checkpoints are real. Runs in one and in two processes use `train` on other meshes of four devices.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

from flamingo_jax.checkpoint import arrays
from flamingo_jax.core.config import from_dict
from flamingo_jax.training import logs as metrics
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.run import train
from tests.conftest import BASE_XLA_FLAGS, ROOT
from tests.distributed.processes import run_processes
from tests.launch.pod import Pod
from tests.training import small

STEPS, SAVE_EVERY = 16, 4
PATIENCE = 240  # seconds that a run may take; much more than it takes
CONFIG = "tests/training/small.py:language_model"
RECORDS = [
    "--config.data.tokenizer=../records/tokenizer",
    "--config.data.datasets.text.path=../records/text",
]
SETTINGS = [
    f"--config.steps={STEPS}",
    f"--config.hooks.save_every={SAVE_EVERY}",
    "--config.hooks.keep=10",
    "--config.mesh.data=-1",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a world, in place of the bucket of records."""
    directory = tmp_path_factory.mktemp("pod")
    small.make_world(directory / "world")
    return directory


@pytest.fixture(scope="module")
def runs(place):
    """Two runs: one undisturbed, one in which a worker is killed.

    (the pod, the workdir of the first, the workdir of the second, the second's output)
    """
    pod, shared = Pod(place / "cloud"), place / "shared"
    shared.mkdir()
    (pod.state / "buckets" / "records").symlink_to(place / "world")
    pod.run("create", "--accelerator_type=v4-32", "--spot")

    def options(name):
        program = [f"--config={CONFIG}", *SETTINGS, *RECORDS, f"--workdir={shared / name}"]
        launcher = ["--watch", "--poll=1", "--mount=records:records", f"--shared={shared}"]
        return ["train", *launcher, "--", *program]

    pod.run(*options("whole"))
    with subprocess.Popen(
        pod.command(*options("killed")),
        env=pod.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as watcher:
        kill_when(pod, shared / "killed", step=SAVE_EVERY + 2, worker=2)
        said = watcher.communicate(timeout=PATIENCE)[0]
    assert watcher.returncode == 0, said[-4000:]
    yield pod, shared / "whole", shared / "killed", said
    pod.run("delete", "--quiet")


def kill_when(pod, workdir, *, step, worker):
    """Kills the Python of a worker as soon as the run has reported `step`."""
    deadline = time.monotonic() + PATIENCE
    while not (rows := metrics.read(workdir / "metrics.jsonl")) or rows[-1]["step"] < step:
        assert time.monotonic() < deadline, f"no step {step} in {PATIENCE} s"
        time.sleep(0.002)
    session = (pod.homes()[worker] / "flamingo_pod" / "pid").read_text().split()[0]
    found = subprocess.run(
        ["ps", "-o", "pid=,args=", "--sid", session], capture_output=True, text=True, check=True
    )
    (python,) = [
        line
        for line in found.stdout.splitlines()
        if "-m flamingo_jax.train" in line and "bash" not in line
    ]
    os.kill(int(python.split()[0]), signal.SIGKILL)


def reports(workdir):
    rows = metrics.read(pathlib.Path(workdir) / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "step_seconds"} for row in rows]


def test_a_killed_worker_leaves_no_trace_in_the_losses(runs):
    _, whole, killed, _ = runs
    assert [row["step"] for row in reports(whole)] == list(range(1, STEPS + 1))
    assert reports(killed) == reports(whole)
    states = [directory / "checkpoints" / str(STEPS) / "state" for directory in (whole, killed)]
    jax.tree.map(
        np.testing.assert_array_equal,
        *(arrays.read(state, arrays.describe(state)) for state in states),
    )


def test_the_run_really_was_broken_and_resumed(runs):
    pod, _, _, said = runs
    assert "the job is broken" in said and "worker 2: ended 137" in said
    first = (pod.homes()[0] / "flamingo_pod" / "log").read_text()
    (resumed,) = re.findall(r"resumes at step (\d+) of", first)
    assert 0 < int(resumed) < STEPS
    assert first.count("== ") == 3, "one start of the whole run, two of the killed one"


def test_one_process_speaks_for_all_and_each_has_its_own_folder(runs):
    pod = runs[0]
    logs = [(home / "flamingo_pod" / "log").read_text() for home in pod.homes()]
    starts = ["small_language_model starts" in log for log in logs]
    assert starts == [True, False, False, False]
    # Depending on the moment, a worker may not write why it failed.
    for worker, log in enumerate(logs):
        assert set(re.findall(r"\[process (\d) of 4\]", log)) <= {str(worker)}
    for home in pod.homes():
        assert (home / "flamingo_jax" / "flamingo_jax" / "train.py").exists()
        assert (home / "records" / "text").exists()
        asked = (home / "pip").read_text().splitlines()
        assert len(asked) == 3 and ".[tpu]" in asked[2], "installed once for all starts"


def test_logs_come_from_the_workers(runs):
    pod = runs[0]
    one = pod.run("logs", "--lines=3").stdout.splitlines()
    assert len(one) == 3 and all(line.startswith("[0] ") for line in one)
    every = pod.run("logs", "--worker=all", "--lines=1").stdout.splitlines()
    assert sorted(line[:4] for line in every) == ["[0] ", "[1] ", "[2] ", "[3] "]


def test_evaluate_on_the_pod_gives_what_one_process_with_four_devices_gives(runs, run_program):
    """All bits are equal: the same prompts in the same batches on as many devices."""
    pod, whole, _, _ = runs
    shared = whole.parent
    flags = ["--config=configs/evaluate.py", f"--checkpoint={whole / 'export'}"]
    flags += ["--task=lm_lookup", "--shots=2", "--config.n=8", "--config.batch_size=8"]
    program = [*flags, f"--output={shared / 'report'}"]
    launcher = ["--watch", "--poll=1", "--mount=records:records", f"--shared={shared}"]
    pod.run("evaluate", *launcher, "--", *program)
    devices = {"XLA_FLAGS": f"{BASE_XLA_FLAGS} --xla_force_host_platform_device_count=4"}
    devices["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    one = [*flags, f"--output={shared / 'alone'}", "--config.mesh.data=-1"]
    run_program("-m", "flamingo_jax.evaluate", *one, environment=devices)
    for name in ("results.json", "predictions.jsonl"):
        assert (shared / "report" / name).read_text() == (shared / "alone" / name).read_text()
    logs = [
        (home / "flamingo_pod" / "log").read_text().split("evaluate")[-1] for home in pod.homes()
    ]
    assert ["The report is in" in log for log in logs] == [True, False, False, False]


def assert_continues(workdir, whole, start):
    """Checks that losses from `start` on equal the pod's.

    1e-5: sums over four shards have another order, 1e-7 of their size per step, and pass through
    Adam.
    """
    ours, theirs = reports(workdir), reports(whole)
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1))
    for a, b in zip(ours[start:], theirs[start:], strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)


def prepared(monkeypatch, place):
    """Returns the config of the pod's run.

    Its relative paths are part of a checkpoint, so this also changes to a directory where they are
    correct.
    """
    (place / "here").mkdir(exist_ok=True)
    if not (place / "records").exists():
        (place / "records").symlink_to(place / "world")
    monkeypatch.chdir(place / "here")
    values = small.with_world(small.get_config("language_model"), pathlib.Path("../records"))
    values.steps = STEPS
    values.mesh.data = -1
    values.hooks.update(save_every=SAVE_EVERY, keep=10)
    return from_dict(TrainConfig, values)


def begun(whole, target):
    """Copies the pod's run as it was after its second checkpoint."""
    shutil.copytree(whole, target)
    shutil.rmtree(target / "export")
    for step in range(3 * SAVE_EVERY, STEPS + 1, SAVE_EVERY):
        shutil.rmtree(target / "checkpoints" / str(step))
    return target


def without_gloo(text):
    """Returns the words of `text` that are not written by the library of the collectives.

    Its threads write lines in pieces, which may be mixed.
    """
    pieces = (
        r"\[Gloo\] Rank",
        "is connected to",
        r"peer ranks\.",
        "Expected number of connected peer ranks is :",
        r"\d+",
    )
    return re.sub("|".join(pieces), "", text).split()


def test_lines_of_gloo_are_told_from_ours_even_when_they_are_mixed():
    line = "is connected to 3 peer ranks. Expected number of connected peer ranks is : 3\n"
    assert not without_gloo(f"[Gloo] Rank 1 {line}[Gloo] Rank [Gloo] Rank 2 {line}2 {line}")
    assert without_gloo(f"[Gloo] Rank 1 {line}resumes at step 4")


def test_one_process_with_four_devices_gives_the_same_losses(runs, place, monkeypatch):
    train(prepared(monkeypatch, place), place / "one", devices=jax.devices()[:4])
    assert_continues(place / "one", runs[1], 0)


def test_one_process_goes_on_from_the_checkpoint_of_four(runs, place, monkeypatch):
    workdir, lines = begun(runs[1], place / "one_goes_on"), []
    train(prepared(monkeypatch, place), workdir, devices=jax.devices()[:4], report=lines.append)
    assert f"resumes at step {2 * SAVE_EVERY} " in lines[0]
    assert_continues(workdir, runs[1], 2 * SAVE_EVERY)


def test_two_processes_go_on_from_the_checkpoint_of_four(runs, place, monkeypatch):
    workdir = begun(runs[1], place / "two_go_on")
    prepared(monkeypatch, place)
    flags = [f"--config={ROOT}/{CONFIG}", *SETTINGS, *RECORDS, f"--workdir={workdir}"]
    outputs = run_processes(
        ["-m", "flamingo_jax.train", *flags], count=2, devices=2, cwd=place / "here"
    )
    assert f"resumes at step {2 * SAVE_EVERY} " in outputs[0]
    assert not without_gloo(outputs[1]), "one process speaks for all"
    assert_continues(workdir, runs[1], 2 * SAVE_EVERY)
