"""From a prompt, text and images in reading order, to tokens, phi and a pool of images (paper, Figure 8 and Appendix A.2).

    [cat.jpg, "Output: A cat.<EOC>", dog.jpg, "Output:"]
        -> <BOS> <image> Output : A cat . <EOC> <image> Output :
    phi      0      1      1    1 1  1  1   1      2      2   2        media_index: each token attends the last image before it
    pool   [cat, dog]                                                  an image that several prompts show is there once

`<BOS>` and the `<image>` tags are written here, and so is an `<EOC>` that is missing before an image; the last chunk stays open for the answer.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import PIL.Image

from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.data import images
from flamingo_jax.data.interleave import IMAGE, Marker, tokenise
from flamingo_jax.data.schema import Batch
from flamingo_jax.data.tokenizer import Tokenizer


class PromptError(ValueError):
    """A prompt that cannot be read."""


@dataclasses.dataclass(frozen=True)
class Image:
    """An image file in a prompt, local or gs://: `[Image("cat.jpg"), "Output:"]`."""

    path: PathLike


Visual: TypeAlias = "Image | PIL.Image.Image | np.ndarray | bytes | Path"
Part: TypeAlias = "str | Visual"
Prompt: TypeAlias = "str | Sequence[Part]"


@dataclasses.dataclass(frozen=True, eq=False)
class TokenisedPrompt:
    """One prompt in the model's terms.

    Attributes:
        tokens: int32[L], `<BOS>` first.
        media_index: int32[L] phi, 0 = no image.
        visuals: the images, in order; frames are read only by `collate`.
    """

    tokens: np.ndarray
    media_index: np.ndarray
    visuals: tuple[Visual, ...]


def parse(template: str) -> list[Part]:
    """Splits "{cat.jpg}Output: A cat.<EOC>{dog.jpg}Output:" into images and text.

    `{{` and `}}` stand for literal braces.

    Args:
        template: text with image files in braces.

    Returns:
        Parts of a prompt: `Image` and str.

    Raises:
        PromptError: an unclosed or unopened brace, empty braces, or a file that is not there.
    """
    parts: list[Part] = []
    text, at = "", 0
    while at < len(template):
        if template[at : at + 2] in ("{{", "}}"):
            text, at = text + template[at], at + 2
        elif template[at] == "}":
            raise PromptError(
                f"prompt: '}}' at character {at} closes no brace in {_around(template, at)}. Write '}}}}' for a literal brace."
            )
        elif template[at] == "{":
            end = template.find("}", at)
            if end < 0 or "{" in template[at + 1 : end]:
                raise PromptError(
                    f"prompt: the brace at character {at} is not closed in {_around(template, at)}. Write {{path}} for an image, '{{{{' for a literal brace."
                )
            parts += [text] if text else []
            parts.append(_file(template[at + 1 : end].strip(), at))
            text, at = "", end + 1
        else:
            text, at = text + template[at], at + 1
    return parts + ([text] if text else [])


def read(prompt: Prompt, tokenizer: Tokenizer, *, masked: bool = False) -> TokenisedPrompt:
    """Tokenises a prompt.

    Args:
        prompt: parts in reading order; a plain str is a prompt without images.
        tokenizer: of the model.
        masked: hide the images from the text: phi is 0 everywhere, and everything else as it is (a control of the evaluation).

    Returns:
        Tokens, phi and images.

    Raises:
        PromptError: an `<image>` tag in the text (more tags than images), or a part that is neither text nor image.
    """
    parts = [prompt] if isinstance(prompt, str) else list(prompt)
    marked: list[str | Marker] = []
    visuals: list[Visual] = []
    for number, part in enumerate(parts):
        if isinstance(part, str):
            if "<image>" in part:
                raise PromptError(
                    f"prompt: part {number} has an <image> tag in its text, {part[:60]!r}, so there are more tags than images. "
                    "Put the image itself there; its tag is written for you."
                )
            marked.append(part)
        elif isinstance(part, Image | PIL.Image.Image | np.ndarray | bytes | Path):
            marked.append(IMAGE)
            visuals.append(part)
        else:
            raise PromptError(
                f"prompt: part {number} is {type(part).__name__}; expected str, Image(path), a PIL image, encoded bytes or a uint8 array."
            )
    if visuals:
        tokens, phi = tokenise(marked, tokenizer, close=False)
    else:  # a language model's tokenizer may have no <EOC>
        ids = [tokenizer.bos_id, *(token for part in parts for token in tokenizer.encode(str(part)))]
        tokens, phi = np.asarray(ids, np.int32), np.zeros(len(ids), np.int32)
    return TokenisedPrompt(tokens, np.zeros_like(phi) if masked else phi, tuple(visuals))


