"""Serves the page, and lets no request leave the machine.

Gradio's analytics, sharing and fonts of other servers are off, and a Content-Security-Policy makes
the browser refuse whatever is not of this server.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
from collections.abc import Callable
from typing import Any

from flamingo_jax.core import paths
from flamingo_jax.core.config import ConfigError
from flamingo_jax.inference.model import Flamingo
from flamingo_jax.playground.prompt_files import MOST_MEGABYTES

_LOOPBACK = ("127.0.0.1", "localhost")
_HEADERS = {
    b"content-security-policy": b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; "
    b"frame-ancestors 'none'; form-action 'self'; base-uri 'self'",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
    b"x-dns-prefetch-control": b"off",
}
_ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_MCP_SERVER": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_SECONDS_AT_END = 3  # that open pages have to finish
_CSS = os.path.join(os.path.dirname(__file__), "prompt_page.css")


def check_package() -> None:
    """Raises ConfigError if the packages of the page are not installed."""
    for name in ("gradio", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"The page needs the package {name}: pip install 'flamingo_jax[playground]'."
            )


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens; port 0 takes a free one.

    Raises:
        ConfigError: the port is taken, or the host is not one of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        return socket.create_server((str(address[0]), int(address[1])), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--host={host} --port={port}: cannot listen there ({error}). Give another --port; 0 "
            "takes a free one."
        ) from error


def serve(model: Flamingo, at: socket.socket, host: str, report: Callable[[str], None]) -> None:
    """Serves the page of a model until the process is asked to end.

    Args:
        model: to try.
        at: a socket that listens.
        host: the name that it listens on.
        report: receives the address of the page.
    """
    os.environ.update(_ENVIRONMENT)
    with paths.temporary_directory("flamingo_playground_") as made:
        directory = str(made)
        os.environ["GRADIO_TEMP_DIR"] = directory  # before gradio is imported
        import uvicorn

        name = "127.0.0.1" if host in ("", "0.0.0.0") else host
        address = f"http://{f'[{name}]' if ':' in name else name}:{at.getsockname()[1]}/"
        config = uvicorn.Config(
            application(model, directory, host),
            log_level="warning",
            timeout_graceful_shutdown=_SECONDS_AT_END,
        )
        report(f"The page is at {address} (Ctrl-C ends it).")
        with contextlib.closing(at):
            uvicorn.Server(config).run(sockets=[at])


def application(model: Flamingo, directory: str, host: str) -> Any:
    """Returns the ASGI application: the page, with the headers of `_OnlyHere`."""
    import fastapi
    import gradio as gr
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from flamingo_jax.playground.prompt_page import build

    page = build(model, directory)
    page.queue(max_size=32)
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if host in _LOOPBACK:  # another site must not reach it under a name of its own
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(_LOOPBACK))
    app.add_middleware(_OnlyHere)
    fonts = ["system-ui", "Segoe UI", "Helvetica Neue", "DejaVu Sans", "sans-serif"]
    theme = gr.themes.Default(
        primary_hue="rose",
        neutral_hue="slate",
        font=[gr.themes.Font(font) for font in fonts],
        font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
    )
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=f"{MOST_MEGABYTES}mb",
        theme=theme,
        css_paths=[_CSS],
    )


class _OnlyHere:
    """ASGI middleware that adds `_HEADERS` to each answer."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS.items()]}
            await send(message)

        await self._app(scope, receive, with_headers)
