"""A real server process, asked through the client `openai` as a user would."""

import collections
import concurrent.futures
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from flamingo_jax.inference.methods import Greedy, Sample
from flamingo_jax.inference.model import Flamingo
from flamingo_jax.serving import dialogue
from flamingo_jax.tokenizers.chat_template import PAPER
from tests.conftest import BASE_XLA_FLAGS, ROOT
from tests.evaluation.test_programs import write_export
from tests.inference import tiny
from tests.serving.test_chat_request import data_url, png

httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

TOKENS = 12  # of the answers
GREEDY = Greedy(max_new_tokens=TOKENS)
SYSTEM = {"role": "system", "content": "question :"}  # a short prompt: a small program
START_SECONDS = 300
NO_IMAGE = {"type": "image_url", "image_url": {"url": data_url(b"no image")}}
TOO_LONG = ("BadRequest", "context_length_exceeded")


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    return write_export(base / "served" / "tiny", "flamingo", base)


@contextlib.contextmanager
def process(export, *flags):
    """Yields (the process, its address); it is killed if it has not ended by then."""
    command = ["-m", "flamingo_jax.serve", f"--checkpoint={export}", "--port=0", *flags]
    if "--warm_up" not in flags:
        command.append("--nowarm_up")
    running = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": BASE_XLA_FLAGS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        lines = iter(running.stdout.readline, "")
        line = next((line for line in lines if not line.startswith("Warm-up: ")), "")
        assert line.startswith("Serving "), line + running.stdout.read()
        yield running, line.split(" at ")[1].strip()
    finally:
        running.kill()
        running.stdout.close()
        running.wait()


@pytest.fixture(scope="module")
def server(export):
    with process(export, "--batch_size=8", f"--max_tokens={TOKENS}", "--body_megabytes=1") as found:
        yield found


@pytest.fixture(scope="module")
def address(server):
    return server[1]


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(
        base_url=address, api_key="none", max_retries=0, timeout=START_SECONDS
    ) as made:
        yield made


@pytest.fixture(scope="module")
def model(export):
    return Flamingo.load(export)


def messages(seed, text="this is a"):
    image = {"type": "image_url", "image_url": {"url": data_url(png(seed))}}
    return [SYSTEM, {"role": "user", "content": [image, {"type": "text", "text": text}]}]


def ask(client, said, **settings):
    settings = {"max_tokens": TOKENS, **settings}
    return client.chat.completions.create(model="tiny", messages=said, **settings)


def expected(model, seeds, method=GREEDY):
    """What Flamingo.generate says to the same dialogues."""
    prompts = [dialogue.prompt_of(messages(n), lambda *_, n=n: tiny.image(n), PAPER) for n in seeds]
    texts = model.generate(prompts, method=method, batch_size=8)
    return [text.split("User:")[0].strip() for text in texts]


def test_the_client_gets_what_the_model_says(client, model):
    answers = [ask(client, messages(seed)) for seed in range(3)]
    texts = [answer.choices[0].message.content for answer in answers]
    assert texts == expected(model, range(3)) and len(set(texts)) > 1
    prompt = dialogue.prompt_of(messages(0), lambda *_: tiny.image(0), PAPER)
    usage = answers[0].usage
    assert usage.prompt_tokens == len(model.read(prompt).tokens)
    assert 0 < usage.completion_tokens <= TOKENS
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answers[0].choices[0].finish_reason in ("stop", "length")
    assert answers[0].model == "tiny"


