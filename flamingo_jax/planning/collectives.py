"""Collectives of a compiled step: their mesh axis, links of the torus, bytes and seconds.

Bytes that one chip must receive, from operands of `b` bytes in groups of n:

    all-gather       (n - 1) b
    reduce-scatter   (n - 1)/n b
    all-reduce       2 (n - 1)/n b
    all-to-all       (n - 1)/n b
    permute          b

Time: these bytes, at the rate of the least connected chip of all groups. A chip receives over the
links of its group, each at its one-way rate. Along each dimension of the torus that the group spans
it has

    two links    on a ring: three or more members at equal distances, all the way round
    two links    inside a line
    one link     at the end of a line, or in a pair

Groups that share links share their rate: a link between k groups counts as 1/k. So a block of 4x2x2
chips has the three links of its corners, and four interleaved rings have half a link each.

A permute is counted link by link: every pair sends along the shortest path, one dimension after the
other, and the time is that of the most used link, at its one-way rate. So is an all-to-all: each
chip of a group sends a part to each other chip. Latency is not counted.

Several slices: the text is the program of one slice. The compiler makes of a collective between
slices one on the torus of each slice, and a transfer between the hosts: a "send" and a "recv", at a
chip's share of the network.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jax.sharding import Mesh

from flamingo_jax.planning.hlo import Computation, HloError, HloModule, Instruction
from flamingo_jax.planning.topologies import Topology

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
    "ragged-all-to-all",
)
NETWORK = (-1, 1)  # in the place of the links of the torus: the network between slices

_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="([^"]+)"')
_MESH_AXIS = re.compile(r"'([^']+)'=(\d+)")
_AXIS_REFERENCE = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One run of a collective.

    Attributes:
      kind: one of KINDS.
      axis: the mesh axes that its groups span, joined by "+" in the order of the mesh.
      torus: the dimensions of the torus that its groups span; () = the network between slices.
      links: (dimension, direction) of the links that it uses; both directions, except for a
          permute; or NETWORK.
      num_bytes: bytes that a chip must receive (the chip that receives most).
      seconds: by the rule of this module.
    """

    kind: str
    axis: str
    torus: tuple[int, ...]
    links: frozenset[tuple[int, int]]
    num_bytes: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Route:
    """The place of groups of devices on the torus.

    Attributes:
      size: devices of a group.
      axis, torus, links: as in Collective.
      rate: bytes per second that the least connected chip receives; for a permute, the rate of the
          most used link, divided by the pairs that use it.
    """

    size: int
    axis: str
    torus: tuple[int, ...]
    links: frozenset[tuple[int, int]]
    rate: float


