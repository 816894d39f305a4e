"""Collection on Beam.

Everything is counted, duplicates are removed, and the number of workers does not change the output.
"""

import json
import os
import random

import pytest
from etils import epath

from data_pipelines.collect import REPORT, collect
from data_pipelines.on_beam import Execution
from flamingo_jax.data.sources import Source
from tests.data_pipelines import readers, test_duplicates

ALONE = Execution(num_workers=1)


def texts(directory, split="train"):
    source = Source(directory, split)
    return [source[i].text for i in range(len(source))]


@pytest.fixture
def output(tmp_path):
    directory = epath.Path(tmp_path / "set")
    directory.mkdir()
    return directory


def test_everything_is_counted_and_the_first_of_equal_keys_stays(output):
    counts = collect(["a", "b", "c"], readers.numbers, "document", output, ALONE)
    assert texts(output) == ["a 0", "a 1", "a 2", "a 4", "b 0", "b 1", "b 4", "c 0", "c 1", "c 4"]
    assert counts.table() == {
        "in": 15,
        "out: train": 10,
        "left out: too_few_words": 3,
        "left out: duplicate_url": 2,
        "images left out: image_too_small": 3,
    }
    report = json.loads((output / REPORT).read_text())
    assert report["in"] == report["out"]["train"] + sum(report["rejected"].values())
    assert report["examples"]["too_few_words"] == ["a/3", "b/3", "c/3"]
    assert sorted(path.name for path in output.iterdir()) == [
        "dataset_info.json",
        "features.json",
        *(f"records-train.array_record-{i:05d}-of-00003" for i in range(3)),
        REPORT,
    ]


def test_two_processes_write_the_same_dataset(output, tmp_path):
    """Each unit has duplicates and near duplicates of texts in other units."""
    units = [tuple(random.Random(unit).sample(test_duplicates.chain(), 6)) for unit in range(4)]
    collect(units, readers.texts, "document", output, ALONE)
    other = epath.Path(tmp_path / "other")
    other.mkdir()
    collect(units, readers.texts, "document", other, Execution(num_workers=2))
    assert texts(other) == texts(output)
    assert (other / REPORT).read_text() == (output / REPORT).read_text()


def test_workers_are_other_processes(output):
    collect(["a", "b"], readers.process, "document", output, Execution(num_workers=2))
    assert str(os.getpid()) not in texts(output)


def test_validation_split_is_a_share_that_stays_the_same(output, tmp_path):
    units = [f"u{i}" for i in range(20)]
    how = Execution(num_workers=1, validation_share=0.25)
    counts = collect(units, readers.numbers, "document", output, how)
    held_back = texts(output, "validation")
    assert counts.written["train"] + counts.written["validation"] == 61
    assert 5 <= len(held_back) <= 25
    assert not set(held_back) & set(texts(output))
    more = epath.Path(tmp_path / "more")
    more.mkdir()
    collect([*units, "new"], readers.numbers, "document", more, how)
    assert set(held_back) <= set(texts(more, "validation"))


def test_too_many_damaged_records_end_the_run(output):
    message = "2 of 4 records are damaged.*truncated_file 2 .such as a ends early"
    with pytest.raises(ValueError, match=message):
        collect(["a", "b"], readers.damaged, "document", output, ALONE)
    with pytest.raises(FileNotFoundError):
        Source(output)
    how = Execution(num_workers=1, max_broken=0.5)
    collect(["a", "b"], readers.damaged, "document", output, how)
    assert texts(output) == ["a", "b"]


def test_a_run_that_keeps_nothing_says_why(output):
    with pytest.raises(ValueError, match="None of the 2 records is left: no_text 2"):
        collect(["a", "b"], readers.nothing, "document", output, ALONE)


def test_an_empty_input_is_named(output):
    with pytest.raises(ValueError, match="The input has no records. Nothing was written"):
        collect(["a"], readers.empty, "document", output, ALONE)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bug_of_a_reader_ends_the_run_without_a_dataset(output, workers):
    with pytest.raises(Exception, match="a bug of the reader"):
        collect(["a", "b"], readers.bug, "document", output, Execution(num_workers=workers))
    assert not (output / "dataset_info.json").exists()


@pytest.mark.parametrize(
    ("field", "value"), [("max_broken", 1.5), ("validation_share", -0.1), ("num_workers", -1)]
)
def test_bad_limits_are_refused(field, value):
    with pytest.raises(ValueError, match=f"--{field}={value}"):
        Execution(**{field: value})


def test_files_that_are_passed_over_are_counted_by_suffix(output):
    counts = collect(
        ["a"], readers.with_clutter, "document", output, ALONE, passed_over={".csv": 3}
    )
    assert counts.table() == {"in": 1, "out: train": 1, "passed over: 3 .csv, 2 .DS_Store": 5}
    report = json.loads((output / REPORT).read_text())
    assert report["passed_over"] == {".csv": 3, ".DS_Store": 2}
