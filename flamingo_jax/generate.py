"""Continues a prompt of text and images.

    python -m flamingo_jax.generate --checkpoint=DIR "{cat.jpg}Output: A cat.<EOC>{dog.jpg}Output:"

`{path}` marks an image, local or gs://; `{{` and `}}` are literal braces. Several prompts are answered together, a line each.
"""

from __future__ import annotations

import sys

from absl import app, flags, logging

from flamingo_jax.inference.api import EXPECTED_ERRORS, Flamingo
from flamingo_jax.inference.prompts import parse

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "An export, a WORKDIR, or WORKDIR/checkpoints/STEP.")
_BEAMS = flags.DEFINE_integer("beams", 3, "Beams of the search; 1: greedy.", lower_bound=1)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 20, "Bound on the length of an answer.", lower_bound=1)
_CANDIDATES = flags.DEFINE_multi_string(
    "candidate", [], "An answer to be scored, in place of generating; may be repeated."
)


def main(argv: list[str]) -> None:
    """Answers the prompts on the command line."""
    if not argv[1:]:
        raise app.UsageError('Give a prompt, such as "{cat.jpg}Output: A cat.<EOC>{dog.jpg}Output:".')
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax reports each file that it reads
    try:
        prompts = [parse(text) for text in argv[1:]]  # before the model is loaded: a wrong path is the likeliest error
        model = Flamingo.load(str(_CHECKPOINT.value))
        if _CANDIDATES.value:
            for scores in model.score(prompts, _CANDIDATES.value):
                ranked = sorted(zip(scores, _CANDIDATES.value, strict=True), reverse=True)
                print("  ".join(f"{candidate.strip()} {score:.2f}" for score, candidate in ranked))
        else:
            for text in model.generate(prompts, beams=_BEAMS.value, max_new_tokens=_MAX_NEW_TOKENS.value):
                print(text.strip())
    except EXPECTED_ERRORS as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint"])
    app.run(main)
