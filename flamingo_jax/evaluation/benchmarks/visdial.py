"""Visual dialogue: NDCG of 100 ranked answers on the validation split (paper, Table 6 and B.1.5).

    <image>A man on a bike. Question: is he old? Answer: no Question: is it sunny? Answer:
                                         -> a score of each of the 100 answers of this round

The caption is before the questions, without a prompt of its own. A query is the round of an image
whose answers were rated by several people (the dense annotations, one round per image), with all
earlier rounds. A support example is a whole dialogue: caption, ten questions and ten answers. At
most 16 shots: 32 dialogues are longer than the language model's context. The paper does not say
whether `<EOC>` follows each round: here, it follows only the dialogue.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from flamingo_jax.core.paths import Path
from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit, one_line, records
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item, at_shots
from flamingo_jax.evaluation.benchmarks.templates import question
from flamingo_jax.evaluation.metrics.visdial_ndcg import VISDIAL_NDCG
from flamingo_jax.inference.prompt import Image

DENSE = "visdial_1.0_val_dense_annotations.json"
NUM_OPTIONS = 100


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads 123,287 whole training dialogues, or 2,064 rounds of the validation split.

    The rounds have dense annotations. Training dialogues have none, so they cannot be queries.
    """
    return _dense_rounds(files) if split == "test" else _whole_dialogues(files)


def _whole_dialogues(files: Files) -> list[Item]:
    dialogs = _read(files, "train")
    image_of = _train_images(files)
    return [
        dialogs.item(each, len(each["dialog"]), image_of(each["image_id"]))
        for each in dialogs.found
    ]


def _dense_rounds(files: Files) -> list[Item]:
    dialogs, path = _read(files, "test"), files.path(DENSE)
    fields = {"image_id": int, "round_id": int, "gt_relevance": list}
    rated = records(files.json(DENSE), fields, path)
    files.check_ids(path, (each["image_id"] for each in rated))
    dense = {each["image_id"]: each for each in rated}
    if lacking := [each["image_id"] for each in dialogs.found if each["image_id"] not in dense]:
        raise files.wrong(
            path, f"no round of {len(lacking)} images of val (image {lacking[0]})", "one of each"
        )
    first = f"VisualDialog_val2018_{dialogs.found[0]['image_id']:012d}.jpg"
    folder = files.folder("images/VisualDialog_val2018", "VisualDialog_val2018", of=first)
    items = []
    for each in dialogs.found:
        id, most = each["image_id"], len(each["dialog"])
        rounds, relevance = dense[id]["round_id"], dense[id]["gt_relevance"]
        if not 1 <= rounds <= most or len(relevance) != NUM_OPTIONS:
            got = f"round {rounds} of {most} and {len(relevance)} values for image {id}"
            raise files.wrong(
                path, got, f"a round of the dialogue, counted from 1, and {NUM_OPTIONS} values"
            )
        if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in relevance):
            raise files.wrong(path, f"ratings of image {id} that are no shares", "0 to 1 each")
        image = f"{folder}/VisualDialog_val2018_{id:012d}.jpg"
        items.append(dialogs.item(each, rounds, image, relevance=relevance))
    return items


def _read(files: Files, split: FileSplit) -> _Dialogs:
    value, path = files.json(*files.annotations[split]), files.annotation_path(split)
    (subset,) = files.splits[split]
    value = value if isinstance(value, dict) else {}
    if not str(got := value.get("split", subset)).startswith(subset):
        raise files.wrong(path, f"the split {got!r}", f"{subset!r}")
    data: dict[str, Any] = value["data"] if isinstance(value.get("data"), dict) else {}
    fields = {"image_id": int, "caption": str, "dialog": list}
    found = records(data.get("dialogs"), fields, path)
    for each in found:
        records(each["dialog"], {"question": int, "answer": int, "answer_options": list}, path)
    questions, answers = data.get("questions"), data.get("answers")
    if not isinstance(questions, list) or not isinstance(answers, list):
        raise files.wrong(
            path, "no lists `questions` and `answers`", "the texts that the dialogues refer to"
        )
    return _Dialogs(files, path, found, questions, answers)


