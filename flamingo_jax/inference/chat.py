"""Dialogue about images, with the prompt of the paper's Appendix B.1.6.

    This is a conversation between a human, User, and an intelligent visual AI, Flamingo. User sends
    images, and Flamingo describes them.
    User: <image>
    Flamingo: That is a cat. It's a tiny kitten with really cute big ears.
    ...                                  four example turns, three of them with an image
    User: <image> What breed is it?      what the user says: text and images in any order
    Flamingo:                            the model continues, until <EOC> or "User:"

The images of the example turns are not published. The user may give three images for them: a cat,
people at dinner, a graph. Without them these turns are text alone, as in the paper's zero-shot
prompts (A.2). There is an `<EOC>` before each image, as in all prompts here and in training.

A model that was fine-tuned on conversations writes a dialogue as they do: its export has a template
of its own (`tokenizers.chat_template`), without an introduction and example turns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from flamingo_jax.inference.padding import PromptTooLong
from flamingo_jax.inference.prompt import Part, Prompt, PromptError, Visual
from flamingo_jax.tokenizers.chat_template import PAPER, ChatTemplate
from flamingo_jax.tokenizers.markers import IMAGE_TAG

INTRODUCTION = (
    "This is a conversation between a human, User, and an intelligent visual AI, Flamingo. "
    "User sends images, and Flamingo describes them.\n"
)
# (what the user says, or None for an image; what the model answers)
EXAMPLES: tuple[tuple[str | None, str], ...] = (
    (None, "That is a cat. It's a tiny kitten with really cute big ears."),
    (None, "This is a picture of a group of people having dinner. They are having a great time!"),
    (
        "Can you guess what are they celebrating?",
        "They might be celebrating the end of a successful project or maybe a birthday?",
    ),
    (None, "This is a graph, it looks like a cumulative density function graph."),
)
NUM_IMAGES = sum(said is None for said, _ in EXAMPLES)


class Chat:
    """A dialogue that drops its oldest exchanges when the prompt becomes too long."""

    def __init__(
        self,
        generate: Callable[[Prompt], str],
        images: Sequence[Visual] = (),
        template: ChatTemplate = PAPER,
    ) -> None:
        """Starts a dialogue; see `inference.model.Flamingo.chat`.

        Args:
            generate: continues one prompt; raises PromptTooLong.
            images: for the example turns, NUM_IMAGES or none.
            template: how a dialogue is written.

        Raises:
            PromptError: another number of images, or images for a template without example turns.
        """
        if images and not template.has_examples:
            raise PromptError(
                f"chat: got {len(images)} image(s) for the example turns, and this model has none: "
                "it was trained on conversations. Leave them out."
            )
        if len(images) not in (0, NUM_IMAGES):
            raise PromptError(
                f"chat: got {len(images)} image(s) for the example turns; expected {NUM_IMAGES} (a "
                "cat, people at dinner, a graph), or none."
            )
        self._generate, self._template = generate, template
        self._exchanges: list[list[Part]] = []
        self._start = opening(template, images)

    @staticmethod
    def prompt_of(said: Sequence[Part], template: ChatTemplate) -> list[Part]:
        """Returns the prompt of a dialogue of one turn.

        Args:
            said: what the user says.
            template: how a dialogue is written.
        """
        return [*opening(template), *turn_of(said, template)]

    def say(self, parts: Prompt) -> str:
        """Returns the model's answer to what the user says.

        Args:
            parts: text, or a list of text and images.

        Raises:
            PromptError: a part cannot be read, nothing is said, or this turn alone is too long. The
                dialogue then stays as it was.
        """
        words: list[Part] = [parts] if isinstance(parts, str) else list(parts)
        if all(isinstance(part, str) and not part.strip() for part in words):
            raise PromptError("chat: nothing was said. Give text or an image.")
        template = self._template
        turn, kept = turn_of(words, template), list(self._exchanges)
        while True:
            before = [part for exchange in kept for part in exchange]
            try:
                text = self._generate([*self._start, *before, *turn])
                break
            except PromptTooLong:
                if not kept:
                    raise
                del kept[0]
        answer = text.split(template.user)[0].strip()
        self._exchanges = [*kept, [*turn, answered(answer, template)]]
        return answer


def opening(template: ChatTemplate, images: Sequence[Visual] = ()) -> list[Part]:
    """Returns the prompt before a dialogue: introduction and example turns, or nothing."""
    if not template.has_examples:
        return []
    parts: list[Part] = [INTRODUCTION]
    shown = iter(images)
    for said, answer in EXAMPLES:
        words: list[Part] = list(itertools.islice(shown, 1)) if said is None else [said]
        parts += [*turn_of(words, template), answered(answer, template)]
    return parts


def answered(text: str, template: ChatTemplate) -> str:
    """Returns the prompt of what the model said, after a turn.

    A model may say `<image>`, and has shown no image: in a prompt the tag would lack one.
    """
    return f"{template.space}{text.replace(IMAGE_TAG, '')}{template.end}"


def turn_of(words: Sequence[Part], template: ChatTemplate) -> list[Part]:
    """Returns the prompt of a turn: what the user says, up to the model's answer."""
    said: list[Part] = []
    for part in words:
        if not isinstance(part, str) or not template.space:
            said.append(part)
        elif part.strip():
            said.append(f"{template.space}{part.strip()}")
    return [template.user, *said, template.model]
