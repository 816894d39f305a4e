"""Reads compiled HLO text: computations, instructions, and how often each runs.

    compiled.as_text() --parse--> HloModule {name: Computation {name: Instruction}}
                       --branches--> (computation, times that it runs)

It reads only what the planner needs, for TPU and CPU programs. The text is scheduled: the chip
starts the instructions of a computation in their order in the text.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^  (ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ?([\w\-]+)\(")
_PARENTHESIS = re.compile(r"[()]")
_OPERAND = re.compile(r"%([\w.\-]+)")
_LEAF = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}


class HloError(ValueError):
    """The planner cannot read the HLO text."""


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique in its module.
      opcode: for example "fusion"; with the suffix "-start" or "-done" if it is asynchronous.
      type: of the result, as in the text: "bf16[8,128]{1,0:T(8,128)}", or a tuple of types.
      operands: names of instructions, or the text between the parentheses of a parameter or
          constant.
      attributes: the text after the operands.
      is_root: True if the computation returns its result.
    """

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def cycles(self) -> int:
        """The compiler's estimate for this instruction and all that it calls; 0 if it has none."""
        found = _CYCLES.search(self.attributes)
        return int(found[1]) if found else 0

    @property
    def op_name(self) -> str:
        """Its place in the traced program, "" if it is not known."""
        found = _OP_NAME.search(self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls, including the condition of a while loop."""
        names = _CALLED.findall(self.attributes)
        if branches := _BRANCHES.search(self.attributes):
            names += _OPERAND.findall(branches[1])
        return tuple(names)

    @property
    def num_bytes(self) -> int:
        """Bytes of the result; for a tuple, the sum over its parts."""
        return sum(_leaf_bytes(dtype, shape) for dtype, shape in leaves(self.type))

    def attribute(self, name: str) -> str:
        """Returns the value of the attribute `name=...`, "" if there is no such attribute.

        The value ends at the next comma outside of brackets. The device_ids of a mesh belong to the
        value.
        """
        start = self.attributes.find(f" {name}=")
        if start < 0:
            return ""
        start += len(name) + 2
        depth = 0
        for end in range(start, len(self.attributes)):
            letter = self.attributes[end]
            if letter in "{[(":
                depth += 1
            elif letter in ")]}":
                depth -= 1
            elif (
                letter == "," and not depth and not self.attributes.startswith(", device_ids=", end)
            ):
                return self.attributes[start:end]
        return self.attributes[start:]


@dataclasses.dataclass(frozen=True, slots=True)
class Computation:
    """A function of the module; its instructions by name, in the order of the schedule."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose result the computation returns."""
        return next(instruction for instruction in self if instruction.is_root)

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())


@dataclasses.dataclass(frozen=True)
class HloModule:
    """A compiled program.

    Attributes:
      computations: by name.
      entry: name of the computation that runs.
    """

    computations: dict[str, Computation]
    entry: str

    def branches(self, instruction: Instruction) -> list[tuple[Computation, int]]:
        """Returns (computation, times that it runs) of the computations that an instruction calls.

        These are the body of a loop, what a call or an asynchronous start calls, and each branch of
        a conditional. The computations of a fusion are not returned: the estimate of the fusion
        includes them.
        """
        opcode = instruction.opcode
        if opcode == "while":
            body = instruction.attribute("body").lstrip("%")
            return [(self.computations[body], self._trips[instruction.name])]
        if opcode in ("call", "conditional", "async-start"):
            return [(self.computations[name], 1) for name in instruction.called]
        return []

    @functools.cached_property
    def loops(self) -> dict[str, tuple[Computation, Instruction]]:
        """{name of a body: (computation that contains the loop, the loop)}."""
        return {
            instruction.attribute("body").lstrip("%"): (computation, instruction)
            for computation in self.computations.values()
            for instruction in computation
            if instruction.opcode == "while"
        }

    @functools.cached_property
    def _trips(self) -> dict[str, int]:
        """{name of a while instruction: times that its body runs}."""
        return {
            loop.name: _trip_count(self, computation, loop)
            for computation, loop in self.loops.values()
        }


def parse(text: str) -> HloModule:
    """Parses the text of a compiled module.

    Raises:
        HloError: the text has no entry computation, or an instruction cannot be read.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            header = _HEADER.match(line)
            if header:
                current = Computation(header[2], {})
                entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            computations[current.name] = current
            current = None
        elif line:
            instruction = _instruction(line)
            current.instructions[instruction.name] = instruction
    if not entry:
        raise HloError(
            f"The text has no ENTRY computation; expected compiled HLO, got {text[:60]!r}..."
        )
    return HloModule(computations, entry)


def leaves(type_text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Returns (dtype, shape) of each array in a type."""
    return [
        (dtype, tuple(int(size) for size in shape.split(",") if size))
        for dtype, shape in _LEAF.findall(type_text)
    ]


def _instruction(line: str) -> Instruction:
    name = _NAME.match(line)
    if not name:
        raise HloError(f"Not an instruction: {line[:200]!r}.")
    start = name.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    opcode = _OPCODE.match(line, end)
    if not opcode:
        raise HloError(f"No opcode in the instruction {line[:200]!r}.")
    close = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : close]
    operands = tuple(_OPERAND.findall(inside)) or ((inside,) if inside else ())
    return Instruction(
        name[2], opcode[1], line[start:end], operands, line[close + 1 :], bool(name[1])
    )


