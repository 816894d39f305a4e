"""Paths as users type them, and ends of a program that are no faults."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from absl import flags

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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--config, --workdir are missing. --help lists the flags."),
        (["--config=a"], "--workdir is missing. --help lists the flags."),
        (["--confg=a"], "Unknown command line flag 'confg'. Did you mean: config? --help"),
        (["--config=a", "--workdir=b", "--steps=x"], "flag --steps=x: invalid literal for int()"),
        (["--config=a", "--workdir"], "Missing value for flag --workdir"),
    ],
)
def test_a_wrong_flag_is_one_line(words, message):
    values = flags.FlagValues()
    for name in ("config", "workdir"):
        flags.DEFINE_string(name, None, "", flag_values=values, required=True)
    flags.DEFINE_integer("steps", 0, "", flag_values=values)
    with pytest.raises(SystemExit) as end:
        command_line.parsed(["prog", *words], values, flags.Error)
    assert str(end.value).startswith(message) and "\n" not in str(end.value)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("flamingo_jax.train", "--config, --workdir are missing. --help lists the flags."),
        (
            "flamingo_jax.checkpoint",
            "UsageError: Expected: verify DIR [DIR ...], or int8 EXPORT DIR.",
        ),
    ],
)
def test_programs_without_their_flags_say_one_line(run_program, program, message):
    assert run_program("-m", program, status=1).stderr.splitlines() == [message]


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


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_for_the_output(unbuffered):
    """What was asked for is not complete: that is an error, in one line."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format("print('an answer')")],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            check=False,
        )
    line = b"Cannot write to the standard output: No space left on device. It is not complete.\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_streams_that_are_closed(tmp_path):
    """A file does not get the number of a stream: what a library prints would be in it."""
    body = f"""
    print(sys.stdin.read(), end="")
    sys.stderr.write("a line")
    file = open({str(tmp_path / "file")!r}, "w")
    file.write(str(file.fileno()))
    """
    program = PROGRAM.format(textwrap.dedent(body).strip().replace("\n", "\n    "))
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", program]
    assert subprocess.run(command, check=False).returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


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


LEAVING = """
import sys, threading, time
from flamingo_jax.core import command_line
def never_ends():
    time.sleep(10**6)
with command_line.leaving_no_thread_behind(), command_line.ending_quietly():
    threading.Thread(target=never_ends).start()
    print("a line")
    {}
"""


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ("sys.exit('one line')", 1, "one line\n"),
        ("sys.exit(76)", 76, ""),
        ("raise KeyboardInterrupt", 130, "Interrupted.\n"),
        ("raise KeyError('a bug')", 1, "KeyError: 'a bug'\n"),
    ],
)
def test_after_an_error_no_thread_keeps_the_process(body, status, error):
    done = subprocess.run(
        [sys.executable, "-c", LEAVING.format(body)], capture_output=True, check=False, text=True
    )
    assert (done.returncode, done.stdout) == (status, "a line\n")
    assert done.stderr.endswith(error) and ("Traceback" in done.stderr) == ("bug" in error)


def test_a_library_that_writes_into_what_is_closed_prints_no_traceback():
    """Tensorstore calls sys.excepthook, in its own threads and in the main one."""
    body = """
        error = RuntimeError("Event loop is closed")
        call = lambda: sys.excepthook(type(error), error, None)
        other = threading.Thread(target=call); other.start(); other.join()
        call()
        sys.exit("one line")"""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            LEAVING.replace("    {}", textwrap.indent(textwrap.dedent(body), " " * 4)),
        ],
        capture_output=True,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "one line\n")


def test_a_named_function_is_imported():
    assert command_line.named_function("--x", "json:dumps", "a:b")([1]) == "[1]"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_module:f", r"--x=no_module:f: there is no such function .* as in a:b\."),
        ("json:nothing", "--x=json:nothing: there is no such function"),
        ("json", "--x=json: there is no such function"),
        (":dumps", "--x=:dumps: there is no such function"),
        ("json:decoder", "--x=json:decoder is a module, expected a function"),
    ],
)
def test_a_named_function_that_is_not_there_is_one_line(name, message):
    with pytest.raises(ValueError, match=message):
        command_line.named_function("--x", name, "a:b")
