"""Conversations: their tokens are those of a dialogue, and the loss is on the answers."""

import numpy as np
import pytest

from data_pipelines.write_records import write_records
from flamingo_jax.core.config import FieldError
from flamingo_jax.data.answers import Conversation
from flamingo_jax.data.config import DataConfig, DatasetConfig
from flamingo_jax.data.conversations import tokenise_conversation
from flamingo_jax.data.images.read import encode_png
from flamingo_jax.data.interleave import TagInText
from flamingo_jax.data.mixture import Mixture
from flamingo_jax.data.rows import RowMaker
from flamingo_jax.data.schema import CorruptRecord, from_example, to_example
from flamingo_jax.inference import prompt as prompts
from flamingo_jax.inference.chat import Chat
from flamingo_jax.inference.prompt import Image
from flamingo_jax.tokenizers.chat_template import TURNS
from tests.data.tiny import SIZE, solid

FIRST, SECOND = encode_png(solid(7)), encode_png(solid(9))
DIALOGUE = Conversation(
    ((FIRST, "My cat looking"), ("very",), ("an", SECOND, "and the output")),
    ("Cute pics", "My puppy sitting.", "My pets!"),
)
TEXT = Conversation((("w1 w2",),), ("w3",))
WORDS = Conversation(  # known words: several unknown ones in a row are one token
    ((FIRST, "w1 w2"), ("w3",), ("a", SECOND, "b c")), ("w4 w5", "w6", "w7 a")
)


@pytest.mark.parametrize(("name", "record"), [("words", WORDS), ("pieces", DIALOGUE)])
def test_a_turn_has_the_tokens_that_it_has_in_a_chat(name, record, request):
    """What the model is asked in `Flamingo.chat` is what it read in training, turn by turn."""
    tokenizer = request.getfixturevalue(name)
    found = tokenise_conversation(record, tokenizer)
    asked, answers = [], iter(record.answers)

    def generate(prompt):
        asked.append(prompts.read(prompt, tokenizer))
        return f" {next(answers)}"

    chat = Chat(generate, (), TURNS)
    for turn in record.asked:
        chat.say([Image(repr(part)) if isinstance(part, bytes) else part for part in turn])
    for number, prompt in enumerate(asked):
        length = len(prompt.tokens)
        np.testing.assert_array_equal(prompt.tokens, found.tokens[:length])
        np.testing.assert_array_equal(prompt.media_index, found.phi[:length])
        assert found.targets[length] and not found.targets[length - 1]
        assert found.targets[: length - 1].any() == (number > 0)
    last = asked[-1]
    assert (last.media_index.max(), found.phi.max()) == (2, 2)


def test_targets_are_the_answers_and_what_ends_them(pieces):
    found = tokenise_conversation(DIALOGUE, pieces)
    said = pieces.decode(found.tokens[found.targets])
    assert said.split("<EOC>") == [" Cute pics", " My puppy sitting.", " My pets!", ""]
    assert found.tokens[-1] == pieces.eos_id and found.targets[-1]


def test_a_tag_in_a_text_is_one_too_many(words):
    with pytest.raises(TagInText, match="more tags than images"):
        tokenise_conversation(Conversation((("w1 <image>",),), ("w2",)), words)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    root = tmp_path_factory.mktemp("conversations")
    records = [DIALOGUE, TEXT] * 4
    write_records(root / "set", Conversation.kind, {"train": lambda: records})
    return root / "set"


def batch_of(stored, tokenizer, **changes):
    fields = {"batch_size": 8, "length": 200, "max_images": 2, "loss_on": "answers"} | changes
    config = DatasetConfig("conversations", str(stored), **fields)
    mixture = Mixture(DataConfig("", SIZE, {"set": config}), seed=1, tokenizer=tokenizer)
    return mixture.batch("set", 0)


def test_a_batch_has_images_and_texts_alone(stored, pieces):
    batch = batch_of(stored, pieces)
    assert sorted((batch.media_slot >= 0).sum(axis=1)) == [0] * 4 + [2] * 4
    row = int(np.argmax((batch.media_slot >= 0).sum(axis=1)))
    found = tokenise_conversation(DIALOGUE, pieces)
    np.testing.assert_array_equal(batch.tokens[row, : len(found.tokens)], found.tokens)
    np.testing.assert_array_equal(batch.media_index[row, : len(found.phi)], found.phi)
    np.testing.assert_array_equal(batch.loss_weights[row, : len(found.targets)], found.targets)
    greys = batch.frames[batch.media_slot[row], 0, 0, 0, 0]
    assert greys.tolist() == [7, 9]


def test_the_whole_text_can_count(stored, pieces):
    batch = batch_of(stored, pieces, loss_on="text")
    counted = (batch.segment > 0) & (batch.tokens != pieces.bos_id)
    np.testing.assert_array_equal(batch.loss_weights > 0, counted)


def test_a_row_ends_before_the_image_that_is_too_much(pieces):
    config = DatasetConfig("conversations", "", batch_size=1, length=200, max_images=1)
    example = RowMaker(config, pieces, image_size=SIZE).prepare(DIALOGUE)
    found = tokenise_conversation(DIALOGUE, pieces)
    end = int(np.flatnonzero(found.phi == 2)[0])
    np.testing.assert_array_equal(example.tokens[0], found.tokens[:end])
    assert len(example.images) == 1


def test_an_answer_behind_the_end_of_the_row_is_counted(pieces):
    config = DatasetConfig("conversations", "", batch_size=1, length=8, loss_on="answers")
    with pytest.raises(CorruptRecord, match="no room for its answer in a row of 8") as found:
        RowMaker(config, pieces, image_size=SIZE).prepare(DIALOGUE)
    assert found.value.reason == "answer_cut_off"


def test_other_kinds_have_no_answers():
    with pytest.raises(FieldError, match="'pairs' and 'conversations'"):
        DatasetConfig("interleaved", "", batch_size=1, length=8, loss_on="answers")


@pytest.mark.parametrize(
    "change",
    [{"order": [0, 2, 0]}, {"order": [1, 2]}, {"turns": ["a"]}, {"images": [b"x"]}, {"order": []}],
)
def test_an_inconsistent_record_is_corrupt(change):
    with pytest.raises(CorruptRecord, match="A stored conversation is inconsistent"):
        from_example(Conversation.kind, {**to_example(TEXT), **change})


def test_an_export_says_how_a_dialogue_is_written():
    conversations = DatasetConfig("conversations", "", batch_size=1, length=8)
    data = DataConfig("", SIZE, {"talk": conversations})
    assert data.preprocessing["chat"] == {
        "user": "User:",
        "model": "\nFlamingo:",
        "end": "<EOC>",
        "has_examples": False,
        "space": " ",
        "system": ("", "\n"),
    }
    pairs = DatasetConfig("pairs", "", batch_size=1, length=8)
    assert "chat" not in DataConfig("", SIZE, {"pairs": pairs}).preprocessing
