"""Fields of a config on the command line, `--config.a.b=TEXT`.

    argv --split--> other flags, [Override("a.b", "TEXT"), ...] --apply--> the ConfigDict, changed

The schema decides what a text means, not the present value (core/texts.py). So a field takes each
value of its type, also where it is None, or where the config file leaves it out. The last of two
overrides of one field holds.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import config_dict

from flamingo_jax.core.config import ConfigError, editable, editable_defaults, leaves
from flamingo_jax.core.fields import (
    arms_of,
    default_of,
    hints_of,
    is_dict,
    is_instance,
    is_section,
    paths_of,
    suggestion,
    type_name,
)
from flamingo_jax.core.texts import NONE, number_of, value_of

_FIELD = re.compile(r"--?(?P<no>no)?config\.(?P<path>[^=]+)(=(?P<text>.*))?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Override:
    """One field of the command line.

    Attributes:
        path: the field's dotted name, such as "optimizer.learning_rate".
        text: its value; None if there is none, as in `--config.hooks.progress`.
    """

    path: str
    text: str | None

    @property
    def where(self) -> str:
        """The field, for messages."""
        return f"config.{self.path}"


def with_flag_files(argv: Sequence[str], read: Callable[[Sequence[str]], list[str]]) -> list[str]:
    """Returns the words of a command line, with those of flag files in the place of --flagfile.

    In a flag file, spaces and quotes around a value are left out, as a shell does; a line that
    begins with # is a comment.

    Args:
        argv: the words.
        read: returns the lines of ["--flagfile=FILE"] or ["--flagfile", "FILE"], as absl does.

    Raises:
        SystemExit: a flag file cannot be read.
    """
    words: list[str] = []
    given = list(argv)
    while given:
        word = given.pop(0)
        if word == "--":
            return [*words, word, *given]
        if re.fullmatch(r"--?flagfile(=.*)?", word, re.DOTALL) is None:
            words.append(word)
            continue
        directive = [word] if "=" in word else [word, *given[:1]]
        del given[: len(directive) - 1]
        try:
            lines = read(directive)
        except Exception as error:  # noqa: BLE001 - absl's errors, which core does not know
            sys.exit(f"{' '.join(directive)} cannot be read: {error}")
        words += [_unquoted(line) for line in lines if not line.startswith(("#", "//"))]
    return words


def split(argv: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Separates the fields of the config from the other words of a command line.

    A value is after "=", or is the next word. A word that begins as a flag (and is no number) is no
    value. Words after "--" are kept.
    """
    words = list(argv)
    rest: list[str] = []
    found: list[Override] = []
    while words:
        word = words.pop(0)
        if word == "--":
            return [*rest, word, *words], found
        field = _FIELD.fullmatch(word)
        if field is None:
            rest.append(word)
            continue
        text = field["text"]
        if field["no"] and text is None:
            text = "False"
        elif text is None and words and not _begins_flag(words[0]):
            text = words.pop(0)
        found.append(Override(field["path"], text))
    return rest, found


def apply(of: type, config: config_dict.ConfigDict, overrides: Sequence[Override]) -> None:
    """Sets fields of a config, in order.

    An optional section that is None is made with its defaults when one of its fields is set. A name
    that a dict does not have is added; None removes a section from a dict.

    Args:
        of: the dataclass of the config.
        config: is changed.
        overrides: of the command line.

    Raises:
        ConfigError: there is no such field, or the text is no value of its type.
    """
    with config.unlocked():
        for override in overrides:
            *above, last = override.path.split(".")
            at = _Place(of, config, "config")
            for name in above:
                at = _inside(at, name, _type_of(at, name, of, config))
            hint = _type_of(at, last, of, config)
            _set(at, last, hint, _value(hint, override))


@dataclasses.dataclass(frozen=True)
class _Place:
    """A section or a dict of the config.

    Attributes:
        hint: its type.
        holder: its fields.
        where: its dotted name, for messages.
    """

    hint: Any
    holder: config_dict.ConfigDict
    where: str