def _closing(line: str, start: int) -> int:
    """Returns the position that closes the parenthesis at `start`."""
    depth = 0
    for found in _PARENTHESIS.finditer(line, start):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    raise HloError(f"A parenthesis does not close: {line[:200]!r}.")


def _leaf_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    if dtype not in _BITS:
        digits = re.search(r"\d+", dtype)  # f32, s8, u4, f8e4m3fn, c64
        _BITS[dtype] = int(digits[0]) if digits else 0
    return math.prod(shape) * _BITS[dtype] // 8


def _trip_count(module: HloModule, computation: Computation, loop: Instruction) -> int:
    """Returns how often the body of a loop runs.

    The compiler may have written the number. Otherwise it follows from the condition, which
    compares a counter with its bound. The first value of the counter and the bound may be elements
    of the loop's tuple.

    Raises:
        HloError: the condition has another form.
    """
    known = _TRIPS.search(loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations[loop.attribute("condition").lstrip("%")]
    body = module.computations[loop.attribute("body").lstrip("%")]
    compare = _comparison(module, condition)
    if compare is None:
        raise HloError(
            f"The condition {condition.name} of loop {loop.name} does not compare a "
            "counter with a bound."
        )
    (left, right), direction = compare

    def value(operand: Instruction) -> tuple[int | None, int | None]:
        """Returns (value, place in the loop's tuple), each None if it is not known."""
        operand = _through_copies(condition, operand)
        if operand.opcode == "constant":
            return int(operand.operands[0]), None
        if operand.opcode != "get-tuple-element":
            return None, None
        index = int(operand.attribute("index"))
        return _constant(module, computation, loop.operands[0], index), index

    (first, index), (bound, _) = value(left), value(right)
    step = _step(module, body, index) if index is not None else None
    if first is None or bound is None or not step:
        raise HloError(
            f"How often loop {loop.name} runs is not in the text: counter from {first} to {bound} "
            f"in steps of {step}."
        )
    distance = bound - first
    if direction not in ("LT", "GT", "NE"):  # LE, GE: the bound is included
        distance += int(math.copysign(1, step))
    return max(0, -(-distance // step))


def _comparison(
    module: HloModule, condition: Computation
) -> tuple[tuple[Instruction, Instruction], str] | None:
    """Returns ((left, right), direction) of the comparison that a condition returns.

    Both sides are instructions of the condition, also if the comparison is inside a fusion.
    """
    root = _through_copies(condition, condition.root)
    if root.opcode == "compare":
        left, right = (condition.instructions[name] for name in root.operands[:2])
        return (left, right), root.attribute("direction")
    if root.opcode != "fusion":
        return None
    inner = module.computations[root.called[0]]
    compare = _through_copies(inner, inner.root)
    if compare.opcode != "compare":
        return None
    sides = []
    for name in compare.operands:
        side = _through_copies(inner, inner.instructions[name])
        if side.opcode == "parameter":
            side = condition.instructions[root.operands[int(side.operands[0])]]
        sides.append(side)
    return (sides[0], sides[1]), compare.attribute("direction")


def _through_copies(computation: Computation, instruction: Instruction) -> Instruction:
    """Returns the instruction that makes a value, before copies, bitcasts and conversions."""
    while instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start", "convert"):
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def _constant(
    module: HloModule, computation: Computation, tuple_name: str, index: int
) -> int | None:
    """Returns the integer at `index` of a tuple, None if it is not a constant.

    If the tuple is the parameter of a loop's body, the tuple that enters this loop is read.
    """
    made = _through_copies(computation, computation.instructions[tuple_name])
    if made.opcode == "parameter":
        caller = module.loops.get(computation.name)
        return _constant(module, caller[0], caller[1].operands[0], index) if caller else None
    if made.opcode != "tuple":
        return None
    element = _through_copies(computation, computation.instructions[made.operands[index]])
    if element.opcode == "get-tuple-element":
        return _constant(module, computation, element.operands[0], int(element.attribute("index")))
    return int(element.operands[0]) if element.opcode == "constant" else None


def _step(module: HloModule, body: Computation, index: int) -> int | None:
    """Returns the number that a loop's body adds to element `index` of its tuple, or None."""
    root = body.root
    if root.opcode != "tuple":
        return None
    update = _through_copies(body, body.instructions[root.operands[index]])
    scope, arguments = body, None
    if update.opcode == "fusion":
        arguments = update.operands
        scope = module.computations[update.called[0]]
        update = _through_copies(scope, scope.root)
    if update.opcode not in ("add", "subtract"):
        return None
    for name in update.operands:
        side = _through_copies(scope, scope.instructions[name])
        if side.opcode == "parameter" and arguments is not None:
            side = _through_copies(body, body.instructions[arguments[int(side.operands[0])]])
        if side.opcode == "constant":
            return int(side.operands[0]) * (-1 if update.opcode == "subtract" else 1)
    # The step is an element of the loop's tuple. The counters of JAX and XLA increase by one.
    return 1
