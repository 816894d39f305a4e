"""From an archive of pages and images to interleaved pages.

What is kept, in which order, and the reason of everything left out.
"""

import collections
import dataclasses
import gzip
import json
import pickle

import pytest
from etils import epath
from PIL import Image

pytest.importorskip("warcio")
pytest.importorskip("selectolax")

from data_pipelines import m3w
from data_pipelines.collect import Found
from data_pipelines.m3w import M3WRequest, build, read_file
from data_pipelines.on_beam import Execution
from data_pipelines.page import Page, Picture, Reject
from data_pipelines.web.warc_index import build_index
from flamingo_jax.data.sources import Source
from tests.data_pipelines import crawl, media

SITE = "https://harbour.example"
FILTERED = M3WRequest(input="unused")
OPEN = dataclasses.replace(FILTERED, languages=(), quality_filter=False, repetition_filter=False)


def story(seed, *images, title=None, num_paragraphs=3):
    """Returns a page of some paragraphs, with an image before each of the first ones."""
    paragraphs = []
    for number in range(num_paragraphs):
        paragraphs += [f'<img src="{images[number]}">'] if number < len(images) else []
        paragraphs += [f"<p>{crawl.prose(10 * seed + number)}</p>"]
    return crawl.article(title or f"Story {seed}", paragraphs)


def page_record(url, html, **options):
    return (f"{SITE}/{url}", "text/html; charset=utf-8", html, options)


def read(path, request=OPEN, index=""):
    items = list(read_file(request, str(path), index))
    found = [item for item in items if isinstance(item, Found)]
    return found, [item for item in items if isinstance(item, Reject)]


def reasons(rejects):
    return dict(collections.Counter((reject.reason, reject.unit) for reject in rejects))


def test_page_becomes_a_record(tmp_path):
    html = story(1, "/a.jpg", "/b.png", "/c").replace(
        "</article>", '<a href="/film.mp4">A film</a><img src="/film.mp4"></article>'
    )
    crawl.make_warc(
        tmp_path / "a.warc.gz",
        [
            (f"{SITE}/a.jpg", "image/jpeg", crawl.jpeg(1)),  # before the page, the others after it
            page_record("p#top", html),
            (f"{SITE}/b.png", "image/png", crawl.png(2)),
            (f"{SITE}/c", "image/webp", crawl.webp(3)),
            (f"{SITE}/film.mp4", "video/mp4", media.mp4(media.grey_frames(3))),
        ],
    )
    (found,), rejects = read(tmp_path / "a.warc.gz", FILTERED)
    assert found.record.parts == (
        "Story 1",
        crawl.jpeg(1),
        crawl.prose(10),
        crawl.png(2),
        crawl.prose(11),
        crawl.webp(3),
        f"{crawl.prose(12)}\n\nA film",
    )
    assert json.loads(found.record.metadata) == {
        "url": f"{SITE}/p#top",
        "language": "en",
        "images": [f"{SITE}/a.jpg", f"{SITE}/b.png", f"{SITE}/c"],
    }
    address, text = found.keys
    assert address == "url:https://harbour.example/p"
    assert text.startswith("text:")
    # A film is no image, even in an <img>.
    assert reasons(rejects) == {("video/mp4", "file"): 1, ("missing_image", "image"): 1}


def test_order_of_texts_and_images_is_that_of_the_page(tmp_path):
    html = (
        "<title>T</title><p>one<img src=1>two</p><img src=2><p>three</p><img src=1><p>four</p>"
        "<div><img src=3></div>five"
    )
    images = [(f"{SITE}/{n}", "image/png", crawl.png(n)) for n in (3, 1, 2)]
    crawl.make_warc(tmp_path / "a.warc", [page_record("", html), *images], gzip=False)
    (found,), rejects = read(tmp_path / "a.warc")
    assert found.record.parts == (
        "T\n\none",
        crawl.png(1),
        "two",
        crawl.png(2),
        "three\nfour",
        crawl.png(3),
        "five",
    )
    assert reasons(rejects) == {("duplicate_image", "image"): 1}