class Network:
    """The place of each position of the device assignment, in the mesh and on the torus.

    Args:
        mesh: of the compiled program, over all devices of `topology`. Of several slices, each is a
            part of the first axis.
        topology: the slice, or several.
    """

    def __init__(self, mesh: Mesh, topology: Topology):
        self._names = tuple(mesh.axis_names)
        self._topology = topology
        size = mesh.size // topology.num_slices
        self._in_mesh = np.stack(np.unravel_index(np.arange(size), mesh.devices.shape), axis=-1)
        coords = [tuple(device.coords) for device in mesh.devices.flat[:size]]
        self._coords = np.asarray(coords)[:, : len(topology.shape)]
        self._routes: dict[tuple[str, str], Route] = {}

    def collective(self, scope: Computation, inner: Instruction, kind: str) -> Collective | None:
        """Returns a collective with its cost, None if it sends nothing.

        Args:
            scope, inner, kind: as in Event.
        """
        if inner.opcode == "send":
            slices, rate = self._topology.num_slices, self._topology.kind.network_bandwidth
            route = Route(slices, self._names[0], (), frozenset({NETWORK}), rate)
        else:
            pairs = inner.attribute("source_target_pairs")
            groups = pairs or inner.attribute("replica_groups") or "{}"
            route = self._route(groups, kind)
        if route.size < 2:
            return None
        known = [name for name in inner.operands if name in scope.instructions]
        sent = sum(scope.instructions[name].num_bytes for name in known)
        n = route.size
        # The share of what is sent that a chip receives, in units of 1/n.
        shares = {"all-gather": n * (n - 1), "all-reduce": 2 * (n - 1), "collective-permute": n}
        received = sent * shares.get(kind, n - 1) // n
        seconds = received / route.rate
        return Collective(kind, route.axis, route.torus, route.links, received, seconds)

    def _route(self, groups: str, kind: str) -> Route:
        make = {
            "collective-permute": self._permute_route,
            "all-to-all": self._all_to_all_route,
        }.get(kind, self._group_route)
        key = (groups, make.__name__)
        if key not in self._routes:
            self._routes[key] = make(groups)
        return self._routes[key]

    def _group_route(self, text: str) -> Route:
        groups = device_groups(text, len(self._coords))
        shape, wraps = self._topology.shape, self._topology.wraps
        boxes = [
            tuple(
                Side.around(places, size, wrap)
                for places, size, wrap in zip(members.T, shape, wraps, strict=True)
            )
            for members in self._coords[groups]
        ]
        # How many groups use the link from a chip to the next one, along each dimension.
        uses = np.zeros((len(shape), *shape), int)
        for box in boxes:
            for dimension in range(len(shape)):
                uses[dimension][_lines(box, dimension)] += 1
        rate = np.inf
        for box, members in zip(boxes, self._coords[groups], strict=True):
            links = np.zeros(len(members))
            for dimension, side in enumerate(box):
                if side.links:
                    shared_by = uses[dimension][_lines(box, dimension)].max()
                    links += side.links_of(members[:, dimension]) / shared_by
            rate = min(rate, links.min() * self._topology.kind.link_bandwidth)
        torus = tuple(i for i in range(len(shape)) if any(box[i].links for box in boxes))
        both_ways = frozenset((dimension, way) for dimension in torus for way in (1, -1))
        return Route(groups.shape[1], self._axes(groups), torus, both_ways, rate)

    def _permute_route(self, text: str) -> Route:
        pairs = device_groups(text, len(self._coords))
        load, links = self._load(pairs)
        torus = tuple(sorted({dimension for dimension, _ in links}))
        rate = self._topology.kind.link_bandwidth / max(load, 1)
        return Route(2 if links else 1, self._axes(pairs), torus, links, rate)

    def _all_to_all_route(self, text: str) -> Route:
        route = self._group_route(text)
        groups = device_groups(text, len(self._coords))
        members = range(route.size)
        pairs = [groups[:, [i, j]] for i in members for j in members if i != j]
        if not pairs:
            return route
        load, _ = self._load(np.concatenate(pairs))
        # A chip receives a part from each other chip in the time of the most used link.
        rate = self._topology.kind.link_bandwidth * (route.size - 1) / max(load, 1)
        return dataclasses.replace(route, rate=rate)

    def _load(self, pairs: np.ndarray) -> tuple[int, frozenset[tuple[int, int]]]:
        """Returns (pairs that send over the most used link, links that are used)."""
        shape, wraps = np.asarray(self._topology.shape), self._topology.wraps
        use: dict[tuple[int, int], np.ndarray] = {}
        for source, target in self._coords[pairs]:
            place = source.copy()
            for dimension in range(len(shape)):
                length, distance = int(shape[dimension]), int(target[dimension] - source[dimension])
                if wraps[dimension] and abs(distance) * 2 > length:
                    distance -= length if distance > 0 else -length
                way = 1 if distance > 0 else -1
                for _ in range(abs(distance)):
                    counts = use.setdefault((dimension, way), np.zeros(tuple(shape), np.int64))
                    counts[tuple(place)] += 1
                    place[dimension] = (place[dimension] + way) % length
        return max((int(counts.max()) for counts in use.values()), default=0), frozenset(use)

    def _axes(self, groups: np.ndarray) -> str:
        places = self._in_mesh[groups]
        varies = (places != places[:, :1]).any(axis=(0, 1))
        return "+".join(name for name, differs in zip(self._names, varies, strict=True) if differs)


