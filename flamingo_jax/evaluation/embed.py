"""`--task=embed`: writes the features of a dataset's images as an array, for deduplication.

It asks no questions.

    --config.data.embed=DIR           records (dataset_info.json): all images of the split
                                      `--config.data.embed_split`, "train" by default. Keys are
                                      RECORD/IMAGE HASH, as --pipeline=dedup of data_pipelines.run
                                      reads
                                      or a folder of image files, also in folders: keys are their
                                      paths in it
    OUTPUT/embeddings.npy, keys.txt   see data/embeddings.py; the features are not normalised
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
import tqdm

from flamingo_jax.core import processes
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.data.config import Background, ImageFit
from flamingo_jax.data.embeddings import EmbeddingWriter, record_key, writing
from flamingo_jax.data.files import IMAGE_SUFFIXES, image_files
from flamingo_jax.data.schema import CorruptRecord, images_of
from flamingo_jax.data.sources import Source
from flamingo_jax.evaluation.task import TaskError, directory
from flamingo_jax.inference.vision_features import VisionEncoder
from flamingo_jax.inference.visuals import PromptError, load_frames

NAME = "embed"
_CHUNK = 1024  # images that are decoded at once, on all cores


def is_asked_for(tasks: Sequence[str]) -> bool:
    """Returns True if the task of this run is to write embeddings.

    Raises:
        TaskError: there are other tasks too; they have another kind of report.
    """
    if NAME in tasks and len(tasks) > 1:
        raise TaskError(
            f"--task={','.join(tasks)}: {NAME} is a run of its own. Leave the others out."
        )
    return NAME in tasks


class Images:
    """The images of a directory, read once, in order.

    Attributes:
        place: the directory.
    """

    def __init__(self, data: Mapping[str, str]) -> None:
        """Opens the dataset, or lists the image files.

        Raises:
            TaskError: no directory is given, or it has neither a dataset nor an image.
        """
        self.place = directory(data, NAME, NAME)
        self._source: Source | None = None
        self._files: list[Path] = []
        if (Path(self.place) / "dataset_info.json").exists():
            try:
                self._source = Source(self.place, data.get("embed_split", "train"))
            except (ValueError, FileNotFoundError) as error:
                raise TaskError(
                    f"{error} Another split is chosen with --config.data.embed_split=NAME."
                ) from error
            return
        self._files = list(image_files(self.place))
        if not self._files:
            raise TaskError(
                f"--config.data.{NAME}={self.place}: there is no dataset (dataset_info.json) and "
                f"no image file ending in {', '.join(IMAGE_SUFFIXES)} there."
            )

    def __len__(self) -> int:
        """The number of records, or of files."""
        return len(self._files) if self._source is None else len(self._source)

    def __iter__(self) -> Iterator[tuple[int, list[tuple[str, Callable[[], bytes]]]]]:
        """Yields (number, [(key, function that reads the image's bytes)]) per record or file."""
        for number, file in enumerate(self._files):
            yield number, [(os.path.relpath(file, self.place), file.read_bytes)]
        for number in range(0 if self._source is None else len(self._source)):
            assert self._source is not None
            try:
                found = images_of(self._source[number])
            except CorruptRecord:
                found = (b"",)  # counted as an image that cannot be read
            yield (
                number,
                [
                    (record_key(number, image, data), functools.partial(bytes, data))
                    for image, data in enumerate(found)
                ],
            )


def write(encoder: VisionEncoder, images: Images, output: PathLike) -> str:
    """Writes the features of all images that can be read.

    All processes call it together; the first one writes.

    Args:
        encoder: the model's vision encoder.
        images: the images.
        output: directory of embeddings.npy and keys.txt.

    Returns:
        A sentence with the numbers of images that were embedded and left out.

    Raises:
        TaskError: no image could be read.
    """
    is_first = jax.process_index() == 0
    passes = encoder.passes
    decode = functools.partial(
        _try_decode,
        image_size=passes.image_size,
        image_fit=passes.image_fit,
        background=passes.background,
        max_tiles=passes.max_tiles,
    )
    hidden = not (is_first and sys.stderr.isatty())
    left_out = 0

    def chunks() -> Iterator[tuple[list[str], np.ndarray]]:
        nonlocal left_out
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            numbered = ((number, image) for number, found in images for image in found)
            with tqdm.tqdm(
                total=len(images), desc=NAME, unit="record", disable=hidden, dynamic_ncols=True
            ) as bar:
                while chunk := list(itertools.islice(numbered, _CHUNK)):
                    decoded = list(pool.map(decode, (get for _, (_, get) in chunk)))
                    good = [
                        (key, frames)
                        for (_, (key, _)), frames in zip(chunk, decoded, strict=True)
                        if frames is not None
                    ]
                    left_out += len(chunk) - len(good)
                    if good:
                        yield [key for key, _ in good], encoder([frames for _, frames in good])
                    bar.update(chunk[-1][0] + 1 - bar.n)

    pieces = chunks()
    if (first := next(pieces, None)) is None:
        raise TaskError(
            f"--config.data.{NAME}={images.place}: none of its {left_out} images can be read. "
            "Check the path."
        )
    num_rows = 0
    if is_first:
        with writing(output, first[1].shape[1]) as writer:
            num_rows = _add_all(writer, itertools.chain([first], pieces))
    else:
        num_rows = sum(len(keys) for keys, _ in itertools.chain([first], pieces))
    processes.from_first_process("")  # the others wait until the files are there
    return f"{num_rows} images of {images.place} are embedded, {left_out} could not be read"


def _add_all(writer: EmbeddingWriter, pieces: Iterator[tuple[list[str], np.ndarray]]) -> int:
    for keys, rows in pieces:
        writer.add(keys, rows)
    return writer.num_rows


def _try_decode(
    get: Callable[[], bytes],
    *,
    image_size: int,
    image_fit: ImageFit,
    background: Background,
    max_tiles: int,
) -> np.ndarray | None:
    """Returns uint8[H, W, 3], a square or the canvas of tiles; None if it cannot be read."""
    try:
        return load_frames(
            get(), image_size, image_fit=image_fit, background=background, max_tiles=max_tiles
        )[0]
    except (PromptError, OSError):
        return None