def _type_of(at: _Place, name: str, of: type, config: config_dict.ConfigDict) -> Any:
    """Returns the type of a field.

    Args:
        at: what has the field.
        name: the field.
        of: the dataclass of the whole config.
        config: the whole config.

    Raises:
        ConfigError: there is none of this name.
    """
    known: list[str] = []
    for arm in arms_of(at.hint):
        if is_dict(arm) and re.fullmatch(r"\S+", name):
            return typing.get_args(arm)[1]
        if is_section(arm):
            if name in (hints := hints_of(arm)):
                return hints[name]
            known += hints
        if arm is Any:
            return Any
    here = f"{at.where}.{name}"
    if not known:
        raise ConfigError(f"Unknown field {here}: {at.where} is {type_name(at.hint)}.")
    elsewhere = [*paths_of(of), *(path for path, _ in leaves(config.to_dict(), ""))]
    elsewhere = [f"config.{path}" for path in elsewhere]
    raise ConfigError(f"Unknown field {here}{suggestion(name, known, elsewhere, at.where)}")


def _inside(at: _Place, name: str, hint: Any) -> _Place:
    """Returns the section or dict `name` of a place; one that is not there is made."""
    where = f"{at.where}.{name}"
    found = at.holder.get(name)
    if found is None:
        found = _default(at.hint, name, hint)
    if is_instance(found):
        found = editable(found)
    if not isinstance(found, Mapping | config_dict.ConfigDict):
        return _Place(hint, config_dict.ConfigDict(), where)  # it has no fields
    if found is not at.holder.get(name):
        found = config_dict.ConfigDict(found).unlock()
        _set(at, name, hint, found)
    return _Place(hint, found, where)


def _default(above: Any, name: str, hint: Any) -> Any:
    """Returns the default of the section or dict `name` of `above`, with its type `hint`."""
    for arm in arms_of(above):
        for field in dataclasses.fields(arm) if is_section(arm) else ():
            if field.name == name and is_instance(default_of(field)):
                return default_of(field)
    sections = [arm for arm in arms_of(hint) if is_section(arm)]
    if sections:
        return editable_defaults(sections[0])
    return {} if any(is_dict(arm) or arm is Any for arm in arms_of(hint)) else None


def _value(hint: Any, override: Override) -> Any:
    """Returns the value of an override."""
    text, where = override.text, override.where
    if text is None:
        if bool in arms_of(hint):
            return True
        raise ConfigError(
            f"--{where} has no value; expected {type_name(hint)}, as in --{where}=VALUE."
        )
    if any(is_section(arm) for arm in arms_of(hint)) and text.strip() in NONE:
        return None  # it removes a section of a dict; `from_dict` says where there must be one
    return value_of(hint, text, where)


def _set(at: _Place, name: str, hint: Any, value: Any) -> None:
    """Sets a field. The schema checked the type: that of the present value does not count."""
    if (
        value is None
        and type(None) not in arms_of(hint)
        and any(is_dict(arm) for arm in arms_of(at.hint))
    ):
        if name not in at.holder:
            has = ", ".join(at.holder) or "nothing"
            raise ConfigError(f"{at.where}.{name} is not there to remove: {at.where} has {has}.")
        del at.holder[name]
        return
    with at.holder.ignore_type():
        at.holder[name] = value


def _unquoted(line: str) -> str:
    """Returns `--name=value` of a line `--name = "value"`, or `--name "value"`."""
    found = re.fullmatch(r"(--?[\w.]+)(?:\s*=\s*|\s+)(.*)", line, re.DOTALL)
    if found is None:
        return line
    name, value = found.groups()
    quoted = re.fullmatch(r"'([^']*)'|\"([^\"]*)\"", value, re.DOTALL)
    return f"{name}={(quoted[1] or quoted[2] or '') if quoted else value}"


def _begins_flag(word: str) -> bool:
    return word.startswith("-") and word != "-" and number_of(word) is None
