"""Deduplication finds copies of evaluation images, and no other images.

The copies are resized, encoded again or slightly cropped.
"""

import base64
import functools
import io
import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from data_pipelines.dedup import DedupRequest, build
from data_pipelines.near_images import BITS, EmbeddingIndex, HashIndex, phash
from data_pipelines.on_beam import Execution
from data_pipelines.write_records import write_records
from flamingo_jax.data.embeddings import record_key, writing
from flamingo_jax.data.schema import CorruptRecord, Document, ImageText, InterleavedPage, VideoText
from flamingo_jax.data.sources import Source

lexbor = pytest.importorskip("selectolax.lexbor")

ONE = Execution(num_workers=1, max_broken=0.5)


@functools.cache
def picture(seed, width=240, height=180):
    """Returns smooth coloured shapes of many sizes, as in photographs.

    The amplitude of the noise decreases with its frequency.
    """
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for cells in (2, 4, 8, 16, 32):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        smooth = noise.resize((width, height), Image.Resampling.BICUBIC)
        image += np.asarray(smooth, float) / cells**0.7
    return Image.fromarray(np.uint8(255 * (image - image.min()) / np.ptp(image)))


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def cropped(image, share):
    """Cuts off `share` of the width and height, half of it at each side."""
    x, y = (round(side * share / 2) for side in image.size)
    return image.crop((x, y, image.width - x, image.height - y))


COPIES = {
    "resized": lambda image: encoded(image.resize((100, 75)), quality=90),
    "enlarged": lambda image: encoded(image.resize((800, 600)), quality=90),
    "other aspect": lambda image: encoded(image.resize((200, 180)), quality=90),
    "low quality": lambda image: encoded(image, quality=20),
    "png": lambda image: encoded(image, "PNG"),
    "webp": lambda image: encoded(image, "WEBP", quality=50),
    "grey": lambda image: encoded(image.convert("L"), quality=90),
    "cropped": lambda image: encoded(cropped(image, 0.02), quality=80),
}


def distance(one, other):
    return int(np.unpackbits(one ^ other).sum())


@pytest.fixture(scope="module")
def originals():
    """The hashes of 100 images."""
    return [phash(encoded(picture(seed))) for seed in range(100)]


@pytest.mark.parametrize("change", COPIES)
def test_copies_are_near(change, originals):
    """At least 38 of 40 copies are within the default distance."""
    found = [distance(originals[seed], phash(COPIES[change](picture(seed)))) for seed in range(40)]
    is_near = np.asarray(found) <= DedupRequest(against=("x",)).max_distance
    assert is_near.mean() >= 0.95, sorted(found)


def test_other_images_are_far(originals):
    hashes = np.stack(originals)
    found = HashIndex(hashes).search(hashes, DedupRequest(against=("x",)).max_distance)
    assert [pair for pair in found if pair[0] != pair[1]] == []
    distances = np.unpackbits(hashes[:, None] ^ hashes[None], axis=-1).sum(-1)
    of_pairs = distances[np.triu_indices(len(hashes), 1)]
    assert abs(of_pairs.mean() - BITS / 2) < 1


def test_flat_images_have_no_hash():
    for image in (Image.new("RGB", (50, 50), (7, 8, 9)), Image.new("RGB", (300, 40))):
        assert phash(encoded(image)) is None
    with pytest.raises(CorruptRecord):
        phash(b"\xff\xd8\xff rubbish")


def test_search_of_hashes_at_the_threshold():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (50, BITS), np.uint8)
    query = bits[7].copy()
    query[:5] ^= 1
    index = HashIndex(np.packbits(bits, axis=1))
    assert list(index.search(np.packbits(query)[None], 5)) == [(0, 7, 5)]
    assert list(index.search(np.packbits(query)[None], 4)) == []
    assert list(index.search(np.zeros((0, 8), np.uint8), 5)) == []


def test_search_of_embeddings_finds_what_comparing_all_finds():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3000, 32)).astype(np.float32)
    noise = rng.standard_normal((300, 32)).astype(np.float32)
    queries = np.concatenate([rows[:300] * 5 + noise, -rows[:100]])
    index = EmbeddingIndex(32)
    for start in range(0, 3000, 1000):
        index.add(rows[start : start + 1000])
    found = {(query, row): cosine for query, row, cosine in index.search(queries, 0.9)}
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (queries, rows)]
    exact = unit[0] @ unit[1].T
    expected = set(zip(*map(np.ndarray.tolist, np.nonzero(exact >= 0.9)), strict=True))
    assert len(expected) >= 295
    assert set(found) <= expected
    assert len(found) >= 0.99 * len(expected)
    for pair, cosine in found.items():
        assert cosine == pytest.approx(exact[pair], abs=1e-5)
    assert list(index.search(np.zeros((1, 32), np.float32), 0.9)) == []
    assert list(EmbeddingIndex(32).search(queries, 0.9)) == []


