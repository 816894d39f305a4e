"""MMC4 in both published forms: each image comes before its sentence, in any order of images."""

import base64
import collections
import hashlib
import io
import json
import tarfile

import numpy as np
import PIL.Image
import pytest
from etils import epath

from data_pipelines import mmc4
from data_pipelines.collect import Found
from data_pipelines.formats import jsonl
from data_pipelines.mmc4 import MMC4Request, interleaved, read_document, read_unit
from data_pipelines.on_beam import Execution
from data_pipelines.page import Reject
from flamingo_jax.data.sources import Source


def picture(value: int, size=(80, 70)) -> bytes:
    image = np.full((size[1], size[0], 3), value, np.uint8)
    image[: size[1] // 2] = 255 - value
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


IMAGES = [picture(10), picture(60), picture(100)]


def document(matches, sims=None, num_sentences=4, images=IMAGES, matrix=None, **others):
    """Returns a line of MMC4 in which image k belongs to sentence matches[k]."""
    sims = sims or [0.3] * len(matches)
    infos = [
        {
            "image_name": f"{k}.png",
            "raw_url": f"https://img.org/{k}.png",
            "matched_text_index": match,
            "matched_sim": sim,
            "face_detections": None,
            "image_base64": base64.b64encode(images[k]).decode(),
        }
        for k, (match, sim) in enumerate(zip(matches, sims, strict=True))
    ]
    return {
        "text_list": [f"Sentence {k}." for k in range(num_sentences)],
        "url": "https://a.org/page",
        "image_info": infos,
        "similarity_matrix": matrix or [[0.1] * num_sentences for _ in matches],
        "could_have_url_duplicate": 0,
    } | others


def page_of(items):
    (found,) = [item for item in items if isinstance(item, Found)]
    return found.record.parts


def reasons(items):
    return collections.Counter(
        item.reason if isinstance(item, Reject) else "found" for item in items
    )


def test_images_are_in_the_order_of_their_sentences():
    """The example of MMC4's README: image 0 belongs to sentence 2 and image 1 to sentence 1.

    So the first image of the page is image 1.
    """
    page = page_of(read_document(document([2, 1]), MMC4Request()))
    assert page == ("Sentence 0.", IMAGES[1], "Sentence 1.", IMAGES[0], "Sentence 2. Sentence 3.")


def test_images_of_one_sentence_keep_their_order():
    page = page_of(read_document(document([1, 0, 1]), MMC4Request()))
    assert page == (
        IMAGES[1],
        "Sentence 0.",
        IMAGES[0],
        IMAGES[2],
        "Sentence 1. Sentence 2. Sentence 3.",
    )


def test_sentences_are_cleaned():
    parts = interleaved([" a\n<image> b ", "", " \t", "c<EOC>"], [(1, b"x"), (3, b"y")])
    assert parts == ("a image b", b"x", b"y", "cEOC")


def test_dissimilar_images_are_left_out():
    items = list(read_document(document([0, 1, 2], [0.2, 0.24, 0.3]), MMC4Request()))
    assert page_of(items) == (
        "Sentence 0.",
        IMAGES[1],
        "Sentence 1.",
        IMAGES[2],
        "Sentence 2. Sentence 3.",
    )
    assert reasons(items) == {"low_similarity": 1, "found": 1}
    assert next(item.unit for item in items if isinstance(item, Reject)) == "image"
    items = read_document(document([0], [0.2]), MMC4Request(min_similarity=0.0))
    assert reasons(items) == {"found": 1}


def test_similarity_can_be_in_the_matrix_only():
    line = document([1, 2], matrix=[[0.0, 0.3, 0.0, 0.0], [0.0, 0.0, 0.1, 0.0]])
    for info in line["image_info"]:
        del info["matched_sim"]
    assert page_of(read_document(line, MMC4Request())) == (
        "Sentence 0.",
        IMAGES[0],
        "Sentence 1. Sentence 2. Sentence 3.",
    )


def test_optimal_assignment_is_that_of_the_images_left():
    """Image 0, which had sentence 1, is lost, so image 1 gets this sentence.

    Two images of three sentences take the largest sum, not the largest similarity of each.
    """
    matrix = [[0.2, 0.9, 0.1], [0.3, 0.8, 0.2], [0.25, 0.7, 0.6]]
    images = [b"lost", *IMAGES[1:]]
    line = document([1, 0, 2], num_sentences=3, images=images, matrix=matrix)
    request = MMC4Request(assignment="optimal")
    assert page_of(read_document(line, request)) == (
        "Sentence 0.",
        IMAGES[1],
        "Sentence 1.",
        IMAGES[2],
        "Sentence 2.",
    )
    matched = page_of(read_document(line, MMC4Request()))
    assert matched == (IMAGES[1], "Sentence 0. Sentence 1.", IMAGES[2], "Sentence 2.")


def test_more_images_than_sentences():
    line = document([0, 0, 0], num_sentences=2, matrix=[[0.5, 0.5], [0.9, 0.1], [0.3, 0.8]])
    items = list(read_document(line, MMC4Request(assignment="optimal")))
    assert page_of(items) == (IMAGES[1], "Sentence 0.", IMAGES[2], "Sentence 1.")
    assert reasons(items) == {"no_sentence": 1, "found": 1}


def test_images_in_a_folder_by_name_or_url(tmp_path):
    line = document([0, 1, 2])
    for info in line["image_info"]:
        del info["image_base64"]
    (tmp_path / "0.png").write_bytes(IMAGES[0])
    (tmp_path / hashlib.sha256(b"https://img.org/1.png").hexdigest()).write_bytes(IMAGES[1])
    items = list(read_document(line, MMC4Request(images=str(tmp_path))))
    assert page_of(items)[:3] == (IMAGES[0], "Sentence 0.", IMAGES[1])
    assert reasons(items) == {"missing_image": 1, "found": 1}
    assert reasons(read_document(line, MMC4Request())) == {"missing_image": 3, "no_image_left": 1}
    line["image_info"][0]["image_name"] = "../0.png"
    assert reasons(read_document(line, MMC4Request(images=str(tmp_path))))["path_traversal"] == 1


def test_images_that_web_pages_lose_are_lost_here():
    images = [picture(10, (63, 80)), picture(127, (80, 80)), b"<html>"]
    items = list(read_document(document([0, 1, 2], images=images), MMC4Request()))
    expected = {"image_too_small": 1, "single_colour": 1, "not_an_image": 1, "no_image_left": 1}
    assert reasons(items) == expected
    assert [item.unit for item in items] == ["image"] * 3 + ["record"]


@pytest.mark.parametrize(
    "change",
    [
        {"text_list": None},
        {"text_list": [1, 2]},
        {"image_info": {}},
        {"image_info": ["a"]},
        {"image_info": document([9])["image_info"]},
        {"image_info": document(["1"])["image_info"]},
    ],
)
def test_lines_of_another_kind_are_damage(change):
    (*_, last) = read_document(document([0, 1]) | change, MMC4Request())
    assert (last.reason, last.broken, last.unit) == ("not_mmc4", True, "record")


@pytest.mark.parametrize(
    "matrix", [[], [[0.1]], [[0.1] * 4, [0.1]], [["a"] * 4, [0.1] * 4], "ab", None]
)
def test_matrix_that_does_not_fit_is_damage(matrix):
    line = document([0, 1]) | {"similarity_matrix": matrix}
    (last,) = read_document(line, MMC4Request(assignment="optimal"))
    assert (last.reason, last.broken) == ("not_mmc4", True)


def test_half_characters_are_damage():
    line = json.dumps(document([0]) | {"text_list": ["\ud800"]})
    (last,) = read_document(json.loads(line), MMC4Request())
    assert (last.reason, last.broken) == ("broken_text", True)


def test_pages_without_text():
    items = read_document(document([0]) | {"text_list": [" "]}, MMC4Request())
    assert reasons(items) == {"no_text": 1}


def test_json_lines(tmp_path):
    file = tmp_path / "docs_shard_0.jsonl"
    file.write_text(
        json.dumps(document([1])) + "\n"
        "{broken\n" + json.dumps(document([0], url="https://a.org/b")) + "\n"
    )
    items = list(read_unit(MMC4Request(), jsonl.Lines(str(file))))
    assert reasons(items) == {"found": 2, "not_json": 1}
    assert [key.partition(":")[0] for key in items[0].keys] == ["url", "text"]
    assert json.loads(items[0].record.metadata) == {"url": "https://a.org/page"}


def test_tars_of_the_converter(tmp_path):
    """The tars of OpenFlamingo's converter have one .json for each document."""
    with tarfile.open(tmp_path / "000000000.tar", "w") as tar:
        for name, content in {
            "0.json": json.dumps(document([2, 1])).encode(),
            "1.json": b"{",
            "2.txt": b"?",
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    items = list(read_unit(MMC4Request(), str(tmp_path / "000000000.tar")))
    assert page_of(items)[1] == IMAGES[1]
    assert reasons(items) == {"found": 1, "not_json": 1, ".txt": 1}


def test_dataset(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps(document([2, 1])) + "\n" + json.dumps(document([0], num_sentences=2)) + "\n"
    )
    output = epath.Path(tmp_path / "set")
    output.mkdir()
    counts = mmc4.build(MMC4Request(input=str(tmp_path)), output, Execution(num_workers=1))
    assert counts == {"in": 2, "out: train": 1, "left out: duplicate_url": 1}
    assert Source(output)[0].parts[:2] == ("Sentence 0.", IMAGES[1])


def test_unknown_assignment_is_explained():
    with pytest.raises(ValueError, match="expected one of matched, optimal"):
        MMC4Request(assignment="best")
