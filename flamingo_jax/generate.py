"""Continues a prompt of text, images and videos; or holds a dialogue about them.

    python -m flamingo_jax.generate --checkpoint=DIR "{cat.jpg}Output: A cat.<EOC>{dog.jpg}Output:"
    python -m flamingo_jax.generate --checkpoint=DIR --chat

`{path}` marks an image or a video, local or on gs://; `{{` and `}}` are literal braces. Several
prompts are answered in one batch, one line each. In a dialogue each line of the standard input is
what the user says, such as "{dog.jpg} What breed is it?".
"""

from __future__ import annotations

import sys
from typing import Any

from absl import app, flags

from flamingo_jax import cli
from flamingo_jax.core import paths
from flamingo_jax.core.processes import Cluster
from flamingo_jax.inference import methods
from flamingo_jax.inference.chat import Chat
from flamingo_jax.inference.model import DIALOGUE, EXPECTED_ERRORS, Flamingo, InferenceConfig
from flamingo_jax.inference.prompt import Image, PromptError, at_once, parse

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "An export, a WORKDIR, or WORKDIR/checkpoints/STEP."
)
_METHOD: list[flags.FlagHolder[Any]] = [
    flags.DEFINE_integer("beams", None, "Width of the search: 3; in a dialogue 1, greedy.", 1),
    flags.DEFINE_float("top_p", None, "Total probability of the tokens to draw from.", 1e-3, 1.0),
    flags.DEFINE_float("temperature", None, "Draws; below 1 it favours probable tokens.", 1e-3),
    flags.DEFINE_integer("seed", None, "Seed of the draws."),
    flags.DEFINE_integer("max_new_tokens", None, "Bound on an answer: 20; 64 in a dialogue.", 1),
]
_CANDIDATES = flags.DEFINE_multi_string("candidate", [], "An answer to score; repeatable.")
_CHAT = flags.DEFINE_bool("chat", default=False, help="Holds a dialogue (paper, B.1.6).")
_CHAT_IMAGES = flags.DEFINE_list("chat_images", [], "Images of its examples: cat, dinner, graph.")
_FROZEN: Any = flags.DEFINE_enum("frozen", "compute", ["compute", "int8"], "The towers' weights.")


def converse(chat: Chat) -> None:
    """Answers each line of the standard input; reports a line that cannot be read."""
    begin = "User: " if sys.stdin.isatty() else ""
    print(begin, end="", flush=True)
    for line in sys.stdin:
        try:
            if line.strip():
                print(f"Flamingo: {chat.say(parse(line.strip()))}", flush=True)
        except PromptError as error:
            print(f"PromptError: {error}", file=sys.stderr, flush=True)
        print(begin, end="", flush=True)


def main(texts: list[str], _: Cluster) -> None:
    """Answers the prompts of the command line, or starts a dialogue."""
    if bool(texts) == _CHAT.value:
        raise app.UsageError('Give prompts, such as "{dog.jpg}Output:", or --chat alone.')
    prompts = [parse(text) for text in texts]  # a wrong path is found before the model is loaded
    default = DIALOGUE if _CHAT.value else methods.BeamSearch(3)
    method = methods.from_settings(default, **{flag.name: flag.value for flag in _METHOD})
    images = at_once(prompts, InferenceConfig().images_per_pass)
    config = InferenceConfig(images_per_pass=images, frozen=_FROZEN.value)
    model = Flamingo.load(str(_CHECKPOINT.value), config=config)
    if _CHAT.value:
        converse(model.chat([Image(path) for path in _CHAT_IMAGES.value], method=method))
    elif _CANDIDATES.value:
        candidates = [paths.whole_characters(text) for text in _CANDIDATES.value]
        for scores in model.score(prompts, candidates):
            ranked = sorted(zip(scores, candidates, strict=True), reverse=True)
            print("  ".join(f"{candidate.strip()} {score:.2f}" for score, candidate in ranked))
    else:
        for text in model.generate(prompts, method=method):
            print(" ".join(text.split()) if len(prompts) > 1 else text.strip())


if __name__ == "__main__":
    cli.run(
        main, required=["checkpoint"], expected=EXPECTED_ERRORS, positional=True, keep_freed=True
    )
