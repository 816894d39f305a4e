r"""Measures one GPU: MFU of training, OpenFlamingo on the same weights, and the demo.

    python -m tests.benchmarks.gpu [--parts=step,lm,vision,logits,peer,demo] [--size=full|small]
        [--seconds=470] [--json=gpu.json]

    step     MFU of Flamingo-3B's update: M3W alone, and all four datasets of its config
    lm       MFU of the 1.4B language model's update
    vision   MFU of the contrastive update of NFNet-F6 and BERT-Large
    logits   Flamingo-3B's logits in bfloat16 against float32
    peer     OpenFlamingo 2.0.1 with the geometry of its 3B and the same random weights: a training
             step, and generation for 1 and 16 prompts of 0, 4 and 32 shots, greedy and 3 beams
    demo     launch/demo.sh

Nothing is read or fetched: weights and batches are random, and all rows are full. An update is cut
into micro-batches (`data.datasets.NAME.chunks`), as many as the memory of the device asks for. MFU
is the model FLOPs of `planning.flops` by the dense peak of `planning.peaks`.

Each part is a process of its own, which gets all of the device. A number is printed, and is in the
JSON file, as soon as it is measured. A part that fails, or does not end in its share of --seconds,
is one line, and the next one begins. --size=small runs everything on a CPU in minutes, with models
that say nothing about speed. gpu_wheels.sh collects the packages for a machine without a network.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MARK = "@result "  # begins a line of a part that is a result, as JSON

# Seconds of each part, of --seconds; what a part leaves is for those that follow.
SHARES = {"step": 140, "lm": 45, "vision": 60, "logits": 25, "peer": 130, "demo": 70}


def result(name: str, text: str, **numbers: Any) -> None:
    """Hands a result to the program that started this part.

    Args:
        name: of what is measured.
        text: the numbers, for people.
        numbers: the same, for the JSON file.
    """
    print(MARK + json.dumps({"name": name, "text": text, **numbers}), flush=True)


def demo(size: str) -> None:
    """Runs the demo from the beginning to the end, in this environment."""
    with tempfile.TemporaryDirectory(prefix="demo-") as directory:
        output = pathlib.Path(directory) / "demo"
        command = ["launch/demo.sh", f"--output={output}"]
        command += ["--size=smoke"] if size == "small" else []
        start = time.perf_counter()
        subprocess.run(
            command, cwd=ROOT, check=True, env={**os.environ, "FLAMINGO_VENV": sys.prefix}
        )
        seconds = time.perf_counter() - start
        rows = json.loads((output / "report" / "results.json").read_text())
        found = {
            f"{row['task']}/{row['shots']}": row["value"]
            for row in rows
            if row["metric"] == "exact_match" and row["shots"] in (0, 4, 8)
        }
        usage = (output / "usage.txt").read_text().split("\n")
        result(
            "demo",
            f"{seconds:.0f} s ({', '.join(' '.join(line.split()[:2]) for line in usage if line)} "
            f"s); exact match {found}",
            seconds=seconds,
            exact_match=found,
        )


def run_part(name: str, size: str) -> None:
    """Runs a part in this process."""
    if name == "demo":
        demo(size)
    elif name == "peer":
        from tests.benchmarks import gpu_peer

        gpu_peer.measure(size)
    else:
        from tests.benchmarks import gpu_updates

        gpu_updates.PARTS[name](size)


@contextlib.contextmanager
def ended_after(process: subprocess.Popen[str], seconds: float) -> Iterator[list[str]]:
    """Ends a process and all that it started after some time; yields a list that then has why."""
    why: list[str] = []

    def end() -> None:
        why.append(f"stopped after {seconds:.0f} s")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield why
    finally:
        timer.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def run_apart(name: str, size: str, seconds: float, keep: Callable[[dict[str, Any]], None]) -> str:
    """Runs a part in a process of its own.

    Args:
        name: of the part.
        size: "full" or "small".
        seconds: the longest that it may take.
        keep: receives each result.

    Returns:
        "" if it was done; else why not, as one line.
    """
    environment = {
        # The peer shares the device with PyTorch.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false" if name == "peer" else "true",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        **os.environ,
    }
    command = [sys.executable, "-m", "tests.benchmarks.gpu", f"--only={name}", f"--size={size}"]
    opened = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    last = ""
    with opened as process, ended_after(process, seconds) as why:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(MARK):
                keep(json.loads(line.removeprefix(MARK)))
            elif line.strip():
                last = line.strip()
        process.wait()
    if not process.returncode:
        return ""
    return (why or [f"status {process.returncode}: {last}"])[0]


def measure(parts: list[str], size: str, seconds: float, path: pathlib.Path) -> bool:
    """Runs parts one after the other; returns True if all were done.

    Args:
        parts: their names.
        size: "full" or "small".
        seconds: the longest that all may take.
        path: JSON file; it has all results from the first one on.
    """
    end, ahead = time.monotonic() + seconds, sum(SHARES[name] for name in parts)
    content: dict[str, Any] = {"size": size, "results": [], "failed": {}}

    def write() -> None:
        path.with_suffix(".new").write_text(json.dumps(content, indent=1))
        path.with_suffix(".new").rename(path)

    def keep(found: dict[str, Any]) -> None:
        print(f"{found['name']}: {found['text']}", flush=True)
        content["results"].append(found)
        write()

    for name in parts:
        start = time.monotonic()
        share = (end - start) * SHARES[name] / ahead
        ahead -= SHARES[name]
        if failed := run_apart(name, size, share, keep):
            content["failed"][name] = failed
            print(f"{name}: not done: {failed}", flush=True)
        print(f"({name}: {time.monotonic() - start:.0f} s)", flush=True)
        write()
    return not content["failed"]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(SHARES))
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--seconds", type=float, default=470.0)
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("gpu.json"))
    parser.add_argument("--only", choices=tuple(SHARES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        run_part(arguments.only, arguments.size)
        return
    parts = arguments.parts.split(",")
    if unknown := [name for name in parts if name not in SHARES]:
        parser.error(f"--parts has {unknown}; expected some of {', '.join(SHARES)}")
    sys.exit(not measure(parts, arguments.size, arguments.seconds, arguments.json))


if __name__ == "__main__":
    main()
