"""What a server counts, in Prometheus's text format (GET /metrics)."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Mapping

_HELP = {
    "requests_total": ("counter", "Answered requests by path and status."),
    "prompt_tokens_total": ("counter", "Tokens of the prompts that were answered."),
    "read_tokens_total": (
        "counter",
        "Tokens of prompts that the model read; those of a cached prefix are not read again.",
    ),
    "completion_tokens_total": ("counter", "Tokens of the answers."),
    "answers_total": ("counter", "Answers by why they ended: stop, length, gone, error."),
    "batches_total": ("counter", "Batches of prompts that were read."),
    "answer_seconds_sum": ("counter", "Seconds from a request to the end of its answer."),
    "first_piece_seconds_sum": ("counter", "Seconds from a request to the first piece of text."),
    "waiting": ("gauge", "Requests that wait for a batch."),
    "prefix_bytes": ("gauge", "Memory of the cached prefixes of prompts, on each device."),
    "running": ("gauge", "Answers that are being decoded."),
}


class ServerMetrics:
    """Counters of one server; threads may share it."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], float] = collections.defaultdict(float)
        self._gauges: dict[str, Callable[[], int]] = {}
        self._lock = threading.Lock()

    def add(self, name: str, value: int | float = 1, **labels: str) -> None:
        """Adds to a counter."""
        text = ",".join(f'{key}="{_escaped(each)}"' for key, each in sorted(labels.items()))
        with self._lock:
            self._values[name, text] += value

    def watch(self, gauges: Mapping[str, Callable[[], int]]) -> None:
        """Says how to read the gauges."""
        self._gauges.update(gauges)

    def text(self) -> str:
        """Returns all values."""
        with self._lock:
            values = dict(self._values)
        values |= {(name, ""): read() for name, read in self._gauges.items()}
        lines = []
        for name, (kind, about) in _HELP.items():
            lines += [f"# HELP flamingo_{name} {about}", f"# TYPE flamingo_{name} {kind}"]
            found = {labels: value for (each, labels), value in values.items() if each == name}
            for labels, value in sorted(found.items() or [("", 0)]):
                braces = f"{{{labels}}}" if labels else ""
                lines.append(f"flamingo_{name}{braces} {value:.12g}")
        return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
