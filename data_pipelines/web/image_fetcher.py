"""Fetches images over HTTP for pages whose archive lacks them; off unless it is asked for.

URLs come from anyone's pages, so nothing in them is trusted:
- only http and https, on their default ports; names are resolved once, every address must be a
  public one, and the connection goes to the address that was checked (a second lookup could answer
  otherwise); each redirect is checked anew;
- a request has one deadline for all of it, however slowly bytes drip in, and a limit of bytes;
  redirects are limited;
- a host is asked again only after `interval` seconds, or what its robots.txt asks for; what that
  file forbids is not fetched.
Limits per host hold within one process: with many workers, give each its own hosts, or a longer
interval.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.robotparser
from collections.abc import Callable, Iterator

from data_pipelines.page import Reject

USER_AGENT = "flamingo_jax (images for research; honours robots.txt)"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]

_REDIRECTS = (301, 302, 303, 307, 308)
_NOT_NOW = (408, 429, 500, 502, 503, 504)
_CHUNK = 1 << 16
_NAME = "flamingo_jax"  # that a robots.txt calls us by
_NOTHING_ALLOWED = ["User-agent: *", "Disallow: /"]
_ROBOTS_BYTES = 500_000
_HOSTS_KNOWN = 10_000
_LONGEST_DELAY = 60.0  # seconds; a host that asks for more is left alone
_EMBEDDED = ipaddress.ip_network("64:ff9b::/96")  # NAT64: an IPv4 address in the last 32 bits


@dataclasses.dataclass(frozen=True)
class FetchLimits:
    """What a fetch may cost.

    Attributes:
      seconds: for one request, from the connection to its last byte; a redirect is a new one.
      max_bytes: of the image.
      max_redirects: of one request.
      interval: seconds between the starts of two requests to one host.
      ports: that may be asked.
    """

    seconds: float = 20.0
    max_bytes: int = 20_000_000
    max_redirects: int = 4
    interval: float = 1.0
    ports: frozenset[int] = frozenset({80, 443})


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet.

    Not private, loopback, link-local, multicast or reserved, nor a way around that.
    """
    try:
        ip: Address = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _EMBEDDED:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if inner:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def resolve(host: str, port: int) -> list[str]:
    """Returns the addresses of a host."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class ImageFetcher:
    """Fetches images, politely: call it with a URL.

    Args:
        limits: of time, size and hosts.
        resolve: host, port -> addresses.
        is_allowed: which addresses may be connected to.
        sleep: waits for some seconds.
    """

    def __init__(
        self,
        limits: FetchLimits = FetchLimits(),
        *,
        resolve: Resolve = resolve,
        is_allowed: Callable[[str], bool] = is_public,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._limits, self._resolve, self._is_allowed, self._sleep = (
            limits,
            resolve,
            is_allowed,
            sleep,
        )
        self._next: collections.OrderedDict[str, float] = collections.OrderedDict()
        # Per instance: a cache of the class would keep instances alive.
        self._rules = functools.lru_cache(maxsize=_HOSTS_KNOWN)(self._read_rules)

    def __call__(self, url: str) -> bytes | Reject:
        """Returns the bytes of an image, or why there are none.

        Reasons: fetch_refused (by us), fetch_disallowed (by robots.txt), fetch_failed,
            not_an_image, image_too_large.
        """
        try:
            return self._get(url, self._limits.max_bytes, accept="image/", use_rules=True)
        except _Refused as refused:
            return _reject(refused.reason, f"{refused}")
        # ValueError: a URL or header that is none
        except (OSError, http.client.HTTPException, ValueError) as error:
            return _reject("fetch_failed", f"{error!r}")

    def _get(self, url: str, max_bytes: int, *, accept: str, use_rules: bool) -> bytes:
        for _ in range(self._limits.max_redirects + 1):
            parts = urllib.parse.urlsplit(url)
            host, port = self._checked(parts)
            if use_rules:
                self._ask(parts, host, url)
            address = self._address(host, port)
            target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
            target += (
                f"?{urllib.parse.quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}"
                if parts.query
                else ""
            )
            with _connection(parts.scheme, host, port, address, self._limits.seconds) as connection:
                headers = {
                    "User-Agent": USER_AGENT,
                    "Accept": "image/*,*/*;q=0.5",
                    "Accept-Encoding": "identity",
                }
                connection.request("GET", target, headers=headers)
                response = connection.getresponse()
                if response.status in _REDIRECTS and (location := response.getheader("Location")):
                    url = urllib.parse.urljoin(url, location)
                    continue
                if response.status != 200:
                    raise _Status(response.status, url)
                media_type = (response.getheader("Content-Type") or accept).strip().lower()
                if not media_type.startswith((accept, "application/octet-stream")):
                    raise _Refused("not_an_image", f"{url} is {media_type:.60}")
                return _body(response, max_bytes)
        raise _Refused(
            "fetch_failed", f"more than {self._limits.max_redirects} redirects, last to {url:.200}"
        )

    def _checked(self, parts: urllib.parse.SplitResult) -> tuple[str, int]:
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise _Refused(
                "fetch_refused", f"{parts.geturl():.200}: expected http or https, and a host"
            )
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if port not in self._limits.ports:
            raise _Refused(
                "fetch_refused",
                f"{parts.geturl():.200}: port {port} is none of {sorted(self._limits.ports)}",
            )
        return parts.hostname, port

    def _address(self, host: str, port: int) -> str:
        """An address of a host.

        All must be allowed, so that no other one can be had by asking again.
        """
        addresses = self._resolve(host, port)
        forbidden = [address for address in addresses if not self._is_allowed(address)]
        if forbidden or not addresses:
            raise _Refused(
                "fetch_refused",
                f"{host} has the address {', '.join(forbidden) or 'none'}, which is not public",
            )
        return addresses[0]

    def _ask(self, parts: urllib.parse.SplitResult, host: str, url: str) -> None:
        """Waits for the host's turn; raises if its robots.txt forbids the URL."""
        rules = self._rules(parts.scheme, parts.netloc.rpartition("@")[2])
        if not rules.can_fetch(_NAME, url):
            raise _Refused("fetch_disallowed", f"robots.txt of {host} forbids {url:.200}")
        delay = max(self._limits.interval, float(rules.crawl_delay(_NAME) or 0))
        if delay > _LONGEST_DELAY:
            raise _Refused(
                "fetch_disallowed",
                f"robots.txt of {host} asks for {delay} seconds between requests",
            )
        now = time.monotonic()
        turn = max(now, self._next.pop(host, now))
        self._next[host] = turn + delay
        if len(self._next) > _HOSTS_KNOWN:
            self._next.popitem(last=False)
        if turn > now:
            self._sleep(turn - now)

    def _read_rules(self, scheme: str, netloc: str) -> urllib.robotparser.RobotFileParser:
        """robots.txt of a host, as RFC 9309 says.

        None (4xx) allows everything, a server in trouble (5xx, no answer) nothing.
        """
        rules = urllib.robotparser.RobotFileParser()
        try:
            text = self._get(
                f"{scheme}://{netloc}/robots.txt", _ROBOTS_BYTES, accept="", use_rules=False
            )
            rules.parse(text.decode("utf-8", "replace").splitlines())
        except _Status as status:
            rules.parse(_NOTHING_ALLOWED if status.status in _NOT_NOW else [])
        except (OSError, http.client.HTTPException):
            rules.parse(_NOTHING_ALLOWED)
        return rules


