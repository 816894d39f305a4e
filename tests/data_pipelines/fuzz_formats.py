"""The formats that the fuzz test damages: undamaged files and a reader of each."""

import base64
import csv
import dataclasses
import functools
import gzip
import io
import itertools
import json
import pathlib
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator

import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
import tokenizers
import zstandard
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_pipelines import documents, m3w, mmc4, obelics, pairs, videos
from data_pipelines.collect import Found
from data_pipelines.formats import jsonl, tables, tars, tfrecord
from data_pipelines.page import Page, Reject
from data_pipelines.web.html_to_pages import html_to_page
from flamingo_jax.data.images import read as images
from flamingo_jax.data.images import video
from flamingo_jax.data.schema import (
    CorruptRecord,
    Document,
    ImageText,
    InterleavedPage,
    VideoText,
    features,
    to_example,
)
from flamingo_jax.data.shards import Shard, shard_name, write_metadata, writing
from flamingo_jax.data.sources import Source
from flamingo_jax.tokenizers.base import Tokenizer
from flamingo_jax.tokenizers.huggingface import HuggingFaceTokenizer
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer, train_sentencepiece
from tests.data_pipelines import crawl
from tests.data_pipelines.fuzz import Format
from tests.data_pipelines.media import grey_frames, mp4

NEW_TOKENS = ("<EOC>", "<image>")
MOST_ITEMS = 10_000  # of one input
TFDS_KEEPS = 20 << 10  # bytes that TFDS keeps of each opened dataset: 15 KB measured with 4.9.10
_gzip = functools.partial(gzip.compress, compresslevel=1, mtime=0)


def picture(
    file_format: str, size: tuple[int, int] = (96, 80), mode: str = "RGB", **options
) -> bytes:
    rng = np.random.default_rng(7)
    small = PIL.Image.fromarray(rng.integers(0, 255, (5, 6, 3)).astype(np.uint8))
    buffer = io.BytesIO()
    large = small.resize(size, PIL.Image.Resampling.BICUBIC).convert(mode)
    large.save(buffer, file_format, **options)
    return buffer.getvalue()


def _animation(file_format: str) -> bytes:
    frames = [PIL.Image.new("RGB", (40, 30), (k * 60, 0, 0)) for k in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, file_format, save_all=True, append_images=frames[1:], duration=100)
    return buffer.getvalue()


def _jpegs() -> list[bytes]:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return [
        picture("JPEG", quality=90),
        picture("JPEG", progressive=True, size=(200, 64)),
        picture("JPEG", mode="CMYK"),
        picture("JPEG", mode="L", exif=exif),
    ]


def _pngs() -> list[bytes]:
    deep = io.BytesIO()
    PIL.Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16).save(deep, "PNG")
    return [
        picture("PNG"),
        picture("PNG", mode="P"),
        picture("PNG", mode="RGBA"),
        deep.getvalue(),
        _animation("PNG"),
    ]


def _image(file: pathlib.Path) -> Iterator[str]:
    data = file.read_bytes()
    try:
        found = images.probe(data)
        assert found.width > 0
        assert found.height > 0
        assert images.decode(data, 48).shape == (48, 48, 3)
    except CorruptRecord as error:
        yield error.reason
        return
    yield "record"


def _clip(file: pathlib.Path) -> Iterator[str]:
    try:
        rng = np.random.default_rng(0)
        clip = video.decode_clip(file.read_bytes(), 32, num_frames=4, rate=3.0, rng=rng)
        assert clip.shape[1:] == (32, 32, 3)
        assert 1 <= len(clip) <= 4
    except CorruptRecord as error:
        yield error.reason
        return
    yield "record"


def _tars() -> list[bytes]:
    directory = "far/" * 40  # so long a name is stored in a separate header

    def tar(form: int) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
            for k in range(3):
                meta = json.dumps({"url": f"https://a.example/{k}.jpg", "status": "success"})
                caption = b"A caption \xc3\xa9"
                members = {"jpg": picture("JPEG"), "txt": caption, "json": meta.encode()}
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{directory * (k == 1)}{k}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    return [tar(form) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)]


def _read(kind: str, items: Iterable[Found | Reject]) -> Iterator[str]:
    """Yields "record" for each record of a reader, after writing it, and each Reject's reason."""
    seen = 0
    for item in items:
        seen += 1
        assert seen <= MOST_ITEMS, "a small file gives too many items"
        if isinstance(item, Reject):
            assert item.unit == "file" or re.fullmatch("[a-z0-9_]+", item.reason), item.reason
            yield item.reason
            continue
        assert item.record.kind == kind
        assert all(name and value for name, _, value in (key.partition(":") for key in item.keys))
        stored = _features(kind)
        stored.serialize_example(stored.encode_example(to_example(item.record)))
        json.loads(item.record.metadata)
        yield "record"


