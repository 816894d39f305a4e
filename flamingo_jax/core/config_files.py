"""Finds config files by name, and runs them.

`--config=tiny:language_model` is configs/tiny.py with the argument language_model.

In a clone, configs/ is next to the package. In an installed wheel, the same files are in
flamingo_jax/bundled/configs (see setup.py). Config files import each other as `from configs import
...`. For this, the folder above configs/ is added to the import path.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import TypeVar

from ml_collections import config_dict

from flamingo_jax.core import overrides
from flamingo_jax.core.config import ConfigError, from_dict
from flamingo_jax.core.overrides import Override
from flamingo_jax.core.paths import Path, regular

T = TypeVar("T")

_PACKAGE = Path(__file__).parent.parent


def root() -> Path:
    """Returns the folder that contains configs/: that of the wheel, else that of the clone."""
    bundled = _PACKAGE / "bundled"
    return bundled if bundled.exists() else _PACKAGE.parent


def find(config: str) -> tuple[str, list[str]]:
    """Converts NAME[:ARGUMENT] to (FILE, ARGUMENT), and lets the file import `configs`.

    A path may contain colons. The file is the longest part before a colon, or the whole, that is an
    existing file. If none is, the name ends at the first colon.

    Args:
        config: a name below configs/ ("tiny", "ablations.contrastive_data"), or a file, each with
            an optional ":ARGUMENT".

    Returns:
        The file, and [argument], or [] if there is none.

    Raises:
        SystemExit: if there is no config of this name, or no such file.
    """
    name, colon, argument = _parts(config)
    _put_on_import_path(root())
    if "/" in name or name.endswith(".py") or Path(name).exists():
        if not Path(name).is_file():
            dotted = name.removesuffix(".py").removeprefix("configs/").replace("/", ".")
            advice = (
                f"--config={dotted}{colon}{argument} finds the config of that name from any folder."
                if dotted in _names()
                else f"Give another file, or one of {', '.join(_names())}."
            )
            sys.exit(f"--config={config}: there is no file {Path(name).resolve()}. {advice}")
        folder = Path(name).resolve().parent
        in_package = (folder / "__init__.py").exists()
        while (folder / "__init__.py").exists():
            folder = folder.parent
        if in_package:
            _put_on_import_path(folder)
        return name, [argument] if colon else []
    if name not in _names():
        close = difflib.get_close_matches(name, _names(), n=1)
        suggestion = f" Did you mean {close[0]!r}?" if close else ""
        sys.exit(
            f"--config={config}: {root() / 'configs'} has no config {name!r}.{suggestion} Give one "
            f"of {', '.join(_names())}, or a file."
        )
    return f"{root() / 'configs' / name.replace('.', '/')}.py", [argument] if colon else []


def _parts(config: str) -> tuple[str, str, str]:
    """Splits as `str.partition(":")` does, at the colon that `find` chooses."""
    ends = [len(config), *(m.start() for m in reversed(list(re.finditer(":", config))))]
    end = next((end for end in ends if Path(config[:end]).is_file()), config.find(":"))
    return (config, "", "") if end < 0 else (config[:end], config[end : end + 1], config[end + 1 :])


def load(path: str) -> config_dict.ConfigDict:
    """Returns what get_config of a config file returns, locked.

    Args:
        path: as for `find`.

    Raises:
        SystemExit: if it does not exist, is not Python, has no get_config, or raises an error.
    """
    file, argument = find(path)
    try:
        defined = runpy.run_path(file)
    except Exception as error:  # noqa: BLE001 - the file is a program: it may raise anything
        sys.exit(f"--config={path}: {file} cannot be run: {_error_in(file, error)}.")
    if "get_config" not in defined:
        sys.exit(f"--config={path}: {file} is no config: it has no function get_config.")
    try:
        config = defined["get_config"](*argument)
    except ValueError as error:
        sys.exit(f"--config={path}: {error}")
    except Exception as error:  # noqa: BLE001
        sys.exit(f"--config={path}: get_config failed: {_error_in(file, error)}.")
    if isinstance(config, Mapping):
        config = config_dict.ConfigDict(config)
    if not isinstance(config, config_dict.ConfigDict):
        sys.exit(
            f"--config={path}: get_config returned a {type(config).__name__}, expected an "
            "ml_collections.ConfigDict, as of core.config.editable."
        )
    return config.lock()


def read(of: type[T], name: str, fields: Sequence[Override] = ()) -> T:
    """Returns a config as its dataclass.

    Args:
        of: the dataclass of the configs that the program takes.
        name: the config, as for `find`.
        fields: what the command line sets of it.

    Raises:
        ConfigError: if it does not fit; also if it is a config of another program.
    """
    config = load(name)
    known = [field.name for field in dataclasses.fields(of)]  # type: ignore[arg-type]
    if unknown := [each for each in config if each not in known]:
        raise ConfigError(
            f"--config={name} is no {of.__name__}: it has the field {unknown[0]!r}. {of.__name__} "
            f"has {', '.join(known)}."
        )
    overrides.apply(of, config, fields)
    return from_dict(of, config)


def _error_in(file: str, error: Exception) -> str:
    """Returns "KeyError: 'a' (line 3)", with the line of the file that the error comes from."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file
    ]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"


def _names() -> list[str]:
    """Returns the names of all configs: the files below configs/ that have get_config."""
    folder = root() / "configs"
    return sorted(
        ".".join(path.relative_to(folder).with_suffix("").parts)
        for path in [*folder.glob("*.py"), *folder.glob("*/*.py")]
        if "\ndef get_config(" in regular(path).read_text()
    )


def _put_on_import_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
