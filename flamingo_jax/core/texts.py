"""Converts texts of the command line to values of the type that a config's field has.

    int     3, -1, 1_000, 0x10, 1e3           bool    true, yes, on, 1, ... false, no, off, 0
    float   2, 1e-3, inf                      tuple   4,8   (4, 8)   [4,8]   a,b   ('a',)   ()
    str     the text as it is                 dict    {"a": 1}, in Python's or JSON's notation

`None` and `none` are None where the type has None, and `'None'` is the text there.
"""

from __future__ import annotations

import ast
import decimal
import difflib
import json
import math
import re
import typing
import warnings
from typing import Any, Literal

from ml_collections import config_dict

from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.fields import arms_of, hints_of, is_dict, is_section, type_name

NONE = ("None", "none")
_TRUE = ("true", "t", "yes", "y", "on", "1")
_FALSE = ("false", "f", "no", "n", "off", "0")
_MOST_DIGITS = 20  # of a whole number such as 1e6; a longer one is out of each range
_LONGEST_SHOWN = 100
# An item of a tuple without its brackets: in quotes, in brackets, or all until the next comma.
_ITEM = re.compile(
    r"\s*('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\([^()]*\)|\[[^\[\]]*\]|[^,]*?)\s*(?:,|$)",
    re.DOTALL,
)


def value_of(hint: Any, text: str, where: str) -> Any:
    """Returns the value that a text is, in the form that a ConfigDict stores.

    Args:
        hint: its type.
        text: the text.
        where: the field, for messages.

    Raises:
        ConfigError: the text is no value of this type.
    """
    arms = arms_of(hint)
    if type(None) in arms:
        plain = text.strip()
        if plain in NONE:
            return None
        if re.fullmatch(r"'[Nn]one'|\"[Nn]one\"", plain):
            return plain[1:-1]
    others = [arm for arm in arms if arm is not type(None)]
    failures = []
    for arm in sorted(others, key=lambda arm: arm is str):  # a str takes each text: it is last
        try:
            return _convert(arm, text, where)
        except ConfigError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]  # it says more
    raise _error(hint, text, where)


def number_of(text: str) -> float | None:
    """Returns the number that a text is; None if it is none, or too large for a float."""
    try:
        number = float(text)
    except ValueError:
        return None
    is_written = text.strip().lstrip("+-").lower() in ("inf", "infinity")
    return None if math.isinf(number) and not is_written else number


def _convert(hint: Any, text: str, where: str) -> Any:
    """Converts to a type that is no union."""
    plain = text.strip()
    found: Any = None
    if hint is str:
        return text
    if hint is bool and plain.lower() in (*_TRUE, *_FALSE):
        return plain.lower() in _TRUE
    if hint is int:
        found = _whole(plain)
    elif hint is float:
        found = number_of(plain)
    elif hint is Any:
        found = _literal(plain)
        return text if found is None and plain not in NONE else found
    elif typing.get_origin(hint) is Literal:
        return _choice(hint, plain, where)
    elif typing.get_origin(hint) is tuple:
        return _tuple(hint, plain, where)
    elif (is_section(hint) or is_dict(hint)) and isinstance(_literal(plain), dict):
        found = config_dict.ConfigDict(_literal(plain))
    if found is None:
        raise _error(hint, text, where)
    return found


def _choice(hint: Any, text: str, where: str) -> Any:
    choices = {str(choice): choice for choice in typing.get_args(hint)}
    if text in choices:
        return choices[text]
    near = difflib.get_close_matches(text, choices, n=1)
    raise _error(hint, text, where, f": did you mean {near[0]!r}?" if near else ".")


def _tuple(hint: Any, text: str, where: str) -> tuple[Any, ...]:
    """Converts a tuple, each item by its own type."""
    types = typing.get_args(hint)
    if text in NONE:
        raise _error(hint, text, where, ". () is the empty one.")
    items = _items(text, words_only=types[0] is str)
    if items is None:
        raise _error(hint, text, where)
    if types[1:] == (Ellipsis,):
        types = types[:1] * len(items)
    if len(items) != len(types):
        raise _error(hint, text, where)
    return tuple(
        value_of(of, item, f"{where}[{i}]")
        for i, (of, item) in enumerate(zip(types, items, strict=True))
    )


def _items(text: str, *, words_only: bool) -> list[str] | None:
    """Returns the items of a tuple as texts; None if it is no tuple.

    Args:
        text: the tuple, in Python's notation, or with words that have no quotes.
        words_only: whether the items are texts: then 1_0 stays 1_0.
    """
    found = _literal(text)
    if isinstance(found, tuple | list) and (
        not words_only or all(isinstance(item, str) for item in found)
    ):
        return [item if isinstance(item, str) else repr(item) for item in found]
    if (text[:1], text[-1:]) in (("(", ")"), ("[", "]")):
        text = text[1:-1].strip()
    items, at = [], 0
    while at < len(text):
        match = _ITEM.match(text, at)
        if match is None or not match[1]:
            return None
        quoted = _literal(match[1]) if match[1][0] in "'\"" else None
        items.append(quoted if isinstance(quoted, str) else match[1])
        at = match.end()
    return items


def _literal(text: str) -> Any:
    """Returns what a text is in Python's or JSON's notation; None if it is neither."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd numbers, such as 1or
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _whole(text: str) -> int | None:
    """Returns an int, written 3, -1, 1_000, 0x10 or 1e3; None if it is none."""
    try:
        if re.fullmatch(r"[+-]?0[xob]\w+", text, re.IGNORECASE):
            return int(text, 0)
        if re.fullmatch(r"[+-]?\d[\d_]*", text):
            return int(text)
        float(text)  # stricter than decimal: that takes _1
        number = decimal.Decimal(text)
        if not number.is_finite() or number.adjusted() > _MOST_DIGITS or number % 1:
            return None
    except (ValueError, decimal.InvalidOperation):
        return None
    return int(number)


def _error(hint: Any, text: str, where: str, end: str = ".") -> ConfigError:
    shown = repr(text) if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]!r}..."
    return ConfigError(f"{where} is {shown}; expected {_in_words(hint, where)}{end}")


def _in_words(hint: Any, where: str) -> str:
    """Returns what the command line expects of a type: of a section, one of its fields."""
    for arm in arms_of(hint):
        name = ".NAME" if is_dict(arm) else ""
        section = typing.get_args(arm)[1] if is_dict(arm) else arm
        if is_section(section):
            fields = list(hints_of(section))
            return (
                f"one of its fields, as in --{where}{name}.{fields[0]}=VALUE: {', '.join(fields)}"
            )
    return type_name(hint)
