"""The page of samples shows the rows that the loader makes, and a browser shows the page."""

import re

import numpy as np
import PIL.Image
import pytest
from etils import epath

from data_pipelines.on_beam import Execution
from data_pipelines.sample_html import SampleRow, Token, Visual, hue, render
from data_pipelines.sample_page import InspectRequest, build, direction, texts_of
from data_pipelines.write_records import write_records
from flamingo_jax.data.config import AugmentConfig, DataConfig, DatasetConfig
from flamingo_jax.data.images.augment import augment
from flamingo_jax.data.images.read import encode_png
from flamingo_jax.data.mixture import Mixture
from flamingo_jax.data.schema import Document, ImageText, InterleavedPage, VideoText
from flamingo_jax.data.to_device import to_device
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer, train_sentencepiece
from tests import chromium
from tests.html_elements import Elements

INJECTION = '<script>document.title="taken"</script><img src=x onerror=alert(1)> & "quoted"'
SIDE = 64


def picture(*colour: int) -> bytes:
    """Returns a colour with a dark left half, so that a flip is visible."""
    image = np.full((SIDE, SIDE, 3), colour, np.uint8)
    image[:, : SIDE // 2] //= 4
    return encode_png(image)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Datasets of all kinds and a tokenizer."""
    root = tmp_path_factory.mktemp("inspect")
    texts = ["A red square. And a green one:", "Straße, 猫 and <image> or <EOC>.", INJECTION]
    (root / "tokenizer").mkdir()
    train_sentencepiece([*texts] * 20, root / "tokenizer" / "tokenizer.model", 400)
    red, green, blue = picture(200, 40, 40), picture(40, 200, 40), picture(40, 40, 200)

    def pages():
        last = INJECTION.replace("<image>", "")
        for k in range(6):
            parts = (f"A red square {k}.", red, "And\na green one:", green, last)
            yield InterleavedPage(parts)
        yield InterleavedPage(("A cat is not an image.", b"no image"))

    write_records(root / "pages", "interleaved_page", {"train": pages})
    pairs = [ImageText(blue, f"A blue square {k}", f"number <{k}>") for k in range(3)]
    video = VideoText((red, green, blue), "It changes.", 1.0)
    documents = [Document(f"A document, {k}.") for k in range(40)]
    write_records(root / "pairs", "image_text", {"train": lambda: pairs})
    write_records(root / "videos", "video_text", {"train": lambda: [video]})
    write_records(root / "text", "document", {"train": lambda: documents})
    return root


def inspect(made, output, dataset, **options):
    """Makes a page. Returns (counts, its elements, the output directory)."""
    output = epath.Path(output) / f"{dataset}-{len(list(epath.Path(output).iterdir()))}"
    output.mkdir()
    small = {"image_size": SIDE, "length": 128, "num_samples": 8, "max_images": 2}
    options = {"augment": False, **small, **options}
    request = InspectRequest(
        dataset=str(made / dataset), tokenizer=str(made / "tokenizer"), **options
    )
    counts = build(request, output, Execution())
    return counts, Elements.of((output / "index.html").read_text()), output


def rows(made, dataset, kind, num, *, name="inspect", seed=0, augmented=True, **options):
    """Returns the loader's batch, and its frames as the training step augments them."""
    tokenizer = SentencePieceTokenizer.load(made / "tokenizer")
    config = DatasetConfig(kind, str(made / dataset), num, 128, **options)
    mixture = Mixture(DataConfig("", SIDE, {name: config}), seed=seed, tokenizer=tokenizer)
    batch = mixture.batch(name, 0)
    frames = batch.frames
    if augmented:
        on_device = to_device(batch)
        frames = augment(on_device.frames, on_device.media_key, AugmentConfig())
    return batch, np.asarray(frames)


@pytest.mark.parametrize("augmented", [True, False])
def test_shows_the_rows_of_the_run(made, tmp_path, augmented):
    """Each token's image, weight and text, and each image's pixels, are those of the batch.

    The batch has the name and seed of the run.
    """
    counts, page, output = inspect(made, tmp_path, "pages", name="m3w", seed=3, augment=augmented)
    batch, frames = rows(
        made, "pages", "interleaved", 8, name="m3w", seed=3, augmented=augmented, max_images=2
    )
    real = batch.segment > 0
    shown = page.all("span", "t")[1:]
    shown = shown[len(shown) - real.sum() :]  # without the legend's
    phi = [int(re.search(r"\bp(\d+)", attributes["class"])[1]) for attributes, _ in shown]
    np.testing.assert_array_equal(phi, batch.media_index[real])
    np.testing.assert_array_equal(
        ["w0" in attributes["class"] for attributes, _ in shown], batch.loss_weights[real] == 0
    )
    text = "".join(text for _, text in shown)
    assert text.count("<BOS>") == 8
    assert text.count(INJECTION) == 8
    slots = [slot for row in batch.media_slot for slot in row if slot >= 0]
    files = [attributes["src"] for attributes, _ in page.all("img")]
    assert counts["images"] == len(files) == len(slots) == 16
    for file, slot in zip(files, slots, strict=True):
        np.testing.assert_array_equal(np.asarray(PIL.Image.open(output / file)), frames[slot, 0])
    assert augmented == any((frames[slot] != batch.frames[slot]).any() for slot in slots)
    assert len(page.all("article")) == counts["samples"] == 8


def test_statistics(made, tmp_path):
    _, page, _ = inspect(made, tmp_path, "pages", max_images=4)
    batch, _ = rows(made, "pages", "interleaved", 8, max_images=4)
    assert page.fact("rows") == "8"
    assert page.fact("images per row") == "2.00 of 4"
    assert page.fact("pool that is padding") == "50.0% of 32"
    assert page.fact("tokens that are padding") == f"{(batch.segment == 0).mean():.1%}"
    assert page.fact("tokens predicted") == f"{(batch.loss_weights > 0).mean():.1%}"
    attending = (batch.media_index > 0).sum() / (batch.segment > 0).sum()
    assert page.fact("tokens with an image") == f"{attending:.1%}"
    directions = re.fullmatch(r"next (\d+), previous (\d+)", page.fact("text attends image"))
    assert sum(map(int, directions.groups())) == 8
    assert page.fact("corrupt records") == "not_an_image 1"


def test_every_kind_of_dataset(made, tmp_path):
    _, pairs, _ = inspect(made, tmp_path, "pairs", num_samples=3)
    assert len(pairs.all("img")) == 3
    assert {text for _, text in pairs.all("div", "metadata")} == {f"number <{k}>" for k in range(3)}
    _, captions, _ = inspect(made, tmp_path, "pairs", num_samples=3, kind="captions")
    assert captions.fact("tokens with an image") == "0.0%"
    _, videos, _ = inspect(made, tmp_path, "videos", num_samples=1)
    assert len(videos.all("figure")) == 1
    assert len(videos.all("img")) == 3  # the clip is shorter than 8 frames
    _, text, _ = inspect(made, tmp_path, "text", num_samples=40)  # two batches
    assert len(text.all("article")) == 40
    assert not text.all("img")
    assert text.all("span", "segment")[1][1] == "2"  # the first is the legend's
    assert float(text.fact("documents per row")) > 1


def test_nothing_of_a_text_becomes_html(made, tmp_path):
    _, page, output = inspect(made, tmp_path, "pages")
    tags = {tag for tag, _, _ in page.found}
    assert "script" not in tags
    assert all(
        attributes.keys() - {"class"} == {"src", "width", "height", "alt"}
        for attributes, _ in page.all("img")
    )
    assert "default-src 'none'" in page.all("meta")[1][0]["content"]
    assert "://" not in (output / "index.html").read_text().replace(INJECTION, "")
    hostile = SampleRow(
        INJECTION,
        (INJECTION,),
        (Token(INJECTION + "\0\n", 1, 0.5, 1, is_new=False),),
        (Visual(('"><b>',), 8),),
        0,
    )
    shown = Elements.of(render(INJECTION, INJECTION, {INJECTION: INJECTION}, [hostile]))
    assert not {"script", "b"} & {tag for tag, attributes, text in shown.found if text != "1"}
    assert shown.all("h1")[0][1] == INJECTION
    assert shown.all("img")[0][0]["src"] == '"><b>'
    assert shown.all("span", "t")[-1][1] == INJECTION + "\\x00↵\n"


@pytest.mark.parametrize(
    ("tokens", "phi", "expected"),
    [
        ([1, 9, 5, 6], [0, 1, 1, 1], "previous"),
        ([1, 9, 5, 6], [1, 1, 0, 0], "next"),
        ([9, 5, 9, 5], [1, 1, 2, 2], "previous"),
        ([9, 5, 9, 5], [1, 2, 2, 0], "next"),
        ([9], [1], ""),
        ([1, 5], [0, 0], ""),
    ],
)
def test_direction(tokens, phi, expected):
    assert direction(tokens, phi, [9]) == expected


def test_texts_of_tokens_are_the_text(made):
    tokenizer = SentencePieceTokenizer.load(made / "tokenizer")
    text = "A red square.\n Straße <EOC> 猫"
    shown = texts_of([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.pad_id], tokenizer)
    assert (shown[0], shown[-1]) == ("<BOS>", "<pad>")
    assert "".join(shown[1:-1]).replace("\N{REPLACEMENT CHARACTER}", "") == text
    rare = texts_of(tokenizer.encode("\N{SNOWMAN}"), tokenizer)  # three bytes
    assert rare[-1] == "\N{SNOWMAN}"


def test_requests_that_make_no_sense(made):
    for options, message in (
        ({"dataset": ""}, "--dataset is missing"),
        ({"tokenizer": ""}, "--tokenizer is missing"),
        ({"kind": "page"}, "--kind=page, expected one of interleaved"),
        ({"num_samples": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            InspectRequest(**{"dataset": "d", "tokenizer": "t", **options})


def test_a_browser_shows_it(made, tmp_path):
    """In headless Chromium the images load in the size of the model's input.

    The tokens have the colours of their images.
    """
    _, _, output = inspect(made, tmp_path, "pages", num_samples=2)
    page = (output / "index.html").read_text()
    blocked = Elements.of(chromium.dump_dom(output / "index.html", tmp_path))
    assert len(blocked.all("article")) == 2
    assert not blocked.all("script")
    # In a copy that allows scripts, a script writes what only the browser knows into the page.
    script = """<script>onload = () => {
        for (const image of document.images)
            image.dataset.natural = image.naturalWidth + "x" + image.naturalHeight;
        for (const part of document.querySelectorAll(".t"))
            part.dataset.colour = getComputedStyle(part).backgroundColor;
    }</script>"""
    copy = output / "copy.html"
    copy.write_text(re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', script, page))
    drawn = Elements.of(chromium.dump_dom(copy, tmp_path))
    sizes = [attributes["data-natural"] for attributes, _ in drawn.all("img")]
    assert sizes == [f"{SIDE}x{SIDE}"] * 4
    colours = [{a["data-colour"] for a, _ in drawn.all("span", f"t p{k}")} for k in range(3)]
    assert [len(found) for found in colours] == [1, 1, 1]
    assert len(set.union(*colours)) == 3
    pixels = chromium.screenshot(output / "index.html", tmp_path, width=1200, height=1600)
    # The bright halves of the images, drawn under the policy of the page.
    for colour in ((200, 40, 40), (40, 200, 40)):
        assert (pixels == colour).all(axis=-1).sum() >= 2 * SIDE * SIDE // 2
    for found in colours:
        (text,) = found
        tint = tuple(map(int, re.findall(r"\d+", text)[:3]))
        assert (pixels == tint).all(axis=-1).sum() > 100


def test_colours_of_many_images_differ():
    assert len({hue(number) for number in range(1, 31)}) == 30
