"""Converts web pages to interleaved pages, as in the paper's M3W (paper, A.3.1).

`--pipeline=m3w --input=CRAWL --output=DIR`.

    WARC or HTML files --> html_to_pages --> language --> quality --> repetition --+
    +------------------------------------------------------------------------------+
    +--> page_images --> explicit content --> InterleavedPage --> duplicates out

The order is that of MassiveWeb, except that explicit content is the last filter instead of the
first. The page is complete by then, so the filter can judge its images too. Each filter is a
function of the page alone. So the order only decides which reason is counted for a page that two
filters would drop.

Differs from the paper: the paper filters explicit content with SafeSearch, which is not available.
`--explicit_filter=MODULE:FUNCTION` names a function

    def function(page: data_pipelines.page.Page) -> Page | data_pipelines.page.Reject

that any worker can import. The function gets a page with its text, URL and images (Picture.data).
It returns the page, the page without some of its parts, or Reject("explicit", "why"). It is off by
default. A dataset for anything but research needs one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from data_pipelines.collect import Found, collect
from data_pipelines.deadline import SECONDS, check_seconds, in_time
from data_pipelines.filters import quality, repetition
from data_pipelines.formats.local_files import local_image, page_image
from data_pipelines.inputs import input_files, page_folders
from data_pipelines.keys import text_key, url_key
from data_pipelines.near_duplicates import Fingerprint, fingerprint
from data_pipelines.on_beam import Execution
from data_pipelines.page import Page, Picture, Reject
from data_pipelines.web import warc
from data_pipelines.web.html_decode import HtmlLimits
from data_pipelines.web.html_to_pages import html_to_page
from data_pipelines.web.image_fetcher import ImageFetcher
from data_pipelines.web.language import check_languages, of_language
from data_pipelines.web.page_images import Find, ImageLimits, with_images
from data_pipelines.web.warc_index import WarcIndex, build_index
from data_pipelines.web.warc_records import Place
from flamingo_jax.core.command_line import named_function
from flamingo_jax.core.paths import regular
from flamingo_jax.data.files import IMAGE_SUFFIXES, has_suffix
from flamingo_jax.data.schema import InterleavedPage

HTML_SUFFIXES = (".html", ".htm", ".xhtml")

_INDEX = "images.sqlite"


@dataclasses.dataclass(frozen=True)
class M3WRequest:
    """The options that decide a dataset of web pages.

    Attributes:
      input: WARC files (.warc.gz, fastest with one gzip member per record; .warc) or pages (.html,
        .htm) with their images in the same folder: a file, a directory or a pattern.
      languages: ISO 639-1 codes of the pages to keep; empty: all. The quality filter knows English
        stop words only.
      min_language_probability: smallest probability that the classifier gives the language.
      quality_filter: apply Gopher's quality filter.
      repetition_filter: apply Gopher's repetition filter.
      near_duplicates: drop also pages that share about 0.8 of their shingles with a page that is
        kept, not only equal ones.
      min_image_side: in pixels; images with a smaller width or height are dropped.
      max_image_aspect: images whose longer side is more than this times the shorter are dropped.
      max_html_bytes: largest size of a page.
      max_record_seconds: largest CPU time of a page, so waiting does not count; a page that takes
        more is counted as too_slow.
      images: directory of images that were fetched before, named by the SHA-256 of their URL or by
        its path; "" = no directory.
      image_index: "file": the images of a page are in its WARC file. "input": they can be in any
        file of the input, and all files are read once more, one after the other.
      image_fetcher: "http": fetches a missing image, one at a time, with at most one request per
        second and host. "off": fetches nothing.
      explicit_filter: MODULE:FUNCTION, Page -> Page | Reject, for explicit content; "" = no filter.
    """

    input: str = ""
    languages: tuple[str, ...] = ("en",)
    min_language_probability: float = 0.5
    quality_filter: bool = True
    repetition_filter: bool = True
    near_duplicates: bool = False
    min_image_side: int = 64
    max_image_aspect: float = 3.0
    max_html_bytes: int = 10_000_000
    max_record_seconds: float = SECONDS
    images: str = ""
    image_index: str = "file"
    image_fetcher: str = "off"
    explicit_filter: str = ""

    def __post_init__(self) -> None:
        for name, known in (("image_index", ("file", "input")), ("image_fetcher", ("off", "http"))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"m3w: got --{name}={getattr(self, name)}, expected {' or '.join(known)}."
                )
        if not 0 <= self.min_language_probability <= 1:
            given = f"--min_language_probability={self.min_language_probability}"
            raise ValueError(f"m3w: got {given}, expected 0 to 1.")
        check_seconds("m3w", self.max_record_seconds)
        if self.min_image_side < 1 or self.max_image_aspect < 1 or self.max_html_bytes < 1:
            raise ValueError(
                "m3w: --min_image_side, --max_image_aspect and --max_html_bytes must be 1 or more."
            )
        if self.images and not epath.Path(self.images).is_dir():
            raise ValueError(
                f"m3w: --images={self.images} is no directory; give the one that holds the images."
            )
        if self.languages:
            check_languages(self.languages)
        if self.explicit_filter:
            _function(self.explicit_filter)

    @property
    def beside(self) -> tuple[str, ...]:
        """Suffixes of files that are read from the folders of HTML files."""
        return IMAGE_SUFFIXES


def build(request: M3WRequest, output: epath.Path, how: Execution) -> dict[str, int]:
    """Writes the pages as a dataset.

    Args:
      request: what to read and keep.
      output: an empty directory. For image_index=input all workers must see its file system.
      how: runner, workers and limits.

    Returns:
      The counts of the report.

    Raises:
      ValueError: there is no such input, or `collect` found too little in it.
    """
    files = input_files(request.input, (*warc.SUFFIXES, *HTML_SUFFIXES), IMAGE_SUFFIXES)
    archives = [file for file in files if has_suffix(file, warc.SUFFIXES)]
    index = output / _INDEX if request.image_index == "input" and archives else None
    if index and "://" in os.fspath(index):
        raise ValueError(
            f"m3w: --image_index=input needs an --output on a file system, got {output}."
        )
    try:
        if index:
            build_index(archives, index)
        read = functools.partial(read_file, request, index=os.fspath(index) if index else "")
        kind, passed_over = InterleavedPage.kind, files.passed_over
        return collect(files, read, kind, output, how, passed_over=passed_over).table()
    finally:
        if index:
            index.unlink(missing_ok=True)


def read_file(request: M3WRequest, path: str, index: str = "") -> Iterator[Found | Reject]:
    """Yields the pages of one file, and a Reject for everything left out. Bad input raises nothing.

    Args:
      request: what to keep.
      path: a WARC or HTML file.
      index: file that `build_index` wrote, with the images of all files; "" = no index.
    """
    read = _read_html if has_suffix(path, HTML_SUFFIXES) else _read_warc
    opened = WarcIndex.opened(index) if index else contextlib.nullcontext()
    with opened as other_files:
        yield from read(request, path, other_files)


def _read_warc(
    request: M3WRequest, path: str, other_files: WarcIndex | None
) -> Iterator[Found | Reject]:
    """Reads pages by random access, since an image can come before or after its page.

    Only the places of records are held in memory, not their content.
    """
    pages: list[Place] = []
    images = warc.ImagePlaces()
    for entry in warc.index(path):
        if isinstance(entry, Reject):
            yield entry
        elif isinstance(entry, warc.Entry) and entry.is_html:
            pages.append(entry.place)
        else:
            images.add(entry)
    if not pages:
        return
    with regular(path).open("rb") as file:

        def in_archives(url: str) -> bytes | Reject | None:
            place = images.find(url)
            if place:
                found = warc.read(place, ImageLimits.max_bytes, file)
            elif other_files and (place := other_files.find(url)):
                found = warc.read(place, ImageLimits.max_bytes)
            else:
                return None
            return found if isinstance(found, Reject) else found.body

        finders = (in_archives, *_finders(request))
        for place in pages:
            response = warc.read(place, request.max_html_bytes, file)
            if isinstance(response, Reject):
                yield response
            else:
                yield from _judged(request, response.body, response.url, response.charset, finders)


def _read_html(
    request: M3WRequest, path: str, other_files: WarcIndex | None
) -> Iterator[Found | Reject]:
    """Reads one HTML file.

    Its URL is file:///PATH, relative to the input directory, or to the one above all directories of
    the input. No reference leads out of the page's input directory.
    """
    del other_files  # a page in a folder shows images of the same folder
    root, base, name = page_folders(request.input, path)
    url = f"file:///{urllib.parse.quote(os.fsencode(name))}"
    try:
        with regular(path).open("rb") as file:
            body = file.read(request.max_html_bytes + 1)
    except OSError as error:
        yield Reject("unreadable_file", f"{path}: {error}", broken=True)
        return

    def in_folder(source: str) -> bytes | None:
        return page_image(root, base, source, ImageLimits.max_bytes)

    yield from _judged(request, body, url, "", (in_folder, *_finders(request)))


def _finders(request: M3WRequest) -> list[Find]:
    if not request.images:
        return []
    folder, limit = epath.Path(request.images), ImageLimits.max_bytes
    return [functools.partial(local_image, folder, max_bytes=limit)]


def _judged(
    request: M3WRequest, body: bytes, url: str, charset: str, finders: tuple[Find, ...]
) -> Iterator[Found | Reject]:
    """Yields the record of one page or a Reject, after a Reject for each image that is left out."""
    judge = functools.partial(_judged_in_time, request, body, url, charset, finders)
    yield from in_time(request.max_record_seconds, url, judge)


def _judged_in_time(
    request: M3WRequest, body: bytes, url: str, charset: str, finders: tuple[Find, ...]
) -> Iterator[Found | Reject]:
    page = _extracted(request, body, url, charset)
    if isinstance(page, Page):

        def find(source: str) -> bytes | Reject | None:
            for finder in finders:
                if (found := finder(source)) is not None:
                    return found
            return None

        limits = ImageLimits(request.min_image_side, request.max_image_aspect)
        fetch = _fetch if request.image_fetcher == "http" else _fetch_nothing
        page, rejects = with_images(page, find, limits, fetch)
        yield from rejects
    if isinstance(page, Page) and request.explicit_filter:
        page = _without_explicit(page, request.explicit_filter)
    yield page if isinstance(page, Reject) else _found(request, page)


def _extracted(request: M3WRequest, body: bytes, url: str, charset: str) -> Page | Reject:
    """Returns the page if it passes all filters of text."""
    page = html_to_page(body, url, charset, HtmlLimits(max_bytes=request.max_html_bytes))
    if isinstance(page, Reject):
        return page
    if not page.pictures:
        return Reject("no_image", page.url)
    judged = of_language(page, request.languages, request.min_language_probability)
    if isinstance(judged, Reject):
        return judged
    reject = quality(judged.text) if request.quality_filter else None
    if reject is None and request.repetition_filter:
        reject = repetition(judged.text)
    return dataclasses.replace(reject, detail=f"{url}: {reject.detail}") if reject else judged


def _without_explicit(page: Page, name: str) -> Page | Reject:
    judged = _function(name)(page)
    if not isinstance(judged, Page | Reject):
        raise TypeError(
            f"--explicit_filter={name} returned a {type(judged).__name__}, expected a "
            "Page or a Reject."
        )
    if isinstance(judged, Page) and not judged.pictures:
        return Reject("explicit", f"{page.url}: no image is left")
    return judged


def _found(request: M3WRequest, page: Page) -> Found:
    parts = tuple(part.data if isinstance(part, Picture) else part for part in page.parts)
    metadata = {
        "url": page.url,
        "language": page.language,
        "images": [picture.source for picture in page.pictures],
    }
    near = fingerprint(page.text) if request.near_duplicates else Fingerprint()
    keys = tuple(filter(None, (url_key(page.url), text_key(page.text), *near.keys)))
    return Found(InterleavedPage(parts, json.dumps(metadata, allow_nan=False)), keys, near.sketch)


def _fetch(url: str) -> bytes | Reject | None:
    return _fetcher()(url) if url.startswith(("http://", "https://")) else None


def _fetch_nothing(url: str) -> None:
    del url


@functools.cache
def _fetcher() -> ImageFetcher:
    """One fetcher per process: it remembers when it may ask a host again."""
    return ImageFetcher()


def _function(name: str) -> Callable[[Page], Any]:
    """Imports the function that --explicit_filter names."""
    return named_function("--explicit_filter", name, "my_filters.safe_search:judge")
