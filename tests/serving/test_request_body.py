"""The body of a request: its size, and a client that stops sending it."""

import asyncio

import pytest

from flamingo_jax.serving import request_body
from flamingo_jax.serving.api_error import ApiError


async def sent(*parts, then_silent=False):
    for part in parts:
        yield part
    if then_silent:
        await asyncio.sleep(60)


def read(stream, *, most=10, is_stopping=False):
    return asyncio.run(request_body.read(stream, most, lambda: is_stopping))


def test_a_body_is_joined_up_to_its_size():
    assert read(sent(b"hello", b"", b"world")) == b"helloworld"
    assert read(sent()) == b""
    with pytest.raises(ApiError, match="more than 10 bytes") as error:
        read(sent(b"hello", b"world!"))
    assert (error.value.status, error.value.code) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("is_stopping", "status", "message"),
    [(False, 408, "rest of the body has not come for 0.1 seconds"), (True, 503, "is stopping")],
)
def test_a_silent_client_is_not_waited_for(monkeypatch, is_stopping, status, message):
    monkeypatch.setattr(request_body, "SILENT", 60.0 if is_stopping else 0.1)
    monkeypatch.setattr(request_body, "SILENT_WHEN_STOPPING", 0.1 if is_stopping else 60.0)
    with pytest.raises(ApiError, match=message) as error:
        read(sent(b"{", then_silent=True), is_stopping=is_stopping)
    assert error.value.status == status


def test_a_server_that_stops_reads_what_still_comes():
    assert read(sent(b"a", b"b"), is_stopping=True) == b"ab"
