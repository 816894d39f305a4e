"""Paths as users type them, and ends of a program that are no faults."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from flamingo_jax.core import command_line

PROGRAM = """
import sys
from flamingo_jax.core import command_line
with command_line.ending_quietly():
    {}
"""


def run(body: str, **options):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body)], capture_output=True, check=False, **options
    )


def test_the_home_directory_and_file_urls(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = ["run", "--output=~/a", "--input=~/b,/c,~/d", "--config.towers.lm=file:///e", "~/f"]
    assert command_line.with_user_paths(given) == [
        "run",
        "--output=/home/me/a",
        "--input=/home/me/b,/c,/home/me/d",
        "--config.towers.lm=/e",
        "~/f",  # a prompt, not the value of a flag
    ]


@pytest.mark.parametrize("word", ["--top_p=0.5", "--output=gs://b/c", "--x=a~/b", "--e=", "-v"])
def test_other_arguments_are_kept(word):
    assert command_line.with_user_paths([word]) == [word]


@pytest.mark.parametrize("url", ["https://example.com/a", "hf://a/b", "hdfs://a"])
def test_a_file_system_that_is_not_known(url):
    with pytest.raises(SystemExit, match=f"--checkpoint={url}: .*:// cannot be read. Give a local"):
        command_line.with_user_paths([f"--checkpoint={url}"])


def test_a_reader_that_stops_reading():
    """`program | head -1` is no error of the program."""
    read, write = os.pipe()
    os.close(read)
    with contextlib.closing(os.fdopen(write, "wb")) as stdout:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format("print('a' * 100_000)")],
            stdout=stdout,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_interrupt():
    done = run("import os, signal; os.kill(os.getpid(), signal.SIGINT); signal.pause()")
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, b"Interrupted.\n")


def test_what_a_terminal_cannot_show():
    done = run(
        "print('caf\\xe9 \\u2192 \\ud83d')", env={**os.environ, "PYTHONIOENCODING": "latin-1"}
    )
    assert (done.returncode, done.stdout) == (
        0,
        rb"caf\xe9 \u2192 \ud83d".replace(rb"\xe9", b"\xe9") + b"\n",
    )


def test_input_that_is_not_utf_8():
    done = run(
        "print(ascii(sys.stdin.read()))", input=b"caf\xe9", env={**os.environ, "PYTHONUTF8": "1"}
    )
    assert (done.returncode, done.stdout) == (0, b"'caf\\udce9'\n")
