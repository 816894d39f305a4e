"""Which concepts the packages of emoji have, their groups, and their splits."""

import collections
import json

import pytest

from data_pipelines.emoji import concepts
from data_pipelines.emoji.concepts import STYLES, EmojiError
from tests.data_pipelines.emoji import packages


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return packages.write(tmp_path_factory.mktemp("emoji"))


@pytest.fixture(scope="module")
def collection(directory):
    return concepts.read(directory)


def named(collection, name):
    return next(concept for concept in collection.concepts if concept.name == name)


def test_rows_become_concepts(collection):
    assert len(collection.concepts) == len(packages.rows()) - 1
    assert collection.counts["component"] == 1  # the skin tone
    assert collection.versions == {f"emoji-datasource-{style}": "16.0.0" for style in STYLES}
    concept = named(collection, "thing number3")
    assert concept.code == "1f003"
    assert concept.category in concepts.CATEGORIES.values()
    assert set(concept.drawings) == set(STYLES)


def test_genders_are_one_group_and_one_split(collection):
    """By name ("man cook"), by code points ("runner", "woman running"), and families."""
    for one, *others in (
        ("cook", "man cook", "woman cook"),
        ("runner", "woman running"),
        ("family", "family man boy"),
    ):
        first = named(collection, one)
        for other in (named(collection, name) for name in others):
            assert (other.group, other.split) == (first.group, first.split)
    splits = collections.defaultdict(set)
    for concept in collection.concepts:
        splits[concept.group].add((concept.split, concept.unseen_style))
    assert all(len(found) == 1 for found in splits.values())


def test_shares_of_the_splits(collection):
    """240 groups: each share within five standard errors."""
    number = collections.Counter(concept.split for concept in collection.concepts)
    total = len(collection.concepts)
    assert number["train"] / total == pytest.approx(0.85, abs=0.12)
    assert number["test"] / total == pytest.approx(0.10, abs=0.10)
    assert number["validation"] >= 7
    trained = [concept for concept in collection.concepts if concept.split == "train"]
    one_style = [concept for concept in trained if concept.unseen_style]
    assert len(one_style) / len(trained) == pytest.approx(0.2, abs=0.14)
    assert {concept.unseen_style for concept in one_style} == set(STYLES)


def test_splits_depend_on_nothing_but_the_group(tmp_path, collection):
    """With half of the rows each concept stays where it is."""
    half = packages.write(tmp_path, packages.rows()[::2])
    assert all(
        concept.split == named(collection, concept.name).split
        for concept in concepts.read(half).concepts
    )


def test_a_concept_without_a_drawing_is_counted(tmp_path):
    directory = packages.write(tmp_path, packages.rows()[:20])
    (directory / "emoji-datasource-twitter/img/twitter/64/1f003.png").unlink()
    collection = concepts.read(directory)
    assert collection.counts["without_a_drawing"] == 1
    assert len(collection.concepts) == 19


def test_equal_names_are_counted(tmp_path):
    emoji = [*packages.rows()[:20], packages.row("1FFFF", "THING NUMBER3")]
    collection = concepts.read(packages.write(tmp_path, emoji))
    assert collection.counts["same_name"] == 1
    assert len(collection.concepts) == 20


def test_equal_code_points_are_counted(tmp_path):
    """The code is the name of a concept's pictures: two would show each other's."""
    emoji = [*packages.rows()[:20], packages.row("1f003", "ANOTHER THING")]
    collection = concepts.read(packages.write(tmp_path, emoji))
    assert collection.counts["same_code"] == 1
    assert len({concept.code for concept in collection.concepts}) == 20


def test_a_drawing_that_should_be_there_is_named(tmp_path):
    """A package is incomplete, or the two have other versions: nothing is made of a part."""
    directory = packages.write(tmp_path, packages.rows()[:20])
    (directory / "emoji-datasource-google/img/google/64/1f003.png").unlink()
    with pytest.raises(EmojiError, match=r"google/64/1f003\.png is missing, .*twitter 16\.0\.0"):
        concepts.read(directory)


def test_a_long_name_gives_way_to_the_short_one(tmp_path):
    long = packages.row(
        "1F9FF", "FACE WITH ONE LARGE AND ONE SMALL EYE", short_name="zany_face",
        short_names=["zany_face", "goofy"],
    )  # fmt: skip
    concept = named(concepts.read(packages.write(tmp_path, [long])), "zany face")
    assert concept.keywords == ("goofy",)
    assert concept.caption == "zany face goofy"


def test_the_third_style_is_optional(tmp_path):
    directory = packages.write(tmp_path, packages.rows()[:20], third=True)
    collection = concepts.read(directory)
    assert collection.versions["openmoji"] == "17.0.0"
    assert all("openmoji" in concept.drawings for concept in collection.concepts)
    (directory / "openmoji" / "color").rename(directory / "openmoji" / "elsewhere")
    with pytest.raises(EmojiError, match=r"openmoji/color/svg is missing; .* it is optional"):
        concepts.read(directory)


@pytest.mark.parametrize("what", ["package.json", "emoji.json", "img"])
def test_a_missing_part_is_named(tmp_path, what):
    directory = packages.write(tmp_path, packages.rows()[:20])
    path = directory / "emoji-datasource-google" / what
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(EmojiError, match=rf"emoji-datasource-google.*{what}.*npm install"):
        concepts.read(directory)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "emoji.json is not valid JSON"),
        ("{}", "holds a dict; expected a list"),
        (json.dumps([{"name": "X"}]), "row 0: .*expected the texts name"),
        (json.dumps([packages.row("1F000", "X", "Weather")]), "a category of Activities"),
        (json.dumps([packages.row("../1F000", "X")]), "row 0: .*code points such as"),
    ],
)
def test_a_damaged_list_is_named(tmp_path, content, message):
    directory = packages.write(tmp_path, packages.rows()[:20])
    (directory / "emoji-datasource-google/emoji.json").write_text(content)
    with pytest.raises(EmojiError, match=message):
        concepts.read(directory)
