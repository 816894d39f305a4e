"""Converts configs: dicts outside the package, frozen dataclasses inside.

    {"optimizer": {"learning_rate": 1}}
        --from_dict--> Config(optimizer=Optimizer(learning_rate=1.0)) --to_dict--> JSON

A config file returns an ml_collections.ConfigDict, and the command line overrides its fields.
`from_dict` converts the result to nested frozen dataclasses once, and checks the type of every
field. No code inside the package reads a dict of options.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

from ml_collections import config_dict

from flamingo_jax.core.fields import (
    arms_of,
    default_of,
    hints_of,
    is_dict,
    is_instance,
    is_section,
    paths_of,
    required_of,
    suggestion,
    type_name,
)

T = TypeVar("T")

_ABSENT = object()
_LARGEST = 1 << 1023  # as an int; a float is not larger


class ConfigError(ValueError):
    """A config does not fit its schema.

    The message names the dotted path, the value and what was expected.
    """


class FieldError(ConfigError):
    """A dataclass refuses the value of one of its fields; the message begins with the field."""


def from_dict(cls: type[T], data: Any, where: str = "config") -> T:
    """Returns the frozen dataclass `cls` with the values of `data`; other fields keep defaults.

    Field types may be bool, int, float, str, Any, Literal, Optional and unions, tuple[X, ...] and
    tuple[X, Y] (the value may be a list), dict[str, X], and dataclasses, nested in any way. An int
    is accepted as a float; nothing else is converted.

    Args:
        cls: a dataclass.
        data: a mapping of field names, an ml_collections.ConfigDict, or an instance of `cls`
            (returned unchanged).
        where: the dotted path of `data`, for messages.

    Raises:
        ConfigError: if a field is unknown (the message names the nearest known field) or missing,
            a value has the wrong type, or the dataclass itself refuses the values.
    """
    return _dataclass(cls, data, where)


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a dataclass as nested dicts, lists and scalars for JSON; inverse of `from_dict`.

    Raises:
        ConfigError: if JSON cannot represent a value.
    """
    if not is_instance(config):
        raise ConfigError(f"to_dict got {type(config).__name__}; expected a dataclass instance.")
    return _plain(config, "config")


def editable(config: Any) -> config_dict.ConfigDict:
    """Returns a dataclass, or a dict of them, as a locked ConfigDict, for `--config.a.b=value`.

    `from_dict` converts it back. An optional bool, int, float or str accepts None and values of its
    type, also when its present value is None.
    """
    return _editable(type(config), config).lock()


def editable_defaults(cls: type) -> config_dict.ConfigDict:
    """Returns a dataclass as a ConfigDict, with the fields that have a default."""
    given = [field for field in dataclasses.fields(cls) if field.name not in required_of(cls)]
    return config_dict.ConfigDict(
        {field.name: _editable(hints_of(cls)[field.name], default_of(field)) for field in given}
    )


