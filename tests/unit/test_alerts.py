"""``guardrails.alert(...)``: the thread that tells, what the fleet shares, and what a receiver that is away costs."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, signals

from celery_guardrails import Guardrails, events
from celery_guardrails.cli import commands
from celery_guardrails.config import Settings
from celery_guardrails.errors import GuardrailsConfigError, PermanentError, RetryableError, StoreUnavailable
from celery_guardrails.integration.alerts import desk
from celery_guardrails.integration.alerts.ledger import Ledger
from celery_guardrails.integration.app import ensure_guardrails
from celery_guardrails.policy.alerts import Alert, AlertRules, AlertState, Kind, Step, advance
from celery_guardrails.policy.deadletter import DeathCertificate
from celery_guardrails.stores.memory import MemoryStore
from tests.support.http import HttpServer
from tests.support.waiting import consistently, eventually
from tests.unit.test_dead_letters_cli import make_runner


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses of a thread, short enough for a test."""
    monkeypatch.setattr(desk, "_GATHER", 0.02)
    monkeypatch.setattr(desk, "_PACE", 0.02)
    monkeypatch.setattr(desk, "_SLOWEST", 0.05)
    monkeypatch.setattr(desk, "_BACKOFF", (0.01, 0.02))


Process = Callable[..., Guardrails]


@pytest.fixture
def process() -> Iterator[Process]:
    """Make the guardrails of one process of a fleet that shares a store."""
    made: list[Guardrails] = []

    def make(store: object = None, **settings: Any) -> Guardrails:
        made.append(Guardrails(Celery("shop", set_as_current=False), store="memory://", **settings))
        if store is not None:
            made[-1]._parts.__dict__["store"] = store
        return made[-1]

    yield make
    for rails in made:
        rails.alerts.close()


def die(rails: Guardrails, fingerprint: str = "aa", task: str = "shop.charge", **fields: Any) -> None:
    certificate = DeathCertificate("permanent", task=task, error="ValueError", fingerprint=fingerprint, **fields)
    rails.emit(events.DeadLettered("celery", certificate))


def texts(server: HttpServer) -> list[dict[str, Any]]:
    return [json.loads(body)["guardrails"] for *_, body in server.requests]


# -- one process ----------------------------------------------------------------------------------------------------


def test_the_first_letter_of_a_kind_reaches_a_webhook(server: HttpServer, process: Process) -> None:
    rails = process()
    rails.alert(webhook=f"{server.url}/hook")
    die(rails, message="no money")
    eventually(lambda: server.requests)
    (sent,) = texts(server)
    assert (sent["app"], sent["why"], sent["letters"]) == ("shop", "new", 1)
    assert sent["kinds"][0]["message"] == "no money"
    die(rails)
    assert rails.alerts.flush(5.0)
    assert len(server.requests) == 1


def test_four_thousand_deaths_in_four_threads_are_a_handful_of_messages_that_count_them_all(server: HttpServer, process: Process) -> None:
    rails = process()
    rails.alert(webhook=server.url, every=2.0)
    die(rails)
    eventually(lambda: server.requests)

    def kill() -> None:
        for number in range(1_000):
            die(rails, f"{number % 300:03x}")

    threads = [threading.Thread(target=kill) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = eventually(lambda: sum(sent["letters"] for sent in texts(server)) == 4_001 and texts(server), timeout=20)
    assert len(told) <= 5
    assert {sent["why"] for sent in told} == {"new", "rate"}


def test_other_events_and_letters_that_do_not_match_cost_no_thread(process: Process) -> None:
    rails = process()
    got: list[Alert] = []
    rails.alert(got.append, where={"task": "mail.*"})
    die(rails)
    rails.emit(events.Completed("mail.send", "id", "key", 1))
    assert not rails.alerts.counts()
    die(rails, task="mail.send")
    assert eventually(lambda: got)[0].kinds[0].task == "mail.send"


def test_a_decorated_function_is_an_alert_and_stays_what_it_was(process: Process) -> None:
    rails = process()
    got: list[Alert] = []

    @rails.alert
    def page(alert: Alert) -> None:
        got.append(alert)

    die(rails)
    eventually(lambda: got)
    page(Alert("test"))
    assert [alert.why for alert in got] == ["new", "test"]


def test_an_alert_that_is_declared_twice_is_one(process: Process) -> None:
    rails = process()
    got: list[Alert] = []

    def page(alert: Alert) -> None:
        got.append(alert)

    rails.alert(page)
    rails.alert(page)
    rails.alert(page, every=10.0)
    die(rails)
    assert rails.alerts.flush(5.0)
    assert len(got) == 2


def test_what_was_declared_on_the_default_guardrails_of_an_app_is_kept_when_others_come() -> None:
    app = Celery("shop", set_as_current=False)
    got: list[Alert] = []
    ensure_guardrails(app).alert(got.append)
    rails = Guardrails(app, store="memory://")
    die(rails)
    assert rails.alerts.flush(5.0)
    assert len(got) == 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"function": print, "webhook": "https://hooks.example.com/x"},
        {"webhook": "https://hooks.example.com/x", "email": "ops@example.com"},
    ],
)
def test_an_alert_has_one_receiver(options: dict[str, Any], process: Process) -> None:
    with pytest.raises(GuardrailsConfigError, match="one of a callable, webhook=… and email=…"):
        process().alert(**options)


