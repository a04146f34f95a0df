"""The slot of a task that beat fires, and the key that two beats share. No broker, no process of beat."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.beat import ScheduleEntry, Scheduler, Service
from celery.schedules import BaseSchedule, crontab, schedule
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_guardrails import GuardedTask, Guardrails, GuardrailsConfigError, current_execution, guarded_task
from celery_guardrails.integration import beat
from celery_guardrails.integration.beat import current_slot, slot_of, watch
from celery_guardrails.policy.delivery import TRAVEL_HEADER, Travel
from tests.support.sent import Sent

UTC = dt.timezone.utc
NOON = dt.datetime(2024, 5, 6, 12, tzinfo=UTC)


def at(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text.replace("Z", "+00:00"))


class Time:
    """The clock of a schedule, told the time."""

    def __init__(self, now: dt.datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> dt.datetime:
        return self.now


@pytest.fixture
def app() -> Celery:
    app = Celery("beats", broker="memory://", backend="cache+memory://", set_as_current=True)
    Guardrails(app, store="memory://")
    return app


def in_zone(app: Celery, zone: str) -> Celery:
    app.conf.timezone = zone
    return app


# -- the due time ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "moment", "slot"),
    [
        (60, "2024-05-06T12:00:59.9Z", "2024-05-06T12:00:00Z"),
        (60, "2024-05-06T12:01:00Z", "2024-05-06T12:01:00Z"),
        (1, "2024-05-06T12:00:00.999999Z", "2024-05-06T12:00:00Z"),
        (0.25, "2024-05-06T12:00:00.6Z", "2024-05-06T12:00:00.500000Z"),
        (7 * 86400, "2024-05-06T12:00:00Z", "2024-05-02T00:00:00Z"),  # the epoch was a Thursday
        (3600, "2024-05-06T14:10:00+02:00", "2024-05-06T12:00:00Z"),
        (0, "2024-05-06T12:00:00.123Z", "2024-05-06T12:00:00.123000Z"),
    ],
)
def test_the_slot_of_an_interval_is_the_moment_floored_to_the_period(app: Celery, seconds: float, moment: str, slot: str) -> None:
    assert slot_of(schedule(seconds, app=app), at(moment)) == slot


@pytest.mark.parametrize(
    ("fields", "moment", "slot"),
    [
        ({}, "2024-05-06T12:00:59Z", "2024-05-06T12:00:00Z"),
        ({"minute": 0}, "2024-05-06T12:00:00Z", "2024-05-06T12:00:00Z"),
        ({"minute": 0}, "2024-05-06T12:59:59Z", "2024-05-06T12:00:00Z"),
        ({"minute": 0}, "2024-05-06T11:59:59.999Z", "2024-05-06T11:00:00Z"),
        ({"minute": "*/15"}, "2024-05-06T12:44:00Z", "2024-05-06T12:30:00Z"),
        ({"minute": 30, "hour": "1,13"}, "2024-05-06T12:00:00Z", "2024-05-06T01:30:00Z"),
        ({"minute": 30, "hour": "13"}, "2024-05-06T12:00:00Z", "2024-05-05T13:30:00Z"),
        ({"minute": 0, "hour": 0, "day_of_week": "sun"}, "2024-05-06T12:00:00Z", "2024-05-05T00:00:00Z"),
        ({"minute": 0, "hour": 0, "day_of_month": 31}, "2024-05-06T12:00:00Z", "2024-03-31T00:00:00Z"),
        ({"minute": 0, "hour": 0, "month_of_year": 6}, "2024-05-06T12:00:00Z", "2023-06-30T00:00:00Z"),
        ({"minute": 0, "hour": 0, "day_of_month": 29, "month_of_year": 2}, "2023-05-06T12:00:00Z", "2020-02-29T00:00:00Z"),
        # a Sunday too: once in 28 years
        (
            {"minute": 0, "hour": 0, "day_of_month": 29, "month_of_year": 2, "day_of_week": 0},
            "2024-05-06T12:00:00Z",
            "2004-02-29T00:00:00Z",
        ),
    ],
)
def test_the_slot_of_a_crontab_is_its_latest_due_time(app: Celery, fields: dict[str, Any], moment: str, slot: str) -> None:
    assert slot_of(crontab(**fields, app=app), at(moment)) == slot


@pytest.mark.parametrize(
    ("zone", "fields", "moment", "slot"),
    [
        ("Europe/Rome", {"minute": 0, "hour": 6}, "2024-05-06T05:59:00Z", "2024-05-06T04:00:00Z"),
        ("Asia/Kolkata", {"minute": 0}, "2024-05-06T12:00:00Z", "2024-05-06T11:30:00Z"),
        # the hour that comes twice: 02:30 in summer time, then 02:30 in winter time
        ("Europe/Rome", {"minute": 30}, "2026-10-25T00:45:00Z", "2026-10-25T00:30:00Z"),
        ("Europe/Rome", {"minute": 30}, "2026-10-25T01:45:00Z", "2026-10-25T01:30:00Z"),
        ("Europe/Rome", {"minute": 45, "hour": "1,2"}, "2026-10-25T01:50:00Z", "2026-10-25T01:45:00Z"),
        # 02:30 is left out on that day, but its run is not yesterday's
        ("Europe/Rome", {"minute": 30, "hour": 2}, "2026-03-29T01:30:00Z", "2026-03-29T01:30:00Z"),
    ],
)
def test_a_crontab_is_read_in_its_own_time_zone(app: Celery, zone: str, fields: dict[str, Any], moment: str, slot: str) -> None:
    assert slot_of(crontab(**fields, app=in_zone(app, zone)), at(moment)) == slot


MOMENTS = st.datetimes(dt.datetime(2024, 1, 1), dt.datetime(2028, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis wants them so


IN_UTC = Celery("utc", set_as_current=False)
IN_UTC.conf.timezone = "UTC"


@given(MOMENTS, st.integers(1, 10**7), st.floats(0, 1, exclude_max=True))
def test_every_moment_of_a_period_has_the_same_slot(moment: dt.datetime, seconds: int, part: float) -> None:
    due = schedule(seconds)
    slot = slot_of(due, moment)
    assert slot_of(due, at(slot)) == slot
    assert slot_of(due, at(slot) + part * dt.timedelta(seconds=seconds - 1)) == slot
    assert slot_of(due, at(slot) + dt.timedelta(seconds=seconds)) > slot


@settings(deadline=None)  # a time is found in milliseconds, but the machine may be busy
@given(
    MOMENTS, st.sampled_from(["*", "0", "*/7", "5,55"]), st.sampled_from(["*", "2", "*/5"]), st.sampled_from(["*", "1", "29-31"]), st.data()
)
def test_the_slot_of_a_crontab_is_due_and_none_is_later(moment: dt.datetime, minute: str, hour: str, day: str, data: st.DataObject) -> None:
    due = crontab(minute, hour, day_of_month=day, app=IN_UTC)
    slot = at(slot_of(due, moment))
    assert slot <= moment
    assert (slot.minute in due.minute, slot.hour in due.hour, slot.day in due.day_of_month) == (True, True, True)
    between = slot + data.draw(st.floats(0, 1)) * (moment - slot)
    assert slot_of(due, between) == slot_of(due, slot) == slot_of(due, moment)


class Once(BaseSchedule):
    """Due at one time, as the clocked schedule of django-celery-beat."""

    def __init__(self, when: dt.datetime, nowfun: Callable[[], dt.datetime]) -> None:
        super().__init__(nowfun=nowfun)
        self.when = when

    def remaining_estimate(self, last_run_at: dt.datetime) -> dt.timedelta:
        return self.when - self.now()


@pytest.mark.parametrize("late", [0.0, 0.000003, 0.4, 59.0, 3601.0])
@pytest.mark.parametrize("error", [-0.000002, 0.0, 0.000002])
def test_the_slot_of_another_schedule_is_the_due_time_that_it_reports(late: float, error: float) -> None:
    due = Once(NOON + dt.timedelta(seconds=error), Time(NOON + dt.timedelta(seconds=late)))
    assert slot_of(due, due.now(), NOON - dt.timedelta(hours=1)) == "2024-05-06T12:00:00Z"


class Silent:
    """A schedule that says nothing of its due time."""

    def now(self) -> dt.datetime:
        return NOON + dt.timedelta(seconds=31)


class Broken(BaseSchedule):
    def remaining_estimate(self, last_run_at: dt.datetime) -> dt.timedelta:
        raise ValueError("no idea")


@pytest.mark.parametrize("due", [Silent(), Broken(nowfun=Time()), Once(NOON + dt.timedelta(days=1), Time())])
def test_the_slot_of_a_schedule_that_cannot_tell_is_the_minute(due: Any) -> None:
    moment = NOON + dt.timedelta(seconds=31)
    assert slot_of(due, moment, NOON - dt.timedelta(days=1)) == slot_of(due, moment) == "2024-05-06T12:00:00Z"


def test_a_schedule_with_a_clock_without_a_zone_has_slots(app: Celery) -> None:
    naive = NOON.replace(tzinfo=None)
    assert slot_of(crontab(minute=0, app=app), naive) == slot_of(schedule(60, app=app), naive) == "2024-05-06T12:00:00Z"
    assert slot_of(Broken(nowfun=Time()), naive, NOON)


ZONES = {
    "Europe/Rome": ("2026-03-29", "2026-10-25"),
    "America/New_York": ("2026-03-08", "2026-11-01"),
    "Australia/Lord_Howe": ("2026-04-05",),
}
SCHEDULES: dict[str, Callable[..., Any]] = {
    "hourly": lambda **o: crontab(minute=30, **o),
    "left out": lambda **o: crontab(minute=30, hour=2, **o),
    "twice an hour": lambda **o: crontab(minute="10,40", hour="1-3", **o),
    "daily": lambda **o: crontab(minute=0, hour=0, **o),
    "7 minutes": lambda **o: schedule(420, **o),
    "relative 90 minutes": lambda **o: schedule(5400, relative=True, **o),
    "relative 3 hours": lambda **o: schedule(10800, relative=True, **o),
    "relative day": lambda **o: schedule(86400, relative=True, **o),
}


@pytest.mark.parametrize("which", SCHEDULES)
@pytest.mark.parametrize(("zone", "day"), [(zone, day) for zone, days in ZONES.items() for day in days])
def test_no_firing_of_one_beat_shares_a_slot_with_its_next_when_clocks_are_changed(app: Celery, which: str, zone: str, day: str) -> None:
    time = Time(at(f"{day}T00:00:00Z") - dt.timedelta(days=1))
    local = ZoneInfo(zone)
    due = SCHEDULES[which](app=in_zone(app, zone), nowfun=lambda: time().astimezone(local))
    last, slots = due.now(), []
    for _ in range(2 * 24 * 20):
        time.now += dt.timedelta(minutes=3, seconds=1)
        if due.is_due(last)[0]:
            before, last = last, due.now()
            slots.append(slot_of(due, last, before))
    assert slots
    assert slots == sorted(set(slots))


def test_an_entry_that_is_fired_again_in_its_slot_runs_again(app: Celery) -> None:
    due = crontab(minute=0, app=app)
    first = slot_of(due, NOON, NOON - dt.timedelta(hours=1))
    again = slot_of(due, NOON + dt.timedelta(minutes=10, seconds=7), NOON)
    at_once = slot_of(due, NOON + dt.timedelta(minutes=10, seconds=9), NOON + dt.timedelta(minutes=10, seconds=7))
    assert [first, again, at_once] == ["2024-05-06T12:00:00Z", "2024-05-06T12:10:00Z", "2024-05-06T12:10:09Z"]


# -- keys -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def nightly(app: Celery) -> Any:
    @app.task(base=GuardedTask, shared=False, name="jobs.nightly", key="{task}:{slot}")
    def nightly() -> str:
        return current_execution().key

    return app.tasks[nightly.name]


@pytest.fixture
def original() -> Iterator[None]:
    """Celery's scheduler as it is before anything of ours has touched it."""
    changed = {name: Scheduler.__dict__[name] for name in ("reserve", "apply_async", "send_task")}
    for name, method in changed.items():
        setattr(Scheduler, name, getattr(method, "guardrails_original", method))
    yield
    for name, method in changed.items():
        setattr(Scheduler, name, method)


