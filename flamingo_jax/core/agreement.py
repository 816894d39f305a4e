"""Compares what the processes of a run were given, before anything is compiled.

All processes of a run must have the same config, data and code: each computes its part of one
program. A process with another seed or learning rate would train a model that nobody asked for.

    facts of each process --> process 0 compares --> one verdict in all processes

The facts go through the key-value store of jax.distributed, not through the devices: nothing is
compiled, and the processes may even have different numbers of devices. If a process fails before it
comes here, `core.guard` ends the others.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from flamingo_jax.core import config as config_lib
from flamingo_jax.core import paths
from flamingo_jax.core.peers import key_value_store

PATIENCE = 600.0  # seconds that processes wait for each other: one may read from a cold disk
_HINT_SECONDS = 60  # between two lines that say for whom this process waits
_MOST_NAMED = 6  # differences, and processes of a difference, that a message names

# Versions that decide what is computed or read.
_LIBRARIES = (
    *("jax", "jaxlib", "libtpu", "dm-haiku", "optax", "orbax-checkpoint", "numpy", "grain"),
    *("array-record", "tensorflow-datasets", "sentencepiece", "tokenizers"),
    *("pillow", "simplejpeg", "av"),
)
_OPTIONS = (
    *("jax_default_matmul_precision", "jax_default_prng_impl", "jax_enable_x64"),
    *("jax_numpy_dtype_promotion", "jax_threefry_partitionable"),
)
_ABSENT = "absent"

_rounds = itertools.count()


class AgreementError(RuntimeError):
    """The processes of a run were given different things. The message names them."""


def check(facts: Mapping[str, Any]) -> None:
    """Compares nested dicts of JSON values over all processes, which call it together.

    The code and the devices are compared too.

    Args:
        facts: what must be the same in all processes, such as {"config": {"seed": 0}}.

    Raises:
        AgreementError: in all processes, if a value differs. It names the field, the values and the
            processes.
    """
    if jax.process_count() == 1:
        return
    facts = {**facts, **code_and_devices()}
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if not verdict(digest, lambda digests: "" if len(set(digests)) == 1 else "compare"):
        return
    mine = json.dumps([socket.gethostname(), facts], allow_nan=False)
    if found := verdict(mine, lambda texts: _message(*zip(*map(json.loads, texts), strict=True))):
        raise AgreementError(found)


def code_and_devices() -> dict[str, Any]:
    """Returns the facts of this process that no config holds: its code, libraries and devices."""
    return {
        "code": {
            "flamingo_jax": _source_hash(),
            "python": platform.python_version(),
            **{name: _version(name) for name in _LIBRARIES},
        },
        "options": {
            **{name: str(getattr(jax.config, name, _ABSENT)) for name in _OPTIONS},
            **{name: _flags(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")},
        },
        "devices": {
            "platform": jax.local_devices()[0].platform,
            "kind": jax.local_devices()[0].device_kind,
            "number": jax.local_device_count(),
        },
    }


def differences(facts: Sequence[Mapping[str, Any]], hosts: Sequence[str]) -> list[str]:
    """Returns a line for each field that is not the same in all processes.

    The value that most processes have is named last; where two are equally frequent, it is that of
    the earlier process.

    Args:
        facts: of each process.
        hosts: the host of each process.
    """
    flat = [dict(config_lib.leaves(each)) for each in facts]
    lines = []
    for field in dict.fromkeys(name for each in flat for name in each):
        values = [_show(each.get(field, _ABSENT)) for each in flat]
        holders: dict[str, list[int]] = {}
        for process, value in enumerate(values):
            holders.setdefault(value, []).append(process)
        if len(holders) == 1:
            continue
        usual = max(holders, key=lambda value: len(holders[value]))
        others = " and ".join(
            f"{value} on {_processes(who, hosts)}"
            for value, who in holders.items()
            if value != usual
        )
        rest = holders[usual]
        most = _processes(rest, hosts) if len(rest) == 1 else f"the other {len(rest)}"
        lines.append(f"{field} is {others}, {usual} on {most}")
    return lines


def verdict(text: str, judge: Callable[[list[str]], str]) -> str:
    """Returns, in all processes, what process 0's `judge` says of the texts of all processes.

    All processes call it together, in the same order.

    Args:
        text: of this process.
        judge: called in process 0 alone, with the texts in the order of the processes.

    Raises:
        AgreementError: if a process did not come in PATIENCE seconds.
    """
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
        return judge([text])
    number = next(_rounds)
    store, here = key_value_store(), f"flamingo_jax/agreement/{number}"
    if index > 0:
        store.key_value_set(f"{here}/{index}", text)
        return _wait_for(f"{here}/verdict", 0)
    texts = [text, *(_wait_for(f"{here}/{process}", process) for process in range(1, count))]
    found = judge(texts)
    store.key_value_set(f"{here}/verdict", found)
    if number:  # all have read the verdict of the round before
        store.key_value_delete(f"flamingo_jax/agreement/{number - 1}")
    return found


def _wait_for(key: str, process: int) -> str:
    """Returns the text that `process` has put under a key."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return str(key_value_store().blocking_key_value_get(key, _HINT_SECONDS * 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if time.monotonic() > end:
            raise AgreementError(
                f"Process {process} did not come to compare its config within {PATIENCE:.0f} s. "
                "See its log, and start all processes again."
            )
        sys.stderr.write(f"waiting for process {process} to compare its config\n")
        sys.stderr.flush()


def _message(hosts: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> str:
    lines = differences(facts, hosts)
    more = len(lines) - _MOST_NAMED
    named = "; ".join(lines[:_MOST_NAMED]) + (f"; and {more} more fields" if more > 0 else "")
    return (
        f"The processes of this run do not agree: {named}. Start the same command on all hosts, "
        "with the same code and data."
    )


def _processes(who: Sequence[int], hosts: Sequence[str]) -> str:
    named = [f"{process} ({hosts[process]})" for process in who[:_MOST_NAMED]]
    more = f" and {len(who) - _MOST_NAMED} more" if len(who) > _MOST_NAMED else ""
    return f"process{'es' if len(who) > 1 else ''} {', '.join(named)}{more}"


def _show(value: Any) -> str:
    return _ABSENT if value == _ABSENT else repr(value)


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return _ABSENT


def _flags(name: str) -> str:
    """Returns the flags of an environment variable, sorted; dumps may go to another place."""
    words = re.split(r"\s+", os.environ.get(name, "").strip())
    return " ".join(sorted(word for word in words if not word.startswith("--xla_dump")))


def _source_hash() -> str:
    """Returns a hash of the package's source files; they may be edited since the version."""
    digest = hashlib.sha256()

    def add(directory: paths.Path) -> None:
        for entry, is_directory in paths.listed(directory):
            if is_directory:
                add(entry)
            elif entry.suffix == ".py":
                of_file = hashlib.sha256(paths.regular(entry).read_bytes()).hexdigest()
                digest.update(f"{entry.name} {of_file}\n".encode())

    add(paths.Path(__file__).parent.parent)
    return digest.hexdigest()[:16]