def test_a_thread_with_nothing_to_do_ends_and_the_next_letter_starts_another(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "_LINGER", 0.05)
    rails = process()
    got: list[Alert] = []
    rails.alert(got.append, every=0.05)
    for number in range(3):
        die(rails, f"{number}")
        eventually(lambda number=number: len(got) == number + 1)  # type: ignore[misc]
        (one,) = rails.alerts._present().values()
        eventually(lambda one=one: one._thread is None)  # type: ignore[misc]


def test_a_fork_has_desks_of_its_own(monkeypatch: pytest.MonkeyPatch, process: Process) -> None:
    rails = process()
    got: list[Alert] = []
    rails.alert(got.append)
    die(rails)
    eventually(lambda: got)
    pid = os.getpid() + 1
    parent = next(iter(rails.alerts._present().values()))
    monkeypatch.setattr(os, "getpid", lambda: pid)
    rails._parts.__dict__["store"] = MemoryStore()
    die(rails)
    eventually(lambda: len(got) == 2)
    assert next(iter(rails.alerts._present().values())) is not parent


# -- a fleet --------------------------------------------------------------------------------------------------------


def test_of_a_fleet_one_process_tells_and_it_counts_the_letters_of_all(server: HttpServer, process: Process) -> None:
    store = MemoryStore()
    fleet = [process(store) for _ in range(8)]
    for rails in fleet:
        rails.alert(webhook=server.url, every=2.0)
    for _ in range(5):
        for rails in fleet:
            die(rails)
    assert all(rails.alerts.flush(10.0) for rails in fleet)
    assert [sent["why"] for sent in texts(server)] == ["new"]
    die(fleet[3], "bb")
    die(fleet[5], "cc")
    eventually(lambda: sum(sent["letters"] for sent in texts(server)) == 42)
    assert len(server.requests) == 2
    assert {kind["fingerprint"] for kind in texts(server)[1]["kinds"] if kind["new"]} == {"bb", "cc"}


def test_letters_that_are_many_only_together_are_a_flood(process: Process) -> None:
    store = MemoryStore()
    got: list[Alert] = []

    def page(alert: Alert) -> None:
        got.append(alert)

    fleet = [process(store) for _ in range(4)]
    for rails in fleet:
        rails.alert(page, new=False, rate="30/m")
        for _ in range(10):
            die(rails)
    assert all(rails.alerts.flush(10.0) for rails in fleet)
    (alert,) = got
    assert (alert.why, alert.letters) == ("rate", alert.count)
    assert 30 < alert.letters <= 40


def test_what_a_process_held_back_when_it_ended_is_told_by_the_worker_that_watches(server: HttpServer, process: Process) -> None:
    store = MemoryStore()
    child, main = process(store), process(store)
    for rails in (child, main):
        rails.alert(webhook=server.url, every=1.0)
    die(child)
    die(child, "bb")
    eventually(lambda: server.requests)
    die(child, "cc")
    assert child.alerts.flush(5.0)
    child.alerts.close()
    signals.worker_ready.send(sender=Consumer(main.app))
    eventually(lambda: any(kind["fingerprint"] == "cc" for sent in texts(server) for kind in sent["kinds"]))


def test_a_database_keeps_what_the_fleet_knows(tmp_path: Path, server: HttpServer) -> None:
    fleet = [
        Guardrails(Celery("shop", set_as_current=False), store=f"sqlalchemy+sqlite:///{tmp_path}/records.db", namespace="shop")
        for _ in range(3)
    ]
    for rails in fleet:
        rails.alert(webhook=server.url)
        for _ in range(40):
            die(rails, message="kein Geld für Überweisungen \N{PILE OF POO}\0")
        assert rails.alerts.flush(10.0)
    assert [sent["why"] for sent in texts(server)] == ["new", "rate"]
    assert sum(sent["letters"] for sent in texts(server)) == 120
    for rails in fleet:
        rails.alerts.close()
        rails.store.close()