def entry(app: Celery, due: Any = None, **options: Any) -> ScheduleEntry:
    due = due or crontab(minute=0, hour=4, nowfun=Time(), app=app)
    fields = {"name": "one", "task": "jobs.nightly", "schedule": due, "app": app, "last_run_at": NOON - dt.timedelta(days=2)}
    return ScheduleEntry(**{**fields, **options})


SLOT = "2024-05-06T04:00:00Z"


def test_beats_that_fire_the_same_entry_give_it_the_same_key(app: Celery, nightly: Any, sent: Sent) -> None:
    for _ in range(2):
        Scheduler(app, lazy=True, schedule={}).apply_async(entry(app), advance=False)
    assert sent.keys == [f"jobs.nightly:{SLOT}"] * 2


@pytest.mark.parametrize("advance", [True, False])
def test_the_slot_is_that_of_the_moment_which_the_next_firing_is_counted_from(app: Celery, nightly: Any, sent: Sent, advance: bool) -> None:
    time = Time(NOON - dt.timedelta(microseconds=1))

    class Slow(Scheduler):
        def reserve(self, entry: ScheduleEntry) -> ScheduleEntry:
            found: ScheduleEntry = super().reserve(entry)
            time.now = NOON + dt.timedelta(seconds=59)  # by when the next period has begun
            return found

    scheduler = Slow(app, lazy=True, schedule={})
    one = entry(app, schedule(60, nowfun=time, app=app))
    if not advance:
        scheduler.reserve(one)
    scheduler.apply_async(one, advance=advance)
    assert sent.keys == ["jobs.nightly:2024-05-06T11:59:00Z"]


