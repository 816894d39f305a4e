"""RareAct: ranking of 149 rare actions, such as hammering a phone, at 0 shots (paper, Table 6).

The metric is mWAP. Each of the 7,607 rows of rareact.csv is a segment of ten seconds with one
action. The model scores every segment against every action, in the paper's template: "Caption: a
person cuts a laptop", with the verb in the third person and an article before the noun.
"""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_jax.evaluation.benchmarks import video_files
from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item, at_shots
from flamingo_jax.evaluation.benchmarks.templates import ACTION
from flamingo_jax.evaluation.metrics.rareact_mwap import RAREACT_MWAP
from flamingo_jax.inference.prompt import Video

COLUMNS = ("id", "video_id", "start", "end", "class_id", "verb", "noun", "annotation")
# A segment shows: neither verb nor noun, the action, the verb, the noun, both but not the action.
ANNOTATIONS = ("0", "1", "2", "3", "4")
# The annotated nouns that take no "a".
PLURAL_OR_UNCOUNTED = ("bacon", "carrots", "chocolate", "clothe", "corn", "eggs", "hair", "shoes")


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads all rows as test items: there is no training split."""
    if split == "train":
        return ()
    rows, path = files.rows(split, COLUMNS), files.annotation_path(split)
    actions = {row["class_id"]: action(row["verb"], row["noun"]) for row in rows}
    try:
        candidates = tuple(actions[str(number)] for number in range(len(actions)))
    except KeyError as error:
        raise files.wrong(
            path, f"{len(actions)} classes, but no class_id {error}", "numbers without a gap"
        ) from error
    if wrong := {row["annotation"] for row in rows} - set(ANNOTATIONS):
        raise files.wrong(path, f"the annotation {min(wrong)!r}", "0 to 4")
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
        for row, video in video_files.with_videos(files, split, rows, lambda row: [row["video_id"]])
    ]


def action(verb: str, noun: str) -> str:
    """Returns what the person does: ("cut", "laptop") -> "cuts a laptop"."""
    if verb.endswith(("s", "sh", "ch", "x", "z", "o")):
        third_person = f"{verb}es"
    elif verb.endswith("y") and verb[-2:-1] not in "aeiou":
        third_person = f"{verb[:-1]}ies"
    else:
        third_person = f"{verb}s"
    article = "the" if noun in PLURAL_OR_UNCOUNTED else "an" if noun[:1] in "aeiou" else "a"
    return f"{third_person} {article} {noun}"


RAREACT = Benchmark(
    name="rareact",
    title="RareAct",
    metrics=(RAREACT_MWAP,),
    visual="video",
    queries="test",
    files={"test": ("rareact.csv",)},
    folders=("rareact", "videos", "video"),
    download="github.com/antoine77340/RareAct (rareact.csv, and a link to rareact.zip with the "
    "videos)",
    layout="""
        rareact.csv
        rareact/   (or videos/)
          7frRY7aGwMU.mp4, ...
    """,
    items=_items,
    max_shots=0,
    published=at_shots(
        {
            "Flamingo-3B": (58.4, None, None, None, None),
            "Flamingo-9B": (57.9, None, None, None, None),
            "Flamingo-80B": (60.8, None, None, None, None),
        }
    ),
    zero_few_shot_sota=40.7,
    is_youtube=True,
)
