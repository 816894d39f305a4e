"""The paths of the server, on starlette.

POST /v1/chat/completions    an answer, whole or in pieces (server-sent events)
GET  /v1/models              the one model
POST /v1/files               an image, for later requests; DELETE /v1/files/ID
GET  /health                 200, or 503 while the server warms up or stops
GET  /metrics                Prometheus's text format
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from flamingo_jax.inference import padding
from flamingo_jax.inference import request as engine_request
from flamingo_jax.inference.model import Flamingo
from flamingo_jax.inference.prompt import PromptError
from flamingo_jax.serving import answer_batches, chat_request, dialogue, request_body
from flamingo_jax.serving.answer_batches import AnswerPiece, Batches, Event, Finished, Job
from flamingo_jax.serving.api_error import ApiError
from flamingo_jax.serving.chat_request import ChatRequest
from flamingo_jax.serving.request_images import RequestImages, Uploads
from flamingo_jax.serving.server_metrics import ServerMetrics


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        body_bytes: of a request, images included.
        tokens: of an answer.
    """

    body_bytes: int = 20_000_000
    tokens: int = 512


class _Json(JSONResponse):
    """JSON in ASCII: a text of the client may have halves of characters, which UTF-8 has not."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


class ChatServer:
    """The application: its paths, and how many requests are in it.

    Attributes:
        app: for uvicorn.
        in_flight: requests that are not answered yet.
    """

    def __init__(
        self,
        model: Flamingo,
        work: Batches,
        metrics: ServerMetrics,
        *,
        name: str,
        images: RequestImages,
        uploads: Uploads,
        limits: Limits,
    ) -> None:
        """Takes the parts.

        Args:
            model: is asked how long its prompts may be; `work` runs it.
            work: answers the prompts.
            metrics: is shown.
            name: of the model, in requests and answers.
            images: reads the images of requests.
            uploads: where files are kept.
            limits: of requests.
        """
        self._model, self._work, self._metrics, self._name = model, work, metrics, name
        self._images, self._uploads, self._limits = images, uploads, limits
        self._created, self._reading = int(time.time()), asyncio.Lock()
        self._most_images = max(model.engine.config.num_images)
        self.in_flight = 0
        chat, files = self._counted(self._chat), self._counted(self._upload)
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", chat, methods=["POST"]),
                Route("/v1/models", self._counted(self._models)),
                Route("/v1/models/{name:path}", self._counted(self._one_model)),
                Route("/v1/files", files, methods=["POST"]),
                Route("/v1/files/{id}", self._counted(self._file), methods=["GET", "DELETE"]),
                Route("/health", self._health),
                Route("/metrics", self._show_metrics),
            ],
            exception_handlers={HTTPException: _no_path, Exception: _unexpected},
        )

    def _counted(
        self, answer: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Counts requests, and turns errors into answers."""

        async def run(request: Request) -> Response:
            self.in_flight += 1
            try:
                if self._work.is_stopping:
                    raise answer_batches.stopping()
                response = await answer(request)
            except ApiError as error:
                response = _Json(error.body, error.status, headers=error.headers)
            except ClientDisconnect:
                response = Response(status_code=499)  # nobody reads it
            finally:
                self.in_flight -= 1
            path = request.scope["route"].path
            self._metrics.add("requests_total", path=path, status=str(response.status_code))
            return response

        return run

    async def _health(self, _: Request) -> Response:
        status = "ok" if self._work.is_ready else "warming up"
        status = "stopping" if self._work.is_stopping else status
        about = {"status": status, "model": self._name}
        return _Json(about, 200 if status == "ok" else 503)

    async def _show_metrics(self, _: Request) -> Response:
        return PlainTextResponse(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _models(self, _: Request) -> Response:
        return _Json({"object": "list", "data": [self._described()]})

    async def _one_model(self, request: Request) -> Response:
        self._check_name(request.path_params["name"])
        return _Json(self._described())

    def _described(self) -> dict[str, Any]:
        about = {"id": self._name, "object": "model", "owned_by": "flamingo_jax"}
        return {**about, "created": self._created}

    def _check_name(self, name: str) -> None:
        if name != self._name:
            raise ApiError(
                f"There is no model {name!r:.100} here; this server has {self._name!r}.",
                status=404,
                param="model",
                code="model_not_found",
            )

    async def _upload(self, request: Request) -> Response:
        body = await self._body(request)

        async def again() -> AsyncGenerator[bytes, None]:
            yield body

        try:
            parser = MultiPartParser(request.headers, again(), max_files=1)
            form = await parser.parse()
        except (MultiPartException, KeyError) as error:
            why = "no Content-Type" if isinstance(error, KeyError) else str(error).rstrip(".")
            raise ApiError(
                f"The body is no form with a file ({why}); expected multipart/form-data with the "
                "image as its field file.",
                param="file",
            ) from error
        file = form.get("file")
        if file is None or isinstance(file, str):
            raise ApiError("The form has no file; expected its field file.", param="file")
        content = await file.read()
        await form.close()
        await asyncio.to_thread(self._images.decoded, content, "file")
        number, upload = self._uploads.add(file.filename or "image", content)
        return _Json(upload.described(number))

    async def _file(self, request: Request) -> Response:
        number = request.path_params["id"]
        upload = self._uploads.get(number)
        if upload is None:
            raise ApiError(f"There is no file {number!r:.60}.", status=404, code="file_not_found")
        if request.method == "DELETE":
            self._uploads.delete(number)
            return _Json({"id": number, "object": "file", "deleted": True})
        return _Json(upload.described(number))

    async def _chat(self, request: Request) -> Response:
        body = await self._body(request)
        asked = chat_request.read(_decoded(body), longest=self._limits.tokens)
        self._check_name(asked.model)
        if (count := dialogue.num_images(asked.messages)) > self._most_images:
            raise ApiError(  # before so many are decoded
                f"The prompt has {count} images; expected at most {self._most_images}. Send fewer.",
                param="messages",
                code="context_length_exceeded",
            )
        template = self._model.chat_template
        parts = await asyncio.to_thread(dialogue.prompt_of, asked.messages, self._images, template)
        async with self._reading:  # a tokenizer is for one thread at a time
            prompt = await asyncio.to_thread(self._prompt, parts, asked)
        answer = _Answer(asked, self._name)
        loop = asyncio.get_running_loop()

        def send(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(answer.events.put_nowait, event)

        job = Job(prompt, asked.method, (*asked.stop, template.user), send)
        self._work.submit(job)
        try:
            first = await _or_gone(request, answer.events.get())
            if isinstance(first, ApiError):
                raise first
            if asked.stream:
                return StreamingResponse(
                    self._sent(answer, first, job),
                    media_type="text/event-stream",
                    headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
                )
            return _Json(await _or_gone(request, answer.whole(first)))
        except (ClientDisconnect, asyncio.CancelledError):
            job.is_gone = True
            raise

    async def _body(self, request: Request) -> bytes:
        stream, most = request.stream(), self._limits.body_bytes
        return await request_body.read(stream, most, lambda: self._work.is_stopping)

    def _prompt(self, parts: list[Any], asked: ChatRequest) -> engine_request.Request:
        """Tokenises the prompt, and checks that it fits.

        Raises:
            ApiError: it does not, or cannot be read.
        """
        try:
            found = self._model.request(parts)
            self._model.engine.sizes([found], self._model.engine.config, asked.method)
        except PromptError as error:
            is_long = isinstance(error, padding.PromptTooLong)
            code = "context_length_exceeded" if is_long else None
            message = str(error).removeprefix("prompt 0 ").removeprefix("prompt: ")
            message = f"The prompt {message}" if is_long else message
            raise ApiError(message, param="messages", code=code) from error
        return found

    async def _sent(self, answer: _Answer, first: Event, job: Job) -> AsyncIterator[str]:
        """Yields the events of a stream; a client that goes away ends its job."""
        self.in_flight += 1
        try:
            async for line in answer.lines(first):
                yield line
        finally:
            job.is_gone = True
            self.in_flight -= 1


class _Answer:
    """An answer in the form of the API."""

    def __init__(self, asked: ChatRequest, model: str) -> None:
        self._asked, self._model = asked, model
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    async def whole(self, first: Event) -> dict[str, Any]:
        """Returns the body of an answer that is sent as a whole.

        Raises:
            ApiError: the model failed.
        """
        text, event = "", first
        while not isinstance(event, Finished):
            if isinstance(event, ApiError):
                raise event
            text += event.text
            event = await self.events.get()
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": event.reason}
        return self._about("chat.completion") | {"choices": [choice], "usage": _usage(event)}

    async def lines(self, first: Event) -> AsyncIterator[str]:
        """Yields the server-sent events of an answer."""
        yield self._chunk({"role": "assistant", "content": ""})
        event = first
        while isinstance(event, AnswerPiece):
            yield self._chunk({"content": event.text})
            event = await self.events.get()
        if isinstance(event, ApiError):
            yield _line(event.body)
        else:
            yield self._chunk({}, event.reason)
            if self._asked.with_usage:
                about = self._about("chat.completion.chunk")
                yield _line(about | {"choices": [], "usage": _usage(event)})
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _line(self._about("chat.completion.chunk") | {"choices": [choice]})

    def _about(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


def _usage(event: Finished) -> dict[str, int]:
    prompt, completion = event.prompt_tokens, event.completion_tokens
    total = prompt + completion
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total,
    }


def _line(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, allow_nan=False)}\n\n"


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"The body is no JSON: {error}.") from error


async def _or_gone(request: Request, answer: Awaitable[Any]) -> Any:
    """Returns what is awaited.

    Raises:
        ClientDisconnect: the client went away first.
    """
    wanted = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(request.receive())  # the body was read: only the end can come
    try:
        await asyncio.wait({wanted, gone}, return_when=asyncio.FIRST_COMPLETED)
        if wanted.done():
            return wanted.result()
        raise ClientDisconnect
    finally:
        wanted.cancel()
        gone.cancel()


async def _no_path(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    what = f"{request.method} {request.url.path:.100}"
    made = ApiError(
        f"There is no {what}; expected POST /v1/chat/completions, GET /v1/models, POST /v1/files, "
        "GET /health or GET /metrics.",
        status=status,
        code="not_found",
    )
    return _Json(made.body, status)


async def _unexpected(_: Request, error: Exception) -> Response:
    """Answers what is our own fault; the server logs the traceback."""
    made = ApiError(
        f"The server failed: {type(error).__name__}. Its log says more.",
        status=500,
        kind="server_error",
        code="internal_error",
    )
    return _Json(made.body, made.status)
