"""A replacement of Slurm's commands on this machine: sbatch, srun, scontrol and scancel.

The command is the name by which it is called (`Slurm` makes the links). It refuses flags that the
real one does not have (https://slurm.schedmd.com/man_index.html). SLURM_STATE is its directory:

    job.json       {"id", "state", "batch", "requeue"} of the one job
    tasks/N        process number of task N of the step that runs
    steps          one line for each step: the flags of srun, as JSON
    gpus, nodes    numbers for the variables of a job

The tasks of a step are processes of this machine, with the variables that srun sets. Its nodes are
all called localhost.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

STATE = pathlib.Path(os.environ.get("SLURM_STATE", "/nowhere"))
FLAGS = {
    "sbatch": {
        *("--job-name", "--requeue", "--open-mode", "--signal", "--nodes", "--gpus-per-node"),
        *("--exclusive", "--time", "--cpus-per-task", "--output"),
    },
    "srun": {
        *("--nodes", "--ntasks", "--ntasks-per-node", "--cpus-per-task", "--kill-on-bad-exit"),
        "--wait",
    },
    "scancel": {"--signal"},
    "scontrol": {"--oneliner"},
}


def refuse(text: str):
    """Ends as Slurm does."""
    print(f"{COMMAND}: error: {text}", file=sys.stderr)
    sys.exit(1)


def flags_of(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Returns (flags, the arguments after them)."""
    given = {}
    for i, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if not argument.startswith("--"):
            return given, arguments[i:]
        if flag not in FLAGS[COMMAND]:
            refuse(f"unrecognized option '{argument}'")
        given[flag] = value
    return given, []


def load() -> dict:
    return json.loads((STATE / "job.json").read_text())


def save(**changes) -> None:
    path = STATE / "job.json"
    job = {**(load() if path.exists() else {}), **changes}
    (STATE / "job.new").write_text(json.dumps(job))
    (STATE / "job.new").rename(path)


def variables(job: int) -> dict[str, str]:
    """Returns what the first node of a job has in its environment."""
    nodes, gpus = ((STATE / name).read_text() for name in ("nodes", "gpus"))
    found = {
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NUM_NODES": nodes,
        "SLURM_JOB_NODELIST": f"node[1-{nodes}]",
        "SLURM_SUBMIT_DIR": os.getcwd(),
        "SLURM_CPUS_ON_NODE": "16",
    }
    return found | ({"SLURM_GPUS_ON_NODE": gpus} if gpus != "0" else {})


