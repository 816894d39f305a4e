r"""Opens a page to try a model in a browser.

    python -m flamingo_jax.playground --checkpoint=runs/demo/flamingo [--port=7860] [--host=HOST]

It needs the extra `playground`. Only this machine reaches the page, unless --host says otherwise,
and no request leaves the machine.
"""

from __future__ import annotations

from absl import flags

from flamingo_jax import cli
from flamingo_jax.core.processes import Cluster
from flamingo_jax.inference.model import EXPECTED_ERRORS, Flamingo
from flamingo_jax.playground import page_server

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "An export, a WORKDIR, or WORKDIR/checkpoints/STEP."
)
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Where to listen; 0.0.0.0 lets all who reach this machine use the page."
)
_PORT = flags.DEFINE_integer("port", 7860, "The port; 0 takes a free one.", 0, 65535)


def main(_: list[str], cluster: Cluster) -> None:
    """Loads the model and serves its page."""
    page_server.check_package()
    at = page_server.listen(_HOST.value, _PORT.value)
    model = Flamingo.load(str(_CHECKPOINT.value))
    page_server.serve(model, at, _HOST.value, cluster.report)


if __name__ == "__main__":
    cli.run(main, required=["checkpoint"], expected=EXPECTED_ERRORS, keep_freed=True)
