"""Caption scores by group of people, with a significance test (paper, D.2.2).

    FILE.csv      image_id,gender,skin          FILE.jsonl    {"image_id": 42, "gender": "female"}
                  42,female,darker

The paper compares COCO captions of images with women and with men, and with darker and lighter
skin, by a two-tailed t-test with unequal variances on the CIDEr of each caption. The annotations
are of the user: here they may have any attributes and groups.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flamingo_jax.core import paths
from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.evaluation.episode import Answer

ID_COLUMNS = ("image_id", "query_id", "id")
MOST_GROUPS = 10
Groups = Mapping[str, Mapping[str, str]]  # attribute -> {image id: group}
ScoreEach = Callable[[Sequence[Answer]], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class GroupComparison:
    """Two groups of an attribute.

    Attributes:
        attribute: its name.
        groups: their names.
        counts: captions of each.
        means: mean score of each.
        t: statistic of Welch's test; None if it is not defined.
        p: probability of such a difference, or a larger one, if the true means are equal; None
            likewise.
    """

    attribute: str
    groups: tuple[str, str]
    counts: tuple[int, int]
    means: tuple[float, float]
    t: float | None
    p: float | None


def read_groups(path: PathLike) -> Groups:
    """Reads a file of annotations, CSV with a head, or JSON lines.

    An empty value says that the image has no group.

    Raises:
        PathError: it cannot be read.
        ConfigError: it has no column of ids, no other column, a line without an id, or two groups
            for one image; or its lines are damaged.
    """
    file = Path(path)
    try:
        text = paths.regular(file).read_text()
    except FileNotFoundError as error:
        raise paths.PathError(f"There is no file {file}. Check --groups.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise paths.PathError(f"Cannot read {file}: {error}.") from error
    lines = list(_json_lines(file, text) if _is_json(file) else _csv_lines(file, text))
    found: dict[str, dict[str, str]] = {}
    for number, line in lines:
        name = next((column for column in ID_COLUMNS if column in line), None)
        if name is None:
            raise ConfigError(
                f"{file}, line {number}: expected a column {' or '.join(ID_COLUMNS)}, got "
                f"{', '.join(line)}."
            )
        if line[name] in ("", None):
            raise ConfigError(f"{file}, line {number}: {name} is empty; expected an image's id.")
        image = str(line[name])
        for attribute, value in line.items():
            if attribute == name or value in ("", None):
                continue
            known = found.setdefault(attribute, {})
            if known.setdefault(image, str(value)) != str(value):
                raise ConfigError(
                    f"{file}, line {number}: image {image} has {attribute} {value} here and "
                    f"{known[image]} before."
                )
    if not found:
        raise ConfigError(f"{file} has no annotations: expected ids, and attributes beside them.")
    return found


def compare(
    answers: Sequence[Answer], values: Sequence[float], groups: Groups
) -> tuple[list[GroupComparison], list[str]]:
    """Compares the groups of each attribute, in pairs; returns the pairs, and notes.

    Args:
        answers: captions of one task at one number of shots.
        values: the score of each.
        groups: of the images.
    """
    pairs, notes = list[GroupComparison](), list[str]()
    for attribute, group_of in groups.items():
        members: dict[str, list[float]] = {}
        for answer, value in zip(answers, values, strict=True):
            if group := group_of.get(str(answer.episode.query_id)):
                members.setdefault(group, []).append(value)
        known = sum(map(len, members.values()))
        if len(members) > MOST_GROUPS:
            notes.append(
                f"{attribute} has {len(members)} groups, expected at most {MOST_GROUPS}: it is "
                "left out."
            )
            continue
        if len(members) < 2:
            notes.append(
                f"{attribute} has {len(members)} groups among the {len(answers)} captions: there "
                "is nothing to compare."
            )
            continue
        if known < len(answers):
            notes.append(f"{len(answers) - known} of {len(answers)} captions have no {attribute}.")
        for first, second in itertools.combinations(sorted(members), 2):
            pairs.append(_compared(attribute, first, second, members))
    return pairs, notes


def welch(first: Sequence[float], second: Sequence[float]) -> tuple[float | None, float | None]:
    """Returns t and p of Welch's two-tailed t-test, which does not assume equal variances.

    (None, None) if a group has fewer than two values, or if neither varies.
    """
    from scipy import stats  # takes a second

    if min(len(first), len(second)) < 2 or len(set(first)) == len(set(second)) == 1:
        return None, None
    found = stats.ttest_ind(first, second, equal_var=False)
    t, p = float(found.statistic), float(found.pvalue)
    return (t, p) if math.isfinite(t) and math.isfinite(p) else (None, None)


def _compared(
    attribute: str, first: str, second: str, members: Mapping[str, Sequence[float]]
) -> GroupComparison:
    one, other = members[first], members[second]
    t, p = welch(one, other)
    means = (statistics.fmean(one), statistics.fmean(other))
    return GroupComparison(attribute, (first, second), (len(one), len(other)), means, t, p)


def _is_json(file: Path) -> bool:
    return file.suffix.lower() in (".jsonl", ".json")


def _csv_lines(file: Path, text: str) -> Iterable[tuple[int, Mapping[str, Any]]]:
    content = io.StringIO(text.removeprefix("\ufeff"), newline="")
    reader = csv.DictReader(content, restkey="", restval="", strict=True)
    try:
        names = reader.fieldnames or ()
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"{file} has the column {twice[0]!r} twice; expected it once.")
        for line in reader:
            if "" in line and "" not in names:
                raise ConfigError(
                    f"{file}, line {reader.line_num}: expected {len(names)} values, as the head "
                    f"has, got {len(names) + len(line[''])}."
                )
            yield reader.line_num, {name: value for name, value in line.items() if name}
    except csv.Error as error:
        number = reader.reader.line_num
        raise ConfigError(f"{file}, line {number} is no CSV: {error}.") from error


def _json_lines(file: Path, text: str) -> Iterable[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            found = paths.parse_json(line)
        except ValueError as error:
            raise ConfigError(f"{file}, line {number} is not JSON: {error}.") from error
        if not isinstance(found, dict):
            raise ConfigError(f"{file}, line {number}: expected an object, got {line[:40]}.")
        yield number, found