def test_everything_that_is_left_out_is_counted_under_its_reason(tmp_path):
    german = (
        "Der alte Hafen der Stadt liegt zwischen zwei Hügeln und die Boote kommen mit der Flut "
        "herein."
    )
    german = " ".join([german] * 5)
    plain = crawl.encoded(Image.new("RGB", (90, 90), (9, 9, 9)), "PNG")
    shown = ("good.jpg", "small.jpg", "long.jpg", "plain.png", "cut.jpg", "none.jpg")
    pages = {
        "good": story(1, *(f"/{name}" for name in shown), num_paragraphs=6),
        "no_image": story(2),
        "no_image_left": story(3, "/small.jpg"),
        "language": crawl.article("Hafen", [f"<p>{german}</p><img src=/good.jpg>"]),
        "too_few_words": crawl.article("Short", ["<p>The end of it.</p><img src=/good.jpg>"]),
        "duplicate_lines": crawl.article(
            "Again", [*[f"<p>{crawl.prose(4)}</p>"] * 5, "<img src=/good.jpg>"]
        ),
        "html_too_deep": "<div>" * 100_000,
        "html_too_large": b"<p>" + b"x" * 50_000_000,
        "no_text": "",
        "broken_text": b"<p>" + b"\xff\xfe\xe6" * 99,
    }
    images = {
        "good.jpg": crawl.jpeg(),
        "small.jpg": crawl.jpeg(1, 63, 64),
        "long.jpg": crawl.jpeg(2, 301, 100),
        "plain.png": plain,
        "cut.jpg": crawl.jpeg(3)[:300],
    }
    crawl.make_warc(
        tmp_path / "a.warc.gz",
        [
            *(page_record(url, html) for url, html in pages.items()),
            *((f"{SITE}/{url}", "image/x", data) for url, data in images.items()),
        ],
    )
    found, rejects = read(tmp_path / "a.warc.gz", FILTERED)
    assert [json.loads(item.record.metadata)["url"] for item in found] == [f"{SITE}/good"]
    assert found[0].record.images == (crawl.jpeg(),)
    of_pages = {reject.reason for reject in rejects if reject.unit == "record"}
    assert of_pages == set(pages) - {"good"}
    assert collections.Counter(reject.reason for reject in rejects if reject.unit == "image") == {
        "image_too_small": 2,
        "image_aspect": 1,
        "single_colour": 1,
        "truncated_image": 1,
        "missing_image": 1,
    }
    assert {reject.reason for reject in rejects if reject.broken} == {
        "broken_text",
        "truncated_image",
        "missing_image",
    }
    assert all(reject.detail for reject in rejects)


def test_charsets_of_pages(tmp_path):
    text = "港は二つの丘の間にあります。"
    html = f'<meta charset="shift_jis"><p>{text}</p><img src=/a.jpg>'
    crawl.make_warc(
        tmp_path / "a.warc.gz",
        [
            (f"{SITE}/1", "text/html", html.encode("shift_jis")),
            (
                f"{SITE}/2",
                "text/html",
                html.encode("euc_jp"),
                {"warc_headers": {"WARC-Identified-Content-Charset": "euc-jp"}},
            ),
            (f"{SITE}/3", "text/html; charset=utf-8", html.encode()),
            (f"{SITE}/a.jpg", "image/jpeg", crawl.jpeg()),
        ],
    )
    found, _ = read(tmp_path / "a.warc.gz")
    assert [item.record.texts for item in found] == [(text,)] * 3


def test_truncated_and_damaged_archives_give_what_is_whole(tmp_path):
    path = tmp_path / "a.warc.gz"
    records = [
        (f"{SITE}/a.jpg", "image/jpeg", crawl.jpeg()),
        *(page_record(str(i), story(i, "/a.jpg")) for i in range(4)),
    ]
    places = crawl.make_warc(path, records)
    data = bytearray(path.read_bytes())[:-10]
    middle = places[2][0] + places[2][1] // 2
    data[middle : middle + 20] = bytes(20)
    path.write_bytes(data)
    found, rejects = read(path)
    assert [json.loads(item.record.metadata)["url"] for item in found] == [f"{SITE}/0", f"{SITE}/2"]
    assert reasons(rejects) == {("damaged_record", "record"): 1, ("truncated_file", "record"): 1}
    assert all(reject.broken for reject in rejects)


