"""Makes records from the training examples of a benchmark. It runs on the workers.

A `BenchmarkPicture` has the examples that show it. Of it, a form makes

    answers     a record for each example: its prompt, and all right answers
    captions    one record: the picture, and the texts of all its examples
    documents   one record: the same texts
    pages       of the pictures of a unit: pages of several examples, in random order
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath

from data_pipelines.collect import TRAIN, VALIDATION, Found
from data_pipelines.deadline import SECONDS, TooSlow, check_seconds, in_time
from data_pipelines.formats.local_files import MAX_IMAGE_BYTES, read_inside
from data_pipelines.page import Reject
from data_pipelines.pairs import caption, stored_image
from data_pipelines.videos import stored_frames
from flamingo_jax.core import seeds
from flamingo_jax.core.paths import regular
from flamingo_jax.data.answers import ImageAnswers, VideoAnswers
from flamingo_jax.data.images import video
from flamingo_jax.data.images.read import encode_png
from flamingo_jax.data.schema import (
    CorruptRecord,
    Document,
    ImageText,
    InterleavedPage,
    Record,
    VideoText,
)

FORMS = ("answers", "captions", "documents", "pages")
REFERENCES = ("all", "first")

_MOST_CHARACTERS = 1 << 20  # of a prompt or an answer


@dataclasses.dataclass(frozen=True)
class BenchmarkRequest:
    """The options that decide the records of a benchmark.

    Attributes:
      input: directory of the official files, as for `evaluate`.
      task: name of the benchmark, as for `evaluate`, such as vqav2.
      form: answers (fine-tuning: a record for each example, with its right answers) | captions (one
        for each picture, with the texts of all its examples) | documents (the same texts without
        pictures) | pages (several examples each).
      leave_out: captions and documents: answers whose examples are left out, such as yes,no. A
        caption "is there a red shape? Answer: no" hardly says what the picture shows.
      references: answers: all the annotated answers, of which training draws one at each visit | or
        the first, the one that support examples show.
      validation: hold back the validation queries of `evaluate --config.split=validation
        --config.seed=SEED`, and all other examples that show their pictures.
      seed: decides the validation queries, and what is random in captions, documents and pages.
      num_support: size of the support sets that are drawn before the validation queries.
      page_size: examples of a page.
      fps: stored frames of a video per second.
      max_seconds: stored length of a video, from the start.
      frame_size: pixels of the longer side of a stored frame; a smaller frame keeps its size.
      max_record_seconds: largest CPU time of a picture or video; one that takes more is counted as
        too_slow.
    """

    input: str = ""
    task: str = ""
    form: str = "answers"
    leave_out: tuple[str, ...] = ()
    references: str = "all"
    validation: bool = True
    seed: int = 1
    num_support: int = 2048
    page_size: int = 8
    fps: float = 1.0
    max_seconds: float = 30.0
    frame_size: int = 480
    max_record_seconds: float = SECONDS

    def __post_init__(self) -> None:
        for name in ("task", "input"):
            if not getattr(self, name):
                raise ValueError(
                    f"benchmark: --{name} is missing, such as --task=vqav2 --input=DIR."
                )
        for name, values in (("form", FORMS), ("references", REFERENCES)):
            if getattr(self, name) not in values:
                raise ValueError(
                    f"benchmark: got --{name}={getattr(self, name)!r}, expected one of "
                    f"{', '.join(values)}."
                )
        if self.leave_out and self.form not in ("captions", "documents"):
            raise ValueError(
                f"benchmark: --leave_out={','.join(self.leave_out)} has no effect on "
                f"--form={self.form}: it is for captions and documents."
            )
        for name in ("num_support", "page_size", "fps", "max_seconds", "frame_size"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"benchmark: got --{name}={getattr(self, name)}, expected more than 0."
                )
        seeds.check(self.seed, "benchmark: --seed")
        check_seconds("benchmark", self.max_record_seconds)


@dataclasses.dataclass(frozen=True)
class BenchmarkExample:
    """One training example.

    Attributes:
      id: of the item.
      prompts: as in ImageAnswers.
      answer: the one that support examples show; "" = not known.
      answers: all right ones, as often as they were given.
    """

    id: str
    prompts: tuple[str, ...]
    answer: str
    answers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class BenchmarkPicture:
    """A picture or video, and the examples that show it.

    Attributes:
      name: in the report.
      path: its file; "": `read` returns the picture.
      read: returns an encoded picture or its pixels; a function that can be pickled.
      span: start and end of a segment in seconds; None = the whole video.
      examples: in the order of the annotations.
      held_back: True if validation queries show it.
      queries: ids of these queries.
    """

    name: str
    path: str = ""
    read: Callable[[], bytes | np.ndarray] | None = None
    span: tuple[float, float | None] | None = None
    examples: tuple[BenchmarkExample, ...] = ()
    held_back: bool = False
    queries: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A number of examples that the reader of the benchmark has left out."""

    reason: str
    number: int


