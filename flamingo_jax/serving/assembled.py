"""The parts of a server, put together."""

from __future__ import annotations

import dataclasses
import functools

from flamingo_jax.inference.model import Flamingo
from flamingo_jax.serving.answer_batches import Batches
from flamingo_jax.serving.app import ChatServer, Limits
from flamingo_jax.serving.request_images import Fetch, RequestImages, Uploads
from flamingo_jax.serving.server_metrics import ServerMetrics
from flamingo_jax.serving.warm_up import Report, warm_up


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
        warm_up: True to compile the programs of common requests first.
    """

    name: str
    batch_size: int = 8
    batches: int = 2
    waiting: int = 64
    tokens: int = 512
    body_megabytes: int = 20
    files_megabytes: int = 256
    warm_up: bool = False


def assembled(
    model: Flamingo,
    options: ServerOptions,
    fetch: Fetch | None = None,
    *,
    report: Report = lambda line: None,
) -> tuple[ChatServer, Batches]:
    """Returns (the application, the thread that answers); the thread runs.

    Args:
        model: belongs to the thread from now on.
        options: of the server.
        fetch: of remote images; None = they are refused.
        report: receives lines of the warm-up.
    """
    metrics, uploads = ServerMetrics(), Uploads(options.files_megabytes)
    engine = model.engine
    settings = {
        "image_fit": engine.image_fit,
        "background": engine.background,
        "max_tiles": engine.model.max_tiles,
    }
    images = RequestImages(size=engine.image_size, settings=settings, uploads=uploads, fetch=fetch)
    prepare = functools.partial(
        warm_up, model, rows=options.batch_size, longest=options.tokens, report=report
    )
    work = Batches(
        model,
        metrics,
        batch_size=options.batch_size,
        batches=options.batches,
        waiting=options.waiting,
        longest=options.tokens,
        prepare=(lambda should_end: prepare(should_end=should_end)) if options.warm_up else None,
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
