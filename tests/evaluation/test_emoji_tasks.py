"""The tasks of emoji.

It tests that cheating is not possible, the controls, and what guessers and an oracle score.
"""

import functools
import json

import numpy as np
import pytest
from etils import epath

from data_pipelines.emoji import emoji_records
from flamingo_jax.data.sources import Source
from flamingo_jax.evaluation import emoji_tasks, registry
from flamingo_jax.evaluation.emoji_tasks import VARIANTS
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.task import TaskError
from flamingo_jax.world.text import NEW_NAMES
from tests.data_pipelines.emoji import packages

BINDING = [name for name, variant in VARIANTS.items() if variant.kind == "bind"]
WITH_PICTURES = [name for name, variant in VARIANTS.items() if variant.control != "third"]
SHOTS = {"name": (0,), "bind": (0, 1, 2, 5, 8), "category": (0, 1, 4)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    input_ = packages.write(tmp_path_factory.mktemp("packages"))
    output = epath.Path(tmp_path_factory.mktemp("records"))
    emoji_records.build(emoji_records.EmojiRequest(str(input_), size="smoke"), output)
    return str(output)


@pytest.fixture(scope="module")
def pictures(directory):
    """The pictures of evaluation, by their bytes."""
    pools = emoji_tasks.read_pictures(directory)
    return {picture.image: picture for pool in pools.values() for picture in pool}


@pytest.fixture(scope="module")
def episodes(directory):
    """The function `episodes(name, shots, n=0, seed=1)`."""

    @functools.cache
    def get(name, shots, n=0, seed=1):
        return registry.create(name, {"emoji": directory}, Protocol(n=n, seed=seed)).episodes(shots)

    return get


def shown(episode, pictures):
    """The pictures of an episode: its supports, and its query."""
    found = [pictures[part] for part in episode.parts if isinstance(part, bytes)]
    return found[:-1], found[-1]


def labels(episode):
    texts = [part for part in episode.parts[:-1] if isinstance(part, str)]
    return [
        text.removesuffix("<EOC>").split(" a " if "this is" in text else " : ")[1] for text in texts
    ]


@pytest.mark.parametrize("name", WITH_PICTURES)
def test_an_episode_is_well_formed(episodes, pictures, name):
    kind, ways, control = VARIANTS[name]
    for shots in SHOTS[kind]:
        for episode in episodes(name, shots):
            supports, query = shown(episode, pictures)
            assert len(supports) == len(episode.support_ids) == shots
            assert query.id == episode.query_id
            assert query.id not in episode.support_ids
            assert len(set(episode.support_ids)) == shots
            assert episode.answer in episode.candidates
            assert len(set(episode.candidates)) == len(episode.candidates)
            assert episode.masked == (control == "hidden")
            if kind == "bind":
                assert len(episode.candidates) == ways
                assert set(episode.candidates) <= set(NEW_NAMES)


@pytest.mark.parametrize("name", [n for n in BINDING if VARIANTS[n].control in ("", "hidden")])
def test_binding_supports_are_in_the_other_style(episodes, pictures, name):
    ways = VARIANTS[name].ways
    for episode in episodes(name, 8):
        supports, query = shown(episode, pictures)
        assert {picture.split for picture in (*supports, query)} == {"test"}
        assert {picture.style for picture in supports} == {"google", "twitter"} - {query.style}
        # Each concept has one word, each word one concept, and no two concepts are of a group.
        pairs = set(zip([p.name for p in supports], labels(episode), strict=True))
        assert len(pairs) == len({n for n, _ in pairs}) == len({w for _, w in pairs}) == ways
        assert len({picture.group for picture in supports}) == ways
        # An oracle that knows the concepts is right.
        assert dict(pairs)[query.name] == episode.answer


def test_binding_supports_are_balanced(episodes, pictures):
    for shots in (5, 8):
        for episode in episodes("emoji_bind5", shots):
            counts = [labels(episode).count(word) for word in episode.candidates]
            assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("name", ["emoji_bind2", "emoji_bind5", "emoji_category"])
def test_controls_change_one_thing(episodes, pictures, name):
    for plain, shuffled, hidden in zip(
        episodes(name, 4),
        episodes(f"{name}_shuffled", 4),
        episodes(f"{name}_hidden", 4),
        strict=True,
    ):
        for control in (shuffled, hidden):
            assert control.support_ids == plain.support_ids
            assert (control.query_id, control.candidates, control.answer) == (
                plain.query_id,
                plain.candidates,
                plain.answer,
            )
        assert hidden.parts == plain.parts
    differing = [
        labels(plain) != labels(shuffled)
        for plain, shuffled in zip(episodes(name, 4), episodes(f"{name}_shuffled", 4), strict=True)
    ]
    assert np.mean(differing) > 0.5


def test_shuffled_words_do_not_tell(episodes, pictures):
    """The label of a support of the query's concept is right as often as chance."""
    right = []
    for episode in episodes("emoji_bind2_shuffled", 8):
        supports, query = shown(episode, pictures)
        right += [
            label == episode.answer
            for label, picture in zip(labels(episode), supports, strict=True)
            if picture.name == query.name
        ]
    assert np.mean(right) == pytest.approx(0.5, abs=5 * 0.5 / len(right) ** 0.5)


def test_names_are_of_trained_concepts_in_the_unseen_style(directory, episodes, pictures):
    described = json.loads((epath.Path(directory) / "emoji.json").read_text())["concepts"]
    unseen = {each["name"]: each["unseen_style"] for each in described}
    for episode in episodes("emoji_name", 0):
        _, query = shown(episode, pictures)
        assert query.split == "train"
        assert query.style == unseen[query.name]
        assert episode.answer == query.name
    task = registry.create("emoji_name", {"emoji": directory})
    assert task.chance == 1 / len(episodes("emoji_name", 0)[0].candidates)
    assert task.accepts(0) and not task.accepts(4)


def test_category_needs_the_context(episodes, pictures):
    """With the picture alone, half of the answers are right: name and category are as frequent."""
    asked_for_name = []
    for episode in episodes("emoji_category", 4):
        supports, query = shown(episode, pictures)
        is_name = episode.answer == query.name
        assert labels(episode) == [p.name if is_name else p.category for p in supports]
        assert query.name not in {picture.name for picture in supports}
        asked_for_name.append(is_name)
    assert np.mean(asked_for_name) == pytest.approx(0.5, abs=5 * 0.5 / len(asked_for_name) ** 0.5)


def test_more_shots_start_alike_and_seeds_differ(episodes):
    for few, many in zip(episodes("emoji_bind5", 2), episodes("emoji_bind5", 8), strict=True):
        assert many.support_ids[:2] == few.support_ids
        assert many.query_id == few.query_id
    ids = [[e.query_id for e in episodes("emoji_bind2", 1, seed=seed)] for seed in (1, 2)]
    assert ids[0] != ids[1]
    assert [e.query_id for e in episodes("emoji_bind2", 1, n=9)] == ids[0][:9]


def test_validation_concepts(directory, pictures):
    protocol = Protocol(n=8, split="validation")
    task = registry.create("emoji_bind2", {"emoji": directory}, protocol)
    for episode in task.episodes(2):
        supports, query = shown(episode, pictures)
        assert {picture.split for picture in (*supports, query)} == {"validation"}


def test_third_style_is_named_if_it_is_missing(directory):
    for name in ("emoji_bind2_third", "emoji_name_third"):
        with pytest.raises(TaskError, match="openmoji"):
            registry.create(name, {"emoji": directory}).episodes(0)


def test_the_third_style_is_that_of_the_query(tmp_path):
    input_ = packages.write(tmp_path / "in", third=True)
    emoji_records.build(
        emoji_records.EmojiRequest(str(input_), size="smoke"), epath.Path(tmp_path / "out")
    )
    output = str(tmp_path / "out")
    pools = emoji_tasks.read_pictures(output)
    by_image = {picture.id: picture for pool in pools.values() for picture in pool}
    for name, split in (("emoji_bind2_third", "test"), ("emoji_name_third", "train")):
        shots = 2 if split == "test" else 0
        for episode in registry.create(name, {"emoji": output}, Protocol(n=4)).episodes(shots):
            query = by_image[episode.query_id]
            assert (query.style, query.split) == ("openmoji", split)
            assert all(by_image[i].style != "openmoji" for i in episode.support_ids)


def test_too_many_are_refused(directory):
    with pytest.raises(TaskError, match=r"got n=9999; .* query pictures"):
        registry.create("emoji_bind2", {"emoji": directory}, Protocol(n=9999)).episodes(0)
    with pytest.raises(TaskError, match="too few pictures in the style"):
        registry.create("emoji_bind2", {"emoji": directory}, Protocol(n=1)).episodes(32)
    with pytest.raises(TaskError, match=r"emoji_category.* expected 400, .*Take fewer shots"):
        registry.create("emoji_category", {"emoji": directory}, Protocol(n=1)).episodes(400)
    with pytest.raises(TaskError, match="draws its own support examples"):
        registry.create("emoji_bind2", {"emoji": directory}, Protocol(selection="rices"))


def test_other_records_are_refused(directory, monkeypatch):
    source = Source(f"{directory}/test_images", "test")
    twice = [source[0], source[1], source[0]]
    monkeypatch.setattr(emoji_tasks, "Source", lambda path, split: twice)
    with pytest.raises(TaskError, match="twice"):
        emoji_tasks.read_pictures.__wrapped__(directory)
    monkeypatch.setattr(
        emoji_tasks, "Source", lambda path, split: Source(f"{directory}/pages", "test")
    )
    with pytest.raises(TaskError, match="record 0: .*--pipeline=emoji"):
        emoji_tasks.read_pictures.__wrapped__(directory)