Unit = tuple[BenchmarkPicture, ...] | LeftOut


def kind_of_records(form: str, *, are_videos: bool) -> str:
    """Returns the kind of the records of a form, a key of `schema.RECORDS`."""
    kinds: dict[str, type[Record]] = {
        "answers": VideoAnswers if are_videos else ImageAnswers,
        "captions": VideoText if are_videos else ImageText,
        "documents": Document,
        "pages": InterleavedPage,
    }
    return kinds[form].kind


def read_unit(request: BenchmarkRequest, kind: str, unit: Unit) -> Iterator[Found | Reject]:
    """Yields the records of one unit, and a Reject for each example or picture that is left out.

    Args:
      request: what to make of the examples.
      kind: of the records.
      unit: some pictures.
    """
    if isinstance(unit, LeftOut):
        yield from itertools.repeat(Reject(unit.reason), unit.number)
    elif request.form == "pages":
        yield from _pages(request, unit)
    else:
        make = _answers if request.form == "answers" else _texts
        for picture in unit:
            yield from in_time(
                request.max_record_seconds,
                picture.name,
                functools.partial(make, request, kind, picture),
            )


def _answers(
    request: BenchmarkRequest, kind: str, picture: BenchmarkPicture
) -> Iterator[Found | Reject]:
    visual = None
    for example in picture.examples:
        is_query = example.id in picture.queries
        prompts = tuple(map(_clean, example.prompts))
        given = example.answers if request.references == "all" else (example.answer,)
        answers = tuple(filter(None, map(_clean, given)))
        if picture.held_back and not is_query:
            yield Reject("shown_in_validation")
        elif not answers:
            yield Reject("no_answer", example.id)
        elif not all(prompts):
            yield Reject("broken_text", example.id, broken=True)
        else:
            visual = visual or _visual(request, kind, picture)
            if isinstance(visual, Reject):
                yield visual
                continue
            metadata = json.dumps({"id": example.id, "source": picture.name}, allow_nan=False)
            yield Found(
                visual(prompts=prompts, answers=answers, metadata=metadata),
                split=VALIDATION if is_query else TRAIN,
            )


def _texts(
    request: BenchmarkRequest, kind: str, picture: BenchmarkPicture
) -> Iterator[Found | Reject]:
    """Yields the caption, or the document, of a picture."""
    kept = [each for each in picture.examples if each.answer not in request.leave_out]
    texts = [text for example in kept if (text := _text(example))]
    if picture.held_back or not texts:
        yield Reject("shown_in_validation" if picture.held_back else "no_answer")
        return
    generator = seeds.generator(request.seed, _stream(request, picture))
    text = " ".join(texts[place] for place in generator.permutation(len(texts)).tolist())
    metadata = json.dumps({"source": picture.name}, allow_nan=False)
    if kind == Document.kind:
        yield Found(Document(text, metadata), split=TRAIN)
        return
    visual = _visual(request, kind, picture)
    yield (
        visual
        if isinstance(visual, Reject)
        else Found(visual(text=text, metadata=metadata), split=TRAIN)
    )


