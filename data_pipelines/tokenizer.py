r"""Trains a SentencePiece model on the texts of a dataset.

    python -m data_pipelines.run --pipeline=tokenizer --input=runs/demo/world/text \
        --output=runs/demo/tokenizer --model_type=word

The output contains tokenizer.model. The new tokens of a model (`<EOC>`, `<image>`) are not part of
it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Literal, cast

from etils import epath

from flamingo_jax.data.schema import InterleavedPage
from flamingo_jax.data.sources import Source
from flamingo_jax.tokenizers.base import FILE_NAME
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer, train_sentencepiece

MODEL_TYPES = ("unigram", "bpe", "word", "char")


@dataclasses.dataclass(frozen=True)
class TokenizerRequest:
    """The options that decide a tokenizer.

    Attributes:
      input: directory of a dataset of any kind; its split "train" is read.
      vocab_size: number of pieces; fewer if the text has not so many.
      model_type: one of MODEL_TYPES; "word" makes each word one piece.
      input_files: identifies the content of the input: its dataset_info.json, and the request that
        it was made from if that is known.
    """

    input: str = ""
    vocab_size: int = 32_000
    model_type: str = "unigram"
    input_files: str = dataclasses.field(init=False, default="")

    def __post_init__(self) -> None:
        if self.model_type not in MODEL_TYPES:
            raise ValueError(
                f"tokenizer: got model_type={self.model_type!r}, expected one of "
                f"{', '.join(MODEL_TYPES)}."
            )
        info = epath.Path(self.input) / "dataset_info.json"
        if not self.input or not info.exists():
            raise ValueError(
                f"tokenizer: there is no dataset at {self.input!r} (no dataset_info.json); "
                "give the directory of one with --input, such as runs/demo/world/text."
            )
        made_by = [place / "pipeline.json" for place in (info.parent, info.parent.parent)]
        origin = next(
            (json.loads(file.read_text())["request"] for file in made_by if file.exists()), None
        )
        object.__setattr__(
            self,
            "input_files",
            json.dumps([json.loads(info.read_text()), origin], sort_keys=True, allow_nan=False),
        )


def build(request: TokenizerRequest, output: epath.Path) -> dict[str, int]:
    """Trains the tokenizer and writes OUTPUT/tokenizer.model.

    Returns:
      {"texts": number of texts read, "pieces": vocabulary}.
    """
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        for text in _texts(request.input):
            count += 1
            yield text

    model_type = cast(Literal["unigram", "bpe", "word", "char"], request.model_type)
    train_sentencepiece(lines(), output / FILE_NAME, request.vocab_size, model_type)
    return {"texts": count, "pieces": SentencePieceTokenizer.load(output).vocab_size}


def _texts(directory: str) -> Iterator[str]:
    """Yields the texts of the training split of a dataset of any kind, in order."""
    source = Source(directory)
    for index in range(len(source)):
        record = source[index]
        yield from record.texts if isinstance(record, InterleavedPage) else (record.text,)
