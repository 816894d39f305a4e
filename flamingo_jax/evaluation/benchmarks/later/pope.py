"""POPE: does a picture show an object (Li et al., arXiv 2305.10355)?

    random        objects that it does not show are drawn among all of COCO
    popular       they are COCO's most frequent ones
    adversarial   they are those that are most often seen with what it shows

Each of the three files has 3,000 questions about 500 pictures of COCO's val2014, half of them with
the answer yes. There is no training split, and so no support example. Results have the value of
each file as a group; the value of all is over all 9,000 questions. No benchmark of the Flamingo
paper.
"""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit, Types, records
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item
from flamingo_jax.evaluation.benchmarks.templates import question
from flamingo_jax.evaluation.metrics.yes_or_no import (
    POPE_ACCURACY,
    POPE_F1,
    POPE_PRECISION,
    POPE_RECALL,
    POPE_YES,
)
from flamingo_jax.inference.prompt import Image

SAMPLINGS = ("random", "popular", "adversarial")
_FIELDS: dict[str, Types] = {"question_id": int, "image": str, "text": str, "label": str}


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads the 9,000 questions; () for training."""
    if split == "train":
        return ()
    items = []
    for sampling in SAMPLINGS:
        # The official suffix is .json, and the content has one question in a line.
        names = (f"coco_pope_{sampling}.json", f"coco/coco_pope_{sampling}.json")
        path, found = files.path(*names), files.json_lines(*names)
        records(found, _FIELDS, path)
        files.check_ids(path, (each["question_id"] for each in found))
        if wrong := [each["label"] for each in found if each["label"] not in ("yes", "no")]:
            raise files.wrong(path, f"the label {wrong[0]!r}", "yes or no")
        folder = files.folder(*files.folders, of=found[0]["image"])
        items += [
            Item(
                id=f"{sampling}/{each['question_id']}",
                visual=Image(f"{folder}/{each['image']}"),
                prefix=question(each["text"]),
                answer=each["label"],
                references=(each["label"],),
                extra={"groups": [sampling]},
            )
            for each in found
        ]
    return items


POPE = Benchmark(
    name="pope",
    title="POPE",
    metrics=(POPE_F1, POPE_ACCURACY, POPE_PRECISION, POPE_RECALL, POPE_YES),
    visual="image",
    queries="random, popular, adversarial",
    folders=("val2014", "images/val2014"),
    download="github.com/RUCAIBox/POPE (output/coco) and cocodataset.org (2014 Val images)",
    layout="""
        coco_pope_random.json
        coco_pope_popular.json
        coco_pope_adversarial.json
        val2014/
          COCO_val2014_000000310196.jpg, ...
    """,
    items=_items,
    max_shots=0,
    beyond_max_shots="POPE has no training split, and so no support examples.",
    is_of_paper=False,
)
