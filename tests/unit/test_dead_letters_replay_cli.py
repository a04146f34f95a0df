"""The command that replays: canary, edit, speed, and how it ends when somebody has had enough."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from celery_guardrails.cli.replaying import Speed, stop_between_letters
from celery_guardrails.dead_letters import passes as passes_module
from celery_guardrails.dead_letters.tasks import KnownTask, tasks_of
from celery_guardrails.errors import DeadLetterError
from celery_guardrails.ports import QueuedLetter
from tests.support.dead_letters import task_message
from tests.unit.test_dead_letters_cli import Shop
from tests.unit.test_dead_letters_edit import shop_app


@pytest.fixture
def shop() -> Shop:
    shop = Shop()
    find = tasks_of(shop_app())

    def known(name: str) -> KnownTask | None:
        return find(name)

    shop.service._tasks = known
    return shop


# -- canary ---------------------------------------------------------------------------------------------------------


def die_at_once(shop: Shop) -> None:
    """Let everything that is replayed die again while the clock runs."""
    sleep = shop.clock.sleep

    def working(seconds: float) -> None:
        sleep(seconds)
        while (received := shop.broker.receive("celery")) is not None:
            number, message = received
            shop.bury(message, replays=message.headers["x-guardrails"]["replays"], last_seen=shop.clock.now())
            shop.broker.ack(number)

    shop.clock.sleep = working  # type: ignore[method-assign]


def test_a_canary_that_dies_makes_exit_code_1_and_says_stage_why_and_what_is_left(shop: Shop) -> None:
    for _ in range(5):
        shop.bury()
    die_at_once(shop)
    result = shop.letters("replay", "--canary", code=1)
    assert "replayed 1 of 1 dead letter" in result.stdout
    assert "canary, one letter: 1 replayed, 0 completed, 1 failed after" in result.stdout
    assert "the canary stopped it at the stage 'one letter'" in result.stderr
    assert "dead again" in result.stderr
    assert "left 4 dead letters where they were" in result.stderr
    assert "run it again" not in result.stderr


def test_the_report_of_a_canary_as_json(shop: Shop) -> None:
    for _ in range(2):
        shop.bury()
    data = shop.json("replay", "--canary", "--canary-wait", "5")
    assert data["canary"] == {
        "chosen": 2,
        "stage": "1 %",
        "why": None,
        "left": 0,
        "stages": [
            {"name": "one letter", "size": 1, "replayed": 1, "completed": 0, "failed": 0, "unheard": 1, "seconds": 5.0},
            {"name": "1 %", "size": 1, "replayed": 1, "completed": 0, "failed": 0, "unheard": 1, "seconds": 5.0},
        ],
    }
    shop.broker._ready["celery"].clear()
    shop.bury()
    die_at_once(shop)
    data = shop.json("replay", "--canary", code=1)
    assert "dead again" in data["canary"]["why"]
    assert data["canary"]["stage"] == "one letter"


# -- edit -----------------------------------------------------------------------------------------------------------


def test_edit_says_what_it_changed_and_that_the_key_is_another(shop: Shop) -> None:
    shop.bury(task_message("shop.charge", 7, key="charge:7"))
    text = shop.letters("replay", "--edit", "--set", "order_id=8", "--set", 'note="now"').stdout
    assert "edited 1 dead letter\n" in text
    assert 'order_id 7 → 8, note (unset) → "now"' in text
    assert "key is made from its arguments: charge:7 → charge:8" in text
    [message] = shop.broker.messages("celery")
    assert json.loads(message.body)[:2] == [[8], {"note": "now"}]


def test_edit_as_json(shop: Shop) -> None:
    shop.bury(task_message("shop.charge", 7, key="charge:7"))
    data = shop.json("replay", "--args", "[8]", "--dry-run")
    assert data["edited"] == 1
    [note] = data["edits"]
    assert note["changes"] == [{"argument": "order_id", "old": "7", "new": "8"}]
    assert (note["key"], note["new_key"]) == ("charge:7", "charge:8")
    assert shop.broker.depth("celery.dead") == 1


def test_an_edit_that_does_not_fit_makes_exit_code_2_and_names_what_is_wrong(shop: Shop) -> None:
    shop.bury(task_message("shop.charge", 7))
    result = shop.letters("replay", "--set", 'order_id="x"', code=2)
    assert "order_id = 'x': int is allowed" in result.stderr
    assert "Traceback" not in result.stderr
    assert shop.broker.depth("celery.dead") == 1


class Terminal:
    """What the command takes for its terminal, and an editor that does what ``hand`` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, hand: Any) -> None:
        self.texts: list[str] = []

        def edit(text: str, extension: str) -> str | None:
            assert extension == ".json"
            self.texts.append(text)
            done: str | None = hand(text)
            return done

        monkeypatch.setattr("celery_guardrails.cli.replaying.click.edit", edit)
        monkeypatch.setattr("celery_guardrails.cli.replaying._on_terminal", lambda: True)


