"""What a task publishes inherits what remains of its deadline: a child in this process, publishing to memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery, chain, chord, group, signals
from celery.app.trace import build_tracer
from celery.backends.base import Backend
from kombu.utils.json import dumps, loads

from celery_guardrails import GuardedTask, Guardrails, RetryPolicy
from celery_guardrails.integration.translate import DELIVERY_FIELD
from celery_guardrails.policy.delivery import TRAVEL_HEADER, Delivery, RawMessage, Travel
from celery_guardrails.policy.verdict import deadline_of
from tests.unit.test_guard import Bench

#: Seconds.
SPAN = 30.0


class Wire:
    """What is published, and a worker's child that runs it when it is told to."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.clock = self.bench.clock
        self.clock._now = float(int(time.time()))  # Celery makes an ETA by its own clock
        self.app = Celery("wire", broker="memory://", backend="cache+memory://", set_as_current=True)
        self.app.conf.result_chord_retry_interval = 0.01
        self.rails = Guardrails(self.app, store="memory://")
        self.rails.clock = self.clock
        wire = self

        class Parts:
            guard = wire.bench.guard

        self.rails._opened = (os.getpid(), Parts())  # type: ignore[assignment]
        self.waiting: list[tuple[dict[str, Any], Any]] = []
        self.bodies: dict[str, Any] = {}
        self.until: dict[str, float | None] = {}

    def receive(self, headers: dict[str, Any], body: Any, **_: Any) -> None:
        self.waiting.append(loads(dumps([headers, body])))
        self.until[headers["task"].removeprefix("wire.")] = Travel.from_headers(headers).until

    def task(self, name: str, body: Any = None, *, deadline: float | None = None, inherit: bool = True, **options: Any) -> Any:
        """Define a guarded task with a body of no arguments that counts."""
        retry = RetryPolicy(max_attempts=2, deadline=deadline, inherit_deadline=inherit)

        @self.app.task(base=GuardedTask, bind=True, name=f"wire.{name}", retry=retry, shared=False, lazy=False, **options)
        def run(self: Any, *args: Any) -> Any:
            return body(self) if body is not None else name

        return run

    def plain(self, name: str, body: Any = None) -> Any:
        @self.app.task(bind=True, name=f"wire.{name}", shared=False, lazy=False)
        def run(self: Any, *args: Any) -> Any:
            return body(self) if body is not None else name

        return run

    def work(self) -> None:
        """Run what waits, and what that publishes, until nothing does."""
        while self.waiting:
            self.step()

    def step(self) -> None:
        """Run the first message that waits."""
        headers, (args, kwargs, embed) = self.waiting.pop(0)
        task = self.app.tasks[headers["task"]]
        request = {**headers, **embed, "delivery_info": {}, "hostname": "here"}
        if isinstance(task, GuardedTask):
            travel = Travel.from_headers(headers)
            raw = RawMessage(b"", "application/json", "utf-8", headers, {}, "", "q")
            request[DELIVERY_FIELD] = Delivery(
                headers["id"], task.name, travel.key or headers["id"], None, headers["id"], "q", travel, raw=raw
            )
        build_tracer(task.name, task, app=self.app)(headers["id"], args, kwargs, request)


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    signals.after_task_publish.connect(wire.receive)
    yield wire
    signals.after_task_publish.disconnect(wire.receive)


def fail(task: Any) -> None:
    raise KeyError("on purpose")


# -- published in the body ------------------------------------------------------------------------------------------


def test_a_child_inherits_the_deadline_and_not_a_fresh_one(wire: Wire) -> None:
    child = wire.task("child")

    def body(task: Any) -> None:
        wire.clock.advance(20)
        child.delay()

    wire.task("parent", body, deadline=SPAN).delay()
    began = wire.clock.now()
    wire.work()
    assert wire.until == {"parent": None, "child": began + SPAN}


def test_a_grandchild_inherits_it_through_a_child_that_has_none_of_its_own(wire: Wire) -> None:
    grandchild = wire.task("grandchild")
    child = wire.task("child", lambda _: grandchild.delay())
    wire.task("parent", lambda _: child.delay(), deadline=SPAN).delay()
    end = wire.clock.now() + SPAN
    wire.work()
    assert wire.until == {"parent": None, "child": end, "grandchild": end}


def test_the_earlier_deadline_is_handed_on(wire: Wire) -> None:
    grandchild = wire.task("grandchild")
    child = wire.task("child", lambda _: grandchild.delay(), deadline=5)
    wire.task("parent", lambda _: child.delay(), deadline=SPAN).delay()
    began = wire.clock.now()
    wire.work()
    assert wire.until == {"parent": None, "child": began + SPAN, "grandchild": began + 5}


