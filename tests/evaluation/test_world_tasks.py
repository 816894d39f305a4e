"""The tasks of the synthetic world.

It tests that cheating is not possible, the controls, and the scores of guessers and of an oracle.
"""

import functools
import re
import zlib

import numpy as np
import pytest
from etils import epath

from data_pipelines import world as pipeline
from flamingo_jax.evaluation import registry, world_tasks
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.task import TaskError
from flamingo_jax.world import scenes
from flamingo_jax.world.scenes import COLOURS, SHAPES, VALUES
from flamingo_jax.world.text import NEW_NAMES

SHOTS = (0, 1, 2, 4, 8)
SIZE = pipeline.SIZES["smoke"]
N = {True: SIZE.test_held_out, False: SIZE.test_one}  # of `format` and `bind`


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = epath.Path(tmp_path_factory.mktemp("world"))
    pipeline.build(pipeline.WorldRequest(seed=1, size=SIZE), directory)
    return str(directory)


@pytest.fixture(scope="module")
def episodes(directory):
    """The function `episodes(name, shots, n=all, seed=1)`."""

    @functools.cache
    def get(name, shots, n=None, seed=1):
        protocol = Protocol(n=n or 0, seed=seed)
        return registry.create(name, {"world": directory}, protocol).episodes(shots)

    return get


@pytest.fixture(scope="module")
def shown(directory):
    """The words for what a picture shows, by the picture's bytes."""
    albums = world_tasks.read_albums(directory)
    return {
        image: tuple(VALUES[a][v] for a, v in enumerate(attributes[0]))
        for album in albums.values()
        for image, attributes in zip(album.images, album.attributes, strict=True)
    }


def labels(episode):
    return [
        part.split("<EOC>")[0].split()[-1] for part in episode.parts[:-1] if isinstance(part, str)
    ]


def pictures(episode):
    return [part for part in episode.parts if isinstance(part, bytes)]


def facts(episode):
    """Returns the fields of an episode in a form that can be compared."""
    return (
        episode.parts,
        episode.candidates,
        episode.answer,
        episode.query_id,
        episode.support_ids,
        episode.masked,
    )


@pytest.mark.parametrize("name", world_tasks.VARIANTS)
@pytest.mark.parametrize("shots", SHOTS)
def test_query_is_never_among_its_support(episodes, name, shots):
    for episode in episodes(name, shots):
        *supports, query = pictures(episode)
        assert len(supports) == shots == len(episode.support_ids) == len(set(episode.support_ids))
        assert query not in supports
        assert episode.query_id not in episode.support_ids


@pytest.mark.parametrize("name", world_tasks.VARIANTS)
def test_every_test_picture_is_one_query(episodes, name):
    ids = [episode.query_id for episode in episodes(name, 0)]
    expected = SIZE.test_two if name.startswith("questions") else N[name.endswith("held_out")]
    assert len(set(ids)) == len(ids) == expected


def test_prompts_read_as_pages_do(episodes):
    for name, prompt in (("format", "output :"), ("bind2", "this is a")):
        episode = episodes(name, 2)[0]
        assert [isinstance(part, bytes) for part in episode.parts] == [True, False] * 3
        assert [part for part in episode.parts if isinstance(part, str)] == [
            f"{prompt} {label}<EOC>" for label in labels(episode)
        ] + [prompt]


@pytest.mark.parametrize("name", world_tasks.VARIANTS)
def test_episode_depends_on_seed_and_query_alone(episodes, name):
    every = {episode.query_id: facts(episode) for episode in episodes(name, 4)}
    some = episodes(name, 4, n=7)
    assert [facts(episode) for episode in some] == [every[episode.query_id] for episode in some]
    other = episodes(name, 4, n=7, seed=2)
    assert [facts(episode) for episode in other] != [facts(episode) for episode in some]


@pytest.mark.parametrize("name", ["format", "bind2_shuffled", "bind4", "questions"])
def test_more_shots_add_supports_to_the_same_question(episodes, name):
    for few, many in zip(episodes(name, 2), episodes(name, 8), strict=True):
        assert few.query_id == many.query_id
        assert few.answer == many.answer
        assert few.candidates == many.candidates
        assert few.support_ids == many.support_ids[:2]
        assert few.parts[:4] == many.parts[:4]


def test_names_are_new_and_answers_true(episodes, shown):
    for name, ways in (("bind2", 2), ("bind2_hidden", 2), ("bind2_held_out", 2), ("bind4", 4)):
        for episode in episodes(name, 8):
            assert len(set(episode.candidates)) == ways
            assert set(episode.candidates) <= set(NEW_NAMES)
            assert set(labels(episode)) == set(episode.candidates)
            assert episode.answer in readings(episode, shown)


