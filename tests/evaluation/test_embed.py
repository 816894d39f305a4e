"""`--task=embed`: the features of a dataset's images, in the form that deduplication reads."""

import json

import numpy as np
import PIL.Image
import pytest
from etils import epath

from data_pipelines.dedup import DedupRequest, build
from data_pipelines.on_beam import Execution
from data_pipelines.write_records import write_records
from flamingo_jax.data.embeddings import Embeddings
from flamingo_jax.data.images.read import encode_png
from flamingo_jax.data.schema import Document, ImageText, InterleavedPage, VideoText
from flamingo_jax.evaluation import embed
from flamingo_jax.evaluation.task import TaskError
from flamingo_jax.inference.vision_features import VisionEncoder
from tests.inference import tiny


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return VisionEncoder.of(tiny.load(tmp_path_factory.getbasetemp()))


def png(seed):
    return encode_png(tiny.image(seed))


def written(directory):
    ((keys, rows),) = Embeddings(directory).chunks(100)
    return dict(zip(keys, rows, strict=True))


RECORDS = {
    "interleaved_page": [InterleavedPage((png(0), "a", png(1))), InterleavedPage(("b", png(0)))],
    "image_text": [
        ImageText(png(0), "a"),
        ImageText(png(1)[:60], "cut off"),
        ImageText(png(2), "b"),
    ],
    "video_text": [VideoText((png(0), png(1)), "a", fps=1.0)],
}
KEYS = {
    "interleaved_page": {"0/0": 0, "0/1": 1, "1/0": 0},
    "image_text": {"0/0": 0, "2/0": 2},
    "video_text": {"0/0": 0, "0/1": 1},
}


@pytest.mark.parametrize("kind", RECORDS)
def test_images_of_records(encoder, tmp_path, kind):
    """Keys are RECORD/IMAGE HASH, and a row has the features of its image alone."""
    write_records(epath.Path(tmp_path) / "data", kind, {"train": lambda: RECORDS[kind]})
    message = embed.write(encoder, embed.Images({"embed": f"{tmp_path}/data"}), tmp_path / "out")
    found = written(tmp_path / "out")
    assert [key.split(" ")[0] for key in found] == list(KEYS[kind])
    assert len({key.split(" ")[1] for key in found}) == len(set(KEYS[kind].values()))
    alone = encoder([tiny.image(seed) for seed in KEYS[kind].values()])
    np.testing.assert_allclose(np.stack(list(found.values())), alone, rtol=1e-5, atol=1e-6)
    left_out = 1 if kind == "image_text" else 0
    assert message == (
        f"{len(found)} images of {tmp_path}/data are embedded, {left_out} could not be read"
    )


def test_images_of_a_folder(encoder, tmp_path):
    (tmp_path / "in" / "b").mkdir(parents=True)
    for name, seed in {"b/dog.png": 2, "a.PNG": 1}.items():
        PIL.Image.fromarray(tiny.image(seed)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "in" / "readme.txt").write_text("no image either")
    message = embed.write(encoder, embed.Images({"embed": str(tmp_path / "in")}), tmp_path / "out")
    found = written(tmp_path / "out")
    assert (
        list(found) == ["a.PNG", "b/dog.png"]
        and "2 images of" in message
        and "1 could not be read" in message
    )
    np.testing.assert_allclose(
        found["b/dog.png"], encoder([tiny.image(2)])[0], rtol=1e-5, atol=1e-6
    )


def test_deduplication_reads_them(encoder, tmp_path):
    """Deduplication finds the one training image that is an evaluation image, by its embedding."""
    place = epath.Path(tmp_path)
    write_records(
        place / "train",
        "image_text",
        {"train": lambda: [ImageText(png(seed), "x") for seed in range(4)]},
    )
    (tmp_path / "test").mkdir()
    PIL.Image.fromarray(tiny.image(2)).save(tmp_path / "test" / "cat.png")
    for name in ("train", "test"):
        embed.write(
            encoder, embed.Images({"embed": str(place / name)}), place / f"{name}_embeddings"
        )
    request = DedupRequest(
        input=str(place / "train"), method="embeddings", embeddings=str(place / "train_embeddings"),
        against=(str(place / "test_embeddings"),), min_cosine=0.99999,
    )  # fmt: skip
    (place / "clean").mkdir()
    counts = build(request, place / "clean", Execution(num_workers=1))
    assert (counts["training images"], counts["evaluation images"]) == (4, 1)
    (pair,) = json.loads((tmp_path / "clean" / "candidates.json").read_text())["pairs"]
    assert (pair["training"], pair["evaluation"].rpartition(":")[2]) == ("2/0", "cat.png")


def test_a_split_is_chosen(tmp_path):
    write_records(
        epath.Path(tmp_path) / "data",
        "image_text",
        {"validation": lambda: [ImageText(png(0), "a")]},
    )
    assert len(embed.Images({"embed": f"{tmp_path}/data", "embed_split": "validation"})) == 1
    with pytest.raises(
        TaskError, match=r"Cannot read split 'train' .* chosen with --config.data.embed_split=NAME"
    ):
        embed.Images({"embed": f"{tmp_path}/data"})


def test_what_cannot_be_embedded_is_said(encoder, tmp_path):
    with pytest.raises(TaskError, match=r"'embed' needs the directory of 'embed', got none"):
        embed.Images({})
    with pytest.raises(TaskError, match="there is no dataset .* and no image file ending in .jpg"):
        embed.Images({"embed": str(tmp_path)})
    write_records(epath.Path(tmp_path) / "text", "document", {"train": lambda: [Document("a")]})
    with pytest.raises(TaskError, match="none of its 0 images can be read"):
        embed.write(encoder, embed.Images({"embed": f"{tmp_path}/text"}), tmp_path / "out")
    with pytest.raises(TaskError, match="embed is a run of its own"):
        embed.is_asked_for(["embed", "coco"])
    assert embed.is_asked_for(["embed"]) and not embed.is_asked_for(["coco", "okvqa"])
