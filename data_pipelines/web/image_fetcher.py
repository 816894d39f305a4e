"""Fetches images over HTTP for pages without images in their archive; off by default.

The URLs come from arbitrary pages, so nothing in them is trusted:
- Only http and https on their default ports are allowed. Names are resolved once, every address
  must be a public one, and the connection goes to the checked address, since a second lookup could
  give another one. Each redirect is checked again.
- A request has one deadline for everything, from the look-up of the name to the last byte, however
  slowly they arrive, and a limit of bytes.
  The number of redirects is limited.
- A host is asked again after `interval` seconds, or after the delay in its robots.txt. What this
  file forbids is not fetched.
Limits per host hold within one process. With many workers, give each worker different hosts, or a
longer interval.
"""

from __future__ import annotations

import collections
import concurrent.futures
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
from typing import TypeVar

from data_pipelines.page import Reject
from flamingo_jax.data.images.read import probe
from flamingo_jax.data.schema import CorruptRecord

USER_AGENT = "flamingo_jax (images for research; honours robots.txt)"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]
_Result = TypeVar("_Result")

_REDIRECTS = (301, 302, 303, 307, 308)
_NOT_NOW = (408, 429, 500, 502, 503, 504)
# Types of a server that does not know the type: S3 says binary/octet-stream. The content decides.
_UNTYPED = (
    "",
    "application/octet-stream",
    "binary/octet-stream",
    "application/unknown",
    "unknown/unknown",
    "*/*",
)
_NO_SUCH_NAME = tuple(
    number
    for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY")
    if (number := getattr(socket, name, None)) is not None
)
_CHUNK = 1 << 16
_NAME = "flamingo_jax"  # our name in a robots.txt
_NOTHING_ALLOWED = ["User-agent: *", "Disallow: /"]
_ROBOTS_BYTES = 500_000
_HOSTS_KNOWN = 10_000
_LONGEST_DELAY = 60.0  # seconds; a host that asks for more is not asked
_EMBEDDED = ipaddress.ip_network("64:ff9b::/96")  # NAT64: an IPv4 address in the last 32 bits


@dataclasses.dataclass(frozen=True)
class FetchLimits:
    """Limits of a fetch.

    Attributes:
      seconds: for one request, from the look-up of the name to the last byte; a redirect is a new
        request.
      max_bytes: of the image.
      max_redirects: of one request.
      interval: seconds between the starts of two requests to one host.
      retry: seconds until a name is looked up again, after a look-up failed for the moment.
      ports: allowed ports.
    """

    seconds: float = 20.0
    max_bytes: int = 20_000_000
    max_redirects: int = 4
    interval: float = 1.0
    retry: float = 60.0
    ports: frozenset[int] = frozenset({80, 443})


