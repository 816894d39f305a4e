"""Visual dialogue: NDCG of 100 ranked answers on the validation split, at most 16 shots (paper, Table 6 and B.1.5).

    <image>A man on a bike. Question: is he old? Answer: no Question: is it sunny? Answer:      -> a score of each of the 100 answers of this round

The caption stands before the questions without any prompt. A query is the round of an image whose answers were weighed by several people (the dense
annotations, one round per image), with all rounds before it. A support example is a whole dialogue: caption, ten questions and ten answers; 32 of them would
be longer than the language model's context. The paper does not say whether `<EOC>` stands between rounds: here, only at the end of the dialogue.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.evaluation.benchmarks.annotations import Files, one_line, records
from flamingo_jax.evaluation.benchmarks.benchmark import Item
from flamingo_jax.evaluation.benchmarks.templates import question
from flamingo_jax.inference.prompt import Image

DOWNLOAD = "visualdialog.org/data (v1.0: dialogs, dense annotations of val, val2018 images) and cocodataset.org (2014 Train and Val images)"
LAYOUT = """
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
"""
NUM_OPTIONS = 100


@dataclasses.dataclass(frozen=True)
class VisDial:
    """Visual dialogue v1.0 in `directory`."""

    directory: PathLike
    name: ClassVar[str] = "visdial"
    metrics: ClassVar[tuple[str, ...]] = ("visdial_ndcg",)
    chance: ClassVar[float | None] = None
    max_shots: ClassVar[int] = 16

    def train(self) -> Sequence[Item]:
        """The 123,287 training dialogues, each whole. They cannot be queries: their answers were not weighed."""
        dialogs = self._dialogs("train")
        image_of = self._train_images()
        return [dialogs.item(each, len(each["dialog"]), image_of(each["image_id"])) for each in dialogs.found]

    def test(self) -> Sequence[Item]:
        """The 2,064 densely annotated rounds of the validation split."""
        dialogs, name = self._dialogs("val"), "visdial_1.0_val_dense_annotations.json"
        path = self._files.path(name)
        fields = {"image_id": int, "round_id": int, "gt_relevance": list}
        dense = {each["image_id"]: each for each in records(self._files.json(name), fields, path)}
        if lacking := [each["image_id"] for each in dialogs.found if each["image_id"] not in dense]:
            raise self._files.wrong(
                path, f"no round of {len(lacking)} images of val (image {lacking[0]})", "one of each"
            )
        first = f"VisualDialog_val2018_{dialogs.found[0]['image_id']:012d}.jpg"
        folder = self._files.folder("images/VisualDialog_val2018", "VisualDialog_val2018", of=first)
        items = []
        for each in dialogs.found:
            rounds, relevance = dense[each["image_id"]]["round_id"], dense[each["image_id"]]["gt_relevance"]
            if not 1 <= rounds <= len(each["dialog"]) or len(relevance) != NUM_OPTIONS:
                got = (
                    f"round {rounds} of {len(each['dialog'])} and {len(relevance)} values for image {each['image_id']}"
                )
                raise self._files.wrong(path, got, f"a round of the dialogue, counted from 1, and {NUM_OPTIONS} values")
            image = f"{folder}/VisualDialog_val2018_{each['image_id']:012d}.jpg"
            items.append(dialogs.item(each, rounds, image, relevance=relevance))
        return items

    @property
    def _files(self) -> Files:
        return Files(self.directory, self.name, DOWNLOAD, LAYOUT)

    def _dialogs(self, split: str) -> _Dialogs:
        name = f"visdial_1.0_{split}.json"
        value, path = self._files.json(name), self._files.path(name)
        value = value if isinstance(value, dict) else {}
        if not str(got := value.get("split", split)).startswith(split):
            raise self._files.wrong(path, f"the split {got!r}", f"{split!r}")
        data: dict[str, Any] = value["data"] if isinstance(value.get("data"), dict) else {}
        fields = {"image_id": int, "caption": str, "dialog": list}
        found = records(data.get("dialogs"), fields, path)
        for each in found:
            records(each["dialog"], {"question": int, "answer": int, "answer_options": list}, path)
        questions, answers = data.get("questions"), data.get("answers")
        if not isinstance(questions, list) or not isinstance(answers, list):
            raise self._files.wrong(path, "no lists `questions` and `answers`", "the texts that the dialogues refer to")
        return _Dialogs(self._files, path, found, questions, answers)

    def _train_images(self) -> Callable[[int], str]:
        """A function image id -> file: the training images are COCO's of both train and val, and only the folders tell which."""
        folders = {name: self._folder(name) for name in ("train2014", "val2014")}
        there = {name: {file.name for file in folder.iterdir()} for name, folder in folders.items()}

        def find(image_id: int) -> str:
            for name, folder in folders.items():
                if (file := f"COCO_{name}_{image_id:012d}.jpg") in there[name]:
                    return f"{folder}/{file}"
            raise self._files.missing(f"images/train2014/COCO_train2014_{image_id:012d}.jpg (or the same of val2014)")

        return find

    def _folder(self, name: str) -> Path:
        return self._files.path(f"images/{name}", name)


@dataclasses.dataclass(frozen=True)
class _Dialogs:
    """The dialogues of one file, and the texts that they refer to by number."""

    files: Files
    path: Path
    found: Sequence[dict[str, Any]]
    questions: Sequence[str]
    answers: Sequence[str]

    def item(self, dialog: dict[str, Any], rounds: int, image: str, *, relevance: Sequence[float] = ()) -> Item:
        """The first rounds of a dialogue, of which the last is to be answered."""
        *before, last = dialog["dialog"][:rounds]
        try:
            history = [f"{self._question(each)} {one_line(self.answers[each['answer']])}" for each in before]
            options = tuple(one_line(self.answers[number]) for number in last["answer_options"]) if relevance else ()
            answer = (
                options[last["gt_index"]] if "gt_index" in last and options else one_line(self.answers[last["answer"]])
            )
            prefix = " ".join([one_line(dialog["caption"]), *history, self._question(last)])
        except (IndexError, TypeError) as error:
            got = f"a dialogue about image {dialog['image_id']} with numbers of no text ({error})"
            raise self.files.wrong(self.path, got, "the official dialogues") from error
        if relevance and (len(options) != NUM_OPTIONS or answer not in options):
            got = f"{len(options)} answers to choose from about image {dialog['image_id']}"
            raise self.files.wrong(self.path, got, f"{NUM_OPTIONS}, the right one among them")
        return Item(
            id=str(dialog["image_id"]),
            visual=Image(image),
            prefix=prefix,
            answer=answer,
            references=(answer,),
            candidates=options,
            extra={"image_id": dialog["image_id"], "round_id": rounds, "relevance": list(relevance)}
            if relevance
            else {},
        )

    def _question(self, exchange: dict[str, Any]) -> str:
        text = one_line(self.questions[exchange["question"]])
        return question(text if text.endswith("?") else f"{text}?")  # the files have them without
