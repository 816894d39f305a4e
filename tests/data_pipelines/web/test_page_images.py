"""Images of pages: the paper's filters at their thresholds, damage, and the sources of bytes."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

pytest.importorskip("warcio")

from data_pipelines.page import Page, Picture, Reject
from data_pipelines.web.page_images import (
    ImageLimits,
    as_stored,
    keep_image,
    with_images,
)
from flamingo_jax.data.images import read
from tests.data_pipelines import crawl


def reason(data, limits=None):
    found = keep_image(data, limits) if limits else keep_image(data)
    assert found is None or found.unit == "image"
    return found and found.reason


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (64, 64, None),
        (63, 64, "image_too_small"),
        (64, 63, "image_too_small"),
        (300, 100, None),
        (301, 100, "image_aspect"),
        (100, 300, None),
        (100, 301, "image_aspect"),
        (192, 64, None),
        (193, 64, "image_aspect"),
    ],
)
@pytest.mark.parametrize("encode", [crawl.jpeg, crawl.png, crawl.webp])
def test_size_and_aspect_at_the_thresholds(encode, width, height, expected):
    assert reason(encode(0, width, height)) == expected


def test_sides_are_those_of_the_upright_image():
    turned = Image.Exif()
    turned[0x0112] = 6
    data = crawl.encoded(crawl.picture(0, 80, 240), "JPEG", exif=turned)
    assert read.probe(data).width == 240
    assert reason(data) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize(("width", "height"), [(64, 64), (200, 70), (640, 480)])
def test_single_colour(kind, width, height):
    plain = Image.new("RGB", (width, height), (200, 30, 99))
    assert reason(crawl.encoded(plain, kind)) == "single_colour"
    plain.paste((30, 200, 99), (width // 2, height // 2, width // 2 + 20, height // 2 + 20))
    assert reason(crawl.encoded(plain, kind)) is None


@pytest.mark.parametrize(
    ("mode", "size", "colour"),
    [("RGB", (192, 64), (255, 0, 0)), ("L", (64, 192), 7), ("RGBA", (99, 99), (1, 2, 3, 0))],
)
def test_padding_of_the_square_is_no_second_colour(mode, size, colour):
    assert reason(crawl.encoded(Image.new(mode, size, colour), "PNG")) == "single_colour"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty_image"),
        (b"<html>no image</html>", "not_an_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (crawl.jpeg()[:-200], "truncated_image"),
        (crawl.png()[:-900], "truncated_image"),
        (crawl.webp()[:-20], "truncated_image"),
        (crawl.encoded(Image.new("1", (20_000, 20_000)), "PNG"), "image_too_large"),
    ],
    ids=["empty", "html", "svg", "jpeg", "png", "webp", "bomb"],
)
def test_damaged_images(data, expected):
    found = keep_image(data)
    assert (found.reason, found.broken, found.unit) == (expected, True, "image")


def test_bytes_at_the_limit():
    data = crawl.jpeg()
    assert reason(data, ImageLimits(max_bytes=len(data))) is None
    assert reason(data, ImageLimits(max_bytes=len(data) - 1)) == "image_too_large"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_images_are_stored_as_they_are(kind):
    data = crawl.encoded(crawl.picture(), kind)
    assert as_stored(data) is data


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "CMYK"])
def test_other_formats_become_png(mode):
    image = crawl.picture().convert(mode)
    data = crawl.encoded(image, "TIFF")
    stored = as_stored(data)
    assert read.probe(stored).format == "PNG"
    assert np.abs(read.decode(stored, 96).astype(int) - read.decode(data, 96)).max() <= 1
    assert as_stored(stored) is stored


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_is_stored_as_its_first_frame(kind):
    frames = [crawl.picture(seed) for seed in range(3)]
    data = crawl.encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    stored = as_stored(data)
    with Image.open(io.BytesIO(stored)) as image:
        assert image.format == "PNG"
        assert not getattr(image, "is_animated", False)
    np.testing.assert_array_equal(read.decode(stored, 96), read.decode(data, 96))
    assert reason(data) is None


def _forms():
    """{name: a file}: every format, mode and orientation that a page may show."""
    picture = crawl.picture()
    exif = Image.Exif()
    for way in range(1, 9):
        exif[0x0112] = way
        turned = exif.tobytes()
        for kind in ("JPEG", "PNG", "WEBP", "AVIF", "MPO"):
            yield f"{kind} turned {way}", crawl.encoded(picture, kind, exif=turned)
        yield f"TIFF turned {way}", crawl.encoded(picture, "TIFF", tiffinfo={0x0112: way})
        film = {"save_all": True, "append_images": [crawl.picture(1)]}
        for kind in ("PNG", "WEBP"):
            yield f"{kind} film turned {way}", crawl.encoded(picture, kind, exif=turned, **film)
    yield "AVIF film", crawl.encoded(picture, "AVIF", **film)
    clear = picture.convert("RGBA")
    clear.putalpha(crawl.picture(2).convert("L"))
    index = picture.quantize(16)
    grey = np.asarray(picture.convert("L"))
    modes = {mode: picture.convert(mode) for mode in ("1", "L", "P", "RGB", "CMYK", "LAB")}
    modes |= {"RGBA": clear, "LA": clear.convert("LA"), "P16": index}
    modes |= {"I;16": Image.fromarray(grey.astype(np.uint16) * 200)}
    modes |= {"I": Image.fromarray(grey.astype(np.int32) * 3)}
    modes |= {"F": Image.fromarray((grey / 300).astype(np.float32))}
    for mode, image in modes.items():
        for kind in ("TIFF", "PNG", "GIF", "BMP", "PPM", "WEBP", "AVIF"):
            try:
                yield f"{kind} {mode}", crawl.encoded(image, kind)
            except (OSError, ValueError, DeprecationWarning):
                continue  # the format has no such mode
    film = {"save_all": True, "append_images": [crawl.picture(1).quantize(16)]}
    for kind in ("GIF", "PNG"):
        yield f"{kind} with a clear colour", crawl.encoded(index, kind, transparency=3)
        yield f"{kind} film with a clear colour", crawl.encoded(index, kind, transparency=3, **film)


FORMS = dict(_forms())


@pytest.mark.parametrize("form", FORMS)
def test_the_stored_form_has_the_same_pixels(form):
    data = FORMS[form]
    stored = as_stored(data)
    for image_fit in ("pad", "crop"):
        for size in (96, 33):
            expected = read.decode(data, size, image_fit)
            np.testing.assert_array_equal(read.decode(stored, size, image_fit), expected)
    assert as_stored(stored) is stored
    assert reason(stored) == reason(data)
    info, of_data = read.probe(stored), read.probe(data)
    assert (info.width, info.height) == (of_data.width, of_data.height)


def test_what_is_stored_has_no_profile_of_other_colours_and_no_orientation():
    """A browser would apply them to the RGB of a CMYK image, or turn it twice."""
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    film = {"save_all": True, "append_images": [crawl.picture(1)]}
    for data in (
        crawl.encoded(crawl.picture().convert("CMYK"), "TIFF", icc_profile=profile),
        crawl.encoded(crawl.picture(), "PNG", icc_profile=profile, exif=exif, **film),
    ):
        with Image.open(io.BytesIO(as_stored(data))) as image:
            image.load()
            assert not {"icc_profile", "exif"} & set(image.info)


def page(*parts):
    parts = tuple(Picture(part[0]) if isinstance(part, list) else part for part in parts)
    return Page("https://example.org/", parts)


def test_pictures_get_their_bytes_in_order():
    files = {"a": crawl.jpeg(1), "b": crawl.png(2)}
    found, rejects = with_images(page("one", ["a"], ["b"], "two"), files.get)
    assert found.parts == ("one", Picture("a", files["a"]), Picture("b", files["b"]), "two")
    assert not rejects


def test_dropped_pictures_are_counted_and_their_texts_joined():
    files = {
        "good": crawl.jpeg(1),
        "small": crawl.jpeg(1, 30, 30),
        "copy": crawl.jpeg(1),
        "cut": crawl.jpeg()[:99],
    }
    refused = Reject("fetch_refused", "not public")

    def find(url):
        return refused if url == "refused" else files.get(url)

    bad = (["good"], ["copy"], ["missing"], ["cut"], ["refused"])
    found, rejects = with_images(page("a", ["small"], "b", ["good"], "c", *bad, "d"), find)
    assert found.parts == ("a\nb", Picture("good", files["good"]), "c\nd")
    reasons = [
        "image_too_small",
        "duplicate_image",
        "duplicate_image",
        "missing_image",
        "truncated_image",
        "fetch_refused",
    ]
    assert [reject.reason for reject in rejects] == reasons
    assert all(reject.unit == "image" for reject in rejects)
    assert [reject.broken for reject in rejects] == [False, False, False, True, True, False]
    assert rejects[0].detail == "small: 30 x 30 pixels"


def test_bytes_inside_the_page_are_not_searched():
    picture = Picture("data:image/jpeg,1", crawl.jpeg())
    found, _ = with_images(Page("u", ("x", picture)), lambda url: pytest.fail(url))
    assert found.pictures == (picture,)


def test_page_without_image_is_left_out():
    found, rejects = with_images(page("a", ["none"]), {}.get)
    assert found == Reject("no_image_left", "https://example.org/")
    assert len(rejects) == 1


def of_places(*sources):
    others = tuple(Picture(source) for source in sources[1:])
    return Picture(sources[0], alt="a cat", others=others)


@pytest.mark.parametrize(
    ("files", "source"),
    [
        ({"best": crawl.jpeg(1), "next": crawl.jpeg(2)}, "best"),
        ({"next": crawl.jpeg(2)}, "next"),
        ({"best": crawl.jpeg(1, 20, 20), "last": crawl.jpeg(3)}, "last"),
        ({"best": b"<html>", "next": crawl.jpeg(1)[:300], "last": crawl.jpeg(3)}, "last"),
    ],
)
def test_the_first_place_that_is_found_and_kept_is_taken(files, source):
    found, rejects = with_images(Page("u", ("x", of_places("best", "next", "last"))), files.get)
    assert found.pictures == (Picture(source, files[source], "a cat"),)
    assert rejects == []


def test_an_image_without_a_good_place_is_one_reject():
    files = {"next": crawl.jpeg(1, 20, 20)}
    found, rejects = with_images(Page("u", ("x", of_places("best", "next"))), files.get)
    assert (found.reason, [each.reason for each in rejects]) == (
        "no_image_left",
        ["image_too_small"],
    )
    _, rejects = with_images(Page("u", ("x", of_places("best", "next"))), {}.get)
    assert [each.reason for each in rejects] == ["missing_image"]


def test_other_sizes_of_an_image_are_not_kept_as_further_images():
    files = {"small": crawl.jpeg(1, 80, 80), "large": crawl.jpeg(1, 160, 160)}
    pictures = (of_places("large", "small"), of_places("small"), of_places("large"))
    found, rejects = with_images(Page("u", pictures), files.get)
    assert [picture.source for picture in found.pictures] == ["large"]
    assert [each.reason for each in rejects] == ["duplicate_image"] * 2


def test_nothing_is_fetched_that_is_in_the_archive_under_another_url():
    asked = []
    picture, missing = of_places("best", "next"), of_places("none", "nothing")
    found, _ = with_images(
        Page("u", (picture, missing)), {"next": crawl.jpeg(1)}.get, fetch=asked.append
    )
    assert [each.source for each in found.pictures] == ["next"]
    assert asked == ["none", "nothing"]
