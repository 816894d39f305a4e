r"""Measures pages per second of `--pipeline=m3w` with one and two workers, and memory.

    python -m tests.benchmarks.collection [--pages=4000] [--rounds=3] [--directory=DIR]

The crawl is generated: WARC files of pages with the boilerplate of a site, some hundred words of
English (Python's manual pages) and four JPEGs like photos each. Whole commands are timed, start
included, with one and two workers in turn; the best of the rounds counts. Memory is measured for
several numbers of pages.
"""

import argparse
import json
import os
import pathlib
import pydoc_data.topics
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

from tests.data_pipelines import crawl

NUM_FILES = 8
IMAGES_PER_PAGE = 4
BOILERPLATE = "".join(
    f'<li><a class="item-{i}" href="/section/{i}">Section number {i}</a></li>' for i in range(400)
)


def paragraphs() -> list[str]:
    """English paragraphs of at least 30 words."""
    text = "\n\n".join(pydoc_data.topics.topics.values())
    found = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return [
        paragraph for paragraph in found if len(paragraph.split()) >= 30 and paragraph[0].isalpha()
    ]


def make_crawl(directory: pathlib.Path, num_pages: int, images: list[bytes]) -> None:
    """Writes NUM_FILES WARC files."""
    rng = random.Random(num_pages)
    texts = paragraphs()
    for number in range(NUM_FILES):
        responses = []
        for page in range(number, num_pages, NUM_FILES):
            body = []
            for i, text in enumerate(rng.sample(texts, IMAGES_PER_PAGE * 2)):
                body.append(f"<p>{text.replace('<', '&lt;')} Page {page}, part {i}.</p>")
                if i % 2:
                    source = f"/images/{page}/{i}.jpg"
                    body.append(f'<figure><img src="{source}" alt="a picture"></figure>')
                    responses.append(
                        (f"https://site.example{source}", "image/jpeg", rng.choice(images))
                    )
            html = crawl.article(f"Page {page}", body).replace(
                "<nav>", f"<nav><ul>{BOILERPLATE}</ul>"
            )
            responses.append(
                (f"https://site.example/{page}.html", "text/html; charset=utf-8", html)
            )
        crawl.make_warc(directory / f"{number:05d}.warc.gz", responses)


def collect(crawl: pathlib.Path, output: pathlib.Path, num_workers: int) -> tuple[float, int, dict]:
    """Runs the pipeline; returns seconds, peak bytes of its largest process, and the report."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "data_pipelines.run", "--pipeline=m3w"]
    command += [f"--input={crawl}", f"--output={output}", f"--num_workers={num_workers}"]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return seconds, usage.ru_maxrss * 1024, json.loads((output / "report.json").read_text())


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", default=None)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    sizes = [(640, 480), (500, 375), (1024, 683), (800, 533)]
    images = [crawl.jpeg(int(rng.integers(1 << 30)), *sizes[i % len(sizes)]) for i in range(64)]
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        place = pathlib.Path(scratch)
        for name, pages in (("half", arguments.pages // 2), ("whole", arguments.pages)):
            (place / name).mkdir()
            make_crawl(place / name, pages, images)
        size = sum(file.stat().st_size for file in (place / "whole").iterdir())
        print(
            f"{arguments.pages} pages in {NUM_FILES} files, {size / arguments.pages / 1e3:.0f} "
            "kB of WARC a page"
        )
        times: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(arguments.rounds):
            for workers in times:
                seconds, peak, report = collect(place / "whole", place / "out", workers)
                times[workers].append(seconds)
                print(
                    f"  {workers} worker(s): {seconds:6.1f} s, {peak / 2**20:5.0f} MiB, kept "
                    f"{report['out']}"
                )
        half_seconds, half_peak, _ = collect(place / "half", place / "out", 1)
        _, whole_peak, _ = collect(place / "whole", place / "out", 1)
        one, two = min(times[1]), min(times[2])
        print(f"pages per second and core: {arguments.pages / one:.0f}")
        print(f"two workers against one: {one / two:.2f} times")
        print(f"seconds of half the pages against all: {half_seconds / one:.2f}")
        print(f"peak memory of all pages against half of them: {whole_peak / half_peak:.2f}")
        print(f"reasons: {report['rejected']}, images: {report['images_rejected']}")


if __name__ == "__main__":
    main()