class Side(NamedTuple):
    """The places of a group along one dimension of the torus.

    Attributes:
      places: of its members, along the ring or the line.
      links: the places of which the link to the next chip lies between members.
      is_ring: True if the links go all the way round, between three or more members at equal
          distances.
    """

    places: tuple[int, ...]
    links: tuple[int, ...]
    is_ring: bool

    @classmethod
    def around(cls, coords: np.ndarray, size: int, wraps: bool) -> Side:
        """Returns the shortest side that holds these coordinates.

        Args:
            coords: of the members, along a dimension.
            size, wraps: of the dimension: its chips, and True if it is a ring.
        """
        places = np.unique(coords)
        gaps = np.diff(places, append=places[0] + size)
        if wraps and len(places) > 2 and len(set(gaps.tolist())) == 1:
            return cls(tuple(places.tolist()), tuple(range(size)), is_ring=True)
        # A line starts after the largest gap; without a link all the way round, at the lowest.
        first = int(np.argmax(gaps)) + 1 if wraps else 0
        places = np.roll(places, -first)
        length = int(places[-1] - places[0]) % size
        links = (places[0] + np.arange(length)) % size
        return cls(tuple(places.tolist()), tuple(links.tolist()), is_ring=False)

    def links_of(self, coords: np.ndarray) -> np.ndarray:
        """Returns how many links to other members each chip has: one at the ends of a line."""
        ends = (coords == self.places[0]) | (coords == self.places[-1])
        return np.where(ends & (not self.is_ring), 1, 2)


def _lines(box: Sequence[Side], dimension: int) -> tuple[np.ndarray, ...]:
    """Returns the index of the links along a dimension on all lines of a box."""
    sides = [side.links if i == dimension else side.places for i, side in enumerate(box)]
    return np.ix_(*sides)


@functools.lru_cache(maxsize=4096)
def device_groups(text: str, num_devices: int) -> np.ndarray:
    """Returns the groups [group, member] of positions that an attribute describes.

    Args:
        text: {{0,1},{2,3}}, [2,2]<=[4], [2,2]<=[2,2]T(1,0), mesh['a'=2,'b'=2] {'b'} or {} (all in
            one group).
        num_devices: of the program.

    Raises:
        HloError: the notation is unknown, or the groups differ in size.
    """
    if text == "{}":
        return np.arange(num_devices)[None]
    if text.startswith("{{"):
        groups = [
            [int(number) for number in group.split(",")]
            for group in re.findall(r"\{([\d,]+)\}", text)
        ]
        if len({len(group) for group in groups}) > 1:
            raise HloError(f"Groups of different sizes: {text[:200]}.")
        return np.asarray(groups)
    if text.startswith("["):
        return _iota(text)
    if "mesh[" in text:
        return _mesh_groups(text)
    raise HloError(f"Unknown notation of device groups: {text[:200]!r}.")


def _iota(text: str) -> np.ndarray:
    found = _IOTA.match(text)
    if not found:
        raise HloError(f"Unknown notation of device groups: {text[:200]!r}.")
    shape, source, permutation = (
        tuple(int(number) for number in part.split(",")) if part else ()
        for part in found.groups(default="")
    )
    ids = np.arange(np.prod(source)).reshape(source)
    return (ids.transpose(permutation) if permutation else ids).reshape(shape)


