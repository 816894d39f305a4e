"""launch/slurm.sh with a replacement of Slurm (slurm.py): processes, restarts, and the queue.

tests/distributed/test_slurm.py trains with it.
"""

import json
import pathlib
import shutil
import signal
import subprocess

import pytest

from tests.conftest import ROOT
from tests.launch.slurm import Slurm, wait_until

# Its plan is {"starts": [what to do at the first start, at the second, ...]}, for each process.
PROGRAM = """
import json, os, pathlib, signal, sys, time
work = pathlib.Path(sys.argv[-1].partition("=")[2])
index = os.environ["JAX_PROCESS_ID"]
names = [name for name in os.environ if name.startswith("JAX_")]
with (work / f"starts{index}").open("a") as starts:
    starts.write(json.dumps({name: os.environ[name] for name in names}) + "\\n")
number = len((work / f"starts{index}").read_text().splitlines()) - 1
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
plan = json.loads((work / "plan").read_text())
print(f"tiny: 10% {10 * number + 1}/100, loss 1.0" if plan.get("steps") else "ready", flush=True)
what = plan[index][min(number, len(plan[index]) - 1)]
while what == "wait" and not asked:
    time.sleep(0.02)
    if (work / "end").exists():
        sys.exit(76)
if what == "wait":
    time.sleep(0.3)  # it saves
    print(f"saved after {len(asked)} signals", flush=True)
    sys.exit(75)
if what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
print(f"the reason of {what}", flush=True)
sys.exit(what)
"""


