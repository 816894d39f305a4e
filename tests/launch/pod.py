"""Runs launch/tpu_pod.sh with the replacement of gcloud and its workers (gcloud.py)."""

import json
import os
import pathlib
import subprocess
import sys
import time

from tests.conftest import BASE_XLA_FLAGS, ROOT
from tests.launch.gcloud import NUM_WORKERS

PATIENCE = 300  # seconds; much more than any step here takes
GCLOUD = ROOT / "tests" / "launch" / "gcloud.py"

# An interpreter that has everything already: `-m venv` copies this stub, `-m pip` writes down what
# it was asked for.
PYTHON = f"""#!/usr/bin/env bash
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit 0; fi
if [ "$1 $2" = "-m pip" ]; then printf '%s\\n' "$*" >>"$HOME/pip"; exit 0; fi
case "${{2:-}}" in *sys.executable*) echo "$0"; exit 0 ;; esac
exec {sys.executable} "$@"
"""
GCSFUSE = """#!/usr/bin/env bash
[ "$1 $2 $3 $#" = "--implicit-dirs -o ro 5" ] || { echo "unexpected: $*"; exit 1; }
[ -d "$GCLOUD_STATE/buckets/$4" ] || { echo "bucket $4 does not exist"; exit 1; }
rmdir "$5" && ln -s "$GCLOUD_STATE/buckets/$4" "$5"
"""
FINDMNT = """#!/usr/bin/env bash
[ "$1 $2 $3 $4 $#" = "--noheadings --output SOURCE --mountpoint 5" ] || exit 2
[ -L "$5" ] && basename "$(readlink "$5")"
"""
FORBIDDEN = """#!/usr/bin/env bash
echo "a worker of the tests must not call $0" >&2
exit 1
"""


# Writes that it started, and ends when it is asked to.
TRAIN = """
import os, pathlib, sys, time
workdir = pathlib.Path(sys.argv[-1].partition("=")[2])
workdir.mkdir(exist_ok=True)
with (workdir / f"starts{os.environ['JAX_PROCESS_ID']}").open("a") as starts:
    starts.write(os.environ.get("GREETING", "none") + "\\n")
print("a line of the log", flush=True)
while not (workdir / "end").exists():
    time.sleep(0.02)
sys.exit(int((workdir / "end").read_text()))
"""


class Pod:
    """A cloud with at most one slice of some workers, which are processes on this machine.

    Attributes:
        state: directory of the replacement; see gcloud.py.
        variables: environment of the script.
    """

    def __init__(self, directory: pathlib.Path, workers: int = 4):
        self.state = directory
        (directory / "buckets").mkdir(parents=True)
        programs = {"python3.11": PYTHON, "gcsfuse": GCSFUSE, "findmnt": FINDMNT}
        programs |= dict.fromkeys(("pip", "sudo", "curl", "apt-get"), FORBIDDEN)
        for name, text in programs.items():
            _write_program(directory / "bin" / name, text)
        _write_program(
            directory / "here" / "gcloud", f'#!/bin/sh\nexec {sys.executable} -I -S {GCLOUD} "$@"\n'
        )
        self.variables = {
            **{name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ},
            "PATH": f"{directory / 'here'}:/usr/bin:/bin",
            "GCLOUD_STATE": str(directory),
        }
        # what the workers of a slice learn from its metadata server, and that their chips are CPUs
        # here
        variables = {
            "JAX_COORDINATOR_ADDRESS": "localhost:{port}",
            "JAX_NUM_PROCESSES": str(workers),
            "JAX_PROCESS_ID": "{worker}",
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # four processes compile the same step
            "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"],
            "XLA_FLAGS": BASE_XLA_FLAGS,
        }
        (directory / "worker.json").write_text(json.dumps(variables))
        (directory / "num_workers").write_text(str(workers))

    def command(self, *arguments: str, root: pathlib.Path = ROOT) -> list[str]:
        """Returns the command line of the script, with the name and the zone."""
        action, *options = map(str, arguments)
        return [
            str(root / "launch" / "tpu_pod.sh"),
            action,
            "--name=pod",
            "--zone=us-central2-b",
            "--poll=0.2",
            *options,
        ]

    def run(
        self, *arguments: str, status: int = 0, root: pathlib.Path = ROOT
    ) -> subprocess.CompletedProcess:
        """Runs the script; its exit status must be `status`."""
        done = subprocess.run(
            self.command(*arguments, root=root),
            env=self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == status, (
            f"status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
        return done

    def calls(self) -> list[list[str]]:
        """Returns the command lines of the calls of gcloud."""
        path = self.state / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def homes(self) -> list[pathlib.Path]:
        """Returns the homes of the workers."""
        return sorted((self.state / "workers").iterdir())


def _write_program(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def starts(tmp_path):
    """Returns what each worker's program wrote at each of its starts."""
    files = [tmp_path / "work" / f"starts{worker}" for worker in range(NUM_WORKERS)]
    return [file.read_text().split() if file.exists() else [] for file in files]


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE} s in vain"
        time.sleep(0.01)
