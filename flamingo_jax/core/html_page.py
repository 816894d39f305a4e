"""The pages that show data: one look, texts escaped, and no reaching for anything outside.

Plain HTML and CSS without scripts; a page forbids itself (Content-Security-Policy) whatever it was not given.
"""

import base64
import html
import io
import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_LOSSLESS = 64 * 64  # pixels: PNG is as small up to here, and a pixel of a small image is seen

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 28px 48px; max-width: 1280px; background: #f6f7f9; color: #22303c;
  font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif; }
h1 { font-size: 24px; margin: 0 0 2px; }
.made { margin: 0 0 18px; color: #5b6b78; overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(186px, 1fr)); gap: 10px; margin: 0 0 14px; }
.facts div { background: #fff; border: 1px solid #dfe4e8; border-radius: 8px; padding: 8px 12px; }
.facts dt { color: #5b6b78; font-size: 13px; }
.facts dd { margin: 0; font-size: 18px; font-weight: 600; overflow-wrap: anywhere; }
article { background: #fff; border: 1px solid #dfe4e8; border-radius: 10px; padding: 14px 18px 16px; margin: 0 0 16px; }
article h2, article h3 { font-size: 16px; margin: 0 0 10px; display: flex; flex-wrap: wrap; gap: 2px 18px; align-items: baseline; }
article h2 span, article h3 span { font-weight: 400; font-size: 13px; color: #5b6b78; }
.small { image-rendering: pixelated; }
""".strip()


def document(title: str, made: str, facts: Mapping[str, str], body: str, *, style: str, images: str) -> str:
    """Returns a whole page.

    Args:
        title: its headline.
        made: one line on what is shown.
        facts: name -> value, shown on top.
        body: HTML of what follows.
        style: CSS rules of the page, added to the common ones.
        images: where its images may come from, in the words of Content-Security-Policy: "data:" or "'self' file:".
    """
    shown = "\n".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src {images}; '
        "style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}\n{style}\n</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="made">{escape(made)}</p>\n<dl class="facts">\n{shown}\n</dl>\n'
        f"{body}\n</body>\n</html>\n"
    )


def escape(text: str) -> str:
    """Text as HTML that shows all of it: line breaks have a sign, and control characters, which HTML forbids, their number."""
    text = text.encode(errors="backslashreplace").decode()  # file names, and texts of JSON, need not be Unicode
    shown = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)
    return html.escape(shown).replace("\n", "↵\n")


def embedded(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """An image as the address that holds all of it (data:), so that the page is one file.

    Args:
        image: uint8[h, w, 3]; without loss if it is small, else a JPEG.
    """
    kind = "png" if image.shape[0] * image.shape[1] <= _LOSSLESS else "jpeg"
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
