"""Who is told of dead letters, when and how often: the decision, with no clock and no store."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_guardrails.errors import GuardrailsConfigError
from celery_guardrails.policy.alerts import MESSAGE_LIMIT, Alert, AlertRate, AlertRules, AlertState, Kind, advance, give_back, rejoin
from celery_guardrails.policy.deadletter import DeathCertificate

NOON = 1_900_000_000.0
RULES = AlertRules()


def kind(fingerprint: str = "aa", letters: int = 1, **fields: Any) -> Kind:
    return Kind(fingerprint, "shop.charge", "celery", "permanent", "ValueError", letters=letters, **fields)


class Fleet:
    """Feeds letters in and keeps what is sent, with its time."""

    def __init__(self, rules: AlertRules = RULES, now: float = NOON) -> None:
        self.rules = rules
        self.now = now
        self.state = AlertState()
        self.sent: list[tuple[float, Alert]] = []
        self.wait: float | None = None

    def die(self, *kinds: Kind, after: float = 0.0, beyond: int = 0) -> Alert | None:
        self.now += after
        step = advance(self.state, kinds, beyond, self.now, self.rules)
        self.state, self.wait = step.state, step.wait
        if step.alert is not None:
            self.sent.append((self.now - NOON, step.alert))
        return step.alert

    def rest(self) -> None:
        """Ask again whenever it says, until it wants nothing any more."""
        while self.wait is not None:
            self.die(after=self.wait)

    @property
    def whys(self) -> list[str]:
        return [alert.why for _, alert in self.sent]


def test_the_first_letter_of_a_kind_is_told_at_once_and_the_next_ones_are_not() -> None:
    fleet = Fleet()
    alert = fleet.die(kind())
    assert alert is not None
    assert (alert.why, alert.letters, alert.kinds) == ("new", 1, (kind(new=True),))
    for _ in range(50):
        assert fleet.die(kind(), after=3.0) is None
    assert fleet.wait is None


def test_a_kind_is_new_again_when_it_has_been_quiet_for_long_enough() -> None:
    fleet = Fleet(replace(RULES, quiet=3600.0))
    fleet.die(kind())
    assert fleet.die(kind(), after=3599.0) is None
    assert fleet.die(kind(), after=3599.0) is None, "each letter begins the time anew"
    assert fleet.die(kind(), after=3600.0) is not None


def test_a_second_new_kind_waits_for_its_turn_and_brings_along_what_was_held_back() -> None:
    fleet = Fleet()
    fleet.die(kind("aa"))
    assert fleet.die(kind("aa", 12), after=10.0) is None
    assert fleet.die(kind("bb"), after=20.0) is None
    assert fleet.wait == 270.0
    fleet.rest()
    assert fleet.whys == ["new", "new"]
    at, alert = fleet.sent[1]
    assert at == 300.0
    assert alert.letters == 13
    assert alert.since == NOON + 10.0
    assert [(one.fingerprint, one.letters, one.new) for one in alert.kinds] == [("bb", 1, True), ("aa", 12, False)]


def test_a_flood_is_told_at_once_although_its_kind_was_told_a_moment_ago() -> None:
    fleet = Fleet()
    fleet.die(kind())
    assert fleet.die(kind(letters=99), after=1.0) is None
    alert = fleet.die(kind(), after=1.0)
    assert alert is not None
    assert (alert.why, alert.count, alert.letters, alert.rate) == ("rate", 101, 100, AlertRate(100, 60.0))


def test_letters_below_the_rate_make_no_flood() -> None:
    fleet = Fleet()
    fleet.die(kind())
    for _ in range(600):
        assert fleet.die(kind(), after=0.7) is None  # 86 a minute
    assert fleet.whys == ["new"]


def test_ten_thousand_deaths_in_a_minute_send_a_handful_of_messages() -> None:
    fleet = Fleet()
    for number in range(10_000):
        fleet.die(kind(f"{number % 7:02x}"), after=0.006)
    fleet.rest()
    assert fleet.whys == ["new", "rate", "rate"]
    assert sum(alert.letters for _, alert in fleet.sent) == 10_000, "every letter is counted in one message"
    assert {one.fingerprint for _, alert in fleet.sent for one in alert.kinds if one.new} == {f"{number:02x}" for number in range(7)}


def test_an_outage_of_an_hour_sends_a_handful_of_messages_and_counts_every_letter() -> None:
    fleet = Fleet()
    for _ in range(3600):
        fleet.die(kind(letters=17), after=1.0)
    fleet.rest()
    assert fleet.whys == ["new"] + ["rate"] * 5
    assert [round(at / 60) for at, _ in fleet.sent] == [0, 0, 5, 15, 35, 65]
    assert sum(alert.letters for _, alert in fleet.sent) == 3600 * 17


def test_the_next_flood_is_told_at_once_however_far_apart_the_reminders_of_the_last_one_were() -> None:
    fleet = Fleet()
    for _ in range(3600):
        fleet.die(kind(letters=17), after=1.0)
    fleet.rest()
    before = len(fleet.sent)
    alert = fleet.die(kind(letters=500), after=1200.0)
    assert alert is not None
    assert (alert.why, len(fleet.sent)) == ("rate", before + 1)


def test_of_a_thousand_kinds_at_once_twenty_are_named_and_all_are_counted() -> None:
    fleet = Fleet()
    alert = fleet.die(*(kind(f"{number:04x}") for number in range(1000)), beyond=5)
    assert alert is not None
    assert alert.why == "rate"
    assert (len(alert.kinds), alert.letters, alert.beyond) == (20, 1005, 985)
    assert len(fleet.state.dump()) < 20_000


def test_new_kinds_are_named_before_those_that_are_only_many() -> None:
    fleet = Fleet(replace(RULES, rate=None))
    fleet.die(*(kind(f"{number:04x}") for number in range(30)))
    fleet.die(*(kind(f"{number:04x}", 9) for number in range(30)), after=10.0)
    assert fleet.die(kind("ffff"), after=300.0) is not None
    assert fleet.sent[-1][1].kinds[0] == kind("ffff", new=True)


def test_letters_that_nobody_had_to_be_told_of_do_not_turn_up_in_a_message_of_next_month() -> None:
    fleet = Fleet()
    fleet.die(kind("aa"))
    fleet.die(kind("aa", 40), after=600.0)
    alert = fleet.die(kind("bb"), after=30 * 86400.0)
    assert alert is not None
    assert (alert.letters, alert.since) == (1, fleet.now)


@pytest.mark.parametrize(("options", "whys"), [({"new": False}, ["rate"]), ({"rate": None}, ["new"])])
def test_each_sort_of_message_can_be_left_out(options: dict[str, Any], whys: list[str]) -> None:
    fleet = Fleet(replace(RULES, **options))
    for _ in range(200):
        fleet.die(kind(), after=0.1)
    fleet.rest()
    assert fleet.whys[:1] == whys
    assert set(fleet.whys) == set(whys)


def test_a_message_that_could_not_be_sent_is_in_the_next_one_as_if_it_had_never_been() -> None:
    fleet = Fleet()
    fleet.die(kind("aa"))
    fleet.die(kind("cc", 3), after=1.0)
    fleet.state = give_back(fleet.state, fleet.sent.pop()[1], fleet.now, RULES)
    fleet.die(after=0.5)
    assert fleet.wait == 298.5, "not at once: the receiver is away"
    fleet.rest()
    ((_, alert),) = fleet.sent
    assert (alert.why, alert.letters, alert.since) == ("new", 4, NOON)
    assert all(one.new for one in alert.kinds)


def test_an_alarm_of_a_rate_that_could_not_be_sent_is_tried_again_after_every_and_not_ever_later() -> None:
    fleet = Fleet(replace(RULES, new=False))
    tried: list[float] = []
    for _ in range(60):
        fleet.die(kind(letters=500), after=30.0)
        for at, alert in fleet.sent:
            tried.append(at)
            fleet.state = give_back(fleet.state, alert, fleet.now, fleet.rules)
        fleet.sent.clear()
    assert tried == [30.0, 330.0, 630.0, 930.0, 1230.0, 1530.0]
    alert = fleet.die(kind(letters=500), after=30.0)
    assert alert is not None
    assert alert.letters == 61 * 500


def test_a_process_that_was_alone_brings_its_letters_back_and_nobody_is_told_twice() -> None:
    shared, alone = Fleet(), Fleet()
    shared.die(kind("aa"))
    alone.die(kind("bb"))
    alone.die(kind("bb", 4), kind("cc", 2), after=10.0)
    state = rejoin(shared.state, alone.state, NOON + 20.0, RULES)
    step = advance(state, [], 0, NOON + 300.0, RULES)
    assert step.alert is not None
    assert [(one.fingerprint, one.letters, one.new) for one in step.alert.kinds] == [("cc", 2, True), ("bb", 4, False)]
    assert step.alert.since == NOON + 10.0
    assert advance(step.state, [kind("bb"), kind("aa")], 0, NOON + 900.0, RULES).alert is None


def test_a_clock_that_is_set_back_silences_nobody() -> None:
    fleet = Fleet()
    fleet.die(kind("aa"))
    fleet.now -= 7 * 86400.0
    assert fleet.die(kind("bb")) is not None


def test_only_letters_that_match_count() -> None:
    rules = AlertRules.parse(
        new=True, rate="1/m", every=1, quiet=1, where={"task": ["shop.*", "mail.send"], "reason": "perm*", "queue": "cel?ry"}
    )
    assert rules.concern(kind())
    assert rules.concern(replace(kind(), task="mail.send"))
    assert not rules.concern(replace(kind(), task="mail.sent"))
    assert not rules.concern(replace(kind(), reason="exhausted"))
    assert not rules.concern(replace(kind(), queue="other"))


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100/m", AlertRate(100, 60.0)),
        ("5/h", AlertRate(5, 3600.0)),
        (" 20 / 30s ", AlertRate(20, 30.0)),
        ("3/1.5m", AlertRate(3, 90.0)),
        (None, None),
    ],
)
def test_a_rate_is_read(text: str | None, rate: AlertRate | None) -> None:
    assert AlertRate.parse(text) == rate


GOOD: dict[str, Any] = {"new": True, "rate": "100/m", "every": 300.0, "quiet": 86400.0, "where": None}


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("rate", "often", "rate = 'often'"),
        ("rate", "0/m", "rate = '0/m'"),
        ("rate", "1/0s", "rate = '1/0s'"),
        ("rate", 5, "rate = 5"),
        ("new", "yes", "new = 'yes'"),
        ("every", 0, "every = 0"),
        ("every", True, "every = True"),
        ("quiet", float("inf"), "quiet = inf"),
        ("where", "shop.*", "where = 'shop.*'"),
        ("where", {"tusk": "shop.*"}, "where['tusk'] = 'shop.*': globs for task, queue, reason, error"),
        ("where", {"task": []}, "where['task']"),
        ("where", {"task": [1]}, "where['task']"),
        ("where", {"reason": "permament"}, "matches no reason; there are permanent, exhausted"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_allowed(option: str, value: object, said: str) -> None:
    with pytest.raises(GuardrailsConfigError) as caught:
        AlertRules.parse(**{**GOOD, option: value})
    assert said in str(caught.value)


def test_an_alert_that_would_never_be_sent_is_refused() -> None:
    with pytest.raises(GuardrailsConfigError, match="never be sent"):
        AlertRules.parse(**{**GOOD, "new": False, "rate": None})


def test_what_an_alert_says_of_a_letter_is_short_and_has_no_traceback() -> None:
    certificate = DeathCertificate("permanent", task="t" * 500, error="E" * 500, message="m" * 500, traceback="secret", fingerprint="ab")
    made = Kind.of("q" * 500, certificate)
    assert len(made.message) == MESSAGE_LIMIT == 200
    assert "secret" not in repr(made)
    assert len(repr(made)) < 900


def test_the_state_of_another_release_is_forgotten_and_not_stumbled_over() -> None:
    for data in (b"", b"[]", b"null", b'{"held": [{"colour": "red"}]}', b"\xff", b'{"held": []}'):
        assert AlertState.load(data) == AlertState()
    more = json.loads(AlertState(sent=5.0).dump())
    assert AlertState.load(json.dumps({**more, "of_the_next_release": 1}).encode()).sent == 5.0


deaths = st.lists(
    st.tuples(st.floats(0, 400), st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 300)), max_size=4)), max_size=60
)


@given(deaths, st.booleans(), st.sampled_from([None, AlertRate(100, 60.0), AlertRate(5, 600.0)]))
def test_whatever_dies_every_new_kind_is_told_every_letter_is_counted_once_and_messages_keep_their_distance(
    deaths: Iterable[tuple[float, list[tuple[str, int]]]], new: bool, rate: AlertRate | None
) -> None:
    rules = AlertRules(new=new, rate=rate, every=300.0, quiet=1e9)
    fleet = Fleet(rules)
    total, kinds = 0, set()
    for after, dead in deaths:
        fleet.die(*(kind(name, letters) for name, letters in dead), after=after)
        total += sum(letters for _, letters in dead)
        kinds |= {name for name, _ in dead}
        assert AlertState.load(fleet.state.dump()) == fleet.state
    fleet.rest()
    told = [one for _, alert in fleet.sent for one in alert.kinds]
    waiting = sum(one.letters for one in fleet.state.held.values()) + fleet.state.beyond
    assert sum(alert.letters for _, alert in fleet.sent) + waiting == total
    if new:
        assert {one.fingerprint for one in told if one.new} == kinds
        assert len([one for one in told if one.new]) == len(kinds), "each is new once"
    for why in ("new", "rate"):
        times = [at for at, alert in fleet.sent if alert.why == why]
        assert all(later - earlier >= 299.99 for earlier, later in pairwise(times))
