"""Runs the application on uvicorn until the process is asked to end.

SIGTERM, SIGINT   new requests get 503; what was accepted is finished; then the server ends
a second one      the server ends at once
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

from flamingo_jax.core.paths import PathError
from flamingo_jax.serving.answer_batches import Batches
from flamingo_jax.serving.app import ChatServer

_LOOK_SECONDS = 0.05


class AddressError(PathError):
    """The server cannot have its address."""


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens; port 0 = any that is free.

    Raises:
        AddressError: the address is taken, or is none of this machine.
    """
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise AddressError(
            f"The server cannot listen at {host}:{port}: {error.strerror or error}. Give another "
            "--host or --port."
        ) from error


def run(
    server: ChatServer, work: Batches, link: socket.socket, started: Callable[[], None]
) -> None:
    """Serves until the process is asked to end.

    Args:
        server: the application.
        work: is stopped when the process is asked to end.
        link: from `listen`.
        started: is called when the server is ready (`Batches.is_ready`).
    """
    import uvicorn

    class Site(uvicorn.Server):
        """uvicorn closes its socket at a signal; this one refuses requests with 503 first."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            self.draining = asyncio.create_task(self.drain())
            self.announcing = asyncio.create_task(self.announce())

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if work.is_stopping:
                self.should_exit = self.force_exit = True
            work.stop()

        async def announce(self) -> None:
            while not work.is_ready:
                await asyncio.sleep(_LOOK_SECONDS)
            if not work.is_stopping:
                started()

        async def drain(self) -> None:
            while not (work.is_stopping and work.is_idle and not server.in_flight):
                await asyncio.sleep(_LOOK_SECONDS)
            self.should_exit = True

    config = uvicorn.Config(
        server.app, log_config=None, access_log=False, lifespan="off", timeout_keep_alive=30
    )
    site = Site(config)
    asyncio.run(site.serve(sockets=[link]))
    work.close(finish=not site.force_exit)
