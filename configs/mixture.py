"""The four training sets of Flamingo with their weights and batch sizes (paper, 2.4, B.1.2, B.3.1).

Not an experiment by itself: other configs take it.

The paper gives lambda_m (1.0, 0.2, 0.2, 0.03) and the batch sizes of its ablations alone (256, 512,
512, 64); those of the final runs are not stated. Here they are `scale` times the ablation's.
"""

from flamingo_jax.data.config import DatasetConfig

NAMES = ("m3w", "align", "ltip", "vtp")


def datasets(directory: str, *, scale: int) -> dict[str, DatasetConfig]:
    """Returns the mixture.

    Args:
        directory: where the records are, one directory for each dataset, as data_pipelines writes
            them.
        scale: batch sizes in units of the ablation's; 1 is 256 pages and 1,088 pairs.
    """
    return {
        "m3w": DatasetConfig(
            "interleaved",
            f"{directory}/m3w",
            batch_size=256 * scale,
            length=256,
            max_images=5,  # the first five of the window, padded to five (v1, 3.2)
            weight=1.0,
        ),
        # "L = 32 or L = 64" for pairs, and which is which is not said: 32 holds the mean caption
        # (12.4 and 20.5 tokens) with its tags.
        "align": DatasetConfig(
            "pairs", f"{directory}/align", batch_size=512 * scale, length=32, weight=0.2
        ),
        "ltip": DatasetConfig(
            "pairs", f"{directory}/ltip", batch_size=512 * scale, length=32, weight=0.2
        ),
        "vtp": DatasetConfig(
            "pairs",
            f"{directory}/vtp",
            batch_size=64 * scale,
            length=32,
            num_frames=8,
            frame_rate=1.0,  # 8 frames at 1 fps (2.1)
            weight=0.03,
        ),
    }
