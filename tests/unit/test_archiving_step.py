"""The worker's step that archives: one worker at a time, every so often, and in nobody's way. No worker, no thread."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")

from celery import Celery

from celery_guardrails import Guardrails, GuardrailsConfigError
from celery_guardrails.contrib.sqlalchemy_archive import SQLAlchemyTable
from celery_guardrails.dead_letters.archive import State
from celery_guardrails.worker.archiving import Archiving, check_archive, turn_of
from tests.support.archive import Desk
from tests.support.dead_letters import task_message
from tests.support.killing import Killed, killed_at, meanwhile

SECONDS = 600.0


class Fleet(Desk):
    """Workers that share broker, store and archive of a desk."""

    def worker(self, name: str = "w1", **settings: Any) -> Archiving:
        app = Celery("shop", broker="memory://", set_as_current=False)
        chosen = {"archive": self.table.name, "archive_seconds": SECONDS, **settings}
        rails = Guardrails(app, store="memory://", **chosen)
        rails.clock = self.kit.clock
        rails._opened = (os.getpid(), self.rails)
        return Archiving(SimpleNamespace(app=app, hostname=name))

    def bury(self, number: int = 1) -> None:
        for _ in range(number):
            self.kit.bury(task_message("t"))

    def lease(self) -> Any:
        return self.kit.store.lookup(turn_of(["celery.dead"]))


@pytest.fixture
def fleet(letter_table: SQLAlchemyTable) -> Fleet:
    return Fleet(letter_table)


def test_one_worker_archives_and_the_others_leave_it_alone_until_the_time_is_over(fleet: Fleet) -> None:
    fleet.bury(3)
    first, second = fleet.worker("w1"), fleet.worker("w2")
    first._round()
    assert (fleet.states(), fleet.kit.broker.depth("celery.dead")) == ({"waiting": 3}, 0)
    assert [(entry.who, entry.action, entry.letters) for entry in fleet.trail] == [("worker w1", "archive", 3)]
    fleet.bury()
    for worker in (first, second):
        worker._round()
    assert fleet.kit.broker.depth("celery.dead") == 1
    fleet.kit.clock.advance(SECONDS + 1)
    second._round()
    assert fleet.kit.broker.depth("celery.dead") == 0
    assert fleet.trail[-1].who == "worker w2"


def test_a_worker_with_other_queues_does_not_wait_for_the_turn_of_the_first(fleet: Fleet) -> None:
    fleet.worker("w1")._round()
    fleet.kit.broker.declare("mail")
    fleet.kit.bury(queue="mail")
    fleet.worker("w2")._round()
    assert fleet.kit.broker.depth("mail.dead") == 0


def test_it_comes_again_soon_enough_to_be_on_time(fleet: Fleet) -> None:
    worker = fleet.worker()
    assert all(SECONDS / 4 <= worker._round() <= SECONDS / 2 for _ in range(5))


def test_while_one_archives_no_other_does(fleet: Fleet) -> None:
    fleet.bury()
    other = fleet.worker("w2")

    def comes() -> None:
        other._round()
        assert fleet.lease().owner == "worker w1"

    with meanwhile(fleet.kit.broker, "before take", comes):
        fleet.worker("w1")._round()
    assert [entry.who for entry in fleet.trail] == ["worker w1"]


@pytest.mark.parametrize("point", ["before take", "after take"])
def test_a_worker_that_is_killed_while_it_archives_is_followed_by_another_when_its_lease_is_over(fleet: Fleet, point: str) -> None:
    fleet.bury(3)
    release = fleet.kit.store.release
    fleet.kit.store.release = lambda *_, **__: None  # who is killed releases nothing
    with pytest.raises(Killed), killed_at(fleet.kit.broker, point):
        fleet.worker("w1")._round()
    fleet.kit.store.release = release
    assert len(fleet.rows) == 3
    survivor = fleet.worker("w2")
    survivor._round()
    assert fleet.kit.broker.depth("celery.dead") > 0
    fleet.kit.clock.advance(61)
    survivor._round()
    assert (fleet.states(), fleet.kit.broker.depth("celery.dead")) == ({"waiting": 3}, 0)


def test_retention_is_kept_and_what_waits_is_spared(fleet: Fleet) -> None:
    fleet.bury(3)
    fleet.run()
    rows = fleet.archive.first(fleet.archive.rows(), 2)
    fleet.table.change(rows, old=State.WAITING, new=State.DISCARDED, now=fleet.kit.clock.now())
    fleet.kit.clock.advance(2 * 86400)
    worker = fleet.worker(archive_keep_days=3, archive_keep_count=1)
    worker._round()
    assert fleet.states() == {"waiting": 1, "discarded": 1}
    fleet.kit.clock.advance(2 * 86400)
    worker._round()
    assert fleet.states() == {"waiting": 1}


def test_a_worker_that_stops_ends_behind_the_batch_in_hand_and_leaves_the_rest_to_another(fleet: Fleet) -> None:
    fleet.bury(250)
    worker = fleet.worker("w1")
    worker._background._stop.set()
    worker._round()
    assert (len(fleet.rows), fleet.kit.broker.depth("celery.dead")) == (100, 150)
    fleet.worker("w2")._round()
    assert (len(fleet.rows), fleet.kit.broker.depth("celery.dead")) == (250, 0)


def test_a_worker_that_was_overtaken_ends(fleet: Fleet) -> None:
    fleet.bury(250)

    def frozen(point: str) -> None:
        if len(fleet.rows) == 100:
            fleet.kit.broker._on_operation = lambda point: None
            fleet.kit.clock.advance(61)
            fleet.kit.store.claim(turn_of(["celery.dead"]), holder="other", fingerprint=None, lease=60)

    fleet.kit.broker._on_operation = frozen
    fleet.worker("w1")._round()
    assert len(fleet.rows) == 100
    assert fleet.trail[-1].outcome == "another worker has taken over"
    assert fleet.lease().holder == "other"


def test_an_archive_that_is_away_is_told_once_and_left_in_peace(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    fleet.bury()

    class Away(SimpleNamespace):
        @property
        def archive(self) -> Any:
            raise ConnectionRefusedError("the database is away")

    here = fleet.rails
    fleet.rails = Away(**{name: value for name, value in vars(here).items() if name != "archive"})
    worker = fleet.worker()
    assert all(60.0 <= worker._round() <= 120.0 for _ in range(3))
    assert sum("the database is away" in record.getMessage() for record in caplog.records) == 1
    assert fleet.lease().holder == ""
    worker._rails._opened = (os.getpid(), here)
    worker._round()
    assert fleet.states() == {"waiting": 1}


def test_letters_that_cannot_be_kept_are_told_and_the_turn_is_over_all_the_same(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    fleet.bury()
    message = task_message("odd")
    fleet.kit.bury_raw(type(message)(**{**vars(message), "headers": {"id": "x", "task": "odd", "what": object()}}))
    worker = fleet.worker()
    worker._round()
    assert fleet.states() == {"waiting": 1}
    assert "left in the queue: 1, such as" in caplog.text
    assert fleet.lease().state.value == "completed"


def test_it_is_off_unless_asked_for_and_wants_an_archive(fleet: Fleet) -> None:
    off = fleet.worker(archive_seconds=None)
    assert not off.include_if(None)
    check_archive(off._rails)
    assert fleet.worker().include_if(None)
    with pytest.raises(GuardrailsConfigError, match="guardrails_archive_seconds = 600.0: there is no archive"):
        check_archive(fleet.worker(archive=None)._rails)
    with pytest.raises(
        GuardrailsConfigError, match="guardrails_archive = 'mongodb://x': no archive for 'mongodb://'; allowed are django://"
    ):
        check_archive(fleet.worker(archive="mongodb://x")._rails)
    with pytest.raises(GuardrailsConfigError, match="in memory"):
        check_archive(fleet.worker(archive="sqlalchemy+sqlite://", archive_seconds=None)._rails)