def _editable(hint: Any, value: Any) -> Any:
    """Returns one value of the type `hint` in the form that a ConfigDict stores."""
    arms = arms_of(hint)
    if is_instance(value):
        kind: Any = type(value)
        hints = hints_of(kind)
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return config_dict.ConfigDict(
            {name: _editable(hints[name], v) for name, v in fields.items()}
        )
    if isinstance(value, Mapping):
        inner = next((typing.get_args(arm)[1] for arm in arms if is_dict(arm)), Any)
        return config_dict.ConfigDict({name: _editable(inner, v) for name, v in value.items()})
    if type(None) in arms and (scalars := [arm for arm in arms if arm in (bool, int, float, str)]):
        return config_dict.FieldReference(value, field_type=scalars[0])
    return value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns the differences of two config dicts, as lines "optimizer.decay: 0.1 -> 0.2"."""
    before, after = dict(leaves(old)), dict(leaves(new))
    paths = dict.fromkeys([*before, *after])  # the order of the fields
    pairs = [(path, before.get(path, _ABSENT), after.get(path, _ABSENT)) for path in paths]
    return [f"{path}: {_show(a)} -> {_show(b)}" for path, a, b in pairs if a != b]


def leaves(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted path, value) of nested dicts.

    A list is one value, and equals the tuple of its items.
    """
    if isinstance(data, Mapping) and (data or not prefix):
        for name, value in data.items():
            yield from leaves(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, _lists(data)


def _dataclass(cls: Any, data: Any, where: str) -> Any:
    """Converts to one dataclass."""
    if isinstance(data, cls):
        return data
    data = _mapping(data, where, cls.__name__)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    if unknown := [name for name in data if name not in fields]:
        raise ConfigError(
            f"Unknown field {where}.{unknown[0]}"
            + suggestion(unknown[0], fields, list(paths_of(cls)), cls.__name__)
        )
    hints = hints_of(cls)
    for name in required_of(cls):
        if name not in data:
            raise ConfigError(
                f"Field {where}.{name} is missing; expected {type_name(hints[name])}. Give it a "
                "value."
            )
    values = {name: _convert(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    try:
        return cls(**values)
    except FieldError as error:
        raise ConfigError(f"{where}.{error}") from error
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where} ({cls.__name__}): {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Converts one value to the type `hint`; every ConfigError names `where`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if len(arms_of(hint)) > 1:
        return _union(arguments, value, where)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        near = difflib.get_close_matches(str(value), [str(choice) for choice in arguments], n=1)
        suggestion = f": did you mean {near[0]!r}?" if near else "."
        raise ConfigError(f"{_got(where, value)}; expected {type_name(hint)}{suggestion}")
    if origin is tuple:
        return _tuple(arguments, value, where)
    if is_dict(hint):
        items = _mapping(value, where, type_name(hint))
        _check_names(arguments[1], items, where)
        return {name: _convert(arguments[1], v, f"{where}.{name}") for name, v in items.items()}
    if is_section(hint):
        return _dataclass(hint, value, where)
    if hint is float and type(value) is int and abs(value) < _LARGEST:
        return float(value)
    if hint is float and isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"{_got(where, value)}; expected a number.")
    if hint in (bool, int, float, str, type(None)):
        if type(value) is hint:
            return value
        raise ConfigError(f"{_got(where, value)}; expected {type_name(hint)}.")
    raise ConfigError(
        f"Field {where} has the type {type_name(hint)}, which a config cannot hold: see from_dict."
    )


def _check_names(hint: Any, items: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError at a section without its fields that has nearly the name of another."""
    for name, value in items.items() if is_section(hint) else ():
        if is_instance(value):
            continue
        required = required_of(hint)
        given = _mapping(value, f"{where}.{name}", hint.__name__)
        missing = [field for field in required if field not in given]
        near = difflib.get_close_matches(name, [other for other in items if other != name], n=1)
        if missing and near:
            raise ConfigError(
                f"Field {where}.{name}.{missing[0]} is missing: did you mean {near[0]!r}, not "
                f"{name!r}? A new one needs {', '.join(required)}."
            )


def _union(arms: tuple[Any, ...], value: Any, where: str) -> Any:
    """Converts to the first type of a union that accepts the value.

    A value that already has one of the types is not converted.
    """
    if type(value) in arms:
        return value
    others = [arm for arm in arms if arm is not type(None)]
    if len(others) == 1 and value is not None:
        return _convert(others[0], value, where)  # Optional[X]: the message of X says more
    failures = []
    for arm in others:
        try:
            return _convert(arm, value, where)
        except ConfigError as error:
            failures.append(str(error))
    names = " | ".join(type_name(arm) for arm in arms)
    raise ConfigError(
        f"{_got(where, value)}; expected "
        f"{names}." + "".join(f"\n  {failure}" for failure in failures)
    )


def _tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    """Converts a list or a tuple. A str is an error, not a tuple of letters."""
    expected = type_name(tuple[arguments])  # type: ignore[valid-type]
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{_got(where, value)}; expected {expected}.")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise ConfigError(f"{_got(where, value)} of length {len(value)}; expected {expected}.")
    return tuple(
        _convert(a, v, f"{where}[{i}]")
        for i, (a, v) in enumerate(zip(arguments, value, strict=True))
    )


def _mapping(data: Any, where: str, expected: str) -> dict[str, Any]:
    """Returns a plain dict with str keys; the references in a ConfigDict are resolved."""
    if not isinstance(data, Mapping) and callable(getattr(data, "to_dict", None)):
        data = data.to_dict()
    if not isinstance(data, Mapping):
        raise ConfigError(f"{_got(where, data)}; expected a dict of the fields of {expected}.")
    if odd := [key for key in data if not isinstance(key, str)]:
        raise ConfigError(f"{where} has the key {odd[0]!r}; expected names (str).")
    return dict(data)


def _plain(value: Any, where: str) -> Any:
    if is_instance(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: _plain(getattr(value, name), f"{where}.{name}") for name in names}
    if isinstance(value, Mapping):
        return {str(name): _plain(v, f"{where}.{name}") for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(
        f"{_got(where, value)}; a config holds bool, int, float, str, None and containers of them."
    )


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)


def _got(where: str, value: Any) -> str:
    return f"{where} is {value!r} ({type(value).__name__})"
