"""The records of emoji on disk: counts, determinism, and leaks (all records are scanned)."""

import hashlib
import io
import json
import re
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image

from data_pipelines.emoji import concepts, emoji_records, pictures
from data_pipelines.emoji.concepts import STYLES, EmojiError
from flamingo_jax.data.schema import Document, InterleavedPage
from flamingo_jax.data.sources import Source
from flamingo_jax.world.text import NEW_NAMES
from tests.data_pipelines.emoji import packages

DATASETS = ("captions", "pairs", "pages", "text")


@pytest.fixture(scope="module")
def request_(tmp_path_factory):
    directory = packages.write(tmp_path_factory.mktemp("emoji"), third=True)
    return emoji_records.EmojiRequest(str(directory), seed=1, size="smoke")


@pytest.fixture(scope="module")
def made(request_, tmp_path_factory):
    output = epath.Path(tmp_path_factory.mktemp("records"))
    counts = emoji_records.build(request_, output)
    return output, counts


@pytest.fixture(scope="module")
def records(made):
    """All records by (dataset, split)."""
    output, counts = made
    loaded = {}
    for name in counts:
        dataset, slash, split = name.partition("/")
        if slash:
            source = Source(output / dataset, split)
            loaded[dataset, split] = [source[i] for i in range(len(source))]
            assert len(source) == counts[name]
    return loaded


def texts(record):
    return record.texts if isinstance(record, InterleavedPage) else (record.text,)


def images(record):
    if isinstance(record, InterleavedPage):
        return record.images
    return () if isinstance(record, Document) else (record.image,)


def of_training(records):
    return [
        record
        for (dataset, split), found in records.items()
        if dataset in DATASETS and split == "train"
        for record in found
    ]


def test_counts_are_as_asked(made, records):
    _, counts = made
    size = emoji_records.SIZES["smoke"]
    assert counts["left out: component"] == 1
    assert len(records["pairs", "train"]) == size.pairs
    assert len(records["pages", "train"]) == size.pages
    assert len(records["text", "train"]) == size.documents
    for dataset in DATASETS[1:]:
        assert len(records[dataset, "test"]) == size.held_back


def test_no_picture_of_evaluation_is_in_training(records):
    tested = {image for record in records["test_images", "test"] for image in images(record)}
    for (dataset, split), found in records.items():
        if dataset != "test_images" and split == "test":
            tested |= {image for record in found for image in images(record)}
    trained = {image for record in of_training(records) for image in images(record)}
    assert len(tested) > 200 and len(trained) > 100
    assert not tested & trained


def test_training_names_no_concept_of_another_split(request_, records):
    others = {
        concept.name
        for concept in concepts.read(request_.input).concepts
        if concept.split != "train"
    }
    # Each name of these packages ends with a number, so no name begins another.
    names = re.compile(rf"\b(?:{'|'.join(sorted(others, key=len, reverse=True))})\b")
    held_back = [records[dataset, "test"] for dataset in DATASETS]
    for record in of_training(records) + [record for found in held_back for record in found]:
        for text in texts(record):
            assert not names.search(text), text


def test_training_shows_no_unseen_style(request_, records):
    unseen = {
        concept.name: concept.unseen_style
        for concept in concepts.read(request_.input).concepts
        if concept.unseen_style
    }
    for dataset in ("captions", "pairs"):
        for record in records[dataset, "train"]:
            metadata = json.loads(record.metadata)
            assert metadata["split"] == "train"
            assert metadata["style"] in STYLES
            assert metadata["style"] != unseen.get(metadata["name"])
    # Pages have no metadata: their pictures are those of the captions.
    shown = {image for record in records["captions", "train"] for image in images(record)}
    assert all(set(images(page)) <= shown for page in records["pages", "train"])


def test_new_words_are_in_no_page(records):
    for split in ("train", "test"):
        for page in records["pages", split]:
            assert not set(NEW_NAMES) & {word for text in page.texts for word in text.split()}
    documents = " ".join(record.text for record in records["text", "train"]).split()
    assert set(NEW_NAMES) <= set(documents)


def test_a_binding_page_binds(records):
    """Equal pictures have equal words, on each page."""
    pages = [page for page in records["pages", "train"] if page.texts[0].startswith("this is a ")]
    assert len(pages) > 20
    for page in pages:
        assert 1 <= len(set(page.texts)) <= 5
        words = {}
        for image, text in zip(page.images, page.texts, strict=True):
            assert words.setdefault(image, text) == text


def test_pools(request_, records):
    pools = {}
    for record in records["test_images", "test"]:
        metadata = json.loads(record.metadata)
        pools.setdefault(metadata["id"].split("/")[0], []).append(metadata)
    assert {each["split"] for each in pools["test"]} == {"test"}
    assert {each["style"] for each in pools["test"]} == set(STYLES)
    assert {each["split"] for each in pools["validation"]} == {"validation"}
    assert {each["split"] for each in pools["third_style"]} == {"train", "test"}
    unseen = {
        concept.name: concept.unseen_style for concept in concepts.read(request_.input).concepts
    }
    assert all(each["style"] == unseen[each["name"]] for each in pools["unseen_style"])


