"""Concurrent requests are answered in batches, by one thread that owns the model.

    submit(job) --> waiting, at most `waiting` jobs --> batches, at most `batches` at a time
                    429 beyond it                       each batch decodes a token in turn

A batch has the jobs that wait when there is room for one, at most `batch_size`. An answer does not
depend on what shares its batch, up to the rounding of sums in another order: what all prompts of a
batch begin with is read once, or was for an earlier one (`Engine.stream`). A job whose client is
gone gets no more tokens. An error of a batch ends its jobs, and the thread goes on.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

from absl import logging

from flamingo_jax.inference.methods import Greedy, Sample
from flamingo_jax.inference.model import Flamingo
from flamingo_jax.inference.request import Request
from flamingo_jax.inference.text_pieces import TextPieces
from flamingo_jax.inference.token_stream import TokenStream
from flamingo_jax.serving.answer_text import AnswerText
from flamingo_jax.serving.api_error import ApiError, busy
from flamingo_jax.serving.server_metrics import ServerMetrics

SECONDS_TO_WAIT = 2  # what a client is told to wait, if there is no room
_ERRORS = (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)


class AnswerPiece(NamedTuple):
    """Text of an answer."""

    text: str


class Finished(NamedTuple):
    """An answer is complete."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


Event = AnswerPiece | Finished | ApiError


@dataclasses.dataclass(eq=False)
class Job:
    """A request in the server.

    Attributes:
        request: the prompt.
        method: how its answer is chosen.
        stops: texts that end the answer.
        send: is called with each event, in the thread of the batches; it returns at once.
        is_gone: set when nobody waits for the answer any more.
        since: when the request came, seconds of the monotonic clock.
    """

    request: Request
    method: Greedy | Sample
    stops: tuple[str, ...]
    send: Callable[[Event], None]
    is_gone: bool = False
    since: float = dataclasses.field(default_factory=time.monotonic)


class _Answer:
    """One row of a batch."""

    def __init__(self, job: Job, model: Flamingo) -> None:
        self.job = job
        self.pieces = TextPieces(model.tokenizer)
        self.text = AnswerText(job.stops)
        self.is_open, self._is_first = True, True

    def send(self, text: str, metrics: ServerMetrics) -> None:
        if not text:
            return
        if self._is_first:
            metrics.add("first_piece_seconds_sum", time.monotonic() - self.job.since)
        self._is_first = False
        self.job.send(AnswerPiece(text))

    def close(self, event: Finished | ApiError | None, metrics: ServerMetrics) -> None:
        """Ends the answer; None = its client is gone."""
        self.is_open = False
        why = "gone" if event is None else "error"
        if isinstance(event, Finished):
            why = event.reason
            metrics.add("prompt_tokens_total", event.prompt_tokens)
            metrics.add("completion_tokens_total", event.completion_tokens)
            metrics.add("answer_seconds_sum", time.monotonic() - self.job.since)
        metrics.add("answers_total", why=why)
        if event is not None:
            self.job.send(event)


class _Batch:
    """Answers that are decoded together."""

    def __init__(self, jobs: list[Job], model: Flamingo, stream: TokenStream) -> None:
        self.answers = [_Answer(job, model) for job in jobs]
        self._stream = stream

    def advance(self, metrics: ServerMetrics) -> None:
        """Decodes one token of each answer, and sends what is new."""
        for row, answer in enumerate(self.answers):
            if answer.is_open and answer.job.is_gone:
                self._stream.end(row)
                answer.close(None, metrics)
        for row, tokens in enumerate(self._stream.advance()):
            answer = self.answers[row]
            if not answer.is_open:
                continue
            new = answer.text.add(answer.pieces.add(tokens))
            is_done = self._stream.has_ended(row)
            if is_done and not answer.text.stopped:
                new += answer.text.add(answer.pieces.end()) + answer.text.end()
            answer.send(new, metrics)
            if is_done or answer.text.stopped:
                self._stream.end(row)
                stopped = answer.text.stopped or self._stream.hit_stop[row]
                reason: Literal["stop", "length"] = "stop" if stopped else "length"
                count = len(answer.job.request.prompt.tokens)
                answer.close(Finished(reason, count, answer.pieces.num_tokens), metrics)

    @property
    def is_done(self) -> bool:
        return not any(answer.is_open for answer in self.answers)


