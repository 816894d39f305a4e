"""The parts of a server, put together."""

from __future__ import annotations

import dataclasses

from flamingo_jax.inference.model import Flamingo
from flamingo_jax.serving.answer_batches import Batches
from flamingo_jax.serving.app import ChatServer, Limits
from flamingo_jax.serving.request_images import Fetch, RequestImages, Uploads
from flamingo_jax.serving.server_metrics import ServerMetrics


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """The options of a server.

    Attributes:
        name: of the model.
        batch_size: the most answers decoded together.
        batches: the most batches in turn.
        waiting: the most requests that wait.
        tokens: the most of an answer.
        body_megabytes: the most of a request.
        files_megabytes: memory for uploaded files.
    """

    name: str
    batch_size: int = 8
    batches: int = 2
    waiting: int = 64
    tokens: int = 512
    body_megabytes: int = 20
    files_megabytes: int = 256


def assembled(
    model: Flamingo, options: ServerOptions, fetch: Fetch | None = None
) -> tuple[ChatServer, Batches]:
    """Returns (the application, the thread that answers); the thread runs.

    Args:
        model: belongs to the thread from now on.
        options: of the server.
        fetch: of remote images; None = they are refused.
    """
    metrics, uploads = ServerMetrics(), Uploads(options.files_megabytes)
    engine = model.engine
    settings = {
        "image_fit": engine.image_fit,
        "background": engine.background,
        "max_tiles": engine.model.max_tiles,
    }
    images = RequestImages(size=engine.image_size, settings=settings, uploads=uploads, fetch=fetch)
    work = Batches(
        model,
        metrics,
        batch_size=options.batch_size,
        batches=options.batches,
        waiting=options.waiting,
        longest=options.tokens,
    )
    server = ChatServer(
        model,
        work,
        metrics,
        name=options.name,
        images=images,
        uploads=uploads,
        limits=Limits(options.body_megabytes * 1_000_000, options.tokens),
    )
    return server, work
