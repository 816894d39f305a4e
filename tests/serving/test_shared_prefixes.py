"""Requests that begin alike are read once, and a server is ready when its programs are compiled."""

import asyncio
import dataclasses
import functools
import queue
import re
import threading

import pytest

from flamingo_jax.inference import compiled
from flamingo_jax.inference.chat import Chat
from flamingo_jax.inference.methods import Greedy, Sample
from flamingo_jax.serving.answer_batches import AnswerPiece, Batches, Finished, Job
from flamingo_jax.serving.server_metrics import ServerMetrics
from flamingo_jax.serving.warm_up import warm_up
from flamingo_jax.tokenizers.chat_template import PAPER
from tests.inference import tiny
from tests.inference.test_cache_of_prefixes import CONFIG, SUPPORTS, WHOLE

ASSEMBLED = "flamingo_jax.serving.assembled"  # it needs the extra serve
TOKENS, ROWS = 4, 4
PATIENCE = 900  # seconds: several programs may compile first
GREEDY, DRAWN = Greedy(TOKENS), Sample(seed=3, max_new_tokens=TOKENS)
QUESTIONS = [[tiny.image(3 + number), "output :"] for number in range(6)]


@pytest.fixture
def base(tmp_path_factory):
    return tmp_path_factory.getbasetemp()


class Served:
    """The batches of a server, without its network."""

    def __init__(self, model, **settings):
        self.model, self.metrics = model, ServerMetrics()
        sizes = {"batch_size": ROWS, "batches": 1, "waiting": 64, "longest": TOKENS}
        self.work = Batches(model, self.metrics, **{**sizes, **settings})

    def submit(self, prompt, method=GREEDY):
        events = queue.Queue()
        self.work.submit(Job(self.model.request(prompt), method, (), events.put))
        return events

    def ask(self, prompts, method=GREEDY):
        return [text_of(events) for events in [self.submit(each, method) for each in prompts]]

    def count(self, name):
        lines = self.metrics.text().splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith(f"flamingo_{name} "))


def text_of(events):
    text = ""
    while isinstance(event := events.get(timeout=PATIENCE), AnswerPiece):
        text += event.text
    assert isinstance(event, Finished), event
    return text.strip()


def held(model, **settings):
    """A server whose thread waits until `go` is set, so that what is submitted makes one batch."""
    go = threading.Event()
    return Served(model, prepare=lambda should_end: go.wait(300), **settings), go


def test_what_requests_begin_with_is_read_once(base):
    """A batch of four, one request, and one more: equal answers, and fewer tokens are read."""
    prompts = [[*SUPPORTS, *question] for question in QUESTIONS]
    wanted = tiny.load(base, config=WHOLE).generate(prompts, method=DRAWN)
    assert len(set(wanted)) > 2
    server, go = held(tiny.load(base, config=CONFIG))
    asked = [server.submit(prompt, DRAWN) for prompt in prompts[1:5]]
    go.set()
    found = [text_of(events) for events in asked]
    sizes = [len(server.model.request(prompt).prompt.tokens) for prompt in prompts]
    shared = len(server.model.request(SUPPORTS).prompt.tokens)
    assert server.count("batches_total") == 1 and server.count("prompt_tokens_total") > 4 * shared
    assert server.count("read_tokens_total") == sum(sizes[1:5]) - 3 * shared
    found = [*server.ask(prompts[:1], DRAWN), *found, *server.ask(prompts[5:], DRAWN)]
    assert [text.strip() for text in wanted] == found
    assert server.count("read_tokens_total") == sum(sizes) - 5 * shared
    server.work.close()


def test_strangers_in_a_batch_are_read_whole(base):
    prompts = [[f"{word} {word}", *SUPPORTS, "output :"] for word in ("red", "green", "blue")]
    server, go = held(tiny.load(base, config=CONFIG))
    asked = [server.submit(prompt) for prompt in prompts]
    go.set()
    found = [text_of(events) for events in asked]
    wanted = tiny.load(base, config=WHOLE).generate(prompts, method=GREEDY)
    assert found == [text.strip() for text in wanted]
    assert server.count("read_tokens_total") == server.count("prompt_tokens_total")
    server.work.close()


