"""The reasons of all kinds of bad input, for every reader that can get them.

Each reader gets all kinds at once, with one good record. The report must be exactly the table's,
and the run must continue.
"""

import collections
import io
import json
import struct
import tarfile
import zlib

import numpy as np
import PIL.Image
import pytest
from etils import epath

pytest.importorskip("warcio")
pytest.importorskip("selectolax")
pytest.importorskip("pyarrow")
pytest.importorskip("zstandard")

from data_pipelines import documents, m3w, pairs, videos
from data_pipelines.on_beam import Execution
from data_pipelines.write_records import write_records
from flamingo_jax.data.config import DataConfig, DatasetConfig
from flamingo_jax.data.images.read import encode_png
from flamingo_jax.data.mixture import Mixture
from flamingo_jax.data.rejected import BrokenDataset, describe_reasons
from flamingo_jax.data.schema import ImageText, InterleavedPage, VideoText
from flamingo_jax.data.sources import Source
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer, train_sentencepiece
from tests.data_pipelines import crawl
from tests.data_pipelines.media import grey_frames, mp4

ALL = Execution(num_workers=1, max_broken=1.0)


def bomb() -> bytes:
    """Returns a PNG of a few bytes that claims to have 2.5 billion pixels."""
    header = struct.pack(">II", 50_000, 50_000) + bytes([8, 2, 0, 0, 0])
    data = zlib.compress(bytes(1000))

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def deep() -> bytes:
    """Returns a PNG of 16 bits."""
    ramp = np.linspace(0, 65535, 96 * 80).reshape(80, 96).astype(np.uint16)
    return crawl.encoded(PIL.Image.fromarray(ramp), "PNG")


def animated(kind: str) -> bytes:
    more = [crawl.picture(6), crawl.picture(7)]
    return crawl.encoded(crawl.picture(5), kind, save_all=True, append_images=more, duration=50)


