"""Prompts to tokens, phi and the pool of images; and every way in which a prompt can be wrong."""

import io

import PIL.Image
import pytest

from flamingo_jax.inference.prompt import (
    Image,
    PromptError,
    Video,
    as_batch,
    at_once,
    collate,
    parse,
    read,
)
from tests.data_pipelines.media import grey_frames, mp4
from tests.inference import tiny

IMAGE = Image("a.png")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tiny.tokenizer(tmp_path_factory.getbasetemp())


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("cat.png", "dog.png")):
        PIL.Image.fromarray(tiny.image(seed)).save(tmp_path / name)
    return tmp_path


def png(array):
    buffer = io.BytesIO()
    PIL.Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def test_a_prompt_is_the_sequence_of_figure_8(words):
    prompt = read([tiny.image(0), "output : red<EOC>", tiny.image(1), "output :"], words)
    pieces = ["<BOS>", "<image>", "▁output", "▁:", "▁red", "<EOC>", "<image>", "▁output", "▁:"]
    assert prompt.tokens.tolist() == [words.id(piece) for piece in pieces]
    assert prompt.media_index.tolist() == [0, 1, 1, 1, 1, 1, 2, 2, 2]
    assert len(prompt.visuals) == 2


def test_text_before_the_first_image_attends_none(words):
    prompt = read(["this is", tiny.image(0), "output :"], words)
    # <BOS> this is <EOC> | <image> output :
    assert prompt.media_index.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_text_alone_needs_no_end_of_chunk_token(words):
    assert read("red circle :", words).tokens.tolist() == [
        words.bos_id,
        *words.encode("red circle :"),
    ]


def test_masking_hides_the_images_and_changes_nothing_else(words):
    parts = [tiny.image(0), "output : red<EOC>", tiny.image(1), "output :"]
    plain, masked = read(parts, words), read(parts, words, masked=True)
    assert plain.media_index.any() and not masked.media_index.any()
    assert plain.tokens.tolist() == masked.tokens.tolist()


def test_an_image_of_several_prompts_is_in_the_pool_once(words):
    cat, dog = tiny.image(0), png(tiny.image(1))
    prompts = [
        read([cat, "red", dog, "blue"], words),
        read([bytes(dog), "red", cat.copy(), "blue"], words),
        read("red", words),
    ]
    batch = collate(prompts, rows=4, length=16, num_images=3)
    assert batch.media_slot.tolist() == [[0, 1, -1], [1, 0, -1], [-1, -1, -1], [-1, -1, -1]]
    assert batch.visuals[0] is cat and batch.visuals[1] is dog and len(batch.visuals) == 2
    assert batch.length.tolist() == [len(prompts[0].tokens), len(prompts[1].tokens), 2, 1]
    assert batch.media_index[0].max() == 2 and not batch.media_index[2:].any()


def test_templates_name_files_in_braces(files):
    (files / "clip.MP4").write_bytes(mp4(grey_frames(2)))
    assert parse("{clip.MP4}Output:") == [Video("clip.MP4"), "Output:"]
    parts = parse("{cat.png}Output: {{A}} cat.<EOC>{ dog.png }Output:")
    assert parts == [Image("cat.png"), "Output: {A} cat.<EOC>", Image("dog.png"), "Output:"]
    assert parse("no image") == ["no image"]


@pytest.mark.parametrize(
    ("counts", "expected"), [([], 1), ([0], 1), ([1], 1), ([3], 4), ([3, 0, 6], 16), ([99], 64)]
)
def test_no_more_images_are_encoded_together_than_there_are(counts, expected):
    """Else a single image on a laptop would cost as much as 64."""
    assert at_once([["text", *[tiny.image(0)] * count] for count in counts], 64) == expected
    assert at_once(["text alone"], 64) == 1


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{cow.png}Output:", "there is no image file 'cow.png'"),
        ("{cow.webm}Output:", "there is no video file 'cow.webm'"),
        ("{cat.pngOutput:", "brace at character 0 is not closed"),
        ("a {cat.png {dog.png}", "brace at character 2 is not closed"),
        ("cat.png}Output:", "closes no brace"),
        ("{}Output:", "braces at character 0 are empty"),
    ],
)
def test_wrong_templates(files, template, message):
    with pytest.raises(PromptError, match=message):
        parse(template)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("<image>output :", "more tags than images"),
        (3, "part 0 is int; expected"),
        (Image("nowhere.png"), "there is no image file 'nowhere.png'"),
        (Video("nowhere.mp4"), "there is no video file 'nowhere.mp4'"),
    ],
)
def test_wrong_parts(words, part, message):
    with pytest.raises(PromptError, match=message):
        collate([read([part, "output :"], words)], rows=1, length=16, num_images=1)


def test_prompts_that_do_not_fit(words):
    prompt = read([tiny.image(0), tiny.image(1), "output :"], words)
    with pytest.raises(PromptError, match="2 images; expected at most 16 and 1"):
        collate([prompt], rows=1, length=16, num_images=1)
    with pytest.raises(PromptError, match="got 2 prompts, expected at most 1"):
        collate([prompt, prompt], rows=1, length=16, num_images=2)


@pytest.mark.parametrize(
    ("prompts", "batch", "is_list"),
    [
        ("text", ["text"], False),
        ([IMAGE, "text"], [[IMAGE, "text"]], False),
        ((IMAGE, "text"), [(IMAGE, "text")], False),
        ([IMAGE], [[IMAGE]], False),
        ([IMAGE, b"bytes"], [[IMAGE, b"bytes"]], False),
        (["one", "two"], ["one", "two"], True),
        (["one"], ["one"], True),
        ([["one", "two"]], [["one", "two"]], True),
        ([[IMAGE, "one"], "two"], [[IMAGE, "one"], "two"], True),
    ],
)
def test_one_prompt_or_several(prompts, batch, is_list):
    """A list is one prompt where it holds an image itself; strings alone, or lists, are several."""
    assert as_batch(prompts) == (batch, is_list)


def test_lists_and_images_side_by_side():
    with pytest.raises(PromptError, match="item 1 is Image in a list that also holds lists"):
        as_batch([["one"], IMAGE])


def test_text_that_is_not_utf_8_is_replaced(words):
    """An argument of a program may be half a surrogate pair or any byte."""
    assert list(read("red \ud83d", words).tokens) == list(read("red \ufffd", words).tokens)


@pytest.mark.parametrize("name", ["https://a/b.jpg", "file://a/b.jpg", "data:image/png;base64,"])
def test_what_is_no_file_is_an_error(name):
    with pytest.raises(PromptError, match=r"is neither a local file nor one of|there is no image"):
        parse(f"{{{name}}}Output:")


def test_the_home_directory_in_braces(files, monkeypatch):
    monkeypatch.setenv("HOME", str(files))
    assert parse("{~/cat.png}Output:") == [Image(str(files / "cat.png")), "Output:"]