def collate(
    prompts: Sequence[TokenisedPrompt], *, rows: int, length: int, num_images: int, image_size: int, pad_id: int = 0
) -> Batch:
    """Puts prompts into one batch of a given shape, with each distinct image once in its pool.

    Rows beyond the prompts hold one token and no image, so that they cost nothing but their place.

    Args:
        prompts: at most `rows` of them, each within `length` tokens and `num_images` images.
        rows: B.
        length: L.
        num_images: N, at least 1.
        image_size: side of the frames in pixels.
        pad_id: fills the rest of a row.

    Returns:
        A batch of numpy arrays; its pool has as many rows as there are distinct images (at least one). Real tokens have segment 1.

    Raises:
        PromptError: a prompt does not fit, or an image cannot be read.
    """
    tokens = np.full((rows, length), pad_id, np.int32)
    segment = np.zeros((rows, length), np.int32)
    media_index = np.zeros((rows, length), np.int32)
    media_slot = np.full((rows, num_images), -1, np.int32)
    segment[len(prompts) :, 0] = 1
    pool = _Pool(image_size)
    if len(prompts) > rows:
        raise PromptError(f"batch: got {len(prompts)} prompts, expected at most {rows}.")
    for row, prompt in enumerate(prompts):
        size = len(prompt.tokens)
        if size > length or len(prompt.visuals) > num_images:
            raise PromptError(
                f"batch: prompt {row} has {size} tokens and {len(prompt.visuals)} images; expected at most {length} and {num_images}."
            )
        tokens[row, :size], segment[row, :size], media_index[row, :size] = prompt.tokens, 1, prompt.media_index
        media_slot[row, : len(prompt.visuals)] = [pool.slot(visual) for visual in prompt.visuals]
    frames, frame_mask = pool.arrays()
    return Batch(tokens, segment, segment.astype(np.float32), media_index, media_slot, frames, frame_mask)


class _Pool:
    """Distinct images and videos in order of appearance."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self.frames: list[np.ndarray] = []
        self.by_object: dict[int, int] = {}  # spares reading an object again
        self.by_content: dict[bytes, int] = {}

    def slot(self, visual: Visual) -> int:
        """The pool row of an image, appended if it is new."""
        if id(visual) not in self.by_object:
            frames = load_frames(visual, self.image_size)
            key = hashlib.blake2b(frames.tobytes(), digest_size=16).digest()
            if key not in self.by_content:
                self.by_content[key] = len(self.frames)
                self.frames.append(frames)
            self.by_object[id(visual)] = self.by_content[key]
        return self.by_object[id(visual)]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """uint8[M, F, S, S, 3] and bool[M, F]; shorter videos are padded with masked frames."""
        count, size = max(len(self.frames), 1), self.image_size
        longest = max((len(frames) for frames in self.frames), default=1)
        frames = np.zeros((count, longest, size, size, 3), np.uint8)
        mask = np.zeros((count, longest), bool)
        for row, real in enumerate(self.frames):
            frames[row, : len(real)], mask[row, : len(real)] = real, True
        return frames, mask


def load_frames(visual: Visual, image_size: int) -> np.ndarray:
    """Reads an image, or a video given as an array of frames.

    Args:
        visual: file, PIL image, encoded bytes, uint8[H, W, 3], or uint8[F, H, W, 3] for a video.
        image_size: side in pixels; the aspect ratio is kept and the rest padded (as in training).

    Returns:
        uint8[F, image_size, image_size, 3].

    Raises:
        PromptError: no such file, bytes that are no image, or an array of another shape or type.
    """
    if isinstance(visual, Image | Path):
        path = Path(visual.path if isinstance(visual, Image) else visual)
        if not path.exists():
            raise PromptError(
                f"prompt: there is no image file {str(path)!r}. Check the path; it is relative to the current directory."
            )
        return _decoded(path.read_bytes(), image_size, f"the file {str(path)!r}")
    if isinstance(visual, bytes):
        return _decoded(visual, image_size, f"{len(visual)} bytes")
    if isinstance(visual, np.ndarray) and (
        visual.dtype != np.uint8 or visual.ndim not in (3, 4) or visual.shape[-1] != 3
    ):
        raise PromptError(
            f"prompt: got an array {visual.dtype}{list(visual.shape)}; expected uint8[H, W, 3], or uint8[F, H, W, 3] for a video."
        )
    frames = visual if isinstance(visual, np.ndarray) else np.asarray(visual.convert("RGB"))
    frames = frames[None] if frames.ndim == 3 else frames
    return (
        frames
        if frames.shape[1:3] == (image_size, image_size)
        else np.stack([images.fit(frame, image_size) for frame in frames])
    )


def _decoded(data: bytes, image_size: int, what: str) -> np.ndarray:
    try:
        return images.decode(data, image_size)[None]
    except (ValueError, OSError) as error:
        raise PromptError(
            f"prompt: {what} cannot be read as an image ({error}). Expected JPEG, PNG or WebP."
        ) from error


def _file(name: str, at: int) -> Image:
    if not name:
        raise PromptError(f"prompt: the braces at character {at} are empty. Write {{path}} for an image.")
    if not Path(name).exists():
        raise PromptError(
            f"prompt: there is no image file {name!r}. Check the path; it is relative to the current directory."
        )
    return Image(name)


def _around(template: str, at: int) -> str:
    return repr(template[max(0, at - 20) : at + 30])