class _Refused(Exception):
    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class _Status(http.client.HTTPException):
    def __init__(self, status: int, url: str):
        super().__init__(f"{url:.200}: status {status}")
        self.status = status


@contextlib.contextmanager
def _connection(
    scheme: str, host: str, port: int, address: str, seconds: float
) -> Iterator[http.client.HTTPConnection]:
    """A connection to an address in the name of a host, which is cut when its time is over, whatever it is doing then."""
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    link = socket.create_connection((address, port), timeout=seconds)
    is_over = threading.Event()

    def cut() -> None:
        is_over.set()
        with contextlib.suppress(OSError):  # it has ended
            link.shutdown(socket.SHUT_RDWR)

    alarm = threading.Timer(seconds, cut)
    alarm.daemon = True
    alarm.start()
    try:
        if scheme == "https":
            context = ssl.create_default_context()
            link = context.wrap_socket(link, server_hostname=host, do_handshake_on_connect=False)
            link.do_handshake()
        connection.sock = link
        yield connection
    finally:
        alarm.cancel()
        connection.close()
        link.close()
        if is_over.is_set():  # what was read before looks like an answer, or fails in many ways
            raise TimeoutError(f"{host} has taken more than {seconds} seconds")


def _body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    parts, size = [], 0
    while part := response.read1(_CHUNK):
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            raise _Refused("image_too_large", f"more than {max_bytes} bytes")
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)


def _reject(reason: str, detail: str) -> Reject:
    return Reject(
        reason,
        detail,
        unit="image",
        broken=reason in ("fetch_failed", "not_an_image", "image_too_large"),
    )
