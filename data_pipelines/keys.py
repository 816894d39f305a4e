"""What makes two records the same: keys for `collect.Found`."""

from __future__ import annotations

import hashlib
import urllib.parse

_KEPT = "/%:@!$&'()*+,;=~-._?[]"  # of a path: all else is written as %XX, as browsers do
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def url_key(url: str) -> str:
    """Returns "url:" and a URL in its common form, or "" for an empty one.

    Without the fragment, user and default port; host in lower case; http and https are one; spaces
    and other letters as %XX; an empty path is "/". The query stays: it may name the page.
    """
    return f"url:{same_url(url)}" if url else ""


def same_url(url: str) -> str:
    """Returns the common form of a URL that `url_key` speaks of.

    What is no URL is returned without its fragment.
    """
    bare = url.strip().partition("#")[0]
    try:
        parts = urllib.parse.urlsplit(bare)
    except ValueError:  # an unclosed [ of an IPv6 address, for one
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
    """Returns "text:" and a hash of a text in which case and white space do not count, or "" for an empty one."""
    words = text.lower().split()
    digest = hashlib.blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=16)
    return f"text:{digest.hexdigest()}" if words else ""
