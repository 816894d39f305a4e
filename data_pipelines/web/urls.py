"""Resolves the references of web pages to URLs, as browsers do.

Follows the WHATWG URL Standard (url.spec.whatwg.org, "URL parsing"). RFC 3986, which urllib
follows, differs where pages are careless: backslashes, tabs and newlines inside, spaces, any number
of slashes before the host, hosts in other scripts, "..", queries in the charset of the page.

    reference + base  --resolve-->  URL without fragment  --same_url-->  key of an archive
"""

from __future__ import annotations

import codecs
import dataclasses
import functools
import ipaddress
import re
import urllib.parse

_DEFAULT_PORTS = {"http": 80, "https": 443, "ftp": 21, "ws": 80, "wss": 443}
_SPECIAL = frozenset([*_DEFAULT_PORTS, "file"])
_LARGEST_PORT = 65535
_LONGEST_HOST = 1_000  # characters; DNS allows 253
_AROUND = "".join(map(chr, range(33)))
_INSIDE = str.maketrans("", "", "\t\n\r")
_SCHEME = re.compile(r"\A([a-zA-Z][a-zA-Z0-9+.-]*):")
_DRIVE = re.compile(r"[a-zA-Z][:|](?=[/\\?#]|$)")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_IN_HOST = re.compile("[\0\t\n\r #/:<>?@\\[\\\\\\]^|]")
_NOT_IN_DOMAIN = re.compile("[\0-\x20#%/:<>?@\\[\\\\\\]^|\x7f]")
# A URL that is in its normal form already, as most are. No segment starts with a dot.
_NORMAL = re.compile(
    r"https?://(?:[a-z0-9-]+\.)*[a-z]+(?:/(?![.%])[A-Za-z0-9_~!$&()*+,;=:@.-]*)+"
    r"(?:\?[A-Za-z0-9_~!$&()*+,;=:@./?-]+)?"
)
# What is written as %XX, in addition to controls and what is not ASCII. quote()
# never changes letters, digits and _.-~, and gets the others.
_PRINTABLE = "".join(map(chr, range(33, 127)))


def _without(characters: str) -> str:
    return _PRINTABLE.translate(str.maketrans("", "", characters))


_IN_PATH = _without('"#<>?^`{}')
_IN_QUERY = _without('"#<>')
_IN_SPECIAL_QUERY = _without("\"#<>'")
_IN_USER = _without('"#<>?^`{}/:;=@[\\]|')
_IN_OPAQUE = _PRINTABLE + " "

_ESCAPE = re.compile("%([0-9A-Fa-f]{2})")
_DOTS = {".": ".", "%2e": ".", "..": "..", ".%2e": "..", "%2e.": "..", "%2e%2e": ".."}
# Characters that some crawlers write as %XX and others do not.
_ALWAYS_ESCAPED = str.maketrans({letter: f"%{ord(letter):02X}" for letter in "\"'<>[\\]^`{|}"})


@dataclasses.dataclass(frozen=True)
class _Url:
    """The components of a URL.

    Attributes:
      scheme: lower case.
      user: "name:password", encoded; "" = none.
      host: encoded; None = there is none.
      port: None = the default of the scheme.
      path: segments, or a text for a path that is not divided ("mailto:x").
      query: encoded, without "?"; None = none.
    """

    scheme: str
    user: str = ""
    host: str | None = None
    port: int | None = None
    path: tuple[str, ...] | str = ()
    query: str | None = None

    @property
    def is_special(self) -> bool:
        return self.scheme in _SPECIAL

    @property
    def slashes(self) -> str:
        return "/\\" if self.is_special else "/"

    def __str__(self) -> str:
        authority = ""
        if self.host is not None:
            port = "" if self.port is None else f":{self.port}"
            authority = f"//{self.user}{'@' if self.user else ''}{self.host}{port}"
        path = self.path
        if not isinstance(path, str):
            path = "".join(f"/{segment}" for segment in path)
        if self.host is None and path.startswith("//"):
            path = f"/.{path}"
        query = "" if self.query is None else f"?{self.query}"
        return f"{self.scheme}:{authority}{path}{query}"


