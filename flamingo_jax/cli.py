"""What the programs share: flags that several of them have, the start, and errors as one line.

def main(arguments: list[str], cluster: Cluster) -> None: ...

if __name__ == "__main__":
    cli.run(main, required=["config"], expected=(ConfigError,))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from absl import app, flags, logging
from ml_collections import config_flags

from flamingo_jax.core import command_line, config_files, host_memory, processes
from flamingo_jax.core.processes import Cluster

T = TypeVar("T")

flags.disclaim_key_flags()  # --help lists a flag under the program that asks for it


def config_flag(text: str) -> None:
    """Defines --config; `text` is its help."""
    config_flags.DEFINE_config_file("config", None, f"{text}; --config.a.b=value.")
    # The parser of ml_collections hides what is wrong with a file, or prints a traceback.
    flags.FLAGS["config"].parser.parse = config_files.load  # type: ignore


def read_config(of: type[T]) -> T:
    """Returns what --config holds; see `core.config_files.read`."""
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    return config_files.read(of, flags.FLAGS.config, name)


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
) -> None:
    """Parses the flags, calls main(positional arguments, cluster) and exits with what it returns.

    Args:
        required: flags that must be given.
        expected: errors of which only "Name: message" is printed; the exit status is 1.
        positional: whether arguments that are no flags are allowed.
        log_level: applies without --verbosity.
        keep_freed: whether the process keeps memory that it freed (`core.host_memory`).
    """

    def start(argv: list[str]) -> int | None:
        if argv[1:] and not positional:
            raise app.UsageError(
                f"Unexpected arguments {argv[1:]}: flags are set as --name=value, fields of a "
                "config as --config.a.b=value."
            )
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(log_level)
        if keep_freed:
            host_memory.keep_freed()
        mode = str(flags.FLAGS.distributed) if "distributed" in flags.FLAGS else "off"
        with Cluster(mode, expected=expected) as cluster:
            return main(argv[1:], cluster)

    flags.mark_flags_as_required(required)
    parse = config_files.naming_unknown_fields(app.parse_flags_with_usage)
    with command_line.ending_quietly():
        app.run(start, flags_parser=lambda argv: parse(command_line.with_user_paths(argv)))
