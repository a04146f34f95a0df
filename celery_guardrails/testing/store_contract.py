"""The suite that every store passes; subclass it, and give it the store.

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self):
            return MyStore(...)

Leases of a quarter of a second are used, so that expiry is really waited for against the store's own clock.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable

import pytest

from ..policy.lease import ClaimState, RecordState, StoredResult
from ..policy.suspicion import QUARANTINE
from ..ports import CountingStore, IdempotencyStore

__all__ = ["StoreContract"]

SHORT = 0.25
LONG = 30.0


def until(condition: Callable[[], bool], timeout: float = 5.0) -> None:
    """Wait for a condition; fail after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.01)


class StoreContract:
    """Behaviour of :class:`~celery_guardrails.ports.IdempotencyStore`."""

    @pytest.fixture
    def key(self) -> str:
        """Return a key that no other test uses."""
        return f"contract:{uuid.uuid4()}"

    def _done(self, store: IdempotencyStore, key: str, data: bytes = b"42", retention: float = LONG) -> int:
        claim = store.claim(key, holder="first", fingerprint="f", lease=LONG)
        result = StoredResult("application/json", "utf-8", data, "task-1")
        assert store.complete(key, holder="first", fingerprint="f", fence=claim.fence, result=result, retention=retention)
        return claim.fence

    def test_a_free_key_is_claimed(self, store: IdempotencyStore, key: str) -> None:
        claim = store.claim(key, holder="a", fingerprint=None, lease=LONG)
        assert (claim.state, claim.attempts, claim.crashes, claim.takeover) == (ClaimState.CLAIMED, 0, 0, False)
        assert claim.fence > 0

    def test_a_held_key_is_busy_and_says_for_how_long(self, store: IdempotencyStore, key: str) -> None:
        store.claim(key, holder="a", fingerprint=None, lease=LONG)
        claim = store.claim(key, holder="b", fingerprint=None, lease=LONG)
        assert claim.state is ClaimState.BUSY
        assert LONG - 5 < claim.wait <= LONG

    def test_the_same_holder_may_repeat_a_claim_whose_answer_was_lost(self, store: IdempotencyStore, key: str) -> None:
        first = store.claim(key, holder="a", fingerprint="f", lease=LONG)
        again = store.claim(key, holder="a", fingerprint="f", lease=LONG)
        assert again == first

    def test_of_many_who_claim_at_once_exactly_one_wins(self, store: IdempotencyStore, key: str) -> None:
        states: list[ClaimState] = []
        gate = threading.Barrier(24)

        def contend(holder: str) -> None:
            gate.wait()
            states.append(store.claim(key, holder=holder, fingerprint=None, lease=LONG).state)

        threads = [threading.Thread(target=contend, args=(f"h{number}",)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(state.value for state in states) == ["busy"] * 23 + ["claimed"]

    def test_an_expired_lease_is_taken_over_with_a_higher_fence_and_one_crash(self, store: IdempotencyStore, key: str) -> None:
        first = store.claim(key, holder="a", fingerprint=None, lease=SHORT)
        until(lambda: store.claim(key, holder="b", fingerprint=None, lease=LONG).state is ClaimState.CLAIMED)
        again = store.claim(key, holder="b", fingerprint=None, lease=LONG)
        assert again.fence > first.fence
        assert again.crashes == 1

    def test_taking_over_from_a_holder_that_had_settled_charges_no_crash(self, store: IdempotencyStore, key: str) -> None:
        store.claim(key, holder="a", fingerprint=None, lease=SHORT)
        until(lambda: store.claim(key, holder="b", fingerprint=None, lease=LONG, attempts=1).state is ClaimState.CLAIMED)
        record = store.lookup(key)
        assert record is not None
        assert (record.crashes, record.attempts) == (0, 1)

    def test_a_holder_that_vanishes_with_others_beside_it_is_a_suspicion_until_one_is_lost_alone(
        self, store: IdempotencyStore, key: str
    ) -> None:
        def loses(holder: str, *, beside: bool) -> tuple[int, int]:
            until(lambda: store.claim(key, holder=holder, fingerprint=None, lease=4 * SHORT, beside=beside).state is ClaimState.CLAIMED)
            claim = store.claim(key, holder=holder, fingerprint=None, lease=SHORT, beside=beside)
            return claim.crashes, claim.suspicions

        assert loses("a", beside=True) == (0, 0)
        assert loses("b", beside=True) == (0, 1)
        assert loses("c", beside=True) == (0, 2)
        record = store.lookup(key)
        assert record is not None
        assert (record.crashes, record.suspicions, record.beside) == (0, 2, True)
        claim = store.claim(key, holder="c", fingerprint=None, lease=SHORT)  # alone from now on
        assert (claim.state, claim.crashes, claim.suspicions) == (ClaimState.CLAIMED, 0, 2)
        assert loses("d", beside=False) == (3, 0)

    def test_a_crash_that_is_charged_beside_others_proves_no_suspicion_and_an_attempt_that_ended_clears_it(
        self, store: IdempotencyStore, key: str
    ) -> None:
        store.claim(key, holder="a", fingerprint=None, lease=SHORT, beside=True)
        until(lambda: store.claim(key, holder="b", fingerprint=None, lease=LONG, beside=True).state is ClaimState.CLAIMED)
        record = store.release(key, holder="b", crashes=1)
        assert record is not None
        assert (record.crashes, record.suspicions, record.beside) == (1, 1, False)
        claim = store.claim(key, holder="c", fingerprint=None, lease=LONG, beside=True)
        assert (claim.crashes, claim.suspicions) == (1, 1)
        busy = store.claim(key, holder="d", fingerprint=None, lease=LONG)
        assert (busy.state, busy.crashes, busy.suspicions) == (ClaimState.BUSY, 1, 1)
        record = store.release(key, holder="c", attempts=1)
        assert record is not None
        assert (record.attempts, record.crashes, record.suspicions) == (1, 1, 0)

    def test_a_renewed_lease_outlives_its_first_length(self, store: IdempotencyStore, key: str) -> None:
        store.claim(key, holder="a", fingerprint=None, lease=4 * SHORT)
        end = time.monotonic() + 6 * SHORT
        while time.monotonic() < end:
            assert store.renew([(key, "a")], 4 * SHORT) == [True]
            assert store.claim(key, holder="b", fingerprint=None, lease=LONG).state is ClaimState.BUSY
            time.sleep(SHORT / 5)

    def test_only_the_holder_can_renew(self, store: IdempotencyStore, key: str) -> None:
        store.claim(key, holder="a", fingerprint=None, lease=LONG)
        assert store.renew([(key, "b"), (key, "a"), (key + "?", "a")], LONG) == [False, True, False]
        assert store.renew([], LONG) == []

    def test_a_key_that_is_named_for_two_holders_is_renewed_for_the_one_who_has_it(self, store: IdempotencyStore, key: str) -> None:
        store.claim(key, holder="a", fingerprint=None, lease=SHORT)
        assert store.renew([(key, "a"), (key, "b")], LONG) == [True, False]
        record = store.lookup(key)
        assert record is not None
        assert (record.holder, record.until > store.now() + LONG / 2) == ("a", True)

    def test_a_completed_key_answers_with_its_result(self, store: IdempotencyStore, key: str) -> None:
        fence = self._done(store, key, data=b'{"charged": 1}')
        claim = store.claim(key, holder="b", fingerprint="f", lease=LONG)
        assert (claim.state, claim.fence) == (ClaimState.COMPLETED, fence)
        assert claim.result == StoredResult("application/json", "utf-8", b'{"charged": 1}', "task-1")

    def test_a_result_of_any_bytes_comes_back_as_it_was(self, store: IdempotencyStore, key: str) -> None:
        data = bytes(range(256)) * 40
        self._done(store, key, data=data)
        result = store.claim(key, holder="b", fingerprint=None, lease=LONG).result
        assert result is not None
        assert result.data == data

    def test_a_completion_without_a_value_says_so(self, store: IdempotencyStore, key: str) -> None:
        claim = store.claim(key, holder="a", fingerprint=None, lease=LONG)
        store.complete(key, holder="a", fingerprint=None, fence=claim.fence, result=StoredResult(task_id="t"), retention=LONG)
        result = store.claim(key, holder="b", fingerprint=None, lease=LONG).result
        assert result is not None
        assert (result.has_value, result.task_id) == (False, "t")

    def test_completing_twice_is_the_same_as_once(self, store: IdempotencyStore, key: str) -> None:
        fence = self._done(store, key)
        result = StoredResult("application/json", "utf-8", b"42", "task-1")
        assert store.complete(key, holder="first", fingerprint="f", fence=fence, result=result, retention=LONG)

    def test_a_zombie_cannot_complete_renew_or_release_what_another_holds(self, store: IdempotencyStore, key: str) -> None:
        zombie = store.claim(key, holder="zombie", fingerprint=None, lease=SHORT)
        until(lambda: store.claim(key, holder="b", fingerprint=None, lease=LONG).state is ClaimState.CLAIMED)
        result = StoredResult("application/json", "utf-8", b"1", "zombie")
        assert not store.complete(key, holder="zombie", fingerprint=None, fence=zombie.fence, result=result, retention=LONG)
        assert store.renew([(key, "zombie")], LONG) == [False]
        assert store.release(key, holder="zombie", attempts=1) is None
        record = store.lookup(key)
        assert record is not None
        assert (record.state, record.holder, record.attempts) == (RecordState.LEASED, "b", 0)

    def test_a_zombie_cannot_overwrite_the_result_of_another(self, store: IdempotencyStore, key: str) -> None:
        zombie = store.claim(key, holder="zombie", fingerprint="f", lease=SHORT)
        until(lambda: store.claim(key, holder="first", fingerprint="f", lease=LONG).state is ClaimState.CLAIMED)
        self._done(store, key, data=b"theirs")
        result = StoredResult("application/json", "utf-8", b"mine", "zombie")
        assert not store.complete(key, holder="zombie", fingerprint="f", fence=zombie.fence, result=result, retention=LONG)
        assert store.release(key, holder="zombie", drop=True) is None
        stored = store.claim(key, holder="c", fingerprint="f", lease=LONG).result
        assert stored is not None
        assert stored.data == b"theirs"

    def test_an_expired_lease_that_nobody_took_can_still_be_completed(self, store: IdempotencyStore, key: str) -> None:
        claim = store.claim(key, holder="a", fingerprint=None, lease=SHORT)
        time.sleep(SHORT * 1.5)
        result = StoredResult("application/json", "utf-8", b"1", "t")
        assert store.complete(key, holder="a", fingerprint=None, fence=claim.fence, result=result, retention=LONG)

    def test_releasing_charges_and_frees_the_key(self, store: IdempotencyStore, key: str) -> None:
        first = store.claim(key, holder="a", fingerprint="f", lease=LONG)
        record = store.release(key, holder="a", attempts=1, crashes=2)
        assert record is not None
        assert (record.state, record.attempts, record.crashes) == (RecordState.IDLE, 1, 2)
        again = store.claim(key, holder="b", fingerprint="f", lease=LONG)
        assert (again.state, again.attempts, again.crashes, again.takeover) == (ClaimState.CLAIMED, 1, 2, False)
        assert again.fence > first.fence

    def test_dropping_forgets_the_charges(self, store: IdempotencyStore, key: str) -> None:
        store.claim(key, holder="a", fingerprint=None, lease=LONG)
        store.release(key, holder="a", attempts=3)
        store.claim(key, holder="a2", fingerprint=None, lease=LONG)
        assert store.release(key, holder="a2", drop=True) is None
        assert store.lookup(key) is None

    def test_giving_up_forgets_the_charges(self, store: IdempotencyStore, key: str) -> None:
        store.claim(key, holder="a", fingerprint="f", lease=LONG)
        store.release(key, holder="a", attempts=3, crashes=1)
        store.claim(key, holder="b", fingerprint="f", lease=LONG)
        assert not store.reset(key, holder="a")
        assert not store.reset(key)
        assert store.reset(key, holder="b")
        assert store.lookup(key) is None
        assert not store.reset(key)

    def test_giving_up_a_key_that_nobody_holds_leaves_a_lease_and_a_completion_alone(self, store: IdempotencyStore, key: str) -> None:
        store.claim(key, holder="a", fingerprint="f", lease=LONG)
        store.release(key, holder="a", crashes=1)
        assert store.reset(key)
        assert store.lookup(key) is None
        self._done(store, key)
        assert not store.reset(key)
        assert not store.reset(key, holder="first")
        record = store.lookup(key)
        assert record is not None
        assert record.state is RecordState.COMPLETED

    def test_steps_are_remembered_by_the_next_holder(self, store: IdempotencyStore, key: str) -> None:
        store.claim(key, holder="a", fingerprint="f", lease=LONG)
        charged = StoredResult("application/json", "utf-8", b'{"id": "ch_1"}')
        nothing, bytes_ = StoredResult(), StoredResult("application/data", "binary", bytes(range(256)))
        for name, value in (("charge", charged), ("mail ü", nothing), ("upload", bytes_)):
            assert store.save_step(key, holder="a", name=name, value=value)
        assert store.renew([(key, "a")], LONG) == [True]
        released = store.release(key, holder="a", attempts=1)
        assert released is not None
        assert set(released.steps) == {"charge", "mail ü", "upload"}
        claim = store.claim(key, holder="b", fingerprint="f", lease=LONG)
        assert dict(claim.steps) == {"charge": charged, "mail ü": nothing, "upload": bytes_}
        assert (claim.attempts, claim.takeover) == (1, False)
        record = store.lookup(key)
        assert record is not None
        assert record.steps == claim.steps

    def test_a_step_saved_twice_keeps_its_last_value(self, store: IdempotencyStore, key: str) -> None:
        store.claim(key, holder="a", fingerprint=None, lease=LONG)
        for data in (b"1", b"2"):
            assert store.save_step(key, holder="a", name="s", value=StoredResult("application/json", "utf-8", data))
        assert store.claim(key, holder="a", fingerprint=None, lease=LONG).steps["s"].data == b"2"

    def test_steps_survive_a_takeover_and_a_zombie_adds_none(self, store: IdempotencyStore, key: str) -> None:
        store.claim(key, holder="zombie", fingerprint=None, lease=SHORT)
        value = StoredResult("application/json", "utf-8", b"1")
        assert store.save_step(key, holder="zombie", name="first", value=value)
        until(lambda: store.claim(key, holder="b", fingerprint=None, lease=LONG).state is ClaimState.CLAIMED)
        assert not store.save_step(key, holder="zombie", name="second", value=value)
        assert set(store.claim(key, holder="b", fingerprint=None, lease=LONG).steps) == {"first"}

    def test_giving_up_keeps_the_steps_and_forgets_the_charges(self, store: IdempotencyStore, key: str) -> None:
        first = store.claim(key, holder="a", fingerprint="f", lease=LONG)
        value = StoredResult("application/json", "utf-8", b"1")
        store.save_step(key, holder="a", name="charge", value=value)
        store.release(key, holder="a", attempts=4, crashes=2)
        store.claim(key, holder="b", fingerprint="f", lease=LONG)
        assert store.reset(key, holder="b")
        assert store.reset(key)
        again = store.claim(key, holder="c", fingerprint="f", lease=LONG)
        assert (again.state, again.attempts, again.crashes, dict(again.steps)) == (ClaimState.CLAIMED, 0, 0, {"charge": value})
        assert again.fence > first.fence

    def test_a_completed_key_has_no_steps_and_takes_none(self, store: IdempotencyStore, key: str) -> None:
        store.claim(key, holder="first", fingerprint="f", lease=LONG)
        value = StoredResult("application/json", "utf-8", b"1")
        store.save_step(key, holder="first", name="charge", value=value)
        self._done(store, key)
        assert not store.save_step(key, holder="first", name="late", value=value)
        record = store.lookup(key)
        assert record is not None
        assert not record.steps

    def test_a_step_of_a_key_that_nobody_holds_is_refused(self, store: IdempotencyStore, key: str) -> None:
        assert not store.save_step(key, holder="a", name="s", value=StoredResult())
        assert store.lookup(key) is None

    def test_a_lease_broken_by_an_operator_is_lost_to_its_holder_and_free_for_the_next(self, store: IdempotencyStore, key: str) -> None:
        first = store.claim(key, holder="stuck", fingerprint="f", lease=LONG, owner="host/1")
        before = store.break_lease(key)
        assert before is not None
        assert (before.holder, before.owner, before.fence) == ("stuck", "host/1", first.fence)
        assert store.break_lease(key) is None
        record = store.lookup(key)
        assert record is not None
        assert (record.state, record.crashes, record.attempts) == (RecordState.IDLE, 0, 0)
        assert record.fence > first.fence
        assert store.renew([(key, "stuck")], LONG) == [False]
        result = StoredResult("application/json", "utf-8", b"1", "t")
        assert not store.complete(key, holder="stuck", fingerprint="f", fence=first.fence, result=result, retention=LONG)
        again = store.claim(key, holder="b", fingerprint="f", lease=LONG)
        assert (again.state, again.crashes, again.takeover) == (ClaimState.CLAIMED, 0, False)
        assert again.fence > record.fence

    def test_only_a_lease_can_be_broken(self, store: IdempotencyStore, key: str) -> None:
        assert store.break_lease(key) is None
        fence = self._done(store, key)
        assert store.break_lease(key) is None
        claim = store.claim(key, holder="b", fingerprint="f", lease=LONG)
        assert (claim.state, claim.fence) == (ClaimState.COMPLETED, fence)

    def test_live_leases_are_listed_and_nothing_else(self, store: IdempotencyStore, key: str) -> None:
        for number in range(5):
            store.claim(f"{key}[{number}]*?", holder=f"h{number}", fingerprint=None, lease=LONG, owner=f"host/{number}")
        store.claim(f"{key}idle", holder="a", fingerprint=None, lease=LONG)
        store.release(f"{key}idle", holder="a", attempts=1)
        self._done(store, f"{key}done")
        store.save_step(f"{key}[0]*?", holder="h0", name="s", value=StoredResult())
        found = {name: record for name, record in store.leases() if name.startswith(key)}
        assert set(found) == {f"{key}[{number}]*?" for number in range(5)}
        for number in range(5):
            record = found[f"{key}[{number}]*?"]
            assert record == store.lookup(f"{key}[{number}]*?")
            assert (record.holder, record.owner) == (f"h{number}", f"host/{number}")

    def test_a_key_of_the_packages_own_is_listed_as_it_was_claimed(self, store: IdempotencyStore, key: str) -> None:
        own = f"\0{key}"
        store.claim(own, holder="a", fingerprint=None, lease=LONG)
        assert own in {name for name, _ in store.leases()}
        store.release(own, holder="a", attempts=0, drop=True)

    @pytest.mark.parametrize(
        "name", ["{a}", "a{b}c{d}", "with space", "ü€😀", "a:b:c", "A", "a ", "x" * 512, "quote'\"\\", "per%cent :colon"]
    )
    def test_keys_of_any_text_are_kept_apart(self, store: IdempotencyStore, key: str, name: str) -> None:
        names = (f"{key}{name}", f"{key}{name} ", f"{key}{name}".swapcase())
        for number, one in enumerate(names):
            assert store.claim(one, holder=f"h{number}", fingerprint=None, lease=LONG).state is ClaimState.CLAIMED
        for number, one in enumerate(names):
            record = store.lookup(one)
            assert record is not None
            assert record.holder == f"h{number}"
        assert {one for one, _ in store.leases()} >= set(names)

    def test_time_is_one_for_all_who_ask(self, store: IdempotencyStore, key: str) -> None:
        before = store.now()
        claim = store.claim(key, holder="a", fingerprint=None, lease=LONG)
        assert claim.now is not None
        assert before - 0.01 <= claim.now <= store.now() + 0.01
        record = store.lookup(key)
        assert record is not None
        assert abs(record.until - claim.now - LONG) < 0.1
        assert abs(record.claimed_at - claim.now) < 0.1

    def test_what_is_over_is_deleted_in_batches(self, store: IdempotencyStore, key: str) -> None:
        for number in range(5):
            self._done(store, f"{key}{number}", retention=SHORT)
        self._done(store, f"{key}kept")
        until(lambda: all(store.lookup(f"{key}{number}") is None for number in range(5)))
        deleted = [store.prune(2) for _ in range(4)]
        assert max(deleted) <= 2
        assert sum(deleted) in (0, 5)
        assert store.prune(100) == 0
        assert store.lookup(f"{key}kept") is not None

    def test_other_arguments_for_a_key_are_a_conflict_while_it_runs_and_after(self, store: IdempotencyStore, key: str) -> None:
        store.claim(key, holder="first", fingerprint="f", lease=LONG)
        assert store.claim(key, holder="b", fingerprint="g", lease=LONG).state is ClaimState.CONFLICT
        self._done(store, key)
        assert store.claim(key, holder="b", fingerprint="g", lease=LONG).state is ClaimState.CONFLICT

    def test_a_key_keeps_the_fingerprint_that_it_was_first_claimed_with(self, store: IdempotencyStore, key: str) -> None:
        store.claim(key, holder="a", fingerprint=None, lease=LONG)
        store.release(key, holder="a")
        store.claim(key, holder="b", fingerprint="f", lease=LONG)
        store.release(key, holder="b")
        claim = store.claim(key, holder="c", fingerprint=None, lease=LONG)
        assert store.claim(key, holder="d", fingerprint="g", lease=LONG).state is ClaimState.CONFLICT
        assert store.complete(key, holder="c", fingerprint=None, fence=claim.fence, result=StoredResult(), retention=LONG)
        assert store.claim(key, holder="d", fingerprint="g", lease=LONG).state is ClaimState.CONFLICT
        assert store.claim(key, holder="d", fingerprint="f", lease=LONG).state is ClaimState.COMPLETED

    def test_of_message_and_record_the_larger_number_of_attempts_counts(self, store: IdempotencyStore, key: str) -> None:
        assert store.claim(key, holder="a", fingerprint=None, lease=LONG, attempts=1).attempts == 1
        store.release(key, holder="a", attempts=1)
        assert store.claim(key, holder="b", fingerprint=None, lease=LONG, attempts=1).attempts == 2
        store.release(key, holder="b")
        assert store.claim(key, holder="c", fingerprint=None, lease=LONG, attempts=5).attempts == 5
        record = store.lookup(key)
        assert record is not None
        assert record.attempts == 5

    def test_a_key_that_is_given_back_names_no_holder(self, store: IdempotencyStore, key: str) -> None:
        ways: tuple[Callable[[], object], ...] = (lambda: store.release(key, holder="a", attempts=1), lambda: store.break_lease(key))
        for give_back in ways:
            store.claim(key, holder="a", fingerprint="f", lease=LONG, owner="host/1")
            assert give_back() is not None
            record = store.lookup(key)
            assert record is not None
            assert (record.state, record.holder, record.owner, record.until) == (RecordState.IDLE, "", "", 0.0)
            assert record.fingerprint == "f"
            assert store.renew([(key, "a")], LONG) == [False]

    def test_no_fingerprint_means_no_check(self, store: IdempotencyStore, key: str) -> None:
        self._done(store, key)
        assert store.claim(key, holder="b", fingerprint=None, lease=LONG).state is ClaimState.COMPLETED

    def test_a_completion_is_forgotten_after_its_retention(self, store: IdempotencyStore, key: str) -> None:
        fence = self._done(store, key, retention=SHORT)
        until(lambda: store.claim(key, holder="b", fingerprint="f", lease=LONG).state is ClaimState.CLAIMED)
        assert store.claim(key, holder="b", fingerprint="f", lease=LONG).fence > fence

    def test_forgetting_lets_a_completed_key_run_again(self, store: IdempotencyStore, key: str) -> None:
        fence = self._done(store, key)
        assert store.forget(key)
        assert not store.forget(key)
        again = store.claim(key, holder="b", fingerprint="other", lease=LONG)
        assert again.state is ClaimState.CLAIMED
        assert again.fence > fence

    def test_records_are_counted_by_their_state_without_what_is_the_packages_own(self, store: IdempotencyStore, key: str) -> None:
        if not isinstance(store, CountingStore):
            return  # a store of your own need not count
        before = self._census(store)
        for number in range(3):
            self._done(store, f"{key}done{number}")
        for name in (f"{key}a", f"{key}b", "\0turn", QUARANTINE):
            store.claim(name, holder=key, fingerprint=None, lease=LONG)
        store.claim(f"{key}c", holder=key, fingerprint=None, lease=LONG)
        store.release(f"{key}c", holder=key, attempts=1)
        store.claim(f"{key}d", holder=key, fingerprint=None, lease=LONG)
        store.save_step(f"{key}d", holder=key, name="s", value=StoredResult())
        counted = self._census(store)
        counted.subtract(before)
        for name in ("\0turn", QUARANTINE):
            store.release(name, holder=key, drop=True)
        assert dict(counted) == {RecordState.COMPLETED: 3, RecordState.LEASED: 3, RecordState.IDLE: 1}

    def test_a_record_whose_time_is_over_is_not_counted(self, store: IdempotencyStore, key: str) -> None:
        if not isinstance(store, CountingStore):
            return
        before = self._census(store)[RecordState.COMPLETED]
        self._done(store, key, retention=SHORT)
        until(lambda: store.lookup(key) is None)
        assert self._census(store)[RecordState.COMPLETED] <= before

    @staticmethod
    def _census(store: CountingStore) -> Counter[RecordState]:
        counted: Counter[RecordState] = Counter(dict.fromkeys(RecordState, 0))
        for part in store.census():
            counted.update(part)
        return counted

    def test_looking_up_touches_nothing(self, store: IdempotencyStore, key: str) -> None:
        assert store.lookup(key) is None
        claim = store.claim(key, holder="a", fingerprint="f", lease=LONG, owner="host/1")
        record = store.lookup(key)
        assert record is not None
        assert record == store.lookup(key)
        assert (record.state, record.fence, record.holder, record.owner, record.fingerprint) == (
            RecordState.LEASED,
            claim.fence,
            "a",
            "host/1",
            "f",
        )

    def test_a_store_that_is_there_answers_a_ping(self, store: IdempotencyStore) -> None:
        store.ping()
