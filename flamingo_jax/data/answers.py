"""Records of fine-tuning: an image or video, what is asked about it, and the right answers.

    prompts   ("Question: is he old? Answer:",)
    answers   ("yes", "yes", "no")        as often as people gave them: a visit draws one
    row       <BOS><image>Question: is he old? Answer: yes<EOC><EOS>

The paper fine-tunes in its format of single images and videos, and does not say what it does with
several right answers (paper, B.2.2). With `loss_on = "answers"` of the dataset only the answers
count in the loss, which is ours too: in the paper's training each text counts as a whole.

A `Conversation` is a record of instruction data; `data.conversations` has its tokens.
"""

import dataclasses
from typing import Any, ClassVar

_TEXT, _IMAGE, _ANSWER = 0, 1, 2  # the parts of a stored conversation


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


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A dialogue: what the user says, and what the model answers.

    Attributes:
        asked: for each turn its texts (str) and encoded images (bytes), in order.
        answers: the answer of each turn.
    """

    kind: ClassVar[str] = "conversation"
    asked: tuple[tuple[str | bytes, ...], ...]
    answers: tuple[str, ...]
    metadata: str = ""

    @property
    def images(self) -> tuple[bytes, ...]:
        """The encoded images of all turns, in order."""
        return tuple(part for turn in self.asked for part in turn if isinstance(part, bytes))

    @property
    def text(self) -> str:
        """All that is said, in order."""
        said = []
        for turn, answer in zip(self.asked, self.answers, strict=True):
            said += [*(part for part in turn if isinstance(part, str)), answer]
        return " ".join(said)

    def parts(self) -> dict[str, Any]:
        """Returns the fields as they are stored: texts and images by themselves, and their order.

        The order has for each part 0 = the next text, which the user says, 1 = the next image, 2 =
        the next text, which is an answer and ends a turn.
        """
        order, texts = list[int](), list[str]()
        for turn, answer in zip(self.asked, self.answers, strict=True):
            order += [_IMAGE if isinstance(part, bytes) else _TEXT for part in turn]
            texts += [part for part in turn if isinstance(part, str)]
            order.append(_ANSWER)
            texts.append(answer)
        return {
            "turns": texts,
            "images": list(self.images),
            "order": order,
            "metadata": self.metadata,
        }

    @classmethod
    def of_parts(
        cls, order: list[int], texts: list[str], images: list[bytes], metadata: str
    ) -> "Conversation":
        """Returns the conversation of stored parts: the inverse of `parts`.

        Raises:
            ValueError: the order does not fit the texts and images, or does not end in an answer.
        """
        number = order.count(_IMAGE)
        fits = number == len(images) and len(order) - number == len(texts)
        if not fits or order[-1:] != [_ANSWER] or not set(order) <= {_TEXT, _IMAGE, _ANSWER}:
            raise ValueError(
                f"its order {order[:20]} has {number} images and {len(order) - number} texts, the "
                f"last an answer (2); {len(images)} images and {len(texts)} texts are stored."
            )
        next_text, next_image = iter(texts), iter(images)
        asked, answers = list[tuple[str | bytes, ...]](), list[str]()
        parts: list[str | bytes] = []
        for entry in order:
            if entry == _ANSWER:
                asked.append(tuple(parts))
                answers.append(next(next_text))
                parts = []
            else:
                parts.append(next(next_image) if entry == _IMAGE else next(next_text))
        return cls(tuple(asked), tuple(answers), metadata)
