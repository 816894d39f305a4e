"""What the programs share in reading their command line."""

from __future__ import annotations

import sys

from absl import app


def parse(argv: list[str]) -> list[str]:
    """Parses the flags, for `app.run(main, flags_parser=parse)`; returns what is left.

    Raises:
        SystemExit: for a field that the config does not have: one message, with the nearest name.
    """
    try:
        return app.parse_flags_with_usage(argv)
    except AttributeError as error:  # of ml_collections, around its own KeyError
        cause = error.args[0]
        sys.exit(f"Unknown field in --config: {cause.args[0] if isinstance(cause, Exception) else cause}")
