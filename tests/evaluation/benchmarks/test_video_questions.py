"""Questions about videos: prompts as in the paper, and answers as their metrics need them."""

import dataclasses
import json

import pytest
from etils import epath

from flamingo_jax.evaluation.benchmarks.annotations import AnnotationError
from flamingo_jax.evaluation.benchmarks.ivqa import IVQA
from flamingo_jax.evaluation.benchmarks.msrvttqa import MSRVTTQA
from flamingo_jax.evaluation.benchmarks.msvdqa import MSVDQA
from flamingo_jax.evaluation.benchmarks.nextqa import NEXTQA
from flamingo_jax.evaluation.benchmarks.star import STAR
from flamingo_jax.evaluation.metrics.exact_match import TOP1
from flamingo_jax.inference.prompt import Video
from tests.evaluation.fixtures.ivqa import make_ivqa
from tests.evaluation.fixtures.msrvttqa import make_msrvttqa
from tests.evaluation.fixtures.msvdqa import make_msvdqa
from tests.evaluation.fixtures.nextqa import make_nextqa
from tests.evaluation.fixtures.star import CHOICES, make_star


def fields(item):
    """All of an item; `Item` itself compares by identity."""
    return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}


def expected(**given):
    plain = {"references": (), "candidates": (), "label": "", "extra": {}}
    plain |= {"source": "", "turns": ()}
    return {**plain, **given}


@pytest.fixture
def directory(tmp_path):
    return epath.Path(tmp_path)


def test_msvdqa(directory):
    make_msvdqa(directory)
    benchmark = MSVDQA.at(directory)
    item = benchmark.test()[0]
    assert fields(item) == expected(
        id="test/4",
        visual=Video(directory / "YouTubeClips" / "mv89psg6zh4_33_46.avi"),
        source="mv89psg6zh4",
        prefix="Question: what is a man with long hair playing? Answer:",
        answer="guitar",
    )
    assert [each.answer for each in benchmark.train()] == ["squirrel", "nut", "man", "square"]
    assert benchmark.metrics == (TOP1,) and benchmark.max_shots == 32


def test_msvdqa_clips_may_be_numbered(directory):
    make_msvdqa(directory)
    (directory / "youtube_mapping.txt").unlink()
    (directory / "YouTubeClips").rename(directory / "video")
    (directory / "video" / "n_Z0-giaspE_270_278.avi").rename(directory / "video" / "vid1302.avi")
    assert {item.visual.path.name for item in MSVDQA.at(directory).test()} == {"vid1302.avi"}
    (directory / "youtube_mapping.txt").write_text("mv89psg6zh4_33_46\n")
    with pytest.raises(AnnotationError, match="a line without two words, expected lines such as"):
        MSVDQA.at(directory).test()


def test_msrvttqa(directory):
    make_msrvttqa(directory)
    assert fields(MSRVTTQA.at(directory).test()[2]) == expected(
        id="test/1002",
        visual=Video(directory / "videos" / "TestVideo" / "video7011.mp4"),
        prefix="Question: what is shown? Answer:",
        answer="square",
    )


def test_ivqa_shows_the_segment_and_keeps_five_answers(directory):
    make_ivqa(directory)
    whole, cut, _ = IVQA.at(directory).test()
    assert fields(whole) == expected(
        source="fEdO0b1cY1k",
        id="test/0",
        visual=Video(directory / "videos" / "fEdO0b1cY1k.mp4", 1.0, 4.0),
        prefix="Question: What is being cut? Answer:",
        answer="orange",
        references=("orange", "oranges", "fruit", "orange", "orange"),
    )
    assert cut.visual == Video(directory / "videos" / "ddddddddddd_20_24.mp4")
    assert cut.answer == "knife"  # of five different ones the first
    assert (
        IVQA.at(directory).train()[2].prefix == "Question: What is in the pan, if anything? Answer:"
    )


def test_ivqa_without_times_shows_the_whole_video(directory):
    make_ivqa(directory)
    text = (directory / "test.csv").read_text().replace("start,end", "from,to")
    (directory / "test.csv").write_text(text)
    (item,) = IVQA.at(directory).test()
    assert item.visual == Video(directory / "videos" / "fEdO0b1cY1k.mp4")


def test_nextqa_has_types_and_second_answers(directory):
    make_nextqa(directory)
    item, _, last = NEXTQA.at(directory).test()
    assert fields(item) == expected(
        id="4924794333/4/DB",
        visual=Video(directory / "NExTVideo" / "1164" / "4924794333.mp4"),
        prefix="Question: is the baby old enough to converse Answer:",
        answer="no",
        extra={"question_type": "DB", "additional": "not yet"},
    )
    assert last.extra == {"question_type": "CW", "additional": None}
    assert all(each.extra["additional"] is None for each in NEXTQA.at(directory).train())


@pytest.mark.parametrize("content", ["[]", '{"4924794333": "no"}'])
def test_nextqa_needs_the_second_answers(directory, content):
    make_nextqa(directory)
    (directory / "add_reference_answer_test.json").write_text(content)
    with pytest.raises(AnnotationError, match="no answers by video and question"):
        NEXTQA.at(directory).test()
    (directory / "add_reference_answer_test.json").unlink()
    with pytest.raises(
        AnnotationError, match="add_reference_answer_test.json, and it is not there"
    ):
        NEXTQA.at(directory).test()


def test_star_scores_its_choices_and_sees_no_situations(directory):
    make_star(directory)
    item = STAR.at(directory).test()[0]
    assert fields(item) == expected(
        id="Interaction_T1_13",
        visual=Video(directory / "Charades_v1_480" / "6H78U.mp4", 1.1, 3.9),
        prefix="Question: Which object was tidied up by the person? Answer:",
        answer="The closet/cabinet.",
        references=("The closet/cabinet.",),
        candidates=CHOICES,
        extra={"question_type": "Interaction"},
    )
    assert STAR.chance == 0.25


def test_star_refuses_an_answer_that_is_no_choice(directory):
    make_star(directory)
    rows = json.loads((directory / "STAR_val.json").read_text())
    rows[1]["answer"] = "The table."
    (directory / "STAR_val.json").write_text(json.dumps(rows))
    with pytest.raises(
        AnnotationError,
        match="the answer 'The table.' to Sequence_T5_20, with the choices .*, "
        "expected one of them",
    ):
        STAR.at(directory).test()
