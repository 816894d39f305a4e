"""The commands of an installed package: flamingo-train is `python -m flamingo_jax.train`, etc.

setup.py lists them.
"""

from __future__ import annotations

import runpy

from flamingo_jax.core import exit_status


def train() -> None:
    """Runs flamingo_jax.train."""
    _run("flamingo_jax.train")


def finetune() -> None:
    """Runs flamingo_jax.finetune."""
    _run("flamingo_jax.finetune")


def evaluate() -> None:
    """Runs flamingo_jax.evaluate."""
    _run("flamingo_jax.evaluate")


def generate() -> None:
    """Runs flamingo_jax.generate."""
    _run("flamingo_jax.generate")


def convert() -> None:
    """Runs flamingo_jax.convert."""
    _run("flamingo_jax.convert")


def plan() -> None:
    """Runs flamingo_jax.plan."""
    _run("flamingo_jax.plan")


def serve() -> None:
    """Runs flamingo_jax.serve."""
    _run("flamingo_jax.serve")


def cards() -> None:
    """Runs flamingo_jax.cards."""
    _run("flamingo_jax.cards")


def playground() -> None:
    """Runs flamingo_jax.playground."""
    _run("flamingo_jax.playground")


def data() -> None:
    """Runs data_pipelines.run."""
    _run("data_pipelines.run")


def _run(module: str) -> None:
    exit_status.at_interrupt_end()
    # The program runs as the main module, so that absl lists its flags for --help, and
    # multiprocessing finds it.
    runpy.run_module(module, run_name="__main__", alter_sys=True)