_features = functools.cache(features)


def _samples(file: pathlib.Path) -> Iterator[str]:
    for item in itertools.islice(tars.samples(str(file)), MOST_ITEMS):
        yield "record" if isinstance(item, tars.TarSample) else item.reason


def _html() -> list[bytes]:
    table = (
        "<table><tr><td>cell<td>cell</table><pre> as\n it is </pre><ul><li>one<li>two</ul>"
        "<form><input></form>"
    )
    inline = base64.b64encode(picture("PNG")).decode()
    figures = (
        '<figure><img src="a.jpg" srcset="a-2x.jpg 2x" alt="an '
        'image"><figcaption>Below</figcaption></figure><picture><source srcset="b.webp 640w"><img '
        'data-src="b.jpg" width="640" height="480"></picture><img '
        f'src="data:image/png;base64,{inline}"><noscript><img src="c.png"></noscript>'
    )
    body = [f"<p>{crawl.prose(1)}</p>", figures, table]
    page = crawl.article("A page", body, head='<base href="/x/">')
    german = f"<div hidden>no</div><p>é&eacute;&#x1F600;&nbsp;{crawl.prose(2)}</p>"
    japanese = '<meta charset="shift_jis"><title>日本</title><p>日本語の文章。<img src="d.gif">'
    return [
        page.encode(),
        crawl.article("Straße", [german]).encode("latin-1", "ignore"),
        japanese.encode("shift_jis"),
        '<html lang="ja"><p>text'.encode("utf-16"),
    ]


def _html_page(file: pathlib.Path) -> Iterator[str]:
    found = html_to_page(file.read_bytes(), "https://a.example/b/c.html")
    assert isinstance(found, Page | Reject)
    if isinstance(found, Page):
        parts = [part if isinstance(part, str) else part.source for part in found.parts]
        json.dumps(parts).encode()
        found.text.encode()
    yield found.reason if isinstance(found, Reject) else "record"


def _warcs() -> list[bytes]:
    url = "https://a.example/"
    page = crawl.article("A page", [f'<p>{crawl.prose(1)}</p><img src="1.jpg"><img src="2.png">'])
    responses = [
        (f"{url}page.html", "text/html", page),
        (f"{url}1.jpg", "image/jpeg", crawl.jpeg(1)),
        (f"{url}2.png", "image/png", crawl.png(2)),
    ]
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "one.warc"
        crawl.make_warc(path, responses, gzip=False)
        sound = path.read_bytes()
        crawl.make_warc(path, responses[::-1], gzip=False)
        return [sound, path.read_bytes()]


def _zip(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("documents.jsonl", data)
    return buffer.getvalue()


def _gzip_records(data: bytes) -> bytes:
    """Packs each WARC record as a separate gzip member."""
    return b"".join(_gzip(b"WARC/1." + part) for part in data.split(b"WARC/1.")[1:]) or _gzip(data)


_ANY_PAGE = m3w.M3WRequest(
    languages=(), quality_filter=False, repetition_filter=False, near_duplicates=True
)


def _web_pages(file: pathlib.Path) -> Iterator[str]:
    return _read("interleaved_page", m3w.read_file(_ANY_PAGE, str(file)))


def _judged_pages(file: pathlib.Path) -> Iterator[str]:
    return _read("interleaved_page", m3w.read_file(m3w.M3WRequest(), str(file)))


def _lines(rows: list[dict]) -> bytes:
    dumped = (json.dumps(row, ensure_ascii=number % 2 == 0) for number, row in enumerate(rows))
    return b"\n".join(line.encode() for line in dumped)


def _documents() -> list[dict]:
    return [
        {
            "text": f"Ünïcode 猫\n{crawl.prose(k)}",
            "url": f"https://a.example/{k}",
            "timestamp": "2020-01-01",
        }
        for k in range(4)
    ]


def _parquet(rows: list[dict], **options) -> bytes:
    buffer = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, buffer, row_group_size=2, **options)
    return buffer.getvalue()


def _text(file: pathlib.Path) -> Iterator[str]:
    for request in (documents.TextRequest(input=str(file), near_duplicates=True), _ANY_TEXT):
        for part in documents.parts(dataclasses.replace(request, input=str(file))):
            yield from _read("document", documents.read(request, part))


_ANY_TEXT = documents.TextRequest(quality_filter=False, repetition_filter=False)