def _mesh_groups(text: str) -> np.ndarray:
    """Reads mesh['x'=4,'y'=8], device_ids=(...) {'y','x':(2)2}.

    The example has groups along y and along the second factor 2 of x.
    """
    head, _, references = text.rpartition("{")
    sizes = {name: int(size) for name, size in _MESH_AXIS.findall(head)}
    ids = np.arange(np.prod(list(sizes.values())))
    _, has_ids, listed = head.partition("device_ids=")
    if has_ids:
        listed = listed.strip()[1:-1]
        ids = _listed_ids(listed)
    # The factors of all axes; an axis of which a part is named has three: before, named, after.
    factors: list[int] = []
    chosen: list[int] = []
    wanted = {name: (pre, size) for name, pre, size in _AXIS_REFERENCE.findall(references)}
    for name, size in sizes.items():
        pre, part = (int(number) if number else 0 for number in wanted.get(name, ("", "")))
        cut = [pre, part, size // (pre * part)] if part else [size]
        if name in wanted:
            chosen.append(len(factors) + (1 if part else 0))
        factors += cut
    grid = ids.reshape(factors)
    others = [i for i in range(grid.ndim) if i not in chosen]
    members = int(np.prod([factors[i] for i in chosen]))
    return grid.transpose(others + chosen).reshape(-1, members)


class Event(NamedTuple):
    """The part of a collective that an instruction runs.

    Attributes:
      role: "sync": all of it. "start", "done": the ends of an asynchronous collective. "overlap":
          compute that continues a collective while it runs.
      key: the same for the start, overlapping compute and done of a collective.
      scope: the computation that contains `inner`.
      inner: the instruction of the collective; the "send" of one between slices.
      kind: one of KINDS. An all-reduce of which each chip keeps only a slice is a reduce-scatter.
    """

    role: Literal["sync", "start", "overlap", "done"]
    key: str
    scope: Computation
    inner: Instruction
    kind: str


def event(module: HloModule, computation: Computation, instruction: Instruction) -> Event | None:
    """Returns the part of a collective that an instruction runs, None if it runs none.

    Args:
        module: the program.
        computation: contains the instruction.
        instruction: a collective, its start or done, or a fusion that contains one.
    """
    opcode = instruction.opcode
    if opcode in ("send", "recv-done"):
        return _transfer(computation, instruction)
    plain = opcode.removesuffix("-start").removesuffix("-done")
    if plain in KINDS:
        if opcode.endswith("-done"):
            return Event("done", instruction.operands[0], computation, instruction, plain)
        role: Literal["sync", "start"] = "sync" if opcode == plain else "start"
        return Event(role, instruction.name, computation, instruction, plain)
    if opcode not in ("fusion", "async-start", "async-done"):
        return None
    found = next((inside for name in instruction.called if (inside := _inside(module, name))), None)
    if found is None:
        return None
    scope, inner, kind = found
    if opcode == "async-done":
        return Event("done", instruction.operands[0], scope, inner, kind)
    if opcode == "async-start":
        return Event("start", instruction.name, scope, inner, kind)
    # The compiler splits a collective into a start, fusions that compute while it runs, and a done.
    # They have the same channel.
    key = f"channel {inner.attribute('channel_id')}"
    for other in scope:
        if other.opcode == "custom-call" and "AsyncCollective" in other.attributes:
            is_start = '"AsyncCollectiveStart"' in other.attributes
            return Event("start" if is_start else "done", key, scope, inner, kind)
    return Event("overlap" if instruction.cycles else "sync", key, scope, inner, kind)


def started(module: HloModule) -> frozenset[str]:
    """Returns the keys of the asynchronous collectives, as in Event, that the program starts."""
    events = (
        event(module, computation, instruction)
        for computation in module.computations.values()
        for instruction in computation
    )
    return frozenset(found.key for found in events if found and found.role == "start")


def _transfer(computation: Computation, instruction: Instruction) -> Event | None:
    """Returns the part of a transfer between slices: "send" starts it, "recv-done" waits for it."""
    role: Literal["start", "done"] = "start" if instruction.opcode == "send" else "done"
    named = instruction if role == "start" else computation.instructions[instruction.operands[0]]
    found, name = _TRANSFER.search(named.attributes), _RENDEZVOUS.search(named.attributes)
    if not found or not name:
        return None
    return Event(role, f"network {name[1]}", computation, named, found[1].lower().replace("_", "-"))


def _inside(module: HloModule, name: str) -> tuple[Computation, Instruction, str] | None:
    """Returns (scope, inner, kind), as in Event, of the first collective in a computation."""
    scope = module.computations[name]
    for inner in scope:
        if inner.opcode in KINDS:
            has_slice = any(other.opcode == "dynamic-slice" for other in scope)
            is_sliced = inner.opcode == "all-reduce" and has_slice
            return scope, inner, "reduce-scatter" if is_sliced else inner.opcode
        if inner.opcode == "fusion":
            for called in inner.called:
                if found := _inside(module, called):
                    return found
    return None


def _listed_ids(text: str) -> np.ndarray:
    """Reads [3,32,16]T(2,1,0), a transposed iota of this shape; or a plain list."""
    found = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not found:
        return np.asarray([int(number) for number in re.findall(r"\d+", text)])
    shape = [int(number) for number in found[1].split(",")]
    ids = np.arange(np.prod(shape)).reshape(shape)
    if found[2]:
        ids = ids.transpose([int(number) for number in found[2].split(",")])
    return ids.reshape(-1)
