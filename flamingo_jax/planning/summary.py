"""Shows the plan of a program, as JSON and as tables.

All times are the compiler's estimates, not measurements.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jax.sharding import Mesh

from flamingo_jax.planning import cost as cost_lib
from flamingo_jax.planning.memory import Buffer, Memory
from flamingo_jax.planning.program import Program
from flamingo_jax.planning.topologies import Topology

_DAY = 86_400.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known about a program on a slice.

    Attributes:
      topology, mesh: that the program was compiled for.
      program: before compilation.
      steps: updates of the run, to compute its days; 0 = the program is no update.
      memory: None if the compiler reports none.
      cost: None if the program does not fit.
      buffers: the largest buffers, if the program does not fit.
      updates: updates of a step: those of a round, if datasets are mixed by round_robin.
    """

    topology: Topology
    mesh: Mesh
    program: Program
    steps: int
    memory: Memory | None
    cost: cost_lib.Cost | None
    buffers: tuple[Buffer, ...] = ()
    updates: int = 1

    @property
    def fits(self) -> bool:
        """True if the compiler accepted the program."""
        return self.cost is not None


def to_json(plan: Plan) -> dict[str, Any]:
    """Returns the content of `plan --json`; for a program that does not fit, values may be None."""
    topology, cost, memory, needed = plan.topology, plan.cost, plan.memory, plan.program.needed
    chips = topology.num_chips
    seconds = cost.step_seconds if cost else None
    parts = cost.parts if cost else {}
    return {
        "topology": topology.name,
        "cloud_name": topology.cloud_name,
        "slices": topology.num_slices,
        "chips": chips,
        "mesh": dict(plan.mesh.shape),
        "fits": plan.fits,
        "hbm_capacity_bytes": topology.kind.hbm_bytes,
        "hbm_bytes": memory and _sizes(memory),
        "largest_buffers": [dataclasses.asdict(buffer) for buffer in plan.buffers],
        "parameters": plan.program.parameters,
        "model_flops": needed.total,
        "model_flops_by_part": needed.flops,
        "hardware_flops": cost and cost.flops * topology.num_devices,
        "collectives": cost_lib.rows(cost) if cost else [],
        "times_are": "the compiler's estimates, not measurements",
        "parts": {part: parts[part] for part in cost_lib.PARTS if part in parts},
        "compute_seconds": cost and cost.compute_seconds,
        "communication_seconds": cost and cost.communication_seconds,
        "exposed_communication_seconds": cost and cost.exposed_seconds,
        "step_seconds": seconds,
        "mfu": seconds and needed.total / (seconds * chips * topology.kind.peak_flops),
        "tokens_per_second": seconds and needed.tokens / seconds,
        "images_per_second": seconds and needed.images / seconds,
        "updates": plan.updates,
        "days": seconds / plan.updates * plan.steps / _DAY if seconds and plan.steps else None,
        "assumptions": list(plan.program.assumptions),
        "warnings": warnings(plan),
    }


def warnings(plan: Plan) -> list[str]:
    """Returns sentences that say why the estimate may be wrong."""
    cost, found = plan.cost, []
    if cost is None:
        return []
    if cost.implausible:
        name, (efficiency, _) = max(cost.implausible.items(), key=lambda item: item[1][1])
        total = sum(seconds for _, seconds in cost.implausible.values())
        found.append(
            f"{len(cost.implausible)} matmuls, {total:.3g} s in all, run at more than 0.95 of the "
            f"chip's peak in the compiler's estimate, which is implausible; the longest is {name}, "
            f"at {efficiency:.2f}."
        )
    if cost.unestimated:
        share = cost.unestimated / cost.flops
        found.append(f"The compiler estimates no time for {share:.1%} of the matmuls' FLOPs.")
    return found


def to_text(plan: Plan) -> str:
    """Returns the plan as tables."""
    topology, needed = plan.topology, plan.program.needed
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.shape.items())
    slices = f"{topology.num_slices} slices " if topology.num_slices > 1 else ""
    lines = [
        f"{slices}{topology.name} ({topology.cloud_name}), {topology.num_chips} chips; mesh {mesh}",
        "",
    ]
    weights = {group: f"{count:,}" for group, count in plan.program.parameters.items()}
    lines += _table("weights", weights)
    sizes = _sizes(plan.memory) if plan.memory else {}
    sizes |= {"capacity": topology.kind.hbm_bytes}
    lines += _table("HBM per chip", {name: _gib(size) for name, size in sizes.items()})
    if plan.cost is None:
        lines.append("DOES NOT FIT. The largest buffers:")
        lines += [
            f"  {_gib(b.num_bytes):>12}  {b.type}  {b.name}  {b.op_name}" for b in plan.buffers
        ]
        lines += ["", *plan.program.assumptions]
        return "\n".join(lines)
    cost, data = plan.cost, to_json(plan)
    arithmetic = {f"model, {part}": f"{number:.4g}" for part, number in needed.flops.items()}
    arithmetic |= {
        "model, total": f"{needed.total:.4g}",
        "hardware, total": f"{data['hardware_flops']:.4g}",
    }
    lines += _table("FLOPs of one step, all chips", arithmetic)
    times = {part: _ms(seconds) for part, seconds in data["parts"].items()}
    times["total"] = _ms(cost.compute_seconds)
    lines += _table("compute, the compiler's estimate", times)
    lines += _collectives_table(cost)
    exposed = f"{_ms(cost.exposed_seconds)} of {_ms(cost.communication_seconds)}"
    step = {
        "compute": _ms(cost.compute_seconds),
        "exposed communication": exposed,
        "step": _ms(cost.step_seconds),
        "MFU": f"{data['mfu']:.3f}",
        "text tokens per second": f"{data['tokens_per_second']:,.0f}",
        "images per second": f"{data['images_per_second']:,.0f}",
    }
    if data["days"]:
        step[f"days for {plan.steps:,} updates"] = f"{data['days']:.2f}"
    lines += _table("step, the compiler's estimate", step)
    lines += [f"Assumed: {sentence}" for sentence in plan.program.assumptions]
    lines += [f"Warning: {sentence}" for sentence in warnings(plan)]
    return "\n".join(lines)


def _sizes(memory: Memory) -> dict[str, int]:
    return {
        "arguments": memory.arguments,
        "temporaries": memory.temporaries,
        "outputs": memory.outputs,
        "total": memory.total,
    }


def _collectives_table(cost: cost_lib.Cost) -> list[str]:
    lines = [
        f"{'communication':34}{'axis':>16}{'count':>8}{'bytes':>12}{'time':>14}{'exposed':>14}  "
        "torus  (estimates)"
    ]
    for row, sums in sorted(cost.rows.items(), key=lambda item: -item[1].seconds):
        kind = f"  {row.kind}{' (overlapped)' if row.overlapped else ''}"
        times = f"{_ms(sums.seconds):>14}{_ms(sums.exposed):>14}"
        numbers = f"{sums.count:>8}{sums.num_bytes:>12.4g}{times}"
        dimensions = "".join("xyz"[i] for i in row.torus) or "network"
        lines.append(f"{kind:34}{row.axis:>16}{numbers}  {dimensions}")
    return [*lines, ""]


def _table(title: str, rows: dict[str, str]) -> list[str]:
    return [title, *(f"  {name:32}{value:>26}" for name, value in rows.items()), ""]


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms"
