"""Pages of the synthetic world: their texts fit their pictures and contain no new name."""

import collections
import re

import numpy as np
import pytest

from flamingo_jax.world import pages as synthetic_pages
from flamingo_jax.world.pages import PICTURES_PER_PAGE, Album, PageMix
from flamingo_jax.world.scenes import COLOURS, SHAPES, VALUES
from flamingo_jax.world.text import NEW_NAMES, SEEN_NAMES

MIXES = {
    "binding": PageMix(1.0, 0.0, 0.0),
    "format": PageMix(0.0, 1.0, 0.0),
    "qa": PageMix(0.0, 0.0, 1.0),
}


@pytest.fixture(scope="module")
def albums():
    return Album.draw(1, "train_one", 256), Album.draw(1, "train_two", 256)


@pytest.fixture(scope="module")
def shown(albums):
    """The objects of a picture, by its bytes."""
    return {
        image: attributes
        for album in albums
        for image, attributes in zip(album.images, album.attributes, strict=True)
    }


def pages(albums, kind, num=80):
    return [
        synthetic_pages.page(1, "train", i, one=albums[0], two=albums[1], mix=MIXES[kind])
        for i in range(num)
    ]


@pytest.mark.parametrize("kind", MIXES)
def test_pictures_and_texts_alternate(albums, kind):
    for page in pages(albums, kind, 10):
        assert len(page.parts) == 2 * PICTURES_PER_PAGE[kind]
        assert all(isinstance(part, bytes) for part in page.parts[::2])
        assert all(isinstance(part, str) for part in page.parts[1::2])


@pytest.mark.parametrize("kind", MIXES)
def test_larger_pages_have_numbers_of_their_own(albums, kind):
    one, two = albums
    numbers = [
        len(synthetic_pages.page(1, "train", i, one=one, two=two, mix=MIXES[kind], most=33).images)
        for i in range(200)
    ]
    least = PICTURES_PER_PAGE[kind]
    assert (min(numbers), max(numbers)) == (least, 33 * least // 8)
    assert len(set(numbers)) == max(numbers) - least + 1


def test_binding_page_names_the_values_of_one_attribute(albums, shown):
    used, attributes = collections.Counter(), collections.Counter()
    for page in pages(albums, "binding"):
        names = [text.removeprefix("this is a ") for text in page.texts]
        assert set(names) <= set(SEEN_NAMES)
        assert not set(names) & set(NEW_NAMES)
        assert len(set(names)) <= 4
        fits = []
        for attribute in (0, 1):
            values = [int(shown[image][0, attribute]) for image in page.images]
            if len(set(zip(values, names, strict=True))) == len(set(values)) == len(set(names)):
                fits.append(attribute)
        assert fits
        used.update(names)
        attributes.update(fits)
    assert len(used) > 40
    assert min(attributes.values()) > 20


def test_format_page_gives_one_attribute(albums, shown):
    asked = collections.Counter()
    for page in pages(albums, "format"):
        answers = [text.removeprefix("output : ") for text in page.texts]
        fits = [
            a
            for a in range(3)
            if answers == [VALUES[a][shown[image][0, a]] for image in page.images]
        ]
        assert len(fits) == 1
        asked[fits[0]] += 1
    assert asked[0] > asked[2] < asked[1]  # 40, 40 and 20 %


def test_question_page_is_answered_by_its_picture(albums, shown):
    for page in pages(albums, "qa", 20):
        for image, text in zip(page.images, page.texts, strict=True):
            about, answer = re.fullmatch(
                r"question : what \w+ is (?:the )?(\w+) \? answer : (\w+)", text
            ).groups()
            pairs = [{COLOURS[c], SHAPES[s]} for c, s, _ in shown[image]]
            assert {about, answer} in pairs


def test_page_follows_from_seed_stream_and_index(albums):
    def page(seed, stream, index):
        return synthetic_pages.page(
            seed, stream, index, one=albums[0], two=albums[1], mix=PageMix()
        )

    one = page(1, "train", 3)
    assert page(1, "train", 3) == one
    assert len({one, page(2, "train", 3), page(1, "test", 3), page(1, "train", 4)}) == 4


def test_album_finds_pictures_by_what_they_show(albums):
    ring = SHAPES.index("ring")
    expected = np.flatnonzero(albums[0].attributes[:, 0, 1] == ring)
    np.testing.assert_array_equal(albums[0].having(1, ring), expected)


def test_album_that_lacks_a_value_says_so(albums):
    few = Album(albums[0].attributes[:4], albums[0].images[:4])
    with pytest.raises(ValueError, match="draw more pictures"):
        few.having(0, 0)
