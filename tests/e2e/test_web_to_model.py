"""From a crawl to a training run.

The first command turns WARC files into records, the second shows them, and the third trains on them
together with pairs and videos.
"""

import io
import json
import tarfile

import pytest

pytest.importorskip("warcio")
pytest.importorskip("selectolax")
pytest.importorskip("pyarrow")

from data_pipelines import run
from data_pipelines.on_beam import Execution
from data_pipelines.pairs import PairsRequest
from data_pipelines.tokenizer import TokenizerRequest
from data_pipelines.videos import VideosRequest
from flamingo_jax.data.schema import InterleavedPage
from flamingo_jax.data.sources import Source
from flamingo_jax.training import logs
from tests.data_pipelines import crawl, media
from tests.e2e import web as config_file
from tests.training import small

NUM_PAGES = 12
IMAGES = {
    "jpg": ("image/jpeg", crawl.jpeg),
    "png": ("image/png", crawl.png),
    "webp": ("image/webp", crawl.webp),
}


def make_crawl(directory):
    """Writes two WARC files of pages with a JPEG, a PNG, a WebP and a linked video each."""
    directory.mkdir()
    film = ("https://site.example/film.mp4", "video/mp4", media.mp4(media.grey_frames(10)))
    for number in range(2):
        responses = [film]
        for page in range(number, NUM_PAGES, 2):
            body = []
            for i, (suffix, (kind, make)) in enumerate(IMAGES.items()):
                source = f"/{page}-{i}.{suffix}"
                responses.append((f"https://site.example{source}", kind, make(10 * page + i)))
                body += [
                    f"<p>{crawl.prose(100 * page + i)}</p>",
                    f'<figure><img src="{source}"></figure>',
                ]
            body.append(
                '<p>See the film: <a href="/film.mp4">film</a> <video src="/film.mp4"></video></p>'
            )
            html = crawl.article(f"The harbour, part {page}", body)
            responses.append(
                (f"https://site.example/{page}.html", "text/html; charset=utf-8", html)
            )
        crawl.make_warc(directory / f"{number}.warc.gz", responses)


def make_pairs(file):
    """Writes a tar as img2dataset does."""
    with tarfile.open(file, "w") as tar:
        for i in range(8):
            key = f"00000{i:04d}"
            about = {
                "url": f"https://cdn.example/{i}.jpg",
                "caption": crawl.prose(i, 1),
                "key": key,
                "status": "success",
            }
            for suffix, data in (
                ("jpg", crawl.jpeg(i)),
                ("txt", about["caption"].encode()),
                ("json", json.dumps(about).encode()),
            ):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def make_clips(directory):
    """Writes videos, each next to a file with its caption."""
    directory.mkdir()
    for i in range(4):
        (directory / f"{i}.mp4").write_bytes(media.mp4(media.grey_frames(20 + 10 * i)))
        (directory / f"{i}.txt").write_text(crawl.prose(i, 1))


@pytest.fixture(scope="module")
def data(tmp_path_factory, run_program):
    """A directory with the datasets m3w, pairs and videos, and the tokenizer."""
    directory = tmp_path_factory.mktemp("web")
    make_crawl(directory / "crawl")
    make_pairs(directory / "00000.tar")
    make_clips(directory / "clips")
    done = run_program(
        *("-m", "data_pipelines.run", "--pipeline=m3w", f"--input={directory / 'crawl'}"),
        *(f"--output={directory / 'm3w'}", "--num_workers=2"),
    )
    assert "out: train" in done.stdout
    assert not done.stderr
    alone = Execution(num_workers=1)
    run.make("pairs", PairsRequest(str(directory / "00000.tar")), str(directory / "pairs"), alone)
    run.make("videos", VideosRequest(str(directory / "clips")), str(directory / "videos"), alone)
    run.make(
        "tokenizer",
        TokenizerRequest(str(directory / "m3w"), vocab_size=400),
        str(directory / "tokenizer"),
        alone,
    )
    return directory


def test_the_crawl_becomes_pages_of_text_and_images_in_order(data):
    source = Source(data / "m3w")
    pages = [source[i] for i in range(len(source))]
    assert len(pages) == NUM_PAGES
    for page in pages:
        assert isinstance(page, InterleavedPage)
        assert len(page.images) == 3
        number = int(json.loads(page.metadata)["url"].rsplit("/", 1)[1].removesuffix(".html"))
        assert page.images == tuple(
            make(10 * number + i) for i, (_, make) in enumerate(IMAGES.values())
        )
        assert page.parts[0].startswith(f"The harbour, part {number}")
        assert "cookies" not in "".join(page.texts)
    report = json.loads((data / "m3w" / "report.json").read_text())
    assert report["in"] == report["out"]["train"] == NUM_PAGES


def test_the_second_command_shows_what_the_model_sees(data, run_program):
    run_program(
        *("-m", "data_pipelines.run", "--pipeline=inspect", f"--dataset={data / 'm3w'}"),
        *("--num_samples=4", "--image_size=64", f"--tokenizer={data / 'tokenizer'}"),
        f"--output={data / 'samples'}",
    )
    page = (data / "samples" / "index.html").read_text()
    assert page.count("<img") >= 4
    assert "harbour" in page


def test_the_third_command_trains_on_pages_pairs_and_videos(data, run_program):
    small.make_towers(data / "towers", data, config_file.get_config)
    run_program(
        *("-m", "flamingo_jax.train", "--config=tests/e2e/web.py:flamingo"),
        *(f"--workdir={data / 'run'}", f"--config.data.tokenizer={data / 'tokenizer'}"),
        *(
            f"--config.data.datasets.{name}.path={data / name}"
            for name in ("m3w", "pairs", "videos")
        ),
        *(f"--config.towers.{name}={data / 'towers' / name}" for name in ("lm", "vision")),
    )
    rows = logs.read(data / "run" / "metrics.jsonl")
    losses = [row for row in rows if "m3w/loss" in row]
    assert len(losses) == 12
    assert all({"m3w/loss", "pairs/loss", "videos/loss"} <= set(row) for row in losses)
    assert sum(row["loss"] for row in losses[-3:]) < sum(row["loss"] for row in losses[:3])