def test_on_a_terminal_an_editor_opens_with_the_arguments(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.bury(task_message("shop.charge", 7))
    terminal = Terminal(monkeypatch, lambda text: text.replace("7", "8"))
    shop.letters("replay", "--edit", shop.ids()[0])
    [message] = shop.broker.messages("celery")
    assert json.loads(message.body)[0] == [8]
    assert json.loads(terminal.texts[0]) == {"args": [7], "kwargs": {}}


def test_an_editor_that_is_left_without_saving_replays_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.bury(task_message("shop.charge", 7))
    Terminal(monkeypatch, lambda text: None)
    assert "nothing was replayed" in shop.letters("replay", "--edit", shop.ids()[0], code=1).stderr
    assert "name one ID" in shop.letters("replay", "--edit", code=2).stderr
    assert shop.broker.depth("celery.dead") == 1


# -- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_once_finishes_the_letter_in_hand_and_reports_exact_totals(shop: Shop, number: int) -> None:
    for _ in range(5):
        shop.bury()

    def press(point: str) -> None:
        if point == "before take" and shop.broker.depth("celery") == 2:
            os.kill(os.getpid(), number)

    shop.broker._on_operation = press
    before = signal.getsignal(number)
    data = shop.json("replay", code=1)
    assert (data["replayed"], data["total"], data["failed"], data["stopped"]) == (2, 2, 0, "interrupted")
    assert (shop.broker.depth("celery"), shop.broker.depth("celery.dead")) == (2, 3)
    assert signal.getsignal(number) is before
    shop.broker._on_operation = lambda point: None
    assert shop.json("replay")["replayed"] == 3


def test_ctrl_c_says_how_to_go_on(shop: Shop) -> None:
    shop.bury()
    shop.bury()
    shop.broker._on_operation = lambda point: os.kill(os.getpid(), signal.SIGINT) if point == "before send" else None
    assert "run it again to go on" in shop.letters("replay", code=1).stderr
    shop.bury()
    shop.broker._on_operation = lambda point: os.kill(os.getpid(), signal.SIGINT) if point == "before take" else None
    assert "run it again to go on" in shop.letters("discard", "--yes", code=1).stderr


def test_ctrl_c_twice_stops_at_once(shop: Shop) -> None:
    shop.bury()
    shop.bury()

    def press(point: str) -> None:
        if point == "before take":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    shop.broker._on_operation = press
    assert "interrupted: 0 done" in shop.letters("replay", code=1).stderr
    assert (shop.broker.depth("celery"), shop.broker.depth("celery.dead")) == (1, 2)


def test_ctrl_c_ends_a_long_wait_for_the_rate(shop: Shop) -> None:
    for _ in range(3):
        shop.bury()
    sleep = shop.clock.sleep

    def press(seconds: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        sleep(seconds)

    shop.clock.sleep = press  # type: ignore[method-assign]
    start = shop.clock.now()
    data = shop.json("replay", "--rate", "1/h", code=1)
    assert (data["replayed"], data["stopped"]) == (1, "interrupted")
    assert shop.clock.now() - start < 1.0


def test_a_command_in_a_thread_leaves_signals_alone() -> None:
    found: list[Any] = []

    def run() -> None:
        with stop_between_letters() as asked:
            found.extend([asked(), signal.getsignal(signal.SIGINT)])

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False, before]


# -- a process that was stopped (SIGTSTP) and goes on ----------------------------------------------------------------


class Sleeper:
    """A broker that forgets who browses once the process has slept too long, as RabbitMQ closes a channel."""

    def __init__(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shop = shop
        self.born = shop.clock.now()
        self.refused = 0
        browse, take = shop.broker.browse, shop.broker.take

        def browsing(queue: str, **options: Any) -> Iterator[QueuedLetter]:
            self.born = born = shop.clock.now()
            for queued in browse(queue, **options):
                self.check(born)
                yield queued

        def taking(queued: QueuedLetter) -> None:
            self.check(self.born)
            take(queued)

        monkeypatch.setattr(shop.broker, "browse", browsing)
        monkeypatch.setattr(shop.broker, "take", taking)

    def check(self, born: float) -> None:
        if self.shop.clock.now() > born + 1800.0:
            self.refused += 1
            raise DeadLetterError("PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out")


@pytest.mark.parametrize("point", ["before send", "after send", "before take", "after take"])
@pytest.mark.parametrize("at", [1, 3])
def test_a_replay_that_was_stopped_for_an_hour_goes_on_and_moves_each_letter_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, point: str, at: int
) -> None:
    buried = [shop.bury(task_message("t", task_id=f"task-{number}")).headers["id"] for number in range(5)]
    Sleeper(shop, monkeypatch)
    seen = iter(range(at))

    def stopped(now: str) -> None:
        if now == point and next(seen, None) == at - 1:
            shop.clock.advance(3600.0)

    shop.broker._on_operation = stopped
    data = shop.json("replay")
    assert (data["replayed"], data["failed"], data["stopped"]) == (5, 0, None)
    assert [message.headers["id"] for message in shop.broker.messages("celery")] == buried
    assert shop.broker.depth("celery.dead") == 0


def test_after_a_long_wait_a_letter_is_looked_for_again_before_it_is_published(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another operator may have replayed it meanwhile, from where the broker had put it back."""
    for _ in range(3):
        shop.bury()
    sleeper = Sleeper(shop, monkeypatch)
    assert shop.json("replay", "--rate", "1/h")["replayed"] == 3
    assert sleeper.refused == 0


def test_a_discard_that_was_stopped_for_an_hour_goes_on(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        shop.bury()
    Sleeper(shop, monkeypatch)
    slept = iter([None])
    shop.broker._on_operation = lambda point: next(slept, 1) or shop.clock.advance(3600.0)  # type: ignore[func-returns-value]
    data = shop.json("discard", "--yes")
    assert (data["discarded"], data["failed"]) == (3, 0)


def test_a_letter_that_somebody_else_took_while_the_process_was_stopped_is_told(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.bury()
    Sleeper(shop, monkeypatch)

    def stopped(point: str) -> None:
        if point == "after send":
            shop.clock.advance(3600.0)
            shop.broker._ready["celery.dead"].clear()

    shop.broker._on_operation = stopped
    data = shop.json("replay", code=1)
    assert (data["replayed"], data["failed"]) == (0, 1)
    assert "somebody else has taken it" in data["failures"][0]["why"]


def test_a_hold_that_breaks_soon_is_no_stopped_process_and_ends_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert passes_module.PASS_SECONDS < 1800.0, "RabbitMQ's consumer_timeout"
    for _ in range(3):
        shop.bury()
    browse = shop.broker.browse

    def breaking(queue: str, **_: Any) -> Iterator[QueuedLetter]:
        yield next(browse(queue))
        raise DeadLetterError("cable pulled")

    monkeypatch.setattr(shop.broker, "browse", breaking)
    assert "cable pulled" in shop.json("replay", code=1)["stopped"]


# -- speed ----------------------------------------------------------------------------------------------------------


def test_the_speed_is_that_of_the_last_ten_seconds_and_the_time_left_follows_from_it() -> None:
    speed = Speed()
    assert speed.text(0.0, 0, 10_000) == ""
    assert speed.text(0.5, 100, 10_000) == "", "half a second says nothing yet"
    for tenth in range(10, 601):
        text = speed.text(tenth / 10, tenth * 10, 10_000)  # a hundred a second
    assert text == "100/s  0:40 left"
    for second in range(61, 75):
        text = speed.text(float(second), 6000 + (second - 60), 10_000)
    assert text == "1/s  1:06:26 left", "the fast minute before is forgotten"


def test_a_speed_of_nothing_promises_nothing() -> None:
    speed = Speed()
    for second in range(20):
        assert speed.text(float(second), 5, 10) == ""
