r"""Measures the loader against bare decoding, and another loader, of the same files.

    python -m tests.benchmarks.loader --directory=/tmp/loader_benchmark \
        --peer="PYTHON tests/benchmarks/open_flamingo_loader.py"

    decode   images per second and core, from stored records to batches of 320 px; on the same
             files, the bare decode of libjpeg-turbo at the smallest eighth of the size that is not
             below 320 px, and the peer
    text     tokens per second and core, from stored documents to packed rows of 2,048 tokens
    memory   resident memory after 1,000 and after 10,000 batches

Everything runs in one process; "per core" is per second of processor time. Runs alternate, and the
best of three counts, since other programs can only slow a run down. The files are generated: smooth
noise, shapes and grain as JPEGs of quality 90, a quarter each of 640x480, 500x375, 1024x768 and
320x240. The peer is a command that gets the path of a tar of the same files (img2dataset's layout)
and the batch size, and prints images per second of processor time.
"""

from __future__ import annotations

import functools
import io
import resource
import shlex
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import simplejpeg
from absl import app, flags
from etils import epath
from PIL import Image, ImageDraw

from data_pipelines.write_records import write_records
from flamingo_jax.data.config import DataConfig, DatasetConfig
from flamingo_jax.data.mixture import Mixture
from flamingo_jax.data.schema import Document, ImageText
from flamingo_jax.tokenizers.base import Tokenizer
from flamingo_jax.tokenizers.load import load_tokenizer
from flamingo_jax.tokenizers.sentencepiece import train_sentencepiece

_DIRECTORY = flags.DEFINE_string(
    "directory", None, "Where the made-up files are kept; made if it is not there.", required=True
)
_NUM_IMAGES = flags.DEFINE_integer("num_images", 400, "Pictures to make.")
_PEER = flags.DEFINE_string(
    "peer", "", "Command of another loader: prints images per second, given TAR and BATCH_SIZE."
)
_PARTS = flags.DEFINE_list("parts", ["decode", "text", "memory"], "What to measure.")

SIZE = 320
BATCH = 32
SIZES = ((640, 480), (500, 375), (1024, 768), (320, 240))
_ROUNDS = 3
_WORDS = 5_000


