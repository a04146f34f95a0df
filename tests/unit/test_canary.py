"""A replay in stages: what lets the next stage go, what stops it, and what is told of it. All under a fake clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from celery_guardrails.dead_letters import Filter, ReplayReport
from celery_guardrails.dead_letters.canary import Stage
from celery_guardrails.errors import GuardrailsConfigError, PublishFailed, StoreUnavailable
from celery_guardrails.policy.delivery import RawMessage, Travel
from celery_guardrails.policy.lease import StoredResult
from celery_guardrails.ports import QueuedLetter
from tests.support.dead_letters import Kit, certificate_for, task_message


@dataclass
class Shop(Kit):
    """Letters, and a worker that does what ``fate`` says with each task while the clock runs."""

    letters: int = 0
    fate: Callable[[str], str] = field(default=lambda _: "completes")

    def __post_init__(self) -> None:
        super().__init__()
        self.moved: list[str] = []
        for number in range(self.letters):
            self.bury(task_message("shop.charge", number, task_id=f"task-{number}"))
        sleep, self.looks = self.clock.sleep, 0
        browse = self.broker.browse

        def working(seconds: float) -> None:
            sleep(seconds)
            self.work()

        def counting(queue: str, **_: Any) -> Iterator[QueuedLetter]:
            self.looks += 1
            return browse(queue)

        self.clock.sleep = working  # type: ignore[method-assign]
        self.broker.browse = counting  # type: ignore[method-assign]

    def work(self) -> None:
        while (received := self.broker.receive("celery")) is not None:
            number, message = received
            self.settle(message)
            self.broker.ack(number)

    def settle(self, message: RawMessage) -> None:
        name = message.headers["id"]
        self.moved.append(name)
        fate = self.fate(name)
        claim = self.store.claim(name, holder="h", fingerprint=None, lease=60)
        if fate == "completes":
            self.store.complete(name, holder="h", fingerprint=None, fence=claim.fence, result=StoredResult(), retention=1000)
        elif fate == "fails and waits":
            self.store.release(name, holder="h", attempts=1)
        elif fate == "kills its worker":
            self.store.release(name, holder="h", crashes=1)
        elif fate == "runs":
            pass
        else:
            self.store.release(name, holder="h", drop=True)
            self.die(message, error="builtins.KeyError" if fate == "dies of another error" else "builtins.ConnectionError")

    def die(self, message: RawMessage, **fields: object) -> None:
        replays = Travel.from_headers(message.headers).replays
        self.broker.dead_letter(message, "celery", certificate_for(message, replays=replays, last_seen=self.clock.now(), **fields))

    def replay(self, **options: object) -> ReplayReport:
        return self.service.replay(canary=True, **options)  # type: ignore[arg-type]


def names(report: ReplayReport) -> list[tuple[str, int]]:
    assert report.canary is not None
    return [(stage.name, stage.replayed) for stage in report.canary.stages]


def test_one_letter_goes_first_then_one_in_a_hundred_then_all() -> None:
    shop = Shop(letters=250)
    report = shop.replay()
    assert names(report) == [("one letter", 1), ("1 %", 3), ("all", 246)]
    assert (report.replayed, report.total, report.clean) == (250, 250, True)
    assert report.canary is not None
    assert (report.canary.chosen, report.canary.left, report.canary.why) == (250, 0, "")
    assert shop.broker.depth("celery.dead") == 0


def test_a_stage_is_over_as_soon_as_all_its_letters_have_completed() -> None:
    shop = Shop(letters=3)
    start = shop.clock.now()
    report = shop.replay(canary_wait=600.0)
    assert shop.clock.now() - start < 2.0
    assert report.canary is not None
    assert [(stage.completed, stage.unheard) for stage in report.canary.stages] == [(1, 0), (1, 0), (0, 0)]
    assert shop.looks == 2, "one to plan, one to replay: nobody looked for deaths where all completed at once"


@pytest.mark.parametrize("fate", ["dies", "dies of another error"])
def test_a_first_letter_that_dies_again_leaves_all_others_where_they_are(fate: str) -> None:
    shop = Shop(letters=250, fate=lambda _: fate)
    start = shop.clock.now()
    report = shop.replay(canary_wait=600.0)
    assert shop.moved == ["task-0"]
    assert names(report) == [("one letter", 1)]
    assert report.canary is not None
    assert report.canary.left == 249
    assert "task-0" in report.canary.why
    assert "dead again" in report.canary.why
    assert "'one letter'" in report.stopped
    assert not report.clean
    assert shop.broker.depth("celery.dead") == 250
    assert shop.clock.now() - start < 5.0, "it does not wait for the end of the time when it knows"


def test_a_death_in_the_second_stage_stops_it_there() -> None:
    shop = Shop(letters=1000, fate=lambda name: "dies" if name == "task-7" else "completes")
    report = shop.replay()
    assert names(report) == [("one letter", 1), ("1 %", 10)]
    assert report.canary is not None
    last = report.canary.stages[-1]
    assert (last.completed, last.failed, last.unheard, report.canary.left) == (9, 1, 0, 989)
    assert shop.broker.depth("celery.dead") == 990


def test_a_death_late_in_the_time_is_seen() -> None:
    shop = Shop(letters=5, fate=lambda _: "runs")
    sleep, due = shop.clock.sleep, shop.clock.now() + 28.0

    def dying(seconds: float) -> None:
        sleep(seconds)
        if shop.moved == ["task-0"] and shop.clock.now() >= due:
            shop.moved.append("dead")
            shop.die(task_message("shop.charge", task_id="task-0", **{"x-guardrails": {"replays": 1}}))

    shop.clock.sleep = dying  # type: ignore[method-assign]
    report = shop.replay(canary_wait=30.0)
    assert report.canary is not None
    assert "dead again" in report.canary.why
    assert report.canary.left == 4


def test_a_death_that_another_operator_hides_by_taking_a_letter_is_seen_when_the_time_is_over() -> None:
    shop = Shop(letters=5, fate=lambda _: "runs")
    sleep, due = shop.clock.sleep, shop.clock.now() + 10.0

    def dying(seconds: float) -> None:
        sleep(seconds)
        if shop.moved == ["task-0"] and shop.clock.now() >= due:
            shop.moved.append("dead")
            shop.broker._ready["celery.dead"].popitem()  # as many as before: the depth tells nothing
            shop.die(task_message("shop.charge", task_id="task-0", **{"x-guardrails": {"replays": 1}}))

    shop.clock.sleep = dying  # type: ignore[method-assign]
    report = shop.replay(canary_wait=30.0)
    assert report.canary is not None
    assert "dead again" in report.canary.why


def test_the_same_error_of_another_task_stops_it_too() -> None:
    shop = Shop(letters=5, fate=lambda _: "runs")
    shop.clock.advance(1.0)
    sleep = shop.clock.sleep

    def dying(seconds: float) -> None:
        sleep(seconds)
        if shop.moved == ["task-0"]:
            shop.moved.append("stranger")
            shop.die(task_message("shop.refund", task_id="stranger"))

    shop.clock.sleep = dying  # type: ignore[method-assign]
    report = shop.replay()
    assert report.canary is not None
    assert "is back" in report.canary.why
    assert report.canary.left == 4


def test_another_error_of_another_task_does_not() -> None:
    shop = Shop(letters=3, fate=lambda _: "runs")
    sleep = shop.clock.sleep

    def dying(seconds: float) -> None:
        sleep(seconds)
        shop.die(task_message("shop.refund"), error="builtins.KeyError")

    shop.clock.sleep = dying  # type: ignore[method-assign]
    report = shop.replay(canary_wait=2.0)
    assert report.clean
    assert report.replayed == 3


def test_letters_that_lay_there_with_the_same_error_or_task_id_are_no_deaths_of_canaries() -> None:
    shop = Shop(letters=4)
    shop.fate = lambda _: "runs"
    shop.bury(task_message("shop.charge", task_id="task-0"))
    assert shop.replay(canary_wait=3.0).clean


@pytest.mark.parametrize("fate", ["fails and waits", "kills its worker"])
def test_one_that_failed_again_and_waits_for_its_retry_stops_it_when_the_time_is_over(fate: str) -> None:
    shop = Shop(letters=5, fate=lambda _: fate)
    start = shop.clock.now()
    report = shop.replay(canary_wait=10.0)
    assert report.canary is not None
    assert "waits for its retry" in report.canary.why
    assert shop.clock.now() - start == pytest.approx(10.0)
    assert shop.moved == ["task-0"]


def test_one_that_is_heard_nothing_of_lets_the_next_stage_go_when_the_time_is_over_and_is_told() -> None:
    shop = Shop(letters=2, fate=lambda _: "runs")
    start = shop.clock.now()
    report = shop.replay(canary_wait=10.0)
    assert report.clean
    assert report.canary is not None
    assert report.canary.stages == (Stage("one letter", 1, 1, 0, 0, 1, 10.0), Stage("1 %", 1, 1, 0, 0, 1, 10.0))
    assert shop.clock.now() - start == pytest.approx(20.0)


def test_the_last_canary_is_watched_also_where_nothing_is_left_behind_it() -> None:
    shop = Shop(letters=1, fate=lambda _: "dies")
    report = shop.replay()
    assert not report.clean
    assert report.canary is not None
    assert (report.canary.left, report.replayed) == (0, 1)


def test_a_letter_whose_key_has_completed_is_no_canary() -> None:
    shop = Shop(letters=5)
    for name in ("task-0", "task-1"):
        claim = shop.store.claim(name, holder="h", fingerprint=None, lease=60)
        shop.store.complete(name, holder="h", fingerprint=None, fence=claim.fence, result=StoredResult(), retention=1000)
    shop.fate = lambda _: "dies"
    report = shop.replay()
    assert shop.moved == ["task-0", "task-1", "task-2"]
    assert names(report) == [("one letter", 3)]


def test_a_store_that_is_away_proves_nothing_and_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(letters=3, fate=lambda _: "runs")

    def away(key: str) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(shop.store, "lookup", away)
    report = shop.replay(canary_wait=5.0)
    assert report.clean
    assert report.canary is not None
    assert [stage.completed for stage in report.canary.stages] == [0, 0, 0]


def test_a_canary_that_cannot_be_moved_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(letters=5)
    monkeypatch.setattr(shop.broker, "send", lambda *_: (_ for _ in ()).throw(PublishFailed("NO_ROUTE")))
    report = shop.replay()
    assert report.canary is not None
    assert "NO_ROUTE" in report.canary.why
    assert (report.failed, report.replayed, report.canary.left) == (1, 0, 5)


def test_only_chosen_letters_count_and_move() -> None:
    shop = Shop(letters=4)
    shop.bury(task_message("other", task_id="other"))
    shop.bury(task_message("shop.charge", task_id="weary"), replays=3)
    report = shop.replay(where=Filter(task="shop.*"))
    assert report.canary is not None
    assert (report.canary.chosen, report.replayed, report.skipped_max_replays) == (4, 4, 1)
    assert {message.headers["id"] for message in shop.broker.messages("celery.dead")} == {"other", "weary"}


def test_canaries_sent_to_another_queue_are_looked_for_where_they_die() -> None:
    shop = Shop(letters=5)
    shop.fate = lambda _: "dies"

    def work() -> None:
        while (received := shop.broker.receive("slow")) is not None:
            number, message = received
            shop.moved.append(message.headers["id"])
            certificate = certificate_for(message, queue="slow", replays=1, last_seen=shop.clock.now())
            shop.broker.dead_letter(message, "slow", certificate)
            shop.broker.ack(number)

    shop.work = work  # type: ignore[method-assign]
    shop.broker._ready["slow"] = {}
    report = shop.replay(to_queue="slow")
    assert report.canary is not None
    assert "dead again" in report.canary.why
    assert shop.moved == ["task-0"]


def test_the_dead_letter_queue_is_looked_through_only_when_it_has_grown() -> None:
    shop = Shop(letters=3, fate=lambda _: "runs")
    shop.replay(canary_wait=60.0)
    # plan and replay; in each of two stages one look early and one when the time is over
    assert shop.looks <= 2 + 2 * 2


def test_a_canary_may_be_told_to_stop_while_it_watches() -> None:
    shop = Shop(letters=5, fate=lambda _: "runs")
    deadline = shop.clock.now() + 5.0
    report = shop.replay(canary_wait=1000.0, should_stop=lambda: shop.clock.now() >= deadline)
    assert report.stopped == "interrupted"
    assert report.canary is not None
    assert (report.canary.why, report.canary.left, report.replayed) == ("", 4, 1)


def test_a_dry_run_watches_nothing() -> None:
    shop = Shop(letters=5)
    start = shop.clock.now()
    report = shop.replay(dry_run=True)
    assert (report.replayed, report.canary) == (5, None)
    assert shop.clock.now() == start


@pytest.mark.parametrize("wait", [0, -1, float("inf"), float("nan"), True])
def test_a_wrong_time_to_watch_is_refused(wait: float) -> None:
    shop = Shop(letters=1)
    with pytest.raises(GuardrailsConfigError, match="--canary-wait"):
        shop.replay(canary_wait=wait)
    assert shop.broker.depth("celery.dead") == 1


def test_a_watch_longer_than_the_queue_may_be_held_looks_again_and_moves_each_letter_once() -> None:
    shop = Shop(letters=4, fate=lambda _: "runs")
    report = shop.replay(canary_wait=400.0)
    assert report.replayed == 4
    assert sorted(shop.moved + [message.headers["id"] for message in shop.broker.messages("celery")]) == [f"task-{n}" for n in range(4)]
