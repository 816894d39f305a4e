"""Keys by which `collect` recognises that two records are the same."""

from __future__ import annotations

import hashlib
import urllib.parse

_KEPT = "/%:@!$&'()*+,;=~-._?[]"  # in a path; other characters become %XX, as in browsers
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def url_key(url: str) -> str:
    """Returns "url:" and the normal form of a URL, or "" for an empty URL.

    The normal form has no fragment, user or default port. The host is in lower case, and http and
    https are the same. Spaces and other characters are written as %XX, and an empty path is "/".
    The query is kept, since it can name the page.
    """
    return f"url:{same_url(url)}" if url else ""


def same_url(url: str) -> str:
    """Returns the normal form of a URL, as in `url_key`.

    Text that is no URL is returned without its fragment.
    """
    bare = url.strip().partition("#")[0]
    try:
        parts = urllib.parse.urlsplit(bare)
    except ValueError:  # for example an unclosed [ of an IPv6 address
        return bare
    if not parts.netloc:
        return bare
    scheme = parts.scheme.lower()
    host = parts.netloc.rpartition("@")[2].lower().removesuffix(_DEFAULT_PORTS.get(scheme, ":"))
    path, query = (
        urllib.parse.quote(text, _KEPT, errors="surrogatepass")
        for text in (parts.path or "/", parts.query)
    )
    return urllib.parse.urlunsplit(("https" if scheme == "http" else scheme, host, path, query, ""))


def text_key(text: str) -> str:
    """Returns "text:" and a hash of a text, or "" for an empty text.

    Case and white space do not change the hash.
    """
    words = text.lower().split()
    digest = hashlib.blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=16)
    return f"text:{digest.hexdigest()}" if words else ""
