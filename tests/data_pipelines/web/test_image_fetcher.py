"""Fetching images: what is never requested, and all answers that a server can give.

The servers run on this machine, under invented names.
"""

import contextlib
import http.server
import socket
import threading
import time

import pytest

pytest.importorskip("warcio")

from data_pipelines.page import Reject
from data_pipelines.web.image_fetcher import FetchLimits, ImageFetcher, is_public
from tests.data_pipelines import crawl

JPEG = crawl.jpeg()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with `answers` of its server: path -> (status, headers, body)."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append(
            (self.headers["Host"].partition(":")[0], self.path, self.headers["User-Agent"])
        )
        status, headers, body = self.server.answers.get(self.path, (404, {}, b""))
        with contextlib.suppress(OSError):  # the fetcher has closed the connection
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if callable(body):
                self.end_headers()
                body(self)
                return
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *args):
        """Logs nothing."""


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.answers, running.asked, running.stop = {}, [], threading.Event()
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.stop.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def fetcher(server):
    """Makes fetchers for `server`; all hosts have its port. `slept` lists the waiting times."""

    def make(*, addresses=None, **limits):
        slept = []
        made = ImageFetcher(
            FetchLimits(**{"seconds": 5.0, "ports": frozenset({server.server_port}), **limits}),
            resolve=lambda host, port: (addresses or {}).get(host, ["127.0.0.1"]),
            is_allowed=lambda address: address == "127.0.0.1" or is_public(address),
            sleep=slept.append,
        )
        made.slept = slept
        return made

    return make


def url(server, path, host="images.example"):
    return f"http://{host}:{server.server_port}{path}"


def test_image_is_fetched(server, fetcher):
    server.answers["/a%20b.jpg?x=1"] = (200, {"Content-Type": "image/jpeg"}, JPEG)
    assert fetcher()(url(server, "/a b.jpg?x=1")) == JPEG
    assert [path for _, path, _ in server.asked] == ["/robots.txt", "/a%20b.jpg?x=1"]
    for host, _, agent in server.asked:
        assert host == "images.example"
        assert agent.startswith("flamingo_jax")


@pytest.mark.parametrize("body", [JPEG, b""])
def test_answers_that_are_no_complete_image_are_rejected(body, server, fetcher):
    server.answers["/page"] = (200, {"Content-Type": "text/html"}, body)
    server.answers["/cut"] = (200, {"Content-Type": "image/jpeg", "Content-Length": "99999"}, body)
    server.answers["/error"] = (500, {"Content-Type": "image/jpeg"}, body)
    reasons = [fetcher()(url(server, path)).reason for path in ("/page", "/cut", "/error", "/none")]
    assert reasons == ["not_an_image", "fetch_failed", "fetch_failed", "fetch_failed"]


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "192.0.2.1"),
        *("224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1"),
        *("2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1"),
        *("2002:7f00:1::", "2002:a00:1::1", "no address", ""),
    ],
)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_that_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "::1", "169.254.169.254"])
@pytest.mark.parametrize("others", [[], ["8.8.8.8"]])
def test_a_host_with_one_such_address_is_never_connected_to(address, others, server, monkeypatch):
    monkeypatch.setattr(
        "socket.create_connection", lambda *args, **kwargs: pytest.fail(f"connects to {args}")
    )
    fetch = ImageFetcher(
        FetchLimits(ports=frozenset({80})), resolve=lambda host, port: [*others, address]
    )
    found = fetch("http://innocent.example/a.jpg")
    assert isinstance(found, Reject)
    assert (found.reason, found.broken) == ("fetch_refused", False)
    assert address in found.detail


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "127.1"]
)
def test_all_names_of_this_machine_are_refused(host, monkeypatch):
    """With the resolver of the system."""
    monkeypatch.setattr(
        "socket.create_connection", lambda *args, **kwargs: pytest.fail(f"connects to {args}")
    )
    assert ImageFetcher()(f"http://{host}/a.jpg").reason in ("fetch_refused", "fetch_failed")


def test_the_name_is_resolved_once_and_the_checked_address_is_used(server, fetcher):
    """A name server cannot change its answer between the check and the connection."""
    asked = []

    def changing(host, port):
        asked.append(host)
        return ["127.0.0.1"] if len(asked) <= 2 else ["10.0.0.1"]

    server.answers["/a.jpg"] = (200, {"Content-Type": "image/jpeg"}, JPEG)
    fetch = ImageFetcher(
        FetchLimits(ports=frozenset({server.server_port})),
        resolve=changing,
        is_allowed=lambda address: address == "127.0.0.1",
        sleep=lambda _: None,
    )
    assert fetch(url(server, "/a.jpg")) == JPEG
    assert len(asked) == 2  # robots.txt and the image
    assert fetch(url(server, "/a.jpg")).reason == "fetch_refused"


