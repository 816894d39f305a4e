"""A model class for VLMEvalKit (OpenCompass): its datasets run on a checkpoint of this package.

VLMEvalKit is no package of PyPI and has no table of models that others can add to. In a clone of
it, add a line to `supported_VLM` in vlmeval/config.py:

    from flamingo_jax.evaluation.adapters.vlmevalkit import FlamingoJax
    supported_VLM["flamingo"] = partial(FlamingoJax, "runs/instruct/export")

    python run.py --model flamingo --data MMBench_DEV_EN

The class has the methods that VLMEvalKit's guide to new models names (`generate`, and the two that
say there are no prompts of its own) and those that its loop calls. It is written against
that guide and the source of vlmeval/vlm/base.py, and was tested with messages of that form; it was
not run inside VLMEvalKit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_jax.core.config import ConfigError
from flamingo_jax.evaluation.adapters import questions
from flamingo_jax.inference.model import Flamingo
from flamingo_jax.inference.prompt import Image, Part, PromptError, Video, Visual
from flamingo_jax.tokenizers.markers import IMAGE_TAG

_KINDS = {"image": Image, "video": Video}


class FlamingoJax:
    """A checkpoint with the methods that VLMEvalKit calls."""

    INTERLEAVE = True
    is_api = False
    allowed_types = ("text", "image", "video")

    def __init__(
        self,
        model_path: str = "",
        *,
        form: str = "",
        max_new_tokens: int = questions.MAX_NEW_TOKENS,
        model: Flamingo | None = None,
        **others: object,
    ) -> None:
        """Loads the checkpoint.

        Args:
            model_path: an export, or a WORKDIR.
            form: see `questions`; "": chat if the model was trained on conversations, else
                question.
            max_new_tokens: bound on an answer.
            model: a model that is loaded already.
            **others: further settings of decoding, as of transformers: temperature, num_beams.

        Raises:
            ConfigError: there is no checkpoint, or a setting has a value that no method has.
            CheckpointError: there is no model at the path.
        """
        if model is None and not model_path:
            raise ConfigError("VLMEvalKit: give the checkpoint: partial(FlamingoJax, 'EXPORT').")
        self.flamingo = model or Flamingo.load(model_path)
        self.form = questions.form_of(form, self.flamingo.chat_template)
        self.method = questions.method_of({"max_new_tokens": max_new_tokens, **others})

    def generate(self, message: Any, dataset: str | None = None) -> str:
        """Returns the answer to one message.

        Args:
            message: a list of {"type": "text" | "image" | "video", "value": text or path}; a text;
                or a list of texts and paths of images.
            dataset: its name; not used.

        Raises:
            PromptError: the message has another form, or its files cannot be read.
        """
        del dataset
        said = parts_of(message)
        visuals: list[Visual] = [part for part in said if not isinstance(part, str)]
        # The places of images among texts are kept.
        text = "".join(part if isinstance(part, str) else IMAGE_TAG for part in said)
        prompt = questions.prompt_of(text, visuals, self.form, self.flamingo.chat_template)
        return self.flamingo.generate([prompt], method=self.method)[0].strip()

    generate_inner = generate

    def use_custom_prompt(self, dataset: str) -> bool:
        """Returns False: VLMEvalKit's own prompts are used."""
        del dataset
        return False

    def build_prompt(self, line: Any, dataset: str | None = None) -> Any:
        """Refuses to make a prompt, since `use_custom_prompt` is False.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("VLMEvalKit's own prompts are used: use_custom_prompt is False.")

    def set_dump_image(self, dump_image_func: Any) -> None:
        """Keeps what writes the images of a row to files, as VLMEvalKit's loop expects."""
        self.dump_image_func = dump_image_func

    def dump_image(self, line: Any, dataset: str | None = None) -> Any:
        """Writes the images of a row to files, with what `set_dump_image` was given."""
        del dataset
        return self.dump_image_func(line)


def parts_of(message: Any) -> list[Part]:
    """Returns the texts and visuals of a message; see `FlamingoJax.generate`.

    Raises:
        PromptError: the message has another form.
    """
    if isinstance(message, str | Mapping):
        message = [message]
    if not isinstance(message, Sequence):
        raise PromptError(f"VLMEvalKit: got a message of type {type(message).__name__}.")
    parts: list[Part] = []
    for item in message:
        if isinstance(item, str):
            is_image = item.lower().endswith((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"))
            parts.append(Image(item) if is_image else item)
            continue
        kind = item.get("type") if isinstance(item, Mapping) else None
        if kind not in ("text", *_KINDS) or "value" not in item:
            raise PromptError(
                f"VLMEvalKit: a part of the message is {item!r:.100}; expected {{'type': 'text', "
                "'image' or 'video', 'value': ...}."
            )
        parts.append(item["value"] if kind == "text" else _KINDS[kind](item["value"]))
    return parts
