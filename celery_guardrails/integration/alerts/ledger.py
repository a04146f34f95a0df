"""What an alert remembers, shared by the fleet through the store; where the store is away, each process remembers by itself."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from ...errors import GuardrailsConfigError, StoreUnavailable
from ...policy.alerts import AlertRules, AlertState, Step, rejoin
from ...policy.lease import ClaimState, StoredResult
from ...ports import Clock, IdempotencyStore

__all__ = ["Busy", "Ledger"]

#: The recovery point that holds the state: it needs nothing of a store that tasks do not need.
_STEP = "state"
#: Seconds after which a process that died while it held the state is in nobody's way.
_LEASE = 10.0


class Busy(Exception):
    """Another process is at the state right now; it takes milliseconds."""


class Ledger:
    """The state of one alert.

    It is kept as a recovery point of a reserved key: who has the key's lease may change it. So one process of the fleet
    decides at a time, and what it decides is known to all before anything is sent.

    Args:
        store: returns the store.
        clock: for a process that is alone; otherwise the store's own clock decides.
        name: of the alert, the same in all processes.
        rules: of the alert.
    """

    def __init__(self, store: Callable[[], IdempotencyStore], clock: Clock, name: str, rules: AlertRules) -> None:
        self._store = store
        self._clock = clock
        self._rules = rules
        # a character that no template and no person would put into a key, as that of the resources has it
        self.key = f"\0alert:{name}"
        self._last = AlertState()
        self._alone = False

    def change(self, change: Callable[[AlertState, float], Step]) -> Step:
        """Change the state of the fleet, or that of this process where the store does not answer.

        Raises:
            Busy: nothing was done; try again in a moment.
        """
        try:
            return self._shared(self._store(), change)
        except (StoreUnavailable, GuardrailsConfigError):
            if not self._alone:  # what waits in the store is not this process's to tell
                self._last = replace(self._last, held={}, beyond=0, since=0.0, peak=0.0)
            self._alone = True
            step = change(self._last, self._clock.now())
            self._last = step.state
            return step

    def _shared(self, store: IdempotencyStore, change: Callable[[AlertState, float], Step]) -> Step:
        holder = uuid.uuid4().hex
        claim = store.claim(self.key, holder=holder, fingerprint=None, lease=_LEASE, owner=f"alert/{os.getpid()}")
        if claim.state is ClaimState.BUSY:
            raise Busy
        if claim.state is not ClaimState.CLAIMED:
            raise StoreUnavailable(f"{self.key!r} is {claim.state.value}")
        now = self._clock.now() if claim.now is None else claim.now
        kept = claim.steps.get(_STEP)
        before = AlertState() if kept is None else AlertState.load(kept.data)
        step = change(rejoin(before, self._last, now, self._rules) if self._alone else before, now)
        if step.state != before:
            value = StoredResult("application/json", "utf-8", step.state.dump())
            if not store.save_step(self.key, holder=holder, name=_STEP, value=value):
                raise Busy
        self._last, self._alone = step.state, False
        with suppress(StoreUnavailable):  # the lease ends by itself
            store.release(self.key, holder=holder)
        return step
