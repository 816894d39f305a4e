"""RareAct: how well 149 rare actions, such as hammering a phone, are told apart; mWAP, at 0 shots alone (paper, Table 6).

Each of the 7,607 rows of rareact.csv is a segment of ten seconds and one of the actions. Every segment is scored against every action, in the
paper's template: "Caption: a person cuts a laptop", the verb in the third person, an article before the noun.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from flamingo_jax.core.paths import PathLike
from flamingo_jax.evaluation.benchmarks import video_files
from flamingo_jax.evaluation.benchmarks.annotations import Files
from flamingo_jax.evaluation.benchmarks.benchmark import Item
from flamingo_jax.evaluation.benchmarks.templates import ACTION
from flamingo_jax.inference.prompt import Video

DOWNLOAD = "github.com/antoine77340/RareAct (rareact.csv, and a link to rareact.zip with the videos)"
LAYOUT = """
rareact.csv
rareact/   (or videos/)
  7frRY7aGwMU.mp4, ...
"""
COLUMNS = ("id", "video_id", "start", "end", "class_id", "verb", "noun", "annotation")
ANNOTATIONS = (
    "0",
    "1",
    "2",
    "3",
    "4",
)  # nothing of it, the action, its verb alone, its noun alone, both and yet not it
# Of the annotated nouns those that no "a" can stand before.
PLURAL_OR_UNCOUNTED = ("bacon", "carrots", "chocolate", "clothe", "corn", "eggs", "hair", "shoes")


@dataclasses.dataclass(frozen=True)
class RareAct:
    """RareAct in `directory`."""

    directory: PathLike
    name: ClassVar[str] = "rareact"
    metrics: ClassVar[tuple[str, ...]] = ("rareact_mwap",)
    chance: ClassVar[float | None] = None
    max_shots: ClassVar[int] = 0

    def train(self) -> Sequence[Item]:
        """There is no training split."""
        return ()

    def test(self) -> Sequence[Item]:
        """All rows."""
        files = Files(self.directory, self.name, DOWNLOAD, LAYOUT)
        rows, path = files.csv("rareact.csv", columns=COLUMNS), files.path("rareact.csv")
        actions = {row["class_id"]: action(row["verb"], row["noun"]) for row in rows}
        try:
            candidates = tuple(actions[str(number)] for number in range(len(actions)))
        except KeyError as error:
            raise files.wrong(
                path, f"{len(actions)} classes, but no class_id {error}", "numbers without a gap"
            ) from error
        if wrong := {row["annotation"] for row in rows} - set(ANNOTATIONS):
            raise files.wrong(path, f"the annotation {min(wrong)!r}", "0 to 4")
        videos = video_files.find(files, "rareact", "videos", "video")
        found = videos.of(rows, lambda row: [row["video_id"]], path)
        return [
            Item(
                id=row["id"],
                visual=Video(video, *video_files.segment(files, path, (row["start"], row["end"]))),
                prefix=ACTION,
                answer=candidates[int(row["class_id"])],
                candidates=candidates,
                extra={
                    "verb": row["verb"],
                    "noun": row["noun"],
                    "class": int(row["class_id"]),
                    "annotation": int(row["annotation"]),
                    "video": row["video_id"],
                },
            )
            for row, video in found
        ]


def action(verb: str, noun: str) -> str:
    """What the person does: ("cut", "laptop") -> "cuts a laptop"."""
    if verb.endswith(("s", "sh", "ch", "x", "z", "o")):
        third_person = f"{verb}es"
    elif verb.endswith("y") and verb[-2:-1] not in "aeiou":
        third_person = f"{verb[:-1]}ies"
    else:
        third_person = f"{verb}s"
    article = "the" if noun in PLURAL_OR_UNCOUNTED else "an" if noun[:1] in "aeiou" else "a"
    return f"{third_person} {article} {noun}"