def test_records_are_a_pure_function_of_the_request(request_, made, tmp_path):
    output, _ = made
    again = epath.Path(tmp_path)
    emoji_records.build(request_, again)

    def digest(directory):
        records = [path for path in directory.glob("*/*") if "array_record" in path.name]
        return {
            path.name if path.parent == directory else f"{path.parent.name}/{path.name}":
            hashlib.sha256(path.read_bytes()).hexdigest()
            for path in [*records, directory / "emoji.json"]
        }  # fmt: skip

    found = digest(output)
    assert len(found) == 10  # nine splits
    assert digest(again) == found


def test_a_picture_shows_its_drawing(request_):
    """Compositions differ in place and background; the drawing is most of what both have."""
    concept = next(c for c in concepts.read(request_.input).concepts if c.name == "thing number4")
    both = [pictures.picture(1, concept, "google", number, 32) for number in (0, 1)]
    assert both[0] != both[1]
    assert both[0] == pictures.picture(1, concept, "google", 0, 32)
    assert both[0] != pictures.picture(2, concept, "google", 0, 32)
    with Image.open(concept.drawings["google"]) as image:
        colour = np.array(image)[32, 32, :3] / 255
    for png in both:
        with Image.open(io.BytesIO(png)) as image:
            pixels = np.asarray(image) / 255
        assert pixels.shape == (32, 32, 3)
        near = (np.abs(pixels - colour).max(axis=-1) < 0.1).mean()
        assert near > 0.1


def test_licences_are_beside_the_records(made):
    text = (made[0] / "LICENCES.md").read_text()
    assert all(name in text for name in ("Apache 2.0", "CC-BY 4.0", "CC BY-SA 4.0"))


def test_nothing_asks_about_a_drawing_that_training_shows(tmp_path):
    """As the flags of France and St. Martin: two concepts, one drawing."""
    input_ = packages.write(tmp_path / "in", third=True)
    all_ = concepts.read(input_).concepts
    trained, *_ = [each for each in all_ if each.trained_styles == STYLES]
    other, *_ = [each for each in all_ if each.split == "test"]
    unseen, *_ = [each for each in all_ if each.unseen_style == "twitter"]
    other.drawings["google"].write_bytes(trained.drawings["google"].read_bytes())
    unseen.drawings["twitter"].write_bytes(trained.drawings["twitter"].read_bytes())
    output = epath.Path(tmp_path / "out")
    output.mkdir()
    counts = emoji_records.build(emoji_records.EmojiRequest(str(input_), size="smoke"), output)
    assert counts["left out: drawn_as_trained"] == 2
    described = json.loads((output / "emoji.json").read_text())
    assert described["drawn_as_trained"] == sorted([other.name, unseen.name])
    source = Source(output / "test_images", "test")
    asked = [json.loads(source[i].metadata)["id"].split("/")[:2] for i in range(len(source))]
    assert other.code not in {code for _, code in asked}
    assert {pool for pool, code in asked if code == unseen.code} == {"third_style"}


@pytest.fixture
def drawing(tmp_path):
    """The file of a drawing, and a function that reads it."""
    directory = packages.write(tmp_path / "in", packages.rows()[:8])
    concept = next(c for c in concepts.read(directory).concepts if c.name == "thing number3")
    return concept.drawings["google"], lambda: pictures.drawing(concept, "google")


def test_a_damaged_drawing_is_named(drawing):
    path, read = drawing
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(EmojiError, match=r"1f003\.png cannot be read as a picture .*install it"):
        read()


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (Image.new("RGB", (64, 64)), "JPEG", "is no PNG file"),
        (Image.new("L", (640, 16)), "PNG", "640 x 16 pixels, expected 64 x 64"),
        (Image.new("RGBA", (64, 64)), "PNG", "all of it is transparent"),
    ],
)
def test_other_pictures_are_refused(drawing, image, kind, message):
    """A JPEG file has no transparency, and what is not 64 x 64 would be squeezed."""
    path, read = drawing
    image.save(path, kind)
    with pytest.raises(EmojiError, match=rf"1f003\.png .*{message}"):
        read()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": ""}, "--input is missing"),
        ({"size": "large"}, "--size=large: expected one of full, smoke, gpu"),
        ({"image_size": 8}, "--image_size=8: expected 16 to 512"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_wrong_options_are_refused(request_, tmp_path, options, message):
    request = emoji_records.EmojiRequest(**{"input": request_.input, "size": "smoke"} | options)
    with pytest.raises(ValueError, match=message):
        emoji_records.build(request, epath.Path(tmp_path))


def test_too_few_concepts_are_refused(tmp_path):
    directory = packages.write(tmp_path / "in", packages.rows()[:20])
    with pytest.raises(EmojiError, match="concepts in the split"):
        emoji_records.build(
            emoji_records.EmojiRequest(str(directory), size="smoke"), epath.Path(tmp_path)
        )


def test_a_missing_rasteriser_is_named_before_anything_is_written(request_, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(EmojiError, match="need the package resvg-py: pip install"):
        emoji_records.build(request_, epath.Path(tmp_path))
    assert not list(tmp_path.iterdir())
