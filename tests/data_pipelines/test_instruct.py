"""Instruction data of LLaVA and MIMIC-IT: what becomes a record, and why the rest does not."""

import base64
import collections
import json

import pytest
from etils import epath

from data_pipelines.collect import Found
from data_pipelines.instruct import mimic_it
from data_pipelines.instruct.instructions import InstructRequest, read_unit
from data_pipelines.page import Reject
from flamingo_jax.data.answers import Conversation
from tests.evaluation.fixtures import pictures

FIRST, SECOND = pictures.encoded(1), pictures.encoded(2)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "coco").mkdir(parents=True)
    (tmp_path / "images" / "coco" / "1.jpg").write_bytes(FIRST)
    (tmp_path / "images" / "2.jpg").write_bytes(SECOND)
    (tmp_path / "images" / "broken.jpg").write_bytes(FIRST[:100])
    return tmp_path


def says(*values):
    """Returns turns: human, gpt, human, gpt."""
    return [
        {"from": ("human", "gpt")[number % 2], "value": value}
        for number, value in enumerate(values)
    ]


def row(*values, image=None, **others):
    named = {} if image is None else {"image": image}
    return {"id": "000000033471", **named, "conversations": says(*values), **others}


def read(folder, *rows, name="llava.json", **options):
    """Writes a file of conversations and returns what is read of it."""
    text = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
    (folder / name).write_text(text)
    request = InstructRequest(images=str(folder / "images"), **options)
    from data_pipelines.formats import jsonl

    path = str(folder / name)
    units = [path] if name.endswith(".json") else jsonl.parts(path)
    return [item for unit in units for item in read_unit(request, unit)]


def reasons(items):
    return collections.Counter(
        item.reason if isinstance(item, Reject) else "found" for item in items
    )


@pytest.mark.parametrize("name", ["llava.json", "llava.jsonl"])
def test_turns_of_llava(folder, name):
    rows = [
        row("<image>\nWhat is it?", "A cat.", "Is it\nold?", " No. ", image="coco/1.jpg"),
        row("Which of <image> and <image> is red?", "Both.", image=["2.jpg", "coco/1.jpg"]),
        row("Hello!", "Hello."),
        row("What is it?", "A dog.", images=["2.jpg"]) | {"image": None},
    ]
    first, second, third, fourth = read(folder, *rows, name=name)
    assert first == Found(
        Conversation(
            ((FIRST, "What is it?"), ("Is it\nold?",)),
            ("A cat.", "No."),
            '{"source": "000000033471"}',
        )
    )
    assert second.record.asked == (("Which of", SECOND, "and", FIRST, "is red?"),)
    assert third.record.images == () and third.keys  # equal texts are duplicates
    assert fourth.record.asked == ((SECOND, "What is it?"),)  # it has no <image>


def test_a_system_turn_is_before_the_first_question(folder):
    spoken = [{"from": "system", "value": "Be brief."}, *says("Hello!", "Hi.")]
    (found,) = read(folder, {"id": "1", "conversations": spoken})
    assert found.record.asked == (("Be brief.\nHello!",),)


def test_markers_of_the_model_in_an_answer_are_words(folder):
    (found,) = read(folder, row("<image>\nWhat?", "An <image><EOC>.", image="2.jpg"))
    assert found.record.answers == ("An imageEOC.",)


