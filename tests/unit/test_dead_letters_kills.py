"""A replay that is killed, at any point, any number of times: no letter is lost, none is forgotten."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from celery_guardrails.dead_letters import Filter
from celery_guardrails.policy.delivery import Travel
from tests.support.dead_letters import Kit, certificate_for, task_message
from tests.support.killing import Killed, killed_at


def ids_in(kit: Kit, queue: str) -> Counter[str]:
    return Counter(message.headers["id"] for message in kit.broker.messages(queue))


@settings(deadline=None)
@given(letters=st.integers(1, 12), deaths=st.lists(st.integers(1, 30), max_size=6), at_once=st.sampled_from([1, 3, 100]))
def test_a_replay_killed_anywhere_and_run_again_loses_nothing(letters, deaths, at_once):
    kit = Kit(move_limit=at_once)
    buried = [kit.bury(task_message("t", number, task_id=f"task-{number}")).headers["id"] for number in range(letters)]
    killed = 0
    for after in deaths:
        try:
            with killed_at(kit.broker, after):
                kit.service.replay()
        except Killed:
            killed += 1
        # conservation, at the very moment of death: each letter is in one of the two queues, or in both
        there = ids_in(kit, "celery") + ids_in(kit, "celery.dead")
        assert set(there) == set(buried)
    report = kit.service.replay()
    assert report.clean
    assert kit.broker.depth("celery.dead") == 0
    live = ids_in(kit, "celery")
    assert set(live) == set(buried)
    assert sum(live.values()) - letters <= killed * at_once  # a death repeats what was being moved at most


@settings(deadline=None)
@given(letters=st.integers(1, 8), after=st.integers(0, 20), at_once=st.sampled_from([1, 3, 100]))
def test_two_replays_at_once_lose_nothing(letters, after, at_once):
    kit = Kit(move_limit=at_once)
    buried = [kit.bury(task_message("t", number, task_id=f"task-{number}")).headers["id"] for number in range(letters)]
    steps = iter(range(after))
    inside = False

    def other_operator(point: str) -> None:
        nonlocal inside
        if not inside and next(steps, None) is None:
            inside = True
            kit.service.replay()

    kit.broker._on_operation = other_operator
    first = kit.service.replay()
    assert set(ids_in(kit, "celery")) == set(buried)
    assert kit.broker.depth("celery.dead") == 0
    assert first.failed <= at_once


class Life(RuleBasedStateMachine):
    """Tasks that die, are replayed, die again, complete; an operator who is killed, or discards."""

    @initialize(at_once=st.sampled_from([1, 2, 100]))
    def start(self, at_once: int) -> None:
        self.kit = Kit("a", "b", move_limit=at_once)
        self.alive: set[str] = set()
        self.completed: set[str] = set()
        self.discarded: set[str] = set()

    @rule(queue=st.sampled_from("ab"))
    def publish(self, queue: str) -> None:
        message = task_message("t", task_id=f"task-{len(self.alive) + len(self.completed) + len(self.discarded)}")
        self.alive.add(message.headers["id"])
        self.kit.broker.send(message, queue)

    @rule(queue=st.sampled_from("ab"), dies=st.booleans())
    def work(self, queue: str, dies: bool) -> None:
        received = self.kit.broker.receive(queue)
        if received is None:
            return
        number, message = received
        task_id = message.headers["id"]
        if task_id in self.completed:
            pass  # a duplicate: the guard returns the stored result
        elif dies:
            replays = Travel.from_headers(message.headers).replays
            certificate = certificate_for(message, queue=queue, replays=replays, last_seen=self.kit.clock.now())
            self.kit.broker.dead_letter(message, queue, certificate)
        else:
            self.completed.add(task_id)
            self.alive.discard(task_id)
        self.kit.broker.ack(number)

    @rule(queue=st.sampled_from([None, "a", "b"]), limit=st.sampled_from([None, 1, 3]), to_queue=st.sampled_from([None, "a"]))
    def replay(self, queue: str | None, limit: int | None, to_queue: str | None) -> None:
        report = self.kit.service.replay(Filter(queue=queue, limit=limit), to_queue=to_queue, max_replays=2)
        assert report.clean
        assert report.total == report.replayed + report.skipped

    @rule(after=st.integers(0, 12))
    def replay_and_be_killed(self, after: int) -> None:
        with suppress(Killed), killed_at(self.kit.broker, after):
            self.kit.service.replay()

    @rule()
    def look(self) -> None:
        letters = list(self.kit.service.list())
        assert len({letter.id for letter in letters}) == len(letters)
        assert sum(group.count for group in self.kit.service.groups()) == len(letters)

    @precondition(lambda self: self.kit.broker.depth("a.dead"))
    @rule()
    def discard(self) -> None:
        letter = next(self.kit.service.list(Filter(queue="a")))
        copies = sum(other.task_id == letter.task_id for other in self.kit.service.list())
        report = self.kit.service.discard(ids=[letter.task_id])
        assert (report.discarded, report.clean) == (copies, True)
        if letter.task_id in self.alive and not self.somewhere(letter.task_id):
            self.alive.discard(letter.task_id)
            self.discarded.add(letter.task_id)

    @rule(seconds=st.floats(0.001, 100))
    def wait(self, seconds: float) -> None:
        self.kit.clock.advance(seconds)

    def somewhere(self, task_id: str) -> bool:
        return any(ids_in(self.kit, queue)[task_id] for queue in ("a", "b", "a.dead", "b.dead"))

    @invariant()
    def nothing_vanishes(self) -> None:
        for task_id in getattr(self, "alive", ()):
            assert self.somewhere(task_id), task_id


TestLife = Life.TestCase
TestLife.settings = settings(deadline=None)


def test_the_kill_test_can_fail():
    """Taken before it is published, a killed replay does lose a letter: the check above would see it."""
    kit = Kit()
    kit.bury()
    [queued] = kit.broker.browse("celery.dead")
    kit.broker.take(queued)
    with pytest.raises(Killed), killed_at(kit.broker, "before send"):
        kit.broker.send(queued.message, "celery")
    assert not ids_in(kit, "celery") + ids_in(kit, "celery.dead")
