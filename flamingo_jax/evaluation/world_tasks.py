"""Few-shot tasks of the synthetic world: new pictures, and names that no page with pictures had.

    format   image "output : red<EOC>" image "output : green<EOC>" image "output :"
             -> the query's colour, shape or size; only the context says which of them
    bind2    image "this is a ulb<EOC>" image "this is a veck<EOC>" image "this is a"
             -> the name of the query's colour or shape
    bind4    the same with four names
    questions   image "question : what colour is the circle ? answer : red<EOC>" ...
             image "question : what shape is red ? answer :"
             -> the colour or the shape of one of two objects

Controls have the same queries, supports and prompts, and change one thing:

    _shuffled  labels do not depend on the pictures. bind: names in balanced random order. format:
               each label is that of a random attribute of a random picture; labels exchanged within
               an episode would still show which attribute is asked for
    _hidden    the images are masked
    _held_out  the query alone shows a pair of colour and shape that training never showed

Every test picture is the query of one episode. The episode is a pure function of (seed, task,
query): it does not depend on n or on other tasks, and with more shots the same supports come first.
Supports are chosen at random, with classes in balanced random order; the query is never a support.
There are no text-only examples at 0 shots.

What guessing gives. bind: one in `ways` by ranking; no name can be known at 0 shots, and at 1 shot
one in `ways`. format: 1/3 with the picture but without the attribute that is asked for (it is
uniform over the three), 1/4 with the attribute but without the picture. So the candidates of
`format` are the values of all three attributes. questions: 1/2 with the picture but without the
question, which says of which object; 1/8 without the picture.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from flamingo_jax.core.paths import PathLike
from flamingo_jax.core.seeds import generator
from flamingo_jax.core.trees import T
from flamingo_jax.data.schema import ImageText
from flamingo_jax.data.sources import Source
from flamingo_jax.evaluation import task
from flamingo_jax.evaluation.episode import Episode, Part
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.tokenizers.markers import EOC
from flamingo_jax.world import text
from flamingo_jax.world.pages import BIND_PROMPT, FORMAT_PROMPT, Album
from flamingo_jax.world.scenes import ATTRIBUTES, COLOUR, SHAPE, VALUES
from flamingo_jax.world.text import NEW_NAMES

Kind = Literal["format", "bind", "questions"]
Control = Literal["", "shuffled", "hidden", "held_out"]


class WorldVariant(NamedTuple):
    """What a task asks.

    Attributes:
        kind: of the question.
        ways: number of names of an episode of "bind"; else 0.
        control: what differs from the task itself.
    """

    kind: Kind
    ways: int = 0
    control: Control = ""

    @property
    def stream(self) -> str:
        """Name of the random numbers of a task and its controls: "format", "bind2"."""
        return f"{self.kind}{self.ways or ''}"

    @property
    def pool(self) -> str:
        """Where the pictures of the queries are."""
        if self.kind == "questions":
            return "test_two"
        return "test_held_out" if self.control == "held_out" else "test_one"


VARIANTS: dict[str, WorldVariant] = {
    "format": WorldVariant("format"),
    "format_shuffled": WorldVariant("format", control="shuffled"),
    "format_hidden": WorldVariant("format", control="hidden"),
    "format_held_out": WorldVariant("format", control="held_out"),
    "bind2": WorldVariant("bind", 2),
    "bind2_shuffled": WorldVariant("bind", 2, "shuffled"),
    "bind2_hidden": WorldVariant("bind", 2, "hidden"),
    "bind2_held_out": WorldVariant("bind", 2, "held_out"),
    "bind4": WorldVariant("bind", 4),
    "questions": WorldVariant("questions"),
    "questions_hidden": WorldVariant("questions", control="hidden"),
}


@dataclasses.dataclass(frozen=True)
class WorldTask:
    """One of the tasks in VARIANTS.

    Attributes:
        name: a key of VARIANTS.
        directory: the world, as data_pipelines wrote it; `test_images` is read.
        metrics: names of the metrics.
        protocol: how many queries there are, and the seed.
    """

    name: str
    directory: str
    metrics: tuple[str, ...] = ("exact_match", "ranking")
    protocol: Protocol = Protocol()

    @property
    def chance(self) -> float:
        """What guessing gives: 1 / ways, one attribute of three, or one object of two."""
        kind, ways, _ = VARIANTS[self.name]
        return 1 / {"format": len(ATTRIBUTES), "bind": ways, "questions": 2}[kind]

    def accepts(self, shots: int) -> bool:
        """Returns True; `episodes` raises if there are too few pictures."""
        return True

    def submission_questions(self) -> Sequence[int | str]:
        """Returns (): there is no server, all right answers are known."""
        return ()

    def episodes(self, shots: int) -> Sequence[Episode]:
        """Returns the first `protocol.n` episodes (0: as many as there are query pictures).

        Args:
            shots: support examples.

        Raises:
            ValueError: there are fewer query pictures than `protocol.n`, or fewer pictures of a
                class than the supports need.
        """
        n, seed = self.protocol.n, self.protocol.seed
        variant = VARIANTS[self.name]
        albums, pool = read_albums(self.directory), variant.pool
        num = len(albums[pool].images)
        if not 0 <= n <= num:
            raise ValueError(
                f"task {self.name!r}: got n={n}; {self.directory} has {num} query pictures "
                f"({pool}). Take n from 1 to {num}, or 0 for all."
            )
        order = generator(seed, f"{variant.stream}/queries", 0).permutation(num)[: n or num]
        make = self._questions if variant.kind == "questions" else self._episode
        return [make(albums, pool, int(row), shots) for row in order]

    def _questions(self, albums: Mapping[str, Album], pool: str, row: int, shots: int) -> Episode:
        """Asks about one of two objects; each picture has a question of its own."""
        album, (kind, _, control) = albums[pool], VARIANTS[self.name]
        rng = generator(self.protocol.seed, f"{kind}/{pool}", row)
        if shots >= len(album.images):
            raise ValueError(
                f"There are only {len(album.images)} test pictures of two objects: make a world "
                "with more, or take fewer shots."
            )
        prompt, answer = text.question(rng, album.attributes[row])
        others = rng.permutation(len(album.images))
        chosen = others[others != row][:shots].tolist()
        parts: list[Part] = []
        for i in chosen:
            example = text.question(
                generator(self.protocol.seed, f"{kind}/{row}", i), album.attributes[i]
            )
            parts += [album.images[i], f"{' '.join(example)}{EOC}"]
        return Episode(
            parts=(*parts, album.images[row], prompt),
            candidates=next(values for values in VALUES if answer in values),
            answer=answer,
            query_id=f"{pool}/{row}",
            support_ids=tuple(f"{pool}/{i}" for i in chosen),
            masked=control == "hidden",
            separator=" ",
        )

    def _episode(self, albums: Mapping[str, Album], pool: str, row: int, shots: int) -> Episode:
        variant, seed = VARIANTS[self.name], self.protocol.seed
        (_, ways, control), stream = variant, variant.stream
        queries, supports = albums[pool], albums["test_one"]
        rng = generator(seed, f"{stream}/{pool}", row)
        question = _Question.draw(rng, queries.attributes[row, 0], ways)
        used = [row] if queries is supports else []
        for value, _ in zip(balanced(rng, question.values), range(shots), strict=False):
            used.append(_choose(rng, supports, question.attribute, value, used))
        chosen = used[len(used) - shots :]
        labels = [question.answers[supports.attributes[i, 0, question.attribute]] for i in chosen]
        if control == "shuffled":
            labels = _shuffled(
                generator(seed, f"{stream}/labels", row), supports, question, ways, shots
            )
        parts: list[Part] = []
        for i, label in zip(chosen, labels, strict=True):
            parts += [supports.images[i], f"{question.prompt} {label}{EOC}"]
        return Episode(
            parts=(*parts, queries.images[row], question.prompt),
            candidates=question.candidates,
            answer=question.answers[queries.attributes[row, 0, question.attribute]],
            query_id=f"{pool}/{row}",
            support_ids=tuple(f"test_one/{i}" for i in chosen),
            masked=control == "hidden",
            separator=" ",
        )


@dataclasses.dataclass(frozen=True)
class _Question:
    """The question of an episode.

    Attributes:
        attribute: which attribute is asked for.
        values: the attribute's values that occur.
        answers: the word for each value.
        candidates: the possible answers.
        prompt: the text after the query's picture.
    """

    attribute: int
    values: tuple[int, ...]
    answers: Mapping[int, str]
    candidates: tuple[str, ...]
    prompt: str

    @classmethod
    def draw(cls, rng: np.random.Generator, query: np.ndarray, ways: int) -> _Question:
        """Draws a question about a picture: an attribute (ways = 0), or one of `ways` names."""
        if not ways:
            attribute = int(rng.integers(len(ATTRIBUTES)))
            words = VALUES[attribute]
            candidates = tuple(word for values in VALUES for word in values)
            return cls(
                attribute,
                tuple(range(len(words))),
                dict(enumerate(words)),
                candidates,
                FORMAT_PROMPT,
            )
        attribute = (COLOUR, SHAPE)[rng.integers(2)]
        value = int(query[attribute])
        others = [v for v in rng.permutation(len(VALUES[attribute])).tolist() if v != value]
        values = tuple(rng.permutation([value, *others[: ways - 1]]).tolist())
        names = tuple(rng.permutation(NEW_NAMES)[:ways].tolist())
        return cls(attribute, values, dict(zip(values, names, strict=True)), names, BIND_PROMPT)


def balanced(rng: np.random.Generator, classes: Sequence[T]) -> Iterator[T]:
    """Yields classes without end: each once in random order, then each once again, and so on."""
    while True:
        yield from (classes[i] for i in rng.permutation(len(classes)).tolist())


def _choose(
    rng: np.random.Generator, album: Album, attribute: int, value: int, used: Sequence[int]
) -> int:
    """Draws an unused picture of a class."""
    rows = album.having(attribute, value)
    if set(rows.tolist()) <= set(used):
        raise ValueError(
            f"There are only {len(rows)} test pictures of {VALUES[attribute][value]!r}: make a "
            "world with more, or take fewer shots."
        )
    while (row := int(rows[rng.integers(len(rows))])) in used:
        pass
    return row


def _shuffled(
    rng: np.random.Generator, album: Album, question: _Question, ways: int, shots: int
) -> list[str]:
    """Returns labels that are independent of the supports' pictures and of the query."""
    if ways:
        return [
            question.answers[value]
            for value, _ in zip(balanced(rng, question.values), range(shots), strict=False)
        ]
    attributes = rng.integers(len(ATTRIBUTES), size=shots).tolist()
    rows = rng.integers(len(album.images), size=shots).tolist()
    return [VALUES[a][album.attributes[row, 0, a]] for a, row in zip(attributes, rows, strict=True)]


