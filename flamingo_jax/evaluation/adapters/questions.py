"""What the adapters share: a question with its images becomes a prompt, and settings a method.

    text        images and the text as they are
    question    <image> Question: What is it? Answer:        the paper's template (B.1.5)
    chat        what `Flamingo.chat` writes                  for models trained on conversations

An image takes the place of an `<image>` in the text; images without one come before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from flamingo_jax.core.config import ConfigError
from flamingo_jax.inference.chat import Chat
from flamingo_jax.inference.methods import BeamSearch, Greedy, Method, Sample
from flamingo_jax.inference.prompt import Part, PromptError, Visual
from flamingo_jax.tokenizers.chat_template import ChatTemplate
from flamingo_jax.tokenizers.markers import IMAGE_TAG

Form = Literal["text", "question", "chat"]
MAX_NEW_TOKENS = 64


def form_of(form: str | None, template: ChatTemplate) -> Form:
    """Returns how questions are written.

    Args:
        form: as the user asks; None or "": "chat" if the model was trained on conversations, else
            "question".
        template: of the model.

    Raises:
        ConfigError: there is no such form.
    """
    if not form:
        return "question" if template.has_examples else "chat"
    for known in get_args(Form):
        if form == known:
            return known
    raise ConfigError(f"form is {form!r}; expected one of {', '.join(get_args(Form))}.")


def prompt_of(
    text: str, visuals: Sequence[Visual], form: Form, template: ChatTemplate
) -> list[Part]:
    """Returns the prompt of a question.

    Args:
        text: of the question.
        visuals: its images and videos.
        form: how it is written.
        template: of the model; for the form "chat".

    Raises:
        PromptError: the text has another number of `<image>` than there are images.
    """
    pieces = text.split(IMAGE_TAG)
    if len(pieces) == 1:
        said: list[Part] = [*visuals, text]
    elif len(pieces) - 1 == len(visuals):
        said = [pieces[0]]
        for visual, piece in zip(visuals, pieces[1:], strict=True):
            said += [visual, piece]
    else:
        raise PromptError(
            f"the question has {len(pieces) - 1} {IMAGE_TAG} and {len(visuals)} images; expected "
            f"as many, or no {IMAGE_TAG}: {text[:80]!r}"
        )
    said = [part for part in said if not isinstance(part, str) or part.strip()]
    if form == "text":
        return said
    if form == "chat":
        return Chat.prompt_of(said, template)
    first = next((at for at, part in enumerate(said) if isinstance(part, str)), len(said))
    words = [part.strip() if isinstance(part, str) else part for part in said]
    asked: list[Part] = [*words[:first], " Question: " if first else "Question: "]
    for part in words[first:]:
        asked.append(part)
    return [*asked, " Answer:"]


def method_of(settings: Mapping[str, Any]) -> Method:
    """Returns the method of decoding that a harness asks for.

    Reads max_new_tokens, do_sample, temperature, top_p, num_beams and seed, as transformers'
    `generate` has them. Others are passed over.

    Raises:
        ConfigError: a setting has a value that no method has.
    """
    most = int(settings.get("max_new_tokens") or MAX_NEW_TOKENS)
    temperature = float(settings.get("temperature") or 0.0)
    beams = int(settings.get("num_beams") or 1)
    is_random = bool(settings.get("do_sample", temperature > 0)) and temperature > 0
    if is_random:
        top_p = float(settings.get("top_p") or 1.0)
        seed = int(settings.get("seed") or 0)
        return Sample(temperature, top_p, seed, max_new_tokens=most)
    return BeamSearch(beams, max_new_tokens=most) if beams > 1 else Greedy(most)


def cut(text: str, until: Sequence[str]) -> str:
    """Returns an answer up to the first of some strings, without white space around it."""
    for end in until:
        if end:
            text = text.partition(end)[0]
    return text.strip()
