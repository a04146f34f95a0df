"""Dead letters in a database: moved there once each, kept byte for byte, found, replayed, discarded, restored.

One suite for every table of an archive: on SQLite in every run, on PostgreSQL and MariaDB with ``-m chaos``.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_guardrails.dead_letters import Filter, KombuDecoder
from celery_guardrails.dead_letters.archive import Archive, LetterTable, open_table
from celery_guardrails.dead_letters.archive.places import Places
from celery_guardrails.dead_letters.redaction import HIDDEN, redactor
from celery_guardrails.dead_letters.tasks import KnownTask
from celery_guardrails.errors import DeadLetterError, GuardrailsConfigError, PublishFailed
from celery_guardrails.policy.delivery import RawMessage, Travel
from celery_guardrails.policy.lease import StoredResult
from celery_guardrails.ports import Move, Moved
from tests.support.archive import Desk
from tests.support.dead_letters import task_message
from tests.support.killing import Killed, killed_at, meanwhile

DAY = 86400.0
_DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
_SERVERS = [
    pytest.param(f"{library}-{server}", marks=pytest.mark.chaos)
    for library in ("django", "sqlalchemy")
    for server in ("postgres", "mariadb")
]


@pytest.fixture(scope="module", params=["django-sqlite", "sqlalchemy-sqlite", *_SERVERS])
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LetterTable]:
    library, _, server = request.param.partition("-")
    pytest.importorskip(library)
    databases: Any = None if server == "sqlite" else request.getfixturevalue(server)
    url = f"sqlite:///{tmp_path_factory.mktemp('db') / 'archive.sqlite3'}" if databases is None else databases.fresh_url()
    with contextlib.ExitStack() as stack:
        if databases is not None:
            stack.callback(databases.drop, url)
        if library == "django":
            from tests.support import django as dj

            options = {"sqlite": {"timeout": 20}, "mariadb": {"charset": "utf8mb4"}}.get(server, {})
            made = open_table(f"django://{stack.enter_context(dj.database(f'archive-{server}', url, OPTIONS=options))}")
        else:
            scheme, separator, rest = url.partition("://")
            made = open_table(f"sqlalchemy+{_DRIVERS.get(scheme, scheme)}{separator}{rest}")
        assert made.ready()
        stack.callback(made.close)
        yield made


@pytest.fixture
def desk(table: LetterTable) -> Desk:
    return Desk(table, "celery", "other")


# -- kept as it was -------------------------------------------------------------------------------------------------

#: As py-amqp hands out timestamps.
NAIVE = datetime(2026, 1, 2)  # noqa: DTZ001
HEADERS = {
    "bytes": b"\x00\xff",
    "when": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone.utc),
    "naive": NAIVE,
    "price": Decimal("1.50"),
    "nan": float("inf"),
    "zero": "a\x00b \ud800 \U0001f600",
    "$bytes": "not ours",
    "deep": [{"$map": 1, "x": [b"y", None, True]}],
    "big": 2**70,
}


def test_a_letter_is_kept_byte_for_byte_and_is_the_same_letter_again(desk: Desk) -> None:
    odd = RawMessage(b"\x80\x00 not json", "application/x-odd", None, HEADERS, {"priority": 3, "timestamp": NAIVE}, "e", "r")
    desk.kit.bury(task_message("shop.charge", 7, key="k:\U0001f600\x00"), message="nul \x00 \ud800", traceback="\x00" * 20)
    desk.kit.bury_raw(odd)
    before = list(desk.kit.service.list())
    assert desk.run().archived == 2
    assert desk.letters == before
    assert desk.kit.broker.depth("celery.dead") == 0


def test_a_letter_that_the_database_cannot_take_stays_in_the_queue_and_keeps_no_other_out(desk: Desk) -> None:
    desk.kit.bury()
    desk.kit.bury_raw(replace(task_message("odd"), headers={"id": "x", "task": "odd", "what": object()}))
    desk.kit.bury()
    report = desk.run()
    assert (report.archived, report.failed, report.clean) == (2, 1, False)
    assert "object" in report.failures[0].why
    assert [message.headers["task"] for message in desk.kit.broker.messages("celery.dead")] == ["odd"]


# -- moved once -----------------------------------------------------------------------------------------------------


def test_every_queue_is_archived_in_batches_or_only_the_one_that_is_named(desk: Desk) -> None:
    for number in range(7):
        desk.kit.bury(task_message("t", number), queue="celery")
    desk.kit.bury(queue="other")
    assert desk.run(queues=["other"]).queues == {"other.dead": 1}
    report = desk.run(batch=3)
    assert (report.archived, report.queues, report.clean) == (7, {"celery.dead": 7, "other.dead": 0}, True)
    assert desk.states() == {"waiting": 8}
    assert [(entry.action, entry.before, entry.after, entry.letters) for entry in desk.trail] == [
        ("archive", 0, 1, 1),
        ("archive", 1, 8, 7),
    ]
    assert desk.run().archived == 0
    assert len(desk.trail) == 2


def test_a_dry_run_moves_nothing_and_leaves_no_trail(desk: Desk) -> None:
    desk.kit.bury()
    report = desk.run(dry_run=True)
    assert (report.archived, report.dry_run) == (1, True)
    assert (desk.kit.broker.depth("celery.dead"), len(desk.rows), desk.trail) == (1, 0, [])


@settings(deadline=None, max_examples=15)
@given(letters=st.integers(1, 9), batch=st.integers(1, 4), twins=st.booleans(), deaths=st.lists(st.integers(0, 12), max_size=4))
def test_killed_anywhere_nothing_is_lost_and_nothing_doubled(
    table: LetterTable, letters: int, batch: int, twins: bool, deaths: list[int]
) -> None:
    desk = Desk(table)
    for number in range(letters):
        original = desk.kit.bury(task_message("t", number, task_id=f"task-{number}"))
        if twins:
            desk.kit.bury(original)
    expected = {letter.id: letter.message for letter in desk.kit.service.list()}
    distinct = {identifier for identifier in expected if "." not in identifier}  # of two that are the same in every byte one is enough
    for after in deaths:
        with contextlib.suppress(Killed), killed_at(desk.kit.broker, after):
            desk.run(batch=batch)
        # at the very moment of death each letter is in the table or in the queue
        assert {row.letter_id for row in desk.rows} | set(desk.kit.ids()) >= distinct
    assert desk.run(batch=batch).clean
    assert desk.kit.broker.depth("celery.dead") == 0
    kept = desk.letters
    assert len({letter.id for letter in kept}) == len(kept)
    assert distinct <= {letter.id for letter in kept} <= set(expected)
    assert all(letter.message == expected[letter.id] for letter in kept)


def test_a_letter_replayed_from_the_table_before_it_was_taken_is_only_taken(desk: Desk) -> None:
    desk.kit.bury()
    with pytest.raises(Killed), killed_at(desk.kit.broker, "before take"):
        desk.run()
    assert desk.rows[0].taken_at is None
    assert desk.archive.replay(desk.archive.rows(), who="me").replayed == 1
    report = desk.run()
    assert (report.archived, report.known) == (1, 1)
    assert desk.states() == {"replayed": 1}
    assert desk.kit.broker.depth("celery") == 1


def test_a_letter_that_was_taken_by_a_run_that_could_not_say_so_is_settled_by_one_that_does_not_find_it(desk: Desk) -> None:
    original = desk.kit.bury()
    with pytest.raises(Killed), killed_at(desk.kit.broker, "after take"):
        desk.run()
    desk.archive.discard(desk.archive.rows(), who="me")
    desk.kit.bury(task_message("other"))
    desk.run()
    assert desk.table.uncertain("celery.dead") == [desk.rows[0].letter_id]  # another operator may hold it
    desk.kit.clock.advance(2 * DAY)
    desk.kit.bury(task_message("other"))
    desk.run()
    assert desk.table.uncertain("celery.dead") == []
    desk.kit.bury(original)  # so this is a new one
    desk.run()
    assert desk.rows[0].state == "waiting"


def test_a_copy_that_comes_after_its_letter_was_discarded_waits_again(desk: Desk) -> None:
    original = desk.kit.bury()
    desk.run()
    desk.archive.discard(desk.archive.rows(), who="me")
    desk.kit.bury(original)
    desk.run()
    assert desk.states() == {"waiting": 1}
    assert "again" in desk.rows[0].note


def test_a_letter_that_somebody_else_takes_meanwhile_waits_with_a_note(desk: Desk) -> None:
    desk.kit.bury()
    with meanwhile(desk.kit.broker, "before take", desk.kit.service.replay):
        report = desk.run()
    assert (report.archived, report.elsewhere, report.clean) == (0, 1, True)
    assert "somebody else" in desk.rows[0].note


def test_two_runs_at_once_make_one_row_of_each_letter(desk: Desk) -> None:
    for number in range(4):
        desk.kit.bury(task_message("t", number))
    with meanwhile(desk.kit.broker, "before take", desk.run):
        report = desk.run()
    assert (report.archived, report.elsewhere) == (0, 4)
    assert desk.states() == {"waiting": 4}
    assert {row.note for row in desk.rows} == {""}


def test_a_run_that_is_overtaken_between_its_look_and_its_insert_makes_no_second_row(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    insert = desk.table.insert

    def overtaken(*args: Any, **options: Any) -> None:
        monkeypatch.undo()
        desk.run()
        insert(*args, **options)

    for number in range(4):
        desk.kit.bury(task_message("t", number))
    monkeypatch.setattr(desk.table, "insert", overtaken)
    report = desk.run()
    assert (report.archived, report.elsewhere, report.clean) == (0, 4, True)
    assert desk.states() == {"waiting": 4}


def test_a_broker_that_breaks_stops_the_run_and_the_next_one_goes_on(desk: Desk) -> None:
    for number in range(3):
        desk.kit.bury(task_message("t", number))

    def broken(point: str) -> None:
        if point == "before take" and desk.kit.broker.depth("celery.dead") == 2:
            raise DeadLetterError("take a letter: gone") from OSError("gone")

    desk.kit.broker._on_operation = broken
    report = desk.run()
    assert (report.archived, "gone" in report.stopped, report.clean) == (1, True, False)
    assert desk.trail[0].outcome == report.stopped
    desk.kit.broker._on_operation = lambda point: None
    assert desk.run().archived == 2
    assert desk.states() == {"waiting": 3}


def test_a_database_that_takes_nothing_leaves_everything_in_the_queue(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise desk.table.errors[0]("the database is away")

    monkeypatch.setattr(desk.table, "insert", away)
    for number in range(5):
        desk.kit.bury(task_message("t", number))
    report = desk.run(batch=2)
    assert "the database is away" in report.stopped
    assert (report.failed, desk.kit.broker.depth("celery.dead")) == (2, 5)


# -- retention ------------------------------------------------------------------------------------------------------


def aged(desk: Desk) -> None:
    """Six letters, a day apart, every other one replayed; the last was archived today."""
    for number in range(6):
        desk.kit.bury(task_message("t", number))
        desk.run()
        if number % 2 == 0:
            desk.archive.replay(desk.archive.rows(Filter(task="t")), who="me", canary=True)
        desk.kit.clock.advance(DAY)


@pytest.mark.parametrize(
    ("limits", "deleted", "left"),
    [
        ({"keep_days": 4.5}, 1, {"waiting": 3, "replayed": 2}),
        ({"keep_count": 1}, 2, {"waiting": 3, "replayed": 1}),
        ({"keep_days": 0, "keep_count": 9}, 3, {"waiting": 3}),
        ({"keep_days": 4.5, "purge_waiting": True}, 2, {"waiting": 2, "replayed": 2}),
        ({"keep_count": 0, "purge_waiting": True}, 6, {}),
        ({}, 0, {"waiting": 3, "replayed": 3}),
    ],
)
def test_retention_deletes_the_oldest_and_spares_what_waits(desk: Desk, limits: Any, deleted: int, left: dict[str, int]) -> None:
    aged(desk)
    assert desk.run(dry_run=True, **limits).purged == deleted
    assert desk.run(**limits).purged == deleted
    assert desk.states() == left
    assert [entry.letters for entry in desk.trail if entry.action == "purge"] == [deleted] * bool(deleted)


@pytest.mark.parametrize("options", [{"batch": 0}, {"keep_days": -1}, {"keep_count": -1}])
def test_a_wrong_option_is_refused_before_anything_moves(desk: Desk, options: Any) -> None:
    desk.kit.bury()
    with pytest.raises(GuardrailsConfigError, match=f"--{next(iter(options)).replace('_', '-')}"):
        desk.run(**options)
    assert desk.kit.broker.depth("celery.dead") == 1


# -- looking --------------------------------------------------------------------------------------------------------


def test_letters_are_chosen_as_in_the_queue(desk: Desk) -> None:
    kit = desk.kit
    kit.bury(task_message("shop.charge", key="k1"), error="shop.errors.GatewayBusy", last_seen=kit.clock.now() - 50)
    kit.bury(task_message("shop.ship+now"), reason="permanent", queue="other", last_seen=kit.clock.now() - 5000)
    kit.bury_raw(task_message("foreign"))
    filters = [
        Filter(),
        Filter(task="shop.*"),
        Filter(task="shop.ship+now"),
        Filter(task="shop?charge"),
        Filter(task="charge"),
        Filter(error="GatewayBusy"),
        Filter(error="shop.errors.Gate*"),
        Filter(error="Busy"),
        Filter(reason="broker"),
        Filter(queue="other"),
        Filter(queue="other.dead"),
        Filter(key="k1"),
        Filter(since=kit.clock.now() - 100),
        Filter(until=kit.clock.now() - 100),
        Filter(limit=2),
        Filter(fingerprint="abcd"),
    ]
    expected = [[letter.id for letter in kit.service.list(where)] for where in filters]
    desk.run()
    assert [[letter.id for letter in desk.archive.list(where)] for where in filters] == expected
    assert desk.archive.show(expected[0][0]).id == expected[0][0]
    with pytest.raises(DeadLetterError, match="nobody"):
        desk.archive.show("nobody")


def test_groups_are_those_of_the_queue_with_a_trend(desk: Desk) -> None:
    kit = desk.kit
    now = kit.clock.now()
    for ago in (100.0, 3700.0, 3700.0, 30 * 3600.0):
        kit.bury(task_message(f"t{ago:.0f}"), error="a.B", last_seen=now - ago)
    kit.bury(queue="other", reason="permanent", error="c.D", message="why", last_seen=now)
    plain = [(g.reason, g.error, g.fingerprint, g.count, g.first_seen, g.last_seen, g.tasks, g.queues) for g in kit.service.groups()]
    desk.run()
    groups = desk.archive.groups()
    assert [(g.reason, g.error, g.fingerprint, g.count, g.first_seen, g.last_seen, g.tasks, g.queues) for g in groups] == plain
    assert [sum(group.trend) for group in groups] == [3, 1]
    assert groups[1].trend[-1] == 1
    assert len(groups[0].trend) == 24
    assert (groups[1].message, next(row.letter_id for row in desk.rows if row.pk == groups[1].sample_pk)) == ("why", groups[1].sample)
    assert len(desk.archive.groups(Filter(limit=1))) == 1
    assert desk.archive.groups(state="discarded") == []


# -- moving ---------------------------------------------------------------------------------------------------------


def test_a_replay_publishes_the_same_task_and_key_with_fresh_attempts(desk: Desk) -> None:
    message = desk.kit.bury(task_message("shop.charge", 7, key="charge:7"))
    desk.run()
    report = desk.archive.replay(desk.archive.rows(), who="ann", why="mended", selection="all")
    assert (report.total, report.replayed, report.destinations, report.reasons) == (1, 1, {"celery": 1}, {"exhausted": 1})
    [live] = desk.kit.broker.messages("celery")
    travel = Travel.from_headers(live.headers)
    assert (live.body, live.headers["id"], travel.key, travel.attempts, travel.replays) == (
        message.body,
        message.headers["id"],
        "charge:7",
        0,
        1,
    )
    assert desk.states() == {"replayed": 1}
    entry = desk.trail[-1]
    assert (entry.action, entry.who, entry.why, entry.selection) == ("replay", "ann", "mended", "all")
    assert (entry.before, entry.after, entry.letters, json.loads(entry.outcome)) == (1, 0, 1, {"destinations": {"celery": 1}})
    assert desk.archive.replay(desk.archive.rows(state=None), who="bob").total == 0


def test_a_canary_replays_the_newest_letter_only(desk: Desk) -> None:
    for number in range(3):
        desk.kit.bury(task_message("t", number, task_id=f"id-{number}"))
    desk.run()
    assert desk.archive.replay(desk.archive.rows(), who="me", canary=True).replayed == 1
    assert [message.headers["id"] for message in desk.kit.broker.messages("celery")] == ["id-2"]
    assert (desk.trail[-1].action, desk.trail[-1].before, desk.trail[-1].after) == ("canary", 3, 2)


def test_letters_that_were_replayed_too_often_or_are_hopeless_stay(desk: Desk) -> None:
    desk.kit.bury(replays=3)
    desk.kit.bury(reason="undecodable")
    desk.run()
    report = desk.archive.replay(desk.archive.rows(), who="me")
    assert (report.total, report.replayed, report.skipped_max_replays, report.skipped_hopeless) == (2, 0, 1, 1)
    assert desk.archive.replay(desk.archive.rows(), who="me", hopeless=True, max_replays=4, to_queue="other").destinations == {"other": 2}
    with pytest.raises(GuardrailsConfigError, match="max_replays"):
        desk.archive.replay(desk.archive.rows(), who="me", max_replays=0)


def test_a_dry_run_counts_keys_that_completed_meanwhile_and_moves_nothing(desk: Desk) -> None:
    for key in ("a", "b"):
        desk.kit.bury(task_message(key=key))
    desk.run()
    store = desk.kit.store
    claim = store.claim("a", holder="h", fingerprint=None, lease=60)
    result = StoredResult("application/json", "utf-8", b"1", "task")
    store.complete("a", holder="h", fingerprint=None, fence=claim.fence, result=result, retention=600)
    trail = len(desk.trail)
    report = desk.archive.replay(desk.archive.rows(), who="me", dry_run=True)
    assert (report.replayed, report.already_completed, report.dry_run) == (2, 1, True)
    assert (desk.states(), desk.kit.broker.depth("celery"), len(desk.trail)) == ({"waiting": 2}, 0, trail)


def test_what_cannot_be_published_waits_on(desk: Desk) -> None:
    for number in range(3):
        desk.kit.bury(task_message("t", number))
    desk.run()
    refuse = iter([False, True, False])

    def broken(point: str) -> None:
        if point == "before send" and next(refuse):
            raise PublishFailed("no such queue")

    desk.kit.broker._on_operation = broken
    report = desk.archive.replay(desk.archive.rows(), who="me")
    assert (report.replayed, report.failed, report.failures[0].why) == (2, 1, "no such queue")
    assert desk.states() == {"waiting": 1, "replayed": 2}


@settings(deadline=None, max_examples=10)
@given(letters=st.integers(1, 6), deaths=st.lists(st.integers(0, 8), max_size=3))
def test_a_replay_killed_anywhere_loses_nothing(table: LetterTable, letters: int, deaths: list[int]) -> None:
    desk = Desk(table)
    buried = [desk.kit.bury(task_message("t", number)).headers["id"] for number in range(letters)]
    desk.run()
    killed = 0
    for after in deaths:
        try:
            with killed_at(desk.kit.broker, after):
                desk.archive.replay(desk.archive.rows(), who="me")
        except Killed:
            killed += 1
        waiting = set(desk.tasks(state="waiting"))
        assert waiting | {message.headers["id"] for message in desk.kit.broker.messages("celery")} == set(buried)
    assert desk.archive.replay(desk.archive.rows(), who="me").clean
    live = Counter(message.headers["id"] for message in desk.kit.broker.messages("celery"))
    assert set(live) == set(buried)
    assert sum(live.values()) - letters <= killed  # a death repeats one message at most


@pytest.mark.parametrize("face", ["the admin's", "the commands'"])
def test_two_operators_at_once_replay_each_letter_once(desk: Desk, face: str) -> None:
    for number in range(30):
        desk.kit.bury(task_message("t", number))
    desk.run()
    reports: list[Any] = []
    ready = threading.Barrier(2)

    def operator(name: str) -> None:
        try:
            ready.wait(10)
            if face == "the admin's":
                reports.append(desk.archive.replay(desk.archive.rows(), who=name))
            else:
                reports.append(desk.everywhere(name).replay())
        finally:
            desk.table.close()

    threads = [threading.Thread(target=operator, args=(name,)) for name in ("ann", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [report.clean for report in reports] == [True, True]
    assert sum(report.replayed for report in reports) == 30
    assert len({message.headers["id"] for message in desk.kit.broker.messages("celery")}) == 30
    assert desk.kit.broker.depth("celery") == 30


def test_it_stops_when_its_time_is_over_and_says_so(desk: Desk) -> None:
    for number in range(5):
        desk.kit.bury(task_message("t", number))
    desk.run()
    report = desk.archive.replay(desk.archive.rows(), who="me", rate=1, seconds=2)
    assert (report.replayed, report.stopped) == (3, "2 seconds are over")
    assert desk.archive.replay(desk.archive.rows(), who="me").replayed == 2


def test_discarding_is_taken_back_by_restoring_and_both_are_on_the_trail(desk: Desk) -> None:
    for number in range(3):
        desk.kit.bury(task_message("t", number))
    desk.run()
    some = desk.archive.first(desk.archive.rows(), 2)
    assert desk.archive.discard(some, who="ann", why="test orders", selection="two").discarded == 2
    assert desk.states() == {"waiting": 1, "discarded": 2}
    assert desk.archive.restore(desk.archive.rows(state=None), who="bob") == 2
    assert desk.states() == {"waiting": 3}
    ours = [(entry.action, entry.who, entry.why, entry.before, entry.after, entry.letters) for entry in desk.trail[-2:]]
    assert ours[0] == ("discard", "ann", "test orders", 2, 0, 2)
    assert (ours[1][0], ours[1][1], ours[1][5]) == ("restore", "bob", 2)
    desk.archive.discard(desk.archive.rows(state=None), who="ann")
    assert desk.archive.replay(desk.archive.rows(state=None), who="ann").total == 0
    assert desk.archive.destinations(desk.archive.rows(state=None)) == {"celery": 3}


# -- queue and archive in one batch ----------------------------------------------------------------------------------


def both(desk: Desk) -> tuple[Places, list[Move]]:
    """Two letters in the archive and two in the queue, and how all of them are to be moved: by turns."""
    for number in range(4):
        desk.kit.bury(task_message("t", number, task_id=f"id-{number}"))
        if number == 1:
            desk.run()
    places = Places(desk.kit.broker, desk.archive)
    letters = list(places.browse("celery.dead"))
    order = [letters[2], letters[0], letters[3], letters[1]]
    return places, [Move(letter, letter.message, "celery") for letter in order]


def sent(desk: Desk) -> list[str]:
    return sorted(message.headers["id"] for message in desk.kit.broker.messages("celery"))


def test_letters_of_queue_and_archive_are_moved_in_one_batch_each_told_in_its_place(desk: Desk) -> None:
    places, moves = both(desk)
    assert places.move(moves) == [Moved(True, True)] * 4
    assert sent(desk) == ["id-0", "id-1", "id-2", "id-3"]
    assert (desk.states(), desk.kit.broker.depth("celery.dead")) == ({"replayed": 2}, 0)


def test_a_letter_of_the_archive_that_somebody_else_moved_meanwhile_is_not_sent_again(desk: Desk) -> None:
    places, moves = both(desk)
    desk.archive.discard(desk.archive.rows(ids=["id-0"]), who="bob")
    done = places.move(moves)
    assert [(moved.sent, moved.taken) for moved in done] == [(True, True), (False, True), (True, True), (True, True)]
    assert "somebody else" in str(done[1].error)
    assert sent(desk) == ["id-1", "id-2", "id-3"]
    assert desk.states() == {"replayed": 1, "discarded": 1}


@pytest.mark.parametrize("named", [False, True])
def test_one_that_somebody_else_moved_is_missed_by_those_only_who_named_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    both(desk)
    names = [desk.archive.show(f"id-{number}").id for number in range(2)]
    mark = desk.table.mark

    def overtaken(pk: int, **states: Any) -> bool:
        monkeypatch.undo()
        desk.archive.discard(desk.archive.rows(ids=names[:1]), who="bob")
        return mark(pk, **states)

    monkeypatch.setattr(desk.table, "mark", overtaken)
    report = desk.everywhere("ann", queued=False).replay(ids=names if named else ())
    assert (report.total, report.replayed, report.failed) == (1 + named, 1, named)
    assert sent(desk) == ["id-1"]
    assert (desk.trail[-1].letters, desk.states()) == (1, {"replayed": 1, "discarded": 1})


def test_a_broker_that_fails_in_the_transaction_lets_the_letter_of_the_archive_wait(desk: Desk) -> None:
    places, moves = both(desk)
    send = desk.kit.broker.send

    def refused(message: RawMessage, queue: str) -> None:
        if message.headers["id"] in ("id-0", "id-2"):
            raise PublishFailed("no")
        send(message, queue)

    desk.kit.broker.send = refused  # type: ignore[method-assign]
    done = places.move(moves)
    assert [(moved.sent, moved.taken, str(moved.error or "")) for moved in done] == [
        (False, False, "no"),
        (False, False, "no"),
        (True, True, ""),
        (True, True, ""),
    ]
    assert (desk.states(), desk.kit.broker.depth("celery.dead")) == ({"waiting": 1, "replayed": 1}, 1)
    desk.kit.broker.send = send  # type: ignore[method-assign]
    assert desk.everywhere().replay().replayed == 2
    assert sent(desk) == ["id-0", "id-1", "id-2", "id-3"]


# -- what is shown, and what is written down ---------------------------------------------------------------------------


def test_what_is_shown_is_redacted_positional_arguments_by_their_names_as_well(desk: Desk) -> None:
    known = KnownTask("shop.charge", inspect.signature(lambda order, pan, *, note="": None), lambda *_: (None, None))
    options: dict[str, Any] = {"clock": desk.kit.clock, "decoder": KombuDecoder(["json"])}
    desk.kit.bury(task_message("shop.charge", 7, "4111"), message="refused 4111")
    desk.run()
    by_name = Archive(desk.table, None, None, redact=redactor(["pan"]), tasks={"shop.charge": known}.get, **options)
    letter = by_name.show(desk.letters[0].id)
    assert letter.shown_payload().args == (7, HIDDEN)
    assert letter.payload.args == (7, "4111"), "it is replayed as it was"
    nameless = Archive(desk.table, None, None, redact=redactor(["pan"]), **options)
    assert nameless.show(letter.id).shown_payload().args == (7, "4111"), "nobody knows the name"
    by_text = Archive(
        desk.table, None, None, redact=lambda value: value.replace("4111", "…") if isinstance(value, str) else value, **options
    )
    assert (by_text.groups()[0].message, by_text.show(letter.id).shown_message) == ("refused …", "refused …")


def test_an_entry_of_the_trail_says_from_the_start_what_is_to_be_done(desk: Desk) -> None:
    with pytest.raises(Killed), desk.archive.audited("edit", desk.archive.rows(), "ann", outcome="1 becomes 2"):
        raise Killed
    assert (desk.trail[-1].action, desk.trail[-1].outcome, desk.trail[-1].after) == ("edit", "1 becomes 2", None)
