"""Finds config files by name.

`--config=tiny:language_model` is configs/tiny.py with the argument language_model.

In a clone, configs/ is next to the package. In an installed wheel, the same files are in
flamingo_jax/bundled/configs (see setup.py). Config files import each other as `from configs import
...`. For this, the folder above configs/ is added to the import path.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable

from flamingo_jax.core.paths import Path

_PACKAGE = Path(__file__).parent.parent


def root() -> Path:
    """Returns the folder that contains configs/: that of the wheel, else that of the clone."""
    bundled = _PACKAGE / "bundled"
    return bundled if bundled.exists() else _PACKAGE.parent


def with_named_configs(parse: Callable[[list[str]], list[str]]) -> Callable[[list[str]], list[str]]:
    """Returns a parser of flags that accepts --config=NAME[:ARGUMENT] and FILE[:ARGUMENT]."""

    def parse_flags(argv: list[str]) -> list[str]:
        argv = list(argv)
        for i, word in enumerate(argv):
            if found := re.fullmatch(r"(--?config=)(.+)", word):
                argv[i] = found[1] + find(found[2])
            elif word in ("--config", "-config") and i + 1 < len(argv):
                argv[i + 1] = find(argv[i + 1])
        return parse(argv)

    return parse_flags


def find(config: str) -> str:
    """Converts NAME[:ARGUMENT] to FILE[:ARGUMENT], and lets the file import `configs`.

    Args:
        config: a name below configs/ ("tiny", "ablations.contrastive_data"), or a file, each with
            an optional ":ARGUMENT".

    Raises:
        SystemExit: if there is no config of this name.
    """
    name, colon, argument = config.partition(":")
    _put_on_import_path(root())
    if "/" in name or name.endswith(".py") or Path(name).exists():
        folder = Path(name).resolve().parent
        in_package = (folder / "__init__.py").exists()
        while (folder / "__init__.py").exists():
            folder = folder.parent
        if in_package:
            _put_on_import_path(folder)
        return config
    file = root() / "configs" / (name.replace(".", "/") + ".py")
    if not file.exists():
        names = sorted(
            path.stem for path in (root() / "configs").glob("*.py") if path.stem != "__init__"
        )
        close = difflib.get_close_matches(name, names, n=1)
        suggestion = f" Did you mean {close[0]!r}?" if close else ""
        sys.exit(
            f"--config={config}: {root() / 'configs'} has no config {name!r}.{suggestion} Give one "
            f"of {', '.join(names)}, or a file."
        )
    return f"{file}{colon}{argument}"


def _put_on_import_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
