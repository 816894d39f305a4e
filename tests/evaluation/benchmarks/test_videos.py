"""What all benchmarks of videos share.

Every item's clip can be read, missing videos are left out, missing files and other splits are
refused.
"""

import importlib
import logging
import shutil

import pytest
from etils import epath

from flamingo_jax.evaluation.benchmarks import (
    ivqa,
    kinetics700,
    msrvttqa,
    msvdqa,
    nextqa,
    rareact,
    star,
    vatex,
    youcook2,
)
from flamingo_jax.evaluation.benchmarks.annotations import AnnotationError
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark
from flamingo_jax.inference.visuals import load_frames

BENCHMARKS = {
    each.name: each
    for each in (
        *(
            ivqa.IVQA,
            kinetics700.KINETICS700,
            msrvttqa.MSRVTTQA,
            msvdqa.MSVDQA,
            nextqa.NEXTQA,
            rareact.RAREACT,
        ),
        *(star.STAR, vatex.VATEX, youcook2.YOUCOOK2),
    )
}
# The file of test items, and the one of training items that a user might put in its place.
FILES = {
    "ivqa": ("test.csv", "train.csv"),
    "kinetics700": ("val.csv", "train.csv"),
    "msrvttqa": ("test_qa.json", "train_qa.json"),
    "msvdqa": ("test_qa.json", "train_qa.json"),
    "nextqa": ("test.csv", "train.csv"),
    "rareact": ("rareact.csv", None),
    "star": ("STAR_val.json", "STAR_train.json"),
    "vatex": ("vatex_public_test_english_v1.1.json", "vatex_training_v1.0.json"),
    "youcook2": ("youcookii_annotations_trainval.json", None),
}
NAMES = tuple(sorted(BENCHMARKS))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Name -> directory with its official files."""
    directories = {}

    def make(name):
        if name not in directories:
            directories[name] = epath.Path(tmp_path_factory.mktemp(name))
            getattr(importlib.import_module(f"tests.evaluation.fixtures.{name}"), f"make_{name}")(
                directories[name]
            )
        return directories[name]

    return make


@pytest.fixture
def copied(made, tmp_path):
    """A copy to break."""

    def copy(name):
        shutil.copytree(made(name), tmp_path / name)
        return tmp_path / name

    return copy


def videos(directory):
    return sorted(path for path in directory.rglob("*") if path.suffix in (".mp4", ".avi"))


@pytest.mark.parametrize("name", NAMES)
def test_items_have_their_own_ids_and_clips_that_can_be_seen(made, name):
    benchmark = BENCHMARKS[name].at(made(name))
    assert isinstance(benchmark, Benchmark)
    train, test = benchmark.train(), benchmark.test()
    assert len(test) >= 3 and (len(train) >= 4 or name == "rareact")
    items = [*train, *test]
    assert len({item.id for item in items}) == len(items)
    for item in items:
        assert item.answer and item.prefix.endswith((":", "a person"))
        assert not item.candidates or item.answer in item.candidates
        frames = load_frames(item.visual, 16)
        length = 4.0 if item.visual.end is None else item.visual.end - item.visual.start
        assert len(frames) >= 2 * length - 1  # two a second are stored


@pytest.mark.parametrize("name", NAMES)
def test_items_whose_video_is_gone_are_left_out_and_counted(copied, name, caplog):
    directory = copied(name)
    benchmark = BENCHMARKS[name].at(directory)
    before = list(benchmark.test())
    gone = before[0].visual.path
    epath.Path(gone).unlink()
    with caplog.at_level(logging.WARNING):
        after = list(benchmark.test())
    lost = [item.id for item in before if item.visual.path == gone]
    assert [item.id for item in after] == [item.id for item in before if item.id not in lost]
    assert 0 < len(after) < len(before)
    (record,) = caplog.records
    assert (
        f"{len(lost)} of {len(before)} items" in record.getMessage()
        and gone.stem in record.getMessage()
    )
    assert [item.candidates for item in after] == [
        item.candidates for item in before if item.id not in lost
    ]


@pytest.mark.parametrize("name", NAMES)
def test_without_any_video_the_error_has_the_layout(copied, name):
    directory = copied(name)
    for path in videos(directory):
        path.unlink()
    with pytest.raises(AnnotationError, match=r"\.mp4, and it is not there. Get it from") as caught:
        BENCHMARKS[name].at(directory).test()
    assert f"Expected in the directory of {name}, " in str(caught.value)
    folder = next(path for path in directory.iterdir() if path.is_dir())
    assert all(line.strip() in str(caught.value) for line in (folder.name, FILES[name][0]))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(copied, name):
    directory = copied(name)
    (directory / FILES[name][0]).unlink()
    with pytest.raises(AnnotationError, match="and it is not there. Get it from") as caught:
        BENCHMARKS[name].at(directory).test()
    assert str(directory / FILES[name][0]) in str(caught.value)


@pytest.mark.parametrize("name", [name for name in NAMES if FILES[name][1]])
def test_the_file_of_another_split_is_refused(copied, name):
    directory = copied(name)
    test, train = (directory / file for file in FILES[name])
    shutil.copy(train, test)
    with pytest.raises(AnnotationError, match=r"from the training split|the split train") as caught:
        BENCHMARKS[name].at(directory).test()
    assert test.name in str(caught.value)


@pytest.mark.parametrize("name", [name for name in NAMES if FILES[name][1]])
def test_queries_alone_need_no_training_file(copied, name):
    directory = copied(name)
    (directory / FILES[name][1]).unlink()
    assert len(BENCHMARKS[name].at(directory).test()) == 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"database": 1}', "[1]", '[{"video_id": null}]', "a,b\n1,2\n", "\x00"],
)
def test_other_content_is_refused(copied, name, content):
    directory = copied(name)
    (directory / FILES[name][0]).write_text(content)
    with pytest.raises(AnnotationError, match=FILES[name][0]):
        BENCHMARKS[name].at(directory).test()


@pytest.mark.parametrize("name", ["ivqa", "kinetics700", "rareact", "star", "youcook2"])
@pytest.mark.parametrize(
    "segment", [("7", "4"), ("4", "4"), ("-1", "4"), ("NaN", "4"), ("1", "Infinity")]
)
def test_a_segment_that_is_none_is_refused(copied, name, segment):
    directory = copied(name)
    path = directory / FILES[name][0]
    known = {
        "ivqa": ",1,4,",
        "kinetics700": ",44,54,",
        "rareact": ",2,5,",
        "star": '"start": 1.1, "end": 3.9',
        "youcook2": "[2, 5]",
    }
    written = {"star": '"start": {}, "end": {}', "youcook2": "[{}, {}]"}.get(
        name, ",{},{},"
    ).format(*segment)
    text = path.read_text()
    assert known[name] in text
    path.write_text(text.replace(known[name], written))
    with pytest.raises(
        AnnotationError, match="the segment .*, expected a start, and an end behind it"
    ):
        BENCHMARKS[name].at(directory).test()