@pytest.mark.parametrize(
    "bad",
    [
        "ftp://images.example/a",
        "file:///etc/passwd",
        "http://",
        "http://images.example:22/a",
        "http://[::1",
        "nothing",
        "http://x:99999/",
    ],
)
def test_what_is_no_url_of_the_web(bad, fetcher):
    assert fetcher()(bad).reason in ("fetch_refused", "fetch_failed")


def test_redirects_are_followed_and_each_is_checked(server, fetcher):
    server.answers |= {
        "/1": (302, {"Location": "/2"}, b""),
        "/2": (301, {"Location": url(server, "/3", "other.example")}, b""),
        "/3": (200, {"Content-Type": "image/jpeg"}, JPEG),
        "/in": (302, {"Location": url(server, "/3", "inside.example")}, b""),
        "/port": (302, {"Location": "http://images.example:22/"}, b""),
        "/file": (302, {"Location": "file:///etc/passwd"}, b""),
        "/round": (302, {"Location": "/round"}, b""),
    }
    fetch = fetcher(addresses={"inside.example": ["10.0.0.1"]})
    assert fetch(url(server, "/1")) == JPEG
    assert ("other.example", "/robots.txt") in [asked[:2] for asked in server.asked]
    for path in ("/in", "/port", "/file"):
        assert fetch(url(server, path)).reason == "fetch_refused"
    assert "10.0.0.1" in fetch(url(server, "/in")).detail
    assert "more than 4 redirects" in fetch(url(server, "/round")).detail
    assert [path for _, path, _ in server.asked].count("/round") == 5


@pytest.mark.parametrize("stated", [True, False])
def test_size_is_limited(stated, server, fetcher):
    sent = []

    def endless(handler):
        while not handler.server.stop.is_set():
            handler.wfile.write(b"x" * 65536)
            sent.append(65536)

    headers = {"Content-Type": "image/jpeg", "Connection": "close"}
    if stated:
        headers["Content-Length"] = str(10**12)
    server.answers["/a"] = (200, headers, endless)
    assert fetcher(max_bytes=200_000)(url(server, "/a")).reason == "image_too_large"
    assert sum(sent) < 50_000_000


@pytest.mark.parametrize("path", ["/drip", "/silent", "/robots.txt"])
def test_time_is_limited_for_the_whole_request(path, server, fetcher):
    def drip(handler):
        with contextlib.suppress(OSError):
            while not handler.server.stop.wait(0.02):
                handler.wfile.write(b"x")

    def silent(handler):
        handler.server.stop.wait(30)

    headers = {"Content-Type": "image/jpeg", "Connection": "close"}
    server.answers |= {"/drip": (200, headers, drip), "/silent": (200, headers, silent)}
    if path == "/robots.txt":
        server.answers[path] = server.answers["/drip"]
        found = fetcher(seconds=0.3)(url(server, "/a.jpg"))
        assert found.reason == "fetch_disallowed"
        return
    found = fetcher(seconds=0.3)(url(server, path))
    assert found.reason == "fetch_failed"
    assert "longer than a request may" in found.detail or "timed out" in found.detail


@pytest.mark.parametrize(
    ("status", "robots", "allowed"),
    [
        (200, "User-agent: *\nDisallow: /private/", True),
        (200, "User-agent: *\nDisallow: /", False),
        (200, "User-agent: flamingo_jax\nDisallow: /\n\nUser-agent: *\nAllow: /", False),
        (200, "User-agent: other\nDisallow: /", True),
        (200, "User-agent: *\nCrawl-delay: 3600", False),
        (200, "\xff\x00<html>", True),
        (404, "", True),
        (403, "", True),
        (503, "", False),
        (429, "", False),
    ],
)
def test_robots_txt_is_respected(status, robots, allowed, server, fetcher):
    text = robots.encode("latin-1")
    server.answers["/robots.txt"] = (status, {"Content-Type": "text/plain"}, text)
    server.answers["/a.jpg"] = (200, {"Content-Type": "image/jpeg"}, JPEG)
    found = fetcher()(url(server, "/a.jpg"))
    assert (found == JPEG) == allowed
    if not allowed:
        assert found.reason == "fetch_disallowed"
        assert "/a.jpg" not in [path for _, path, _ in server.asked]


