"""The arithmetic behind docs/storm.md, on logs that are short enough to count by hand."""

from __future__ import annotations

import json

import pytest

from benchmarks.storm.measures import Call, Storm, figures, lowest, percentile, read_dependency, read_published, recovery, series

pytestmark = pytest.mark.unit

STARTS = {"normal": 100.0, "slow": 110.0, "down": 120.0, "healed": 130.0, "end": 150.0}


def storm(*calls: Call, published: dict[str, float], waiting: set[str] | None = None, dead: set[str] | None = None) -> Storm:
    return Storm(calls, published, STARTS, frozenset(waiting or ()), frozenset(dead or ()))


def test_the_log_is_read_in_the_order_of_arrival():
    lines = [
        ["phase", 1.0, "normal"],
        ["call", 3.0, 3.1, "b", "ok"],  # written when it ended, before one that had come earlier
        ["call", 2.0, 4.0, "a", "late"],
        ["phase", 5.0, "down"],
    ]
    calls, starts = read_dependency(json.dumps(line) for line in lines)
    assert calls == [Call(2.0, 4.0, "a", "late"), Call(3.0, 3.1, "b", "ok")]
    assert starts == {"normal": 1.0, "down": 5.0}


def test_the_publishers_log_is_read():
    assert read_published(["1.5 a", "2.5 b"]) == {"a": 1.5, "b": 2.5}


def test_only_the_first_call_of_a_task_is_a_first_attempt_and_only_its_first_success_is_goodput():
    told = series(
        storm(
            Call(100.2, 100.9, "a", "down"),
            Call(101.2, 102.5, "a", "ok"),
            Call(101.5, 101.6, "b", "ok"),
            Call(104.0, 104.1, "a", "ok"),  # needless
            published={"a": 100.0, "b": 101.4},
        )
    )
    assert told.calls[:5] == [1, 2, 0, 0, 1]
    assert told.firsts[:5] == [1, 1, 0, 0, 0]
    assert told.goodput[:5] == [0, 1, 1, 0, 0]
    assert told.published[:5] == [1, 1, 0, 0, 0]
    assert told.amplification[:5] == [1.0, 1.5, 1.5, 1.5, 2.0]
    assert len(told.calls) == 50


def test_an_answer_that_nobody_waited_for_is_no_success():
    found = storm(Call(101.0, 103.0, "a", "late"), published={"a": 100.0})
    assert sum(series(found).goodput) == figures(found).succeeded == 0


def test_amplification_is_unknown_before_the_first_call():
    assert series(storm(Call(102.0, 102.1, "a", "ok"), published={"a": 100.0})).amplification[:3] == [None, None, 1.0]


def test_both_amplifications_of_the_outage_count_its_window_only():
    found = figures(
        storm(
            Call(119.0, 121.0, "before", "late"),  # arrived before
            Call(120.0, 120.1, "a", "down"),
            Call(121.0, 121.1, "before", "down"),  # its first call was earlier: a retry
            Call(122.0, 122.1, "a", "down"),
            Call(128.9, 129.9, "b", "hung"),
            Call(130.0, 130.1, "a", "ok"),  # arrived when it had healed
            published={"before": 118.0, "a": 119.5, "b": 120.0, "c": 125.0, "d": 126.0, "e": 129.0, "late": 130.0},
        )
    )
    assert (found.outage_calls, found.outage_firsts, found.outage_published) == (4, 2, 4)
    assert found.outage_per_first == 2.0
    assert found.outage_per_published == 1.0
    assert found.amplification == pytest.approx(6 / 3)
    assert found.outcomes == {"late": 1, "down": 3, "hung": 1, "ok": 1}


def test_an_outage_without_a_first_attempt_has_no_ratio_to_first_attempts():
    found = figures(storm(Call(119.0, 119.1, "a", "busy"), Call(125.0, 125.1, "a", "down"), published={"a": 118.0, "b": 121.0}))
    assert found.outage_per_first is None
    assert found.outage_per_published == 1.0


def test_every_task_without_a_success_is_dead_or_waiting_or_lost():
    found = figures(
        storm(
            Call(121.0, 121.1, "done", "ok"),
            Call(122.0, 122.1, "dead", "down"),
            Call(123.0, 123.1, "done", "ok"),
            published=dict.fromkeys(("done", "dead", "waiting", "lost", "both"), 120.5),
            waiting={"waiting", "done", "both"},  # a message that succeeded but was not acknowledged yet is no waiting task
            dead={"dead", "both"},
        )
    )
    assert (found.succeeded, found.dead, found.waiting, found.lost, found.needless) == (1, 2, 1, 1, 1)


def test_the_wait_of_tasks_of_the_outage_ends_with_their_first_success():
    calls = [Call(130.0 + n, 130.5 + n, f"t{n}", "ok") for n in range(10)]
    found = figures(storm(*calls, published={f"t{n}": 120.5 for n in range(10)}))
    assert found.wait_median == pytest.approx(14.0)
    assert found.wait_p95 == pytest.approx(19.0)
    assert found.cleared_after == pytest.approx(9.5)
    assert found.unfinished == 0


def test_one_task_left_over_from_before_healing_leaves_the_time_open():
    calls = [Call(131.0, 131.5, f"t{n}", "ok") for n in range(9)]
    found = figures(storm(*calls, published={f"t{n}": 120.5 for n in range(10)}))
    assert found.cleared_after is None
    assert found.unfinished == 1
    assert found.wait_p95 is None
    assert found.wait_median == pytest.approx(11.0)


def test_goodput_is_back_at_the_end_of_the_first_full_window_that_lasts():
    # 10 tasks a second from 12 s after healing on
    done = [142.0 + n / 10 for n in range(300)]
    assert recovery(done, healed=130.0, end=172.0, rate=10.0) == pytest.approx(16.8, abs=0.11)  # 95 % of it: a quarter second earlier


def test_a_burst_that_does_not_last_is_no_recovery():
    burst = [131.0 + n / 10 for n in range(60)]
    assert recovery(burst, healed=130.0, end=150.0, rate=10.0) is None
    later = [140.0 + n / 10 for n in range(100)]
    assert recovery(burst + later, healed=130.0, end=150.0, rate=10.0) == pytest.approx(14.8, abs=0.11)


def test_recovery_takes_a_window_at_least():
    done = [130.0 + n / 10 for n in range(200)]
    assert recovery(done, healed=130.0, end=150.0, rate=10.0) == pytest.approx(5.0)
    assert recovery(done, healed=130.0, end=134.0, rate=10.0) is None


def test_the_lowest_window_is_a_share_of_the_rate():
    done = [130.0 + n / 10 for n in range(100)] + [142.5 + n / 10 for n in range(75)]
    assert lowest(done, 130.0, 150.0, rate=10.0) == pytest.approx(0.5, abs=0.021)
    assert lowest(done, 148.0, 150.0, rate=10.0) is None


@pytest.mark.parametrize(("share", "value"), [(0.5, 2.0), (0.51, 3.0), (1.0, None), (0.0, 1.0)])
def test_a_percentile_is_a_value_that_occurred(share: float, value: float | None):
    assert percentile([1.0, 2.0, 3.0, float("inf")], share) == value


def test_a_percentile_of_nothing_is_unknown():
    assert percentile([], 0.5) is None
