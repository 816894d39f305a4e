"""Ends a process that cannot or shall not go on: `Guard`.

    asked to end     SIGTERM, SIGINT, or a notice of jax's preemption service, in any process
    another failed   it has said why in the key-value store of jax.distributed
    another is lost  it gives no sign of life: killed, stopped, or its machine is gone
    stuck            a phase of this process takes longer than its limit (`core.phases`)

All of this is seen by threads, so also while the main thread compiles, waits for the devices, or
waits for the others to save. A thread then prints one line and ends the process with a status of
`core.exit_status`, without the shutdown of JAX and of other threads, which would wait.

Only a run with updates that are not saved ends through its main thread: `should_end` returns True
in all processes after the same update. To agree on it costs nothing before a signal comes. Then
each process writes how often it has called `should_end`, and waits in its next call until all have
written; the run ends at the first call that none of them has done.

So a run that is asked to end does so within about 2 seconds to agree, what is left of an update (of
a compilation, or of one task of an evaluation), and one save. Without updates to save it ends at
once. A second signal ends it at once, unsaved, in any case.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import NoReturn

from jax.experimental import multihost_utils

from flamingo_jax.core import exit_status, peers, preemption
from flamingo_jax.core.peers import Peers
from flamingo_jax.core.phases import Activity, AwakeClock, Phase, Watchdog

# A process that gives no sign of life for so long is lost. Python threads give it, so it must be
# longer than any library keeps all threads from running.
LOST_SECONDS = 80.0
_LINGER_SECONDS = 5.0  # process 0 keeps the store open until the others have read why it ends
_TELL_SECONDS = 2.0
_MOST_NAMED = 4  # processes in a message
_LONG = 300.0  # seconds; what may take longer is mentioned now and then
_NOTHING = "no update was done, so there is nothing to save"
_GOES_ON = "The same command goes on from the newest checkpoint"


class Guard:
    """Watches over this process, as a context. Its methods are for the main thread."""

    def __init__(self, others: Peers | None, *, saves: bool) -> None:
        """Starts nothing.

        Args:
            others: the other processes; None without any.
            saves: whether the program calls `should_end`. If not, a signal ends it at once, and a
                single process keeps the handlers of Python.
        """
        self._peers, self._saves = others, saves
        self._clock = AwakeClock()
        self._watchdog = Watchdog(self._clock)
        self._stack = contextlib.ExitStack()
        self._stop, self._threads = threading.Event(), list[threading.Thread]()
        self._leaving = threading.Lock()
        self._answered = 0.0  # seconds of the clock when the store last answered
        self._beat = 0  # signs of life that this process gave
        self._alive: dict[int, tuple[int, str, Activity]] = {}
        self._seen: dict[int, tuple[int, float]] = {}  # beat, and when it was new
        self._warned = 0.0
        self._signals, self._store_is_gone = 0, False
        # What the gate guards: nobody passes a point while the processes agree.
        self._gate = threading.Lock()
        self._unsaved, self._asked, self._point = False, "", 0
        self._goal: int | None = None
        self._saved = _NOTHING

    def __enter__(self) -> Guard:
        if self._saves or self._peers:
            self._stack.enter_context(preemption.receiving(self._on_signal))
        threads = [self._look] if self._saves or self._peers else []
        if self._peers:
            threads += [self._exchange]
            if self._peers.index > 0:
                threads += [self._listen]
                self._stack.enter_context(preemption.before_abort(self._on_abort))
        for run in threads:
            thread = threading.Thread(target=run, name=f"guard{run.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._stack.close()
        if self._peers:
            with contextlib.suppress(peers.LOST):
                self._peers.stop_waiting()
        # A thread that is in a call of the store would end the interpreter with an abort.
        for thread in self._threads:
            thread.join(_TELL_SECONDS)

    def watch(self, stuck_seconds: float) -> None:
        """Ends the process when the run that starts now is stuck; 0: never. See `core.phases`."""
        with self._gate:
            self._unsaved, self._saved = False, _NOTHING
        self._watchdog.watch(stuck_seconds)

    def at(self, phase: Phase, step: int | None = None) -> None:
        """Says what the main thread does from now on, after `step` updates; None: as before."""
        self._watchdog.at(phase, step)

    def should_end(self) -> bool:
        """Returns True if the run shall save its state and end; in all processes alike.

        All processes call it equally often, after each update.
        """
        with self._gate:
            self._unsaved = True
            self._point += 1
            if self._peers is None:
                return bool(self._asked)
            if self._goal is not None and self._point >= self._goal:
                return True
        # A notice that the platform gives to JAX and not as a signal to this program.
        if multihost_utils.reached_preemption_sync_point(self._point):
            self._asked = self._asked or "a maintenance notice"
            return True
        return False

    def go_on(self) -> None:
        """Is called now and then in what takes long between two updates, such as an evaluation.

        Raises:
            GivenUp: in all processes alike, if the run shall end.
        """
        if self.should_end():
            raise preemption.GivenUp

    def is_saved(self, what: str) -> None:
        """Says that all updates are saved; a process that was asked to end does so here.

        Args:
            what: what is saved, such as "step 100, the last one, is saved".
        """
        with self._gate:
            self._unsaved, self._saved = False, what
            asked = self._asked
        if asked:
            self._end_at_once(asked)

    def ended_as_asked(self, step: int) -> preemption.EndedAsAsked:
        """Returns the exception to raise when `should_end` was True and `step` is saved."""
        return preemption.EndedAsAsked(
            f"Asked to end by {self._asked or 'a signal'}: saved step {step}; the same command "
            "goes on."
        )

    def leave(self, status: int, text: str, *, how: str, why: str) -> NoReturn:
        """Ends this process: prints, tells the others, and waits for no thread.

        Args:
            status: of `core.exit_status`.
            text: lines for people.
            how: for the others, see `peers.Left`.
            why: one line for the others.
        """
        if not self._leaving.acquire(blocking=False):  # another thread is faster
            while True:
                time.sleep(1)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        self._say(text)
        if self._peers and not self._store_is_gone:
            teller = threading.Thread(target=self._tell, args=(how, why), daemon=True)
            teller.start()
            teller.join(_TELL_SECONDS + (_LINGER_SECONDS if self._peers.index == 0 else 0))
        os._exit(status)

    def wait_for_a_reason(self) -> str:
        """Waits until it is clear whether another process failed before this one.

        If another one has said why it failed, this process ends here.

        Returns:
            Which processes give no sign of life; "" if all do.
        """
        if self._peers is None:
            return ""
        try:
            before = {index: beat for index, (beat, *_) in self._peers.alive().items()}
            time.sleep(3 * self._period() + 2)
            after = self._peers.alive()
            left = self._peers.news().left
        except peers.LOST:
            return self._name(0)
        silent = [
            peers.name(index, host)
            for index, (beat, host, _) in after.items()
            if beat == before.get(index) and index not in left and index != self._peers.index
        ]
        return ", ".join(silent)

    # Threads.

    def _on_signal(self, number: signal.Signals) -> None:
        self._signals += 1
        if self._signals > 1:
            with contextlib.suppress(OSError, ValueError):
                self._say(f"A second signal, {number.name}: ends at once, nothing is saved.")
            os._exit(exit_status.of_signal(number))
        # A second signal must find this thread free.
        threading.Thread(target=self._ask, args=(number,), daemon=True).start()

    def _ask(self, number: signal.Signals) -> None:
        name = number.name
        if not self._saves:
            self.leave(
                exit_status.of_signal(number),
                "Interrupted." if number == signal.SIGINT else "Terminated.",
                how=peers.FAILED,
                why=f"{name} ended it",
            )
        with self._gate:
            self._asked = self._asked or name
            if not self._unsaved:
                self._end_at_once(name)
        self._say(
            f"{name}: saves its state after this update, and ends. A second signal ends it at once."
        )
        if self._peers:
            with contextlib.suppress(peers.LOST):
                self._peers.ask_to_end(name)

    def _end_at_once(self, name: str) -> NoReturn:
        self.leave(
            exit_status.ENDED_AS_ASKED,
            f"Asked to end by {name}: {self._saved}; the same command goes on.",
            how=peers.AT_ONCE,
            why=f"{name}: {self._saved}",
        )

    def _look(self) -> None:
        while not self._stop.wait(1.0):
            now, here = self._clock.tick(), self._watchdog.activity()
            if self._peers and now - self._answered > LOST_SECONDS:
                self._end_without(
                    f"{self._name(0)} does not answer for {LOST_SECONDS:.0f} s: it is stopped, or "
                    "the network is interrupted"
                )
            if here.is_late and not self._must_wait(here):
                self._end_stuck(here)
            self._remind(here)

    def _remind(self, here: Activity) -> None:
        """Says after 2, 4, 8, ... minutes that a long phase still goes on."""
        if not _LONG < here.limit < math.inf or here.seconds < 60:
            self._warned = 60.0
        elif here.seconds > 2 * self._warned:
            self._warned *= 2
            self._say(f"still {here.words()} (of at most {here.limit:.0f} s)")

    def _exchange(self) -> None:
        self._answered = self._clock.seconds
        while not self._stop.wait(self._period() if self._beat else 0):
            news = self._exchange_once()
            if news and news.asked and self._goal is None:
                self._agree(news.asked)

    def _exchange_once(self) -> peers.News | None:
        """Gives a sign of life, reads the news, and ends this process if another one has ended.

        Returns:
            The news; None if the store does not answer (`_look` counts the time).
        """
        assert self._peers
        self._beat += 1
        try:
            here = self._watchdog.activity()
            self._peers.say_alive(self._beat, here)
            # process 0 watches all, the others want names and what a late one waits for
            if self._peers.index == 0 or self._beat % 10 == 2 or here.seconds > here.limit / 4:
                self._alive = self._peers.alive()
            news = self._peers.news()
        except peers.LOST:
            return None
        self._answered = self._clock.seconds
        self._follow(news)
        if self._peers.index == 0:
            self._look_for_lost(news)
        return news

    def _listen(self) -> None:
        """Ends this process when process 0 is killed. XLA wants to abort it at the same moment."""
        assert self._peers
        self._peers.wait_for_end_of_store()
        if not self._stop.is_set():
            self._on_abort()

    def _on_abort(self) -> None:
        """Ends this process with a line if process 0 is gone; else the process aborts."""
        assert self._peers
        if not self._peers.first_answers():
            self._store_is_gone = True
            self._end_without(f"{self._name(0)} is gone: the connection to it is lost")

    def _follow(self, news: peers.News) -> None:
        """Ends this process if another one has ended alone."""
        assert self._peers
        for left in news.left.values():
            if left.process == self._peers.index or left.how == peers.TOGETHER:
                continue
            who = peers.name(left.process, left.host)
            if left.how == peers.AT_ONCE:
                self.leave(
                    exit_status.ENDED_AS_ASKED,
                    f"ends because {who} was asked to end by {left.why}; the same command goes on.",
                    how=peers.AT_ONCE,
                    why=left.why,
                )
            if left.how == peers.LOST_ANOTHER:
                self._end_without(left.why)
            self._end_without(f"{who} failed: {left.why}", advice="See its log.")

    def _agree(self, asked: peers.Asked) -> None:
        """Finds the point at which all processes end. One may be lost before it says its own."""
        assert self._peers
        if not self._saves:
            return
        with self._gate:
            who = "" if asked.process == self._peers.index else f" to process {asked.process}"
            self._asked = f"{asked.signal}{who}"
            if not self._unsaved:
                self._end_at_once(self._asked)
            while not self._stop.is_set():
                with contextlib.suppress(peers.LOST):
                    self._peers.say_point(self._point)
                news = self._exchange_once()
                if news and len(news.points) == self._peers.count:
                    self._goal = max(news.points.values()) + 1
                    return
                time.sleep(self._period() / 10)

    def _look_for_lost(self, news: peers.News) -> None:
        assert self._peers
        now = self._clock.seconds
        for index in range(1, self._peers.count):
            beat = self._alive[index][0] if index in self._alive else -1
            if index not in self._seen or self._seen[index][0] != beat:
                self._seen[index] = (beat, now)
            elif now - self._seen[index][1] > LOST_SECONDS and index not in news.left:
                last = f"; it was {self._alive[index][2].words()}" if index in self._alive else ""
                why = (
                    f"{self._name(index)} gives no sign of life for {LOST_SECONDS:.0f} s: it is "
                    f"killed or stopped, or its machine is gone{last}"
                )
                self._end_without(why)

    def _must_wait(self, here: Activity) -> bool:
        """Returns True if this process waits for one that is behind, which looks at itself."""
        return here.phase is not Phase.READING and any(
            other.is_behind(here) for other in self._others().values()
        )

    def _others(self) -> Mapping[int, Activity]:
        mine = self._peers.index if self._peers else 0
        return {index: what for index, (_, _, what) in self._alive.items() if index != mine}

    def _end_stuck(self, here: Activity) -> NoReturn:
        with contextlib.suppress(OSError, ValueError):
            faulthandler.dump_traceback(all_threads=True)
        rest = [
            f"{self._name(index)} is {what.words()}"
            for index, what in list(self._others().items())[:_MOST_NAMED]
        ]
        who = f"{self._name(self._peers.index)} is stuck " if self._peers else "stuck "
        self.leave(
            exit_status.STUCK,
            f"{who}{here.words()}; the limit is {here.limit:.0f} s. "
            + "".join(f"{line}. " for line in rest)
            + f"The stacks of all threads are above. {_GOES_ON}.",
            how=peers.FAILED,
            why=f"stuck {here.words()}",
        )

    def _end_without(self, why: str, advice: str = f"{_GOES_ON}.") -> NoReturn:
        here = self._watchdog.activity()
        self.leave(
            exit_status.STUCK,
            f"ends because {why.removesuffix('.')}. This one is {here.words()}. {advice}",
            how=peers.LOST_ANOTHER,
            why=why,
        )

    def _tell(self, how: str, why: str) -> None:
        assert self._peers
        with contextlib.suppress(peers.LOST):
            self._peers.leave(how, why)
            end = time.monotonic() + _LINGER_SECONDS
            while self._peers.index == 0 and time.monotonic() < end:
                if len(self._peers.news().left) == self._peers.count:
                    return
                time.sleep(0.1)

    def _say(self, text: str) -> None:
        front = f"[process {self._peers.index} of {self._peers.count}] " if self._peers else ""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write("".join(f"{front}{line}\n" for line in text.splitlines()))
            sys.stderr.flush()

    def _name(self, index: int) -> str:
        known = self._alive.get(index)
        return peers.name(index, known[1] if known else "")

    def _period(self) -> float:
        """Returns the seconds between two exchanges; many processes share one store."""
        assert self._peers
        return min(max(1.0, self._peers.count / 64), 5.0)