def is_public(address: str) -> bool:
    """Returns True for an IP address of the public internet.

    False for a private, loopback, link-local, multicast or reserved address, and for an address
    that leads to one of them.
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
      is_allowed: returns True for an address that may be connected to.
      sleep: waits for a number of seconds.
    """

    def __init__(
        self,
        limits: FetchLimits = FetchLimits(),
        *,
        resolve: Resolve = resolve,
        is_allowed: Callable[[str], bool] = is_public,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._limits, self._resolve = limits, resolve
        self._is_allowed, self._sleep = is_allowed, sleep
        self._next: collections.OrderedDict[str, float] = collections.OrderedDict()
        self._silent: collections.OrderedDict[str, float] = collections.OrderedDict()
        # One cache per instance: a cache of the class would keep instances alive.
        self._rules = functools.lru_cache(maxsize=_HOSTS_KNOWN)(self._read_rules)

    def __call__(self, url: str) -> bytes | Reject:
        """Returns the bytes of an image, or a Reject.

        The reasons: fetch_refused (by our rules), fetch_disallowed (by robots.txt),
        unresolvable_host (there is no such name), fetch_failed, not_an_image, image_too_large.
        """
        try:
            return self._get(url, self._limits.max_bytes, accept="image/", use_rules=True)
        except _Refused as refused:
            return _reject(refused.reason, f"{refused}")
        # ValueError: an invalid URL or header
        except (OSError, http.client.HTTPException, ValueError) as error:
            return _reject("fetch_failed", f"{error!r}")

    def _get(self, url: str, max_bytes: int, *, accept: str, use_rules: bool) -> bytes:
        for _ in range(self._limits.max_redirects + 1):
            parts = urllib.parse.urlsplit(url)
            host, port = self._checked(parts)
            if use_rules:
                self._ask(parts, host, url)
            end = time.monotonic() + self._limits.seconds
            addresses = self._addresses(host, port)
            target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
            if parts.query:
                target += f"?{urllib.parse.quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}"
            with _connection(parts.scheme, host, port, addresses, end) as connection:
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
                media_type = response.getheader("Content-Type") or ""
                media_type = media_type.partition(";")[0].strip().lower()
                if media_type.startswith(accept):
                    return _body(response, max_bytes)
                if media_type not in _UNTYPED:
                    raise _Refused("not_an_image", f"{url} is {media_type:.60}")
                body = _body(response, max_bytes)
                try:
                    probe(body)
                except CorruptRecord as error:
                    raise _Refused("not_an_image", f"{url}: {error}") from error
                return body
        detail = f"more than {self._limits.max_redirects} redirects, last to {url:.200}"
        raise _Refused("fetch_failed", detail)

    def _checked(self, parts: urllib.parse.SplitResult) -> tuple[str, int]:
        if parts.scheme not in ("http", "https") or not parts.hostname:
            detail = f"{parts.geturl():.200}: expected http or https, and a host"
            raise _Refused("fetch_refused", detail)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if port not in self._limits.ports:
            detail = f"{parts.geturl():.200}: port {port} is none of {sorted(self._limits.ports)}"
            raise _Refused("fetch_refused", detail)
        return parts.hostname, port

    def _addresses(self, host: str, port: int) -> list[str]:
        """Returns the addresses of a host.

        All must be allowed, so that asking again cannot give a forbidden one.
        """
        if time.monotonic() < self._silent.get(host, 0.0):
            raise socket.gaierror(socket.EAI_AGAIN, f"the look-up of {host} has just failed")
        try:
            addresses = _in_time(lambda: self._resolve(host, port), self._limits.seconds)
        except TimeoutError as error:
            self._remember(host)
            detail = f"the look-up of {host} took more than {self._limits.seconds} seconds"
            raise socket.gaierror(socket.EAI_AGAIN, detail) from error
        except socket.gaierror as error:
            if error.errno in _NO_SUCH_NAME:
                raise _Refused("unresolvable_host", f"{host}: {error.strerror}") from error
            self._remember(host)
            raise
        except UnicodeError as error:  # a name that IDNA does not allow
            raise _Refused("unresolvable_host", f"{host:.200}: {error}") from error
        if not addresses:
            raise _Refused("unresolvable_host", f"{host} has no address")
        forbidden = [address for address in addresses if not self._is_allowed(address)]
        if forbidden:
            found = ", ".join(forbidden)
            raise _Refused("fetch_refused", f"{host} has the address {found}, which is not public")
        return addresses

    def _remember(self, host: str) -> None:
        """Remembers for some time that the name of a host could not be looked up."""
        self._silent[host] = time.monotonic() + self._limits.retry
        if len(self._silent) > _HOSTS_KNOWN:
            self._silent.popitem(last=False)

    def _ask(self, parts: urllib.parse.SplitResult, host: str, url: str) -> None:
        """Waits until the host may be asked. Raises if its robots.txt forbids the URL."""
        rules = self._rules(parts.scheme, parts.netloc.rpartition("@")[2])
        if isinstance(rules, _Refused):
            raise rules
        if not rules.can_fetch(_NAME, url):
            raise _Refused("fetch_disallowed", f"robots.txt of {host} forbids {url:.200}")
        delay = max(self._limits.interval, float(rules.crawl_delay(_NAME) or 0))
        if delay > _LONGEST_DELAY:
            detail = f"robots.txt of {host} asks for {delay} seconds between requests"
            raise _Refused("fetch_disallowed", detail)
        now = time.monotonic()
        turn = max(now, self._next.pop(host, now))
        self._next[host] = turn + delay
        if len(self._next) > _HOSTS_KNOWN:
            self._next.popitem(last=False)
        if turn > now:
            self._sleep(turn - now)

    def _read_rules(
        self, scheme: str, netloc: str
    ) -> urllib.robotparser.RobotFileParser | _Refused:
        """Reads the robots.txt of a host, as RFC 9309 says.

        A missing file (4xx) allows everything. A server error (5xx, no answer) allows nothing.

        Returns:
          The rules; or why no host has this name.

        Raises:
          OSError: the name cannot be looked up at the moment.
        """
        rules = urllib.robotparser.RobotFileParser()
        try:
            url = f"{scheme}://{netloc}/robots.txt"
            text = self._get(url, _ROBOTS_BYTES, accept="", use_rules=False)
            rules.parse(text.decode("utf-8", "replace").splitlines())
        except _Status as status:
            rules.parse(_NOTHING_ALLOWED if status.status in _NOT_NOW else [])
        except _Refused as refused:
            if refused.reason == "unresolvable_host":
                return refused
            raise
        except socket.gaierror:
            raise
        except (OSError, http.client.HTTPException):
            rules.parse(_NOTHING_ALLOWED)
        return rules


@functools.cache
def _fetcher() -> ImageFetcher:
    return ImageFetcher()


def fetch(url: str) -> bytes | Reject:
    """Returns what one `ImageFetcher` of the process does: `flamingo_jax.serve` can call it."""
    return _fetcher()(url)


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
    scheme: str, host: str, port: int, addresses: list[str], end: float
) -> Iterator[http.client.HTTPConnection]:
    """Connects to one of the addresses of a host, under its name.

    The connection is cut at the time `end`, whatever it is doing then.
    """
    link = _linked(addresses, port, end)
    seconds = max(end - time.monotonic(), 0.001)
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    is_over = threading.Event()

    def cut() -> None:
        is_over.set()
        with contextlib.suppress(OSError):  # the connection has ended already
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
        if is_over.is_set():  # a cut answer can look complete, or fail in many ways
            raise TimeoutError(f"{host} has taken longer than a request may")


def _linked(addresses: list[str], port: int, end: float) -> socket.socket:
    """Connects to the first address that answers: this machine can be without IPv6."""
    for number, address in enumerate(addresses, 1):
        try:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            return socket.create_connection((address, port), timeout=left)
        except OSError:
            if number == len(addresses):
                raise
    raise AssertionError("a host has at least one address")


def _in_time(work: Callable[[], _Result], seconds: float) -> _Result:
    """Returns what `work` returns. Raises TimeoutError if that takes too long.

    The look-up of a name cannot be interrupted: its thread is left behind.
    """
    result: concurrent.futures.Future[_Result] = concurrent.futures.Future()

    def run() -> None:
        try:
            result.set_result(work())
        except (OSError, ValueError) as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result(timeout=seconds)


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
    broken = reason in ("fetch_failed", "unresolvable_host", "not_an_image", "image_too_large")
    return Reject(reason, detail, unit="image", broken=broken)
