"""Records of fine-tuning: an image or video, what is asked about it, and the right answers.

    prompts   ("Question: is he old? Answer:",)
    answers   ("yes", "yes", "no")        as often as people gave them: a visit draws one
    row       <BOS><image>Question: is he old? Answer: yes<EOC><EOS>

The paper fine-tunes in its format of single images and videos, and does not say what it does with
several right answers (paper, B.2.2). With `loss_on = "answers"` of the dataset only the answers
count in the loss, which is ours too: in the paper's training each text counts as a whole.
"""

import dataclasses
from typing import ClassVar


class _Asked:
    prompts: tuple[str, ...]
    answers: tuple[str, ...]

    @property
    def text(self) -> str:
        """The prompts with the first answer."""
        return " ".join((*self.prompts, *self.answers[:1]))


@dataclasses.dataclass(frozen=True)
class ImageAnswers(_Asked):
    """An encoded image, what is asked about it, and the right answers.

    Attributes:
        prompts: the text before the answer. A dialogue has its earlier answers between its prompts:
            prompt, answer, prompt, answer, prompt.
        answers: the right answers to the last prompt, as often as they were given: a visit to the
            record draws one of them.
    """

    kind: ClassVar[str] = "image_answers"
    image: bytes
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    metadata: str = ""


@dataclasses.dataclass(frozen=True)
class VideoAnswers(_Asked):
    """A short video, stored as in VideoText, with prompts and answers as in ImageAnswers."""

    kind: ClassVar[str] = "video_answers"
    frames: tuple[bytes, ...]
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    fps: float = 1.0
    video: bytes = b""
    metadata: str = ""
