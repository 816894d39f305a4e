"""A user opens the page in a browser: a real server, a real Chromium, nothing beyond this machine.

The server is a program with an export of a tiny model. In it, each attempt to reach another machine
is written down.
"""

import os
import pathlib
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import PIL.Image
import pytest

from flamingo_jax.core.config import ConfigError
from flamingo_jax.inference.methods import Greedy
from flamingo_jax.inference.model import Flamingo
from flamingo_jax.playground import page_server, prompt_files
from flamingo_jax.playground.prompt_files import PromptRow, SavedPrompt
from tests import browser
from tests.conftest import BASE_XLA_FLAGS, ROOT
from tests.evaluation.test_programs import write_export
from tests.inference import tiny

# Writes down each address outside of this machine that is looked up or reached.
WATCH = """
import os, socket
def note(what):
    with open(os.environ["REACHED"], "a") as file:
        file.write(f"{what}\\n")
    raise OSError(f"not allowed: {what}")
def is_here(host):
    return host in (None, "", "localhost", "::1") or str(host).startswith("127.")
look_up, connect = socket.getaddrinfo, socket.socket.connect
def getaddrinfo(host, *args, **kwargs):
    return look_up(host, *args, **kwargs) if is_here(host) else note(host)
class Watched(socket.socket):
    def connect(self, address):
        is_local = isinstance(address, (str, bytes)) or is_here(address[0])
        return super().connect(address) if is_local else note(address)
socket.getaddrinfo, socket.socket = getaddrinfo, Watched
"""
ROW_1, ROW_2 = "output : red", "output :"


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    return write_export(tmp_path_factory.mktemp("model") / "export", "flamingo", base)


@pytest.fixture(scope="module")
def reached(tmp_path_factory):
    """The file with what the server tried to reach."""
    return tmp_path_factory.mktemp("watch") / "reached.txt"


@pytest.fixture(scope="module")
def address(export, reached):
    """Starts the program; yields the address that it prints, and ends it as Ctrl-C does."""
    pytest.importorskip("gradio")
    (reached.parent / "sitecustomize.py").write_text(WATCH)
    environment = {
        **os.environ,
        "XLA_FLAGS": BASE_XLA_FLAGS,
        "PYTHONPATH": f"{reached.parent}:{os.environ.get('PYTHONPATH', '')}",
        "REACHED": str(reached),
    }
    program = [sys.executable, "-m", "flamingo_jax.playground", f"--checkpoint={export}"]
    with subprocess.Popen(
        [*program, "--port=0"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                break
        else:
            pytest.fail("".join(lines))
        yield found[0]
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two pictures, and files that are none."""
    directory = tmp_path_factory.mktemp("files")
    for i in range(2):
        picture = PIL.Image.fromarray(tiny.image(i)).resize((64, 64), PIL.Image.Resampling.NEAREST)
        picture.save(directory / f"{i}.png")
    (directory / "notes.png").write_text("no picture")
    with (directory / "large.png").open("wb") as file:
        file.truncate((prompt_files.MOST_MEGABYTES << 20) + 1)
    return directory


def fill(window, files):
    """Writes a prompt with one shot, as a user does."""
    for i, text in enumerate((ROW_1, ROW_2)):
        window.upload(f"#visual{i + 1} input[type=file]", files / f"{i}.png")
        window.wait(f"!!document.querySelector('#visual{i + 1} img')")
        window.type(f"#text{i + 1} textarea", text)


def test_a_user_tries_a_model(address, export, files, reached, tmp_path):
    model = Flamingo.load(export)
    given = tuple(str(files / f"{i}.png") for i in range(2))
    prompt = prompt_files.parts([PromptRow(given[:1], ROW_1), PromptRow(given[1:], ROW_2)])
    with browser.opened(tmp_path) as window:
        window.open(address)
        fill(window, files)
        window.click("#generate")
        answer = model.generate([prompt], method=Greedy())[0].strip()
        shown = "document.querySelector('#answer textarea').value"
        window.wait(shown, until=lambda text: text == answer)

        window.type("#candidates textarea", "red\nblue circle")
        window.click("#compare")
        window.wait("document.querySelectorAll('#bars .fj-bar').length === 2")
        best = window.run("document.querySelector('#bars .fj-best .fj-name').innerText")
        scores = model.score([prompt], [" red", " blue circle"])[0]
        assert best == ["red", "blue circle"][int(np.argmax(scores))]
        assert f"log-likelihood {max(scores):.2f}" in window.text()
        shown = window.screenshot(pathlib.Path(os.environ.get("SCREENSHOT", tmp_path / "page.png")))
        assert shown.shape == (900, 1320, 3) and shown.std() > 20

        window.click_text("button[role=tab]", "Gates")
        window.wait("document.querySelector('#gates').innerText.includes('+0.664')")
        window.click_text("button[role=tab]", "What each token sees")
        window.click("#look")
        window.wait("document.querySelectorAll('#seen figure').length === 2")
        tokens = "[...document.querySelectorAll('#seen .fj-c2')].map(e => e.innerText.trim())"
        assert window.run(tokens)[1:4] == ["<image>", "output", ":"]

        assert not window.errors
        elsewhere = [url for url in window.requests if not url.startswith((address, "data:"))]
        assert not elsewhere
    assert not reached.exists(), reached.read_text()


def test_a_wrong_file_is_a_message_and_the_page_goes_on(address, files, tmp_path):
    with browser.opened(tmp_path) as window:
        window.open(address)
        window.upload("#visual1 input[type=file]", files / "notes.png")
        window.wait("document.body.innerText.includes('cannot be read as an image')")
        window.wait("!document.querySelector('#visual1 img')")
        window.upload("#visual2 input[type=file]", files / "large.png")
        window.wait("document.body.innerText.includes('maximum allowed size')")
        window.click("#generate")
        window.wait("document.body.innerText.includes('It is empty')")


def test_a_saved_prompt_fills_the_page(address, files, tmp_path):
    rows = tuple(PromptRow((str(files / f"{i % 2}.png"),), f"output : {i}") for i in range(3))
    prompt_files.save(SavedPrompt(rows, ("red", "green")), str(tmp_path / "prompt.zip"))
    with browser.opened(tmp_path) as window:
        window.open(address)
        window.upload("input[accept='.zip']", tmp_path / "prompt.zip")
        window.wait("document.querySelectorAll('.fj-row img').length >= 3")
        assert window.run("document.querySelector('#text3 textarea').value") == "output : 2"
        assert window.run("document.querySelector('#candidates textarea').value") == "red\ngreen"
        window.click_text("button", "✕")
        window.wait("!document.querySelector('#text3')")
        assert window.run("document.querySelector('#text1 textarea').value") == "output : 1"


def test_the_browser_is_told_to_stay_here(address):
    with urllib.request.urlopen(address) as page:
        policy = page.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'self' data: blob:") and "http" not in policy
        assert "fonts.googleapis" not in page.read().decode()
    request = urllib.request.Request(address, headers={"Host": "attacker.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--port={port}: cannot listen .* another --port"):
            page_server.listen("127.0.0.1", port)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(page_server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'flamingo_jax\[playground\]'"):
        page_server.check_package()
