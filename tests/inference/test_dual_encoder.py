"""Embeddings of a contrastive model: the model's, for any batch, on any mesh, after an export."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.checkpoint.export import export
from flamingo_jax.core import trees
from flamingo_jax.core.config import from_dict, to_dict
from flamingo_jax.core.finite import NonFiniteError
from flamingo_jax.data.interleave import tokenise_text
from flamingo_jax.inference.dual_encoder import DualEncoder
from flamingo_jax.inference.model import CheckpointError, InferenceConfig, PromptError
from flamingo_jax.models.contrastive import Contrastive
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.run import build_objective
from tests.inference import tiny
from tests.training import small

TEXTS = ("a big red circle", "this is a small blue square", "a big red circle")
CONFIG = InferenceConfig(images_per_pass=4, video_frames=3)
LENGTH = 8


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny.tokenizer(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def config(tokenizer):
    config = small.get_config("contrastive")
    config.model.text_encoder.max_length = LENGTH
    config.data.datasets.captions.length = LENGTH
    return from_dict(TrainConfig, config).resolved(tokenizer.vocab_size)


@pytest.fixture(scope="module")
def model(config):
    return config.model


@pytest.fixture(scope="module")
def params(config):
    """Random weights, drawn by numpy: nothing is compiled for them."""
    shapes = jax.eval_shape(build_objective(config, 1).model.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes
    )


@pytest.fixture(scope="module")
def encoder(model, params, tokenizer):
    return DualEncoder(
        model, params, tokenizer, preprocessing={"image_size": tiny.IMAGE_SIZE}, config=CONFIG
    )


def test_it_is_the_model_that_is_trained(model, params, tokenizer, encoder):
    """Tolerance 1e-5: the same sums in another order."""
    frames = np.stack([tiny.image(seed) for seed in range(len(TEXTS))])
    rows = [tokenise_text(text, tokenizer) for text in TEXTS]
    tokens = np.stack(
        [np.pad(row, (0, LENGTH - len(row)), constant_values=tokenizer.pad_id) for row in rows]
    )
    segment = np.stack([(np.arange(LENGTH) < len(row)).astype(np.int32) for row in rows])
    parts = model.vision, model.text_encoder, model.contrastive
    network = hk.without_apply_rng(hk.transform(lambda *batch: Contrastive(*parts)(*batch)))
    v, t, beta = jax.jit(network.apply)(params, frames[:, None], tokens, segment)
    np.testing.assert_allclose(encoder.images(list(frames)), v, atol=1e-5)
    np.testing.assert_allclose(encoder.texts(TEXTS), t, atol=1e-5)
    np.testing.assert_allclose(encoder.inverse_temperature, beta, rtol=1e-6)


def test_a_video_is_the_mean_of_its_frames(encoder):
    frames = np.stack([tiny.image(seed) for seed in range(2)])
    (video,) = encoder.images([frames])
    mean = encoder.images(list(frames)).mean(axis=0)
    np.testing.assert_allclose(video, mean / np.linalg.norm(mean), atol=1e-5)


def test_an_embedding_depends_on_nothing_but_itself(encoder):
    """Equal texts have equal embeddings, and other texts and images of a pass change nothing."""
    many = [
        f"a {size} {colour} circle"
        for size in ("big", "small")
        for colour in ("red", "green", "blue")
    ]
    found = encoder.texts([*many, many[0]])
    np.testing.assert_array_equal(found[0], found[-1])
    np.testing.assert_allclose(found[2], encoder.texts(many[2:3])[0], atol=1e-6)
    images = [tiny.image(seed) for seed in range(6)]
    np.testing.assert_allclose(encoder.images(images)[4], encoder.images(images[4:5])[0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_a_text_that_is_too_long_keeps_its_end(encoder):
    """Six words fit, with <BOS> and <EOS>; what follows is not read."""
    words = "a big red circle and a small blue square".split()
    found = encoder.texts([" ".join(words), " ".join(words[:6]), " ".join(words[:5])])
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 1e-3


def test_eight_devices_give_what_one_gives(model, params, tokenizer, encoder):
    mesh = make_mesh(MeshConfig(data=4, model=2))
    placed = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    settings = {"preprocessing": {"image_size": tiny.IMAGE_SIZE}, "config": CONFIG}
    spread = DualEncoder(model, placed, tokenizer, mesh=mesh, **settings)
    images = [tiny.image(seed) for seed in range(3)]
    np.testing.assert_allclose(spread.images(images), encoder.images(images), atol=1e-5)
    np.testing.assert_allclose(spread.texts(TEXTS), encoder.texts(TEXTS), atol=1e-5)


def test_through_an_export_and_a_directory_of_features(model, params, tokenizer, encoder, tmp_path):
    tokenizer.save(tmp_path)
    about = {"config": to_dict(model), "tokenizer": tmp_path / "tokenizer.model", "step": 5}
    export(
        tmp_path / "export",
        params,
        kind="contrastive",
        preprocessing={"image_size": tiny.IMAGE_SIZE},
        **about,
    )
    loaded = DualEncoder.load(tmp_path / "export", config=CONFIG, features=tmp_path / "features")
    assert (loaded.step, loaded.checkpoint) == (5, str(tmp_path / "export"))
    images = [tiny.image(seed) for seed in range(3)]
    np.testing.assert_array_equal(loaded.images(images), encoder.images(images))
    np.testing.assert_array_equal(loaded.texts(TEXTS), encoder.texts(TEXTS))
    assert list((tmp_path / "features").rglob("embeddings.npy"))
    with pytest.raises(PromptError, match="cannot be read as an image"):
        loaded.images([b"no image"])


def test_another_model_is_refused(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    _, weights = tiny.parts(tokenizer.vocab_size, "language_model")
    about = {
        "config": {},
        "tokenizer": tmp_path / "tokenizer.model",
        "preprocessing": {},
        "step": 0,
    }
    export(tmp_path / "export", weights, kind="language_model", **about)
    with pytest.raises(
        CheckpointError,
        match="is a language_model model, and has not both .* give one of the contrastive",
    ):
        DualEncoder.load(tmp_path / "export")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("tower", ["text", "vision"])
def test_a_broken_tower_gives_an_error_that_names_it(model, params, tokenizer, tower, bad):
    """Embeddings of NaN would find every image and every class."""
    flat = trees.flatten(params)
    (name,) = (path for path in flat if f"{tower}_projection" in path and path.endswith("w"))
    weight = np.array(flat[name])
    weight[0, 0] = bad
    encoder = DualEncoder(
        model,
        trees.unflatten({**flat, name: jnp.asarray(weight)}),
        tokenizer,
        preprocessing={"image_size": tiny.IMAGE_SIZE},
        config=CONFIG,
        checkpoint="runs/x",
    )
    images, texts = lambda: encoder.images([tiny.image(0)]), lambda: encoder.texts(TEXTS)
    broken, whole = (texts, images) if tower == "text" else (images, texts)
    assert np.isfinite(whole()).all()
    with pytest.raises(NonFiniteError, match=f"of the model runs/x are not finite: .* {name}\\."):
        broken()
    with pytest.raises(NonFiniteError, match=name):
        encoder.check_weights()
