r"""Writes a page that shows samples of a dataset as the model sees them: `--pipeline=inspect`.

    python -m data_pipelines.run --pipeline=inspect --dataset=runs/demo/world/pages \
        --tokenizer=runs/demo/tokenizer --new_tokens="<EOC>,<image>" --length=96 --image_size=32 \
        --output=runs/demo/samples

    OUTPUT/index.html    images as augmented, tokens coloured by the image that they attend (phi),
                         loss weights, segments, padding
    OUTPUT/images/ROW-IMAGE-FRAME.png

The rows come from the loader itself. With the seed of a training run, and the name and the options
of the dataset in its config, they are the rows of that run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, cast

import numpy as np
from etils import epath

from data_pipelines.on_beam import Execution
from data_pipelines.sample_html import SampleRow, Token, Visual, render
from flamingo_jax.core import seeds
from flamingo_jax.data.config import AugmentConfig, DataConfig, DatasetConfig, Kind
from flamingo_jax.data.images.augment import augment
from flamingo_jax.data.images.read import encode_png
from flamingo_jax.data.interleave import tag_of
from flamingo_jax.data.mixture import Mixture
from flamingo_jax.data.rejected import describe_reasons
from flamingo_jax.data.rows import RECORD_KINDS
from flamingo_jax.data.schema import Batch
from flamingo_jax.data.sources import Source
from flamingo_jax.data.to_device import to_device
from flamingo_jax.tokenizers.base import Tokenizer
from flamingo_jax.tokenizers.load import load_tokenizer

_MOST_ROWS = 32  # of one batch: 32 rows of five images of 320 x 320 are 50 MB
_MOST_METADATA = 400  # characters
_CONTEXT = 8  # the text of a token can depend on so many tokens before it


@dataclasses.dataclass(frozen=True)
class InspectRequest:
    """The options that decide a page of samples.

    Attributes:
      dataset: directory of the dataset.
      tokenizer: directory or file of the tokenizer.
      kind: how records become rows: interleaved, pairs, captions or text; "" = interleaved for
        pages, pairs for images and videos, text for documents.
      split: of the dataset.
      name: of the dataset in the config of a training run. Name and seed decide which rows are
        drawn.
      seed: of the training run.
      num_samples: rows to show.
      length: L, tokens per row.
      max_images: N, images per row of interleaved pages.
      num_frames: frames of a clip; 1 = still images only.
      frame_rate: frames per second of a clip.
      image_size: side of the images, in pixels.
      p_next: probability that the text of a page attends the next image.
      space_prefix: probability that a space is put before the text of a pair.
      documents_per_row: documents reserved for each row of packed text.
      rows_per_group: rows of packed text that share their documents.
      new_tokens: those of the model, in its order.
      augment: flip and recolour images as in training.
    """

    dataset: str = ""
    tokenizer: str = ""
    kind: str = ""
    split: str = "train"
    name: str = "inspect"
    seed: int = 0
    num_samples: int = 32
    length: int = 256
    max_images: int = 5
    num_frames: int = 8
    frame_rate: float = 1.0
    image_size: int = 320
    p_next: float = 0.5
    space_prefix: float = 0.5
    documents_per_row: int = 8
    rows_per_group: int = 1
    new_tokens: tuple[str, ...] = ("<EOC>",)
    augment: bool = True

    def __post_init__(self) -> None:
        for name in ("dataset", "tokenizer"):
            if not getattr(self, name):
                raise ValueError(f"inspect: --{name} is missing: give the directory of a {name}.")
        if self.kind and self.kind not in RECORD_KINDS:
            raise ValueError(
                f"inspect: got --kind={self.kind}, expected one of {', '.join(RECORD_KINDS)}."
            )
        seeds.check(self.seed, "inspect: --seed")
        if self.num_samples < 1:
            raise ValueError(f"inspect: got --num_samples={self.num_samples}, expected at least 1.")


def build(request: InspectRequest, output: epath.Path, how: Execution) -> dict[str, int]:
    """Writes OUTPUT/index.html and the images that it shows.

    Args:
      request: what to show.
      output: an empty directory.
      how: not used; one process makes the page.

    Returns:
      {"samples": rows shown, "images": images (or clips) shown, "corrupt_records": records that
      were skipped}.

    Raises:
      ValueError: the records of the dataset are not of the requested kind.
      FileNotFoundError: there is no dataset, or no tokenizer.
    """
    del how
    tokenizer = load_tokenizer(request.tokenizer, request.new_tokens)
    kind = request.kind or _kind_of(Source(request.dataset, request.split).kind)
    dataset = DatasetConfig(
        kind=cast(Kind, kind),
        path=request.dataset,
        split=request.split,
        batch_size=min(request.num_samples, _MOST_ROWS),
        length=request.length,
        max_images=request.max_images,
        num_frames=request.num_frames if kind in ("pairs", "captions") else 1,
        frame_rate=request.frame_rate,
        p_next=request.p_next,
        space_prefix=request.space_prefix,
        documents_per_row=request.documents_per_row,
        rows_per_group=request.rows_per_group,
    )
    config = DataConfig(
        request.tokenizer, request.image_size, {request.name: dataset}, max_corrupt=1.0
    )
    mixture = Mixture(config, seed=request.seed, tokenizer=tokenizer)
    (output / "images").mkdir()
    samples: list[SampleRow] = []
    batches = -(-request.num_samples // dataset.batch_size)
    for t in range(batches):
        batch = mixture.batch(request.name, t)
        if request.augment and dataset.num_visuals:
            on_device = to_device(batch)
            augmented = augment(on_device.frames, on_device.media_key, AugmentConfig())
            batch = dataclasses.replace(batch, frames=np.asarray(augmented))
        for row in range(min(dataset.batch_size, request.num_samples - len(samples))):
            position = t * dataset.batch_size + row
            metadata = mixture.record(request.name, position).metadata if kind != "text" else ""
            visuals = tuple(_visuals(batch, row, position, output))
            title = f"row {position}"
            samples.append(_sample(batch, row, title, visuals, tokenizer, kind, metadata))
    rejected = mixture.rejected.get(request.name, {})
    facts = _facts(samples, dataset, request) | {
        "corrupt records": describe_reasons(rejected) or "none"
    }
    treated = "augmented as in training" if request.augment else "not augmented"
    pictures = f"; images {request.image_size} x {request.image_size}, {treated}"
    made = (
        f"{request.dataset} ({request.split}), rows 0 to {len(samples) - 1} of dataset "
        f"{request.name!r} with seed {request.seed}, as {kind}; tokenizer "
        f"{request.tokenizer}{pictures if dataset.num_visuals else ''}"
    )
    page = render("Samples as the model sees them", made, facts, samples)
    (output / "index.html").write_text(page)
    return {
        "samples": len(samples),
        "images": sum(len(sample.visuals) for sample in samples),
        "corrupt_records": sum(rejected.values()),
    }


def direction(
    tokens: Sequence[int], phi: Sequence[int], tag: Sequence[int]
) -> Literal["", "previous", "next"]:
    """Returns which image the text of a page attends, found from its phi.

    Args:
      tokens: ids of a row, without padding.
      phi: the image that each attends.
      tag: ids of one <image> tag.

    Returns:
      "previous" or "next"; "" if the row does not show it.
    """
    for start in range(len(tokens)):
        end = start + len(tag)
        if list(tokens[start:end]) != list(tag):
            continue
        if start:  # the token before a tag attends the tag's image, or an earlier one
            return "next" if phi[start - 1] == phi[start] else "previous"
        if end < len(tokens):
            return "previous" if phi[end] == phi[start] else "next"
    return ""


def texts_of(tokens: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """Returns the text of each token at its place in the row. Joined, they are the whole text.

    <BOS>, <EOS> and padding are given by their names. A token that is only a part of a character
    has the text of a broken character, and the last part has the text of the whole character.
    """
    names = {tokenizer.pad_id: "<pad>", tokenizer.bos_id: "<BOS>", tokenizer.eos_id: "<EOS>"}
    texts = []
    for place, token in enumerate(tokens):
        if token in names:
            texts.append(names[token])
            continue
        start = max(place - _CONTEXT, 0)
        before = tokenizer.decode(tokens[start:place])
        after = tokenizer.decode(tokens[start : place + 1])
        pairs = zip(before, after, strict=False)
        changed = next((k for k, (old, new) in enumerate(pairs) if old != new), len(before))
        texts.append(after[changed:])
    return texts


def _kind_of(records: str) -> str:
    """Returns how records of a kind become rows by default."""
    return next(kind for kind, accepted in RECORD_KINDS.items() if records in accepted)


def _sample(
    batch: Batch,
    row: int,
    title: str,
    visuals: tuple[Visual, ...],
    tokenizer: Tokenizer,
    kind: str,
    metadata: str,
) -> SampleRow:
    """Describes one row of a batch."""
    length = int((batch.segment[row] > 0).sum())
    tokens, phi = batch.tokens[row, :length].tolist(), batch.media_index[row, :length].tolist()
    new = {tokenizer.bos_id, tokenizer.eos_id}
    shown = tuple(
        Token(text, image, weight, segment, token in new or token >= tokenizer.vocab_size)
        for token, text, image, weight, segment in zip(
            tokens,
            texts_of(tokens, tokenizer),
            phi,
            batch.loss_weights[row, :length].tolist(),
            batch.segment[row, :length].tolist(),
            strict=True,
        )
    )
    notes = [f"{length} of {batch.tokens.shape[1]} tokens"]
    if kind == "text":
        notes.append(f"{shown[-1].segment if shown else 0} documents")
    else:
        name = "clip" if any(len(visual.frames) > 1 for visual in visuals) else "image"
        notes.append(f"{len(visuals)} {name}{'s' * (len(visuals) != 1)}")
    attends = direction(tokens, phi, tag_of(tokenizer).own) if kind == "interleaved" else ""
    if len(metadata) > _MOST_METADATA:
        metadata = metadata[:_MOST_METADATA] + "…"
    padding = batch.tokens.shape[1] - length
    return SampleRow(title, tuple(notes), shown, visuals, padding, attends, metadata)


def _visuals(batch: Batch, row: int, position: int, output: epath.Path) -> Iterator[Visual]:
    """Writes the visual inputs of a row, from its shard's pool, to files."""
    for number, slot in enumerate(batch.media_slot[row].tolist(), start=1):
        if slot < 0:
            continue
        files = []
        for place in np.flatnonzero(batch.frame_mask[slot]).tolist():
            files.append(f"images/{position}-{number}-{place + 1}.png")
            (output / files[-1]).write_bytes(encode_png(batch.frames[slot, place]))
        yield Visual(tuple(files), batch.frames.shape[2])