@functools.lru_cache(maxsize=2)
def read_albums(directory: PathLike) -> dict[str, Album]:
    """Reads the test pictures of a world, by pool: "test_one", "test_two", "test_held_out".

    Raises:
        TaskError: two pictures have the same id.
    """
    source = Source(f"{directory}/test_images", "test")
    pools: dict[str, list[tuple[list[list[int]], bytes]]] = {}
    ids: set[str] = set()
    for index in range(len(source)):
        record = source[index]
        assert isinstance(record, ImageText)
        metadata = json.loads(record.metadata)
        attributes = [
            [VALUES[a].index(item[name]) for a, name in enumerate(ATTRIBUTES)]
            for item in metadata["objects"]
        ]
        if metadata["id"] in ids:
            raise task.TaskError(
                f"{directory}/test_images holds the id {metadata['id']!r} twice, expected each id "
                "once: make the world again."
            )
        ids.add(metadata["id"])
        pools.setdefault(metadata["id"].split("/")[0], []).append((attributes, record.image))
    return {
        pool: Album(
            np.array([attributes for attributes, _ in pictures]),
            tuple(image for _, image in pictures),
        )
        for pool, pictures in pools.items()
    }


def _make(data: Mapping[str, str], protocol: Protocol, *, name: str) -> WorldTask:
    task.check_draws_its_own(name, protocol)
    return WorldTask(name, task.directory(data, "world", name), protocol=protocol)


TASKS: dict[str, task.TaskFactory] = {
    name: functools.partial(_make, name=name) for name in VARIANTS
}
