"""Reads the emoji packages of npm: which concepts there are, who drew them, and how they are split.

    INPUT/emoji-datasource-google/emoji.json, img/google/64/1f34e.png     Noto, Apache 2.0
    INPUT/emoji-datasource-twitter/img/twitter/64/1f34e.png               Twemoji, CC-BY 4.0
    INPUT/openmoji/color/svg/1F34E.svg                                    CC BY-SA 4.0; optional

    emoji.json -> [Concept]

A concept is one row of emoji.json, without the category "Component" (skin tones and hair). The
picture of a concept is its default form, so no skin tone occurs.

Concepts that show the same thing with another gender, or facing right, are a group ("man cook",
"woman cook", "cook"; also all families). The split is drawn by group, from a hash of its name: it
is the same for all seeds. Each training concept of a fifth of the groups is
shown in training in one of the two styles alone. Its other drawing is for evaluation.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from flamingo_jax.core import paths

STYLES = ("google", "twitter")
THIRD_STYLE = "openmoji"
# Upper bounds of a group's hash in [0, 1).
SPLITS = {"train": 0.85, "validation": 0.90, "test": 1.0}
ONE_STYLE_SHARE = 0.2
CATEGORIES = {
    "Activities": "activity",
    "Animals & Nature": "nature",
    "Flags": "flag",
    "Food & Drink": "food",
    "Objects": "object",
    "People & Body": "person",
    "Smileys & Emotion": "smiley",
    "Symbols": "symbol",
    "Travel & Places": "travel",
}
NOT_CONCEPTS = "Component"
MAX_NAME_WORDS = 5  # a longer name is replaced by the words of the short name
MAX_KEYWORDS = 3

# The words of a name that differ between the genders of one concept.
_GENDERS = {
    **dict.fromkeys(("man", "woman", "adult", "person", "boy", "girl", "child"), "person"),
    **dict.fromkeys(("men", "women", "people"), "people"),
    **dict.fromkeys(("male", "female"), ""),
    **dict.fromkeys(("prince", "princess"), "prince"),
    **dict.fromkeys(("father", "mother", "mx"), "parent"),
    **dict.fromkeys(("mrs", "claus"), "christmas"),
    **dict.fromkeys(("dancer", "dancing"), "dancing"),
    "bride": "person",
}
# Code points that differ between the genders of one concept: man, woman, person; and those that
# only join others: the signs of gender, the arrow of "facing right", joiner, variation selector.
_PEOPLE_CODES = ("1f468", "1f469", "1f9d1")
_JOINED_CODES = ("2640", "2642", "27a1", "200d", "fe0f")


class EmojiError(ValueError):
    """A package of emoji that is missing, or is not what was expected."""


@dataclasses.dataclass(frozen=True)
class Concept:
    """What an emoji shows.

    Attributes:
      code: its code points, "1f468-200d-1f373".
      name: in lower case, letters and digits alone: "red apple".
      keywords: words of its short names that are not in the name.
      category: one word of CATEGORIES.
      group: name of the group of concepts that are in the same split.
      split: "train", "validation" or "test".
      drawings: {style: file}.
      unseen_style: of a training concept, the style that only evaluation shows; "": there is
          none.
    """

    code: str
    name: str
    keywords: tuple[str, ...]
    category: str
    group: str
    split: str
    drawings: Mapping[str, epath.Path]
    unseen_style: str = ""

    @property
    def trained_styles(self) -> tuple[str, ...]:
        """The styles that training may show; () outside of the training split."""
        if self.split != "train":
            return ()
        return tuple(style for style in STYLES if style != self.unseen_style)

    @property
    def caption(self) -> str:
        """The name, and the keywords after it: "printer", "index finger hand"."""
        return " ".join((self.name, *self.keywords))


@dataclasses.dataclass(frozen=True)
class Collection:
    """The concepts of the packages.

    Attributes:
      concepts: in the order of their code points.
      counts: {reason: rows of emoji.json that are left out}.
      versions: {package: version}.
    """

    concepts: tuple[Concept, ...]
    counts: Mapping[str, int]
    versions: Mapping[str, str]


def read(directory: str | os.PathLike[str]) -> Collection:
    """Reads the packages below a directory, such as node_modules.

    A row of which a style has no picture is left out, and counted.

    Raises:
      EmojiError: a package is missing or incomplete, or emoji.json is not what was expected.
    """
    root = epath.Path(directory)
    folders = {style: root / f"emoji-datasource-{style}" for style in STYLES}
    versions = {folder.name: _version(folder) for folder in folders.values()}
    pictures = {style: folder / "img" / style / "64" for style, folder in folders.items()}
    for folder in pictures.values():
        if not folder.is_dir():
            raise EmojiError(f"{folder} is missing; expected PNG files there. {_HOW}")
    third = root / THIRD_STYLE / "color" / "svg"
    has_third = (root / THIRD_STYLE).exists()
    if has_third:
        if not third.is_dir():
            raise EmojiError(
                f"{third} is missing; expected SVG files there. Install openmoji again, or remove "
                "its folder: it is optional."
            )
        versions[THIRD_STYLE] = _version(root / THIRD_STYLE)
    # Listed once: a question for each of 4,000 files is slow on some file systems.
    listed = {style: {path.name: path for path in pictures[style].iterdir()} for style in STYLES}
    svgs = {path.name: path for path in third.iterdir()} if has_third else {}

    rows: dict[str, dict[str, Any]] = {}
    drawn: dict[str, dict[str, epath.Path]] = {}
    counts = {"component": 0, "without_a_drawing": 0, "without_a_name": 0, "same_name": 0}
    counts["same_code"] = 0
    codes: set[str] = set()
    for row in _rows(folders[STYLES[0]] / "emoji.json"):
        if row["category"] == NOT_CONCEPTS:
            counts["component"] += 1
            continue
        if not (name := _name(row)):
            counts["without_a_name"] += 1
            continue
        files = {style: listed[style].get(row["image"]) for style in STYLES}
        files[THIRD_STYLE] = _svg(row["unified"], svgs)
        drawings = {style: path for style, path in files.items() if path}
        if lacking := [style for style in STYLES if style not in drawings]:
            _check_lacking(row, lacking, pictures, versions)
            counts["without_a_drawing"] += 1
        elif name in rows:
            counts["same_name"] += 1
        elif row["unified"].lower() in codes:
            counts["same_code"] += 1
        else:
            codes.add(row["unified"].lower())
            rows[name], drawn[name] = row, drawings
    if not rows:
        raise EmojiError(
            f"{root} has no emoji with pictures in the styles {', '.join(STYLES)}: {counts}. {_HOW}"
        )
    groups = _groups(rows)
    concepts = [_concept(row, name, groups[name], drawn[name]) for name, row in rows.items()]
    return Collection(tuple(sorted(concepts, key=lambda concept: concept.code)), counts, versions)


_HOW = (
    "Get the packages: npm install emoji-datasource-google emoji-datasource-twitter, and give "
    "the folder node_modules (launch/emoji.sh does it)."
)


def _version(folder: epath.Path) -> str:
    path = folder / "package.json"
    try:
        package = paths.read_json(path)
    except paths.PathError as error:
        raise EmojiError(f"{error} It belongs to the npm package {folder.name}. {_HOW}") from error
    version = package.get("version") if isinstance(package, dict) else None
    if not isinstance(version, str):
        raise EmojiError(f"{path} has no text `version`; expected that of an npm package. {_HOW}")
    return version


def _rows(path: epath.Path) -> list[dict[str, Any]]:
    """Reads emoji.json, and checks the fields that are used."""
    try:
        rows = paths.read_json(path)
    except paths.PathError as error:
        raise EmojiError(f"{error} {_HOW}") from error
    if not isinstance(rows, list):
        raise EmojiError(f"{path} holds a {type(rows).__name__}; expected a list of emoji.")
    for index, row in enumerate(rows):
        known = isinstance(row, dict) and row.get("category") in (*CATEGORIES, NOT_CONCEPTS)
        texts = known and all(
            isinstance(row.get(field), str)
            for field in ("name", "unified", "image", "short_name", "subcategory")
        )
        if (
            not texts
            or not isinstance(row.get("short_names"), list)
            or not all(re.fullmatch("[0-9A-Fa-f]+", code) for code in row["unified"].split("-"))
        ):
            raise EmojiError(
                f"{path}, row {index}: got {row!r:.120}; expected the texts name, "
                "unified (code points such as 1F34E-FE0F), image, short_name, subcategory, the "
                "list short_names, and a category of "
                f"{', '.join(CATEGORIES)}. Tested with version 16 of emoji-datasource."
            )
    return rows


def _check_lacking(
    row: Mapping[str, Any],
    lacking: Sequence[str],
    pictures: Mapping[str, epath.Path],
    versions: Mapping[str, str],
) -> None:
    """Raises EmojiError if emoji.json says that there is a drawing which is not there."""
    for style in lacking:
        if row.get(f"has_img_{style}") is True:
            raise EmojiError(
                f"{pictures[style] / row['image']} is missing, which emoji.json says there is "
                f"(has_img_{style}). A package is incomplete, or the versions differ: "
                f"{', '.join(f'{package} {version}' for package, version in versions.items())}. "
                "Remove the folders of these packages, and install them again."
            )


def words_of(text: str) -> list[str]:
    """Returns the words of a text in lower case, letters a to z and digits alone."""
    return re.findall(r"[a-z0-9]+", text.lower())


def _name(row: Mapping[str, Any]) -> str:
    words, short = words_of(row["name"]), words_of(row["short_name"])
    return " ".join(short if len(words) > MAX_NAME_WORDS and short else words)


def _concept(
    row: Mapping[str, Any], name: str, group: str, drawings: Mapping[str, epath.Path]
) -> Concept:
    words = [word for short in row["short_names"] for word in words_of(str(short))]
    # Words of one or two letters are codes of countries, as in "flag-tf".
    keywords = dict.fromkeys(word for word in words if len(word) > 2 and word not in name.split())
    where = _hash("split", group)
    split = next(split for split, bound in SPLITS.items() if where < bound)
    unseen = ""
    if split == "train" and _hash("one style", group) < ONE_STYLE_SHARE:
        unseen = STYLES[int(_hash("which style", group) < 0.5)]
    return Concept(
        code=row["unified"].lower(),
        name=name,
        keywords=tuple(keywords)[:MAX_KEYWORDS],
        category=CATEGORIES[row["category"]],
        group=group,
        split=split,
        drawings=drawings,
        unseen_style=unseen,
    )


def _groups(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns {name: its group}.

    Two concepts are in one group if their names are equal without gender, or their code points.
    """
    group: dict[str, str] = {}
    by_code: dict[str, str] = {}
    renamed: dict[str, str] = {}
    for name, row in rows.items():
        by_name = _without_gender(row)
        codes = [code for code in row["unified"].lower().split("-") if code not in _JOINED_CODES]
        key = "-".join("person" if code in _PEOPLE_CODES else code for code in codes)
        other = by_code.setdefault(key, by_name) if key else by_name
        first, second = _first(renamed, by_name), _first(renamed, other)
        if first != second:
            renamed[max(first, second)] = min(first, second)
        group[name] = by_name
    return {name: _first(renamed, by_name) for name, by_name in group.items()}


def _first(renamed: Mapping[str, str], group: str) -> str:
    """Returns the group that a group was merged into."""
    while group in renamed:
        group = renamed[group]
    return group


def _without_gender(row: Mapping[str, Any]) -> str:
    """Returns the name of a concept without gender and direction; families have one."""
    if row["subcategory"] == "family":
        return "family"
    words = words_of(row["name"])
    if row["category"] != "People & Body":
        return " ".join(words)
    text = " ".join(_GENDERS.get(word, word) for word in words).removesuffix("facing right")
    plain = dict.fromkeys(word for word in text.split() if word != "person")
    return " ".join(plain) or "person"


def _svg(unified: str, svgs: Mapping[str, epath.Path]) -> epath.Path | None:
    """Returns OpenMoji's drawing; its file names may lack the variation selector FE0F."""
    codes = [code for code in unified.upper().split("-") if code != "FE0F"]
    return svgs.get(f"{unified.upper()}.svg") or svgs.get(f"{'-'.join(codes)}.svg")


def _hash(purpose: str, group: str) -> float:
    """Returns a number in [0, 1) for a group, independent of all seeds."""
    digest = hashlib.sha256(f"{purpose}/{group}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