# name -> (file, its reason; None = a good image)
IMAGES = {
    "truncated.jpg": (crawl.jpeg(1)[: len(crawl.jpeg(1)) // 2], "truncated_image"),
    "truncated.png": (crawl.png(1)[: len(crawl.png(1)) // 2], "truncated_image"),
    "truncated.webp": (crawl.webp(1)[: len(crawl.webp(1)) // 2], "truncated_image"),
    "zero_byte.jpg": (b"", "empty_image"),
    "bomb.png": (bomb(), "image_too_large"),
    "page.jpg": (b"<html>404</html>", "not_an_image"),
    "cmyk.jpg": (crawl.encoded(crawl.picture(2).convert("CMYK"), "JPEG"), None),
    "16_bit.png": (deep(), None),
    "animated.gif": (animated("GIF"), None),
    "animated.webp": (animated("WEBP"), None),
    "wrongly_named.jpg": (crawl.png(3), None),
    "wrongly_named.png": (crawl.jpeg(4), None),
}
REASONS = collections.Counter(reason for _, reason in IMAGES.values() if reason)
SOUND = [data for data, reason in IMAGES.values() if reason is None]


def made(pipeline, request, tmp_path, how=ALL):
    """Returns what a pipeline makes of a request: (report, dataset)."""
    output = epath.Path(tmp_path / "dataset")
    output.mkdir()
    pipeline.build(request, output, how)
    return json.loads((output / "report.json").read_text()), Source(output)


def test_images_of_web_pages(tmp_path):
    pages, images = [], []
    for number, (name, (data, _)) in enumerate(IMAGES.items()):
        body = [
            f"<p>{crawl.prose(number)}</p>",
            f'<img src="/{name}"><img src="/sound-{number}.jpg">',
        ]
        page = crawl.article(f"Page {number}", body)
        pages.append((f"https://a.example/{number}.html", "text/html", page))
        images += [
            (f"https://a.example/{name}", "image/jpeg", data),
            (f"https://a.example/sound-{number}.jpg", "image/jpeg", crawl.jpeg(100 + number)),
        ]
    crawl.make_warc(tmp_path / "crawl.warc.gz", [*pages, *images])
    report, source = made(m3w, m3w.M3WRequest(input=str(tmp_path / "crawl.warc.gz")), tmp_path)
    assert report["images_rejected"] == REASONS
    assert report["rejected"] == {}
    assert (report["in"], report["out"]) == (len(IMAGES), {"train": len(IMAGES)})
    assert sum(len(source[k].images) for k in range(len(source))) == len(IMAGES) + len(SOUND)


def test_html(tmp_path):
    sound = crawl.article("A page", [f"<p>{crawl.prose(1)}</p>", '<img src="/a.jpg">'])
    responses = [
        ("https://a.example/sound.html", "text/html", sound),
        ("https://a.example/a.jpg", "image/jpeg", crawl.jpeg(1)),
        ("https://a.example/deep.html", "text/html", "<div>" * 100_000 + sound),
        ("https://a.example/large.html", "text/html", "<p>" + "word " * 150_000),
        ("https://a.example/broken.html", "text/html; charset=utf-8", bytes(range(128, 256)) * 40),
        ("https://a.example/empty.html", "text/html", b""),
    ]
    crawl.make_warc(tmp_path / "crawl.warc.gz", responses)
    whole = (tmp_path / "crawl.warc.gz").read_bytes()
    (tmp_path / "crawl.warc.gz").write_bytes(whole + whole[: len(whole) // 300])
    request = m3w.M3WRequest(input=str(tmp_path / "crawl.warc.gz"), max_html_bytes=600_000)
    report, source = made(m3w, request, tmp_path)
    assert report["rejected"] == {
        "html_too_deep": 1,
        "html_too_large": 1,
        "broken_text": 1,
        "no_text": 1,
        "truncated_file": 1,
    }
    assert len(source) == 1


def tar(members) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_pairs(tmp_path):
    members = []
    for number, (name, (data, _)) in enumerate(IMAGES.items()):
        # The name that img2dataset gives to an image that it does not encode again.
        suffix = name.partition(".")[2].replace("gif", "jpg")
        members += [(f"{number}.{suffix}", data), (f"{number}.txt", b"A caption.")]
    members += [("../../outside.jpg", crawl.jpeg()), ("../../outside.txt", b"A caption.")]
    members += [("broken.jpg", crawl.jpeg(8)), ("broken.txt", b"\xff\xfe\xff")]
    content = tar([*members, ("last.jpg", crawl.jpeg(9)), ("last.txt", b"x" * 2000)])
    (tmp_path / "00000.tar").write_bytes(content[: content.rindex(b"xx")])
    report, source = made(pairs, pairs.PairsRequest(input=str(tmp_path / "00000.tar")), tmp_path)
    assert report["rejected"] == {
        **REASONS,
        "path_traversal": 1,
        "broken_text": 1,
        "truncated_file": 1,
    }
    assert len(source) == len(SOUND)
    assert not list(tmp_path.parent.glob("outside*"))


def test_videos(tmp_path):
    film = mp4(grey_frames(40), faststart=True)
    files = {
        "sound.mp4": film,
        "cut.mp4": film[: len(film) // 2],
        "empty.mp4": b"",
        "page.mp4": b"<html>404</html>",
    }
    (tmp_path / "000001_000050").mkdir()
    for name, content in files.items():
        (tmp_path / "000001_000050" / name).write_bytes(content)
    lines = [
        "videoid,contentUrl,duration,page_dir,name",
        *(
            f"{name.partition('.')[0]},https://a.example/{name},PT4S,000001_000050,A film"
            for name in [*files, "missing.mp4"]
        ),
    ]
    (tmp_path / "videos.csv").write_text("\n".join(lines))
    request = videos.VideosRequest(
        input=str(tmp_path / "videos.csv"), format="webvid", videos=str(tmp_path)
    )
    report, source = made(videos, request, tmp_path)
    assert report["rejected"] == {"broken_video": 3, "missing_video": 1}
    assert len(source) == 1


def test_documents(tmp_path):
    rows = [
        json.dumps({"text": crawl.prose(1)}).encode(),
        b'{"text": "\xff"}',
        b"{",
        b"[]",
        b'{"words": 1}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    request = documents.TextRequest(input=str(tmp_path / "a.jsonl"))
    report, source = made(documents, request, tmp_path)
    assert report["rejected"] == {
        "broken_text": 1,
        "not_json": 1,
        "not_an_object": 1,
        "no_text_field": 1,
    }
    assert len(source) == 1


def test_too_much_bad_input_stops_a_pipeline(tmp_path):
    members = [
        ("0.jpg", crawl.jpeg(1)),
        ("0.txt", b"A caption."),
        ("1.jpg", b"404"),
        ("1.txt", b"A caption."),
    ]
    (tmp_path / "00000.tar").write_bytes(tar(members))
    request = pairs.PairsRequest(input=str(tmp_path / "00000.tar"))
    with pytest.raises(ValueError, match="1 of 2 records are damaged"):
        made(pairs, request, tmp_path, Execution(num_workers=1, max_broken=0.4))
    epath.Path(tmp_path / "dataset").rmtree()
    report, _ = made(pairs, request, tmp_path, Execution(num_workers=1, max_broken=0.5))
    assert report["damaged"] == 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    file = tmp_path_factory.mktemp("words") / "tokenizer.model"
    train_sentencepiece(["a caption of many words"] * 3, file, 100, "word")
    return SentencePieceTokenizer.load(file, ("<EOC>", "<image>"))


def loaded(directory, kind, tokenizer, *, max_corrupt=1.0):
    """Reads one epoch of a dataset, and returns the rejected records of the mixture."""
    dataset = DatasetConfig(kind, str(directory), 1, 16, num_frames=2)
    config = DataConfig("", 32, {"data": dataset}, max_corrupt=max_corrupt)
    mixture = Mixture(config, seed=0, tokenizer=tokenizer)
    for t in range(mixture.sizes["data"]):
        mixture.batch("data", t)
    return mixture.rejected.get("data", {})


def test_stored_records(tmp_path, tokenizer):
    """Records that were damaged after they were written."""

    def records():
        return [ImageText(data, "a caption", "") for data, _ in IMAGES.values()]

    write_records(tmp_path / "pairs", "image_text", {"train": records})
    found = loaded(tmp_path / "pairs", "pairs", tokenizer)
    assert found == REASONS
    assert describe_reasons(found).startswith("truncated_image 3, ")
    good = InterleavedPage(("a caption", crawl.jpeg(1)))
    more_tags = InterleavedPage(("a caption <image>", crawl.jpeg(2)))
    write_records(tmp_path / "pages", "interleaved_page", {"train": lambda: [good, more_tags]})
    assert loaded(tmp_path / "pages", "interleaved", tokenizer) == {"corrupt_record": 1}
    film, frame = mp4(grey_frames(40), faststart=True), crawl.jpeg(1)
    clips = [
        VideoText((), "a caption", 1.0, film),
        VideoText((), "a caption", 1.0, film[: len(film) // 20]),
        VideoText((), "a caption", 1.0),
        VideoText((frame[:300],), "a caption", 1.0),
        *(VideoText((frame, frame), "a caption", fps) for fps in (0.0, -1.0, np.nan, np.inf)),
        VideoText((frame,), "a still image", 0.0),
    ]
    write_records(tmp_path / "videos", "video_text", {"train": lambda: clips})
    assert loaded(tmp_path / "videos", "pairs", tokenizer) == {
        "broken_video": 5,
        "missing_video": 1,
        "truncated_image": 1,
    }


def test_damaged_files_of_a_dataset(tmp_path, tokenizer):
    # The records are large, so that the damage is in one of them.
    noise = np.random.default_rng(0).integers(0, 256, (8, 200, 200, 3), np.uint8)
    records = [ImageText(encode_png(pixels), "a caption") for pixels in noise]
    write_records(tmp_path / "pairs", "image_text", {"train": lambda: records})
    (file,) = (tmp_path / "pairs").glob("*.array_record*")
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20] = bytes(20)
    file.write_bytes(content)
    assert loaded(tmp_path / "pairs", "pairs", tokenizer) == {"corrupt_record": 1}
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="corrupt"):
        loaded(tmp_path / "pairs", "pairs", tokenizer)


def test_too_many_corrupt_records_stop_training(tmp_path, tokenizer):
    bad = [ImageText(b"404", "a caption")] * 60
    good = [ImageText(crawl.jpeg(1), "a caption")] * 60
    mixed = [record for pair in zip(good, bad, strict=True) for record in pair]
    write_records(tmp_path / "pairs", "image_text", {"train": lambda: mixed})
    with pytest.raises(BrokenDataset, match="not_an_image"):
        loaded(tmp_path / "pairs", "pairs", tokenizer, max_corrupt=0.05)
    assert loaded(tmp_path / "pairs", "pairs", tokenizer, max_corrupt=0.9) == {"not_an_image": 60}
