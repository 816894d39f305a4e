"""The meter: means, what is not finite, and what is skipped."""

import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core.finite import NonFiniteError
from flamingo_jax.training.meter import Meter
from flamingo_jax.training.not_finite import Origin, Skipped, stop_at_once


def numbers(loss, pages=None, norm=1.0):
    return {
        "loss": jnp.float32(loss),
        "pages/loss": jnp.float32(loss if pages is None else pages),
        "gradient_norm": jnp.float32(norm),
    }


def skipping(loss, norm=1.0):
    good = np.isfinite(loss) and np.isfinite(norm)
    return {**numbers(loss, norm=norm), "skipped": jnp.float32(not good)}


ORIGIN = Origin(lambda step, names: dict.fromkeys(names, step - 1), lambda name, t: "records 3, 9")


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
        (numbers(np.nan), r"step 6, dataset pages: .*pages/loss = nan"),
        (numbers(np.inf), r"step 6, dataset pages"),
        (numbers(1.0, norm=np.nan), r"step 6, the gradient of pages: gradient_norm = nan"),
    ],
)
def test_not_finite_stops_at_the_first_such_step_and_names_its_records(bad, message):
    meter = Meter(stop_at_once(ORIGIN))
    meter.add(5, numbers(1.0))
    meter.add(6, bad)
    meter.add(7, numbers(np.nan))
    with pytest.raises(NonFiniteError, match=message) as caught:
        meter.report()
    text = str(caught.value)
    assert "Batch 5 of pages: records 3, 9." in text
    assert "--config.resume.skip_batches=pages:5:6" in text and "\n" not in text


def test_skipped_updates_are_counted_named_and_in_no_mean():
    lines = []
    meter = Meter(Skipped(ORIGIN, lines.append, before=4, most_in_a_row=3))
    for step, metrics in enumerate(
        [skipping(1.0), skipping(np.nan), skipping(2.0, norm=np.inf), skipping(3.0)], 1
    ):
        meter.add(step, metrics)
    report = meter.report()
    assert (report["skipped"], report["loss"]) == (2.0, 2.0)
    assert [line.partition(":")[0] for line in lines] == [
        "Skipped the update of step 2, dataset pages",
        "Skipped the update of step 3, the gradient of pages",
    ]
    assert "Batch 2 of pages: records 3, 9." in lines[1] and "6 updates were skipped" in lines[1]
    meter.add(5, skipping(np.nan))
    assert set(meter.report()) == {"skipped", "step_seconds"}


def test_too_many_skipped_updates_in_a_row_end_the_run_also_over_two_reports():
    meter = Meter(Skipped(ORIGIN, lambda line: None, before=0, most_in_a_row=3))
    for step, loss in enumerate([np.nan, np.nan, 1.0, np.nan, np.nan], 1):
        meter.add(step, skipping(loss))
    assert meter.report()["skipped"] == 4
    meter.add(6, skipping(np.nan))
    with pytest.raises(NonFiniteError, match="3 updates in a row .* step 6, dataset pages"):
        meter.report()


def test_a_run_that_skips_may_go_on_from_updates_of_one_that_does_not_and_back():
    one, three = np.array(1.0), np.array(3.0)
    rows = [(1, {"loss": one}), (2, {"loss": three, "skipped": one})]
    for unreported in (rows, rows[::-1]):
        report = Meter(lambda step, row: "skipped" not in row, unreported).report()
        assert (report["loss"], report["skipped"]) == (1.0, 1.0)
