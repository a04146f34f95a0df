"""The slot of a task that beat fires: two beats give the same firing the same idempotency key, and it runs once.

A slot is the time at which a schedule was due, the same for every beat, however late it is or when it was started:
``key="{task}:{slot}"``. While beat publishes an entry, a context variable holds what the slot is computed from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from datetime import date, datetime, timedelta, timezone
from typing import Any

from celery import signals
from celery.schedules import BaseSchedule, crontab, schedule

from ..policy.delivery import TRAVEL_HEADER, Travel
from .logs import logger

__all__ = ["current_slot", "install", "slot_of", "watch"]

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
#: Days that a crontab is searched back for its latest due time: the 29th of February on a given weekday comes every 28
#: years, and every 40 where a century leaves one out.
_DAYS_BACK = 41 * 366
#: No clock is moved by more for summer time.
_SHIFT = timedelta(hours=3)

_slot: ContextVar[Callable[[], str] | None] = ContextVar("celery_guardrails_slot", default=None)


def current_slot() -> str | None:
    """Return the slot of the entry that beat publishes right now, or None outside of beat."""
    found = _slot.get()
    return None if found is None else found()


def install() -> None:
    """Have every beat that starts in this process, or is forked from it, say its slots; may be called again."""
    signals.beat_init.connect(_on_beat, weak=False, dispatch_uid="celery_guardrails.beat")


def _on_beat(sender: Any = None, **_: Any) -> None:
    watch(type(sender.scheduler))


def watch(scheduler: type | None = None) -> None:
    """Have the schedulers of a class say their slots: of Celery's own, and of all derived from it, by default.

    Beat does it for its scheduler when it starts (:func:`install`), and so does the definition of a task whose key
    uses ``{slot}``, for a scheduler that is used without beat. A class is changed once.
    """
    if scheduler is None:
        from celery.beat import Scheduler  # costs 15 ms that most publishers need not pay

        scheduler = Scheduler
    for cls in scheduler.__mro__:
        for name, wrap in (("reserve", _reserving), ("apply_async", _publishing), ("send_task", _sending)):
            method = cls.__dict__.get(name)
            if callable(method) and not hasattr(method, "guardrails_original"):
                wrapped = functools.wraps(method)(wrap(method))
                wrapped.guardrails_original = method  # type: ignore[attr-defined]
                setattr(cls, name, wrapped)


def _reserving(method: Callable[..., Any]) -> Callable[..., Any]:
    def reserve(self: Any, entry: Any, *args: Any, **kwargs: Any) -> Any:
        successor = method(self, entry, *args, **kwargs)
        # The slot is that of the moment which the next firing is counted from: that of the publish is a little later,
        # and two firings of one beat could fall into one slot.
        vars(self).setdefault("_guardrails_fired", {})[entry.name] = getattr(successor, "last_run_at", None)
        return successor

    return reserve


def _publishing(method: Callable[..., Any]) -> Callable[..., Any]:
    def apply_async(self: Any, entry: Any, *args: Any, **kwargs: Any) -> Any:
        # Computed when a key asks for it: apply_async may reserve the entry first, and most tasks do not ask.
        def slot() -> str:
            return slot_of(entry.schedule, vars(self).get("_guardrails_fired", {}).get(entry.name), entry.last_run_at)

        token = _slot.set(functools.cache(slot))
        try:
            return method(self, entry, *args, **kwargs)
        finally:
            _slot.reset(token)

    return apply_async


def _sending(method: Callable[..., Any]) -> Callable[..., Any]:
    def send_task(self: Any, *args: Any, **kwargs: Any) -> Any:
        # a task that is not registered in beat's app: the worker makes the key
        slot = current_slot()
        headers = dict(kwargs.get("headers") or {})
        if slot is not None and TRAVEL_HEADER not in headers:
            kwargs["headers"] = {**headers, TRAVEL_HEADER: Travel(slot=slot).to_header()}
        return method(self, *args, **kwargs)

    return send_task


# -- the due time ---------------------------------------------------------------------------------------------------


def slot_of(due: Any, moment: datetime | None, before: datetime | None = None) -> str:
    """Return the due time that a firing belongs to, as ISO text in UTC (``2024-05-06T12:00:00Z``).

    Of an interval it is the moment floored to the period, counted from the Unix epoch; of a crontab the latest due
    time that is not after the moment; of any other schedule the due time that it reports, to the second, else the moment
    floored to the minute.

    Args:
        due: the entry's schedule.
        moment: when the entry fired; now where None.
        before: when it fired the time before.
    """
    try:
        return _text(_due_time(due, moment, before))
    except Exception:  # noqa: BLE001 - a schedule may be anybody's; a slot that is a little coarse beats no run at all
        logger.warning("the slot of %r cannot be told: the minute is taken", due, exc_info=True)
        return _text(_floor(moment if moment is not None and moment.tzinfo else datetime.now(timezone.utc), timedelta(minutes=1)))


def _text(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def _due_time(due: Any, moment: datetime | None, before: datetime | None) -> datetime:
    moment = _aware(due, moment if moment is not None else due.now())
    if isinstance(due, (crontab, schedule)):
        find = _latest if isinstance(due, crontab) else _last_period
        found: datetime = find(due, moment)
        if before is None or found > find(due, _aware(due, before)):
            return found
        # Fired again all the same, and so it is to run again: by hand, by a schedule that is derived from these, or by
        # Celery before 5.7 on a day on which the clock is set forward.
        minute = _floor(moment, timedelta(minutes=1))
        return minute if minute > _aware(due, before) else moment
    if not isinstance(due, BaseSchedule) or before is None:
        return _floor(moment, timedelta(minutes=1))
    # measured from the schedule's own clock, and computed with rounding: two beats differ by microseconds
    reported = _aware(due, due.now()) + due.remaining_estimate(before)
    if reported > moment + timedelta(seconds=1):
        return _floor(moment, timedelta(minutes=1))
    return _floor(reported + timedelta(milliseconds=500), timedelta(seconds=1))


def _aware(due: Any, moment: datetime) -> datetime:
    if moment.tzinfo is not None:
        return moment
    found: datetime = due.maybe_make_aware(moment)
    return found


def _floor(moment: datetime, period: timedelta, offset: timedelta = timedelta(0)) -> datetime:
    # in UTC: with a zone that has summer time Python reckons by the clock on the wall
    moment = moment.astimezone(timezone.utc)
    return moment - (moment + offset - EPOCH) % period


def _last_period(due: schedule, moment: datetime) -> datetime:
    period: timedelta = due.run_every
    if period <= timedelta(0):
        return moment
    if not due.relative or period < timedelta(minutes=1):
        return _floor(moment, period)
    # Celery rounds such a firing down to the day, hour or minute of the local clock (celery/utils/time.py, remaining):
    # two may be closer to each other than the period, and a day may have 23 hours.
    unit = next(unit for unit in (timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)) if period >= unit)
    return _floor(moment, unit if period % unit else period, moment.astimezone(due.tz).utcoffset() or timedelta(0))


def _latest(due: crontab, moment: datetime) -> datetime:
    """Return the latest time up to the moment that a crontab names.

    Where a clock is set back, both passes of an hour count. A time that a clock set forward leaves out counts by the
    clock as it was before.
    """
    wall = moment.astimezone(due.tz)
    for number in range(_DAYS_BACK):
        day = wall.date() - timedelta(days=number)
        if day.day in due.day_of_month and day.month in due.month_of_year and day.isoweekday() % 7 in due.day_of_week:
            # of today, an hour that is long to come need not be looked at
            hours = [hour for hour in due.hour if number or hour <= wall.hour + 3]
            found = _latest_of(due, day, hours, moment)
            if found is not None:
                return found
    raise ValueError(f"{due!r} has not been due for {_DAYS_BACK} days")


def _latest_of(due: crontab, day: date, hours: list[int], moment: datetime) -> datetime | None:
    found = None
    for hour in sorted(hours, reverse=True):
        times = (
            datetime(day.year, day.month, day.day, hour, minute, tzinfo=due.tz, fold=fold).astimezone(timezone.utc)
            for minute in due.minute
            for fold in (0, 1)
        )
        latest = max((time for time in times if time <= moment), default=None)
        if found is not None and (latest is None or latest < found - _SHIFT):
            break  # an earlier hour may be the later time only where the clock was moved in between
        found = max(filter(None, (found, latest)), default=None)
    return found