class Job:
    """A clone on a cluster, and the directory of its job."""

    def __init__(self, place: pathlib.Path, **cluster):
        self.slurm, self.root, self.work = Slurm(place / "slurm", **cluster), place / "clone", place
        (self.root / "launch").mkdir(parents=True)
        for name in ("slurm.sh", "environment.sh", "log_end.awk"):
            shutil.copy(ROOT / "launch" / name, self.root / "launch")
        (self.root / "flamingo_jax").mkdir()
        (self.root / "flamingo_jax" / "__init__.py").write_text("")
        (self.root / "flamingo_jax" / "train.py").write_text(PROGRAM)
        self.logs = self.root / "slurm-7.logs"

    def plan(self, *processes, **more):
        """Says what each process does at its starts: a status, "killed" or "wait"."""
        plan = {str(i): list(starts) for i, starts in enumerate(processes)}
        (self.work / "plan").write_text(json.dumps({**plan, **more}))

    def command(self, *options):
        program = ["--", "--config=configs/a.py", f"--workdir={self.work}"]
        return ["sbatch", "--nodes=2", "launch/slurm.sh", "train", "--pause=0", *options, *program]

    def run(self, *options, status=0):
        return self.slurm.run(*self.command(*options), cwd=self.root, status=status)

    def starts(self, index=0):
        path = self.work / f"starts{index}"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_starts(self, number):
        wait_until(lambda: all(len(self.starts(i)) == number for i in (0, 1)))


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def test_each_node_has_one_process_which_sees_all_its_gpus(tmp_path):
    job = Job(tmp_path, gpus=4)
    job.plan([0], [0])
    said = job.run()
    assert "flamingo_jax.train has ended on all nodes" in said
    for index in (0, 1):
        (variables,) = job.starts(index)
        assert variables["JAX_NUM_PROCESSES"] == "2" and variables["JAX_PROCESS_ID"] == str(index)
        assert variables["JAX_COORDINATOR_ADDRESS"] == f"localhost:{61440 + 7 * 16}"
        assert variables["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3"
    (step,) = job.slurm.steps()
    assert (step["--ntasks"], step["--cpus-per-task"]) == ("2", "16")
    log = (job.logs / "log.1").read_text()
    assert "python -m flamingo_jax.train --config=configs/a.py" in log and "reason of 0" in log


def test_or_each_gpu_has_one(tmp_path):
    job = Job(tmp_path, gpus=2)
    job.plan(*[[0]] * 4)
    job.run("--per=gpu", "--port=12345", f"--logs={tmp_path / 'logs'}")
    found = [job.starts(index)[0] for index in range(4)]
    assert [variables["JAX_LOCAL_DEVICE_IDS"] for variables in found] == ["0", "1", "0", "1"]
    assert {variables["JAX_COORDINATOR_ADDRESS"] for variables in found} == {"localhost:12345"}
    assert job.slurm.steps()[0]["--cpus-per-task"] == "8"
    assert (tmp_path / "logs" / "log.3").exists()


def test_a_killed_process_is_started_again_with_the_others(job):
    job.plan([76, 0], ["killed", 0])
    said = job.run()
    assert "process 1 ended first, with 137: ready; starts again (restart 1 of 3" in said
    assert len(job.starts(0)) == len(job.starts(1)) == 2
    ports = [variables["JAX_COORDINATOR_ADDRESS"] for variables in job.starts()]
    assert len(set(ports)) == 2


def test_it_gives_up_after_some_restarts_without_a_newer_step(job):
    job.plan([76], [1])
    said = job.run("--restarts=2", status=1)
    assert len(job.starts()) == 3
    assert said.splitlines()[-1] == (
        "error: it failed 3 times without a newer step; process 1 ended first, with 1: the reason "
        f"of 1. Logs: {job.logs}"
    )


def test_newer_steps_are_progress(job):
    job.plan([76, 76, 76, 76, 0], [1, 1, 1, 1, 0], steps=True)
    assert job.run("--restarts=1").count("starts again (restart 1 of 1") == 4


def test_a_job_that_is_preempted_saves_once_and_is_queued_again(job):
    job.plan(["wait", 0], ["wait", 0])
    with job.slurm.start(*job.command(), cwd=job.root) as batch:
        job.wait_for_starts(1)
        wait_until(lambda: "ready" in (job.logs / "log.1").read_text())
        wait_until(lambda: "ready" in (job.logs / "log.0").read_text())
        for _ in range(2):  # the second one must not end the program before it has saved
            job.slurm.call("scancel", "--signal=TERM", "7")
        said = batch.communicate(timeout=120)[0]
    assert batch.returncode == 0
    assert "job 7 is queued again" in said and "has ended on all nodes" in said
    assert len(job.starts(0)) == len(job.starts(1)) == 2
    assert (job.logs / "log.1").read_text().count("saved after 1 signals") == 1


def test_a_job_that_is_cancelled_is_not_queued_again(job):
    job.plan(["wait"], ["wait"])
    with job.slurm.start(*job.command(), cwd=job.root) as batch:
        job.wait_for_starts(1)
        wait_until(lambda: "ready" in (job.logs / "log.0").read_text())
        wait_until(lambda: "ready" in (job.logs / "log.1").read_text())
        job.slurm.call("scancel", "7")
        said = batch.communicate(timeout=120)[0]
    assert batch.returncode == 75
    assert "the job is JobState=CANCELLED, so it is not queued again here" in said


def test_a_signal_to_the_batch_script_alone_reaches_all_processes(job):
    job.plan(["wait"], ["wait"])
    with job.slurm.start(*job.command("--requeue=no"), cwd=job.root) as batch:
        job.wait_for_starts(1)
        wait_until(lambda: "ready" in (job.logs / "log.0").read_text())
        wait_until(lambda: "ready" in (job.logs / "log.1").read_text())
        found = subprocess.run(
            ["pgrep", "-f", f"{job.slurm.state}/spool/slurm_script"],
            capture_output=True,
            text=True,
            check=True,
        )
        subprocess.run(["kill", f"-{signal.SIGTERM.value}", found.stdout.split()[0]], check=True)
        said = batch.communicate(timeout=120)[0]
    assert batch.returncode == 75 and "queued" not in said
    for index in (0, 1):
        assert "saved after 1 signals" in (job.logs / f"log.{index}").read_text()


def test_a_program_that_somebody_stops_is_not_started_again(job):
    job.plan([76], [143])
    assert "the program was stopped by hand (process 1 ended first, with 143" in job.run(status=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--", "--config=a"], "this is no Slurm allocation (SLURM_JOB_ID is not set): "),
        (["train"], "train needs the flags of the program after --"),
        ([], "no action: expected install, train or evaluate"),
        (["tarin"], "has no action tarin: expected install, train or evaluate"),
        (["train", "--pre=gpu"], "does not know --pre=gpu"),
        (["train", "--restarts=-1"], "--restarts=-1: expected a number"),
        (["train", "--port=0"], "--port=0: expected a number from 1 to 65535"),
    ],
)
def test_what_is_wrong_is_one_line(job, arguments, message):
    said = job.slurm.run("launch/slurm.sh", *arguments, cwd=job.root, status=1)
    assert message in said and len(said.splitlines()) == 1


def test_help_shows_the_head_of_the_script(job):
    said = job.slurm.run("launch/slurm.sh", "--help", cwd=job.root)
    assert said.startswith("Trains and evaluates on GPU nodes") and "--per=node|gpu" in said
    assert "#" not in said and "SBATCH" not in said
    assert said.split("These are its defaults:")[1].split()[-1] == "--signal=TERM@300"


def test_a_script_that_is_submitted_from_elsewhere_is_one_line(job):
    command = job.command()
    command[command.index("launch/slurm.sh")] = str(job.root / "launch" / "slurm.sh")
    said = job.slurm.run(*command, cwd=job.work, status=1)
    assert "is not the root of the clone: submit from there" in said
