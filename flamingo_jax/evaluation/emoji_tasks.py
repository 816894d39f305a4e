"""Few-shot tasks on emoji: pictures that no one here drew, of concepts that training never showed.

    emoji_name      image "a picture of"
                    -> the name of a training concept, drawn in a style that training did not show
    emoji_bind2     image "this is a ulb<EOC>" image "this is a veck<EOC>" image "this is a"
                    -> the made-up word for the query's concept. No concept is in training; all
                    supports are in one style, and the query is in the other
    emoji_bind5     the same with five words
    emoji_category  image "output : food<EOC>" image "output : object<EOC>" image "output :"
                    -> name or category; only the context says which of them. The concepts are those
                    of `emoji_name`, and so are the query's pictures

The open-ended few-shot test of Frozen (Tsimpoukelli et al. 2021) binds made-up words
to classes of ImageNet in the same way. Controls have the same queries, supports and prompts, and
change one thing:

    _shuffled  bind: words in balanced random order. category: each label is the name or the
               category of a random picture
    _hidden    the images are masked
    _third     the query is in a third style, which no training picture has (OpenMoji)

The episode is a pure function of (seed, task, query), as in `world_tasks`. Supports of `bind` have
classes in balanced random order. There are no text-only examples at 0 shots.

What guessing gives: `emoji_name` 1/100, the number of candidates, or more if there are fewer names;
`emoji_bind2` and `emoji_bind5` 1/2 and 1/5 by ranking; `emoji_category` 1/2 with the picture but
without the context.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from flamingo_jax.core.seeds import generator
from flamingo_jax.data.schema import ImageText
from flamingo_jax.data.sources import Source
from flamingo_jax.evaluation import task
from flamingo_jax.evaluation.episode import Episode, Part
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.world_tasks import balanced
from flamingo_jax.tokenizers.markers import EOC
from flamingo_jax.world.pages import BIND_PROMPT, FORMAT_PROMPT
from flamingo_jax.world.text import NEW_NAMES

NAME_PROMPT = "a picture of"
NUM_NAMES = 100  # candidates of emoji_name

Kind = Literal["name", "bind", "category"]
Control = Literal["", "shuffled", "hidden", "third"]


class Variant(NamedTuple):
    """What a task asks.

    Attributes:
        kind: of the question.
        ways: number of concepts of an episode of "bind"; else 0.
        control: what differs from the task itself.
    """

    kind: Kind
    ways: int = 0
    control: Control = ""


VARIANTS: dict[str, Variant] = {
    "emoji_name": Variant("name"),
    "emoji_name_third": Variant("name", control="third"),
    "emoji_bind2": Variant("bind", 2),
    "emoji_bind2_shuffled": Variant("bind", 2, "shuffled"),
    "emoji_bind2_hidden": Variant("bind", 2, "hidden"),
    "emoji_bind2_third": Variant("bind", 2, "third"),
    "emoji_bind5": Variant("bind", 5),
    "emoji_bind5_shuffled": Variant("bind", 5, "shuffled"),
    "emoji_bind5_hidden": Variant("bind", 5, "hidden"),
    "emoji_bind5_third": Variant("bind", 5, "third"),
    "emoji_category": Variant("category"),
    "emoji_category_shuffled": Variant("category", control="shuffled"),
    "emoji_category_hidden": Variant("category", control="hidden"),
}


@dataclasses.dataclass(frozen=True)
class EmojiPicture:
    """A picture of an emoji.

    Attributes:
        id: "test/1f34e/google/0", pool, code, style and number.
        image: the encoded picture.
        name, category: what it shows.
        group: concepts of one group differ in gender alone.
        split: of the concept: "train" or "test".
        style: who drew it.
    """

    id: str
    image: bytes
    name: str
    category: str
    group: str
    split: str
    style: str


@dataclasses.dataclass(frozen=True)
class EmojiTask:
    """One of the tasks in VARIANTS.

    Attributes:
        name: a key of VARIANTS.
        directory: the records of `--pipeline=emoji`; `test_images` is read.
        metrics: names of the metrics.
        protocol: how many queries there are, and the seed; for `bind` also the split of concepts.
    """

    name: str
    directory: str
    metrics: tuple[str, ...] = ("exact_match", "ranking")
    protocol: Protocol = Protocol()

    @property
    def chance(self) -> float:
        """What guessing gives."""
        variant = VARIANTS[self.name]
        if variant.kind == "name":
            queries = _queries(read_pictures(self.directory), variant, self.protocol.split)
            return 1 / min(NUM_NAMES, len({picture.name for picture in queries}) or 1)
        return 1 / (variant.ways or 2)

    def accepts(self, shots: int) -> bool:
        """Returns True, for `emoji_name` only without examples."""
        return VARIANTS[self.name].kind != "name" or shots == 0

    def submission_questions(self) -> Sequence[int | str]:
        """Returns (): there is no server, all right answers are known."""
        return ()

    def episodes(self, shots: int) -> Sequence[Episode]:
        """Returns the first `protocol.n` episodes (0: as many as there are query pictures).

        Args:
            shots: support examples.

        Raises:
            TaskError: there are fewer query pictures than `protocol.n`, no pictures of the third
                style, or fewer pictures of a concept than the supports need.
        """
        n, seed = self.protocol.n, self.protocol.seed
        variant = VARIANTS[self.name]
        pools = read_pictures(self.directory)
        queries = _queries(pools, variant, self.protocol.split)
        if not queries:
            raise task.TaskError(
                f"task {self.name!r}: {self.directory} has no pictures for it. "
                + (
                    "Make the records again with the package openmoji in --input."
                    if variant.control == "third"
                    else "Make the records again (data_pipelines.run --pipeline=emoji)."
                )
            )
        if not 0 <= n <= len(queries):
            raise task.TaskError(
                f"task {self.name!r}: got n={n}; {self.directory} has {len(queries)} query "
                f"pictures. Take n from 1 to {len(queries)}, or 0 for all."
            )
        stream = f"emoji_{variant.kind}{variant.ways or ''}"
        order = generator(seed, f"{stream}/queries").permutation(len(queries))[: n or len(queries)]
        make = {"name": self._naming, "bind": self._binding, "category": self._category}
        return [make[variant.kind](queries, row, shots, stream) for row in order.tolist()]

    def _naming(
        self, queries: Sequence[EmojiPicture], row: int, shots: int, stream: str
    ) -> Episode:
        """Asks for the name of a concept, among the names of others."""
        query = queries[row]
        rng = generator(self.protocol.seed, stream, row)
        names = sorted({picture.name for picture in queries} - {query.name})
        others = rng.permutation(names)[: NUM_NAMES - 1].tolist()
        return Episode(
            parts=(query.image, NAME_PROMPT),
            candidates=tuple(sorted([*others, query.name])),
            answer=query.name,
            query_id=query.id,
            separator=" ",
        )

    def _binding(
        self, queries: Sequence[EmojiPicture], row: int, shots: int, stream: str
    ) -> Episode:
        """Asks for the made-up word of a concept."""
        query = queries[row]
        ways, control = VARIANTS[self.name][1:]
        rng = generator(self.protocol.seed, stream, row)
        drawn = _by_concept(self.directory, self.protocol.split)
        groups = {pictures[0].group: name for name, pictures in drawn.items()}
        groups.pop(query.group, None)
        others = [groups[group] for group in rng.permutation(sorted(groups))[: ways - 1].tolist()]
        if len(others) < ways - 1:
            raise task.TaskError(
                f"task {self.name!r}: {self.directory} has only {len(drawn)} test concepts; "
                f"expected at least {ways} of different groups."
            )
        concepts = rng.permutation([query.name, *others]).tolist()
        words = dict(zip(concepts, rng.permutation(NEW_NAMES)[:ways].tolist(), strict=True))
        styles = sorted({picture.style for picture in drawn[query.name]} - {query.style})
        style = str(rng.permutation(styles)[0])
        supports: list[EmojiPicture] = []
        for concept, _ in zip(balanced(rng, concepts), range(shots), strict=False):
            left = [p for p in drawn[concept] if p.style == style and p not in supports]
            if not left:
                raise task.TaskError(
                    f"task {self.name!r}: {concept!r} has too few pictures in the style {style!r} "
                    f"for {shots} shots; take fewer."
                )
            supports.append(left[rng.integers(len(left))])
        labels = [words[picture.name] for picture in supports]
        if control == "shuffled":
            other = generator(self.protocol.seed, f"{stream}/labels", row)
            drawn_words = zip(balanced(other, concepts), range(shots), strict=False)
            labels = [words[concept] for concept, _ in drawn_words]
        return _episode(
            query,
            supports,
            [f"{BIND_PROMPT} {label}" for label in labels],
            prompt=BIND_PROMPT,
            candidates=tuple(words.values()),
            answer=words[query.name],
            is_masked=control == "hidden",
        )

    def _category(
        self, queries: Sequence[EmojiPicture], row: int, shots: int, stream: str
    ) -> Episode:
        """Asks for the name or for the category of a concept."""
        query, control = queries[row], VARIANTS[self.name].control
        rng = generator(self.protocol.seed, stream, row)
        asked = ("name", "category")[rng.integers(2)]
        others = [picture for picture in queries if picture.name != query.name]
        if len(others) < shots:
            raise task.TaskError(
                f"task {self.name!r}: {self.directory} has {len(others)} pictures of other "
                f"concepts; expected {shots}, one for each shot. Take fewer shots."
            )
        chosen = [others[i] for i in rng.permutation(len(others))[:shots].tolist()]
        names = sorted({picture.name for picture in others})
        categories = sorted({picture.category for picture in queries})
        candidates = rng.permutation(names)[: len(categories) - 1].tolist()
        labels = [getattr(picture, asked) for picture in chosen]
        if control == "shuffled":
            other = generator(self.protocol.seed, f"{stream}/labels", row)
            labels = [
                getattr(
                    others[other.integers(len(others))], ("name", "category")[other.integers(2)]
                )
                for _ in chosen
            ]
        return _episode(
            query,
            chosen,
            [f"{FORMAT_PROMPT} {label}" for label in labels],
            prompt=FORMAT_PROMPT,
            candidates=(*categories, *sorted([*candidates, query.name])),
            answer=getattr(query, asked),
            is_masked=control == "hidden",
        )


def _queries(
    pools: Mapping[str, Sequence[EmojiPicture]], variant: Variant, split: str
) -> Sequence[EmojiPicture]:
    """Returns the pictures that a task asks about."""
    if variant.control == "third":
        wanted = split if variant.kind == "bind" else "train"
        return [picture for picture in pools.get("third_style", ()) if picture.split == wanted]
    return pools.get(split if variant.kind == "bind" else "unseen_style", ())


@functools.lru_cache(maxsize=2)
def _by_concept(directory: str, split: str) -> dict[str, list[EmojiPicture]]:
    """Returns {name: its pictures} of the concepts of a split."""
    found: dict[str, list[EmojiPicture]] = {}
    for picture in read_pictures(directory).get(split, ()):
        found.setdefault(picture.name, []).append(picture)
    return found


def _episode(
    query: EmojiPicture,
    supports: Sequence[EmojiPicture],
    texts: Sequence[str],
    *,
    prompt: str,
    candidates: tuple[str, ...],
    answer: str,
    is_masked: bool,
) -> Episode:
    parts: list[Part] = []
    for picture, text in zip(supports, texts, strict=True):
        parts += [picture.image, f"{text}{EOC}"]
    return Episode(
        parts=(*parts, query.image, prompt),
        candidates=candidates,
        answer=answer,
        query_id=query.id,
        support_ids=tuple(picture.id for picture in supports),
        masked=is_masked,
        separator=" ",
    )


@functools.lru_cache(maxsize=2)
def read_pictures(directory: str) -> dict[str, list[EmojiPicture]]:
    """Reads the test pictures by pool: "unseen_style", "test", "validation", "third_style".

    Raises:
        TaskError: two pictures have the same id, or a picture is not one of `--pipeline=emoji`.
    """
    source = Source(f"{directory}/test_images", "test")
    pools: dict[str, list[EmojiPicture]] = {}
    ids: set[str] = set()
    fields = [each.name for each in dataclasses.fields(EmojiPicture) if each.name != "image"]
    for index in range(len(source)):
        record = source[index]
        try:
            metadata = json.loads(record.metadata)
            picture = EmojiPicture(**{f: metadata[f] for f in fields}, image=_image(record))
        except (ValueError, KeyError, TypeError) as error:
            raise task.TaskError(
                f"{directory}/test_images, record {index}: {type(error).__name__}: {error}; "
                "expected a picture that --pipeline=emoji made."
            ) from error
        if picture.id in ids:
            raise task.TaskError(
                f"{directory}/test_images holds the id {picture.id!r} twice, expected each id "
                "once: make the records again."
            )
        ids.add(picture.id)
        pools.setdefault(picture.id.split("/")[0], []).append(picture)
    return pools


def _image(record: object) -> bytes:
    if not isinstance(record, ImageText):
        raise TypeError(f"it is a {type(record).__name__}, not an ImageText")
    return record.image


def _make(data: Mapping[str, str], protocol: Protocol, *, name: str) -> EmojiTask:
    has_validation = VARIANTS[name].kind == "bind" and VARIANTS[name].control != "third"
    split = "test" if has_validation else protocol.split
    task.check_draws_its_own(name, dataclasses.replace(protocol, split=split))
    return EmojiTask(name, task.directory(data, "emoji", name), protocol=protocol)


TASKS: dict[str, task.TaskFactory] = {
    name: functools.partial(_make, name=name) for name in VARIANTS
}