def photo(width: int, height: int, rng: np.random.Generator) -> bytes:
    """Returns a made-up picture that takes about as many bytes as a photograph.

    Noise of three sizes, shapes, and grain.
    """
    picture = np.zeros((height, width, 3), np.float32)
    for scale in (8, 32, 128):
        small = rng.integers(0, 256, (height // scale + 2, width // scale + 2, 3)).astype(np.uint8)
        picture += np.asarray(
            Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), np.float32
        ) * (scale / 168)
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, r = (int(rng.integers(*ends)) for ends in ((0, width), (0, height), (10, width // 5)))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(rng.integers(0, 256, 3).tolist()))
    grain = np.asarray(image, np.float32) + rng.normal(0, 4, (height, width, 1)).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def make(directory: epath.Path, number: int) -> None:
    """Writes pairs, pictures.tar (the same), documents and a tokenizer, unless they are there."""
    if (directory / "pictures.tar").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    words = [
        "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), int(rng.integers(2, 10))))
        for _ in range(_WORDS)
    ]
    frequencies = 1.0 / np.arange(1, _WORDS + 1)

    def text(length: int) -> str:
        return " ".join(rng.choice(words, length, p=frequencies / frequencies.sum()))

    train_sentencepiece((text(200) for _ in range(300)), directory / "tokenizer.model", 4_000)
    documents = [
        text(int(length)) for length in rng.lognormal(5.5, 1.0, 2_000).clip(20, 20_000)
    ]  # median about 250 words
    write_records(directory / "documents", "document", {"train": lambda: map(Document, documents)})
    pairs = [ImageText(photo(*SIZES[k % len(SIZES)], rng), text(12)) for k in range(number)]
    write_records(directory / "pairs", "image_text", {"train": lambda: pairs})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for k, pair in enumerate(pairs):
            for suffix, content in (("jpg", pair.image), ("txt", pair.text.encode())):
                member = tarfile.TarInfo(f"{k:09d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (directory / "pictures.tar").write_bytes(buffer.getvalue())


def loader(
    directory: epath.Path, name: str, tokenizer: Tokenizer, **dataset: object
) -> Callable[[int], object]:
    """Returns batch(t) of one dataset, read in this thread with nothing kept in memory."""
    config = DatasetConfig(path=str(directory / name), **dataset)  # type: ignore[arg-type]
    mixture = Mixture(
        DataConfig("", SIZE, {name: config}), seed=0, tokenizer=tokenizer, cache_bytes=0
    )
    return lambda t: mixture.batch(name, t)


def read(batch: Callable[[int], object], numbers: range) -> None:
    """Reads batches without keeping them, like training steps."""
    for t in numbers:
        batch(t)


def bare_decode(files: Sequence[bytes]) -> None:
    """What no loader can do without.

    Libjpeg-turbo, at the smallest eighth of the size that is not below 320 px.
    """
    for encoded in files:
        height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
        scale = SIZE / max(width, height)
        simplejpeg.decode_jpeg(
            encoded,
            "RGB",
            min_height=round(height * scale),
            min_width=round(width * scale),
            min_factor=1,
        )


def seconds(function: Callable[[], object]) -> float:
    """Returns the seconds of processor time that a call takes, over all threads of this process.

    Others do not count.
    """
    start = time.process_time()
    function()
    return time.process_time() - start


def decode(directory: epath.Path, tokenizer: Tokenizer) -> Iterator[str]:
    """Yields the lines of the part "decode"."""
    with tarfile.open(fileobj=io.BytesIO((directory / "pictures.tar").read_bytes())) as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(".jpg")]
        files = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    batch = loader(directory, "pairs", tokenizer, kind="pairs", batch_size=BATCH, length=32)
    batches = len(files) // BATCH
    ours, bare, peer = [], [], []
    for turn in range(_ROUNDS):
        numbers = range(turn * batches, (turn + 1) * batches)
        ours.append(batches * BATCH / seconds(functools.partial(read, batch, numbers)))
        bare.append(len(files) / seconds(lambda: bare_decode(files)))
        if _PEER.value:
            command = [*shlex.split(_PEER.value), str(directory / "pictures.tar"), str(BATCH)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peer.append(float(done.stdout.split()[-1]))
    size, ratio = np.mean([len(file) for file in files]) / 1024, max(ours) / max(bare)
    yield (
        f"{len(files)} files of {size:.0f} KiB on average; images per second and core, best of "
        f"{_ROUNDS}:"
    )
    yield (f"  records to batches {max(ours):.0f}; bare decode {max(bare):.0f}; ratio {ratio:.2f}")
    if peer:
        yield f"  the peer {max(peer):.0f}; ratio {max(ours) / max(peer):.2f}"


def text(directory: epath.Path, tokenizer: Tokenizer) -> Iterator[str]:
    """Yields the lines of the part "text"."""
    batch = loader(
        directory,
        "documents",
        tokenizer,
        kind="text",
        batch_size=8,
        length=2048,
        documents_per_row=8,
    )
    best, filled = 0.0, 0.0
    for turn in range(_ROUNDS):
        start = time.process_time()
        batches = [batch(8 * turn + t) for t in range(8)]
        rows = [np.asarray(each.segment > 0) for each in batches]  # type: ignore[attr-defined]
        best = max(best, np.sum(rows) / (time.process_time() - start))
        filled = float(np.mean(rows))
    yield (
        f"text: {best:,.0f} tokens per second and core; rows filled {filled:.1%} with 8 documents "
        "for each"
    )


def memory(directory: epath.Path, tokenizer: Tokenizer) -> Iterator[str]:
    """Yields the lines of the part "memory"."""
    batch = loader(
        directory, "documents", tokenizer, kind="text", batch_size=2, length=64, documents_per_row=1
    )
    resident = {}
    for t in range(10_000):
        batch(t)
        if t + 1 in (1_000, 10_000):
            pages = int((epath.Path("/proc/self/statm")).read_text().split()[1])
            resident[t + 1] = pages * resource.getpagesize() / 2**20
    yield "memory: " + ", ".join(
        f"{size:.0f} MiB after {count:,} batches" for count, size in resident.items()
    )


def main(argv: Sequence[str]) -> None:
    """Makes the files and prints what was measured."""
    del argv
    directory = epath.Path(_DIRECTORY.value)
    make(directory, _NUM_IMAGES.value)
    tokenizer = load_tokenizer(directory)
    for part in _PARTS.value:
        for line in {"decode": decode, "text": text, "memory": memory}[part](directory, tokenizer):
            print(line, flush=True)


if __name__ == "__main__":
    app.run(main)
