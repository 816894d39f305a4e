"""Prompts of the page: their files come back unchanged, and a wrong file is one clear message."""

import json
import zipfile

import PIL.Image
import pytest

from flamingo_jax.inference.prompt import Image, PromptError, Video
from flamingo_jax.playground import first_prompts, prompt_files
from flamingo_jax.playground.prompt_files import PromptRow, SavedPrompt
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer, train_sentencepiece
from flamingo_jax.world.text import WORDS
from tests.inference import tiny

CARD = {"format": "flamingo_jax prompt 1", "rows": [{"visuals": ["1.png"], "text": "output :"}]}


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "Cat.PNG"
    PIL.Image.fromarray(tiny.image(1)).save(path)
    return path


def archive(path, card, **files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("prompt.json", card if isinstance(card, str) else json.dumps(card))
        for name, data in files.items():
            opened.writestr(name, data)
    return str(path)


def test_a_prompt_has_visuals_and_texts_in_order():
    rows = [
        PromptRow((), "Look:"),
        PromptRow(("a.png", "b.mp4"), "output : é"),
        PromptRow(("c.jpg",), " \n"),
    ]
    assert prompt_files.parts(rows) == [
        *("Look:", Image("a.png"), Video("b.mp4"), "output : é", Image("c.jpg"))
    ]
    assert prompt_files.parts([PromptRow()]) == []


def test_a_saved_prompt_comes_back_unchanged(picture, tmp_path):
    rows = (
        PromptRow((), "Schön:\n"),
        PromptRow((str(picture), str(picture)), "two"),
        PromptRow((str(picture),)),
    )
    prompt_files.save(SavedPrompt(rows, ("a cat", "ein Hund")), str(tmp_path / "prompt.zip"))
    (tmp_path / "new").mkdir()
    found = prompt_files.load(str(tmp_path / "prompt.zip"), str(tmp_path / "new"))
    assert [row.text for row in found.rows] == [row.text for row in rows]
    assert [len(row.visuals) for row in found.rows] == [0, 2, 1]
    assert found.candidates == ("a cat", "ein Hund")
    for path in (path for row in found.rows for path in row.visuals):
        assert path.endswith(".png")
        with open(path, "rb") as file:
            assert file.read() == picture.read_bytes()


@pytest.mark.parametrize(
    ("card", "files", "reason"),
    [
        ("[1", {}, "is no saved prompt"),
        ({"rows": []}, {}, "has not the format"),
        ({**CARD, "rows": []}, {}, "expected 1 to 33 rows"),
        ({**CARD, "rows": [{"text": 3}]}, {}, "expected rows with visuals and text"),
        ({**CARD, "candidates": "a"}, {}, "a list of texts"),
        (CARD, {}, "There is no item named '1.png'"),
        (CARD, {"1.png": b"no image"}, "cannot be read as an image"),
        ({**CARD, "rows": [{"visuals": ["../1.png"], "text": ""}]}, {"../1.png": b""}, "no name"),
        ({**CARD, "rows": [{"visuals": ["a.sh"], "text": ""}]}, {"a.sh": b""}, "no name of an"),
    ],
)
def test_what_is_no_saved_prompt(tmp_path, card, files, reason):
    path = archive(tmp_path / "prompt.zip", card, **files)
    with pytest.raises(PromptError, match=reason):
        prompt_files.load(path, str(tmp_path))
    assert not (tmp_path.parent / "1.png").exists()


@pytest.mark.parametrize(
    ("mark", "at", "value", "reason"),
    [
        (b"PK\1\2", 8, b"\1", "is encrypted"),  # flags, in the list at the end
        (b"PK\3\4", 30 + len("prompt.json"), b"\xff\xff\xff", "decompressing data"),
    ],
)
def test_an_archive_that_cannot_be_unpacked(tmp_path, mark, at, value, reason):
    path = archive(tmp_path / "prompt.zip", CARD)
    data = bytearray((tmp_path / "prompt.zip").read_bytes())
    start = data.index(mark) + at
    data[start : start + len(value)] = value
    (tmp_path / "prompt.zip").write_bytes(data)
    with pytest.raises(PromptError, match=f"is no saved prompt .*{reason}"):
        prompt_files.load(path, str(tmp_path))


def test_what_is_unpacked_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_files, "_MOST_ARCHIVE", 1 << 20)
    path = archive(tmp_path / "prompt.zip", CARD, **{"1.png": bytes((1 << 20) + 1)})
    with pytest.raises(PromptError, match="more than 1 MB"):
        prompt_files.load(path, str(tmp_path))


def test_what_is_no_archive(picture, tmp_path):
    with pytest.raises(PromptError, match=r"'Cat.PNG' is no saved prompt \(File is not a zip file"):
        prompt_files.load(str(picture), str(tmp_path))


def test_files_that_are_taken_and_refused(picture, tmp_path, monkeypatch):
    prompt_files.check_file(str(picture))
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(PromptError, match="'notes.txt' is neither an image nor a video: give"):
        prompt_files.check_file(str(tmp_path / "notes.txt"))
    (tmp_path / "broken.jpg").write_bytes(picture.read_bytes()[:40])
    with pytest.raises(PromptError, match="broken.jpg' cannot be read as an image"):
        prompt_files.check_file(str(tmp_path / "broken.jpg"))
    monkeypatch.setattr(prompt_files, "MOST_MEGABYTES", 0)
    with pytest.raises(PromptError, match="expected at most 0 MB: give a smaller"):
        prompt_files.check_file(str(picture))


def test_examples_are_for_models_that_know_their_words(tmp_path):
    train_sentencepiece([" ".join(WORDS)] * 3, f"{tmp_path}/world.model", 160, model_type="word")
    words = SentencePieceTokenizer.load(f"{tmp_path}/world.model", ("<EOC>", "<image>"))
    assert first_prompts.fit(words) and not first_prompts.fit(tiny.tokenizer(tmp_path))
    for name in first_prompts.NAMES:
        saved = first_prompts.make(name, str(tmp_path))
        assert len(saved.rows) == 5 and len({row.visuals for row in saved.rows}) == 5
        answers = [row.text.split()[-1] for row in saved.rows[:-1]]
        assert set(answers) <= set(saved.candidates)
        assert all(row.text.startswith(saved.rows[-1].text) for row in saved.rows)
