"""The clip of a video: at most F frames, at the asked rate, from a start that fits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data.video import choose_frames


def test_one_per_second_from_the_first():
    np.testing.assert_array_equal(choose_frames(40, 4.0, num_frames=8), np.arange(8) * 4)
    np.testing.assert_array_equal(choose_frames(100, 24.0, num_frames=30, rate=3.0)[:3], [0, 8, 16])
    np.testing.assert_array_equal(choose_frames(12, 2.5, num_frames=4), [0, 2, 5, 7])


def test_short_videos_end_early():
    np.testing.assert_array_equal(choose_frames(3, 1.0, num_frames=8), [0, 1, 2])
    np.testing.assert_array_equal(choose_frames(1, 30.0, num_frames=8), [0])
    np.testing.assert_array_equal(choose_frames(3, 0.5, num_frames=8), [0, 1, 2])  # stored slower than asked


@given(num=st.integers(1, 60), fps=st.floats(0.2, 30), num_frames=st.integers(1, 9), seed=st.integers(0, 99))
def test_random_clips_are_as_long_as_the_first(num, fps, num_frames, seed):
    first = choose_frames(num, fps, num_frames=num_frames)
    drawn = choose_frames(num, fps, num_frames=num_frames, rng=np.random.default_rng(seed))
    np.testing.assert_array_equal(drawn - drawn[0], first)
    assert drawn[-1] < num


def test_every_start_occurs():
    starts = {choose_frames(5, 1.0, num_frames=3, rng=np.random.default_rng(seed))[0] for seed in range(40)}
    assert starts == {0, 1, 2}


@pytest.mark.parametrize("options", [{"num_stored": 0, "fps": 1.0}, {"num_stored": 3, "fps": 0.0}])
def test_nonsense_is_refused(options):
    with pytest.raises(ValueError, match="Cannot choose 2 frames"):
        choose_frames(**options, num_frames=2)
