"""Shows people how far a run is: a bar in a terminal, plain lines in a log file.

    small_flamingo:  50%|#####     | 3/6 [00:10, loss 1.2500, 20 ms/step, ETA 00:00]
    small_flamingo:  50% 3/6, loss 1.2500, 20 ms/step, ETA 00:00

MFU is shown where the peak of the devices is known: "20 ms/step, MFU 0.41".
A bar is drawn over again with carriage returns. Who follows a log file would not see a line.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import tqdm

from flamingo_jax.training.background import Numbers

EVERY_SECONDS = 20.0  # between two plain lines


class Progress:
    """Shows loss, time per update, MFU and the time that is left: `background.Sink`."""

    name = "The progress on the screen"
    num_unsafe = 0

    def __init__(self, steps: int, restored_step: int, title: str) -> None:
        """Draws the empty bar, in a terminal.

        Args:
            steps: updates of the run.
            restored_step: updates done before.
            title: in front of each line.
        """
        self._steps, self._title = steps, title
        self._shown_at: float | None = None
        self._kept = ""  # the last line, not shown yet
        self._bar = None
        if sys.stderr.isatty():
            form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            self._bar = tqdm.tqdm(
                total=steps,
                initial=restored_step,
                desc=title,
                bar_format=form,
                mininterval=0.5,
                dynamic_ncols=True,
            )

    def write(self, step: int, numbers: Numbers) -> None:
        """Shows a report; plain lines of losses appear every 20 s, the first and the last always.

        Measurements always have a line, on stdout.
        """
        if "step_seconds" not in numbers:
            scalars = {name: value for name, value in numbers.items() if np.ndim(value) == 0}
            shown = ", ".join(f"{name} {value:.4g}" for name, value in scalars.items())
            tqdm.tqdm.write(f"{self._title} step {step}: {shown}", file=sys.stdout)
            sys.stdout.flush()
            return
        shown = self._describe(step, numbers)
        if self._bar is not None:
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        done = 100 * step // max(self._steps, 1)
        self._kept = f"{self._title}: {done:3d}% {step}/{self._steps}, {shown}"
        now = time.monotonic()
        if self._shown_at is None or now - self._shown_at >= EVERY_SECONDS or step == self._steps:
            self._show()

    def sync(self, *, now: bool) -> None:
        """Does nothing: a line is shown when it is written."""

    def close(self) -> None:
        """Shows the last line, where it is not shown yet; leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()
        elif self._kept:
            self._show()

    def _show(self) -> None:
        self._shown_at = time.monotonic()
        print(self._kept, file=sys.stderr, flush=True)
        self._kept = ""

    def _describe(self, step: int, numbers: Numbers) -> str:
        # From the time per update alone: tqdm's own estimate includes compilation and probes.
        seconds = numbers["step_seconds"]
        left = tqdm.tqdm.format_interval((self._steps - step) * seconds)
        parts = [f"loss {numbers['loss']:.4f}"] if "loss" in numbers else []
        if numbers.get("skipped"):
            parts.append(f"{numbers['skipped']:.0f} updates skipped")
        parts.append(f"{1e3 * seconds:.0f} ms/step")
        if "mfu" in numbers:
            parts.append(f"MFU {numbers['mfu']:.2f}")
        return ", ".join([*parts, f"ETA {left}"])