@pytest.mark.parametrize("content", [b"", b"no archive", gzip.compress(b"x" * 1000, mtime=0)])
def test_what_is_no_archive_is_one_reject(content, tmp_path):
    (tmp_path / "a.warc.gz").write_bytes(content)
    found, rejects = read(tmp_path / "a.warc.gz")
    assert not found
    (reject,) = rejects
    assert reject.broken


def test_image_in_another_archive_is_found_with_an_index(tmp_path):
    crawl.make_warc(tmp_path / "a.warc.gz", [page_record("p", story(1, "/a.jpg"))])
    crawl.make_warc(tmp_path / "b.warc.gz", [(f"{SITE}/a.jpg", "image/jpeg", crawl.jpeg())])
    _, rejects = read(tmp_path / "a.warc.gz")
    assert [reject.reason for reject in rejects] == ["missing_image", "no_image_left"]
    build_index([str(tmp_path / "b.warc.gz")], epath.Path(tmp_path / "index"))
    (found,), rejects = read(tmp_path / "a.warc.gz", index=str(tmp_path / "index"))
    assert found.record.images == (crawl.jpeg(),)
    assert not rejects


def test_images_of_a_folder(tmp_path):
    page = page_record("p", story(1, "/img/a.jpg", "/../../b.jpg"))
    crawl.make_warc(tmp_path / "a.warc.gz", [page])
    folder = tmp_path / "images" / "harbour.example" / "img"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(crawl.jpeg())
    request = dataclasses.replace(OPEN, images=str(tmp_path / "images"))
    (found,), rejects = read(tmp_path / "a.warc.gz", request)
    assert found.record.images == (crawl.jpeg(),)
    assert [reject.reason for reject in rejects] == ["missing_image"]


def test_folder_of_pages(tmp_path):
    pages = tmp_path / "site" / "dir with space"
    (pages / "images").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(crawl.jpeg(9))
    (tmp_path / "site" / "top.png").write_bytes(crawl.png(2))
    (pages / "images" / "a b.jpg").write_bytes(crawl.jpeg(1))
    shown = ("images/a%20b.jpg", "/top.png", "../../secret.jpg", "../../../secret.jpg")
    (pages / "page.html").write_text(story(1, *shown, num_paragraphs=4))
    request = dataclasses.replace(FILTERED, input=str(tmp_path / "site"))
    (found,), rejects = read(pages / "page.html", request)
    assert found.record.images == (crawl.jpeg(1), crawl.png(2))
    assert json.loads(found.record.metadata)["url"] == "file:///dir%20with%20space/page.html"
    assert {reject.reason for reject in rejects} <= {"missing_image", "duplicate_image"}
    assert len(rejects) == 2
    (missing,) = read_file(request, str(pages / "gone.html"))
    assert missing.reason == "unreadable_file"
    assert missing.broken


def without_cats(page: Page) -> Page | Reject:
    if "dog" in page.url:
        return Reject("explicit", "a dog")
    is_cat = lambda part: isinstance(part, Picture) and part.data == crawl.png(1)
    return dataclasses.replace(page, parts=tuple(part for part in page.parts if not is_cat(part)))


def test_explicit_filter_gets_texts_and_images(tmp_path, monkeypatch):
    monkeypatch.setattr(m3w, "judge", without_cats, raising=False)
    request = dataclasses.replace(OPEN, explicit_filter="data_pipelines.m3w:judge")
    images = [(f"{SITE}/{n}.png", "image/png", crawl.png(n)) for n in (1, 2)]
    pages = [
        page_record("both", story(1, "/1.png", "/2.png")),
        page_record("dog", story(2, "/2.png")),
        page_record("cat", story(3, "/1.png")),
    ]
    crawl.make_warc(tmp_path / "a.warc.gz", [*images, *pages])
    (found,), rejects = read(tmp_path / "a.warc.gz", request)
    assert found.record.images == (crawl.png(2),)
    assert reasons(rejects) == {("explicit", "record"): 2}
    m3w.named_function.cache_clear()


