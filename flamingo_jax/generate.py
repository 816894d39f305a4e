"""Continues a prompt of text, images and videos; or holds a dialogue about them.

    python -m flamingo_jax.generate --checkpoint=DIR "{cat.jpg}Output: A cat.<EOC>{dog.jpg}Output:"
    python -m flamingo_jax.generate --checkpoint=DIR --chat

`{path}` marks an image or a video, local or gs://; `{{` and `}}` are literal braces. Several
prompts are answered together, a line each. In a dialogue each line of the standard input is what
the user says, such as "{dog.jpg} What breed is it?".
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from absl import app, flags, logging

from flamingo_jax.core import host_memory
from flamingo_jax.inference import methods
from flamingo_jax.inference.methods import BeamSearch
from flamingo_jax.inference.model import (
    DIALOGUE,
    EXPECTED_ERRORS,
    Chat,
    Flamingo,
    Image,
    InferenceConfig,
    PromptError,
)
from flamingo_jax.inference.prompt import at_once, parse

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "An export, a WORKDIR, or WORKDIR/checkpoints/STEP."
)
_SETTINGS = {
    "beams": flags.DEFINE_integer(
        "beams", None, "Of the search, 3 by default; 1: greedy, as dialogues are.", 1
    ),
    "top_p": flags.DEFINE_float(
        "top_p", None, "Draw from the fewest tokens that have this probability.", 1e-3, 1.0
    ),
    "temperature": flags.DEFINE_float(
        "temperature", None, "Of drawing; below 1: the probable more often.", 1e-3
    ),
    "seed": flags.DEFINE_integer("seed", None, "Of drawing."),
    "max_new_tokens": flags.DEFINE_integer(
        "max_new_tokens", None, "Bound on an answer: 20, in a dialogue 64.", 1
    ),
}
_CANDIDATES = flags.DEFINE_multi_string(
    "candidate", [], "An answer to be scored, in place of generating; repeatable."
)
_CHAT = flags.DEFINE_bool(
    "chat", default=False, help="Hold a dialogue (the prompt of the paper's Appendix B.1.6)."
)
_CHAT_IMAGES = flags.DEFINE_list(
    "chat_images", [], "Files for its example turns: a cat, people at dinner, a graph."
)


def converse(chat: Chat) -> None:
    """Answers the lines of the standard input.

    What is wrong with a line is said, and the dialogue goes on.
    """
    begin = "User: " if sys.stdin.isatty() else ""
    print(begin, end="", flush=True)
    for line in sys.stdin:
        if line.strip():
            try:
                print(f"Flamingo: {chat.say(parse(line.strip()))}", flush=True)
            except PromptError as error:
                print(f"PromptError: {error}", file=sys.stderr, flush=True)
        print(begin, end="", flush=True)


def main(argv: list[str]) -> None:
    """Answers the prompts on the command line, or starts the dialogue."""
    if bool(argv[1:]) == _CHAT.value:
        raise app.UsageError(
            'Give prompts, such as "{cat.jpg}Output: A cat.<EOC>{dog.jpg}Output:", or --chat alone.'
        )
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax reports each file that it reads
    host_memory.keep_freed()
    try:
        # before the model is loaded: a wrong path is the likeliest error
        prompts = [parse(text) for text in argv[1:]]
        settings: dict[str, Any] = {name: flag.value for name, flag in _SETTINGS.items()}
        method = methods.from_settings(DIALOGUE if _CHAT.value else BeamSearch(3), **settings)
        config = InferenceConfig()
        config = dataclasses.replace(
            config, images_per_pass=at_once(prompts, config.images_per_pass)
        )
        model = Flamingo.load(str(_CHECKPOINT.value), config=config)
        if _CHAT.value:
            converse(model.chat([Image(path) for path in _CHAT_IMAGES.value], method=method))
        elif _CANDIDATES.value:
            for scores in model.score(prompts, _CANDIDATES.value):
                ranked = sorted(zip(scores, _CANDIDATES.value, strict=True), reverse=True)
                print("  ".join(f"{candidate.strip()} {score:.2f}" for score, candidate in ranked))
        else:
            for text in model.generate(prompts, method=method):
                print(text.strip())
    except EXPECTED_ERRORS as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint"])
    app.run(main)
