"""Progress: a bar in a terminal, plain lines elsewhere."""

import io
import sys

import pytest

from flamingo_jax.training import progress
from flamingo_jax.training.progress import Progress


def numbers(loss):
    return {"loss": loss, "step_seconds": 0.02}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    shown = Progress(steps=10, restored_step=4, title="tiny")
    shown.write(8, numbers(1.25))
    shown.write(8, {"until/nll": 0.5})
    shown.close()
    assert "8/10" in sys.stderr.getvalue() and "\r" in sys.stderr.getvalue()
    assert "loss 1.2500, 20 ms/step" in sys.stderr.getvalue()
    assert "tiny step 8: until/nll 0.5" in capsys.readouterr().out


def test_a_log_file_gets_whole_lines_at_first_at_last_and_now_and_then(clock_of, capsys):
    now = 100.0
    clock_of(progress, monotonic=lambda: now)
    shown = Progress(steps=10, restored_step=0, title="tiny")
    for step in range(1, 11):
        shown.write(step, numbers(step / 4))
        now += 8.0
    shown.close()
    lines = capsys.readouterr().err
    assert "\r" not in lines and lines.endswith("\n")
    assert [line.split()[2].rstrip(",") for line in lines.splitlines()] == [
        "1/10",
        "4/10",
        "7/10",
        "10/10",
    ]
    assert lines.splitlines()[1] == "tiny:  40% 4/10, loss 1.0000, 20 ms/step, ETA 00:00"


def test_the_last_line_of_a_run_that_ends_early_is_shown(capsys):
    shown = Progress(steps=10, restored_step=0, title="tiny")
    for step in (1, 2):
        shown.write(step, numbers(1.0))
    assert "2/10" not in capsys.readouterr().err
    shown.close()
    assert "2/10" in capsys.readouterr().err


def test_skipped_updates_are_shown(capsys):
    shown = Progress(steps=10, restored_step=0, title="tiny")
    shown.write(1, {"skipped": 2.0, "step_seconds": 0.02})
    assert "1/10, 2 updates skipped, 20 ms/step" in capsys.readouterr().err


def test_a_screen_that_is_gone_is_an_error_of_the_writer(monkeypatch):
    """`Background` counts it."""
    closed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", closed)
    shown = Progress(steps=10, restored_step=0, title="tiny")
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        shown.write(1, numbers(1.0))
