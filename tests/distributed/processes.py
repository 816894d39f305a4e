"""Several processes of this machine as one jax.distributed cluster on its CPU."""

import os
import pathlib
import socket
import subprocess
import sys

from tests.conftest import BASE_XLA_FLAGS, ROOT

PATIENCE = 240  # seconds; much more than any of them takes


def start_processes(
    arguments: list[str],
    *,
    count: int,
    devices: int = 1,
    cwd: pathlib.Path = ROOT,
    different: dict | None = None,
    expected: int | None = None,
) -> list[subprocess.Popen]:
    """Starts this Python `count` times with the same arguments, each with `devices` devices.

    Args:
        arguments: of Python.
        count: number of processes.
        devices: devices of each process.
        cwd: working directory; imports come from the repository in any case.
        different: {process: additional arguments}.
        expected: number of processes that each waits for; `count` by default.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"{BASE_XLA_FLAGS} --xla_force_host_platform_device_count={devices}",
        # Compilation takes most of the time, in each process.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(expected or count),
    }
    return [
        subprocess.Popen(
            [sys.executable, *arguments, *(different or {}).get(index, [])],
            cwd=cwd,
            env={**environment, "JAX_PROCESS_ID": str(index)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Waits for processes; returns (status, stdout, stderr) of each."""
    try:
        written = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, written, strict=True)]


def run_processes(arguments: list[str], *, count: int, **settings) -> list[str]:
    """Runs processes, which must end with status 0; returns what each wrote to stdout."""
    ended = finish(start_processes(arguments, count=count, **settings))
    for index, (status, output, error) in enumerate(ended):
        assert status == 0, (
            f"process {index} ended with {status}\n{output[-2000:]}\n{error[-4000:]}"
        )
    return [output for _, output, _ in ended]
