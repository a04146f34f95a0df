"""Letters that are moved by the hundred are chosen, limited, counted and stopped as if they went one by one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest

from celery_guardrails.dead_letters import Filter
from celery_guardrails.dead_letters import passes as passes_module
from celery_guardrails.errors import DeadLetterError, PublishFailed
from celery_guardrails.ports import Move, Moved
from tests.support.dead_letters import Kit, task_message


class Bulk(Kit):
    """Seven letters, of which three may be moved at once, and what the broker was asked to move together."""

    def __init__(self, letters: int = 7, at_once: int = 3) -> None:
        super().__init__(move_limit=at_once)
        for number in range(letters):
            self.bury(task_message("odd" if number % 2 else "even", number, task_id=f"task-{number}"))
        self.moved: list[list[str]] = []
        self.real = self.broker.move
        self.broker.move = self.move  # type: ignore[method-assign]

    def move(self, moves: Sequence[Move]) -> list[Moved]:
        self.moved.append([move.message.headers["id"].removeprefix("task-") for move in moves])
        return self.real(moves)

    def there(self, queue: str = "celery.dead") -> str:
        return "".join(message.headers["id"].removeprefix("task-") for message in self.broker.messages(queue))


def test_letters_go_so_many_at_once_in_their_order_and_the_rest_behind_them():
    kit = Bulk()
    seen: list[tuple[int, int]] = []
    report = kit.service.replay(on_progress=lambda progress: seen.append((progress.looked_at, progress.done)))
    assert kit.moved == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert kit.there("celery") == "0123456"
    assert (report.total, report.replayed, report.clean) == (7, 7, True)
    assert seen == [(number, number) for number in range(1, 8)]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 6])
def test_a_limit_is_met_exactly(limit: int):
    kit = Bulk()
    assert kit.service.replay(Filter(limit=limit)).replayed == limit
    assert kit.there("celery") == "0123456"[:limit]


def test_letters_that_are_not_chosen_are_counted_in_their_place():
    kit = Bulk()
    seen: list[tuple[int, int]] = []
    report = kit.service.replay(Filter(task="odd"), on_progress=lambda progress: seen.append((progress.looked_at, progress.done)))
    assert kit.moved == [["1", "3", "5"]]
    assert (report.total, report.replayed) == (3, 3)
    assert seen == [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3)]
    assert kit.there() == "0246"


def test_those_asked_for_by_name_go_together_and_the_rest_is_not_looked_at():
    kit = Bulk()
    names = kit.ids()
    report = kit.service.replay(ids=[names[1], names[4]])
    assert kit.moved == [["1", "4"]]
    assert (report.replayed, report.missing) == (2, ())


def test_a_large_letter_waits_for_no_others(monkeypatch):
    monkeypatch.setattr(passes_module, "_HANDFUL", 1)
    kit = Bulk()
    kit.service.replay()
    assert kit.moved == [[str(number)] for number in range(7)]


@pytest.mark.parametrize("after", range(8))
def test_a_stop_leaves_what_is_in_hand_where_it_was_and_the_totals_are_exact(after: int):
    kit = Bulk()
    asked = count()
    report = kit.service.replay(should_stop=lambda: next(asked) >= after)
    done = 7 if after == 7 else after // 3 * 3
    assert (report.replayed, report.total, report.stopped) == (done, done, "" if after == 7 else "interrupted")
    assert (kit.there("celery"), kit.there()) == ("0123456"[:done], "0123456"[done:])


def test_with_a_rate_that_lets_them_go_slowly_they_go_one_by_one():
    kit = Bulk()
    kit.service.replay(rate=10)
    assert kit.moved == [[str(number)] for number in range(7)]


def test_canaries_go_one_by_one():
    kit = Bulk()
    assert kit.service.replay(canary=True, canary_wait=1.0).replayed == 7
    assert kit.moved == [["0"], ["1"], ["2", "3", "4"], ["5", "6"]]


@pytest.mark.parametrize(("sent", "taken", "failed"), [(True, False, 1), (False, False, 1), (False, True, 0)])
def test_what_became_of_each_is_told_of_that_letter_only(sent: bool, taken: bool, failed: int):
    kit = Bulk()

    def moving(moves: Sequence[Move]) -> list[Moved]:
        wrong = Moved(sent, taken, PublishFailed("no") if not sent else DeadLetterError("no"))
        return [wrong if move.message.headers["id"] == "task-4" else done for move, done in zip(moves, kit.move(moves), strict=True)]

    kit.broker.move = moving  # type: ignore[method-assign]
    report = kit.service.replay()
    assert (report.replayed, report.failed, report.total) == (6, failed, 6 + failed)
    assert [("is in 'celery' now" in failure.why) for failure in report.failures] == [sent] * failed


def test_a_letter_that_somebody_else_took_is_missed_by_those_only_who_asked_for_it():
    kit = Bulk()
    names = kit.ids()
    kit.broker.move = lambda moves: [Moved(False, True, DeadLetterError("somebody else took it"))] * len(moves)  # type: ignore[method-assign]
    assert kit.service.replay().clean
    report = kit.service.replay(ids=names[:1])
    assert (report.failed, report.failures[0].why) == (1, "somebody else took it")


def test_where_others_have_taken_letters_those_in_hand_are_moved_all_the_same(monkeypatch):
    """The iterator ends before the letters that were counted have come, and may then hold none any more."""
    kit = Bulk()
    browse = kit.broker.browse
    browses: list[int] = []

    def emptied(queue: str, **options: Any) -> Any:
        browses.append(kit.broker.depth(queue))
        yield from [letter for letter in browse(queue, **options) if letter.message.headers["id"] != "task-6"][: 5 - len(kit.moved) * 3]
        kit.broker.move = lost  # type: ignore[method-assign]

    def lost(moves: Sequence[Move]) -> list[Moved]:
        raise AssertionError("moved behind the end of the iterator")

    def browsing(queue: str, **options: Any) -> Any:
        kit.broker.move = kit.move  # type: ignore[method-assign]
        return emptied(queue, **options)

    monkeypatch.setattr(kit.broker, "browse", browsing)
    report = kit.service.replay()
    assert (report.replayed, report.failed, report.stopped) == (5, 0, "")
    assert kit.moved == [["0", "1", "2"], ["3", "4"]]
    assert len(browses) == 2


@pytest.mark.parametrize("taken", range(4))
@pytest.mark.parametrize(("where", "batch", "moved"), [(Filter(), 2, "012345678"), (Filter(task="odd"), 1, "1357")])
def test_letters_that_could_not_be_taken_after_a_long_stop_are_only_taken_in_the_next_pass(
    where: Filter, batch: int, moved: str, taken: int
):
    """As after SIGTSTP, in the middle of a move: the broker has taken back what was held, and all three were sent."""
    kit = Bulk(letters=9)
    moves_done = count(1)
    looked: list[int] = []

    def stopped(moves: Sequence[Move]) -> list[Moved]:
        if next(moves_done) != batch:
            return kit.move(moves)
        for move in moves:
            kit.broker.send(move.message, move.queue)
        for move in moves[:taken]:
            kit.broker.take(move.letter)
        kit.clock.advance(passes_module.PASS_SECONDS + 1)
        return [Moved(True, number < taken, None if number < taken else DeadLetterError("closed")) for number, _ in enumerate(moves)]

    kit.broker.move = stopped  # type: ignore[method-assign]
    report = kit.service.replay(where, on_progress=lambda progress: looked.append(progress.looked_at))
    assert (report.replayed, report.failed, report.total, report.stopped) == (len(moved), 0, len(moved), "")
    assert kit.there("celery") == moved
    assert kit.there() == "".join(sorted(set("012345678") - set(moved)))
    assert looked == list(range(1, 10))