class Batches:
    """The thread that answers jobs.

    Attributes:
        is_ready: False until `prepare` has ended. Jobs that come before wait.
        is_stopping: True after `stop` and `close`.
    """

    def __init__(
        self,
        model: Flamingo,
        metrics: ServerMetrics,
        *,
        batch_size: int,
        batches: int,
        waiting: int,
        longest: int,
        prepare: Callable[[Callable[[], bool]], None] | None = None,
    ) -> None:
        """Starts the thread.

        Args:
            model: is used by this thread alone from now on.
            metrics: of the server.
            batch_size: the most answers of a batch.
            batches: the most batches at a time.
            waiting: the most jobs that wait.
            longest: the most tokens of an answer.
            prepare: is called by the thread before it takes a job, with a function that says if the
                server is stopping. An error of it is logged, and the thread goes on.
        """
        self._model, self._metrics = model, metrics
        self._batch_size, self._most_batches = batch_size, batches
        self._most_waiting, self._longest = waiting, longest
        self._waiting: collections.deque[Job] = collections.deque()
        self._active: list[_Batch] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._prepare = prepare
        self.is_ready, self.is_stopping = prepare is None, False
        metrics.watch({"waiting": lambda: len(self._waiting), "running": self._num_running})
        metrics.watch({"prefix_bytes": lambda: model.engine.prefix_bytes})
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Adds a job.

        Raises:
            ApiError: there is no room (429), or the server is stopping (503).
        """
        with self._changed:
            if self.is_stopping:
                raise stopping()
            if len(self._waiting) >= self._most_waiting:
                raise busy(
                    f"{len(self._waiting)} requests wait already, the most that this server "
                    f"takes. Try again in {SECONDS_TO_WAIT} seconds.",
                    status=429,
                    code="queue_full",
                    seconds=SECONDS_TO_WAIT,
                )
            self._waiting.append(job)
            self._changed.notify()

    @property
    def is_idle(self) -> bool:
        """True if no job waits or runs."""
        return not self._waiting and not self._active

    def stop(self) -> None:
        """Takes no more jobs; those that are there are finished."""
        self.is_stopping = True

    def close(self, *, finish: bool = True) -> None:
        """Ends the thread, after the jobs that are there; or at once, without finishing them."""
        self.is_stopping = True
        with self._changed:
            if not finish:
                answers = [answer for batch in list(self._active) for answer in batch.answers]
                for job in [*self._waiting, *(answer.job for answer in answers)]:
                    job.is_gone = True
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _num_running(self) -> int:
        return sum(answer.is_open for batch in list(self._active) for answer in batch.answers)

    def _run(self) -> None:
        if self._prepare is not None:
            try:
                self._prepare(lambda: self.is_stopping)
            except _ERRORS as error:
                logging.error("The warm-up failed: %s: %s", type(error).__name__, error)
            self.is_ready = True
        while True:
            with self._changed:
                while self.is_idle:
                    if self._is_closed:
                        return
                    self._changed.wait()
                # A job is among the active ones before it leaves the waiting ones: see `is_idle`.
                jobs: list[Job] = []
                if self._waiting and len(self._active) < self._most_batches:
                    jobs = list(self._waiting)[: self._batch_size]
            if jobs:
                self._begin(jobs)
            for batch in list(self._active):
                try:
                    batch.advance(self._metrics)
                except _ERRORS as error:
                    for answer in batch.answers:
                        if answer.is_open:
                            answer.close(_failed(error), self._metrics)
                if batch.is_done:
                    self._active.remove(batch)

    def _begin(self, jobs: list[Job]) -> None:
        """Reads the prompts of the first waiting jobs."""
        wanted = [job for job in jobs if not job.is_gone]
        try:
            if wanted:
                self._metrics.add("batches_total")
                engine = self._model.engine
                read_before = engine.tokens_read
                stream = engine.stream(
                    [job.request for job in wanted],
                    [job.method for job in wanted],
                    rows=1 if len(wanted) == 1 else self._batch_size,
                    room=self._longest,
                    across_calls=True,
                )
                self._metrics.add("read_tokens_total", engine.tokens_read - read_before)
                self._active.append(_Batch(wanted, self._model, stream))
        except _ERRORS as error:
            for job in wanted:
                _Answer(job, self._model).close(_failed(error), self._metrics)
        with self._changed:
            for _ in jobs:
                self._waiting.popleft()


def stopping() -> ApiError:
    """Returns the error of a request that comes while the server stops."""
    return busy(
        "This server is stopping. Send the request to another one, or again later.",
        status=503,
        code="stopping",
        seconds=SECONDS_TO_WAIT,
    )


def _failed(error: Exception) -> ApiError:
    logging.error("A batch failed: %s: %s", type(error).__name__, error)
    first = (str(error).splitlines() or [""])[0]
    message = f"The model failed: {type(error).__name__}: {first}"
    return ApiError(message, status=500, kind="server_error", code="model_failed")
