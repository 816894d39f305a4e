"""Logs: means, the stop at a number that is not finite, and files after a restart."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core.finite import NonFiniteError
from flamingo_jax.core.paths import Path
from flamingo_jax.training import logs
from flamingo_jax.training.logs import (
    Meter,
    jsonl_log,
    progress_log,
    tensorboard_log,
)


def numbers(loss, pages=None, norm=1.0):
    return {
        "loss": jnp.float32(loss),
        "pages/loss": jnp.float32(loss if pages is None else pages),
        "gradient_norm": jnp.float32(norm),
    }


def test_report_is_the_mean_since_the_last_report():
    meter = Meter()
    meter.add(1, {**numbers(1.0), "gates/dense": jnp.array([0.0, 1.0])})
    meter.add(2, {**numbers(3.0), "gates/dense": jnp.array([1.0, 1.0])})
    report = meter.report()
    assert report["loss"] == 2.0
    assert report["gates/dense"] == [0.5, 1.0]
    assert report["step_seconds"] >= 0
    meter.add(3, numbers(7.0))
    assert meter.report()["loss"] == 7.0


def test_round_robin_reports_each_dataset_by_its_own_updates():
    meter = Meter()
    meter.add(1, {**numbers(1.0)})
    three, one = jnp.float32(3.0), jnp.float32(1.0)
    meter.add(2, {"loss": three, "pairs/loss": three, "gradient_norm": one})
    report = meter.report()
    assert (report["pages/loss"], report["pairs/loss"], report["loss"]) == (1.0, 3.0, 2.0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (numbers(np.nan), r"step 6, dataset pages: .*pages/loss = nan.*batch 5"),
        (numbers(np.inf), r"step 6, dataset pages"),
        (numbers(1.0, norm=np.nan), r"step 6, the gradient of pages: gradient_norm = nan"),
    ],
)
def test_not_finite_stops_at_the_first_such_step(bad, message):
    meter = Meter()
    meter.add(5, numbers(1.0))
    meter.add(6, bad)
    meter.add(7, numbers(np.nan))
    with pytest.raises(NonFiniteError, match=message):
        meter.report()


def test_resume_drops_lines_beyond_the_restored_step(tmp_path):
    path = Path(tmp_path) / "metrics.jsonl"
    log = jsonl_log(path, restored_step=0)
    for step in (2, 4, 6):
        log(step, {"loss": float(step), "gates/dense": [0.0, 0.5]})
    log = jsonl_log(path, restored_step=4)
    assert [row["step"] for row in logs.read(path)] == [2, 4]
    log(6, {"loss": 60.0})
    assert logs.read(path)[1:] == [
        {"step": 4, "loss": 4.0, "gates/dense": [0.0, 0.5]},
        {"step": 6, "loss": 60.0},
    ]


def test_file_is_plain_json(tmp_path):
    path = Path(tmp_path) / "metrics.jsonl"
    jsonl_log(path, 0)(1, {"nll": float("nan")})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"step": 1, "nll": None}


def test_tensorboard_has_a_curve_per_layer(tmp_path):
    with tensorboard_log(Path(tmp_path), restored_step=0) as log:
        log(3, {"loss": 1.5, "gates/dense": [0.25, 0.75]})
    events = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert all(name in events for name in (b"loss", b"gates/dense/0", b"gates/dense/1"))


def test_progress_bar_shows_loss_and_step_time(capsys):
    with progress_log(steps=10, restored_step=4, title="tiny") as log:
        log(8, {"loss": 1.25, "step_seconds": 0.02})
        log(8, {"until/nll": 0.5})
    shown = capsys.readouterr()
    assert "8/10" in shown.err
    assert "loss 1.2500, 20 ms/step" in shown.err
    assert "tiny step 8: until/nll 0.5" in shown.out


def test_a_log_with_a_broken_line_does_not_stop_a_run(tmp_path):
    """After a crash of the machine a file may end early, or have zeros."""
    path = Path(tmp_path / "metrics.jsonl")
    path.write_text('{"step": 1, "loss": 2.0}\n\0\0\0\n[3]\n{"step": 2, "lo')
    jsonl_log(path, restored_step=2)(3, {"loss": 1.0})
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n{"step": 3, "loss": 1.0}\n'