def test_the_memory_of_prefixes_is_bounded(base):
    """Each prompt is kept, 32 KiB; there is room for some 30 of them."""
    server = Served(tiny.load(base, config=dataclasses.replace(CONFIG, prefix_megabytes=1)))
    kept = []
    for word in ("red ", "green "):
        for number in range(1, 25):
            server.ask([[word * number, *SUPPORTS, "output :"]])
            kept.append(server.count("prefix_bytes"))
    assert kept[0] < kept[1] < 0.9 * (1 << 20) < max(kept) <= 1 << 20
    server.work.close()


def test_a_server_without_room_for_prefixes_reads_all(base):
    server = Served(tiny.load(base, config=WHOLE))
    server.ask([[*SUPPORTS, *question] for question in QUESTIONS[:1] * 2])
    assert server.count("read_tokens_total") == server.count("prompt_tokens_total") > 0
    assert server.count("prefix_bytes") == 0
    server.work.close()


def test_after_the_warm_up_first_questions_compile_nothing(base):
    model, lines = tiny.load(base, config=CONFIG), []
    prepare = functools.partial(warm_up, model, rows=ROWS, longest=TOKENS, report=lines.append)
    server = Served(model, prepare=lambda should_end: prepare(should_end=should_end))
    opening = Chat.prompt_of(["this is a"], PAPER)
    server.ask([opening])
    assert len(lines) == 9 and lines[-1].startswith("Warm-up: done in ")
    assert re.fullmatch(r"Warm-up: 4 x drawn, \d+ of \d+ tokens read: [\d.]+ s", lines[-2])
    before = programs()
    for method in (GREEDY, DRAWN):
        for number in range(2):
            image = tiny.image(number)
            server.ask([Chat.prompt_of([image, "output :"], PAPER)], method)
            server.ask([["red", *Chat.prompt_of([image], PAPER)]], method)
            server.ask([Chat.prompt_of([image, word], PAPER) for word in ("red", "dax")], method)
    assert programs() == before
    server.work.close()


def programs():
    return compiled._run._cache_size(), compiled._run_in_place._cache_size()


def test_a_warm_up_ends_when_the_server_is_stopped(base):
    lines = []
    model = tiny.load(base, config=CONFIG)
    warm_up(model, rows=ROWS, longest=TOKENS, should_end=lambda: True, report=lines.append)
    assert not lines


def test_health_is_ready_after_the_warm_up(base, monkeypatch):
    """A request that comes before waits. An error of the warm-up is no error of the server."""
    httpx, assembling = pytest.importorskip("httpx"), pytest.importorskip(ASSEMBLED)
    go = threading.Event()

    def failing(model, *, should_end, **_):
        assert go.wait(300) and not should_end()
        raise MemoryError("no room")

    monkeypatch.setattr(assembling, "warm_up", failing)
    options = assembling.ServerOptions("tiny", tokens=TOKENS, warm_up=True)
    server, work = assembling.assembled(tiny.load(base, config=CONFIG), options)

    async def asked(path, **body):
        transport = httpx.ASGITransport(server.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            return await (client.post(path, json=body) if body else client.get(path))

    before = asyncio.run(asked("/health"))
    assert (before.status_code, before.json()["status"]) == (503, "warming up")
    threading.Timer(0.2, go.set).start()
    system = {"role": "system", "content": "question :"}
    said = [system, {"role": "user", "content": "this is a"}]
    answer = asyncio.run(asked("/v1/chat/completions", model="tiny", messages=said, max_tokens=2))
    assert answer.status_code == 200, answer.text
    after = asyncio.run(asked("/health"))
    assert (after.status_code, after.json()["status"]) == (200, "ok")
    # What nobody foresaw has the form of the API too.
    monkeypatch.setattr(server, "_prompt", lambda *_: 1 // 0)
    failed = asyncio.run(asked("/v1/chat/completions", model="tiny", messages=said))
    assert failed.status_code == 500 and failed.json()["error"]["code"] == "internal_error"
    assert "ZeroDivisionError" in failed.json()["error"]["message"]
    work.close()
