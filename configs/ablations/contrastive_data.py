r"""How ALIGN and LTIP share the contrastive stage (paper, B.3.2, Table 11).

NFNet-F0 against BERT-mini, batches of 2,048, a million gradients.

    COMMAND
        python -m flamingo_jax.train --workdir=DIR \
            --config=configs/ablations/contrastive_data.py:accumulation
    EXPECTED
        Table 11 of the paper, zero-shot. Its data are private; we have run no row.

                         ImageNet    COCO image to text    COCO text to image
        row                 top 1     R@1   R@5  R@10       R@1   R@5  R@10
        ltip                 40.8    38.6  66.4  76.4      31.1  57.4  68.4
        align                35.2    32.2  58.9  70.6      23.7  47.7  59.4
        accumulation         45.6    42.3  68.3  78.4      31.5  58.3  69.0
        merged               38.6    36.9  65.8  76.5      15.2  40.8  55.7
        round_robin          41.2    40.1  66.7  77.6      29.2  55.1  66.6

The argument is the row, or ROW,DIRECTORY with the directory of the tokenizer and of the records.
The paper says no more, so everything else is as in configs/contrastive_f6.py: 288 pixels, the
learning rate. The paper does not say if its merged batches have 2,048 rows in all; here they have.
"""

from ml_collections import config_dict

from configs import contrastive_f6
from flamingo_jax.core.config import editable
from flamingo_jax.data.config import DatasetConfig
from flamingo_jax.models import sizes

GRADIENTS = 1_000_000
BATCH = 2_048
BOTH = ("align", "ltip")

# {row: (datasets, mixing, gradients per update, rows of each dataset per gradient)}
ROWS = {
    "ltip": (("ltip",), "accumulate", 1, BATCH),
    "align": (("align",), "accumulate", 1, BATCH),
    "accumulation": (BOTH, "accumulate", 2, BATCH),  # 500,000 updates
    "merged": (BOTH, "merged", 1, BATCH // 2),
    "round_robin": (BOTH, "round_robin", 1, BATCH),
}


def get_config(argument: str = "accumulation") -> config_dict.ConfigDict:
    """Returns the config of one row.

    Args:
        argument: ROW or ROW,DIRECTORY.

    Raises:
        ValueError: if the table has no such row.
    """
    row, _, data = argument.partition(",")
    if row not in ROWS:
        raise ValueError(f"Table 11 has no row {row!r}; expected one of {sorted(ROWS)}.")
    names, mixing, gradients, rows = ROWS[row]
    config = contrastive_f6.get_config(data or "/data")
    config.name = f"contrastive_{row}"
    config.steps = GRADIENTS // gradients
    config.mixing = mixing
    config.model.vision = editable(sizes.NFNETS["F0"])
    config.model.text_encoder = editable(sizes.PARTS).text_encoder  # BERT-mini
    directory = data or "/data"
    config.data.datasets = editable(
        {
            name: DatasetConfig("captions", f"{directory}/{name}", batch_size=rows, length=32)
            for name in names
        }
    )
    config.mesh.update(replica=1, data=-1)  # the paper does not state the number of chips
    return config