class Consumer:
    """What sends the signal of a worker that is ready."""

    def __init__(self, app: Celery) -> None:
        self.app = app


class Away:
    """A store that does not answer while ``away``."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.away = True

    def __getattr__(self, name: str) -> Any:
        if self.away:
            raise StoreUnavailable("no route to the store")
        return getattr(self.store, name)


def test_without_the_store_each_process_tells_by_itself_and_is_still_limited(process: Process) -> None:
    fleet = [process(Away(MemoryStore())) for _ in range(2)]
    got: list[Alert] = []
    for rails in fleet:
        rails.alert(got.append, rate=None)
        for number in range(500):
            die(rails, f"{number:03x}")
    assert all(rails.alerts.flush(5.0) for rails in fleet)
    assert len(got) == 2


def test_a_store_that_comes_back_is_told_what_has_happened_meanwhile() -> None:
    clock = SimpleNamespace(now=time.time)
    store = Away(MemoryStore())
    rules = AlertRules()
    ledger = Ledger(lambda: store, clock, "n", rules)  # type: ignore[arg-type, return-value]
    other = Ledger(lambda: store.store, clock, "n", rules)  # type: ignore[arg-type, return-value]

    def tell(at: Ledger, *kinds: Kind) -> Step:
        return at.change(lambda state, now: advance(state, kinds, 0, now, rules))

    store.away = False
    assert tell(ledger, Kind("aa")).alert
    assert not tell(ledger, Kind("held", letters=3)).alert
    store.away = True
    assert not tell(ledger, Kind("bb", letters=5)).alert, "the last message was a moment ago"
    assert set(tell(ledger).state.held) == {"bb"}, "what waits in the store is not told by everybody"
    store.away = False
    assert not tell(ledger, Kind("cc")).alert
    assert {name: kind.letters for name, kind in tell(other).state.held.items()} == {"held": 3, "bb": 5, "cc": 1}
    assert {name: kind.letters for name, kind in tell(ledger).state.held.items()} == {"held": 3, "bb": 5, "cc": 1}


def test_a_process_that_died_with_the_state_in_its_hands_holds_nobody_up_for_long() -> None:
    now = [1_900_000_000.0]
    store = MemoryStore(now=lambda: now[0])
    ledger = Ledger(lambda: store, SimpleNamespace(now=lambda: now[0]), "n", AlertRules())  # type: ignore[arg-type]
    store.claim(ledger.key, holder="dead", fingerprint=None, lease=10.0)
    with pytest.raises(desk.Busy):
        ledger.change(lambda state, _: Step(state))
    now[0] += 10.1
    assert ledger.change(lambda state, _: Step(state)).state == AlertState()


# -- receivers that are away ----------------------------------------------------------------------------------------


def test_a_hanging_webhook_delays_nothing_but_its_own_message(server: HttpServer, process: Process) -> None:
    rails = process()
    got: list[Alert] = []
    server.misbehave("silent")
    rails.alert(webhook=server.url)
    rails.alert(got.append)
    die(rails)
    eventually(lambda: server.requests)
    began = time.monotonic()
    for number in range(1_000):
        die(rails, f"{number:03x}")
    assert time.monotonic() - began < 2.0, "a thousand dead letters while the webhook hangs"
    eventually(lambda: got)
    began = time.monotonic()
    assert not rails.alerts.flush(0.2)
    assert time.monotonic() - began < 2.0, "the end of the process does not wait for it either"


def test_a_webhook_that_fails_is_tried_three_times_and_its_letters_are_in_the_next_message(
    server: HttpServer, caplog: pytest.LogCaptureFixture, process: Process
) -> None:
    rails = process()
    server.answer(503, b"not now")
    rails.alert(webhook=f"{server.url}/secret", every=4.0)
    with caplog.at_level(logging.WARNING):
        die(rails)
        die(rails)
        eventually(lambda: len(server.requests) == 6, 30, because="three tries, and three more four seconds later")
        server.answer(200)
        eventually(lambda: len(server.requests) == 7, 30)
    assert texts(server)[6]["letters"] == 2
    assert texts(server)[6]["kinds"][0]["new"]
    (counts,) = rails.alerts.counts().values()
    eventually(lambda: (counts.sent, counts.failed, counts.tries) == (1, 2, 7))
    warnings = [text for text in caplog.messages if f"could not be sent to webhook {server.url}/…" in text]
    assert 1 <= len(warnings) <= 2, "one each `every`"
    assert "503" in warnings[0]
    assert "secret" not in warnings[0]


def test_a_broken_receiver_warns_once_however_much_dies(caplog: pytest.LogCaptureFixture, process: Process) -> None:
    rails = process()
    tried: list[int] = []

    def broken(alert: Alert) -> None:
        tried.append(alert.letters)
        raise RetryableError("pager is off")

    rails.alert(broken, every=300.0, rate="5/m")
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            die(rails)
            time.sleep(0.01)
        assert rails.alerts.flush(5.0)
        eventually(lambda: len(tried) >= 3)
        consistently(lambda: len(tried) <= 6, 0.3, because="a message of a new kind and one of a rate, three tries each")
    assert len([text for text in caplog.messages if "could not be sent to callable" in text and "pager is off" in text]) == 1


def test_what_will_never_work_is_not_tried_again_at_once(process: Process) -> None:
    rails = process()
    tried: list[Alert] = []

    def broken(alert: Alert) -> None:
        tried.append(alert)
        raise PermanentError("no such pager")

    rails.alert(broken)
    die(rails)
    eventually(lambda: tried)
    consistently(lambda: len(tried) == 1, 0.3)


def test_an_error_of_the_alert_itself_ends_no_thread_and_loses_no_letter(monkeypatch: pytest.MonkeyPatch, process: Process) -> None:
    rails = process()
    got: list[Alert] = []
    rails.alert(got.append)
    real, failures = Ledger.change, [RuntimeError("bug"), RuntimeError("bug")]

    def change(self: Ledger, step: Callable[[AlertState, float], Step]) -> Step:
        if failures:
            raise failures.pop()
        return real(self, step)

    monkeypatch.setattr(Ledger, "change", change)
    die(rails)
    assert eventually(lambda: got)[0].letters == 1


# -- settings and command -------------------------------------------------------------------------------------------


def test_the_setting_is_an_alert_of_workers_and_a_wrong_one_is_refused(server: HttpServer, process: Process) -> None:
    rails = process(alert_webhook=server.url)
    die(rails)
    assert not rails.alerts.counts()
    rails.alerts.prepare()  # a worker starts
    rails.alerts.prepare()
    die(rails)
    eventually(lambda: server.requests)
    for wrong in ("hooks.example.com/x", "", 5):
        with pytest.raises(GuardrailsConfigError, match="guardrails_alert_webhook"):
            Settings(alert_webhook=wrong)  # type: ignore[arg-type]


def run(rails: Guardrails, *args: str) -> Any:
    return make_runner().invoke(commands(lambda: rails.app), ["alert-test", *args])


def test_alert_test_sends_a_message_to_each_and_says_what_came_back(server: HttpServer, process: Process) -> None:
    rails = process()
    got: list[Alert] = []
    rails.alert(webhook=f"{server.url}/secret")
    rails.alert(webhook=f"{server.url}/secret", every=5.0)
    rails.alert(got.append)
    done = run(rails)
    assert done.exit_code == 0, done.output
    assert f"ok: webhook {server.url}/…: 200 OK" in done.stdout
    assert "ok: callable" in done.stdout
    assert [alert.why for alert in got] == ["test"]
    assert len(server.requests) == 1, "one receiver, however many alerts it has"
    assert json.loads(server.requests[0][3])["text"].startswith("[shop] a test of the alerts\nNothing has died.")


def test_alert_test_goes_on_behind_one_that_failed_and_ends_with_1(server: HttpServer, process: Process) -> None:
    rails = process()
    got: list[Alert] = []
    server.answer(403, b"invalid_token")
    rails.alert(webhook=server.url)
    rails.alert(got.append)
    done = run(rails, "--json")
    assert done.exit_code == 1
    first, second = json.loads(done.stdout)
    assert not first["ok"]
    assert "403" in first["answer"]
    assert "invalid_token" in first["answer"]
    assert second["ok"]
    assert "FAILED: webhook" in run(rails).stdout


def test_alert_test_without_an_alert_says_how_to_declare_one(process: Process) -> None:
    done = run(process())
    assert done.exit_code == 2
    assert "guardrails.alert(webhook=…)" in done.stderr
