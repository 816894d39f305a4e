"""The markers that a model has around the texts and images of a sequence.

    paper         <BOS><image> Output: A cat.<EOC><image> Output:
    OpenFlamingo  <image>Output:A cat.<|endofchunk|><image>Output:    on MPT there is no <BOS>
    IDEFICS       <s>User:<around><image><around>What is it?          no <EOC>

Markers are stored as prompt.json next to the tokenizer, also in an export. Without this file they
are those of the paper. A prompt is written in the same way for all models: `<EOC>` for the end of a
chunk, and an image for all that is written in its place.
"""

from __future__ import annotations

import dataclasses
import json

from flamingo_jax.core.config import ConfigError, from_dict, to_dict
from flamingo_jax.core.paths import Path, PathLike, regular, write_json

EOC = "<EOC>"  # end of chunk: after the text that belongs to an image
IMAGE_TAG = "<image>"  # in the place of an image
FILE_NAME = "prompt.json"


@dataclasses.dataclass(frozen=True)
class Markers:
    """The markers of a model.

    Attributes:
        bos: True if a sequence begins with `<BOS>`.
        end_of_chunk: the piece or new token that is written for `<EOC>`, and that ends an answer.
            If the vocabulary has no such piece, chunks have no end.
        closes_chunks: True if the end of a chunk is written before every image and at the end of a
            document where it is missing.
        image: the pieces or new tokens that are written for an image. Plain text is split into
            pieces. What is before the first `<image>` belongs to the image before, and is not
            written again if the sequence already ends in it.
        after_image: what is between an image and the text after it, in the prompts of benchmarks: a
            space (paper, A.2). In other prompts a user writes it, or not.
        vocab_size: V, the rows of the model's table; the ids of new tokens follow. 0 = the number
            of the tokenizer's pieces.
        in_text: token -> id of those that a publisher added to the pieces, such as `<|im_start|>`.
            In a text each of them is one id.
        in_prompts: the same for tokens that begin, end or fill a document. They are one id in a
            prompt only, so that the text of a web page cannot end a document.
        ends: further ids that end an answer, besides the end of a chunk and `<EOS>`.
    """

    bos: bool = True
    end_of_chunk: str = EOC
    closes_chunks: bool = True
    image: tuple[str, ...] = (IMAGE_TAG,)
    after_image: str = " "
    vocab_size: int = 0
    in_text: dict[str, int] = dataclasses.field(default_factory=dict)
    in_prompts: dict[str, int] = dataclasses.field(default_factory=dict)
    ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if IMAGE_TAG not in self.image or not all(self.image):
            raise ValueError(
                f"{FILE_NAME}: image is {self.image}; expected pieces, {IMAGE_TAG!r} among them."
            )
        if self.vocab_size < 0:
            raise ValueError(
                f"{FILE_NAME}: vocab_size is {self.vocab_size}; expected a number of rows, or 0."
            )
        if "" in self.in_text or "" in self.in_prompts:
            raise ValueError(f"{FILE_NAME}: a token of in_text or in_prompts is empty.")


PAPER = Markers()


def read(directory: Path) -> Markers:
    """Reads prompt.json from `directory`; without this file, returns the markers of the paper.

    Raises:
        ValueError: the file is damaged, or has unknown fields.
    """
    file = directory / FILE_NAME
    if not file.exists():
        return PAPER
    try:
        fields = json.loads(regular(file).read_text())
        if isinstance(fields, dict):  # files of version 0.4.0 are of models without a space there
            fields = {"after_image": "", **fields}
        return from_dict(Markers, fields, where=FILE_NAME)
    except (ValueError, ConfigError) as error:
        raise ValueError(f"{file} does not say how prompts are written: {error}") from error


def write(directory: PathLike, markers: Markers) -> None:
    """Writes prompt.json into `directory`, unless the markers are those of the paper.

    Raises:
        PathError: the file cannot be written.
    """
    if markers != PAPER:
        write_json(Path(directory) / FILE_NAME, to_dict(markers))
