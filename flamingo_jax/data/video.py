"""From the frames of a video to the few that the model sees: a clip of 8 frames at 1 per second in training (A.3.3).

    stored, 4 per second   0 1 2 3 4 5 6 7 8 9 . . .
    seen, 1 per second     |       |       |             F of them, from a random start (training) or the first frame

The paper does not say what becomes of a video shorter than the clip: here the clip ends early, and frame_mask says so. A
still image is a video of one frame. At evaluation the paper asks for 30 frames at 3 per second, with the learnt time
embeddings interpolated: that is another `num_frames` and `rate`.
"""

import numpy as np
from jaxtyping import Int


def choose_frames(
    num_stored: int, fps: float, *, num_frames: int, rate: float = 1.0, rng: np.random.Generator | None = None
) -> Int[np.ndarray, "F"]:
    """Chooses which stored frames make a clip.

    Args:
        num_stored: frames that are stored, at least 1.
        fps: how many of them make a second.
        num_frames: F, the most frames to choose.
        rate: chosen frames per second. A video stored at a lower rate than this yields each of its frames once.
        rng: draws where the clip starts; None = at the first frame.

    Returns:
        int[f] indices of stored frames, 1 <= f <= num_frames, ascending.

    Raises:
        ValueError: there is no frame, or a rate is not positive.
    """
    if num_stored < 1 or num_frames < 1 or not (0 < fps < float("inf")) or rate <= 0:
        raise ValueError(
            f"Cannot choose {num_frames} frames at {rate} per second out of {num_stored} frames at {fps} per second: "
            "all four must be positive."
        )
    step = max(fps / rate, 1.0)  # stored frames between two chosen ones
    span = int((num_frames - 1) * step)  # stored frames from the first to the last chosen one
    start = 0 if rng is None else int(rng.integers(max(num_stored - span, 1)))
    indices = start + (np.arange(num_frames) * step).astype(np.int64)
    return indices[indices < num_stored]