def test_support_is_class_balanced(episodes):
    for episode in episodes("bind4", 8):
        assert {labels(episode).count(name) for name in episode.candidates} == {2}
    for episode in episodes("bind2", 4):
        assert {labels(episode).count(name) for name in episode.candidates} == {2}
    for episode in episodes("format", 8):
        assert max(labels(episode).count(label) for label in labels(episode)) == (
            4 if labels(episode)[0] in ("big", "small") else 1
        )


def test_format_asks_for_each_attribute_equally(episodes, shown):
    counts = np.zeros(3)
    for episode in episodes("format", 1):
        assert episode.candidates == tuple(word for values in VALUES for word in values)
        counts[shown[pictures(episode)[-1]].index(episode.answer)] += 1
    np.testing.assert_allclose(counts / counts.sum(), 1 / 3, atol=0.08)


def test_held_out_concerns_the_query_alone(episodes, shown):
    for name in ("format_held_out", "bind2_held_out"):
        for episode in episodes(name, 8):
            *supports, query = [is_held_out(shown[picture]) for picture in pictures(episode)]
            assert query
            assert not any(supports)
    for name in ("format", "bind2", "bind4"):
        assert not any(
            is_held_out(shown[picture])
            for episode in episodes(name, 8)
            for picture in pictures(episode)
        )


@pytest.mark.parametrize("base", ["format", "bind2"])
def test_controls_change_one_thing(episodes, base):
    for plain, shuffled, hidden in zip(
        episodes(base, 8),
        episodes(f"{base}_shuffled", 8),
        episodes(f"{base}_hidden", 8),
        strict=True,
    ):
        assert facts(hidden) == (*facts(plain)[:-1], True)
        assert facts(shuffled)[1:] == facts(plain)[1:]
        assert pictures(shuffled) == pictures(plain)
    changed = [
        labels(a) != labels(b)
        for a, b in zip(episodes(base, 8), episodes(f"{base}_shuffled", 8), strict=True)
    ]
    assert np.mean(changed) > 0.9


@pytest.mark.parametrize(
    ("name", "shots", "clear"),
    [
        ("format", 1, 1.0),
        ("format", 8, 1.0),
        ("bind2", 2, 0.85),
        ("bind2", 4, 0.97),
        ("bind2", 8, 1.0),
        ("bind4", 4, 0.75),
        ("bind4", 8, 0.97),
    ],
)
def test_oracle_is_right(episodes, shown, name, shots, clear):
    """The answer follows from the pictures.

    With one example of each name it is sometimes open whether names are of colours or of shapes.
    """
    found = [readings(episode, shown) for episode in episodes(name, shots)]
    assert all(
        episode.answer in answers
        for episode, answers in zip(episodes(name, shots), found, strict=True)
    )
    assert np.mean([len(answers) == 1 for answers in found]) >= clear


@pytest.mark.parametrize("shots", [1, 2, 4, 8])
def test_shuffled_names_do_not_help_the_oracle(episodes, shown, shots):
    """Four seeds, n = 1024: three standard errors are 0.047.

    It holds at one shot too, where an exchange of labels would change nothing.
    """
    found = [e for seed in range(4) for e in episodes("bind2_shuffled", shots, seed=seed)]
    assert score(found, lambda episode: read(episode, shown)) == pytest.approx(0.5, abs=0.047)


@pytest.mark.parametrize("shots", [1, 4, 8])
def test_shuffled_labels_do_not_show_the_format(episodes, shown, shots):
    """A guesser takes the attribute from the labels and its value from the query's picture.

    It is right in 1/3 (n = 1024, three standard errors: 0.045).
    """

    def guess(episode):
        kinds = [
            next(a for a, values in enumerate(VALUES) if label in values)
            for label in labels(episode)
        ]
        return shown[pictures(episode)[-1]][np.bincount(kinds).argmax()]

    found = [e for seed in range(4) for e in episodes("format_shuffled", shots, seed=seed)]
    assert score(found, guess) == pytest.approx(1 / 3, abs=0.045)
    assert score(episodes("format", shots), guess) == 1.0


@pytest.mark.parametrize(("name", "ways"), [("bind2", 2), ("bind4", 4), ("bind2_held_out", 2)])
@pytest.mark.parametrize("shots", [0, 4, 8])
def test_guessers_get_chance(episodes, name, ways, shots):
    """Guessers do not use the pictures.

    They take the first, the last, the most frequent or the most recent name (n >= 256, three
    standard errors).
    """
    found = [
        e
        for seed in range(1 if N[name.endswith("held_out")] > 200 else 4)
        for e in episodes(name, shots, seed=seed)
    ]
    error = 3 * (0.25 / len(found)) ** 0.5
    guessers = [lambda e: e.candidates[0], lambda e: e.candidates[-1]]
    if shots:
        guessers += [
            lambda e: labels(e)[-1],
            lambda e: labels(e)[0],
            lambda e: max(labels(e), key=labels(e).count),
        ]
    for guess in guessers:
        assert score(found, guess) == pytest.approx(1 / ways, abs=error)


