"""What the programs share: flags that several of them have, the start, and errors as one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from absl import app, flags, logging

from flamingo_jax.core import command_line, config_files, host_memory, overrides, processes
from flamingo_jax.core.processes import Cluster

T = TypeVar("T")
_FIELDS: list[overrides.Override] = []  # --config.a.b=value, of this command line
flags.disclaim_key_flags()  # --help lists a flag under the program that asks for it


def config_flag(text: str) -> None:
    """Defines --config; `text` is its help."""
    flags.DEFINE_string("config", None, f"{text}; --config.a.b=value.")


def read_config(of: type[T]) -> T:
    """Returns what --config holds; see `core.config_files.read`."""
    return config_files.read(of, flags.FLAGS.config, _FIELDS)


def parse(argv: list[str]) -> list[str]:
    """Parses the flags, and keeps the fields of --config for `read_config`."""
    words = overrides.with_flag_files(argv, flags.FLAGS.read_flags_from_files)
    words = command_line.with_user_paths(words)
    if "config" in flags.FLAGS:
        words, _FIELDS[:] = overrides.split(words)
    return command_line.parsed(words, flags.FLAGS, flags.Error)


def distributed_flag() -> None:
    """Defines --distributed, which `run` reads; a program without it is one process."""
    text = "Whether other processes run with the same flags; see core/processes.py."
    flags.DEFINE_enum("distributed", "auto", processes.MODES, text)


def run(
    main: Callable[[list[str], Cluster], int | None],
    *,
    required: Sequence[str],
    expected: tuple[type[BaseException], ...],
    positional: bool = False,
    log_level: int = logging.WARNING,  # orbax reports each file that it reads or writes
    keep_freed: bool = False,
    saves: bool = False,
) -> None:
    """Parses the flags, calls main(positional arguments, cluster) and exits with what it returns.

    Args:
        required: flags that must be given.
        expected: errors of which only "Name: message" is printed; the exit status is 1.
        positional: whether arguments that are no flags are allowed.
        log_level: applies without --verbosity.
        keep_freed: whether the process keeps memory that it freed (`core.host_memory`).
        saves: whether the program saves its state when it is asked to end (`core.processes`).
    """

    def start(argv: list[str]) -> int | None:
        if argv[1:] and not positional:
            sys.exit(f"Unexpected arguments {argv[1:]}; expected --name=value, --config.a.b=value.")
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(log_level)
        if keep_freed:
            host_memory.keep_freed()
        mode = str(flags.FLAGS.distributed) if "distributed" in flags.FLAGS else "off"
        with Cluster(mode, expected=(*expected, app.UsageError), saves=saves) as cluster:
            return main(argv[1:], cluster)

    flags.mark_flags_as_required(required)
    with command_line.leaving_no_thread_behind(), command_line.ending_quietly():
        app.run(start, flags_parser=parse)