@pytest.fixture
def evaluation(tmp_path):
    """A folder with images 0 to 4, a damaged one and a flat one."""
    folder = tmp_path / "evaluation"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "<b>&amp;.jpg").write_bytes(encoded(picture(999)))
    for number in range(5):
        (folder / "deep" / f"{number}.jpg").write_bytes(encoded(picture(number)))
    (folder / "damaged.png").write_bytes(b"rubbish")
    (folder / "flat.JPG").write_bytes(encoded(Image.new("RGB", (9, 9))))
    (folder / "notes.txt").write_text("no image")
    return str(folder)


def dataset(path, records):
    write_records(path, records[0].kind, {"train": lambda: records})
    return str(path)


def run(tmp_path, **fields):
    output = epath.Path(tmp_path / "output")
    output.mkdir()
    counts = build(DedupRequest(**fields), output, ONE)
    source = Source(output)
    candidates = json.loads((output / "candidates.json").read_text())
    shown = lexbor.LexborHTMLParser((output / "candidates.html").read_text())
    rows = [[cell.text() for cell in row.css("td")] for row in shown.css("tr")[1:]]
    assert rows == [
        [f"{pair['score']:g}", pair["training"], pair["evaluation"]] for pair in candidates["pairs"]
    ]
    readable = 2 if fields.get("method") != "embeddings" else 0
    sources = [image.attributes["src"] for image in shown.css("img")]
    assert len(sources) == readable * len(rows)
    for source_text in sources:
        with Image.open(io.BytesIO(base64.b64decode(source_text.partition(",")[2]))) as image:
            assert image.size == (160, 160)
    assert not (output / "work").exists()
    return counts, [source[number] for number in range(len(source))], candidates["pairs"]


def test_pairs_against_a_folder(tmp_path, evaluation):
    records = [
        ImageText(encoded(picture(number)), f"picture {number}", "{}") for number in range(100, 106)
    ]
    records[2] = ImageText(COPIES["resized"](picture(3)), "a copy")
    records[4] = ImageText(b"rubbish", "damaged")
    flat = encoded(Image.new("RGB", (9, 9)))
    records[5] = ImageText(flat, "flat as the one of the evaluation set")
    stored = dataset(tmp_path / "pairs", records)
    counts, left, pairs = run(tmp_path, input=stored, against=(evaluation,))
    assert left == [records[0], records[1], records[3], records[5]]
    assert counts["left out: in_evaluation_set"] == 1
    assert counts["left out: not_an_image"] == 1
    assert counts["candidates"] == 1
    assert (counts["evaluation images"], counts["evaluation images left out"]) == (6, 2)
    assert [(pair["training"], pair["evaluation"]) for pair in pairs] == [
        ("2/0", f"{evaluation}:deep/3.jpg")
    ]
    assert 0 <= pairs[0]["score"] <= 6


PAGE = InterleavedPage(
    (
        "before",
        encoded(picture(100)),
        "between",
        COPIES["png"](picture(1)),
        COPIES["low quality"](picture(2)),
        "after",
    )
)
ALL_KNOWN = InterleavedPage(("text", COPIES["webp"](picture(999))))


def test_pages_lose_the_record(tmp_path, evaluation):
    records = [PAGE, InterleavedPage(("other", encoded(picture(101)))), ALL_KNOWN]
    stored = dataset(tmp_path / "pages", records)
    counts, left, pairs = run(tmp_path, input=stored, against=(evaluation,))
    assert left == [records[1]]
    assert counts["left out: in_evaluation_set"] == 2
    assert {(pair["training"], pair["evaluation"][-5:]) for pair in pairs} == {
        ("0/1", "1.jpg"),
        ("0/2", "2.jpg"),
        ("2/0", ";.jpg"),
    }
    assert [pair["score"] for pair in pairs] == sorted(pair["score"] for pair in pairs)


def test_pages_lose_the_images(tmp_path, evaluation):
    fields = {
        "input": dataset(tmp_path / "pages", [PAGE, ALL_KNOWN]),
        "against": (evaluation,),
        "drop": "image",
    }
    counts, left, _ = run(tmp_path, **fields)
    assert left == [InterleavedPage(("before", encoded(picture(100)), "between", "after"))]
    assert counts["images left out: in_evaluation_set"] == 3
    assert counts["left out: no_image_left"] == 1


def test_videos_against_a_dataset(tmp_path):
    known = [ImageText(encoded(picture(number)), "") for number in range(3)]
    against = dataset(tmp_path / "coco", known)

    def clip(*numbers):
        frames = tuple(encoded(picture(number), quality=60) for number in numbers)
        return VideoText(frames, "clip", fps=1.0)

    clips = [clip(50, 51), clip(52, 1)]
    _, left, pairs = run(tmp_path, input=dataset(tmp_path / "clips", clips), against=(against,))
    assert left == clips[:1]
    assert [(pair["training"], pair["evaluation"]) for pair in pairs] == [
        ("1/1", f"{against}:train/1/0")
    ]


