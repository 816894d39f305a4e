"""Ctrl-C while a program imports its modules, which are replaced by one that gets the signal."""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT

INTERRUPT = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"
PROGRAMS = (
    *("train", "evaluate", "generate", "convert", "plan", "checkpoint"),
    "data_pipelines.run",
)


@pytest.fixture
def run(tmp_path):
    """Runs Python with a module `absl` that is interrupted; returns its status and lines."""
    (tmp_path / "absl").mkdir()
    (tmp_path / "absl" / "__init__.py").write_text(INTERRUPT)

    def run(*arguments, first=()):
        done = subprocess.run(
            [*first, sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    return run


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_ends_without_a_traceback(run, program):
    module = program if "." in program else f"flamingo_jax.{program}"
    assert run("-m", module) == (130, "Interrupted.\n")


def test_so_does_a_command_of_an_installed_package(run):
    assert run("-c", "from flamingo_jax import console; console.plan()") == (130, "Interrupted.\n")


@pytest.mark.parametrize("package", ["flamingo_jax.core.command_line", "data_pipelines.run"])
def test_a_library_changes_nothing(run, package):
    status, error = run("-c", f"import {package}")
    assert status == -signal.SIGINT and error.endswith("KeyboardInterrupt\n")


def test_where_interrupts_are_ignored_they_stay_so(run, tmp_path):
    (tmp_path / "absl" / "__init__.py").write_text(INTERRUPT.replace("60", "0") + "; 1 / 0")
    ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    assert "ZeroDivisionError" in run("-m", "flamingo_jax.plan", first=ignoring)[1]


def test_later_interrupts_are_exceptions_again(run, tmp_path):
    (tmp_path / "absl" / "__init__.py").unlink()
    (tmp_path / "absl").rmdir()
    body = (
        "from flamingo_jax.core import command_line, exit_status\n"
        "exit_status.at_interrupt_end()\n"
        "with command_line.ending_quietly():\n"
        "    try:\n"
        f"        {INTERRUPT}\n"
        "    finally:\n"
        "        print('cleaned up')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", body], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "cleaned up\n", "Interrupted.\n")


def test_an_interrupt_while_libraries_clean_up_prints_nothing():
    """JAX cleans up when the interpreter ends: after the last line of a program."""
    body = (
        "import atexit\n"
        "from flamingo_jax.core import command_line\n"
        f"atexit.register(lambda: exec({INTERRUPT!r}))\n"
        "with command_line.ending_quietly():\n"
        "    print('done')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", body], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "done\n", "")
