"""Pairs from the tars of img2dataset and from tables.

What becomes a record, and the reason of everything left out.
"""

import collections
import io
import json
import tarfile

import numpy as np
import PIL.Image
import pytest
from etils import epath

from data_pipelines import pairs
from data_pipelines.collect import Found
from data_pipelines.formats.tables import Part
from data_pipelines.on_beam import Execution
from data_pipelines.page import Reject
from data_pipelines.pairs import PairsRequest, caption, read_unit
from flamingo_jax.data.schema import ImageText
from flamingo_jax.data.sources import Source


def picture(kind="JPEG", size=(40, 30)) -> bytes:
    ramp = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3).astype(np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(ramp).save(buffer, format=kind)
    return buffer.getvalue()


def write_tar(path, samples):
    """Writes a tar as img2dataset does: {key}.jpg, {key}.txt, {key}.json for each sample."""
    with tarfile.open(path, "w") as tar:
        for key, files in samples:
            for suffix, content in files.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def fields(url="https://a.org/1.jpg", status="success", **others) -> bytes:
    named = {
        "url": url,
        "caption": "from json",
        "key": "000000000",
        "status": status,
        "error_message": None,
    }
    return json.dumps(named | {"width": 40, "height": 30, "exif": "{}"} | others).encode()


def reasons(items):
    return collections.Counter(
        item.reason if isinstance(item, Reject) else "found" for item in items
    )


def test_tar_of_img2dataset(tmp_path):
    file = tmp_path / "00000.tar"
    samples = [
        ("000000000", {"jpg": picture(), "txt": b" A dog\n on  grass. ", "json": fields()}),
        ("000000001", {"png": picture("PNG"), "json": fields(url="https://a.org/2.png")}),
        ("000000002", {"webp": picture("WEBP"), "txt": b"No JSON."}),
    ]
    write_tar(file, samples)
    first, second, third = read_unit(PairsRequest(), str(file))
    metadata = json.dumps({"source": "000000000", "url": "https://a.org/1.jpg"})
    assert first == Found(
        ImageText(picture(), "A dog on grass.", metadata), ("url:https://a.org/1.jpg",)
    )
    assert second.record.text == "from json"
    assert (third.record.text, third.keys) == ("No JSON.", ())


def test_each_bad_sample_has_its_reason(tmp_path):
    file = tmp_path / "00000.tar"
    bad = {
        "missing_image": {"txt": b"a", "json": fields()},
        "no_text": {"jpg": picture(), "txt": b" \n"},
        "broken_text": {"jpg": picture(), "txt": b"caf\xe9"},
        "text_too_long": {"jpg": picture(), "txt": b"x" * 2001},
        "not_downloaded": {
            "jpg": picture(),
            "txt": b"a",
            "json": fields(status="failed_to_download"),
        },
        "not_json": {"jpg": picture(), "txt": b"a", "json": b"{"},
        "not_an_object": {"jpg": picture(), "txt": b"a", "json": b"[]"},
        "not_an_image": {"jpg": b"<html>404</html>", "txt": b"a"},
        "empty_image": {"jpg": b"", "txt": b"a"},
        "truncated_image": {"jpg": picture()[: len(picture()) // 2], "txt": b"a"},
        "image_too_small": {"jpg": picture(size=(19, 80)), "txt": b"a"},
        "found": {"jpg": picture(), "txt": b"a"},
    }
    write_tar(file, bad.items())
    items = list(read_unit(PairsRequest(min_size=20), str(file)))
    assert reasons(items) == dict.fromkeys(bad, 1)
    wanted = {"no_text", "text_too_long", "not_downloaded", "image_too_small"}
    assert {item.reason for item in items if isinstance(item, Reject) and not item.broken} == wanted


def test_table_in_the_folder_of_its_images(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(picture())
    table = tmp_path / "cc3m.csv"
    lines = ["filepath\ttitle", "a/1.jpg\tA dog.", "a/2.jpg\tA cat.", "../../etc/passwd\tA rat."]
    table.write_text("\n".join(lines))
    items = list(read_unit(PairsRequest(format="table"), Part(str(table))))
    assert reasons(items) == {"found": 1, "missing_image": 1, "path_traversal": 1}
    assert items[0].record == ImageText(picture(), "A dog.", '{"source": "1.jpg"}')


def test_table_with_columns_and_folder_by_name(tmp_path):
    (tmp_path / "1.png").write_bytes(picture("PNG"))
    table = tmp_path / "tables" / "t.csv"
    table.parent.mkdir()
    table.write_text("file,words,url\n1.png,A dog.,https://a.org/1\n")
    request = PairsRequest(format="table", images=str(tmp_path), text_column="words")
    (found,) = read_unit(request, Part(str(table)))
    assert found.keys == ("url:https://a.org/1",)
    (missing,) = read_unit(PairsRequest(format="table", images=str(tmp_path)), Part(str(table)))
    assert missing.reason == "missing_column"
    assert "--text_column" in missing.detail


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" a\tdog \n", "a dog"),
        ("an <image> here<EOC>", "an image hereEOC"),
        (b"\xef\xbb\xbfa dog", "a dog"),
        ("x" * 10, "x" * 10),
    ],
)
def test_captions_are_cleaned(text, expected):
    assert caption(text, 10 if "x" in str(text) else 100) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no_text"),
        (b"\xff", "broken_text"),
        ("\ud800", "broken_text"),
        ("x" * 11, "text_too_long"),
    ],
)
def test_bad_captions_are_rejected(text, reason):
    assert caption(text, 10).reason == reason


def test_dataset_of_tars_and_of_tables(tmp_path):
    """Pictures with the same URL are one record, across all files."""
    for k in range(2):
        samples = [
            (f"{k}0", {"jpg": picture(), "txt": b"a", "json": fields(url=f"https://a.org/{k}")}),
            (f"{k}1", {"jpg": picture(), "txt": b"b", "json": fields(url="https://a.org/same")}),
        ]
        write_tar(tmp_path / f"0000{k}.tar", samples)
    output = epath.Path(tmp_path / "set")
    output.mkdir()
    counts = pairs.build(PairsRequest(input=str(tmp_path)), output, Execution(num_workers=1))
    assert counts == {"in": 4, "out: train": 3, "left out: duplicate_url": 1}
    assert [Source(output)[k].text for k in range(3)] == ["a", "b", "a"]

    (tmp_path / "1.jpg").write_bytes(picture())
    (tmp_path / "t.tsv").write_text("path\tcaption\n1.jpg\tone\n1.jpg\ttwo\n")
    output = epath.Path(tmp_path / "set2")
    output.mkdir()
    request = PairsRequest(input=str(tmp_path / "t.tsv"), format="table")
    assert pairs.build(request, output, Execution(num_workers=1)) == {"in": 2, "out: train": 2}


def test_requests_that_cannot_work_are_explained():
    with pytest.raises(ValueError, match="expected one of webdataset, table"):
        PairsRequest(format="csv")
    with pytest.raises(ValueError, match="without images. Download them first"):
        PairsRequest(input="part-00000.parquet")
