"""The four training sets of Flamingo, their weights and batch sizes (paper, 2.4, B.1.2, B.3.1).

This is a part of other configs, not an experiment.

The paper states lambda_m (1.0, 0.2, 0.2, 0.03), and batch sizes only for its ablations (256, 512,
512, 64). The batch sizes of its final runs are not stated; here they are `scale` times the
ablation's.
"""

from flamingo_jax.data.config import DatasetConfig

NAMES = ("m3w", "align", "ltip", "vtp")


def scale_and_directory(argument: str, scale: int) -> tuple[int, str]:
    """Returns the scale of the batches, and the directory, that the argument of a config states.

    Args:
        argument: DIRECTORY; or Nx or Nx,DIRECTORY for batches of N times the ablation's, as in
            "4x,/data". The directory is /data if it is left out.
        scale: that of an argument without Nx.
    """
    first, _, rest = argument.partition(",")
    number = first.removesuffix("x")
    if first.endswith("x") and number.isdecimal() and int(number):
        return int(number), rest or "/data"
    return scale, argument


def datasets(directory: str, *, scale: int) -> dict[str, DatasetConfig]:
    """Returns the mixture.

    Args:
        directory: has one directory of records for each dataset, as data_pipelines writes them.
        scale: batch sizes, as a multiple of the ablation's: 256 pages and 1,088 pairs.
    """
    return {
        "m3w": DatasetConfig(
            "interleaved",
            f"{directory}/m3w",
            batch_size=256 * scale,
            length=256,
            max_images=5,  # the first five of the window (arXiv version 1, 3.2)
            weight=1.0,
        ),
        # The paper has "L = 32 or L = 64" for pairs, and does not say which has which. 32 is enough
        # for the mean caption (12.4 and 20.5 tokens) with its tags.
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
