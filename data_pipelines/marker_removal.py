"""The strings that mean something to the model are taken out of texts that happen to hold them.

The loader would refuse such a record.
"""

from __future__ import annotations

import re

from flamingo_jax.tokenizers.markers import EOC, IMAGE_TAG

_NAMES = "|".join(re.escape(marker.strip("<>")) for marker in (IMAGE_TAG, EOC))
# All brackets around it, so that "<<image>>" leaves no marker behind.
_MARKER = re.compile(f"<+({_NAMES})>+")


def without_markers(text: str) -> str:
    """Returns a text in which "<image>" reads "image" and "<EOC>" reads "EOC".

    Anything else is as it was.
    """
    return _MARKER.sub(r"\1", text) if "<" in text else text