def test_embeddings(tmp_path):
    """Row 1/0 of the pages nearly equals row "7" of the evaluation set."""
    rng = np.random.default_rng(0)
    rows, known = (rng.standard_normal((count, 16)).astype(np.float32) for count in (5, 30))
    rows[2] = 3 * known[7] + 0.1 * rows[2]
    pages = [InterleavedPage((f"page {number}", b"1", b"2")) for number in range(3)]
    with writing(tmp_path / "mine", 16) as writer:
        writer.add(["0/0", "0/1", "1/0", "1/1", "2/0"], rows)
    with writing(tmp_path / "theirs", 16) as writer:
        writer.add([str(number) for number in range(30)], known)
    fields = {
        "input": dataset(tmp_path / "pages", pages),
        "method": "embeddings",
        "embeddings": str(tmp_path / "mine"),
        "against": (str(tmp_path / "theirs"),),
    }
    counts, left, pairs = run(tmp_path, **fields)
    assert left == [pages[0], pages[2]]
    assert [(pair["training"], pair["evaluation"]) for pair in pairs] == [
        ("1/0", f"{tmp_path}/theirs:7")
    ]
    cosine = rows[2] @ known[7] / np.linalg.norm(rows[2]) / np.linalg.norm(known[7])
    assert pairs[0]["score"] == pytest.approx(cosine, abs=1e-5)
    assert (counts["training images"], counts["evaluation images"]) == (5, 30)
    assert counts["candidates"] == 1

    output = epath.Path(tmp_path / "second")
    output.mkdir()
    with writing(tmp_path / "theirs", 8) as writer:
        writer.add(["a"], known[:1, :8])
    with pytest.raises(ValueError, match="embeddings have 8 numbers, those in .* 16"):
        build(DedupRequest(**fields), output, ONE)
    with writing(tmp_path / "theirs", 16) as writer:
        writer.add(["a"], rows[:1])
    with writing(tmp_path / "mine", 16) as writer:
        writer.add(["9/0"], rows[:1])
    (output / "work").rmtree()
    with pytest.raises(ValueError, match="'9/0', expected RECORD/IMAGE with a record below 3"):
        build(DedupRequest(**fields), output, ONE)


@pytest.mark.parametrize("changed", [0, 1])
def test_embeddings_of_a_dataset_that_was_replaced(tmp_path, changed):
    """An image was replaced, whether or not it has a match."""
    pages = [InterleavedPage((f"page {number}", b"1", b"2")) for number in range(3)]
    rows = np.eye(6, 16, dtype=np.float32)
    keys = [record_key(at // 2, at % 2, b"%d" % (at % 2 + 1)) for at in range(6)]
    with writing(tmp_path / "mine", 16) as writer:
        writer.add(keys, rows)
    with writing(tmp_path / "theirs", 16) as writer:
        writer.add(["a"], rows[3:4])
    fields = {
        "method": "embeddings",
        "embeddings": str(tmp_path / "mine"),
        "against": (str(tmp_path / "theirs"),),
    }
    _, left, _ = run(tmp_path, input=dataset(tmp_path / "pages", pages), **fields)
    assert left == [pages[0], pages[2]]
    pages[changed] = InterleavedPage(("page", b"1", b"another"))
    output = epath.Path(tmp_path / "second")
    output.mkdir()
    replaced = DedupRequest(input=dataset(tmp_path / "replaced", pages), **fields)
    with pytest.raises(ValueError, match=f"'{changed}/1 .* another image .*replaced is now"):
        build(replaced, output, ONE)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "sift"}, "--method=sift: expected one of phash, embeddings"),
        ({"drop": "page"}, "--drop=page"),
        ({"against": ()}, "--against is missing"),
        ({"embeddings": "x"}, "is required with --method=embeddings"),
        ({"method": "embeddings"}, "is required with --method=embeddings"),
        ({"max_distance": 64}, "expected 0 to 63 bits"),
        ({"min_cosine": 0.0}, "a cosine above 0"),
    ],
)
def test_bad_requests(fields, message):
    with pytest.raises(ValueError, match=message):
        DedupRequest(**({"against": ("somewhere",)} | fields))


def test_missing_inputs(tmp_path, evaluation):
    pairs = dataset(tmp_path / "pairs", [ImageText(encoded(picture(0)), "")])
    texts = dataset(tmp_path / "texts", [Document("x")])
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "a.jpg").write_bytes(b"")
    embeddings = {"method": "embeddings", "embeddings": evaluation}
    cases = (
        (tmp_path / "none", evaluation, {}, "--input=.*none: There is no dataset"),
        (texts, evaluation, {}, "holds documents"),
        (pairs, tmp_path / "empty", {}, "--against=.*empty: there is no dataset"),
        (pairs, tmp_path / "damaged", {}, "none of the 1 images there can be compared"),
        (pairs, evaluation, embeddings, "--embeddings=.*There are no embeddings"),
    )
    for number, (source, against, options, message) in enumerate(cases):
        output = epath.Path(tmp_path / f"output{number}")
        output.mkdir()
        request = DedupRequest(input=str(source), against=(str(against),), **options)
        with pytest.raises(ValueError, match=message):
            build(request, output, ONE)