def test_without_a_deadline_there_is_nothing_to_inherit(wire: Wire) -> None:
    child = wire.task("child")
    wire.task("parent", lambda _: child.delay()).delay()
    wire.plain("plain", lambda _: child.delay()).delay()
    wire.work()
    assert wire.until == {"parent": None, "plain": None, "child": None}


def test_a_message_published_outside_of_a_task_inherits_nothing(wire: Wire) -> None:
    wire.task("parent", deadline=SPAN).delay()
    wire.work()
    wire.task("child").delay()
    assert wire.until["child"] is None


def test_what_is_sent_by_name_and_a_plain_task_get_it_too(wire: Wire) -> None:
    wire.plain("plain")

    def body(task: Any) -> None:
        wire.app.tasks["wire.plain"].delay()
        wire.app.send_task("wire.elsewhere")

    wire.task("parent", body, deadline=SPAN).delay()
    end = wire.clock.now() + SPAN
    wire.step()
    assert (wire.until["plain"], wire.until["elsewhere"]) == (end, end)
    assert wire.waiting[1][0][TRAVEL_HEADER] == {"until": end}


def test_a_task_that_inherits_nothing_is_not_bound_and_hands_nothing_on(wire: Wire) -> None:
    grandchild = wire.task("grandchild")
    child = wire.task("child", lambda _: grandchild.delay(), inherit=False)

    def body(task: Any) -> None:
        child.delay()
        wire.clock.advance(SPAN)

    wire.task("parent", body, deadline=SPAN).delay()
    wire.work()
    assert wire.until["grandchild"] is None


@pytest.mark.parametrize("given", [SPAN - 5, SPAN + 5])
def test_a_deadline_that_the_message_has_already_is_only_made_earlier(wire: Wire, given: float) -> None:
    child = wire.task("child")
    began = wire.clock.now()
    headers = {TRAVEL_HEADER: {"until": began + given}}
    wire.task("parent", lambda _: child.apply_async(headers=headers) and None, deadline=SPAN).delay()
    wire.step()
    assert wire.until["child"] == began + min(given, SPAN)


@pytest.mark.parametrize(("seconds", "inherits"), [(SPAN - 5, True), (SPAN + 5, False)])
def test_what_is_to_begin_after_the_deadline_does_not_inherit_it(wire: Wire, seconds: float, inherits: bool) -> None:
    child = wire.task("child")
    at = datetime.fromtimestamp(wire.clock.now() + seconds, timezone.utc)
    wire.task("parent", lambda _: child.apply_async(eta=at), deadline=SPAN).delay()
    wire.task("other", lambda _: child.apply_async(eta=at.astimezone(timezone(timedelta(hours=9)))), deadline=SPAN).delay()
    end = wire.clock.now() + SPAN
    wire.step()
    assert wire.until["child"] == (end if inherits else None)
    wire.step()
    assert wire.until["child"] == (end if inherits else None)


def test_a_task_that_runs_inline_within_another_hands_on_the_others_deadline(wire: Wire) -> None:
    grandchild = wire.task("grandchild")
    child = wire.task("child", lambda _: grandchild.delay() and None)
    wire.task("parent", lambda _: child.apply() and None, deadline=SPAN).delay()
    end = wire.clock.now() + SPAN
    wire.work()
    assert wire.until["grandchild"] == end


def test_self_retry_keeps_what_was_inherited_and_its_own_deadline_stays_its_own(wire: Wire) -> None:
    def body(task: Any) -> None:
        if not task.request.retries:
            raise task.retry(countdown=0)

    child = wire.task("child", body, deadline=5)
    wire.task("parent", lambda _: child.delay(), deadline=SPAN).delay()
    began = wire.clock.now()
    wire.step()
    wire.clock.advance(1)
    wire.step()
    again = Travel.from_headers(wire.waiting[0][0])
    assert (again.attempts, again.first, again.until) == (1, began, began + SPAN)
    wire.work()


def test_a_task_put_in_place_of_another_inherits_its_deadline(wire: Wire) -> None:
    other = wire.task("other")

    def body(task: Any) -> None:
        wire.clock.advance(1)
        raise task.replace(other.si())

    wire.task("parent", body, deadline=SPAN).delay()
    end = wire.clock.now() + SPAN
    wire.work()
    assert wire.until["other"] == end


# -- published by Celery when the body has returned -----------------------------------------------------------------


def test_every_step_of_a_chain_inherits_the_deadline_of_the_one_before(wire: Wire) -> None:
    first, second, third = wire.task("first", deadline=SPAN), wire.task("second"), wire.task("third", deadline=500)
    chain(first.si(), second.si(), third.si()).delay()
    end = wire.clock.now() + SPAN
    wire.work()
    assert wire.until == {"first": None, "second": end, "third": end}


