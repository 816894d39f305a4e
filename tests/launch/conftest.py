"""A cloud, a miniature repository and a job that runs in both; a script with a stub for Python."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.launch.pod import TRAIN, Pod
from tests.launch.watch import Watch

# An interpreter that runs programs of standard input, makes an export where train would, and fails
# with the status $STATUS where $FAILS is in its arguments.
PYTHON = f"""#!/usr/bin/env bash
if [ "$1" = - ]; then exec {sys.executable} -I -S "$@"; fi
echo "$*" >>"$COMMANDS"
case "$*" in *"${{FAILS:-nothing}}"*) exit "$STATUS" ;; esac
for word in "$@"; do
  case "$word" in
    --workdir=*) mkdir -p "${{word#*=}}/export" ;;
    --output=*) mkdir -p "${{word#*=}}" ;;
  esac
done
"""


@pytest.fixture
def launch(tmp_path):
    """Runs a script of launch/; returns its status, the commands, and what it said."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    commands = tmp_path / "commands"
    variables = {**os.environ, "FLAMINGO_VENV": str(tmp_path / "venv"), "COMMANDS": str(commands)}

    def run(name, *options, **more):
        commands.write_text("")
        done = subprocess.run(
            [ROOT / "launch" / name, *options],
            env={**variables, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, commands.read_text().splitlines(), done.stderr

    return run


@pytest.fixture
def pod(tmp_path):
    """A cloud without a slice yet."""
    return Pod(tmp_path / "cloud")


@pytest.fixture
def clone(tmp_path):
    """A miniature repository with the program TRAIN."""
    root = tmp_path / "clone"
    for name in ("tpu_pod.sh", "tpu_worker.sh", "environment.sh", "log_end.awk"):
        (root / "launch").mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "launch" / name, root / "launch")
    files = {
        "launch/requirements.lock": "# empty\n",
        "setup.py": "",
        ".gitignore": ".venv/\n__pycache__/\n*.secret\n",
    }
    files |= {
        "flamingo_jax/__init__.py": "",
        "flamingo_jax/train.py": TRAIN,
        "configs/a.py": "",
        "old file.txt": "old",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    return root


@pytest.fixture
def job(pod, clone, tmp_path):
    """The options of `train` in the miniature repository; ends all jobs after the test."""
    pod.run("create", "--accelerator_type=v4-32")
    yield [f"--shared={tmp_path}", "--", "--config=configs/a.py", f"--workdir={tmp_path / 'work'}"]
    pod.run("delete", "--quiet")


@pytest.fixture
def watch(tmp_path):
    """A watch, and the end of its scripts and its slice."""
    watch = Watch(tmp_path)
    with watch.scripts:
        yield watch
    watch.refuse()
    subprocess.run(
        watch.pod.command("delete", "--quiet"),
        env=watch.pod.variables,
        capture_output=True,
        check=False,
    )
