"""The pages that show data: one look, texts escaped, and no reaching for anything outside.

Plain HTML and CSS without scripts. html_page.html is the frame of every page; it forbids
(Content-Security-Policy) whatever a page was not given.
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

_LOSSLESS = 64 * 64  # pixels: PNG is as small up to here, and a pixel of a small image is seen
_FRAME = os.path.dirname(__file__)
_Value = TypeVar("_Value")


@functools.cache
def environment(directory: str = _FRAME) -> jinja2.Environment:
    """Returns what reads the templates of a directory, which may extend html_page.html.

    Every text that a template shows is escaped, and made `visible`. A name that a template was not
    given is an error.
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
    """Returns the template beside a module, of the same name.

    Args:
        module: `__file__` of the module.
    """
    directory, name = os.path.split(module)
    return environment(directory).get_template(os.path.splitext(name)[0] + ".html")


def visible(value: _Value) -> _Value | str:
    """Makes all of a text visible.

    Line breaks get a sign, and control characters, which HTML forbids, become their number.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    # file names, and texts of JSON, need not be Unicode
    text = value.encode(errors="backslashreplace").decode()
    shown = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)
    return shown.replace("\n", "↵\n")


def embedded(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """An image as the address that holds all of it (data:), so that the page is one file.

    Args:
        image: uint8[h, w, 3]; without loss if it is small, else a JPEG.
    """
    kind = "png" if image.shape[0] * image.shape[1] <= _LOSSLESS else "jpeg"
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
