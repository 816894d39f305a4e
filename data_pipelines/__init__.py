"""Programs that convert raw data to the ArrayRecord datasets that training reads.

`python -m data_pipelines.run --pipeline=NAME --output=DIR`.
"""

from __future__ import annotations

import sys

if sys.argv[:1] == ["-m"]:  # Python's mark while it looks for the program here
    from flamingo_jax.core import exit_status

    exit_status.at_interrupt_end()
