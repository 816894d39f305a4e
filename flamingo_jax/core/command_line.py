"""What every program does with its command line and its end; without JAX."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import multiprocessing
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from absl import logging

from flamingo_jax.core import exit_status, paths

# absl's message on a flag that must be given
_MISSING = re.compile(r"flag --(\w+)=None: Flag --\1 must have a value other than None\.")


def with_user_paths(argv: Sequence[str]) -> list[str]:
    """Returns the arguments with the paths in --name=~/a,~/b and --name=file:///a made local.

    Raises:
        SystemExit: a path is of a file system that is not known, such as https://.
    """
    found = []
    for word in argv:
        flag = re.fullmatch(r"(--?[\w.]+=)(.*)", word, re.DOTALL)
        if flag is None:
            found.append(word)
            continue
        scheme = re.match(r"\A[a-z][a-z0-9+.-]*://", flag[2])
        if scheme and scheme[0] not in (*paths.SCHEMES, "file://"):
            sys.exit(
                f"{word}: {scheme[0]} cannot be read. Give a local path, or one of "
                f"{', '.join(paths.SCHEMES)}."
            )
        values = flag[2].split(",")
        values = [
            paths.from_user(each) if each.startswith(("~/", "file:///")) else each
            for each in values
        ]
        found.append(flag[1] + ",".join(values))
    return found


def parsed(
    words: Sequence[str], parse: Callable[[Sequence[str]], list[str]], error: type[Exception]
) -> list[str]:
    """Parses the flags of absl, and returns the program's name and the arguments that are none.

    Args:
        words: the command line.
        parse: absl.flags.FLAGS.
        error: absl.flags.Error.

    Raises:
        SystemExit: a flag is missing, not known, or has a wrong value. The message is one line,
            for all flags that are missing.
    """
    try:
        return parse(list(words))
    except error as found:
        lines = str(found).splitlines()
    missing = [_MISSING.fullmatch(line) for line in lines]
    if all(missing):
        names = sorted({f"--{each[1]}" for each in missing if each})
        problem = f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} missing"
    else:
        problem = " ".join(line.strip() for line in lines).removesuffix(".").replace(" ?", "?")
    sys.exit(f"{problem}{'' if problem.endswith('?') else '.'} --help lists the flags.")


@functools.cache
def named_function(flag: str, name: str, example: str) -> Callable[..., Any]:
    """Imports the function that MODULE:FUNCTION names.

    Args:
        flag: the flag that names it, for messages.
        name: MODULE:FUNCTION.
        example: another MODULE:FUNCTION, for messages.

    Raises:
        ValueError: there is no such function.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{flag}={name}: there is no such function ({error}). Give MODULE:FUNCTION, as in "
            f"{example}."
        ) from error
    if not callable(function):
        raise ValueError(f"{flag}={name} is a {type(function).__name__}, expected a function.")
    return function


@contextlib.contextmanager
def ending_quietly() -> Iterator[None]:
    """Ends the program without a traceback if the user stops it, or stops reading its output.

    What the terminal cannot show (it may be latin-1) is printed as escapes. Bytes of the input that
    are no text stay what they are, since they may be part of a file name. A stream that is closed
    is read and written as nothing.

    Raises:
        SystemExit: the user ended it, or its output cannot be written.
    """
    _open_closed_streams()
    streams = {
        "stdin": "surrogateescape",
        "stdout": "backslashreplace",
        "stderr": "backslashreplace",
    }
    for name, errors in streams.items():
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):  # a test has another one
            stream.reconfigure(errors=errors)
    try:
        exit_status.at_interrupt_raise()
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write(exit_status.INTERRUPTED)
        sys.exit(exit_status.of_signal(signal.SIGINT))
    except BrokenPipeError:
        drop_output()
        sys.exit(exit_status.of_signal(signal.SIGPIPE))
    except OSError as error:
        if error.filename is not None or not _is_output_full():
            raise
        drop_output()
        sys.exit(f"Cannot write to the standard output: {error.strerror}. It is not complete.")
    finally:
        exit_status.at_interrupt_end_silently()


def drop_output() -> None:
    """Drops what waits for stdout, so that the interpreter does not fail to write it at its end."""
    with paths.Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _is_output_full() -> bool:
    try:
        os.write(sys.stdout.fileno(), b"\n")  # it may be unbuffered: then there is nothing to flush
    except (OSError, ValueError):
        return True
    return False


def _open_closed_streams() -> None:
    """Opens the null device for the streams that are closed, as by a shell's `>&-`.

    Python has None in their place. A file that is opened later would get the number of such a
    stream, and what libraries print would be written into it.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, paths.Path(os.devnull).open("r" if name == "stdin" else "w"))


@contextlib.contextmanager
def leaving_no_thread_behind() -> Iterator[None]:
    """After an error, ends the program without waiting for the threads of libraries.

    A thread that still tries to write to a full disk can keep the interpreter for minutes. Or it
    prints a traceback for each array, because nobody waits for its result any more: this is shown
    with --verbosity=1.
    """
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if str(error) == "Event loop is closed":
            logging.debug("%s", "".join(traceback.format_exception(kind, error, trace)))
        else:
            before(kind, error, trace)

    sys.excepthook = hook
    try:
        yield
        return
    except SystemExit as end:
        if end.code is None or end.code == 0:
            raise
        status = end.code if isinstance(end.code, int) else exit_status.ERROR
        text = "" if isinstance(end.code, int) else f"{end.code}\n"
    except BaseException:  # noqa: BLE001 - a bug, or Ctrl-C: what Python would print
        status, text = exit_status.ERROR, traceback.format_exc()
    for child in multiprocessing.active_children():
        child.terminate()
    for stream, last in ((sys.stdout, ""), (sys.stderr, text)):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it
            stream.write(last)
            stream.flush()
    os._exit(status)