def _facts(
    samples: Sequence[SampleRow], dataset: DatasetConfig, request: InspectRequest
) -> dict[str, str]:
    """Returns what the page says at the top about all its rows."""
    tokens = sum(len(sample.tokens) for sample in samples)
    predicted = sum(token.weight > 0 for sample in samples for token in sample.tokens)
    facts = {
        "rows": str(len(samples)),
        "tokens that are padding": f"{1 - tokens / (len(samples) * request.length):.1%}",
        "tokens predicted": f"{predicted / (len(samples) * request.length):.1%}",
    }
    if dataset.num_visuals:
        images = sum(len(sample.visuals) for sample in samples)
        room = len(samples) * dataset.num_visuals
        attending = sum(token.phi > 0 for sample in samples for token in sample.tokens)
        facts |= {
            "images per row": f"{images / len(samples):.2f} of {dataset.num_visuals}",
            "pool that is padding": f"{1 - images / room:.1%} of {room}",
            "tokens with an image": f"{attending / max(tokens, 1):.1%}",
        }
    if dataset.kind == "interleaved":
        attends = [sample.attends for sample in samples]
        numbers = f"next {attends.count('next')}, previous {attends.count('previous')}"
        facts["text attends image"] = numbers
    if dataset.kind == "text":
        documents = sum(sample.tokens[-1].segment for sample in samples if sample.tokens)
        facts["documents per row"] = f"{documents / len(samples):.2f}"
    return facts
