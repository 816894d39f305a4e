"""Gives damaged files to the readers.

Each reader must return records or the reasons of what is wrong, in little time and memory.

    python -m tests.data_pipelines.fuzz SCRATCH COUNT SEED FORMAT...

This is a separate process, since the faults that it looks for end or block a process.
SCRATCH/FORMAT/current is the input that is being read. SCRATCH/FORMAT/found gets the inputs on
which a reader raised. Prints JSON: {format: {"outcomes": {record or reason: count}, "raised":
[...], "descriptors": number of files left open, "growth": bytes in the second half, "peak":
bytes}}.
"""

import collections
import contextlib
import ctypes
import dataclasses
import faulthandler
import gc
import json
import os
import pathlib
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tests.data_pipelines.mutate import mutate

SECONDS = 20  # for one input; a process that takes longer ends with a traceback
_MOST_RAISED = 20  # different exceptions that are reported of a format


@dataclasses.dataclass(frozen=True)
class Format:
    """A file format and its reader.

    Attributes:
      make: undamaged files; of a packed format before packing.
      read: reads a file and yields what each thing in it became ("record", or a reason). An
        exception is a fault.
      suffix: of the file's name.
      pack: compresses; half of the inputs are damaged before it, half after it.
      keeps: bytes of memory that a library is known to keep for each input.
    """

    make: Callable[[], Sequence[bytes]]
    read: Callable[[pathlib.Path], Iterator[str]]
    suffix: str = ""
    pack: Callable[[bytes], bytes] | None = None
    keeps: int = 0


def damaged(
    form: Format, seeds: Sequence[bytes], packed: Sequence[bytes], rng: np.random.Generator
) -> bytes:
    """Makes one input."""
    if form.pack is None:
        return mutate(seeds, rng)
    return form.pack(mutate(seeds, rng)) if rng.random() < 0.5 else mutate(packed, rng)


def run(name: str, form: Format, count: int, seed: int, scratch: pathlib.Path) -> dict[str, object]:
    """Reads `count` damaged files of a format."""
    seeds = list(form.make())
    packed = [form.pack(data) for data in seeds] if form.pack else []
    outcomes: collections.Counter[str] = collections.Counter()
    raised: dict[str, str] = {}
    file = scratch / f"current{form.suffix}"
    # Undamaged files must be read without a reason. This also imports everything before the memory
    # is measured.
    for data in packed or seeds:
        file.write_bytes(data)
        if set(form.read(file)) != {"record"}:
            raise AssertionError(f"{name}: a sound file gave {list(form.read(file))}")
    descriptors, at_half = _descriptors(), 0
    for number in range(count):
        if number == count // 2:
            at_half = _memory()
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
        data = damaged(form, seeds, packed, rng)
        file.write_bytes(data)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            outcomes.update(form.read(file))
        except Exception as error:  # noqa: BLE001 (any exception is a fault)
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} in {pathlib.Path(where.filename).name}:{where.lineno}"
            if what not in raised and len(raised) < _MOST_RAISED:
                kept = scratch / "found" / f"{number}{form.suffix}"
                kept.parent.mkdir(exist_ok=True)
                kept.write_bytes(data)
                raised[what] = f"{what}: {error!s:.200} ({kept})\n{traceback.format_exc()[-1500:]}"
        finally:
            faulthandler.cancel_dump_traceback_later()
    return {
        "outcomes": dict(outcomes.most_common()),
        "raised": list(raised.values()),
        "descriptors": _descriptors() - descriptors,
        "growth": _memory() - at_half,
        "peak": _peak(),
    }


def _peak() -> int:
    """Returns the peak memory of this program, in bytes.

    Getrusage also counts the parent process, since this process starts as a copy of it.
    """
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def _memory() -> int:
    """Returns the bytes of memory in use, after free memory was returned to the system.

    Otherwise one large image would look like a leak.
    """
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", bool)(0)
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(scratch: str, count: str, seed: str, *names: str) -> None:
    """Runs the formats of the command line."""
    from tests.data_pipelines.fuzz_formats import FORMATS

    faulthandler.enable()
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", DeprecationWarning)  # libraries deprecate parts of others
    gc.collect()
    gc.freeze()  # so that later collections, before each measurement, skip what exists now
    results = {}
    for name in names:
        with contextlib.redirect_stdout(sys.stderr):
            directory = pathlib.Path(scratch) / name.replace("/", "_")
            directory.mkdir()
            results[name] = run(name, FORMATS[name], int(count), int(seed), directory)
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
