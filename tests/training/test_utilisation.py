"""MFU of a report: of the updates since the last one, by what their batches really have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.data.schema import Batch
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from flamingo_jax.training import progress
from flamingo_jax.training.state import TrainState
from flamingo_jax.training.utilisation import BatchContent, Utilisation


def batch(segment, frame_mask):
    """A batch of which only the content matters."""
    segment, mask = np.asarray(segment, np.int32), np.asarray(frame_mask, bool)
    return Batch(*[segment] * 2, *[None] * 4, frame_mask=mask)


PAGES = batch([[1, 1, 2, 0], [1, 0, 0, 0]], [[True, False], [True, True], [False, False]])
TEXT = batch([[1, 1, 1], [1, 1, 0]], np.zeros((0, 1)))


MESH = make_mesh(MeshConfig(), jax.devices()[:1])
STATE, KEY = TrainState(jnp.zeros(()), {}, {}, ()), jax.random.key(0)


def step(state, batches, rng):
    return state, {}


def test_the_report_has_the_share_of_the_peak():
    seen, written = [], []

    def needed(contents):
        seen.append(contents)
        return 30.0 * sum(content.tokens for content in contents.values())

    rate = Utilisation(needed, peak=1_000.0, mesh=MESH)
    counted = rate.counted(step)
    log = rate.added(lambda step, numbers: written.append((step, numbers)))
    counted(STATE, {"pages": PAGES, "text": TEXT}, KEY)
    counted(STATE, {"text": TEXT}, KEY)
    log(2, {"loss": 1.5, "step_seconds": 0.5})
    counted(STATE, {"pages": PAGES}, KEY)
    log(3, {"step_seconds": 1.0})
    assert seen == [
        {"pages": BatchContent(2, 4, 2, 3), "text": BatchContent(2, 5, 0, 0)},
        {"text": BatchContent(2, 5, 0, 0)},
        {"pages": BatchContent(2, 4, 2, 3)},
    ]
    # (30 * 9 + 30 * 5) / 2 FLOPs in 0.5 s of 1000 per second; then 120 in a second
    assert written == [
        (2, {"loss": 1.5, "step_seconds": 0.5, "mfu": 0.42}),
        (3, {"step_seconds": 1.0, "mfu": 0.12}),
    ]


def test_measurements_have_no_mfu():
    written = []
    rate = Utilisation(lambda contents: 1.0, peak=1.0, mesh=MESH)
    rate.added(lambda step, numbers: written.append(numbers))(4, {"until/nll": 0.5})
    assert written == [{"until/nll": 0.5}]


@pytest.mark.parametrize(("more", "shown"), [({}, ""), ({"mfu": 0.4567}, ", MFU 0.46")])
def test_the_progress_shows_it_where_it_is_known(capsys, more, shown):
    bar = progress.Progress(steps=10, restored_step=0, title="tiny")
    bar.write(1, {"step_seconds": 0.02, **more})
    assert f"tiny:  10% 1/10, 20 ms/step{shown}, ETA 00:00" in capsys.readouterr().err
