"""What a message remembers of its failed attempts and deaths: within its room, through the guard, on RabbitMQ's wire, in `show`."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from amqp.serialization import dumps
from hypothesis import given
from hypothesis import strategies as st

from celery_guardrails.dead_letters.render import letter_data, letter_text
from celery_guardrails.guard import ErrorReport
from celery_guardrails.integration.brokers.amqp_wire import fitting, live_wire
from celery_guardrails.integration.brokers.base import dead_headers, without_history
from celery_guardrails.policy.deadletter import DeathCertificate, error_fingerprint, past_attempt
from celery_guardrails.policy.delivery import DEAD_LETTER_HEADER, TRAVEL_HEADER, Travel
from celery_guardrails.policy.history import (
    HISTORY_BYTES,
    PastAttempt,
    PastDeath,
    died_again,
    history_header,
    read_deaths,
    read_history,
    remembered,
)
from celery_guardrails.policy.retry import RetryPolicy
from celery_guardrails.policy.verdict import DeadLetterNow, Limits, RetryIn
from tests.support.dead_letters import Kit, certificate_for, task_message
from tests.unit.test_guard import BROKEN, HOPELESS, Bench, waiting

LIMITS = Limits(retry=RetryPolicy(max_attempts=9, base=2.0, cap=60.0, jitter="none"))
FRAME = 131_072
texts = st.text(max_size=2_500)


def attempt(number: int, error: str = "E", traceback: str = "t" * 3_000, message: str = "m" * 300) -> PastAttempt:
    return PastAttempt(number, 1_800_000_000.0 + number, error, message, error_fingerprint(error, ""), traceback)


def after(*attempts: PastAttempt) -> tuple[PastAttempt, ...]:
    history: tuple[PastAttempt, ...] = ()
    for past in attempts:
        history = remembered(history, past)
    return history


# -- room -----------------------------------------------------------------------------------------------------------


def test_an_attempt_keeps_the_head_of_its_message_and_the_tail_of_its_traceback() -> None:
    (past,) = after(attempt(1, "E" * 500, "t" * 3_000 + "cause", "head" + "m" * 300))
    assert (len(past.error), len(past.message), len(past.traceback)) == (120, 200, 1_500)
    assert past.message.startswith("head")
    assert past.traceback.endswith("cause")


def test_the_oldest_tracebacks_go_first() -> None:
    history = after(*(attempt(number, f"E{number}") for number in range(1, 8)))
    assert [past.attempt for past in history] == [1, 2, 3, 4, 5, 6, 7]
    assert [past.attempt for past in history if past.traceback] == [5, 6, 7]


def test_the_traceback_of_an_error_that_came_again_goes_before_that_of_one_that_did_not() -> None:
    history = after(attempt(1, "first"), *(attempt(number, "again") for number in range(2, 7)))
    assert [past.attempt for past in history if past.traceback] == [1, 4, 5, 6]


def test_without_tracebacks_the_middle_goes_and_the_next_entry_counts_it() -> None:
    history = after(*(attempt(number) for number in range(1, 101)))
    assert history[0].attempt == 1
    assert [past.attempt for past in history[-5:]] == [96, 97, 98, 99, 100]
    (gap,) = [past for past in history if past.skipped]
    before = history[history.index(gap) - 1]
    assert gap.skipped == gap.attempt - before.attempt - 1 > 0


@given(st.lists(st.builds(PastAttempt, st.integers(0, 99), error=texts, message=texts, fingerprint=st.text(max_size=16), traceback=texts)))
def test_the_history_stays_within_its_room_on_the_wire_and_counts_every_attempt(attempts: list[PastAttempt]) -> None:
    history = after(*attempts)
    assert len(dumps("F", [{"history": history_header(history) or []}])) <= HISTORY_BYTES
    assert sum(past.skipped + 1 for past in history) == len(attempts)
    assert read_history(json.loads(json.dumps(history_header(history)))) == history


def test_of_deaths_the_last_ten_are_kept() -> None:
    deaths: tuple[PastDeath, ...] = ()
    for number in range(12):
        deaths = died_again(deaths, PastDeath("exhausted", f"E{number}", float(number)))
    assert [death.error for death in deaths] == [f"E{number}" for number in range(2, 12)]


@pytest.mark.parametrize("at", [-1.0, 253_402_300_800, float("nan"), True, "5", None])
def test_a_time_that_nobody_can_write_down_counts_as_unset(at: Any) -> None:
    assert read_history([{"attempt": 1, "at": at}]) == (PastAttempt(1),)
    assert read_deaths([{"reason": "broker", "at": at}, 7]) == (PastDeath("broker"),)


@pytest.mark.parametrize(("spare", "traceback"), [(0, True), (-1, False)])
def test_tracebacks_stay_while_the_history_has_exactly_its_room(spare: int, traceback: bool) -> None:
    history = after(*(attempt(number, f"E{number}") for number in range(1, 5)))
    full = sum(past.size for past in history)
    assert len([past for past in history if past.traceback]) == 4
    fifth = replace(attempt(5, "E5", "", ""), traceback="t" * (HISTORY_BYTES - full - attempt(5, "E5", "", "").size - spare))
    assert bool(remembered(history, fifth)[0].traceback) is traceback
    assert sum(past.size for past in remembered(history, fifth)) <= HISTORY_BYTES


@pytest.mark.parametrize(("spare", "kept"), [(0, [1, 2, 3]), (-1, [1, 3])])
def test_no_attempt_goes_while_the_history_has_exactly_its_room(spare: int, kept: list[int]) -> None:
    large = [PastAttempt(number, error="e" * 120, message="m" * 200, fingerprint="f" * 2_000) for number in (1, 2)]
    room = HISTORY_BYTES - sum(past.size for past in large) - PastAttempt().size
    history = remembered(large, PastAttempt(3, fingerprint="f" * (room - spare)))
    assert [past.attempt for past in history] == kept
    assert history[-1].skipped == 3 - len(kept)


def test_half_of_a_character_counts_as_it_is_written() -> None:
    assert PastAttempt(message="\ud800").size == PastAttempt().size + 3


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "1", None])
def test_a_number_of_attempts_is_a_whole_number_above_nothing(value: Any) -> None:
    (past,) = read_history([{"attempt": value, "skipped": value, "error": 7}])
    assert (past, type(past.attempt)) == (PastAttempt(), int)
    assert read_deaths([{"reason": value, "error": b"x"}])[0].error == ""


# -- through the guard ------------------------------------------------------------------------------------------------


@pytest.fixture
def bench() -> Bench:
    return Bench()


def fail(bench: Bench, travel: Travel, report: ErrorReport, outcome: Any = BROKEN) -> Travel:
    """Fail once and return what the next delivery knows."""
    delivery = bench.delivery(f"holder {len(bench.events)}", travel=travel)
    _, claim = bench.guard.admit(delivery, LIMITS)
    verdict = bench.guard.settle(delivery, claim, outcome, LIMITS, error=report)
    if isinstance(verdict, DeadLetterNow):
        return travel
    assert isinstance(verdict, RetryIn)
    message = waiting(bench)
    number, _ = bench.broker.receive("q") or (0, None)
    bench.broker.ack(number)
    return Travel.from_headers(message.headers)


def test_every_retry_adds_its_error_and_the_letter_has_all_of_them(bench: Bench) -> None:
    began = bench.clock.now()
    travel = fail(bench, Travel(first=began), ErrorReport("shop.Away", "gone", "first trace"))
    travel = fail(bench, travel, ErrorReport("shop.Busy", "later", "second trace"))
    fail(bench, travel, ErrorReport("shop.Bad", "no", "last trace"), HOPELESS)
    assert [(past.attempt, past.error, past.message, past.traceback) for past in travel.history] == [
        (1, "shop.Away", "gone", "first trace"),
        (2, "shop.Busy", "later", "second trace"),
    ]
    assert travel.history[0].at == began
    assert travel.history[0].fingerprint == error_fingerprint("shop.Away", "first trace")
    (letter,) = bench.broker.browse("q.dead")
    header = letter.message.headers[DEAD_LETTER_HEADER]
    assert (header["error"], header["traceback"]) == ("shop.Bad", "last trace")
    assert "history" not in header, "it stands in the travel header of the original already"
    (told,) = [event.certificate for event in bench.events if hasattr(event, "certificate")]
    assert told.history == travel.history


def test_a_hand_back_keeps_the_history(bench: Bench) -> None:
    history = (attempt(1),)
    bench.store.claim("key", holder="other", fingerprint="f", lease=60)
    bench.guard.admit(bench.delivery(travel=Travel(first=bench.clock.now(), history=history)), LIMITS)
    assert Travel.from_headers(waiting(bench, 1.0).headers).history == history


def test_a_retry_without_an_error_has_no_fingerprint() -> None:
    assert past_attempt(ErrorReport(message="asked for"), attempt=3, now=5.0) == PastAttempt(3, 5.0, "", "asked for")


# -- on RabbitMQ's wire -----------------------------------------------------------------------------------------------


def told_in(wire: Any) -> tuple[Travel, DeathCertificate | None]:
    headers = wire.properties["application_headers"]
    return Travel.from_headers(headers), DeathCertificate.from_header(headers.get(DEAD_LETTER_HEADER))


@pytest.mark.parametrize(("padding", "history", "traceback"), [(0, True, 16_000), (108_000, False, 16_000), (128_000, False, 512)])
def test_a_letter_that_does_not_fit_loses_its_history_before_its_traceback(padding: int, history: bool, traceback: int) -> None:
    kept = after(*(attempt(number, f"E{number}") for number in range(1, 8)))
    message = task_message(padding="x" * padding, **{TRAVEL_HEADER: Travel(key="k", attempts=7, history=kept).to_header()})
    certificate = certificate_for(message, traceback="t" * 16_000)
    wire = fitting(message, dead_headers(message, certificate), {}, certificate, FRAME if padding else 2 * FRAME)
    travel, told = told_in(wire)
    assert len(wire._serialize_properties()) <= FRAME
    assert travel == Travel(key="k", attempts=7, history=kept if history else ())
    assert told is not None
    assert len(told.traceback) == traceback


@pytest.mark.parametrize(("padding", "history"), [(0, True), (90_000, True), (110_000, False)])
def test_a_live_message_leaves_its_history_behind_where_its_letter_would_have_no_room(padding: int, history: bool) -> None:
    kept = (attempt(1),)
    message = task_message(padding="x" * padding, **{TRAVEL_HEADER: Travel(attempts=1, history=kept).to_header()})
    wire = live_wire(message, dict(message.headers), {}, SimpleNamespace(header_limit=lambda: FRAME))  # type: ignore[arg-type]
    assert told_in(wire)[0] == Travel(attempts=1, history=kept if history else ())


def test_a_message_without_history_is_not_even_measured() -> None:
    for headers in ({}, {TRAVEL_HEADER: {"key": "k"}}, {TRAVEL_HEADER: "foreign"}):
        assert without_history(headers) is headers
    message = task_message()
    wire = live_wire(message, dict(message.headers), {}, None)  # type: ignore[arg-type]
    assert wire.properties["application_headers"] == message.headers


# -- shown ------------------------------------------------------------------------------------------------------------


def test_show_tells_of_every_attempt_the_newest_first_and_of_the_deaths_before() -> None:
    kit = Kit()
    history = (attempt(1, "shop.Away", "trace one\x1b[31m"), replace(attempt(5, "shop.Busy", "trace five"), skipped=3))
    deaths = (PastDeath("exhausted", "shop.Away", 1_700_000_000.0), PastDeath("broker"))
    travel = Travel(key="k", attempts=5, history=history, deaths=deaths)
    kit.bury(task_message(**{TRAVEL_HEADER: travel.to_header()}))
    (letter,) = kit.service.list()
    data = letter_data(letter, full=True)
    assert [(past["attempt"], past["at"], past["skipped"]) for past in data["history"]] == [
        (1, "2027-01-15T08:00:01.000Z", 0),
        (5, "2027-01-15T08:00:05.000Z", 3),
    ]
    assert data["previous_deaths"] == [
        {"reason": "exhausted", "error": "shop.Away", "at": "2023-11-14T22:13:20.000Z"},
        {"reason": "broker", "error": "", "at": None},
    ]
    assert data["headers"][TRAVEL_HEADER] == {"key": "k", "attempts": 5}, "they are not told twice"
    text = "\n".join(letter_text(letter))
    order = ["in charge", "attempt 5, 2027-01-15T08:00:05.000Z: shop.Busy: mmm", "trace five", "left out to save room: 3", "attempt 1,"]
    order += ["trace one\\x1b", "death 1, 2023-11-14T22:13:20.000Z: exhausted shop.Away", "death 2, -: broker"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_a_replay_starts_the_history_anew_and_keeps_the_death() -> None:
    kit = Kit()
    kit.bury(task_message(**{TRAVEL_HEADER: Travel(key="k", history=(attempt(1),), deaths=(PastDeath("deadline"),)).to_header()}))
    kit.service.replay()
    (message,) = kit.broker.messages("celery")
    travel = Travel.from_headers(message.headers)
    assert travel.history == ()
    assert travel.deaths == (PastDeath("deadline"), PastDeath("exhausted", "builtins.ConnectionError", 1_899_990_000.0))


def test_a_letter_that_the_broker_made_tells_its_history_as_well() -> None:
    kit = Kit()
    kit.bury_raw(task_message(**{TRAVEL_HEADER: Travel(history=(attempt(1, traceback="x"),)).to_header()}))
    (letter,) = kit.service.list()
    assert letter.reason == "broker"
    assert letter.certificate.history == (attempt(1, traceback="x"),)
