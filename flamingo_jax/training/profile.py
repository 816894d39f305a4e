"""Traces some updates for XProf and TensorBoard: `config.hooks.profile`.

    update first ... update last --trace--> WORKDIR/profile/plugins/profile/TIME/HOST.xplane.pb

    xprof --logdir=WORKDIR/profile          or TensorBoard with its profile plugin

The trace has what the devices and the host do, and names each update. Only the first process
writes one: the processes of a run do the same, and their devices wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from flamingo_jax.checkpoint.arrays import first_line
from flamingo_jax.core import paths
from flamingo_jax.core.notation import Array
from flamingo_jax.training.callbacks import Moment
from flamingo_jax.training.objective import Metrics
from flamingo_jax.training.state import TrainState
from flamingo_jax.training.step import Step


class Profile:
    """The trace of the updates first, ..., last. Close it.

    `end` comes before all other hooks of the loop and `begin` after them, so that saving and
    evaluating are not in the trace.
    """

    def __init__(
        self,
        updates: tuple[int, ...],
        directory: paths.Path,
        start: int,
        report: Callable[[str], None],
    ) -> None:
        """Stores the arguments.

        Args:
            updates: (first, last), numbered from 1; () traces nothing.
            directory: receives the trace.
            start: updates done before. A run that goes on after `first` traces the rest.
            report: receives a line about the trace. Where it cannot be written, training goes on.
        """
        is_wanted = bool(updates) and jax.process_index() == 0
        self._first, self._last = updates if is_wanted else (0, 0)
        self._directory, self._report = directory, report
        self._update, self._begun = start, 0
        self._local: paths.Path | None = None  # where the trace is written, while it runs

    def named(self, step: Step) -> Step:
        """Returns the step that has its number in the trace, as update 1, 2, ..."""
        if not self._last:
            return step

        def call(
            state: TrainState[Array], batches: Mapping[str, Any], rng: jax.Array
        ) -> tuple[TrainState[Array], Metrics]:
            self._update += 1
            with jax.profiler.StepTraceAnnotation("update", step_num=self._update):
                return step(state, batches, rng)

        return call

    def begin(self, moment: Moment) -> None:
        """Starts the trace before its first update: a hook."""
        if not self._first - 1 <= moment.step < self._last or self._begun or moment.is_last:
            return
        jax.block_until_ready(moment.state)
        self._begun = moment.step + 1
        try:
            self._local = paths.made_temporary_directory("profile-")
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # calls of Python would fill the trace, and slow it
            jax.profiler.start_trace(str(self._local), profiler_options=options)
        except Exception as error:  # noqa: BLE001 - a profiler is no reason to end a run
            self._local = None
            self._report(f"No trace of updates is written: {first_line(error)}")

    def end(self, moment: Moment) -> None:
        """Writes the trace after its last update, or that of the run: a hook."""
        if self._local is not None and (moment.step >= self._last or moment.is_last):
            jax.block_until_ready(moment.state)
            self._write()

    def close(self) -> None:
        """Writes the trace of a run that ends early."""
        if self._local is not None:
            self._write()

    def _write(self) -> None:
        local, self._local = self._local, None
        assert local is not None
        try:
            jax.profiler.stop_trace()
            made = local / "plugins" / "profile"  # of jax.profiler, in which TensorBoard looks
            for folder in made.iterdir():
                target = paths.make_directory(self._directory / "plugins" / "profile" / folder.name)
                for file in folder.iterdir():
                    file.copy(target / file.name, overwrite=True)
        except Exception as error:  # noqa: BLE001
            self._report(f"The trace of updates is not written: {first_line(error)}")
        else:
            self._report(
                f"Updates {self._begun} to {self._update} are traced in {self._directory}."
            )
        finally:
            local.rmtree(missing_ok=True)