def _train_images(files: Files) -> Callable[[int], str]:
    """Returns a function image id -> file.

    The training images are COCO's of train and of val: the function looks into both folders.
    """
    folders = {name: files.path(f"images/{name}", name) for name in ("train2014", "val2014")}
    there = {name: {file.name for file in folder.iterdir()} for name, folder in folders.items()}

    def find(image_id: int) -> str:
        for name, folder in folders.items():
            if (file := f"COCO_{name}_{image_id:012d}.jpg") in there[name]:
                return f"{folder}/{file}"
        raise files.missing(
            f"images/train2014/COCO_train2014_{image_id:012d}.jpg (or the same of val2014)"
        )

    return find


@dataclasses.dataclass(frozen=True)
class _Dialogs:
    """The dialogues of one file, and the texts that they refer to by number."""

    files: Files
    path: Path
    found: Sequence[dict[str, Any]]
    questions: Sequence[str]
    answers: Sequence[str]

    def item(
        self, dialog: dict[str, Any], rounds: int, image: str, *, relevance: Sequence[float] = ()
    ) -> Item:
        """Returns the first rounds of a dialogue as an item: the last round is to be answered."""
        *before, last = dialog["dialog"][:rounds]
        numbers = last["answer_options"] if relevance else ()
        try:
            history = [
                text
                for each in before
                for text in (self._question(each), self._answer(each["answer"]))
            ]
            options = tuple(self._answer(number) for number in numbers)
            if "gt_index" in last and options:
                answer = options[last["gt_index"]]
            else:
                answer = self._answer(last["answer"])
            first, *others = [*history, self._question(last)]
            turns = (f"{one_line(dialog['caption'])} {first}", *others)
        except (IndexError, TypeError) as error:
            got = f"a dialogue about image {dialog['image_id']} with numbers of no text ({error})"
            raise self.files.wrong(self.path, got, "the official dialogues") from error
        if relevance and (len(options) != NUM_OPTIONS or answer not in options):
            got = f"{len(options)} answers to choose from about image {dialog['image_id']}"
            raise self.files.wrong(self.path, got, f"{NUM_OPTIONS}, the right one among them")
        extra = {"image_id": dialog["image_id"], "round_id": rounds, "relevance": list(relevance)}
        return Item(
            id=str(dialog["image_id"]),
            visual=Image(image),
            prefix=" ".join(turns),
            answer=answer,
            references=(answer,),
            candidates=options,
            turns=turns,
            extra=extra if relevance else {},
        )

    def _answer(self, number: int) -> str:
        return one_line(self.answers[number])

    def _question(self, exchange: dict[str, Any]) -> str:
        text = one_line(self.questions[exchange["question"]])
        return question(
            text if text.endswith("?") else f"{text}?"
        )  # the files have no question marks


VISDIAL = Benchmark(
    name="visdial",
    title="VisDial",
    metrics=(VISDIAL_NDCG,),
    visual="image",
    queries="val",
    splits={"train": ("train",), "test": ("val",)},
    files={"train": ("visdial_1.0_train.json",), "test": ("visdial_1.0_val.json",)},
    download="visualdialog.org/data (v1.0: dialogs, dense annotations of val, val2018 images) and "
    "cocodataset.org (2014 Train and Val images)",
    layout="""
        visdial_1.0_train.json
        visdial_1.0_val.json
        visdial_1.0_val_dense_annotations.json
        images/
          train2014/
            COCO_train2014_000000000009.jpg, ...
          val2014/
            COCO_val2014_000000000042.jpg, ...
          VisualDialog_val2018/
            VisualDialog_val2018_000000000235.jpg, ...
    """,
    items=_items,
    max_shots=16,
    beyond_max_shots="VisDial: 32 shots are longer than the language model's context; v2 of the "
    "paper repeats the numbers of 4 shots there, v1 has none.",
    published=at_shots(
        {
            # 32 shots exceed the LM's context: v1 prints OOC, v2 repeats the numbers of 4 shots.
            "Flamingo-3B": (46.1, 47.3, 47.6, 47.5, None),
            "Flamingo-9B": (48.0, 50.4, 51.2, 51.3, None),
            "Flamingo-80B": (52.0, 55.6, 56.4, 56.8, None),
        }
    ),
    fine_tuned_sota=75.2,
    zero_few_shot_sota=11.6,
)
