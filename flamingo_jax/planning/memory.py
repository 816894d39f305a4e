"""The memory that a program needs on a chip, and its largest buffers if it does not fit.

The TPU compiler rejects a program that does not fit, with an error that names no buffer. The
program is then compiled a second time, and the compiler writes its notes into files. The notes list
each allocation with the values that are stored in it.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax

from flamingo_jax.core.paths import Path, regular
from flamingo_jax.planning import hlo

_ALLOCATION = re.compile(r"^allocation \d+: size (\d+)(.*)$")
_VALUE = re.compile(
    r"^ value: <\d+ ([\w.\-]+)(\S*)( \(phi\))? @(\d+)> \(size=(\d+),offset=(\d+)\): (\S+)"
)
_NOTES = "after_optimizations-buffer-assignment.txt"
_TEXT = "after_optimizations.txt"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of one chip, in bytes.

    Attributes:
      arguments: arguments of the program: weights, optimizer state, batch.
      temporaries: memory that the program needs besides its arguments and results.
      outputs: results that are not stored in the place of a donated argument.
    """

    arguments: int
    temporaries: int
    outputs: int

    @property
    def total(self) -> int:
        """Memory that must fit at the same time."""
        return self.arguments + self.temporaries + self.outputs


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One array in memory.

    Attributes:
      name: in the HLO.
      op_name: place in the traced program, "" if it is not known.
      type: as in the HLO.
      num_bytes: size.
    """

    name: str
    op_name: str
    type: str
    num_bytes: int


def of_compiled(compiled: Any) -> Memory:
    """Returns the memory of a compiled program; its code counts as a temporary."""
    stats = compiled.memory_analysis()
    return Memory(
        arguments=stats.argument_size_in_bytes,
        temporaries=stats.temp_size_in_bytes + stats.generated_code_size_in_bytes,
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
    )


def is_too_large(error: Exception) -> bool:
    """Returns True if the error of the compiler says that the program does not fit."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def of_refused(
    lowered: Any, directory: Path, *, most: int = 10
) -> tuple[Memory | None, list[Buffer]]:
    """Compiles a program that does not fit again, to find its largest buffers.

    Args:
        lowered: the program.
        directory: an empty directory for the compiler's notes.
        most: number of buffers to return.

    Returns:
        (memory, largest buffers) of the program; (None, []) if the compiler wrote no notes.
    """
    try:
        lowered.compile(compiler_options={"xla_dump_to": str(directory)})
    except jax.errors.JaxRuntimeError as error:
        if not is_too_large(error):
            raise
    notes = sorted(path for path in directory.iterdir() if path.name.endswith(_NOTES))
    if not notes:
        return None, []
    text = notes[-1].parent / (notes[-1].name.removesuffix(_NOTES) + _TEXT)
    return read_assignment(
        regular(notes[-1]).read_text(),
        regular(text).read_text() if text.exists() else "",
        most=most,
    )


def read_assignment(notes: str, text: str, *, most: int = 10) -> tuple[Memory, list[Buffer]]:
    """Reads the compiler's buffer assignment.

    Args:
        notes: the assignment.
        text: HLO of the module, which has the names of the operations; "" if it is not known.
        most: number of buffers to return. Buffers that share a place count once.

    Returns:
        (memory, largest buffers first).
    """
    arguments = temporaries = outputs = 0
    in_hbm = False
    allocation = 0
    # (allocation, offset, size) -> the value that is stored there
    places: dict[tuple[int, int, int], tuple[bool, str, str]] = {}
    for line in notes.splitlines():
        if found := _ALLOCATION.match(line):
            size, kind = int(found[1]), found[2]
            allocation += 1
            in_hbm = "thread-local" not in kind and "color" not in kind
            if not in_hbm:
                continue
            if "parameter" in kind:
                arguments += size
            elif "maybe-live-out" in kind:
                outputs += size
            else:
                temporaries += size
        elif in_hbm and (found := _VALUE.match(line)):
            name, index, phi, _, size_text, offset, type_text = found.groups()
            passed_on = bool(phi) or (index != "{}" and index != "")
            key = (allocation, int(offset), int(size_text))
            known = places.get(key, (True, name, type_text))
            places[key] = min(known, (passed_on, name, type_text))
    ordered = sorted(places.items(), key=lambda item: -item[0][2])[:most]
    op_names = _op_names(text)
    return Memory(arguments, temporaries, outputs), [
        Buffer(name, op_names.get(name, ""), type_text.partition("{")[0], key[2])
        for key, (_, name, type_text) in ordered
    ]


def _op_names(text: str) -> dict[str, str]:
    if not text:
        return {}
    module = hlo.parse(text)
    return {
        i.name: i.op_name
        for computation in module.computations.values()
        for i in computation
        if i.op_name
    }
