"""Features of the vision encoder, kept on disk, and the exact search for similar examples."""

import functools

import jax
import numpy as np
import PIL.Image
import pytest

from flamingo_jax.checkpoint.export import export
from flamingo_jax.core import trees
from flamingo_jax.core.config import to_dict
from flamingo_jax.data.embeddings import Embeddings
from flamingo_jax.inference import nearest as rices
from flamingo_jax.inference.compiled import Compiled
from flamingo_jax.inference.model import CheckpointError
from flamingo_jax.inference.nearest import Rices, nearest
from flamingo_jax.inference.prompt import Image
from flamingo_jax.inference.vision_features import VisionEncoder
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.nfnet import NFNet, normalise
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from tests.inference import tiny

IMAGES = [tiny.image(number) for number in range(6)]
VIDEO = np.stack([tiny.image(7), tiny.image(8), tiny.image(9)])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.load(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def encoder(model):
    return VisionEncoder.of(model)


@pytest.fixture
def encoded(monkeypatch):
    """How many images went through the encoder, one number for each call."""
    counts = []
    call = Compiled.__call__
    monkeypatch.setattr(
        Compiled,
        "__call__",
        lambda *given: counts.append(int(given[-1].any(axis=1).sum())) or call(*given),
    )
    return counts


def expected(model, frames):
    """The mean of the last grid, by the vision encoder alone."""
    import haiku as hk

    config = tiny.flamingo_config(model.tokenizer.vocab_size).vision
    see = hk.without_apply_rng(hk.transform(lambda x: NFNet(config, name="vision")(normalise(x))))
    weights = {
        f"vision/{name}": leaves
        for name, leaves in trees.subtree(model.engine.params, "flamingo/vision").items()
    }
    return np.asarray(jax.jit(see.apply)(weights, frames)).mean(axis=(0, 1, 2))


def test_features_are_the_mean_of_the_encoders_last_grid(model, encoder):
    """The mean over an image's grid, and over a video's frames without padding.

    Equal to 1e-5, since sums are in another order.
    """
    found = encoder([IMAGES[0], VIDEO])
    assert found.dtype == np.float32 and found.shape == (2, 8)
    np.testing.assert_allclose(found[0], expected(model, IMAGES[0][None]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], expected(model, VIDEO), rtol=1e-5, atol=1e-6)


def test_features_do_not_depend_on_the_devices(encoder, tmp_path_factory):
    mesh = make_mesh(MeshConfig(data=4, model=2))
    spread = VisionEncoder.of(tiny.load(tmp_path_factory.getbasetemp(), mesh=mesh))
    np.testing.assert_allclose(spread(IMAGES), encoder(IMAGES), rtol=1e-5, atol=1e-6)
    assert spread.fingerprint() == encoder.fingerprint()


def test_a_contrastive_export_has_the_features_of_its_tower(model, encoder, tmp_path):
    vision = trees.subtree(model.engine.params, "flamingo/vision")
    params = {f"contrastive/vision/{name}": leaves for name, leaves in vision.items()}
    config = ModelConfig(vision=tiny.flamingo_config(model.tokenizer.vocab_size).vision)
    about = {
        "config": to_dict(config),
        "tokenizer": None,
        "preprocessing": {"image_size": tiny.IMAGE_SIZE},
        "step": 1,
    }
    export(tmp_path / "contrastive", params, kind="contrastive", **about)
    loaded = VisionEncoder.load(tmp_path / "contrastive", config=tiny.CONFIG)
    np.testing.assert_allclose(loaded(IMAGES), encoder(IMAGES), rtol=1e-5, atol=1e-6)


def test_a_language_model_sees_nothing(tmp_path_factory):
    with pytest.raises(
        CheckpointError, match="tiny is a language model and has no features of images"
    ):
        VisionEncoder.of(tiny.load(tmp_path_factory.getbasetemp(), kind="language_model"))


def test_features_are_kept(encoder, encoded, tmp_path, monkeypatch):
    """Each image is encoded once, in a run and in the next one; a killed run keeps its parts."""
    monkeypatch.setattr(rices, "PART", 2)
    first = Rices(encoder, tmp_path)
    found = first.features([*IMAGES[:3], IMAGES[0]])
    np.testing.assert_array_equal(found[0], found[3])
    assert encoded == [2, 1]  # two parts
    first.features(IMAGES[:2])
    again = Rices(encoder, tmp_path)
    np.testing.assert_array_equal(again.features([*IMAGES[:3], IMAGES[0]]), found)
    assert encoded == [2, 1]
    again.features(IMAGES[2:4])
    assert encoded == [2, 1, 1]
    (place,) = tmp_path.iterdir()
    assert [len(Embeddings(part)) for part in sorted(place.iterdir())] == [2, 1, 1]


def test_features_of_other_weights_are_not_taken(encoder, encoded, tmp_path, model):
    Rices(encoder, tmp_path).features(IMAGES[:1])
    params = trees.flatten(model.engine.params)
    name = next(
        name for name in params if name.startswith("flamingo/vision/") and params[name].ndim == 4
    )
    changed = trees.unflatten({**params, name: params[name] * 1.01})
    other = VisionEncoder(
        Compiled(changed, None),
        model.engine.model.features,
        encoder.passes,
        vision="flamingo/vision",
    )
    assert not np.array_equal(
        Rices(other, tmp_path).features(IMAGES[:1]), Rices(encoder, tmp_path).features(IMAGES[:1])
    )
    assert len(encoded) == 2 and len(list(tmp_path.iterdir())) == 2


def test_an_image_that_changed_is_encoded_again(encoder, encoded, tmp_path):
    file = tmp_path / "cat.png"
    search = Rices(encoder, tmp_path / "features")
    for number in (1, 1, 20):
        if number == 20 or not file.exists():
            PIL.Image.fromarray(tiny.image(number, size=16 * number)).save(file)
        search.features([Image(file)])
    assert len(encoded) == 2


def test_the_nearest_are_those_of_a_search_through_all():
    """On features with ties and rows of zeros: the cosine in float64, of equals the first."""
    rng = np.random.default_rng(0)
    supports, queries = (rng.integers(-3, 4, (size, 5)).astype(np.float32) for size in (60, 23))
    supports[7] = queries[3] = 0
    unit = lambda x: (
        x / np.maximum(np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True), 1e-30)
    )
    cosine = unit(queries) @ unit(supports).T
    for k in (1, 4, 60):
        found = nearest(queries, supports, k)
        assert found.shape == (23, k) and all(len(set(row)) == k for row in found.tolist())
        np.testing.assert_allclose(
            np.take_along_axis(cosine, found, axis=1), -np.sort(-cosine, axis=1)[:, :k], atol=1e-6
        )
        np.testing.assert_array_equal(nearest(queries, supports, k, chunk=8), found)
    np.testing.assert_array_equal(nearest(queries, np.ones((5, 5), np.float32), 5)[0], np.arange(5))
    assert nearest(queries[:0], supports, 3).shape == (0, 3)
    with pytest.raises(ValueError, match="got k=61 with 60 supports"):
        nearest(queries, supports, 61)


def test_an_image_is_most_like_itself(encoder):
    found = Rices(encoder)(IMAGES[2:4], IMAGES, 6)
    assert found[:, 0].tolist() == [2, 3]
    unit = functools.partial(np.linalg.norm, axis=1, keepdims=True)
    rows = encoder(IMAGES)
    rows = rows / unit(rows)
    np.testing.assert_array_equal(found[0], np.argsort(-(rows @ rows[2]), kind="stable"))
