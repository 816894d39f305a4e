"""Removes the model's markers from texts that contain them by chance.

The loader would refuse a record with such a text.
"""

from __future__ import annotations

import re

from flamingo_jax.tokenizers.markers import EOC, IMAGE_TAG

_NAMES = "|".join(re.escape(marker.strip("<>")) for marker in (IMAGE_TAG, EOC))
# With all brackets around it, so that no marker is left of "<<image>>". A match starts at the first
# of them only: starting at each would take time that grows with the square of their number.
_MARKER = re.compile(f"(?<!<)<+({_NAMES})>+")


def without_markers(text: str) -> str:
    """Returns the text with "image" in place of "<image>" and "EOC" in place of "<EOC>"."""
    return _MARKER.sub(r"\1", text) if "<" in text else text