class _InvalidError(ValueError):
    """A text is no URL."""


def resolve(reference: str, base: str = "", charset: str = "utf-8") -> str:
    """Returns the absolute URL of a reference without its fragment, or "" if it has none.

    Args:
      reference: as in the page.
      base: absolute URL of the page, or of its <base>.
      charset: Python's name of the page's charset, in which queries are written.
    """
    if _NORMAL.fullmatch(reference):
        return reference
    try:
        return str(_parsed(reference, _base(base) if base else None, charset))
    except _InvalidError:
        return ""


def same_url(url: str) -> str:
    """Returns the normal form of a URL: URLs with one form name the same file.

    It has no fragment, user or default port. http and https are the same. Text that is no URL is
    returned without its fragment.
    """
    without_fragment = url.partition("#")[0]
    if _NORMAL.fullmatch(without_fragment):
        return f"https{without_fragment[without_fragment.index(':') :]}"
    try:
        parsed = _parsed(url, None, "utf-8")
    except _InvalidError:
        return url.strip().partition("#")[0]
    if parsed.scheme in ("http", "https"):
        parsed = dataclasses.replace(parsed, scheme="https", query=parsed.query or None)
    bare = str(dataclasses.replace(parsed, user=""))
    return _ESCAPE.sub(_unreserved, bare).translate(_ALWAYS_ESCAPED)


def _unreserved(escape: re.Match[str]) -> str:
    """Writes %41 as A, and %2f as %2F."""
    letter = chr(int(escape.group(1), 16))
    is_unreserved = letter.isascii() and (letter.isalnum() or letter in "-._~")
    return letter if is_unreserved else escape[0].upper()


@functools.lru_cache(maxsize=64)
def _base(base: str) -> _Url:
    """Parses the base of many references."""
    return _parsed(base, None, "utf-8")


