"""Estimates the time of a compiled step, from the compiler's cycles and a rule for collectives.

    step = cycles / clock + synchronous collectives
         + the part of asynchronous collectives that overlapping compute does not hide

The TPU compiler writes `estimated_cycles` next to each fusion and copy, which include all that it
calls. Loops count by their trips, a conditional by its more expensive branch. A synchronous
collective has no estimate (in libtpu 0.0.42 and 0.0.52), and a collective that is a fusion
(all-reduce-scatter) is counted only by its bytes, so that nothing counts twice. Asynchronous
collectives (start ... done) run while compute runs. Collectives that use the same links wait for
each other. The time that a "done" still waits is exposed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

from jax.sharding import Mesh

from flamingo_jax.planning import collectives, hlo, matmul
from flamingo_jax.planning.collectives import Collective, Network, event
from flamingo_jax.planning.topologies import Topology

PARTS = (
    "vision",
    "text",
    "resampler",
    "xattn",
    "lm_forward",
    "backward",
    "recomputation",
    "optimizer",
    "other",
)

# (word in the path of an operation, its part). The first word that is found counts: the layers of
# "xattn" are inside "lm".
_FORWARD = (
    ("vision", "vision"),
    ("text", "text"),
    ("resampler", "resampler"),
    ("media", "resampler"),
    ("xattn", "xattn"),
    ("lm", "lm_forward"),
)

# A matmul that reaches more than this share of the peak is an error of the estimate.
_MOST_EFFICIENT = 0.95


class CollectiveCost(NamedTuple):
    """The key of a row of the table of collectives; as in `collectives.Collective`."""

    kind: str
    axis: str
    overlapped: bool
    torus: tuple[int, ...]


@dataclasses.dataclass
class Sums:
    """The totals of a row of collectives over a step, for one chip.

    Attributes:
      num_bytes: bytes that a chip must receive.
      count: number of collectives.
      seconds: time on the links.
      exposed: the part of `seconds` that no compute overlaps.
    """

    num_bytes: int = 0
    count: int = 0
    seconds: float = 0.0
    exposed: float = 0.0

    def add(self, other: Sums, times: int = 1) -> None:
        """Adds `times` the numbers of `other`."""
        self.num_bytes += times * other.num_bytes
        self.count += times * other.count
        self.seconds += times * other.seconds
        self.exposed += times * other.exposed


@dataclasses.dataclass
class Cost:
    """The cost of one run of a computation on one chip.

    Attributes:
      parts: {part of the step: seconds of compute}.
      rows: {row of collectives: totals}.
      flops: of matmuls and convolutions.
      implausible: {instruction: (efficiency, seconds)} of matmuls that are faster than the chip.
      unestimated: FLOPs of matmuls without an estimate of the compiler.
    """

    parts: dict[str, float] = dataclasses.field(default_factory=dict)
    rows: dict[CollectiveCost, Sums] = dataclasses.field(default_factory=dict)
    flops: int = 0
    implausible: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    unestimated: int = 0

    @property
    def compute_seconds(self) -> float:
        """Compute of all parts."""
        return sum(self.parts.values(), start=0.0)

    @property
    def communication_seconds(self) -> float:
        """Time on the links, exposed or not."""
        return sum((sums.seconds for sums in self.rows.values()), start=0.0)

    @property
    def exposed_seconds(self) -> float:
        """Communication that no compute overlaps."""
        return sum((sums.exposed for sums in self.rows.values()), start=0.0)

    @property
    def step_seconds(self) -> float:
        """Compute, and exposed communication."""
        return self.compute_seconds + self.exposed_seconds

    def add(self, other: Cost, times: int = 1) -> None:
        """Adds `times` the cost of `other`."""
        for part, seconds in other.parts.items():
            self.parts[part] = self.parts.get(part, 0.0) + times * seconds
        for row, sums in other.rows.items():
            self.rows.setdefault(row, Sums()).add(sums, times)
        self.flops += times * other.flops
        self.unestimated += times * other.unestimated
        for name, (efficiency, seconds) in other.implausible.items():
            before = self.implausible.get(name, (efficiency, 0.0))[1]
            self.implausible[name] = (efficiency, before + times * seconds)


def analyse(compiled_text: str, mesh: Mesh, topology: Topology) -> Cost:
    """Returns the cost of one run of a compiled program.

    Args:
        compiled_text: `compiled.as_text()` of a program that is compiled for `topology`.
        mesh: of the program, over all devices of the topology.
        topology: the slice.

    Raises:
        HloError: the planner cannot read the text.
    """
    return _Walk(hlo.parse(compiled_text), Network(mesh, topology), topology).of(None)


def part_of(op_name: str) -> str:
    """Returns the part of the step, one of PARTS, that an operation belongs to.

    Args:
        op_name: its place in the traced program: "jit(step)/optimizer/mul",
            "jit(step)/jvp(flamingo)/vision/...", "jit(step)/transpose(jvp(flamingo))/...".
    """
    words = _words(op_name)
    if "optimizer" in words:
        return "optimizer"
    if "rematted_computation" in words:
        return "recomputation"
    if "transpose(" in op_name:  # of the tape; an array is transposed by ".../transpose"
        return "backward"
    return next((part for word, part in _FORWARD if word in words), "other")


@functools.lru_cache(maxsize=1 << 16)
def _words(op_name: str) -> frozenset[str]:
    return frozenset(op_name.replace("(", "/").replace(")", "/").split("/"))


class _Walk:
    """The costs of the computations of one module; each is computed once."""

    def __init__(self, module: hlo.HloModule, network: Network, topology: Topology):
        self._module, self._network, self._topology = module, network, topology
        self._started = collectives.started(module)
        self._costs: dict[str, Cost] = {}
        self._flops: dict[str, int] = {}

    def of(self, computation: hlo.Computation | None) -> Cost:
        """Returns the cost of one run of a computation; None = the whole program."""
        computation = computation or self._module.computations[self._module.entry]
        if computation.name not in self._costs:
            self._costs[computation.name] = self._run(computation)
        return self._costs[computation.name]

    def _run(self, computation: hlo.Computation) -> Cost:
        """Simulates the schedule; compute and waiting for a collective advance the clock `now`."""
        cost, now, part = Cost(), 0.0, "other"
        free: dict[tuple[int, int], float] = {}  # link -> time at which it is free again
        running: dict[str, tuple[float, Sums]] = {}  # key -> (time at which it is done, its row)
        for instruction in computation:
            found = event(self._module, computation, instruction)
            if found and found.role == "done":
                if found.key in running:
                    now = _wait(now, *running.pop(found.key))
                continue
            if found and found.role == "overlap" and found.key in self._started - running.keys():
                found = None  # the caller started it, and counts it
            sent = None
            if found and found.key not in running:
                sent = self._network.collective(found.scope, found.inner, found.kind)
            if found and sent and found.role != "sync":
                start = max([now, *(free.get(link, 0.0) for link in sent.links)])
                free |= dict.fromkeys(sent.links, start + sent.seconds)
                running[found.key] = (start + sent.seconds, _record(cost, sent, overlapped=True))
            elif sent:
                _record(cost, sent, overlapped=False)
            if found is None or found.role == "overlap":
                # An operation that the compiler adds has no name: it belongs to the part before it.
                part = part_of(instruction.op_name) if instruction.op_name else part
                compute = self._compute(computation, instruction, part)
                cost.add(compute)
                now += compute.compute_seconds
                if found and sent:  # the collective started here: no "done" waits for it
                    now = _wait(now, *running.pop(found.key))
        for pending in running.values():  # another computation has the "done"
            now = _wait(now, *pending)
        return cost

    def _compute(
        self, computation: hlo.Computation, instruction: hlo.Instruction, part: str
    ) -> Cost:
        """Returns the cost of an instruction, without a collective, with all that it calls."""
        cost = Cost()
        branches = [
            (self.of(called), times) for called, times in self._module.branches(instruction)
        ]
        if instruction.opcode == "conditional":
            branches = [max(branches, key=lambda branch: branch[0].step_seconds)]
        for called, times in branches:
            cost.add(called, times)
        if branches:
            return cost
        cost.flops = self._matmul_flops(computation, instruction)
        cycles = instruction.cycles
        if cycles:
            seconds = cycles / self._topology.kind.clock_hz
            cost.parts[part] = seconds
            efficiency = cost.flops / (seconds * self._topology.kind.peak_flops)
            if efficiency > _MOST_EFFICIENT:
                cost.implausible[instruction.name] = (efficiency, seconds)
        else:
            cost.unestimated = cost.flops
        return cost

    def _matmul_flops(self, computation: hlo.Computation, instruction: hlo.Instruction) -> int:
        if instruction.opcode != "fusion":
            return matmul.flops(computation, instruction)
        total = 0
        for name in instruction.called:
            if name not in self._flops:
                called = self._module.computations[name]
                self._flops[name] = sum(self._matmul_flops(called, inner) for inner in called)
            total += self._flops[name]
        return total


def _record(cost: Cost, sent: Collective, *, overlapped: bool) -> Sums:
    """Adds a collective to its row and returns the row; a synchronous one is exposed."""
    row = CollectiveCost(sent.kind, sent.axis, overlapped, sent.torus)
    sums = cost.rows.setdefault(row, Sums())
    exposed = 0.0 if overlapped else sent.seconds
    sums.add(Sums(sent.num_bytes, 1, sent.seconds, exposed))
    return sums


def _wait(now: float, end: float, sums: Sums) -> float:
    """Waits for a collective, counts the wait as exposed, and returns the time after it."""
    sums.exposed += max(0.0, end - now)
    return max(now, end)


def rows(cost: Cost) -> list[Mapping[str, object]]:
    """Returns the collectives of a step as rows of the JSON; the slowest are first."""
    table = sorted(cost.rows.items(), key=lambda item: -item[1].seconds)
    return [
        {
            "kind": row.kind,
            "axis": row.axis,
            "bytes": sums.num_bytes,
            "count": sums.count,
            "overlapped": row.overlapped,
            "torus_axes": list(row.torus),
            "seconds": sums.seconds,
            "exposed_seconds": sums.exposed,
        }
        for row, sums in table
    ]