def test_a_host_is_asked_at_intervals_and_for_its_rules_once(server, fetcher):
    server.answers["/a.jpg"] = (200, {"Content-Type": "image/jpeg"}, JPEG)
    fetch = fetcher(interval=50.0)
    assert all(fetch(url(server, "/a.jpg")) == JPEG for _ in range(3))
    assert fetch(url(server, "/a.jpg", "other.example")) == JPEG
    first, second = fetch.slept
    assert 40 < first <= 50
    assert 90 < second <= 100
    assert [path for _, path, _ in server.asked].count("/robots.txt") == 2


def test_delay_of_robots_txt_counts(server, fetcher):
    server.answers["/robots.txt"] = (200, {}, b"User-agent: *\nCrawl-delay: 30")
    server.answers["/a.jpg"] = (200, {"Content-Type": "image/jpeg"}, JPEG)
    fetch = fetcher()
    assert fetch(url(server, "/a.jpg")) == fetch(url(server, "/a.jpg")) == JPEG
    assert 20 < fetch.slept[0] <= 30


def typed(media_type):
    return {} if media_type is None else {"Content-Type": media_type}


@pytest.mark.parametrize(
    "media_type",
    [
        None,
        "",
        "binary/octet-stream",
        "application/octet-stream; charset=binary",
        "Unknown/Unknown",
    ],
)
def test_an_answer_without_a_type_is_told_by_its_content(media_type, server, fetcher):
    server.answers |= {
        "/a.jpg": (200, typed(media_type), JPEG),
        "/page": (200, typed(media_type), b"<!DOCTYPE html><p>no such image"),
        "/empty": (200, typed(media_type), b""),
    }
    fetch = fetcher()
    assert fetch(url(server, "/a.jpg")) == JPEG
    for path in ("/page", "/empty"):
        assert fetch(url(server, path)).reason == "not_an_image"


def resolving(server, resolve, **limits):
    return ImageFetcher(
        FetchLimits(ports=frozenset({server.server_port}), **limits),
        resolve=resolve,
        is_allowed=lambda address: address == "127.0.0.1" or is_public(address),
        sleep=lambda _: None,
    )


@pytest.mark.parametrize("error", [socket.EAI_NONAME, socket.EAI_NODATA, None])
def test_a_host_without_an_address_is_told_as_that_and_looked_up_once(error, server):
    asked = []

    def resolve(host, port):
        asked.append(host)
        if error is None:
            return []
        raise socket.gaierror(error, "Name or service not known")

    fetch = resolving(server, resolve)
    for path in ("/a.jpg", "/b.jpg"):
        found = fetch(url(server, path, "gone.example"))
        assert (found.reason, found.broken) == ("unresolvable_host", True)
        assert "gone.example" in found.detail
    assert asked == ["gone.example"]
    assert fetch(f"http://{'x' * 70}.example:{server.server_port}/").reason == "unresolvable_host"


def test_a_look_up_that_fails_for_now_is_tried_again(server):
    answers = [socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")]
    server.answers["/a.jpg"] = (200, {"Content-Type": "image/jpeg"}, JPEG)

    def resolve(host, port):
        if answers:
            raise answers.pop()
        return ["127.0.0.1"]

    fetch = resolving(server, resolve, retry=0.3)
    for expected in ("Temporary failure", "has just failed"):
        found = fetch(url(server, "/a.jpg"))
        assert found.reason == "fetch_failed"
        assert expected in found.detail
    time.sleep(0.3)
    assert fetch(url(server, "/a.jpg")) == JPEG


@pytest.mark.parametrize("slow_look_up", [0, 1])  # for robots.txt, for the image
def test_the_look_up_is_part_of_the_time(slow_look_up, server):
    server.answers["/a.jpg"] = (200, {"Content-Type": "image/jpeg"}, JPEG)
    asked = []

    def slow(host, port):
        asked.append(host)
        if len(asked) > slow_look_up:
            server.stop.wait(30)
        return ["127.0.0.1"]

    fetch = resolving(server, slow, seconds=1.0)
    start = time.monotonic()
    found = fetch(url(server, "/a.jpg"))
    assert found.reason == "fetch_failed"
    assert "the look-up of images.example took more than 1.0 seconds" in found.detail
    assert "has just failed" in fetch(url(server, "/b.jpg")).detail
    assert time.monotonic() - start < 15


def test_the_next_address_of_a_host_is_tried(server):
    """As on a machine without IPv6: nothing listens at the first address."""
    server.answers["/a.jpg"] = (200, {"Content-Type": "image/jpeg"}, JPEG)
    fetch = ImageFetcher(
        FetchLimits(ports=frozenset({server.server_port}), seconds=5.0),
        resolve=lambda host, port: ["::1", "127.0.0.1"],
        is_allowed=lambda address: True,
        sleep=lambda _: None,
    )
    assert fetch(url(server, "/a.jpg")) == JPEG