def _parsed(text: str, base: _Url | None, charset: str) -> _Url:
    if _SURROGATE.search(text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = text.strip(_AROUND).translate(_INSIDE)
    text, _, _ = text.partition("#")
    scheme = _SCHEME.match(text)
    if not scheme:
        if base is None or (isinstance(base.path, str) and text):
            raise _InvalidError
        read = _file if base.scheme == "file" else _relative
        return read(text, base, charset)
    url, rest = _Url(scheme.group(1).lower()), text[scheme.end() :]
    if url.scheme == "file":
        return _file(rest, base if base and base.scheme == "file" else None, charset)
    if url.is_special:
        if base and base.scheme == url.scheme and not rest.startswith("//"):
            return _relative(rest, base, charset)
        return _authority(rest.lstrip("/\\"), url, charset)
    if rest.startswith("//"):
        return _authority(rest[2:], url, charset)
    if rest.startswith("/"):
        return _path(rest, url, charset)
    path, mark, query = rest.partition("?")
    if path.endswith(" "):
        path = f"{path[:-1]}%20"
    return dataclasses.replace(
        url,
        path=urllib.parse.quote(path, _IN_OPAQUE),
        query=_query(query, url, charset) if mark else None,
    )


def _relative(rest: str, base: _Url, charset: str) -> _Url:
    """Resolves a reference without a scheme."""
    if rest[:1] and rest[0] in base.slashes:
        if rest[1:2] and rest[1] in base.slashes:
            rest = rest.lstrip("/\\") if base.is_special else rest[2:]
            return _authority(rest, _Url(base.scheme), charset)
        return _path(rest, dataclasses.replace(base, path=()), charset)
    if not rest:
        return base
    if rest.startswith("?"):
        return dataclasses.replace(base, query=_query(rest[1:], base, charset))
    return _path(rest, dataclasses.replace(base, path=_shortened(base)), charset)


def _file(rest: str, base: _Url | None, charset: str) -> _Url:
    """Resolves a reference after "file:"; base: a URL of a file."""
    url = _Url("file", host="")
    if rest[:1] and rest[0] in "/\\":
        if rest[1:2] and rest[1] in "/\\":
            host = re.split(r"[/\\?]", rest[2:], maxsplit=1)[0]
            if _DRIVE.fullmatch(host):
                return _path(rest[2:], url, charset)
            rest = rest[2 + len(host) :]
            host = _host(host, is_special=True) if host else ""
            url = dataclasses.replace(url, host="" if host == "localhost" else host)
            return _path(rest, url, charset)
        if base:
            drive = base.path[:1] if base.path and _DRIVE.fullmatch(base.path[0]) else ()
            is_drive = _DRIVE.match(rest, 1)
            url = dataclasses.replace(url, host=base.host, path=() if is_drive else tuple(drive))
        return _path(rest, url, charset)
    if base is None:
        return _path(rest, url, charset)
    if rest and _DRIVE.match(rest):
        return _path(rest, dataclasses.replace(base, path=()), charset)
    return _relative(rest, base, charset)


def _authority(rest: str, url: _Url, charset: str) -> _Url:
    """Reads [USER[:PASSWORD]@]HOST[:PORT][PATH][?QUERY]."""
    ends = [at for mark in (*url.slashes, "?") if (at := rest.find(mark)) >= 0]
    end = min(ends, default=len(rest))
    user, _, address = rest[:end].rpartition("@")
    name, _, password = user.partition(":")
    bracket = address.find("]") if address.startswith("[") else -1
    colon = address.find(":", bracket + 1)
    host, port = (address, "") if colon < 0 else (address[:colon], address[colon + 1 :])
    if not host and (url.is_special or address != rest[:end] or colon >= 0):
        raise _InvalidError
    if port and not (port.isascii() and port.isdigit()):
        raise _InvalidError
    number = int(port.lstrip("0")[:9] or 0) if port else None
    if number is not None and number > _LARGEST_PORT:
        raise _InvalidError
    name, password = (urllib.parse.quote(part, _IN_USER) for part in (name, password))
    url = dataclasses.replace(
        url,
        user=f"{name}:{password}" if password else name,
        host=_host(host, is_special=url.is_special),
        port=None if number == _DEFAULT_PORTS.get(url.scheme) else number,
    )
    return _path(rest[end:], url, charset)


def _path(rest: str, url: _Url, charset: str) -> _Url:
    """Adds the segments of a path to those that the URL has, and its query."""
    path, mark, query = rest.partition("?")
    found = list(url.path)
    if path or url.is_special:
        if path[:1] and path[0] in url.slashes:
            path = path[1:]
        if "\\" in path and url.is_special:
            path = path.replace("\\", "/")
        *inner, last = path.split("/")
        for segment in inner:
            dots = _DOTS.get(segment.lower())
            if dots == "..":
                _shorten(found, url)
            elif dots != ".":
                found.append(_segment(segment, url, is_first=not found))
        dots = _DOTS.get(last.lower())
        if dots == "..":
            _shorten(found, url)
        found.append("" if dots else _segment(last, url, is_first=not found))
    return dataclasses.replace(
        url, path=tuple(found), query=_query(query, url, charset) if mark else None
    )


def _segment(segment: str, url: _Url, *, is_first: bool) -> str:
    if is_first and url.scheme == "file" and _DRIVE.fullmatch(segment):
        return f"{segment[0]}:"
    return urllib.parse.quote(segment, _IN_PATH)


def _shortened(url: _Url) -> tuple[str, ...]:
    path = list(url.path)
    _shorten(path, url)
    return tuple(path)


def _shorten(path: list[str], url: _Url) -> None:
    """Drops the last segment, if it is not the drive of a file."""
    if path and not (url.scheme == "file" and len(path) == 1 and _DRIVE.fullmatch(path[0])):
        path.pop()


def _query(query: str, url: _Url, charset: str) -> str:
    safe = _IN_SPECIAL_QUERY if url.is_special else _IN_QUERY
    if query.isascii():
        return urllib.parse.quote(query, safe)
    is_utf_8 = not url.is_special or charset.startswith("utf-")
    try:
        encoded = query.encode("utf-8" if is_utf_8 else charset, _NUMBERS)
    except LookupError:  # the charsets without a codec
        encoded = query.encode()
    return urllib.parse.quote_from_bytes(encoded, safe)


def _host(host: str, *, is_special: bool) -> str:
    """Returns the host of a URL in the form in which it is compared."""
    if len(host) > _LONGEST_HOST:
        raise _InvalidError
    if host.startswith("["):
        if not host.endswith("]"):
            raise _InvalidError
        return f"[{_ipv6(host[1:-1])}]"
    if not is_special:
        if _NOT_IN_HOST.search(host):
            raise _InvalidError
        return urllib.parse.quote(host, _IN_OPAQUE)
    domain = _domain(urllib.parse.unquote(host))
    if not domain or _NOT_IN_DOMAIN.search(domain):
        raise _InvalidError
    parts = domain.removesuffix(".").split(".")
    if parts[-1].isdigit() or _number(parts[-1]) is not None:
        return _ipv4(parts)
    return domain


def _domain(host: str) -> str:
    """Returns a domain in ASCII: lower case, other scripts in Punycode (UTS 46)."""
    try:
        if not host.isascii():
            import idna

            host = idna.uts46_remap(host, std3_rules=False, transitional=False)
        return ".".join(map(_label, host.lower().split(".")))
    except UnicodeError as error:  # a character that no domain may have, or no Punycode
        raise _InvalidError from error


def _label(label: str) -> str:
    if not label.isascii():
        return f"xn--{label.encode('punycode').decode()}"
    if label.startswith("xn--") and label[4:].encode().decode("punycode").isascii():
        raise _InvalidError
    return label


def _ipv6(text: str) -> str:
    try:
        if "%" in text:
            raise _InvalidError
        number = int(ipaddress.IPv6Address(text))
    except ValueError as error:
        raise _InvalidError from error
    pieces = [f"{number >> shift & 0xFFFF:x}" for shift in range(112, -1, -16)]
    for length in range(8, 1, -1):  # the first of the longest runs of zeros becomes "::"
        for start in range(9 - length):
            if pieces[start : start + length] == ["0"] * length:
                before, after = pieces[:start], pieces[start + length :]
                return f"{':'.join(before)}::{':'.join(after)}"
    return ":".join(pieces)


def _ipv4(parts: list[str]) -> str:
    numbers = [_number(part) for part in parts]
    known = [number for number in numbers if number is not None]
    if len(known) != len(parts) or len(parts) > 4 or any(number > 255 for number in known[:-1]):
        raise _InvalidError
    if known[-1] >= 256 ** (5 - len(known)):
        raise _InvalidError
    value = known[-1] + sum(number << 24 - 8 * at for at, number in enumerate(known[:-1]))
    return ".".join(str(value >> shift & 255) for shift in (24, 16, 8, 0))


def _number(part: str) -> int | None:
    """Returns the number in a part of an IPv4 address: decimal, 0x hexadecimal or 0 octal."""
    base = 10
    if part[:2] in ("0x", "0X"):
        part, base = part[2:] or "0", 16
    elif len(part) > 1 and part[0] == "0":
        base = 8
    is_number = part and set(part) <= set("0123456789abcdefABCDEF"[: base if base < 16 else 22])
    return int(part, base) if is_number else None


def _numbers(error: UnicodeError) -> tuple[str, int]:
    """Writes a character that a charset lacks as "&#NUMBER;", encoded for a query."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(f"%26%23{ord(letter)}%3B" for letter in lacking), error.end


_NUMBERS = "flamingo_jax.query"
codecs.register_error(_NUMBERS, _numbers)