def test_a_streamed_answer_is_the_same(client):
    whole = ask(client, messages(1))
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(ask(client, messages(1), **options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage and chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len(chunks) > 4


def test_settings_are_honoured(client, model):
    drawn = ask(client, messages(2), temperature=1.5, top_p=0.9, seed=3)
    method = Sample(1.5, 0.9, 3, TOKENS)
    assert [drawn.choices[0].message.content] == expected(model, [2], method)
    again = ask(client, messages(2), temperature=1.5, top_p=0.9, seed=3)
    assert again.choices == drawn.choices
    short = ask(client, messages(2), max_tokens=2)
    assert short.usage.completion_tokens == 2 and short.choices[0].finish_reason == "length"
    text = ask(client, messages(2)).choices[0].message.content
    word = text.split()[1]
    cut = ask(client, messages(2), stop=[word])
    assert cut.choices[0].message.content == text.split(word)[0].strip()
    assert cut.choices[0].finish_reason == "stop"


def test_uploads_and_models(client, address):
    file = client.files.create(file=("cat.png", png(1)), purpose="vision")
    part = {"type": "file", "file": {"file_id": file.id}}
    said = [SYSTEM, {"role": "user", "content": [part, {"type": "text", "text": "this is a"}]}]
    assert ask(client, said).choices == ask(client, messages(1)).choices
    assert client.files.retrieve(file.id).bytes == len(png(1))
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.BadRequestError, match="Upload it again"):
        ask(client, said)
    with pytest.raises(openai.BadRequestError, match="cannot be read as an image"):
        client.files.create(file=("cat.png", b"no image"), purpose="vision")
    assert [each.id for each in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "flamingo_jax"


@pytest.mark.parametrize(
    ("settings", "error", "code"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "BadRequest", "unsupported"),
        ({"n": 2}, "BadRequest", "unsupported"),
        ({"logprobs": True}, "BadRequest", "unsupported"),
        ({"max_tokens": TOKENS + 1}, "BadRequest", None),
        ({"model": "gpt-4"}, "NotFound", "model_not_found"),
        (
            {"messages": [{"role": "user", "content": "red " * 3000}]},
            "BadRequest",
            "context_length_exceeded",
        ),
        ({"messages": messages(0)[1:] * 40}, "BadRequest", "context_length_exceeded"),
        # So many images are not decoded: here none of them can be.
        ({"messages": [SYSTEM, {"role": "user", "content": [NO_IMAGE] * 40}]}, *TOO_LONG),
        ({"messages": [{"role": "user", "content": "x" * 1_100_000}]}, "", "body_too_large"),
        ({"stream": True, "messages": [SYSTEM]}, "BadRequest", None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_is_one_clear_error(client, settings, error, code):
    said = settings.pop("messages", messages(0))
    kind = getattr(openai, f"{error}Error") if error else openai.APIStatusError
    with pytest.raises(kind) as raised:
        client.chat.completions.create(**{"model": "tiny", "messages": said, **settings})
    assert raised.value.code == code and raised.value.message
    assert raised.value.status_code == {"NotFound": 404, "": 413}.get(error, 400)


def test_other_paths_and_bodies(client, address):
    assert ask(client, messages(0)).choices
    site = address.removesuffix("/v1")
    with httpx.Client(base_url=site, timeout=60) as http:
        for path, status in (("/v1/embeddings", 404), ("/health", 200), ("/v1/models/x", 404)):
            answer = http.get(path)
            assert answer.status_code == status, answer.text
            assert status == 200 or set(answer.json()["error"]) == {
                *("message", "type", "param", "code")
            }
        broken = http.post("/v1/chat/completions", content=b"{")
        assert broken.status_code == 400 and "no JSON" in broken.json()["error"]["message"]
        half = http.post("/v1/chat/completions", content=b'{"half \\ud800": 1}')
        assert half.status_code == 400 and half.json()["error"]["code"] == "unknown_field"
        for headers in ({}, {"content-type": "multipart/form-data; boundary=x"}):
            no_form = http.post("/v1/files", content=b"abc", headers=headers)
            assert no_form.status_code == 400 and "expected multipart/form-data" in no_form.text
        many = http.post("/v1/chat/completions", content=(b"x" * 100_000 for _ in range(30)))
        assert many.status_code == 413  # without a Content-Length
        lines = http.get("/metrics").text.splitlines()
        (answered,) = (line for line in lines if line.startswith("flamingo_prompt_tokens_total "))
        assert "# TYPE flamingo_waiting gauge" in lines and float(answered.split()[1]) > 0


def test_a_client_that_goes_away_frees_its_place(client, address):
    stream = ask(client, messages(0), stream=True)
    next(iter(stream))
    stream.close()
    with contextlib.suppress(httpx.TimeoutException):  # gone before the answer
        body = {"model": "tiny", "messages": messages(1), "max_tokens": TOKENS}
        httpx.post(f"{address}/chat/completions", json=body, timeout=0.001)
    assert ask(client, messages(2)).choices[0].message.content
    end = time.monotonic() + 60
    while "flamingo_running 0" not in (text := metrics(address)) and time.monotonic() < end:
        time.sleep(0.05)
    assert "flamingo_running 0" in text and "flamingo_waiting 0" in text


def metrics(address):
    return httpx.get(f"{address.removesuffix('/v1')}/metrics", timeout=60).text


def resident(running):
    """Megabytes of a process."""
    pages = int(pathlib.Path(f"/proc/{running.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_64_clients_each_get_their_own_answer(server, client, model):
    """Half of them streamed. No answer is lost or another's, and memory stays (30 MB)."""
    seeds = range(64)
    wanted = expected(model, seeds)
    assert len(set(wanted)) > 8

    def one(seed):
        if seed % 2:
            return ask(client, messages(seed)).choices[0].message.content
        chunks = ask(client, messages(seed), stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    sizes = []
    with concurrent.futures.ThreadPoolExecutor(64) as clients:
        for _ in range(3):
            assert list(clients.map(one, seeds)) == wanted
            sizes.append(resident(server[0]))
    assert sizes[-1] - sizes[0] < 30, sizes
    counted = collections.Counter(
        line.split()[0] for line in metrics(server[1]).splitlines() if "answers_total{" in line
    )
    assert not any("error" in name for name in counted)


def half_sent(address):
    """A connection whose request has begun, and does not go on."""
    host, port = address.removeprefix("http://").removesuffix("/v1").split(":")
    link = socket.create_connection((host, int(port)))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
    link.sendall(head + b"{")
    return link


def test_a_full_queue_and_a_graceful_end(export):
    """One answer runs, one waits, the third gets 429. Then SIGTERM: 503, and both are finished."""
    flags = ("--batch_size=1", "--batches=1", "--queue=1", "--max_tokens=1500")
    with (
        process(export, *flags) as (running, address),
        openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=600) as client,
        concurrent.futures.ThreadPoolExecutor(2) as clients,
    ):
        # Drawn at random from few tokens, without those that end an answer, it is long.
        long = {"max_tokens": 1500, "temperature": 0}
        first = ask(client, messages(LONG), stream=True, **long)
        pieces = [next(iter(first)).choices[0].delta.content]
        waiting = clients.submit(ask, client, messages(1), max_tokens=3)
        end = time.monotonic() + 60
        while "flamingo_waiting 1" not in metrics(address) and time.monotonic() < end:
            time.sleep(0.02)
        with pytest.raises(openai.RateLimitError) as full:
            ask(client, messages(2))
        assert full.value.code == "queue_full" and int(full.value.response.headers["retry-after"])
        silent = half_sent(address)
        running.send_signal(signal.SIGTERM)
        end = time.monotonic() + 60
        site = address.removesuffix("/v1")
        while httpx.get(f"{site}/health").status_code != 503 and time.monotonic() < end:
            time.sleep(0.02)
        with pytest.raises(openai.InternalServerError) as refused:
            ask(client, messages(2))
        assert refused.value.status_code == 503 and refused.value.code == "stopping"
        chunks = list(first)
        pieces += [chunk.choices[0].delta.content or "" for chunk in chunks]
        assert chunks[-1].choices[0].finish_reason == "length" and len("".join(pieces)) > 1500
        assert waiting.result().usage.completion_tokens == 3
        assert "Stopped: all accepted requests are answered." in running.stdout.read()
        assert running.wait(60) == 0  # it has not waited for the client that is silent
        assert b"503" in silent.recv(100)
        silent.close()


@pytest.mark.slow
def test_a_server_that_warms_up_says_when_it_is_ready(export):
    """`process` waits for the line that it serves, which comes after those of the warm-up."""
    with process(export, "--warm_up", "--batch_size=2", f"--max_tokens={TOKENS}") as (_, address):
        assert httpx.get(f"{address.removesuffix('/v1')}/health").json()["status"] == "ok"
        with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
            answer = ask(client, messages(0)[1:])
        numbers = dict(line.rsplit(" ", 1) for line in metrics(address).splitlines())
        # What the warm-up read is not counted.
        assert float(numbers["flamingo_prompt_tokens_total"]) == answer.usage.prompt_tokens


LONG = 3  # a picture of which the model says more than 1500 tokens


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host=192.0.2.1"], "AddressError: The server cannot listen at 192.0.2.1:"),
        (["--fetcher=no.such:function"], "--fetcher=no.such:function: there is no such function"),
    ],
)
def test_a_wrong_start_is_one_line(export, run_program, flags, message):
    done = run_program(
        "-m", "flamingo_jax.serve", f"--checkpoint={export}", "--port=0", *flags, status=None
    )
    assert done.returncode and message in done.stderr and "Traceback" not in done.stderr
