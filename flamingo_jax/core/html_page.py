"""Makes the HTML pages that show data: one style, escaped text, and no outside resources.

The pages are plain HTML and CSS without scripts. html_page.html is the frame of every page. Its
Content-Security-Policy forbids everything that a page does not contain.
"""

from __future__ import annotations

import base64
import functools
import io
import os
import re
from typing import TypeVar

import jinja2
import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup
from PIL import Image

_LOSSLESS = 64 * 64  # pixels. Up to here a PNG is as small as a JPEG, and keeps every pixel.
_FRAME = os.path.dirname(__file__)
_Value = TypeVar("_Value")


@functools.cache
def environment(directory: str = _FRAME) -> jinja2.Environment:
    """Returns the jinja2 environment of a directory; its templates may extend html_page.html.

    Every text that a template shows is escaped and made `visible`. An undefined name is an error.
    """
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([directory, _FRAME]),
        autoescape=True,
        finalize=visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def template(module: str) -> jinja2.Template:
    """Returns the template next to a module, with the same name.

    Args:
        module: `__file__` of the module.
    """
    directory, name = os.path.split(module)
    return environment(directory).get_template(os.path.splitext(name)[0] + ".html")


def visible(value: _Value) -> _Value | str:
    """Makes every character of a text visible.

    A line break gets a sign. A control character, which HTML forbids, is shown as its number.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    # File names and texts from JSON may contain characters that cannot be encoded.
    text = value.encode(errors="backslashreplace").decode()
    shown = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)
    return shown.replace("\n", "↵\n")


def embedded(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """Returns an image as a data: URL, so that the page is one file.

    Args:
        image: uint8[h, w, 3]. A small image becomes a PNG, another one a JPEG.
    """
    kind = "png" if image.shape[0] * image.shape[1] <= _LOSSLESS else "jpeg"
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