def _mmc4() -> list[dict]:
    image = base64.b64encode(crawl.jpeg(3)).decode()
    infos = [
        {
            "image_name": f"{k}.jpg",
            "raw_url": f"https://a.example/{k}.jpg",
            "matched_text_index": 1 - k,
            "matched_sim": 0.3,
            "image_base64": image,
        }
        for k in range(2)
    ]
    document = {
        "text_list": ["First.", "Second."],
        "url": "https://a.example/",
        "image_info": infos,
    }
    return [document | {"similarity_matrix": [[0.3, 0.4], [0.5, 0.3]]}] * 2


def _mmc4_pages(file: pathlib.Path) -> Iterator[str]:
    for assignment in ("matched", "optimal"):
        request = mmc4.MMC4Request(assignment=assignment)
        (lines,) = jsonl.parts(str(file))
        yield from _read("interleaved_page", mmc4.read_unit(request, lines))


def _obelics() -> list[bytes]:
    rows = [
        {
            "images": [None, crawl.jpeg(k), None],
            "texts": [crawl.prose(k), None, "The end."],
            "metadata": "[null, {}, null]",
            "general_metadata": json.dumps({"url": f"https://a.example/{k}"}),
        }
        for k in range(4)
    ]
    return [_parquet(rows), _parquet(rows, compression="none", use_dictionary=False)]


def _obelics_pages(file: pathlib.Path) -> Iterator[str]:
    return _read("interleaved_page", obelics.read_file(obelics.ObelicsRequest(), str(file)))


def _pairs(file: pathlib.Path) -> Iterator[str]:
    return _read("image_text", pairs.read_unit(pairs.PairsRequest(), str(file)))


def _tables() -> list[bytes]:
    rows = [
        ("filepath", "title"),
        ("current.jpg", "A caption, with a comma"),
        ("current.jpg", 'and "quotes"\nin lines'),
    ]
    written = []
    for delimiter in ",;":
        buffer = io.StringIO()
        csv.writer(buffer, delimiter=delimiter).writerows(rows)
        written.append(buffer.getvalue().encode())
    return [*written, b'filepath\ttitle\ncurrent.jpg\tA "quote\ncurrent.jpg\tAnother\n']


def _table_rows(file: pathlib.Path) -> Iterator[str]:
    image = file.parent / "current.jpg"
    if not image.exists():
        image.write_bytes(crawl.jpeg(1))
    request = pairs.PairsRequest(format="table")
    for part in tables.parts(str(file), 60):
        yield from _read("image_text", pairs.read_unit(request, part))


def _video_lines() -> list[bytes]:
    span = ["00:00:00.000", "00:00:01.000"]
    clips = [{"clip_id": "current.mp4", "span": span, "caption": "A clip"}]
    return [_lines([{"video_id": "current", "url": "https://a.example/v", "clip": clips}] * 2)]


def _video_clips(file: pathlib.Path) -> Iterator[str]:
    clip = file.parent / "current.mp4"
    if not clip.exists():
        clip.write_bytes(mp4(grey_frames(12)))
    (lines,) = jsonl.parts(str(file))
    return _read("video_text", videos.read_unit(videos.VideosRequest(format="hdvila"), lines))


def _videos(file: pathlib.Path) -> Iterator[str]:
    file.with_suffix(".txt").write_text("A caption")
    for store in ("frames", "file"):
        request = videos.VideosRequest(store=store, frame_size=48)
        yield from _read("video_text", videos.read_unit(request, (str(file),)))


@functools.cache
def _tokenizers() -> tuple[Tokenizer, ...]:
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / "tokenizer.model"
        train_sentencepiece([crawl.prose(k) for k in range(20)], file, 400)
        pieces = SentencePieceTokenizer.load(file, NEW_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["</s>"],
        show_progress=False,
    )
    byte_level = tokenizers.Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.train_from_iterator([crawl.prose(k) for k in range(20)], trainer)
    return pieces, HuggingFaceTokenizer(byte_level.to_str().encode(), NEW_TOKENS, eos="</s>")


def _round_trip(file: pathlib.Path) -> Iterator[str]:
    written = file.read_bytes().decode("utf-8", "replace")
    for tokenizer in _tokenizers():
        ids = tokenizer.encode(written)
        assert all(0 <= token < tokenizer.vocab_size + len(NEW_TOKENS) for token in ids)
        is_pieces = isinstance(tokenizer, SentencePieceTokenizer)
        expected = written.replace("▁", " ") if is_pieces else written
        assert tokenizer.decode(ids) == expected
    yield "record"


