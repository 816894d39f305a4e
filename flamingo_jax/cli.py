"""What the programs share: flags that several of them have, the start, and errors as one line.

def main(arguments: list[str], cluster: Cluster) -> None: ...

if __name__ == "__main__":
    cli.run(main, required=["config"], expected=(ConfigError,))
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from absl import app, flags, logging
from ml_collections import config_flags

from flamingo_jax.core import config_files, host_memory, processes
from flamingo_jax.core.config import ConfigError, from_dict
from flamingo_jax.core.processes import Cluster

T = TypeVar("T")

flags.disclaim_key_flags()  # --help lists a flag under the program that asks for it


def config_flag(text: str) -> flags.FlagHolder:
    """Defines --config; `text` is its help."""
    flag = config_flags.DEFINE_config_file("config", None, f"{text}; --config.a.b=value.")
    flags.FLAGS["config"].parser = config_files.FileParser()
    return flag


def read_config(of: type[T]) -> T:
    """Returns what --config holds.

    Args:
        of: the dataclass of the configs that the program takes.

    Raises:
        ConfigError: if it does not fit; also if it is a config of another program.
    """
    config = flags.FLAGS.config
    fields = {field.name: field for field in dataclasses.fields(of)}  # type: ignore[arg-type]
    if unknown := [name for name in config if name not in fields]:
        file = config_flags.get_config_filename(flags.FLAGS["config"])
        raise ConfigError(
            f"--config={file} is no {of.__name__}: it has the "
            f"field {unknown[0]!r}. {of.__name__} has {', '.join(fields)}."
        )
    return from_dict(of, config)


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
    parse = _parse_with_config if "config" in flags.FLAGS else app.parse_flags_with_usage
    app.run(start, flags_parser=parse)


def _parse_with_config(argv: list[str]) -> list[str]:
    """Parses the flags; a field that the config does not have ends the program with one line."""
    try:
        return config_files.with_named_configs(app.parse_flags_with_usage)(argv)
    except (AttributeError, KeyError) as error:  # of ml_collections; the first contains the second
        cause = error.args[0]
        message = cause.args[0] if isinstance(cause, Exception) else cause
        sys.exit(f"Unknown field in --config: {message}")
