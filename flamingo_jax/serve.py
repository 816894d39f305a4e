"""Serves a model in the OpenAI chat-completions format.

    python -m flamingo_jax.serve --checkpoint=DIR [--host=127.0.0.1] [--port=8000]

The checkpoint is an export, a WORKDIR, or an export's name on the Hub. serving/README.md has the
paths, the limits and an example with the client `openai`.
"""

from __future__ import annotations

import sys

from absl import app, flags

from flamingo_jax import cli
from flamingo_jax.core import paths
from flamingo_jax.core.command_line import named_function
from flamingo_jax.core.processes import Cluster
from flamingo_jax.inference.model import EXPECTED_ERRORS, Flamingo, InferenceConfig

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "An export, its name, or a WORKDIR.")
_NAME = flags.DEFINE_string("name", None, "The model's name in requests; by default its folder's.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 = all networks.")
_PORT = flags.DEFINE_integer("port", 8000, "Port; 0 = any that is free.", 0, 65535)
_BATCH = flags.DEFINE_integer("batch_size", 8, "The most answers decoded together.", 1)
_BATCHES = flags.DEFINE_integer("batches", 2, "The most batches in turn.", 1)
_QUEUE = flags.DEFINE_integer("queue", 64, "Requests that may wait; 429 beyond it.", 1)
_TOKENS = flags.DEFINE_integer("max_tokens", 512, "The most tokens of an answer.", 1, 2048)
_BODY = flags.DEFINE_integer("body_megabytes", 20, "The most of one request; 413 beyond it.", 1)
_FILES = flags.DEFINE_integer("files_megabytes", 256, "Memory for uploaded images.", 1)
_FETCHER = flags.DEFINE_string(
    "fetcher", None, "MODULE:FUNCTION that fetches remote images; without it they are refused."
)
_PREFIXES = flags.DEFINE_integer(
    "prefix_megabytes", 512, "Memory for prefixes that prompts share; 0 = all are read whole.", 0
)
_WARM_UP = flags.DEFINE_bool("warm_up", default=True, help="Compile before requests come.")


def main(_: list[str], __: Cluster) -> None:
    """Loads the model and serves it."""
    try:
        from flamingo_jax.serving import run_server
        from flamingo_jax.serving.assembled import ServerOptions, assembled
    except ImportError as error:
        sys.exit(f"The server needs the package {error.name!r}: pip install -e '.[serve]'.")
    fetch = None
    if _FETCHER.value:
        example = "data_pipelines.web.image_fetcher:fetch"
        try:
            fetch = named_function("--fetcher", _FETCHER.value, example)
        except ValueError as error:
            raise app.UsageError(str(error)) from error
    link = run_server.listen(str(_HOST.value), _PORT.value)  # before the model is loaded
    checkpoint = str(_CHECKPOINT.value)
    place = paths.absolute(checkpoint)
    name = _NAME.value or (place.parent if place.name == "export" else place).name
    model = Flamingo.load(checkpoint, config=InferenceConfig(prefix_megabytes=_PREFIXES.value))
    options = ServerOptions(
        name=name,
        batch_size=_BATCH.value,
        batches=_BATCHES.value,
        waiting=_QUEUE.value,
        tokens=_TOKENS.value,
        body_megabytes=_BODY.value,
        files_megabytes=_FILES.value,
        warm_up=_WARM_UP.value,
    )
    server, work = assembled(model, options, fetch, report=lambda line: print(line, flush=True))
    host, port, *_rest = link.getsockname()
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    run_server.run(server, work, link, lambda: print(f"Serving {name} at {where}", flush=True))
    print("Stopped: all accepted requests are answered.", flush=True)


if __name__ == "__main__":
    cli.run(main, required=["checkpoint"], expected=EXPECTED_ERRORS, keep_freed=True)