@pytest.mark.parametrize("shots", [4, 8])
def test_hidden_format_is_a_quarter(episodes, shots):
    """With the attribute from the labels but without the picture: (1/8 + 1/8 + 1/2) / 3.

    Repeating a label is not better.
    """
    found = [e for seed in range(4) for e in episodes("format_hidden", shots, seed=seed)]
    assert score(found, lambda e: labels(e)[-1]) == pytest.approx(0.25, abs=0.045)
    assert score(found, lambda e: max(labels(e), key=labels(e).count)) == pytest.approx(
        0.25, abs=0.045
    )


def test_questions_are_about_one_of_two_objects(episodes, directory):
    """Also those of the examples; and to name any of the two objects is right in half of them."""
    album = world_tasks.read_albums(directory)["test_two"]
    attributes = dict(zip(album.images, album.attributes, strict=True))
    found, firsts = [e for seed in range(4) for e in episodes("questions", 4, seed=seed)], []
    for episode in found:
        texts = [part for part in episode.parts if isinstance(part, str)]
        texts[-1] += f" {episode.answer}<EOC>"
        for image, text in zip(pictures(episode), texts, strict=True):
            asked, about, answer = re.fullmatch(
                r"question : what (\w+) is (?:the )?(\w+) \? answer : (\w+)<EOC>", text
            ).groups()
            objects = [{COLOURS[c], SHAPES[s]} for c, s, _ in attributes[image]]
            assert {about, answer} in objects
            assert answer in {"colour": COLOURS, "shape": SHAPES}[asked]
        assert episode.candidates == {"colour": COLOURS, "shape": SHAPES}[asked]
        colour, shape, _ = attributes[pictures(episode)[-1]][0]
        firsts.append(episode.answer in (COLOURS[colour], SHAPES[shape]))
    assert np.mean(firsts) == pytest.approx(0.5, abs=3 * (0.25 / len(found)) ** 0.5)
    hidden = episodes("questions_hidden", 4)
    assert [facts(e) for e in hidden] == [(*facts(e)[:-1], True) for e in episodes("questions", 4)]


def test_chance_and_metrics(directory):
    expected = {"format": 1 / 3, "bind2": 0.5, "bind2_hidden": 0.5, "bind4": 0.25, "questions": 0.5}
    for name, chance in expected.items():
        task = registry.create(name, {"world": directory})
        assert isinstance(task, registry.Task)
        assert task.chance == pytest.approx(chance)
        assert task.metrics == ("exact_match", "ranking")


def test_more_episodes_than_pictures_are_refused(directory):
    task = registry.create("bind2_held_out", {"world": directory}, Protocol(n=65))
    with pytest.raises(ValueError, match="n=65; .* has 64 query pictures"):
        task.episodes(0)


@pytest.mark.parametrize("name", ["format", "questions"])
def test_more_shots_than_pictures_are_refused(directory, name):
    task = registry.create(name, {"world": directory}, Protocol(n=1))
    with pytest.raises(ValueError, match="take fewer shots"):
        task.episodes(500)


def test_missing_world_is_explained(tmp_path):
    with pytest.raises(ValueError, match=r"--config\.data\.world=DIRECTORY"):
        registry.create("bind2", {})
    with pytest.raises(FileNotFoundError, match="no dataset at"):
        registry.create("bind2", {"world": str(tmp_path)}).episodes(0)


def test_a_picture_that_is_there_twice_is_an_error(directory, monkeypatch):
    """It could be the query and a support of one prompt."""
    source = world_tasks.Source(f"{directory}/test_images", "test")
    monkeypatch.setattr(
        world_tasks, "Source", lambda path, split: [source[0], source[1], source[0]]
    )
    with pytest.raises(TaskError, match="test_images holds the id 'test_one/0' twice"):
        world_tasks.read_albums.__wrapped__(directory)


def readings(episode, shown):
    """The oracle: all answers that fit the pictures and the labels.

    It gives one answer for each attribute with which the labels agree.
    """
    *supports, query = [shown[picture] for picture in pictures(episode)]
    heard = labels(episode)
    if episode.parts[-1] == "output :":
        return {
            query[a]
            for a in range(3)
            if all(s[a] == label for s, label in zip(supports, heard, strict=True))
        }
    found = set()
    for attribute in (0, 1):
        pairs = {(values[attribute], label) for values, label in zip(supports, heard, strict=True)}
        if len(pairs) == len(dict(pairs)) == len(set(heard)):
            found |= {label for value, label in pairs if value == query[attribute]}
    return found


def read(episode, shown):
    """Returns one of the oracle's answers, a random one if there are two.

    If the labels agree with no attribute, it is the last name.
    """
    found = sorted(readings(episode, shown)) or labels(episode)[-1:]
    return found[zlib.crc32(episode.query_id.encode()) % len(found)]


def score(found, guess):
    return float(np.mean([guess(episode) == episode.answer for episode in found]))


def is_held_out(words):
    return scenes.is_held_out(COLOURS.index(words[0]), SHAPES.index(words[1]))
