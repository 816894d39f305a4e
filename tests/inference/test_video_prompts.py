"""Videos in prompts: the answer depends neither on other prompts nor on how the video is given."""

import dataclasses

import numpy as np
import pytest

from flamingo_jax.inference.prompt import PromptError, Video, parse
from flamingo_jax.inference.visuals import load_frames
from tests.data_pipelines.media import mp4
from tests.inference import tiny

CANDIDATES = ["red circle", "blue square", "big green square"]
# More places than the model has time embeddings (8), so that these are interpolated.
CONFIG = dataclasses.replace(tiny.CONFIG, video_frames=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.load(tmp_path_factory.getbasetemp(), config=CONFIG)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Three seconds, 3 frames per second: each frame is what the model sees."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    path.write_bytes(mp4([tiny.image(seed) for seed in range(9)], fps=3))
    return path


def scores(model, *prompts):
    """Of four prompts at a time: one shape, one program to compile."""
    four = [list(prompts[min(number, len(prompts) - 1)]) for number in range(4)]
    return np.array(model.score(four, CANDIDATES))[: len(prompts)]


def test_answers_do_not_depend_on_what_shares_the_batch(model, clip, tmp_path_factory):
    """A short video together with a longer one and an image, and each alone (float32: 1e-5)."""
    short, long, image = (
        [Video(clip, 0.0, 1.0), "this is a"],
        [Video(clip), "this is a"],
        [tiny.image(3), "this is a"],
    )
    mixed = [tiny.image(3), "red circle<EOC>", Video(clip, 1.0), "this is a"]
    prompts = (short, long, image, mixed)
    together = scores(model, *prompts)
    for prompt, expected in zip(prompts, together, strict=True):
        fresh = tiny.load(tmp_path_factory.getbasetemp(), config=CONFIG)  # has seen nothing yet
        np.testing.assert_allclose(scores(fresh, prompt)[0], expected, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3  # the segment matters


def test_a_file_and_its_frames_are_answered_alike(model, clip):
    frames = load_frames(Video(clip), tiny.IMAGE_SIZE)
    assert len(frames) == 9
    of_file, of_frames, backwards = scores(
        model, [Video(clip), "this is a"], [frames, "this is a"], [frames[::-1].copy(), "this is a"]
    )
    np.testing.assert_allclose(of_file, of_frames, atol=1e-5)
    assert np.abs(of_frames - backwards).max() > 1e-4  # by the time embeddings


def test_a_template_names_a_video(model, clip):
    np.testing.assert_array_equal(
        *scores(model, parse(f"{{{clip}}}this is a"), [Video(clip), "this is a"])
    )


def test_too_many_frames_are_refused(model):
    frames = np.stack([tiny.image(0)] * 11)
    with pytest.raises(PromptError, match="an array of 11 frames; expected at most 10"):
        model.score([frames, "this is a"], CANDIDATES)
