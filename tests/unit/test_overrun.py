"""What runs beyond its limit is reported once, then ever more seldom, and once more when it has ended."""

from __future__ import annotations

from celery_guardrails.policy.overrun import Ended, Overruns, Running


def reports(limit, until, step=1.0, **grace):
    overruns, found, seconds = Overruns(), [], 0.0
    while seconds <= until:
        due, _ = overruns.look({"a": Running(seconds, limit, **grace)})
        found += [seconds] if due else []
        seconds += step
    return found


def test_it_is_reported_at_its_limit_and_at_twice_four_and_eight_times():
    assert reports(10.0, 100) == [10, 20, 40, 80]


def test_then_once_an_hour():
    assert reports(3000.0, 20000, step=600.0) == [3000, 6000, 9600, 13200, 16800]


def test_an_hour_is_not_a_second_more_or_less():
    overruns = Overruns()
    looks = {4000.0: True, 7599.5: False, 7600.0: True, 11199.5: False, 11200.0: True}
    assert {seconds: bool(overruns.look({"a": Running(seconds, 4000.0)})[0]) for seconds in looks} == looks


def test_one_that_may_run_for_ever_does_not_hide_another():
    assert Overruns().look({"a": Running(99.0, None), "b": Running(99.0, 10.0), "c": Running(99.0, None)}) == (["b"], {})


def test_something_else_has_its_time_to_end_it_first():
    assert reports(10.0, 40, grace=5.0) == [15, 30]


def test_without_a_limit_it_is_never_reported():
    assert reports(None, 100000, step=1000) == []


def test_its_end_is_reported_once_and_only_where_it_was_reported_itself():
    overruns = Overruns()
    overruns.look({"long": Running(12.0, 10.0), "short": Running(3.0, 10.0)})
    assert set(overruns.present) == {"long"}
    assert overruns.look({"long": Running(13.0, 10.0)}) == ([], {})
    assert overruns.present["long"].seconds == 13.0
    assert overruns.look({}) == ([], {"long": Ended(13.0, 10.0)})
    assert overruns.look({}) == ([], {})
    assert overruns.present == {}