def sbatch(arguments: list[str]) -> int:
    """Runs the batch script at once, in a copy, as often as it is queued again; waits for it."""
    _, rest = flags_of(arguments)
    script, *rest = rest
    text = pathlib.Path(script).read_text()
    for line in re.findall(r"^#SBATCH (.*)$", text.split("\nset -")[0], re.MULTILINE):
        flags_of([line])
    spool = STATE / "spool" / "slurm_script"
    spool.parent.mkdir(exist_ok=True)
    shutil.copy(script, spool)
    for restarts in range(10):
        save(id=7, state="RUNNING", batch=1, requeue=False)
        more = {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
        status = subprocess.run(
            [spool, *rest], env={**os.environ, **variables(7), **more}, check=False
        ).returncode
        if not load()["requeue"]:
            return status
    return 1


def srun(arguments: list[str]) -> int:
    """Runs a command as the tasks of a step; returns the largest of their statuses."""
    given, command = flags_of(arguments)
    with (STATE / "steps").open("a") as steps:
        steps.write(json.dumps(given) + "\n")
    count, each = int(given["--ntasks"]), int(given["--ntasks-per-node"])
    if int(given["--nodes"]) * each != count:
        refuse("Unable to create step for job 7: More processors requested than permitted")
    shutil.rmtree(STATE / "tasks", ignore_errors=True)
    (STATE / "tasks").mkdir()
    tasks = []
    for i in range(count):
        own = {
            "SLURM_NTASKS": str(count),
            "SLURM_PROCID": str(i),
            "SLURM_LOCALID": str(i % each),
            "SLURM_NODEID": str(i // each),
            "SLURM_STEP_NODELIST": os.environ["SLURM_JOB_NODELIST"],
        }
        tasks.append(subprocess.Popen(command, env={**os.environ, **own}, start_new_session=True))
        (STATE / "tasks" / str(i)).write_text(str(tasks[-1].pid))
    signal.signal(signal.SIGTERM, lambda *_: signal_tasks(signal.SIGTERM))
    found = [task.wait() for task in tasks]
    return max(status if status >= 0 else 128 - status for status in found)


def signal_tasks(number: int) -> None:
    """Signals the tasks of the step; what they have started in sessions of their own is not."""
    for task in (STATE / "tasks").glob("*"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(task.read_text()), number)


def scancel(arguments: list[str]) -> int:
    """Signals the tasks, or cancels the job."""
    given, _ = flags_of(arguments)
    if "--signal" not in given:
        save(state="CANCELLED")
    signal_tasks(getattr(signal, f"SIG{given.get('--signal', 'TERM')}"))
    return 0


def scontrol(arguments: list[str]) -> int:
    """Shows host names or the job, or queues it again."""
    words = [argument for argument in arguments if argument not in FLAGS["scontrol"]]
    if words[:2] == ["show", "hostnames"]:
        print("localhost\n" * int((STATE / "nodes").read_text()), end="")
    elif words == ["show", "job", "7"]:
        job = load()
        print(f"JobId=7 JobState={job['state']} Requeue=1 BatchFlag={job['batch']} Partition=gpu")
    elif words == ["requeue", "7"]:
        save(requeue=True)
    else:
        refuse(f"invalid keyword: {' '.join(words)}")
    return 0


if __name__ == "__main__":
    COMMAND = pathlib.Path(sys.argv[1]).name
    commands = {"sbatch": sbatch, "srun": srun, "scancel": scancel, "scontrol": scontrol}
    sys.exit(commands[COMMAND](sys.argv[2:]))


class Slurm:
    """A cluster with one job at a time.

    Attributes:
        state: directory of the replacement.
        variables: environment of the user.
    """

    def __init__(self, directory: pathlib.Path, *, nodes: int = 2, gpus: int = 0):
        self.state = directory
        (directory / "bin").mkdir(parents=True)
        for name in FLAGS:
            program = directory / "bin" / name
            program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {__file__} "$0" "$@"\n')
            program.chmod(0o755)
        (directory / "nodes").write_text(str(nodes))
        (directory / "gpus").write_text(str(gpus))
        inherited = ("HOME", "LANG", "TMPDIR")
        self.variables = {
            **{name: os.environ[name] for name in inherited if name in os.environ},
            "PATH": f"{directory / 'bin'}:{pathlib.Path(sys.executable).parent}:/usr/bin:/bin",
            "FLAMINGO_VENV": str(pathlib.Path(sys.executable).parent.parent),
            "SLURM_STATE": str(directory),
        }

    def start(self, *command: str, cwd: pathlib.Path, **variables: str) -> subprocess.Popen:
        """Starts a command of the user; stdout and stderr are one text."""
        return subprocess.Popen(
            list(map(str, command)),
            cwd=cwd,
            env={**self.variables, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, cwd: pathlib.Path, status: int = 0, **variables: str) -> str:
        """Runs a command of the user, which must end with `status`; returns what it said."""
        with self.start(*command, cwd=cwd, **variables) as process:
            said = process.communicate(timeout=300)[0]
        assert process.returncode == status, f"status {process.returncode}\n{said[-4000:]}"
        return said

    def call(self, *command: str) -> None:
        """Runs one of Slurm's commands."""
        self.run(*command, cwd=self.state)

    def steps(self) -> list[dict[str, str]]:
        """Returns the flags of srun of each step."""
        return [json.loads(line) for line in (self.state / "steps").read_text().splitlines()]


def wait_until(condition, seconds: float = 120.0) -> None:
    """Waits for what another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.02)