REFUSED = {
    "missing_image": row("<image>\nWhat?", "A cat.", image="gone.jpg"),
    "path_traversal": row("<image>\nWhat?", "A cat.", image="../../secret.jpg"),
    "truncated_image": row("<image>\nWhat?", "A cat.", image="broken.jpg"),
    "image_count": row("<image> or <image>?", "Both.", image="2.jpg"),
    "not_alternating": {"id": "1", "conversations": says("a", "b")[::-1]},
    "no_answer": row("Hello!", "Hi.", "And?"),
    "no_text": row(" ", "Hi."),
    "no_turns": {"id": "1", "conversations": []},
    "not_llava": {"id": "1", "text": "Hello!"},
    "has_video": row("<video>\nWhat?", "A cat.", video="1.mp4"),
    "text_too_long": row("Hello!", "Hi " * 50),
    "too_many_images": row("<image><image><image>?", "a", image=["2.jpg"] * 3),
    "broken_text": row("Hello!", "half of a pair: \ud83d"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_each_bad_conversation_has_its_reason(folder, reason):
    items = read(folder, REFUSED[reason], row("Hello!", "Hi."), max_images=2, max_characters=100)
    assert reasons(items) == {reason: 1, "found": 1}


@pytest.mark.parametrize(
    ("text", "reason", "found"),
    [
        ("{}", "not_a_list", 0),
        ("", "not_a_list", 0),
        ("[1, ROW]", "not_an_object", 1),
        ("[ROW, ROW", "truncated_file", 2),
        ('[ROW, {"id": ', "truncated_file", 1),
    ],
)
def test_a_damaged_list_is_read_up_to_the_damage(folder, text, reason, found):
    one = json.dumps(row("Hello!", "Hi."))
    (folder / "damaged.json").write_text(text.replace("ROW", one))
    request = InstructRequest(images=str(folder / "images"))
    items = list(read_unit(request, str(folder / "damaged.json")))
    assert reasons(items)[reason] == 1
    assert reasons(items)["found"] == found


def test_a_long_list_is_read_in_pieces(folder, monkeypatch):
    from data_pipelines.formats import json_list

    monkeypatch.setattr(json_list, "_PIECE", 50)
    rows = [row(f"Question {number}?", "é" * (number % 90 + 1)) for number in range(100)]
    items = read(folder, *rows)
    assert [item.record.asked[0][0] for item in items] == [
        f"Question {number}?" for number in range(100)
    ]


INSTRUCTIONS = {
    "LA_INS_1": ("Who is it?", "A dax.", ["LA_IMG_1"], ["LA_INS_2", "LA_INS_3", "LA_INS_9"]),
    "LA_INS_2": ("What is it?", "A wug.", ["LA_IMG_2"], []),
    "LA_INS_3": ("Is it red?", "Yes.", ["LA_IMG_2"], []),
    "LA_INS_4": ("And this?", "No.", ["LA_IMG_7"], []),
    "LA_INS_5": (
        "What happens?",
        "It moves.",
        [f"LA_IMG_{n % 2 + 1}" for n in range(8)],
        ["LA_INS_5"],
    ),
    "LA_INS_6": ("Which?", "Both.", ["LA_IMG_3"], []),
}


@pytest.fixture
def mimic(tmp_path):
    """Returns the request of a small MIMIC-IT, and its file of instructions."""
    data = {
        id: dict(zip(("instruction", "answer", "image_ids", "rel_ins_ids"), fields, strict=True))
        for id, fields in INSTRUCTIONS.items()
    }
    value = {"meta": {"version": "0.0.1", "time": "2023-06", "author": "ntu"}, "data": data}
    (tmp_path / "LA_instructions.json").write_text(json.dumps(value))
    images = {
        f"LA_IMG_{number}": base64.b64encode(image).decode()
        for number, image in ((1, FIRST), (2, SECOND))
    }
    (tmp_path / "LA.json").write_text(json.dumps(images | {"LA_IMG_3": "&&&"}))
    request = InstructRequest(
        format="mimic_it", images=str(tmp_path / "LA.json"), images_per_turn=2, max_images=8
    )
    mimic_it._data.cache_clear()
    mimic_it._texts.cache_clear()
    return request, epath.Path(tmp_path)


def items_of(request, folder, start=0, stop=100):
    unit = mimic_it.Ids(str(folder / "LA_instructions.json"), start, stop)
    return list(read_unit(request, unit))


def test_related_instructions_come_first(mimic):
    items = items_of(*mimic)
    (first, *_) = [item for item in items if isinstance(item, Found)]
    # The second related one is about the same image as the first, which is shown once.
    assert first.record.asked == ((SECOND, "What is it?"), ("Is it red?",), (FIRST, "Who is it?"))
    assert first.record.answers == ("A wug.", "Yes.", "A dax.")
    assert json.loads(first.record.metadata) == {"source": "LA_INS_1"}
    assert reasons(items) == {
        "found": 4,  # 1, 2, 3 and 5
        "missing_related": 1,  # LA_INS_9
        "repeated_related": 1,  # LA_INS_5 before itself
        "missing_image": 1,  # LA_IMG_7
        "between_taken": 6,  # of the eight images of LA_INS_5
        "not_an_image": 1,  # LA_IMG_3
    }


def test_parts_of_a_file_are_read_by_themselves(mimic):
    request, folder = mimic
    assert [item.record.answers for item in items_of(request, folder, 1, 3)] == [
        ("A wug.",),
        ("Yes.",),
    ]


def test_a_file_of_images_that_is_cut_off_is_counted(mimic):
    request, folder = mimic
    text = (folder / "LA.json").read_text()
    (folder / "LA.json").write_text(text[: text.index("LA_IMG_2") + 20])
    found = reasons(items_of(request, folder))
    assert found["truncated_file"] == 1 and found["missing_image"] >= 3


@pytest.mark.parametrize("place", ["first", "last"])
def test_an_image_that_is_no_text_hides_no_other(mimic, place):
    request, folder = mimic
    whole = reasons(items_of(request, folder))
    images = json.loads((folder / "LA.json").read_text())
    pairs = [*images.items()]
    pairs.insert(0 if place == "first" else len(pairs), ("LA_IMG_7", None))
    (folder / "LA.json").write_text(json.dumps(dict(pairs), indent=1))
    mimic_it._texts.cache_clear()
    found = reasons(items_of(request, folder))
    assert found.pop("not_an_image") == 2 and "missing_image" not in found
    assert found == {k: n for k, n in whole.items() if k not in ("not_an_image", "missing_image")}


@pytest.mark.parametrize("value", [[], {}, {"data": []}])
def test_another_file_is_no_mimic_it(mimic, value):
    request, folder = mimic
    (folder / "LA_instructions.json").write_text(json.dumps(value))
    (item,) = items_of(request, folder)
    assert item.reason in ("not_mimic_it", "not_an_object") and item.broken


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "alpaca"}, "expected one of llava, mimic_it"),
        ({"format": "mimic_it"}, "--images is missing"),
        ({"related": -1}, "--related=-1"),
        ({"max_images": 0}, "--max_images=0"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        InstructRequest(**options)
