"""Canaries on the databases themselves: operators who press at the same time begin one, and let no more go than a stage may."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_guardrails.dead_letters import Filter, KombuDecoder
from celery_guardrails.dead_letters.archive import open_table
from celery_guardrails.errors import GuardrailsConfigError
from celery_guardrails.policy.lease import StoredResult
from tests.support.archive import Desk
from tests.support.dead_letters import task_message

pytest.importorskip("django", reason="pip install 'celery-guardrails[django]'")

from django.db import connections

_SERVERS = {"sqlite": {"timeout": 20}, "postgres": {}, "mariadb": {"charset": "utf8mb4"}}


@pytest.fixture(params=["sqlite", *(pytest.param(name, marks=pytest.mark.chaos) for name in ("postgres", "mariadb"))])
def desk(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Desk]:
    from celery_guardrails.contrib.django.archive import Archive
    from tests.support import django as dj

    databases: Any = None if request.param == "sqlite" else request.getfixturevalue(request.param)
    url = f"sqlite:///{tmp_path / 'canary.sqlite3'}" if databases is None else databases.fresh_url()
    try:
        with dj.database(f"canary-{request.param}", url, OPTIONS=_SERVERS[request.param]) as alias:
            made = Desk(open_table(f"django://{alias}"), "celery", "other")
            kit = made.kit
            made.archive = Archive(kit.broker, kit.store, clock=kit.clock, decoder=KombuDecoder(["json"]), using=alias)
            yield made
    finally:
        if databases is not None:
            databases.drop(url)


def at_once(desk: Desk, *operators: Callable[[], Any]) -> list[Any]:
    """Let operators act at the same time, and return what came of it, or its error."""
    ready, done = threading.Barrier(len(operators)), []

    def act(operator: Callable[[], Any]) -> None:
        try:
            ready.wait(30)
            done.append(operator())
        except Exception as exc:  # noqa: BLE001 - the test looks at it
            done.append(exc)
        finally:
            connections[desk.archive.using].close()

    threads = [threading.Thread(target=act, args=(operator,)) for operator in operators]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    return done


def complete(desk: Desk, keys: list[str]) -> None:
    for key in keys:
        claim = desk.kit.store.claim(key, holder="h", fingerprint=None, lease=60)
        result = StoredResult("application/json", "utf-8", b"1", "task")
        desk.kit.store.complete(key, holder="h", fingerprint=None, fence=claim.fence, result=result, retention=600)


def test_operators_at_the_same_time_begin_one_canary_and_let_no_more_go_than_a_stage_may(desk: Desk) -> None:
    from celery_guardrails.contrib.django.canarying import Canaries
    from celery_guardrails.contrib.django.models import CanaryRun

    runs = CanaryRun.objects.using(desk.archive.using)
    for number in range(210):
        desk.kit.bury(task_message("t", number))
    desk.run()
    canaries = [Canaries(desk.archive) for _ in range(3)]

    started = at_once(desk, *(lambda each=each: each.start(desk.archive.rows(), who="me") for each in canaries))
    assert sum(isinstance(outcome, GuardrailsConfigError) for outcome in started) == 2, started
    run = runs.get()
    assert (run.chosen, run.counted, desk.kit.broker.depth("celery")) == (210, 1, 1)

    def go_on() -> list[Any]:
        found = [runs.get(pk=run.pk) for _ in canaries]
        stage = found[0].stage
        complete(desk, list(canaries[0].birds(found[0]).values_list("key", flat=True)))
        acts = (lambda each=each, mine=mine: each.go_on(mine, stage, who="me") for each, mine in zip(canaries, found, strict=True))
        return at_once(desk, *acts)

    done = go_on()
    assert all(isinstance(why, str) for why in done), done
    now = runs.get()
    assert (now.stage, now.counted, desk.kit.broker.depth("celery")) == (1, 3, 4)

    done = go_on()
    assert all(isinstance(why, str) for why in done), done
    sent = [message.headers["id"] for message in desk.kit.broker.messages("celery")]
    assert len(sent) == len(set(sent)) == 210
    assert desk.states() == {"replayed": 210}
    canaries[0].look(runs.get())
    assert runs.get().state == "done"


def test_what_an_open_canary_has_chosen_the_commands_show_and_leave_alone(desk: Desk) -> None:
    from celery_guardrails.contrib.django.canarying import Canaries
    from celery_guardrails.contrib.django.models import CanaryRun

    for number in range(4):
        desk.kit.bury(task_message("held", number))
    desk.run()
    canaries = Canaries(desk.archive)
    run, _ = canaries.start(desk.archive.rows(), who="ann")
    desk.kit.bury(task_message("other", 1))
    desk.run()
    commands = desk.everywhere("bob")
    assert Counter(letter.task for letter in commands.list()) == {"held": 3, "other": 1}
    held = next(letter.id for letter in commands.list() if letter.task == "held")
    assert commands.replay(dry_run=True).total == commands.discard(dry_run=True).total == 1
    assert commands.replay(ids=[held]).missing == commands.discard(ids=[held]).missing == (held,)
    assert desk.archive.discard(desk.archive.rows(Filter(task="held")), who="bob").discarded == 0
    assert commands.replay().replayed == 1
    assert commands.discard().discarded == 0
    canaries.stop(CanaryRun.objects.using(desk.archive.using).get(pk=run.pk), who="ann")
    assert commands.discard().discarded == 3


def test_one_that_a_canary_chooses_while_a_command_replays_stays_the_canarys(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from celery_guardrails.contrib.django.canarying import Canaries

    for number in range(3):
        desk.kit.bury(task_message("t", number))
    desk.run()
    table = desk.archive.table
    mark = table.mark

    def overtaken(pk: int, **states: Any) -> bool:
        monkeypatch.undo()
        Canaries(desk.archive).start(desk.archive.rows(), who="ann")
        return mark(pk, **states)

    monkeypatch.setattr(table, "mark", overtaken)
    report = desk.everywhere("bob").replay()
    assert (report.total, report.replayed, report.clean) == (0, 0, True)
    assert desk.states() == {"waiting": 2, "replayed": 1}
    assert desk.kit.broker.depth("celery") == 1


def test_a_letter_that_came_again_is_free_whatever_canary_had_it(desk: Desk) -> None:
    from celery_guardrails.contrib.django.canarying import Canaries

    desk.kit.bury(task_message("t", 1))
    desk.run()
    Canaries(desk.archive).start(desk.archive.rows(), who="ann")
    desk.kit.bury_raw(desk.letters[0].message)
    desk.run()
    [row] = desk.rows
    assert (row.state, row.canary_id, row.canary_stage) == ("waiting", None, None)
