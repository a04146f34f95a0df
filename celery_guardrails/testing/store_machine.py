"""Any history of calls, checked step by step against the model; beside the examples of :class:`StoreContract`.

    class TestMyStoreMachine(StoreMachineContract):
        @pytest.fixture
        def store(self):
            return MyStore(...)

Hypothesis makes up histories: several holders and keys, any arguments, leases that end while their holder sleeps,
answers that get lost so that the call is made again, an operator in between. After every step the store's answer and
its record must be those of the model (:mod:`.store_model`). ``GUARDRAILS_EXAMPLES=5000`` looks longer, with other histories
each time.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from ..policy.lease import RecordState, StoredResult
from ..ports import IdempotencyStore
from ..stores import MEMORY_SECONDS
from .clock import FakeClock
from .store_model import LONGEST_LEASE, TOLERANCE, Known, Span, StoreModel

__all__ = ["StoreMachine", "StoreMachineContract"]

SHORT, LONG = 0.02, LONGEST_LEASE
#: Seconds that an operation takes where time is told: no two happen at the same moment.
_TICK = 0.0001

_HOLDERS = ("a0a0a0a0a0a0a0a0", "b1b1b1b1b1b1b1b1", "c2c2c2c2c2c2c2c2")
_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
#: Mostly the newest key: another is begun whenever one has completed.
_key = st.sampled_from((-1, -1, -1, -1, -2, 0))
_holder = st.sampled_from(_HOLDERS)
#: Of a call that is the holder's to make: None stands for who holds the key now, or claims it for that; the others are mostly zombies.
_someone = st.sampled_from((None, None, None, *_HOLDERS))
_fingerprint = st.sampled_from((None, "f", "f", "f", "f", "f", "f", "F"))
_lease = st.sampled_from((SHORT, SHORT, LONG))
_count = st.integers(0, 3)
#: How often a call is made: the second time because the first answer was lost.
_calls = st.sampled_from((1, 1, 1, 2))
_value = st.one_of(
    st.builds(StoredResult, task_id=_text),
    st.builds(
        StoredResult,
        st.sampled_from(("application/json", "application/x-python-serialize", "application/x-yaml")),
        st.sampled_from(("utf-8", "binary", "latin-1")),
        st.binary(max_size=40),
        _text,
    ),
)
_step_name = st.one_of(st.sampled_from(("step", "Step", "step ", "schritt:ü'\"{}%s\\")), _text)


class _Witness:
    """A store whose calls are written down."""

    def __init__(self, store: IdempotencyStore, history: list[str]) -> None:
        self._store, self._history = store, history

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            arguments = [list(arg) if name == "renew" and number == 0 else arg for number, arg in enumerate(args)]
            answer = getattr(self._store, name)(*(iter(arg) if isinstance(arg, list) else arg for arg in arguments), **options)
            told = ", ".join([*map(repr, arguments), *(f"{option}={value!r}" for option, value in options.items())])
            self._history.append(f"{name}({told}) -> {answer!r}")
            return answer

        return call


class StoreMachine(RuleBasedStateMachine):
    """One store beside its model.

    Args:
        store: to be checked; it may hold other keys.
        clock: of the store where it can be told the time, None where it has its own.
        memory: seconds that the store keeps a record while its key is not completed.
    """

    #: What was wrong, with the calls before it; where time is real a history cannot be had a second time.
    failures: ClassVar[list[str]] = []

    def __init__(self, store: IdempotencyStore, clock: FakeClock | None = None, memory: float = MEMORY_SECONDS) -> None:
        super().__init__()
        self.history: list[str] = []
        self.store: Any = _Witness(store, self.history)
        self.clock = clock
        self.model = StoreModel(memory)
        self.known = self.model.known
        self.prefix = uuid.uuid4().hex
        self.keys: list[str] = []
        self.name = ""

    @initialize(name=_text)
    def _begin(self, name: str) -> None:
        self.name = name
        self._begin_another()
        self._begin_another()

    def _begin_another(self) -> None:
        self.keys.append(f"{self.prefix}:{len(self.keys)}:{self.name}")
        self.known[self.keys[-1]] = Known()

    def teardown(self) -> None:
        """Leave nothing behind."""
        for key in self.keys:
            self.store.forget(key)

    # -- what holders do --------------------------------------------------------------------------------------

    @rule(
        at=_key,
        holder=_holder,
        fingerprint=_fingerprint,
        lease=_lease,
        owner=st.one_of(st.just(""), _text),
        knows=_count,
        beside=st.booleans(),
        calls=_calls,
    )
    def claim(self, at: int, holder: str, fingerprint: str | None, lease: float, owner: str, knows: int, beside: bool, calls: int) -> None:
        """Claim a key."""
        for _ in range(calls):
            self._claim(self.keys[at], holder=holder, fingerprint=fingerprint, lease=lease, owner=owner, attempts=knows, beside=beside)

    @rule(at=_key, fingerprint=_fingerprint, lease=_lease, knows=st.sampled_from((0, 0, 1, 3)), beside=st.booleans(), calls=_calls)
    def take_over(self, at: int, fingerprint: str | None, lease: float, knows: int, beside: bool, calls: int) -> None:
        """Claim a key after the lease of another, who lets it end."""
        former = self._resolve(at, None)
        holder = _HOLDERS[1] if former == _HOLDERS[0] else _HOLDERS[0]
        self._outlast(self.keys[at])
        for _ in range(calls):
            self._claim(self.keys[at], holder=holder, fingerprint=fingerprint, lease=lease, owner="", attempts=knows, beside=beside)

    def _claim(self, key: str, **call: Any) -> None:
        self._step([key], lambda: self.store.claim(key, **call), partial(self.model.claimed, key, **call))

    @rule(at=_key, who=_someone, result=_value, retention=st.sampled_from((SHORT, LONG, LONG)), own=st.booleans(), calls=_calls)
    def complete(self, at: int, who: str | None, result: StoredResult, retention: float, own: bool, calls: int) -> None:
        """Complete a key."""
        key, holder = self.keys[at], self._resolve(at, who)
        known = self.known[key]
        if own and holder not in known.grants:
            return  # most completions are a holder's, else the history would be over soon
        call: dict[str, Any] = {"holder": holder, "fingerprint": "f", "fence": known.fences.get(holder, 5), "result": result}
        call["retention"] = retention
        for _ in range(calls):
            self._step([key], lambda: self.store.complete(key, **call), partial(self.model.completed, key, **call))
        if known is self.known[self.keys[-1]] and known.state is RecordState.COMPLETED:
            self._begin_another()

    @rule(at=_key, who=_someone, attempts=_count, crashes=_count, drop=st.sampled_from((False, False, True)), calls=_calls)
    def release(self, at: int, who: str | None, attempts: int, crashes: int, drop: bool, calls: int) -> None:
        """Give a lease back."""
        key, holder = self.keys[at], self._resolve(at, who)
        call: dict[str, Any] = {"holder": holder, "attempts": attempts, "crashes": crashes, "drop": drop}
        for _ in range(calls):
            self._step([key], lambda: self.store.release(key, **call), partial(self.model.released, key, **call))

    @rule(at=_key, who=_someone, stepped=st.booleans(), calls=_calls)
    def reset(self, at: int, who: str | None, stepped: bool, calls: int) -> None:
        """Forget the charges of a key that is given up, ``stepped``: which has a recovery point, and so is kept."""
        holder = self._resolve(at, who)
        if stepped:
            self._save_step(self.keys[at], holder=holder, name="step", value=StoredResult())
        self._reset(self.keys[at], holder, calls)

    def _reset(self, key: str, holder: str | None, calls: int) -> None:
        for _ in range(calls):
            self._step([key], lambda: self.store.reset(key, holder=holder), partial(self.model.reset, key, holder=holder))

    @rule(pairs=st.lists(st.tuples(_key, _someone), max_size=4), lease=_lease, calls=_calls)
    def renew(self, pairs: list[tuple[int, str | None]], lease: float, calls: int) -> None:
        """Renew several leases in one call."""
        leases = [(self.keys[at], self._resolve(at, who)) for at, who in pairs]
        judge = partial(self.model.renewed, leases, lease=lease)
        for _ in range(calls):
            self._step([key for key, _ in leases], lambda: self.store.renew(iter(leases), lease), judge)

    @rule(at=_key, who=_someone, name=_step_name, value=_value, calls=_calls)
    def save_step(self, at: int, who: str | None, name: str, value: StoredResult, calls: int) -> None:
        """Save a recovery point."""
        key, holder = self.keys[at], self._resolve(at, who)
        for _ in range(calls):
            self._save_step(key, holder=holder, name=name, value=value)

    def _save_step(self, key: str, **call: Any) -> None:
        self._step([key], lambda: self.store.save_step(key, **call), partial(self.model.step_saved, key, **call))

    # -- what operators do ------------------------------------------------------------------------------------

    @rule(at=_key, act=st.sampled_from(("forget", "break", "reset", "prune", "list")), calls=_calls)
    def operate(self, at: int, act: str, calls: int) -> None:
        """Do what an operator may do to a key at any time."""
        key = self.keys[at]
        if act == "reset":
            self._reset(key, None, calls)
        elif act == "prune":
            self._step(self.keys, lambda: self.store.prune(10), self.model.pruned)
        elif act == "list":
            self._step(self.keys, lambda: list(self.store.leases()), self.model.listed)
        else:
            call, judge = (self.store.forget, self.model.forgotten) if act == "forget" else (self.store.break_lease, self.model.broken)
            for _ in range(calls):
                self._step([key], lambda: call(key), partial(judge, key))

    # -- time -------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from((0.001, 0.3, 1.0, 25.0, 31.0, 86_000.0, 90_000.0, 40 * 86_400.0)))
    def pause(self, seconds: float) -> None:
        """Let time pass, where that costs none."""
        if self.clock is not None:
            self.clock.advance(seconds)

    def _outlast(self, key: str) -> None:
        """Wait until every lease of a key has ended, unless it is a long one in real time."""
        wait = max(self.known[key].grants.values(), default=0.0) - self.store.now()
        if wait > 0 and self.clock is not None:
            self.clock.advance(wait)
        elif 0 < wait <= SHORT:
            time.sleep(wait + 0.002)

    def _wait_out(self, key: str) -> None:
        """See a record off whose time is nearly over: nobody could say whether the next call would still find it."""
        known = self.known[key]
        if known.record is not None and known.gone[0] - 2 * TOLERANCE <= (now := self.store.now()):
            rest = max(0.0, known.gone[1] + 2 * TOLERANCE - now)
            if self.clock is not None:
                self.clock.advance(rest)
            else:
                time.sleep(rest)
            assert self.store.lookup(key) is None, f"{known.record} should have vanished"
            known.vanish()

    # -- one step ---------------------------------------------------------------------------------------------

    def _step(self, keys: list[str], call: Callable[[], Any], judge: Callable[[Any, Span], bool]) -> None:
        """Make a call; let a judge of the model compare its answer; compare the records. An answer of no must not change anything."""
        try:
            self._checked(keys, call, judge)
        except AssertionError as exc:
            self.failures.append(f"{exc}\n" + "\n".join(self.history[-30:]))
            raise

    def _checked(self, keys: list[str], call: Callable[[], Any], judge: Callable[[Any, Span], bool]) -> None:
        for key in keys:
            self._wait_out(key)
        start = self.store.now()
        before = {key: self.store.lookup(key) for key in keys}
        if self.clock is not None:
            self.clock.advance(_TICK)
        answer = call()
        after = {key: self.store.lookup(key) for key in keys}
        span = (start, self.store.now())
        if not any(self.known[key].may_be_gone(span[1]) for key in keys):
            changed = judge(answer, span)
            assert changed or after == before, "the answer was no, and yet something has changed"
            if not any(self.known[key].may_be_gone(span[1]) for key in keys):
                for key, found in after.items():
                    self.model.compare(key, before[key], found, span, changed and len(after) == 1)
                return
        # This process was held up for so long that a record may have vanished around the call: begin anew.
        for key in keys:
            self.store.forget(key)
            self.model.forget(key, before[key], after[key])

    def _resolve(self, at: int, who: str | None) -> str:
        known = self.known[self.keys[at]]
        if who is None and not (known.record is not None and known.record.holder):
            self._claim(self.keys[at], holder=_HOLDERS[0], fingerprint=None, lease=SHORT)
        return who or (known.record.holder if known.record is not None else _HOLDERS[0])


class StoreMachineContract:
    """Subclass it and give it the store; ``clock`` where the store can be told the time."""

    #: Histories of forty steps each, of about five calls; a step in twenty or so waits for the end of a lease.
    examples = 30

    @pytest.fixture
    def clock(self) -> FakeClock | None:
        """Return the clock that the store was made with, or None where it has its own."""
        return None

    @pytest.mark.timeout(0)
    def test_any_history_is_the_models(self, store: IdempotencyStore, clock: FakeClock | None) -> None:
        """Every step of every history that hypothesis makes up."""
        examples = os.environ.get("GUARDRAILS_EXAMPLES")

        class Machine(StoreMachine):
            failures: ClassVar[list[str]] = []

            def __init__(self) -> None:
                super().__init__(store, clock)

        chosen = settings(
            max_examples=int(examples or self.examples),
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize=examples is None,
            # where time is real, a shorter history is another one
            phases=(Phase.generate,) if clock is None else (Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        try:
            run_state_machine_as_test(Machine, settings=chosen)
        except Flaky as exc:
            raise AssertionError("\n".join(Machine.failures[:1])) from exc
