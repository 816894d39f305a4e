"""configs/web.py with the model of tests/training/small.py, as a config file.

--config=tests/e2e/web.py:flamingo.
"""

from configs import web
from tests.training import small


def get_config(stage="flamingo"):
    """Returns the config of one stage."""
    config = small.narrow(web.get_config(stage))
    config.steps = 12
    config.model.lm.max_length = 256
    if stage == "flamingo":
        config.data.datasets.m3w.length = 64
    return config
