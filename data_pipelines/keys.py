"""Keys by which `collect` recognises that two records are the same."""

from __future__ import annotations

import hashlib

from data_pipelines.web.urls import same_url


def url_key(url: str) -> str:
    """Returns "url:" and the normal form of a URL, or "" for an empty URL.

    `same_url` says which URLs have the same form. The query is kept, since it can name the page.
    """
    return f"url:{same_url(url)}" if url else ""


def text_key(text: str) -> str:
    """Returns "text:" and a hash of a text, or "" for an empty text.

    Case and white space do not change the hash.
    """
    words = text.lower().split()
    digest = hashlib.blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=16)
    return f"text:{digest.hexdigest()}" if words else ""
