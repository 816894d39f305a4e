"""Command-line flags from the fields of frozen dataclasses, so that each option is defined once.

    @dataclass(frozen=True)
    class TextRequest:            -->   --input=...  --text_field=text  --near_duplicates
        input: str = ""

A field with the same name in several pipelines is one flag. A flag that the chosen pipeline does
not know is an error.

Why not simple-parsing: a field of two pipelines would be two flags (--text.input), lists would be
split at spaces, and a misspelt flag would get no suggestion.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

_DEFINE: dict[str, Callable[..., Any]] = {
    "str": flags.DEFINE_string,
    "int": flags.DEFINE_integer,
    "float": flags.DEFINE_float,
    "bool": flags.DEFINE_bool,
    "list": flags.DEFINE_list,
}


class Options:
    """The flags of all pipelines.

    Args:
      pipelines: {name: dataclass with fields of type str, int, float, bool or tuple[str, ...]}. The
        "Attributes" in its docstring are the help.
      shared: a dataclass of options for all pipelines.

    Raises:
      TypeError: a field has another type, or two fields of one name have different types.
    """

    def __init__(self, pipelines: Mapping[str, type], shared: type):
        self._pipelines, self._shared = dict(pipelines), shared
        types: dict[str, str] = {}
        helps: dict[str, list[str]] = {}
        for pipeline, of in [("all", shared), *pipelines.items()]:
            described = {k: v for base in reversed(of.__mro__) for k, v in attributes(base).items()}
            for field, kind in _fields(of).items():
                if types.setdefault(field, kind) != kind:
                    raise TypeError(
                        f"{of.__name__}.{field} is a {kind}, but --{field} is a "
                        f"{types[field]} elsewhere."
                    )
                helps.setdefault(field, []).append(f"{pipeline}: {described.get(field, '')}")
        for field, kind in types.items():
            _DEFINE[kind](field, None, " ".join(helps[field]))
        self._names = frozenset(types)

    def read(self, pipeline: str, values: flags.FlagValues) -> tuple[Any, Any]:
        """Makes the pipeline's dataclass and the shared one from the flags that were given.

        Raises:
          ValueError: this pipeline does not know a given flag, or a dataclass refuses a value.
        """
        mine, shared = _fields(self._pipelines[pipeline]), _fields(self._shared)
        for name in sorted(self._names - set(mine) - set(shared)):
            if values[name].present:
                close = difflib.get_close_matches(name, mine, n=1)
                suggestion = f" Did you mean --{close[0]}?" if close else ""
                raise ValueError(
                    f"--{name}: pipeline {pipeline!r} has no such option; it has "
                    f"{', '.join(f'--{field}' for field in mine)}.{suggestion}"
                )

        def make(of: type, fields: Mapping[str, str]) -> Any:
            chosen = {field: values[field].value for field in fields if values[field].present}
            return of(
                **{
                    field: tuple(value) if isinstance(value, list) else value
                    for field, value in chosen.items()
                }
            )

        return make(self._pipelines[pipeline], mine), make(self._shared, shared)


def attributes(of: type) -> dict[str, str]:
    """Returns {field: description} from the "Attributes" section of a dataclass's docstring."""
    text = inspect.cleandoc(of.__doc__ or "").partition("Attributes:")[2]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        entry = re.match(r"  (\w+(?:, \w+)*): (.*)", line)
        if entry:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif line.startswith("    "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def _fields(of: type) -> dict[str, str]:
    hints = typing.get_type_hints(of)
    kinds = {str: "str", int: "int", float: "float", bool: "bool", tuple[str, ...]: "list"}
    found = {}
    for field in dataclasses.fields(of):
        if not field.init:
            continue
        if hints[field.name] not in kinds:
            raise TypeError(
                f"{of.__name__}.{field.name} is of type {hints[field.name]}; a flag takes one of "
                f"{', '.join(_DEFINE)}."
            )
        found[field.name] = kinds[hints[field.name]]
    return found