def test_a_page_that_takes_too_long_is_counted_and_the_next_one_is_read(tmp_path, monkeypatch):
    def judge(page):
        while page.url.endswith("slow"):
            pass
        return page

    monkeypatch.setattr(m3w, "slow_judge", judge, raising=False)
    pages = [page_record(name, story(number, "/a")) for number, name in enumerate(("slow", "fast"))]
    crawl.make_warc(tmp_path / "a.warc.gz", [*pages, (f"{SITE}/a", "image/png", crawl.png())])
    request = dataclasses.replace(
        OPEN, explicit_filter="data_pipelines.m3w:slow_judge", max_record_seconds=0.5
    )
    (found,), (reject,) = read(tmp_path / "a.warc.gz", request)
    assert json.loads(found.record.metadata)["url"] == f"{SITE}/fast"
    assert (reject.reason, reject.broken) == ("too_slow", True)
    assert reject.detail == f"{SITE}/slow: more than 0.5 seconds of CPU time"


def test_near_duplicates_get_keys(tmp_path):
    crawl.make_warc(
        tmp_path / "a.warc.gz",
        [page_record("p", story(1, "/a.jpg")), (f"{SITE}/a.jpg", "image/jpeg", crawl.jpeg())],
    )
    (found,), _ = read(tmp_path / "a.warc.gz", dataclasses.replace(OPEN, near_duplicates=True))
    assert {key.partition(":")[0] for key in found.keys} == {"url", "text", "text_alike"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_index": "all"}, "--image_index=all, expected file or input"),
        ({"image_fetcher": "ftp"}, "--image_fetcher=ftp, expected off or http"),
        ({"min_language_probability": 2.0}, "expected 0 to 1"),
        ({"max_image_aspect": 0.5}, "--max_image_aspect .* must be 1 or more"),
        ({"images": "/no/such/directory"}, "--images=/no/such/directory is no directory"),
        ({"languages": ("klingon",)}, "Unknown languages klingon"),
        (
            {"explicit_filter": "no_module:f"},
            "--explicit_filter=no_module:f: there is no such function",
        ),
        ({"max_record_seconds": 0.0}, "--max_record_seconds=0.0, expected more than 0"),
        ({"explicit_filter": "data_pipelines.m3w"}, "there is no such function"),
        ({"explicit_filter": "data_pipelines.m3w:json"}, "is a module, expected a function"),
    ],
)
def test_wrong_requests_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        M3WRequest(**wrong)


def test_request_can_be_sent_to_workers():
    assert pickle.loads(pickle.dumps(FILTERED)) == FILTERED


def test_dataset_of_a_crawl(tmp_path):
    """The whole pipeline: two archives and a folder, an image in another archive, duplicates."""
    directory = tmp_path / "crawl"
    directory.mkdir()
    crawl.make_warc(
        directory / "a.warc.gz",
        [
            page_record("1", story(1, "/a.jpg")),
            page_record("2", story(2, "/b.png")),
            page_record("3", story(3)),
        ],
    )
    crawl.make_warc(
        directory / "b.warc.gz",
        [
            (f"{SITE}/a.jpg", "image/jpeg", crawl.jpeg(1)),
            (f"{SITE}/b.png", "image/png", crawl.png(2)),
            page_record("1#again", story(4, "/a.jpg")),
            page_record("copy", story(2, "/b.png")),
        ],
    )
    (directory / "a.jpg").write_bytes(crawl.jpeg(5))
    (directory / "page.html").write_text(story(6, "a.jpg"))
    output = epath.Path(tmp_path / "m3w")
    output.mkdir()
    request = M3WRequest(input=str(directory), image_index="input")
    counts = build(request, output, Execution(num_workers=1))
    assert counts == {
        "in": 6,
        "out: train": 3,
        "left out: no_image": 1,
        "left out: duplicate_url": 1,
        "left out: duplicate_text": 1,
    }
    source = Source(output, "train")
    assert source.kind == "interleaved_page"
    found = {json.loads(source[i].metadata)["url"]: source[i].images for i in range(len(source))}
    assert found == {
        f"{SITE}/1": (crawl.jpeg(1),),
        f"{SITE}/2": (crawl.png(2),),
        "file:///page.html": (crawl.jpeg(5),),
    }
    assert not list(output.glob("*.sqlite"))