def _pages(
    request: BenchmarkRequest, pictures: tuple[BenchmarkPicture, ...]
) -> Iterator[Found | Reject]:
    """Yields pages of the examples of some pictures, in random order.

    The last examples, which do not fill a page, are left out, and counted.
    """
    parts: list[tuple[bytes, str]] = []
    for picture in pictures:
        texts = [text for example in picture.examples if (text := _text(example))]
        if picture.held_back or not texts:
            yield Reject("shown_in_validation" if picture.held_back else "no_answer")
            continue
        image = _image(picture)
        if isinstance(image, Reject):
            yield image
            continue
        parts += [(image, text) for text in texts]
    stream = _stream(request, pictures[0])
    order = seeds.generator(request.seed, stream).permutation(len(parts)).tolist()
    for start in range(0, len(order) - request.page_size + 1, request.page_size):
        chosen = [parts[place] for place in order[start : start + request.page_size]]
        yield Found(InterleavedPage(tuple(itertools.chain(*chosen))), split=TRAIN)
    yield from itertools.repeat(Reject("unfilled_page"), len(order) % request.page_size)


def _stream(request: BenchmarkRequest, picture: BenchmarkPicture) -> str:
    """Returns the name of a stream of random numbers; it does not depend on where the files lie."""
    return f"{request.task}/{request.form}/{picture.examples[0].id}"


def _text(example: BenchmarkExample) -> str:
    answer = _clean(example.answer)
    return " ".join((*map(_clean, example.prompts), answer)) if answer else ""


def _clean(text: str) -> str:
    """Returns the text without markers and double spaces; "" if it is broken."""
    clean = caption(text, _MOST_CHARACTERS)
    return "" if isinstance(clean, Reject) else clean


def _visual(
    request: BenchmarkRequest, kind: str, picture: BenchmarkPicture
) -> Callable[..., Record] | Reject:
    """Returns a function that makes a record of the picture or video."""
    if kind in (ImageText.kind, ImageAnswers.kind):
        image = _image(picture)
        record: Callable[..., Record] = ImageText if kind == ImageText.kind else ImageAnswers
        return image if isinstance(image, Reject) else functools.partial(record, image=image)
    try:
        with (
            regular(epath.Path(picture.path)).open("rb") as file,
            video.opened(file) as opened,
        ):
            start, end = picture.span or (0.0, None)
            frames, fps = stored_frames(
                opened,
                (start, opened.info.duration if end is None else end),
                fps=request.fps,
                max_seconds=request.max_seconds,
                frame_size=request.frame_size,
            )
    except CorruptRecord as error:
        return Reject(error.reason, f"{picture.name}: {error}", broken=True)
    except OSError as error:
        return Reject("missing_video", f"{picture.name}: {error}", broken=True)
    record = VideoText if kind == VideoText.kind else VideoAnswers
    return functools.partial(record, frames=frames, fps=fps)


def _image(picture: BenchmarkPicture) -> bytes | Reject:
    if picture.read is not None:
        try:
            read = picture.read()
        except TooSlow:
            raise
        except FileNotFoundError as error:
            return Reject("missing_image", f"{picture.name}: {error}", broken=True)
        except Exception as error:  # noqa: BLE001 - PIL's decoders raise errors of many kinds
            return Reject("not_an_image", f"{picture.name}: {error}", broken=True)
        image: bytes | Reject = read if isinstance(read, bytes) else encode_png(read)
    else:
        file = epath.Path(picture.path)
        image = read_inside(
            file.parent, file.name, max_bytes=MAX_IMAGE_BYTES, missing="missing_image"
        )
    return image if isinstance(image, Reject) else stored_image(image, picture.name)