def _tfrecords() -> list[bytes]:
    stored = _features("document")
    written = b""
    for row in _documents():
        example = stored.serialize_example(stored.encode_example(to_example(Document(row["text"]))))
        length = len(example).to_bytes(8, "little")
        for part in (length, example):
            written += part + tfrecord._masked_crc32c(part).to_bytes(4, "little")
    return [written]


def _tfrecord_rows(file: pathlib.Path) -> Iterator[str]:
    if not (file.parent / "dataset_info.json").exists():
        write_metadata(file.parent, "document", {"train": [Shard(4, 1000)]})
    yield from _read("document", documents.read(_ANY_TEXT, documents.ExamplesFile(str(file))))


def _array_records(kind: str) -> list[bytes]:
    picture_, words = picture("PNG", (8, 8)), "a text of some length, " * 20
    records = {
        "interleaved_page": InterleavedPage((words, picture_, "end"), "{}"),
        "video_text": VideoText((picture_, picture_), words, 2.0),
        "image_text": ImageText(picture_, words),
        "document": Document(words),
    }
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "records"
        with writing(path, kind) as writer:
            for _ in range(3):
                writer.write(records[kind])
        return [path.read_bytes()]


def _source(kind: str):
    def read(file: pathlib.Path) -> Iterator[str]:
        directory = file.parent / kind
        if not directory.exists():
            directory.mkdir()
            write_metadata(directory, kind, {"train": [Shard(3, 1000)]})
        (directory / shard_name("train", 0, 1)).write_bytes(file.read_bytes())
        try:
            source = Source(directory)
        except ValueError as error:
            assert kind in str(error), "the message names the dataset"
            yield "unreadable_file"
            return
        for index in range(len(source)):
            try:
                assert source[index].kind == kind
            except CorruptRecord as error:
                yield error.reason
            else:
                yield "record"

    return read


FORMATS: dict[str, Format] = {
    "jpeg": Format(_jpegs, _image),
    "png": Format(_pngs, _image),
    "webp": Format(
        lambda: [picture("WEBP"), picture("WEBP", lossless=True, mode="RGBA"), _animation("WEBP")],
        _image,
    ),
    "gif": Format(lambda: [picture("GIF"), _animation("GIF")], _image),
    "other_images": Format(lambda: [picture(f) for f in ("BMP", "TIFF", "PPM", "AVIF")], _image),
    "mp4": Format(
        lambda: [mp4(grey_frames(12)), mp4(grey_frames(12), faststart=True, sound=True)], _clip
    ),
    "webm": Format(lambda: [mp4(grey_frames(12), suffix=".webm", codec="libvpx")], _clip),
    "mp4_dataset": Format(lambda: [mp4(grey_frames(12), faststart=True)], _videos, ".mp4"),
    "html": Format(_html, _html_page),
    "warc": Format(_warcs, _web_pages, ".warc"),
    "warc.gz": Format(_warcs, _web_pages, ".warc.gz", _gzip_records),
    "warc_filters": Format(_warcs, _judged_pages, ".warc"),
    "jsonl": Format(lambda: [_lines(_documents())], _text, ".jsonl"),
    "jsonl.gz": Format(lambda: [_lines(_documents())], _text, ".jsonl.gz", _gzip),
    "jsonl.zip": Format(lambda: [_lines(_documents())], _text, ".jsonl.zip", _zip),
    "jsonl.zst": Format(lambda: [_lines(_documents())], _text, ".jsonl.zst", zstandard.compress),
    "parquet": Format(
        lambda: [_parquet(_documents()), _parquet(_documents(), compression="none")],
        _text,
        ".parquet",
    ),
    "tfrecord": Format(_tfrecords, _tfrecord_rows, ".tfrecord", keeps=TFDS_KEEPS),
    "mmc4": Format(lambda: [_lines(_mmc4())], _mmc4_pages, ".jsonl"),
    "obelics": Format(_obelics, _obelics_pages, ".parquet"),
    "pairs_table": Format(_tables, _table_rows, ".csv"),
    "pairs_tar": Format(_tars, _pairs, ".tar"),
    "hdvila": Format(_video_lines, _video_clips, ".jsonl"),
    "texts": Format(
        lambda: [crawl.prose(1).encode(), "Ünïcode 猫 👩‍👩‍👧 <EOC> <image>\n\t".encode()],
        _round_trip,
    ),
    "tar": Format(_tars, _samples, ".tar"),
    "tar.gz": Format(_tars, _samples, ".tar.gz", _gzip),
    **{
        f"array_record/{kind}": Format(
            lambda kind=kind: _array_records(kind), _source(kind), keeps=TFDS_KEEPS
        )
        for kind in ("interleaved_page", "image_text", "video_text", "document")
    },
}
