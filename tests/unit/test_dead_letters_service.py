"""List, group, show, replay, discard: on a broker in memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest

from celery_guardrails.dead_letters import DeadLetters, Filter
from celery_guardrails.dead_letters import passes as passes_module
from celery_guardrails.errors import DeadLetterError, GuardrailsConfigError, PublishFailed, StoreUnavailable
from celery_guardrails.policy.delivery import TRAVEL_HEADER, RawMessage, Travel
from celery_guardrails.policy.history import PastDeath
from celery_guardrails.policy.lease import StoredResult
from celery_guardrails.ports import QueuedLetter
from celery_guardrails.stores.memory import MemoryStore
from tests.support.dead_letters import Kit, certificate_for, task_message

GARBAGE = RawMessage(b"\x00\xff garbage", "application/octet-stream", None, {}, {}, "", "celery")


@pytest.fixture
def kit() -> Kit:
    return Kit("celery", "mail")


# -- looking --------------------------------------------------------------------------------------------------------


def test_looking_moves_nothing(kit):
    for number in range(5):
        kit.bury(task_message("t", number))
    before = kit.broker.messages("celery.dead")
    list(kit.service.list())
    kit.service.groups()
    kit.service.show(kit.ids()[2])
    kit.service.replay(dry_run=True)
    kit.service.discard(dry_run=True)
    assert kit.broker.messages("celery.dead") == before


def test_letters_of_all_queues_come_queue_by_queue_the_oldest_first(kit):
    buried = [kit.bury(queue=queue) for queue in ("celery", "celery", "mail")]
    assert [letter.task_id for letter in kit.service.list()] == [message.headers["id"] for message in buried]


def test_one_queue_can_be_named_by_its_own_name_or_its_dead_letter_queues(kit):
    kit.bury(queue="celery")
    kit.bury(queue="mail")
    assert [letter.queue for letter in kit.service.list(Filter(queue="mail"))] == ["mail"]
    assert [letter.queue for letter in kit.service.list(Filter(queue="mail.dead"))] == ["mail"]


def test_a_queue_that_the_app_does_not_know_is_looked_into_all_the_same(kit):
    kit.bury(queue="elsewhere")
    assert list(kit.service.list()) == []
    assert [letter.queue for letter in kit.service.list(Filter(queue="elsewhere"))] == ["elsewhere"]


def test_twins_get_names_of_their_own_the_same_every_time(kit):
    for _ in range(3):
        kit.bury_raw(GARBAGE)
    assert len(set(kit.ids())) == 3
    assert kit.ids() == kit.ids()
    assert kit.ids()[1] == f"{kit.ids()[0]}.2"


def test_a_letter_is_shown_by_its_identifier_or_its_task_id(kit):
    message = kit.bury(task_message("t", 1))
    kit.bury()
    letter = next(iter(kit.service.list()))
    assert kit.service.show(letter.id) == letter
    assert kit.service.show(message.headers["id"]) == letter


def test_a_letter_that_is_not_there_is_told_with_where_it_was_looked_for(kit):
    with pytest.raises(DeadLetterError, match=r"nope.*celery\.dead.*mail\.dead"):
        kit.service.show("nope")


def test_groups_are_of_one_reason_and_one_error_the_largest_first(kit):
    for number in range(3):
        kit.bury(task_message("shop.charge", number), last_seen=100.0 + number)
    kit.bury(task_message("shop.refund"), queue="mail", last_seen=50.0)
    kit.bury(task_message("shop.charge"), "permanent", error="CardDeclined")
    kit.bury_raw(GARBAGE)
    groups = kit.service.groups()
    assert [group.count for group in groups] == [4, 1, 1]
    first = groups[0]
    assert (first.reason, first.error, first.tasks, first.queues) == (
        "exhausted",
        "builtins.ConnectionError",
        ("shop.charge", "shop.refund"),
        ("celery", "mail"),
    )
    assert (first.first_seen, first.last_seen) == (50.0, 102.0)
    assert kit.service.show(first.sample).died_at == 102.0
    assert len(kit.service.groups(Filter(limit=1))) == 1
    assert sum(group.count for group in kit.service.groups(Filter(task="shop.*"))) == 5


# -- what is replayed -----------------------------------------------------------------------------------------------


def test_a_replayed_message_is_the_original_with_a_fresh_life(kit):
    original = kit.bury(task_message("shop.charge", 7, key="charge:7", foreign={"deep": [1, None]}))
    report = kit.service.replay()
    assert (report.replayed, report.total, report.clean) == (1, 1, True)
    assert kit.broker.messages("celery.dead") == []
    [message] = kit.broker.messages("celery")
    assert (message.body, message.content_type, message.content_encoding) == (
        original.body,
        original.content_type,
        original.content_encoding,
    )
    assert message.properties == original.properties
    changed = {name for name in {*message.headers, *original.headers} if message.headers.get(name, ...) != original.headers.get(name, ...)}
    assert changed == {TRAVEL_HEADER, "retries", "eta", "expires"}
    assert (message.headers["retries"], message.headers["eta"], message.headers["expires"]) == (0, None, None)
    assert Travel.from_headers(message.headers) == Travel(
        key="charge:7",
        fingerprint="f" * 16,
        first=kit.clock.now(),
        replays=1,
        origin=("orders", "orders.new"),
        deaths=(PastDeath("exhausted", "builtins.ConnectionError", 1_899_990_000.0),),
    )


def test_a_replayed_message_forgets_the_deadline_that_it_had_inherited(kit):
    travel = Travel(key="charge:7", attempts=2, first=kit.clock.now() - 60, until=kit.clock.now() - 30)
    kit.bury(task_message("shop.charge", 7, **{TRAVEL_HEADER: travel.to_header()}), reason="deadline")
    assert kit.service.replay().replayed == 1
    [message] = kit.broker.messages("celery")
    assert Travel.from_headers(message.headers).until is None
    assert Travel.from_headers(message.headers).first == kit.clock.now()


def test_what_the_broker_wrote_about_the_death_does_not_come_along(kit):
    death = {
        "x-death": [{"queue": "celery", "reason": "rejected"}],
        "x-first-death-queue": "celery",
        "x-last-death-reason": "r",
        "x-delivery-count": 4,
    }
    message = replace(task_message(**death), properties={"correlation_id": "x", "expiration": "1000"})
    kit.bury_raw(message.with_headers(**{"guardrails-original-delivery-mode": 1, "guardrails-original-cc": ["a"]}))
    kit.service.replay()
    [live] = kit.broker.messages("celery")
    assert not [name for name in live.headers if name.startswith(("x-death", "x-first", "x-last", "x-delivery", "guardrails"))]
    assert live.properties == {"correlation_id": "x", "delivery_mode": 1}


def test_each_letter_goes_back_to_its_own_queue_or_all_to_the_one_that_is_named(kit):
    kit.bury(queue="celery")
    kit.bury(queue="mail")
    assert dict(kit.service.replay(Filter(queue="mail")).destinations) == {"mail": 1}
    kit.bury(queue="mail")
    with pytest.raises(GuardrailsConfigError, match="--to-queue 'slow': there is no such queue.*the app has celery.*worker with -Q slow"):
        kit.service.replay(to_queue="slow", dry_run=True)
    kit.consumed_elsewhere("slow")
    assert dict(kit.service.replay(to_queue="slow").destinations) == {"slow": 2}
    assert (kit.broker.depth("celery"), kit.broker.depth("mail"), kit.broker.depth("slow")) == (0, 1, 2)


def test_letters_are_replayed_by_identifier_or_task_id_and_what_is_not_found_is_told(kit):
    message = kit.bury()
    kit.bury()
    kit.bury()
    report = kit.service.replay(ids=[kit.ids()[2], message.headers["id"], "gone"])
    assert (report.replayed, report.missing, report.clean) == (2, ("gone",), False)
    assert len(kit.ids()) == 1


def test_the_search_ends_when_every_letter_that_was_named_is_found(kit):
    for _ in range(9):
        kit.bury()
    seen = []
    assert kit.service.replay(ids=kit.ids()[2:4], on_progress=seen.append).replayed == 2
    assert len(seen) == 4


def test_the_limit_counts_what_is_replayed_not_what_is_skipped(kit):
    for _ in range(3):
        kit.bury(replays=3)
    kit.bury(reason="undecodable")
    for _ in range(3):
        kit.bury()
    report = kit.service.replay(Filter(limit=2))
    assert (report.replayed, report.skipped_max_replays, report.skipped_hopeless) == (2, 3, 1)
    assert kit.broker.depth("celery") == 2


def test_a_letter_that_was_replayed_often_enough_is_left_alone(kit):
    kit.bury(replays=3)
    kit.bury(replays=2)
    report = kit.service.replay()
    assert (report.replayed, report.skipped_max_replays, report.skipped, report.total, report.clean) == (1, 1, 1, 2, True)
    assert kit.service.replay(max_replays=4).replayed == 1


def test_replays_are_counted_through_deaths_of_every_kind(kit):
    message = kit.bury()
    for expected in (1, 2, 3):
        assert kit.service.replay().replayed == 1
        number, message = kit.broker.receive("celery")
        kit.broker.ack(number)
        assert Travel.from_headers(message.headers).replays == expected
        if expected == 2:  # this time the broker itself lets it die
            kit.bury_raw(message)
        else:
            kit.bury(message, replays=expected)
    assert kit.service.replay().skipped_max_replays == 1


def test_hopeless_letters_are_replayed_only_when_asked_for_by_name(kit):
    kit.bury(reason="undecodable")
    kit.bury(reason="invalid")
    kit.bury_raw(GARBAGE)
    kit.bury()
    report = kit.service.replay()
    assert (report.replayed, report.skipped_hopeless) == (1, 3)
    assert kit.service.replay(Filter(reason="invalid")).replayed == 1
    garbage = kit.ids()[1]
    assert kit.service.replay(ids=[garbage]).replayed == 1
    assert kit.broker.messages("celery")[-1].body == GARBAGE.body


def test_a_dry_run_counts_by_destination_reason_and_completed_keys(kit):
    kit.bury(task_message(key="done"))
    kit.bury(task_message(key="open"), "permanent", queue="mail")
    kit.bury(replays=3)
    claim = kit.store.claim("done", holder="h", fingerprint=None, lease=10)
    kit.store.complete("done", holder="h", fingerprint=None, fence=claim.fence, result=StoredResult(), retention=1000)
    report = kit.service.replay(dry_run=True, rate=0.001)
    assert (report.dry_run, report.total, report.replayed, report.already_completed) == (True, 3, 2, 1)
    assert dict(report.destinations) == {"celery": 1, "mail": 1}
    assert dict(report.reasons) == {"exhausted": 1, "permanent": 1}
    assert kit.clock.slept == []


def test_a_dry_run_does_without_a_store_that_is_away(kit, monkeypatch):
    def away(key: str) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(kit.store, "lookup", away)
    kit.bury()
    report = kit.service.replay(dry_run=True)
    assert (report.replayed, report.already_completed, report.clean) == (1, None, True)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rate": 0}, "--rate"),
        ({"max_replays": 0}, "--max-replays"),
        ({"max_replays": True}, "--max-replays"),
        ({"to_queue": "mail.dead"}, "--to-queue"),
        ({"to_queue": ""}, "--to-queue"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_moves(kit, options, named):
    kit.bury()
    with pytest.raises(GuardrailsConfigError, match=named):
        kit.service.replay(**options)
    assert kit.broker.depth("celery.dead") == 1


# -- how it is replayed ---------------------------------------------------------------------------------------------


def test_a_letter_is_published_before_it_is_removed(kit):
    kit.bury()
    kit.points.clear()
    kit.service.replay()
    assert kit.points == ["before send", "after send", "before take", "after take"]


def test_a_letter_that_cannot_be_published_stays_and_the_others_go(kit, monkeypatch):
    buried = [kit.bury() for _ in range(3)]
    send = kit.broker.send

    def refuse(message, queue):
        if message.headers["id"] == buried[1].headers["id"]:
            raise PublishFailed("NO_ROUTE")
        send(message, queue)

    monkeypatch.setattr(kit.broker, "send", refuse)
    report = kit.service.replay()
    assert (report.replayed, report.failed, report.clean) == (2, 1, False)
    assert report.failures[0].why == "NO_ROUTE"
    assert [letter.id for letter in kit.service.list()] == [report.failures[0].id]


def test_a_letter_that_cannot_be_removed_is_told_as_such(kit, monkeypatch):
    kit.bury()

    def refuse(letter):
        raise DeadLetterError("gone")

    monkeypatch.setattr(kit.broker, "take", refuse)
    report = kit.service.replay()
    assert (report.replayed, report.failed) == (0, 1)
    assert "'celery'" in report.failures[0].why
    assert kit.broker.depth("celery") == 1


def test_only_the_first_failures_are_named_the_rest_is_counted(kit, monkeypatch):
    for _ in range(50):
        kit.bury()
    monkeypatch.setattr(kit.broker, "send", lambda *_: (_ for _ in ()).throw(PublishFailed("no")))
    report = kit.service.replay()
    assert (report.failed, len(report.failures)) == (50, 20)


def test_a_broker_that_goes_away_while_browsing_leaves_a_report_of_what_was_done(kit, monkeypatch):
    for _ in range(4):
        kit.bury()
    browse = kit.broker.browse

    def breaking(queue, **_):
        for number, letter in enumerate(browse(queue)):
            if number == 2:
                raise ConnectionResetError("cable pulled")
            yield letter

    monkeypatch.setattr(kit.broker, "browse", breaking)
    report = kit.service.replay()
    assert (report.replayed, report.clean) == (2, False)
    assert "cable pulled" in report.stopped


def test_letters_that_die_again_meanwhile_are_left_for_the_next_time(kit, monkeypatch):
    for _ in range(5):
        kit.bury()
    send = kit.broker.send

    def dies_again(message, queue):
        send(message, queue)
        number, received = kit.broker.receive(queue)
        kit.broker.dead_letter(received, queue, certificate_for(received, replays=Travel.from_headers(received.headers).replays))
        kit.broker.ack(number)

    monkeypatch.setattr(kit.broker, "send", dies_again)
    report = kit.service.replay()
    assert (report.replayed, report.total) == (5, 5)
    assert kit.broker.depth("celery.dead") == 5


def test_the_rate_is_held_with_even_spacing(kit):
    for _ in range(11):
        kit.bury()
    kit.bury(replays=9)  # what is skipped costs no time
    start = kit.clock.now()
    kit.service.replay(rate=2.0)
    assert kit.clock.now() - start == pytest.approx(5.0)
    assert kit.clock.slept == pytest.approx([0.5] * 10)


def test_a_slow_replay_lets_go_of_the_queue_now_and_then_and_still_sees_each_letter_once(kit, monkeypatch):
    monkeypatch.setattr(passes_module, "PASS_SECONDS", 25.0)
    kept = [kit.bury(replays=3).headers["id"], kit.bury(reason="invalid").headers["id"]]
    gone = [kit.bury().headers["id"] for _ in range(4)]
    kept.append(kit.bury(replays=3).headers["id"])
    gone += [kit.bury().headers["id"] for _ in range(5)]
    browses = []
    browse = kit.broker.browse
    monkeypatch.setattr(kit.broker, "browse", lambda queue, **_: browses.append(queue) or browse(queue))
    report = kit.service.replay(rate=0.1)
    assert (report.replayed, report.skipped, report.total) == (9, 3, 12)
    assert len(browses) >= 3
    assert [message.headers["id"] for message in kit.broker.messages("celery")] == gone
    assert [message.headers["id"] for message in kit.broker.messages("celery.dead")] == kept


def test_progress_is_told_after_each_letter(kit):
    for _ in range(3):
        kit.bury()
    kit.bury(replays=3, queue="mail")
    seen = []
    kit.service.replay(on_progress=seen.append)
    assert [(p.looked_at, p.total, p.done, p.skipped, p.failed) for p in seen] == [
        (1, 4, 1, 0, 0),
        (2, 4, 2, 0, 0),
        (3, 4, 3, 0, 0),
        (4, 4, 3, 1, 0),
    ]


def test_ctrl_c_stops_a_replay_between_two_letters(kit):
    for _ in range(3):
        kit.bury()

    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kit.service.replay(on_progress=interrupt)
    assert (kit.broker.depth("celery"), kit.broker.depth("celery.dead")) == (1, 2)


# -- discarding -----------------------------------------------------------------------------------------------------


def test_discarding_removes_what_was_chosen_and_nothing_else(kit):
    kit.bury(reason="permanent")
    kit.bury()
    kit.bury_raw(GARBAGE)
    report = kit.service.discard(Filter(reason="permanent"))
    assert (report.discarded, report.total, report.clean) == (1, 1, True)
    report = kit.service.discard(ids=[kit.ids()[1], "gone"])
    assert (report.discarded, report.missing) == (1, ("gone",))
    assert len(kit.ids()) == 1
    assert kit.broker.depth("celery") == 0


def test_discarding_everything_twice_does_nothing_the_second_time(kit):
    for _ in range(10):
        kit.bury()
    assert kit.service.discard().discarded == 10
    assert kit.service.discard().total == 0


# -- the service itself ---------------------------------------------------------------------------------------------


def test_the_service_for_an_app_reads_what_the_app_accepts(kit):
    from celery import Celery

    from celery_guardrails.config import Settings

    app = Celery("app", broker="memory://", set_as_current=False)
    service = DeadLetters.for_app(app, broker=kit.broker, store=None, settings=Settings(), clock=kit.clock)
    kit.bury(task_message("t", 1, 2))
    assert next(service.list()).payload.args == (1, 2)
    assert service.replay(dry_run=True).already_completed is None


def test_letters_are_grouped_and_listed_without_being_held_in_memory():
    kit = Kit()
    message = replace(task_message("shop.charge"), body=b"[[], {}, {}]" + b" " * 2000)
    header = certificate_for(message).to_header()
    letters = 3_000

    def many(queue, **_):
        for number in range(letters):
            task_id = f"{number:08x}-x"
            copy = replace(message.with_headers(id=task_id, guardrails={**header, "task_id": task_id}), body=bytes(message.body) + b" ")
            yield QueuedLetter(copy, None)

    kit.broker.browse = many  # type: ignore[method-assign]
    tracemalloc.start()
    [group] = kit.service.groups()
    assert sum(1 for _ in kit.service.list()) == letters
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert group.count == letters
    assert peak < 300 * letters  # a letter held is more than 2,000 bytes


def test_the_store_is_never_touched_but_in_a_dry_run(kit):
    class Untouchable(MemoryStore):
        def __getattribute__(self, name):
            raise AssertionError(name)

    kit.service._store = object.__new__(Untouchable)
    kit.bury()
    assert kit.service.replay().replayed == 1
