"""What the fields of a config's dataclasses say: names, types, defaults; and the nearest name."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Collection, Iterator
from typing import Any, Literal, Union


@functools.cache
def hints_of(cls: Any) -> dict[str, Any]:
    """Returns {field: type} of a dataclass.

    Raises:
        TypeError: a type is not known in the module of the dataclass.
    """
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        where = f"the field types of {cls.__name__}"
        raise TypeError(
            f"Cannot resolve {where} ({error}): import them in {cls.__module__}."
        ) from error
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def arms_of(hint: Any) -> tuple[Any, ...]:
    """Returns the types of a union, such as (str, NoneType); another type alone."""
    is_union = typing.get_origin(hint) in (Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def is_section(hint: Any) -> bool:
    """Returns True for a dataclass."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def is_dict(hint: Any) -> bool:
    """Returns True for dict[str, X] and Mapping[str, X]."""
    return typing.get_origin(hint) in (dict, collections.abc.Mapping)


def is_instance(value: Any) -> bool:
    """Returns True for an instance of a dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Returns the default of a field; dataclasses.MISSING if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def required_of(cls: Any) -> list[str]:
    """Returns the names of the fields without a default."""
    missing = dataclasses.MISSING
    return [
        field.name
        for field in dataclasses.fields(cls)
        if field.init and field.default is missing and field.default_factory is missing
    ]


def paths_of(cls: Any, prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of all fields of nested dataclasses."""
    for name, hint in hints_of(cls).items():
        yield prefix + name
        for arm in arms_of(hint):
            if is_section(arm) and arm is not cls:
                yield from paths_of(arm, f"{prefix}{name}.")


def suggestion(name: str, known: Collection[str], elsewhere: Collection[str], what: str) -> str:
    """Returns the end of a message on an unknown name: ": did you mean ...?".

    Args:
        name: is not among `known`.
        known: the names that are possible.
        elsewhere: dotted names of fields at other places.
        what: has the known names.
    """
    near = [each for each in known if each.casefold() == name.casefold()]
    near = near or [path for path in elsewhere if path.rpartition(".")[2] == name][:1]
    near = near or difflib.get_close_matches(name, known, n=1)
    if near:
        return f": did you mean {near[0]!r}?"
    return f"; {what} has {', '.join(known) or 'no fields'}."


def type_name(hint: Any) -> str:
    """Returns a type as messages write it, such as "one of 'a', 'b'"."""
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    if hint is type(None):
        return "None"
    if len(arms := arms_of(hint)) > 1:
        return " | ".join(type_name(arm) for arm in arms)
    if inner := typing.get_args(hint):
        items = ["..." if each is Ellipsis else type_name(each) for each in inner]
        name = "dict" if is_dict(hint) else typing.get_origin(hint).__name__
        return f"{name}[{', '.join(items)}]"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
