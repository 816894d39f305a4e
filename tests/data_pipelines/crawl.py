"""Makes the files of a crawl: images in the formats of the web, pages, and WARC files."""

import io
import uuid
from collections.abc import Iterable

import numpy as np
from PIL import Image
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

_NOUNS = (
    "harbour town market ship museum church lighthouse island boat village bridge river garden "
    "winter morning story friend window kitchen teacher letter mountain road forest horse bakery "
    "festival song painter tower sailor library school train station valley storm"
).split()
_ADJECTIVES = (
    "old small quiet bright narrow famous wooden distant cheerful early empty green heavy hidden "
    "lovely modern".split()
)
_VERBS = (
    "follows reaches watches remembers crosses leaves finds keeps paints visits builds carries"
).split()
_JOINS = "and but while because before after".split()


def picture(seed: int = 0, width: int = 96, height: int = 80) -> Image.Image:
    """Returns a picture that compresses like a photo: smooth colours that differ by seed."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    """Returns an image as a file; `kind` is PIL's name of the format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(seed: int = 0, width: int = 96, height: int = 80) -> bytes:
    return encoded(picture(seed, width, height), "JPEG")


def png(seed: int = 0, width: int = 96, height: int = 80) -> bytes:
    return encoded(picture(seed, width, height), "PNG")


def webp(seed: int = 0, width: int = 96, height: int = 80) -> bytes:
    return encoded(picture(seed, width, height), "WEBP")


def prose(seed: int, num_sentences: int = 5) -> str:
    """Returns English text that passes the text filters, about 20 words per sentence.

    Different seeds give different texts.
    """
    rng = np.random.default_rng(seed)

    def words(kind: list[str], number: int) -> list[str]:
        return [kind[i] for i in rng.choice(len(kind), number, replace=False)]

    sentences = []
    for _ in range(num_sentences):
        noun, adjective = words(_NOUNS, 6), words(_ADJECTIVES, 3)
        verb, join = words(_VERBS, 2), words(_JOINS, 1)
        sentences.append(
            f"The {adjective[0]} {noun[0]} of the {noun[1]} {verb[0]} that {noun[2]} {join[0]} a "
            f"{adjective[1]} {noun[3]} {verb[1]} the {noun[4]} with {adjective[2]} {noun[5]}."
        )
    return " ".join(sentences)


def article(title: str, paragraphs: Iterable[str], *, head: str = "") -> str:
    """Returns a page like real ones: paragraphs (HTML) in an <article>, with boilerplate."""
    body = "\n".join(paragraphs)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta '
        f'charset="utf-8"><title>{title}</title>{head}</head><body><header><a '
        'href="/">Home</a></header><nav><ul><li><a href="/a">A</a></li></ul></nav>'
        f"<article><h1>{title}</h1>{body}</article>"
        '<div class="cookie-banner"><p>We use cookies.</p></div><footer>All rights '
        "reserved</footer></body></html>"
    )


def make_warc(path, responses: Iterable[tuple], *, gzip: bool = True) -> list[tuple[int, int]]:
    """Writes a WARC file with one `response` per item, as crawlers do.

    Args:
      path: of the file.
      responses: (url, content type, body) or (url, content type, body, options); options: status
        "200 OK", record_type "response", headers (HTTP), warc_headers.
      gzip: True for one gzip member per record, False for a plain file.

    Returns:
      (offset, length) of each record.
    """
    places = []
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=gzip)
        for number, (url, content_type, body, *rest) in enumerate(responses):
            options = rest[0] if rest else {}
            body = body.encode() if isinstance(body, str) else body
            headers = [
                ("Content-Type", content_type),
                ("Content-Length", str(len(body))),
                *options.get("headers", []),
            ]
            fixed = {  # so that the file is the same every time
                "WARC-Record-ID": f"<urn:uuid:{uuid.UUID(int=number)}>",
                "WARC-Date": "2021-07-01T00:00:00Z",
            }
            status = options.get("status", "200 OK")
            record = writer.create_warc_record(
                url,
                options.get("record_type", "response"),
                payload=io.BytesIO(body),
                http_headers=StatusAndHeaders(status, headers, protocol="HTTP/1.1"),
                length=len(body),
                warc_headers_dict=fixed | options.get("warc_headers", {}),
            )
            start = file.tell()
            writer.write_record(record)
            places.append((start, file.tell() - start))
    return places
