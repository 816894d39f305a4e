"""Tracebacks of orbax and TensorStore are not shown."""

import sys
import types

from flamingo_jax.checkpoint import orbax_logs


def test_a_closed_event_loop_is_not_shown(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    orbax_logs.drop_tracebacks()
    for text in ("Event loop is closed", "something else"):
        sys.unraisablehook(types.SimpleNamespace(object=None, exc_value=RuntimeError(text)))
    assert [str(found.exc_value) for found in shown] == ["something else"]
