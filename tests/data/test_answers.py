"""Records of prompts and answers: how they are tokenised, drawn, and counted in the loss."""

import collections
import dataclasses

import numpy as np
import pytest

from data_pipelines.write_records import write_records
from flamingo_jax.core.config import ConfigError, FieldError
from flamingo_jax.data.answers import ImageAnswers, VideoAnswers
from flamingo_jax.data.captions import tokenise_pair, tokenise_turns
from flamingo_jax.data.config import DataConfig, DatasetConfig
from flamingo_jax.data.images.read import encode_png
from flamingo_jax.data.mixture import Mixture
from flamingo_jax.data.rejected import BrokenDataset
from flamingo_jax.data.rows import RowMaker
from flamingo_jax.data.schema import CorruptRecord, ImageText, from_example, to_example
from tests.data.tiny import SIZE, solid

PICTURE = encode_png(solid(7))
QUESTION, DIALOGUE = ("w1 w2 a",), ("w1 a", "w2", "w3 b")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """A directory with the datasets asked (three answers), dialogues, videos and texts."""
    root = tmp_path_factory.mktemp("answers")
    asked = [ImageAnswers(PICTURE, QUESTION, ("w5", "w5", "w6 w7"))] * 8
    dialogues = [ImageAnswers(PICTURE, DIALOGUE, ("w4",))] * 4
    videos = [VideoAnswers((PICTURE, PICTURE), QUESTION, ("w5",), fps=1.0)] * 4
    write_records(root / "asked", ImageAnswers.kind, {"train": lambda: asked})
    write_records(root / "dialogues", ImageAnswers.kind, {"train": lambda: dialogues})
    write_records(root / "videos", VideoAnswers.kind, {"train": lambda: videos})
    write_records(root / "texts", ImageText.kind, {"train": lambda: [ImageText(PICTURE, "w1")]})
    return root


def batch_of(answers, name, tokenizer, **changes):
    fields = {"batch_size": 4, "length": 12, "num_frames": 2} | changes
    config = DatasetConfig("pairs", str(answers / name), **fields)
    mixture = Mixture(DataConfig("", SIZE, {name: config}), seed=1, tokenizer=tokenizer)
    return mixture.batch(name, 0)


def counted(batch, tokenizer):
    """Returns the text of the tokens that count in the loss, row by row."""
    return [
        tokenizer.decode(tokens[weights > 0])
        for tokens, weights in zip(batch.tokens, batch.loss_weights, strict=True)
    ]


def test_a_prompt_has_the_tokens_that_it_has_alone(words, pieces):
    """So that training and asking agree on where the answer begins."""
    for tokenizer, turns in ((words, DIALOGUE), (pieces, ("My cat looking", "very", "My cat"))):
        tokens, of_answer = tokenise_turns((*turns, "a"), tokenizer)
        asked = tokenise_pair(" ".join(turns), tokenizer)
        closing = 2  # <EOC> and <EOS>
        np.testing.assert_array_equal(tokens[: len(asked) - closing], asked[:-closing])
        np.testing.assert_array_equal(tokens, tokenise_pair(" ".join((*turns, "a")), tokenizer))
        assert tokenizer.decode(tokens[of_answer]).split() == [*turns[1].split(), "a<EOC>"]


def test_a_tag_in_an_answer_is_one_too_many(words):
    with pytest.raises(CorruptRecord, match="more <image> tags"):
        tokenise_turns(("w1", "<image>"), words)


@pytest.mark.parametrize("space", [0.0, 1.0])
def test_the_loss_is_on_the_whole_text_or_on_the_answers(answers, words, space):
    whole = batch_of(answers, "dialogues", words, space_prefix=space)
    assert counted(whole, words) == ["<image>w1 a w2 w3 b w4<EOC>"] * 4
    alone = batch_of(answers, "dialogues", words, space_prefix=space, loss_on="answers")
    np.testing.assert_array_equal(alone.tokens, whole.tokens)
    assert counted(alone, words) == ["w2 w4<EOC>"] * 4
    ends = (alone.tokens == words.eos_id) & (alone.segment > 0)
    assert (alone.loss_weights[ends] == 1).all() and ends.sum() == 4


def test_answers_are_drawn_as_often_as_they_were_given(answers, words):
    config = DatasetConfig("pairs", str(answers / "asked"), batch_size=300, length=12)
    mixture = Mixture(DataConfig("", SIZE, {"asked": config}), seed=1, tokenizer=words)
    batch = mixture.batch("asked", 0)
    drawn = collections.Counter(
        words.decode(tokens[segment > 0]).removeprefix("<image>").split(" a ")[1]
        for tokens, segment in zip(batch.tokens, batch.segment, strict=True)
    )
    assert set(drawn) == {"w5<EOC>", "w6 w7<EOC>"}
    assert 160 < drawn["w5<EOC>"] < 240  # 200 of 300, with a deviation of 8
    np.testing.assert_array_equal(mixture.batch("asked", 0).tokens, batch.tokens)


def test_videos_have_answers_too(answers, words):
    batch = batch_of(answers, "videos", words, loss_on="answers")
    assert counted(batch, words) == ["w5<EOC>"] * 4
    assert batch.frame_mask.all()


def test_an_answer_behind_the_end_of_the_row_is_counted(words):
    config = DatasetConfig("pairs", "", batch_size=1, length=5, loss_on="answers")
    record = ImageAnswers(PICTURE, QUESTION, ("w5",))  # <BOS> <image> w1 w2 a | w5
    with pytest.raises(CorruptRecord, match="row of 5") as found:
        RowMaker(config, words, image_size=SIZE).prepare(record)
    assert found.value.reason == "answer_cut_off"
    whole = RowMaker(dataclasses.replace(config, loss_on="text"), words, image_size=SIZE)
    assert len(whole.prepare(record).tokens) == 2  # as any pair that is too long


def test_a_dataset_of_answers_that_are_all_cut_off_is_broken(answers, words):
    with pytest.raises(BrokenDataset, match="8 records of .* in a row"):
        batch_of(answers, "asked", words, loss_on="answers", length=5)


def test_what_has_no_answers_is_refused(answers, words):
    with pytest.raises(ConfigError, match=r"loss_on = 'answers'.*holds image_text"):
        batch_of(answers, "texts", words, loss_on="answers")
    with pytest.raises(FieldError, match="loss_on is 'answers'.*'text'"):
        DatasetConfig("text", "", batch_size=1, length=8, loss_on="answers")
    with pytest.raises(ConfigError, match="takes image_text or video_text, but"):
        config = DatasetConfig("captions", str(answers / "asked"), batch_size=4, length=8)
        Mixture(DataConfig("", SIZE, {"asked": config}), seed=1, tokenizer=words)


@pytest.mark.parametrize(("prompts", "answers"), [(("a", "b"), ("c",)), (("a",), ()), ((), ("a",))])
def test_a_stored_record_without_an_answer_is_corrupt(prompts, answers):
    example = to_example(ImageAnswers(PICTURE, prompts, answers))
    with pytest.raises(CorruptRecord, match="at least one answer") as found:
        from_example(ImageAnswers.kind, example)
    assert found.value.reason == "no_answer"
