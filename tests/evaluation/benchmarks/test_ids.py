"""An id that an annotation file has twice is one error, in both splits of every benchmark."""

import json
import re

import pytest
from etils import epath

from flamingo_jax.evaluation.benchmarks.annotations import AnnotationError
from flamingo_jax.evaluation.registry import BENCHMARKS
from tests.evaluation.fixtures import benchmarks

WITH_FILES = [
    (name, split)
    for name, benchmark in BENCHMARKS.items()
    for split in ("train", "test")
    if split in benchmark.files
]

# Files whose objects are named by their ids.
BY_ID = ("train_balanced_questions", "testdev_balanced_questions", "problems")


def repeat(file):
    """Writes the first record of an annotation file a second time."""
    if file.suffix in (".csv", ".tsv", ".jsonl"):
        lines = file.read_text().splitlines()
        file.write_text("\n".join([*lines, lines[file.suffix != ".jsonl"]]) + "\n")
        return
    value = json.loads(file.read_text())
    if file.name.startswith(BY_ID):
        first, record = next(iter(value.items()))
        file.write_text(f'{json.dumps(value)[:-1]}, "{first}": {json.dumps(record)}}}')
        return
    for records in lists(value):
        records.append(records[0])
    file.write_text(json.dumps(value))


def lists(value):
    """Yields the lists of records of a JSON file, wherever they are."""
    if isinstance(value, list):
        yield value
        return
    names = ("questions", "images", "data", "dialogs", "database")
    if "annotations" in value and "subset" in value:
        yield value["annotations"]
    for name, each in value.items():
        is_video = isinstance(each, dict) and "annotations" in each
        if is_video or (name in names and (isinstance(each, dict) or isinstance(each[0], dict))):
            yield from lists(each)


@pytest.mark.parametrize(("name", "split"), WITH_FILES)
def test_an_id_that_is_there_twice_is_an_error(tmp_path, name, split):
    data = benchmarks.make(name, tmp_path)
    benchmark = BENCHMARKS[name].at(*data.values())
    read = {"train": benchmark.train, "test": benchmark.test}[split]
    assert len(read()) > 0
    places = [epath.Path(tmp_path) / place for place in benchmark.files[split]]
    (file,) = (place for place in places if place.exists())
    repeat(file)
    message = f"{re.escape(str(file))} holds the id '?[^ ]+.* [234] times.*, expected each id once"
    with pytest.raises(AnnotationError, match=message):
        read()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("okvqa", "mscoco_train2014_annotations.json"),
        ("vqav2", "v2_mscoco_train2014_annotations.json"),
    ],
)
def test_answers_that_are_there_twice_are_an_error(tmp_path, name, file):
    """Of two, one would silently be lost."""
    place = epath.Path(tmp_path) / file
    benchmark = BENCHMARKS[name].at(*benchmarks.make(name, tmp_path).values())
    value = json.loads(place.read_text())
    value["annotations"].append(value["annotations"][0])
    place.write_text(json.dumps(value))
    with pytest.raises(AnnotationError, match=f"{file} holds the id .* 2 times"):
        benchmark.train()


def test_a_video_that_is_there_twice_is_an_error(tmp_path):
    """The annotations of YouCook2 name the videos: of two equal names Python keeps the last."""
    benchmark = BENCHMARKS["youcook2"].at(*benchmarks.make("youcook2", tmp_path).values())
    (file,) = (
        place
        for name in benchmark.files["train"]
        if (place := epath.Path(tmp_path) / name).exists()
    )
    text = file.read_text()
    first = next(iter(json.loads(text)["database"]))
    start = text.index("{", text.index("database"))
    file.write_text(f'{text[: start + 1]}"{first}": {{}}, {text[start + 1 :]}')
    with pytest.raises(AnnotationError, match=f"holds the id '{first}' 2 times"):
        benchmark.train()


@pytest.mark.parametrize("bad", ["NaN", "Infinity", '"high"', "-1"])
def test_ratings_that_are_no_shares_are_an_error(tmp_path, bad):
    benchmark = BENCHMARKS["visdial"].at(*benchmarks.make("visdial", tmp_path).values())
    place = epath.Path(tmp_path) / "visdial_1.0_val_dense_annotations.json"
    value = json.loads(place.read_text())
    value[0]["gt_relevance"][1] = "BAD"
    place.write_text(json.dumps(value).replace('"BAD"', bad))
    with pytest.raises(AnnotationError, match="ratings of image .* that are no shares"):
        benchmark.test()
