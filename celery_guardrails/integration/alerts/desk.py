"""One alert in one process: what has died there and is not told yet, and the thread that tells it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ...policy.alerts import Alert, AlertRules, AlertState, Kind, Step, advance, give_back
from ...policy.classification import PERMANENT, Classification
from ..logs import logger
from .channels import Channel
from .ledger import Busy, Ledger

__all__ = ["Counts", "Desk"]

#: Kinds with their names that wait in one process; letters of further ones are only counted.
_KINDS = 100
#: Seconds from the first letter to the first look, in which its companions come along.
_GATHER = 0.25
#: Seconds between two looks while letters keep dying: doubled each time up to the second number.
_PACE, _SLOWEST = 1.0, 10.0
#: Seconds after which a thread with nothing to do ends; the next letter starts another.
_LINGER = 30.0
#: Seconds to leave a state alone that another process is at; up to twice that.
_BUSY = 0.02
#: Seconds before the two further tries of a message that could not be sent, and the most that a server may ask for instead.
_BACKOFF, _LONGEST = (1.0, 4.0), 30.0


@dataclass
class Counts:
    """What became of the messages of one alert in this process."""

    sent: int = 0
    failed: int = 0
    tries: int = 0


class Desk:
    """Takes letters from the threads that run tasks, and tells of them from a thread of its own.

    :meth:`put` never waits for anything but another :meth:`put`. The thread is started by the first letter.

    Args:
        channel: where messages go.
        rules: when.
        ledger: what the fleet knows already.
        classify: says whether a failure to send is worth another try.
        chance: uniform random numbers in ``[0, 1)``.
        app: name of the app.
    """

    def __init__(
        self,
        channel: Channel,
        rules: AlertRules,
        ledger: Ledger,
        *,
        classify: Callable[[BaseException], Classification],
        chance: Callable[[], float],
        app: str,
    ) -> None:
        self.counts = Counts()
        self._channel = channel
        self._rules = rules
        self._ledger = ledger
        self._classify = classify
        self._chance = chance
        self._app = app
        self._lock = threading.Lock()
        self._kinds: dict[str, Kind] = {}
        self._beyond = 0
        self._unsent: list[Alert] = []
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._watching = False
        self._closed = False
        self._pace = _PACE
        #: When the state must be looked at again although nothing dies (monotonic), or None.
        self._due: float | None = None
        self._warned = float("-inf")

    # -- from any thread --------------------------------------------------------------------------------------

    def put(self, kind: Kind) -> None:
        """Take one letter in."""
        with self._lock:
            self._take_in(kind)
            self._idle.clear()
            self._start()
        self._wake.set()

    def watch(self) -> None:
        """Look every so often whether a process of the fleet has left behind what is due by now: it may have ended."""
        with self._lock:
            self._watching = True
            self._due = time.monotonic() + self._rules.every * self._chance()
            self._start()
        self._wake.set()

    def hurry(self) -> None:
        """Wait for nothing any more that is waited for by choice: the process ends."""
        self._hurry.set()
        self._wake.set()

    def finished(self, timeout: float) -> bool:
        """Wait until everything is told or handed over to the store; whether it was within so many seconds."""
        done = self._idle.wait(max(0.0, timeout))
        self._hurry.clear()
        return done

    def close(self) -> None:
        """End the thread after what it does now; the next letter starts another."""
        with self._lock:
            self._closed = True
        self.hurry()

    def _take_in(self, kind: Kind) -> None:
        present = self._kinds.get(kind.fingerprint)
        if present is not None:
            self._kinds[kind.fingerprint] = present.with_more(kind)
        elif len(self._kinds) < _KINDS:
            self._kinds[kind.fingerprint] = kind
        else:
            self._beyond += kind.letters

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._closed = False
            # kept before it starts: a soft time limit may strike in between, and there must not be two
            self._thread = threading.Thread(target=self._run, name="guardrails-alert", daemon=True)
            self._thread.start()

    # -- in the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closed:
            due = self._due
            woken = self._wake.wait(_LINGER if due is None else max(0.0, due - time.monotonic()))
            if not woken and due is None and self._leaves():
                return
            self._hurry.wait(_GATHER)
            self._wake.clear()
            taken = self._taken()
            try:
                self._look(*taken)
            except Exception as exc:  # noqa: BLE001 - whatever it is, letters must not end this thread
                self._keep(*taken)
                if not isinstance(exc, Busy):
                    self._warn("the alert to %s could not be decided on: %r", self._channel.label, exc)
                self._again()
                time.sleep(_BUSY * (1.0 + self._chance()))
            self._rest()

    def _leaves(self) -> bool:
        """Whether the thread may end; with it ends what the store has opened for it, such as a connection of a database."""
        with self._lock:
            if self._kinds or self._beyond or self._due is not None:
                return False
            self._thread = None
            return True

    def _look(self, kinds: list[Kind], beyond: int) -> None:
        unsent = list(self._unsent)

        def change(state: AlertState, now: float) -> Step:
            for alert in unsent:
                state = give_back(state, alert, now, self._rules)
            return advance(state, kinds, beyond, now, self._rules)

        step = self._ledger.change(change)
        del self._unsent[: len(unsent)]
        self._due = None
        if self._watching:
            self._due = time.monotonic() + self._rules.every * (1.0 + self._chance())
        if step.wait is not None:
            # not all processes of the fleet at once
            due = time.monotonic() + step.wait + min(5.0, self._rules.every / 10) * self._chance()
            self._due = due if self._due is None else min(due, self._due)
        if step.alert is not None and not self._sent(step.alert):
            self._unsent.append(step.alert)
            self._again()

    def _sent(self, alert: Alert) -> bool:
        for backoff in (*_BACKOFF, None):
            self.counts.tries += 1
            try:
                self._channel.send(alert, self._app)
            except Exception as exc:  # noqa: BLE001 - a user's callable may raise anything
                kind = self._classify(exc)
                if backoff is None or kind.kind == PERMANENT or self._hurry.wait(min(_LONGEST, max(backoff, kind.retry_after or 0.0))):
                    self.counts.failed += 1
                    self._warn("an alert could not be sent to %s, its letters will be in the next one: %r", self._channel.label, exc)
                    return False
            else:
                self.counts.sent += 1
                return True
        raise AssertionError("unreachable")

    def _rest(self) -> None:
        """Say that there is nothing to do, or pause before the next look."""
        with self._lock:
            if not (self._kinds or self._beyond or self._unsent):
                self._idle.set()
        if self._hurry.wait(self._pace):
            return
        self._pace = min(_SLOWEST, self._pace * 2) if self._wake.is_set() else _PACE

    def _taken(self) -> tuple[list[Kind], int]:
        with self._lock:
            taken = list(self._kinds.values()), self._beyond
            self._kinds, self._beyond = {}, 0
            return taken

    def _keep(self, kinds: list[Kind], beyond: int) -> None:
        with self._lock:
            later, self._kinds = self._kinds, {}
            for kind in (*kinds, *later.values()):
                self._take_in(kind)
            self._beyond += beyond

    def _again(self) -> None:
        self._due = time.monotonic()
        self._wake.set()

    def _warn(self, text: str, *words: object) -> None:
        if time.monotonic() - self._warned >= self._rules.every:
            self._warned = time.monotonic()
            logger.warning(text, *words)
