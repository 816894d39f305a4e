"""What stands around texts and images in a model's sequences.

The paper's signs, or those of a model that was trained elsewhere.

    paper         <BOS><image>Output: A cat.<EOC><image>Output:
    OpenFlamingo  <image>Output:A cat.<|endofchunk|><image>Output:                              on MPT there is no <BOS>
    IDEFICS       <s>User:<around><image><around>What is it?                  no <EOC>

They lie beside the tokenizer as prompt.json, in an export too; without that file they are the
paper's. In a prompt one writes `<EOC>` for whatever ends a chunk, and an image for whatever stands
in its place.
"""

from __future__ import annotations

import dataclasses
import json

from flamingo_jax.core.config import ConfigError, from_dict, to_dict
from flamingo_jax.core.paths import Path, PathLike, write_json

EOC = "<EOC>"  # end of chunk: after the text that belongs to an image
IMAGE_TAG = "<image>"  # where an image stands
FILE_NAME = "prompt.json"


@dataclasses.dataclass(frozen=True)
class Markers:
    """The signs of a model.

    Attributes:
        bos: whether a sequence begins with `<BOS>`.
        end_of_chunk: the piece or new token that `<EOC>` stands for, and that ends an answer. Where
            the vocabulary has none of this name, there is no end of chunk.
        closes_chunks: whether an end of chunk stands before every image and at the end of a
            document, and is written where it is missing.
        image: the pieces or new tokens that are written where an image stands; plain text is cut
            into pieces. What comes before the first `<image>` still belongs to the image before;
            where the sequence ends in it already, it is not written again.
        vocab_size: V, the rows of the model's table, behind which its new tokens have their ids; 0
            = the tokenizer's pieces.
    """

    bos: bool = True
    end_of_chunk: str = EOC
    closes_chunks: bool = True
    image: tuple[str, ...] = (IMAGE_TAG,)
    vocab_size: int = 0

    def __post_init__(self) -> None:
        if IMAGE_TAG not in self.image or not all(self.image):
            raise ValueError(
                f"{FILE_NAME}: image is {self.image}; expected pieces, {IMAGE_TAG!r} among them."
            )
        if self.vocab_size < 0:
            raise ValueError(
                f"{FILE_NAME}: vocab_size is {self.vocab_size}; expected a number of rows, or 0."
            )


PAPER = Markers()


def read(directory: Path) -> Markers:
    """Returns what prompt.json in `directory` says; the paper's signs if there is none.

    Raises:
        ValueError: the file is damaged, or says what is not known.
    """
    file = directory / FILE_NAME
    if not file.exists():
        return PAPER
    try:
        return from_dict(Markers, json.loads(file.read_text()), where=FILE_NAME)
    except (ValueError, ConfigError) as error:
        raise ValueError(f"{file} does not say how prompts are written: {error}") from error


def write(directory: PathLike, markers: Markers) -> None:
    """Writes prompt.json into `directory`; no file where the signs are the paper's.

    Raises:
        PathError: it cannot be written.
    """
    if markers != PAPER:
        write_json(Path(directory) / FILE_NAME, to_dict(markers))
