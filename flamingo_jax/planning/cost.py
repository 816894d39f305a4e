"""How long a compiled step takes, by the compiler's own estimate and the rule for its collectives.

    step = cycles / clock  +  every collective that nothing hides  +  of the others what is left
    after the compute beside them

The TPU compiler writes `estimated_cycles` beside each fusion and copy, for all that it calls; loops
count by their trips, a conditional by its dearer branch. A synchronous collective carries no
estimate (in libtpu 0.0.42 and 0.0.52), and one that is a fusion (all-reduce-scatter) is counted by
its bytes alone, so nothing counts twice. Asynchronous collectives (start ... done) make way only
while compute runs: those that use the same links wait for each other, and what is not done by then
is exposed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

from jax.sharding import Mesh

from flamingo_jax.planning import hlo, matmul
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

# A word of an operation's path -> its part, the first that is there: the layers of "xattn" stand
# inside of "lm".
_FORWARD = (
    ("vision", "vision"),
    ("text", "text"),
    ("resampler", "resampler"),
    ("media", "resampler"),
    ("xattn", "xattn"),
    ("lm", "lm_forward"),
)

# What is plausible: a matmul faster than this share of the peak is an error of the estimate.
_MOST_EFFICIENT = 0.95


class CollectiveCost(NamedTuple):
    """Collectives that are alike."""

    kind: str
    axis: str
    overlapped: bool
    torus: tuple[int, ...]


@dataclasses.dataclass
class Sums:
    """Totals of a row over a step, of one chip.

    Attributes:
      num_bytes: that each chip must receive.
      count: of collectives.
      seconds: on the links.
      exposed: seconds of these with no compute beside them.
      sharing: see `collectives.Collective`.
    """

    num_bytes: int = 0
    count: int = 0
    seconds: float = 0.0
    exposed: float = 0.0
    sharing: int = 1

    def add(self, other: Sums, times: int = 1) -> None:
        """Adds `times` the numbers of `other`."""
        self.num_bytes += times * other.num_bytes
        self.count += times * other.count
        self.seconds += times * other.seconds
        self.exposed += times * other.exposed
        self.sharing = max(self.sharing, other.sharing)


@dataclasses.dataclass
class Cost:
    """What a computation costs, run once on one chip.

    Attributes:
      parts: {part of the step: seconds of compute}.
      rows: {kind of collective: totals}.
      flops: of matmuls and convolutions.
      implausible: {instruction: (efficiency, seconds)} of matmuls that are faster than the chip.
      unestimated: FLOPs of matmuls for which the compiler gives no estimate.
    """

    parts: dict[str, float] = dataclasses.field(default_factory=dict)
    rows: dict[CollectiveCost, Sums] = dataclasses.field(default_factory=dict)
    flops: int = 0
    implausible: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    unestimated: int = 0

    @property
    def compute_seconds(self) -> float:
        """Of all parts."""
        return sum(self.parts.values(), start=0.0)

    @property
    def communication_seconds(self) -> float:
        """On the links, exposed or not."""
        return sum((sums.seconds for sums in self.rows.values()), start=0.0)

    @property
    def exposed_seconds(self) -> float:
        """Of communication, with no compute beside it."""
        return sum((sums.exposed for sums in self.rows.values()), start=0.0)

    @property
    def step_seconds(self) -> float:
        """Compute, and the communication that it does not hide."""
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
        compiled_text: `compiled.as_text()`, of a program compiled for `topology`.
        mesh: that it was compiled on, over all devices of the topology.
        topology: the slice.

    Raises:
        HloError: if the text holds what the planner cannot read.
    """
    return _Walk(hlo.parse(compiled_text), Network(mesh, topology), topology).of(None)


def part_of(op_name: str) -> str:
    """Returns which of PARTS an operation belongs to, by its place in the traced program.

    Examples: "jit(step)/optimizer/mul", "jit(step)/jvp(flamingo)/vision/...",
        "jit(step)/transpose(jvp(flamingo))/...".
    """
    words = _words(op_name)
    if "optimizer" in words:
        return "optimizer"
    if "rematted_computation" in words:
        return "recomputation"
    if "transpose" in words:
        return "backward"
    return next((part for word, part in _FORWARD if word in words), "other")


@functools.lru_cache(maxsize=1 << 16)
def _words(op_name: str) -> frozenset[str]:
    return frozenset(op_name.replace("(", "/").replace(")", "/").split("/"))


class _Walk:
    """Costs of the computations of one module, each computed once."""

    def __init__(self, module: hlo.HloModule, network: Network, topology: Topology):
        self._module, self._network, self._topology = module, network, topology
        self._costs: dict[str, Cost] = {}
        self._flops: dict[str, int] = {}

    def of(self, computation: hlo.Computation | None) -> Cost:
        """Returns the cost of one run; of the whole program for None."""
        computation = computation or self._module.computations[self._module.entry]
        if computation.name not in self._costs:
            self._costs[computation.name] = self._run(computation)
        return self._costs[computation.name]

    def _run(self, computation: hlo.Computation) -> Cost:
        """Goes through the schedule with a clock that compute, and waiting for a transfer, moves on."""
        cost, now, part = Cost(), 0.0, "other"
        free: dict[tuple[int, int], float] = {}  # when each link has done all that it was given
        flying: dict[str, tuple[float, Sums]] = {}  # start -> (when it arrives, its row)
        for instruction in computation:
            found = event(self._module, computation, instruction)
            if found and found.role == "done":
                if found.key in flying:
                    now = _arrive(now, *flying.pop(found.key))
                continue
            sent = None
            if found and found.key not in flying:
                sent = self._network.collective(found.scope, found.inner, found.kind)
            if found and sent and found.role != "sync":
                begin = max([now, *(free.get(link, 0.0) for link in sent.links)])
                free |= dict.fromkeys(sent.links, begin + sent.seconds)
                flying[found.key] = (begin + sent.seconds, _record(cost, sent, overlapped=True))
            elif sent:
                _record(cost, sent, overlapped=False)
            if found is None or found.role == "beside":
                # What the compiler adds has no name: it belongs to what comes before it.
                part = part_of(instruction.op_name) if instruction.op_name else part
                own = self._own(computation, instruction, part)
                cost.add(own)
                now += own.compute_seconds
                if found and sent:  # it began here: nothing else waits for it
                    now = _arrive(now, *flying.pop(found.key))
        for arrival in flying.values():  # what another computation waits for
            now = _arrive(now, *arrival)
        return cost

    def _own(self, computation: hlo.Computation, instruction: hlo.Instruction, part: str) -> Cost:
        """Returns the cost of an instruction that sends nothing itself, with all that it calls."""
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
    """Adds a collective to its row, as exposed if it is synchronous, and returns the row."""
    row = CollectiveCost(sent.kind, sent.axis, overlapped, sent.torus)
    sums = cost.rows.setdefault(row, Sums())
    exposed = 0.0 if overlapped else sent.seconds
    sums.add(Sums(sent.num_bytes, 1, sent.seconds, exposed, sent.sharing))
    return sums


def _arrive(now: float, arrival: float, sums: Sums) -> float:
    """Waits for a transfer; returns the time after it."""
    sums.exposed += max(0.0, arrival - now)
    return max(now, arrival)


def rows(cost: Cost) -> list[Mapping[str, object]]:
    """Returns the collectives of a step as rows of the JSON, the slowest first."""
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
