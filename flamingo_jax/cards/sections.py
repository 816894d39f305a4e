"""A card: sections of questions with answers, as Markdown, which people go on writing.

The last line of a card has the hash of the text above it. So a card that a person has edited is
recognised, and is not replaced.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path, PathError, PathLike
from flamingo_jax.core.version import __version__

UNKNOWN = "not stated: fill in"
Sections = Sequence[tuple[str, tuple[str, ...]]]  # (title, questions)
_STAMP = re.compile(
    r"\n<!-- written by flamingo_jax \S+; sha256 of the text above: (\w{64}) -->\n\Z"
)


class EditedCardError(PathError):
    """A card has been edited, and would be lost."""


def render(title: str, about: str, sections: Sections, answers: Mapping[str, str]) -> str:
    """Returns a card.

    Args:
        title: the heading.
        about: one paragraph below it.
        sections: titles and questions. A section without questions has one answer.
        answers: question, or title of a section without questions -> answer. All others are
            UNKNOWN.

    Raises:
        ValueError: an answer is to no question.
    """
    asked = {name for section, questions in sections for name in questions or (section,)}
    if foreign := sorted(answers.keys() - asked):
        raise ValueError(f"The card has no question {', '.join(foreign)}.")
    lines = [f"# {title}", "", about, ""]
    for section, questions in sections:
        lines += [f"## {section}", ""]
        for question in questions:
            lines += [f"### {question}", "", answers.get(question) or UNKNOWN, ""]
        if not questions:
            lines += [answers.get(section) or UNKNOWN, ""]
    return "\n".join(lines)


def write(path: PathLike, text: str, *, overwrite: bool) -> Path:
    """Writes a card with its stamp.

    Args:
        path: of the card.
        text: the card.
        overwrite: True to replace a card that was edited.

    Raises:
        EditedCardError: there is a card that was edited.
        PathError: it cannot be read or written.
    """
    target = Path(path)
    if target.exists() and not overwrite and is_edited(target):
        raise EditedCardError(
            f"{target} was edited: it stays as it is. Give --overwrite to replace it, or move it "
            "away."
        )
    about = f"written by flamingo_jax {__version__}; sha256 of the text above: {_hash(text)}"
    return paths.write_atomically(target, f"{text}\n<!-- {about} -->\n")


def is_edited(path: PathLike) -> bool:
    """Returns True if a card is not as this program wrote it.

    Raises:
        PathError: it cannot be read.
    """
    try:
        text = paths.regular(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise PathError(f"Cannot read {path}: {error}.") from error
    found = _STAMP.search(text)
    return found is None or found[1] != _hash(text[: found.start()])


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