def test_a_tick_of_a_scheduler_that_is_used_without_beat_says_the_slot(app: Celery, nightly: Any, sent: Sent) -> None:
    scheduler = Scheduler(app, lazy=True, schedule={"one": entry(app)})
    assert scheduler.tick() == 0
    assert sent.keys == [f"jobs.nightly:{SLOT}"]


def test_a_task_that_beats_app_does_not_know_takes_its_slot_along(app: Celery, original: None, sent: Sent) -> None:
    watch()
    Scheduler(app, lazy=True, schedule={}).apply_async(entry(app, task="elsewhere.job", options={"headers": {"x": 1}, "queue": "q"}))
    (one,) = sent
    assert (one["name"], one["queue"], one["headers"]["x"]) == ("elsewhere.job", "q", 1)
    assert Travel.from_headers(one["headers"]) == Travel(slot=SLOT)


@pytest.mark.usefixtures("original")
def test_beat_has_its_scheduler_say_the_slot_whatever_it_overrides(app: Celery, sent: Sent) -> None:
    class Stubborn(Scheduler):
        """As a scheduler on a database: its own reserve, its own apply_async, and no word to Celery's."""

        fired: int = 0

        def reserve(self, entry: ScheduleEntry) -> ScheduleEntry:
            return next(entry)

        def apply_async(self, entry: ScheduleEntry, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
            self.fired += 1
            return self.send_task(entry.task, entry.args, entry.kwargs)

    service = Service(app, scheduler_cls=Stubborn)
    service._is_shutdown.set()
    service.start()  # sends beat_init
    service.scheduler.apply_async(entry(app, task="elsewhere.job"))
    assert service.scheduler.fired == 1
    assert sent[0]["headers"][TRAVEL_HEADER] == {"slot": SLOT}


def test_a_scheduler_is_watched_once(original: None) -> None:
    watch()
    once = Scheduler.__dict__["apply_async"]
    watch()
    watch(type("Derived", (Scheduler,), {}))
    assert Scheduler.__dict__["apply_async"] is once
    assert once.__name__ == "apply_async"


def test_the_slot_is_gone_when_the_entry_is_published(app: Celery, nightly: Any, sent: Sent) -> None:
    Scheduler(app, lazy=True, schedule={}).apply_async(entry(app))
    assert current_slot() is None


def test_an_entry_whose_task_asks_for_no_slot_costs_no_search(app: Celery, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    @guarded_task(name="jobs.plain", key="plain:{day}")
    def plain(day: int) -> None: ...

    assert app.tasks[plain.name]
    watch()
    monkeypatch.setattr(beat, "slot_of", lambda *_: pytest.fail("searched"))
    Scheduler(app, lazy=True, schedule={}).apply_async(entry(app, task="jobs.plain", args=(1,)))
    assert sent.keys == ["plain:1"]


def test_a_call_by_hand_runs_each_time(nightly: Any, sent: Sent) -> None:
    nightly.delay()
    nightly.apply_async()
    nightly.apply_async((), {}, None)
    assert len(set(sent.keys)) == 3
    # what the worker computes where the header is lost
    assert sent.keys == [f"jobs.nightly:{one['task_id']}" for one in sent]


@pytest.mark.parametrize("positional", [True, False])
def test_a_call_by_hand_that_is_published_again_has_the_same_key(nightly: Any, sent: Sent, positional: bool) -> None:
    for _ in range(2):
        if positional:
            nightly.apply_async((), {}, "fixed")
        else:
            nightly.apply_async(task_id="fixed")
    assert sent.keys == ["jobs.nightly:fixed"] * 2
    assert [one["task_id"] for one in sent] == ["fixed"] * 2


def test_a_call_in_this_process_has_a_key(app: Celery, nightly: Any) -> None:
    app.conf.task_always_eager = True
    task_id = str(uuid.uuid4())
    assert nightly.apply_async(task_id=task_id).get() == f"jobs.nightly:{task_id}"


def test_an_argument_goes_before_what_is_special(app: Celery) -> None:
    @guarded_task(name="jobs.named", key="{task}:{slot}")
    def named(task: str, slot: int) -> None: ...

    @guarded_task(name="jobs.open", key="{task}:{slot}")
    def opened(**kwargs: Any) -> None: ...

    options = app.tasks[named.name].guard_options
    assert options.special == set()
    assert options.identify(("mine", 7), {}, "other")[0] == "mine:7"
    options = app.tasks[opened.name].guard_options
    assert options.identify((), {"slot": 7}, "other")[0] == "jobs.open:7"
    assert options.identify((), {}, "other")[0] == "jobs.open:other"


def test_the_task_alone_may_be_named(app: Celery, sent: Sent) -> None:
    @guarded_task(name="jobs.charge", key="{task}:{order_id}")
    def charge(order_id: int) -> None: ...

    app.tasks[charge.name].delay(7)
    assert sent.keys == ["jobs.charge:7"]


def test_the_slot_is_no_part_of_the_fingerprint(app: Celery, nightly: Any) -> None:
    assert nightly.guard_options.identify((), {}, "a")[1] == nightly.guard_options.identify((), {}, "b")[1]


def test_a_slot_that_nobody_told_makes_no_key(nightly: Any) -> None:
    with pytest.raises(GuardrailsConfigError, match="slot"):
        nightly.guard_options.identify((), {})


def test_a_template_that_is_none_is_refused_where_it_is_defined(app: Celery) -> None:
    with pytest.raises(GuardrailsConfigError, match="template"):
        app.tasks[guarded_task(name="jobs.wrong", key="{slot")(lambda: None).name]


def test_a_publisher_without_slots_does_not_load_beat() -> None:
    script = (
        "import sys, celery, celery_guardrails as g; app = celery.Celery('a'); g.Guardrails(app, store='memory://'); "
        "exec('def t(x): pass'); g.guarded_task(key='k:{x}')(t); app.finalize(); print('celery.beat' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