def test_a_link_and_a_group_of_links_inherit(wire: Wire) -> None:
    first, link, other = wire.task("first", deadline=SPAN), wire.task("link"), wire.task("other")
    first.apply_async(link=[link.si(), other.si()])
    end = wire.clock.now() + SPAN
    wire.work()
    assert (wire.until["link"], wire.until["other"]) == (end, end)


def test_a_group_behind_a_task_inherits(wire: Wire) -> None:
    first, one, other = wire.task("first", deadline=SPAN), wire.task("one"), wire.task("other")
    chain(first.si(), group(one.si(), other.si())).delay()
    end = wire.clock.now() + SPAN
    wire.work()
    assert (wire.until["one"], wire.until["other"]) == (end, end)


BODIES = {"a task": lambda body, last: body.si(), "a chain": lambda body, last: body.si() | last.si()}


@pytest.mark.parametrize("form", BODIES)
@pytest.mark.parametrize("joined", ["by the backend", "by chord_unlock"])
def test_a_chord_of_a_task_inherits_and_so_does_its_body(wire: Wire, form: str, joined: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, body, last = wire.task("one"), wire.task("other"), wire.task("body"), wire.task("last")
    join(wire, joined, monkeypatch)
    wire.task("parent", lambda _: chord([one.si(), other.si()], BODIES[form](body, last)).delay() and None, deadline=SPAN).delay()
    end = wire.clock.now() + SPAN
    wire.work()
    assert (wire.until["one"], wire.until["other"], wire.until["body"]) == (end, end, end)
    assert ("celery.chord_unlock" in wire.until) == (joined == "by chord_unlock")
    if form == "a chain":
        assert wire.until["last"] == end


def join(wire: Wire, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "by chord_unlock":  # what a backend does that cannot count
        for method in ("apply_chord", "on_chord_part_return"):
            monkeypatch.setattr(wire.app.backend, method, getattr(Backend, method).__get__(wire.app.backend))


def test_a_step_behind_a_stored_value_inherits_what_remains_for_it(wire: Wire) -> None:
    first, second = wire.task("first", deadline=SPAN, key="once"), wire.task("second")
    first.delay()
    wire.work()
    wire.clock.advance(5)
    chain(first.si(), second.si()).delay()
    end = wire.clock.now() + SPAN
    wire.work()
    assert wire.until["second"] == end


# -- error callbacks ------------------------------------------------------------------------------------------------


def test_the_error_callback_of_a_task_that_failed_inherits_nothing(wire: Wire) -> None:
    report = wire.task("report")
    wire.task("broken", fail, deadline=SPAN).apply_async(link_error=report.s())
    wire.work()
    assert wire.until == {"broken": None, "report": None}


def test_the_error_callback_of_a_task_whose_inherited_deadline_has_passed_runs(wire: Wire) -> None:
    ran = []
    report = wire.task("report", ran.append)
    late = wire.task("late", fail)
    chain(wire.task("first", lambda _: wire.clock.advance(SPAN), deadline=SPAN).si(), late.si().on_error(report.s())).delay()
    wire.work()
    assert wire.until["late"] is not None
    assert [letter.message.headers["guardrails"]["reason"] for letter in wire.bench.broker.browse("q.dead")] == ["deadline"]
    assert len(ran) == 1


@pytest.mark.parametrize("joined", ["by the backend", "by chord_unlock"])
def test_the_error_callback_of_a_chord_inherits_nothing_though_a_task_that_succeeded_finds_out(
    wire: Wire, joined: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, broken, good, body = wire.task("report"), wire.task("broken", fail), wire.task("good"), wire.task("body")
    join(wire, joined, monkeypatch)
    header = [broken.si(), good.si()]
    wire.task("parent", lambda _: chord(header, body.si().on_error(report.s())).delay() and None, deadline=SPAN).delay()
    wire.work()
    assert wire.until["good"] is not None
    assert wire.until["report"] is None
    assert "body" not in wire.until


# -- and in the worker ----------------------------------------------------------------------------------------------


def test_what_another_program_wrote_as_an_eta_does_not_keep_a_deadline_from_travelling(wire: Wire) -> None:
    from celery_guardrails.integration.deadlines import _begins

    assert [_begins({"eta": eta}) for eta in (None, "", "soon", 5, [], "9999-99-99")] == [0.0] * 6
    assert _begins({"eta": "1970-01-01T00:01:00"}) == 60.0


def test_the_deadline_that_a_child_sees_is_the_inherited_one(wire: Wire) -> None:
    child = wire.task("child", deadline=SPAN + 5)
    wire.task("parent", lambda _: child.delay(), deadline=SPAN).delay()
    end = wire.clock.now() + SPAN
    wire.step()
    travel = Travel.from_headers(wire.waiting[0][0])
    delivery = Delivery("id", "wire.child", "key", None, "holder", "q", travel)
    assert deadline_of(delivery, child.guard_options.limits(wire.rails.settings)) == end
