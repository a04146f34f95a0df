"""Who is told of dead letters, when and how often: at the first letter of a new kind, and when many die at once.

:func:`advance` is handed what has died and what was known before, and decides. The whole fleet shares one
:class:`AlertState` through the store, so what is decided here holds for all of its processes together.

A new kind is told when nothing was told for ``every`` seconds. The alarm of a rate does not wait behind a message of one
letter: it has a limit of its own, and while the flood goes on its reminders come after 1, 2, 4 and then each 8 times ``every``.
What is held back is summed up in the next message. With the defaults an outage of an hour that kills a thousand
letters a minute, all of one kind, sends six: at its first letter, some seconds after, at minutes 5, 15 and 35, and when it is over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from ..errors import GuardrailsConfigError
from .budget import is_number
from .deadletter import REASONS, DeathCertificate
from .window import Window

__all__ = ["Alert", "AlertRate", "AlertRules", "AlertState", "Kind", "Step", "advance", "give_back", "rejoin"]

#: Characters of an error's message that an alert may carry, and of each name in it.
MESSAGE_LIMIT, _NAME_LIMIT = 200, 120
#: Kinds whose names wait for the next message, and kinds that are remembered as seen. The state is a few kilobytes.
_HELD, _KNOWN = 20, 300
#: The reminders of a flood come at most so many times ``every`` apart.
_SLOWEST = 8
_RATE = re.compile(r"\s*(\d+)\s*/\s*(\d+(?:\.\d+)?)?\s*([smhd])\s*")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_WHERE = ("task", "queue", "reason", "error")


@dataclass(frozen=True)
class AlertRate:
    """More than so many letters within so many seconds."""

    letters: int
    seconds: float

    @classmethod
    def parse(cls, value: object) -> AlertRate | None:
        """Read None, an :class:`AlertRate`, or a text: ``"100/m"``, ``"5/h"``, ``"20/30s"``.

        Raises:
            GuardrailsConfigError: for anything else.
        """
        if value is None or isinstance(value, AlertRate):
            return value
        match = _RATE.fullmatch(value) if isinstance(value, str) else None
        if match is None or not int(match[1]) or not float(match[2] or 1):
            raise GuardrailsConfigError(f'alert: rate = {value!r}: None or a text such as "100/m", "5/h" or "20/30s" is allowed')
        return cls(int(match[1]), float(match[2] or 1) * _UNITS[match[3]])


@dataclass(frozen=True)
class Kind:
    """Letters with one error fingerprint: the first of them, and how many.

    Args:
        fingerprint: of the error.
        task: name of the task.
        queue: that it was consumed from.
        reason: one of :data:`~celery_guardrails.policy.deadletter.REASONS`.
        error: qualified class name of the exception.
        message: of the exception, its first 200 characters.
        letters: of this kind.
        new: it had not been seen for ``quiet`` seconds.
    """

    fingerprint: str
    task: str = ""
    queue: str = ""
    reason: str = ""
    error: str = ""
    message: str = ""
    letters: int = 1
    new: bool = False

    @classmethod
    def of(cls, queue: str, certificate: DeathCertificate) -> Kind:
        """Return what an alert says of one letter; the arguments of the task are not in it."""
        return cls(
            fingerprint=certificate.fingerprint or certificate.reason,
            task=certificate.task[:_NAME_LIMIT],
            queue=queue[:_NAME_LIMIT],
            reason=certificate.reason[:_NAME_LIMIT],
            error=certificate.error[:_NAME_LIMIT],
            message=certificate.message[:MESSAGE_LIMIT],
        )

    def with_more(self, other: Kind) -> Kind:
        """Return both together."""
        return replace(self, letters=self.letters + other.letters, new=self.new or other.new)


@dataclass(frozen=True)
class AlertRules:
    """When one recipient is told.

    Args:
        new: at the first letter of a kind that has not been seen for ``quiet`` seconds.
        rate: when more than so many letters die within so many seconds; None: never.
        every: seconds between two messages of the same sort.
        quiet: seconds without a letter after which a kind counts as new again.
        where: only letters whose ``task``, ``queue``, ``reason`` and ``error`` match one of these globs each.

    Raises:
        GuardrailsConfigError: naming the option, the value and what is allowed.
    """

    new: bool = True
    rate: AlertRate | None = AlertRate(100, 60.0)
    every: float = 300.0
    quiet: float = 86400.0
    where: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @classmethod
    def parse(cls, *, new: object, rate: object, every: object, quiet: object, where: Mapping[str, Any] | None) -> AlertRules:
        """Read the options as they are written; see the class."""
        if not isinstance(new, bool):
            raise GuardrailsConfigError(f"alert: new = {new!r}: True or False is allowed")
        for name, value in (("every", every), ("quiet", quiet)):
            if not (is_number(value) and value):
                raise GuardrailsConfigError(f"alert: {name} = {value!r}: a number of seconds above 0 is allowed")
        chosen = cls(new, AlertRate.parse(rate), float(every), float(quiet), _globs(where or {}))  # type: ignore[arg-type]
        if not new and chosen.rate is None:
            raise GuardrailsConfigError("alert: new = False and rate = None: that alert would never be sent; leave one of them on")
        return chosen

    def concern(self, kind: Kind) -> bool:
        """Whether letters of this kind count for this alert."""
        return all(any(fnmatchcase(getattr(kind, name), glob) for glob in globs) for name, globs in self.where)


def _globs(where: Mapping[str, Any]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if not isinstance(where, Mapping):
        raise GuardrailsConfigError(f'alert: where = {where!r}: a mapping such as {{"task": "shop.*"}} is allowed')
    chosen: list[tuple[str, tuple[str, ...]]] = []
    for name, value in where.items():
        globs = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (tuple, list, set, frozenset)) else ()
        if name not in _WHERE or not globs or not all(isinstance(glob, str) and glob for glob in globs):
            raise GuardrailsConfigError(f"alert: where[{name!r}] = {value!r}: globs for {', '.join(_WHERE)} are allowed")
        if name == "reason" and not all(any(fnmatchcase(reason, glob) for reason in REASONS) for glob in globs):
            raise GuardrailsConfigError(f"alert: where['reason'] = {value!r} matches no reason; there are {', '.join(REASONS)}")
        chosen.append((name, tuple(sorted(globs))))
    return tuple(sorted(chosen))


@dataclass(frozen=True)
class Alert:
    """One message.

    Args:
        why: ``"new"``, ``"rate"`` (new kinds may be among its own) or ``"test"``.
        letters: that died since the last message.
        kinds: of them, new ones first, then by number of letters.
        beyond: letters of further kinds, which are only counted.
        since: unix time in seconds of the first of them.
        at: unix time in seconds of the message.
        count: the most letters that died within the rate's seconds (``"rate"``).
        rate: that was exceeded (``"rate"``).
    """

    why: str
    letters: int = 0
    kinds: tuple[Kind, ...] = ()
    beyond: int = 0
    since: float = 0.0
    at: float = 0.0
    count: int = 0
    rate: AlertRate | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as values of JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class AlertState:
    """What an alert remembers; times are unix times in seconds.

    Args:
        known: when each kind was seen last, by fingerprint, the latest last.
        window: letters of the last seconds, for the rate.
        held: kinds that the next message will tell of.
        beyond: letters for the next message whose kinds found no place in ``held``.
        since: of the first letter for the next message.
        sent: last message.
        sent_rate: last message of a rate.
        over: when the rate was exceeded last.
        peak: the most letters within the rate's seconds that nobody was told of yet; 0: none.
        reminders: messages of the present flood.
    """

    known: Mapping[str, float] = field(default_factory=dict)
    window: Window = field(default_factory=Window)
    held: Mapping[str, Kind] = field(default_factory=dict)
    beyond: int = 0
    since: float = 0.0
    sent: float = 0.0
    sent_rate: float = 0.0
    over: float = 0.0
    peak: float = 0.0
    reminders: int = 0

    def dump(self) -> bytes:
        """Return it as bytes for the store."""
        values = {**vars(self), "window": asdict(self.window), "held": [asdict(kind) for kind in self.held.values()]}
        return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")

    @classmethod
    def load(cls, data: bytes) -> AlertState:
        """Read it; an empty one where another release has written what this one does not understand."""
        try:
            values = json.loads(data)
            held = [Kind(**kind) for kind in values["held"]]
            values = {definition.name: values[definition.name] for definition in fields(cls)}
            return cls(**{**values, "window": Window(**values["window"]), "held": {kind.fingerprint: kind for kind in held}})
        except (ValueError, TypeError, KeyError):
            return cls()


@dataclass(frozen=True)
class Step:
    """What :func:`advance` decides.

    Args:
        state: from now on.
        alert: to be sent, or None.
        wait: seconds until it must be asked again although nothing dies, or None.
    """

    state: AlertState
    alert: Alert | None = None
    wait: float | None = None


def advance(state: AlertState, kinds: Iterable[Kind], beyond: int, now: float, rules: AlertRules) -> Step:
    """Take in what has died since the last call and decide whether somebody is told.

    Args:
        state: before.
        kinds: what has died.
        beyond: further letters whose kinds are not known.
        now: unix time in seconds.
        rules: of the alert.
    """
    kinds = list(kinds)
    state = _counted(state, sum(kind.letters for kind in kinds) + beyond, now, rules)
    state = _noted(_without_stale(state, now, rules), kinds, beyond, now, rules)
    rate_wait = _rate_wait(state, now, rules)
    new_wait = _left(state.sent, now, rules.every) if rules.new and any(kind.new for kind in state.held.values()) else None
    if rate_wait is not None and rate_wait <= 0:
        return _told(state, "rate", now, rules)
    if new_wait is not None and new_wait <= 0:
        return _told(state, "new", now, rules)
    return Step(state, None, min((wait for wait in (rate_wait, new_wait) if wait is not None), default=None))


def give_back(state: AlertState, alert: Alert, now: float, rules: AlertRules) -> AlertState:
    """Return the state with a message in it again that could not be sent: the next one tells of it."""
    since = min(alert.since, state.since) if _waiting(state) else alert.since
    state = _noted(state, alert.kinds, alert.beyond, now, rules)
    unsent = 1 if alert.why == "rate" else 0
    return replace(state, since=since, peak=max(state.peak, float(alert.count)), reminders=max(0, state.reminders - unsent))


def rejoin(state: AlertState, alone: AlertState, now: float, rules: AlertRules) -> AlertState:
    """Return the fleet's state with that of a process in it which was alone for a while: the store was away."""
    known = dict(sorted({**alone.known, **state.known}.items(), key=lambda item: item[1])[-_KNOWN:])
    since = min(state.since, alone.since) if _waiting(state) and _waiting(alone) else alone.since if _waiting(alone) else state.since
    state = replace(
        _noted(replace(state, known=known), alone.held.values(), alone.beyond, now, rules),
        since=since,
        sent=max(state.sent, alone.sent),
        sent_rate=max(state.sent_rate, alone.sent_rate),
        over=max(state.over, alone.over),
        peak=max(state.peak, alone.peak),
        reminders=max(state.reminders, alone.reminders),
    )
    return replace(state, known={**state.known, **known})


def _counted(state: AlertState, letters: int, now: float, rules: AlertRules) -> AlertState:
    if rules.rate is None or not letters:
        return state
    window = state.window.add(letters, now, rules.rate.seconds)
    count = window.count(now, rules.rate.seconds)
    if count <= rules.rate.letters:
        return replace(state, window=window)
    fresh = _left(state.over, now, _calm(rules)) <= 0
    return replace(state, window=window, over=now, peak=max(state.peak, count), reminders=0 if fresh else state.reminders)


def _noted(state: AlertState, kinds: Iterable[Kind], beyond: int, now: float, rules: AlertRules) -> AlertState:
    known, held = dict(state.known), dict(state.held)
    before = _waiting(state)
    for kind in kinds:
        seen = known.pop(kind.fingerprint, None)
        known[kind.fingerprint] = now  # behind all others: the one that was seen longest ago is forgotten first
        marked = replace(kind, new=kind.new or seen is None or _left(seen, now, rules.quiet) <= 0)
        present = held.get(kind.fingerprint)
        held[kind.fingerprint] = marked if present is None else present.with_more(marked)
    ranked = _ranked(held.values())
    beyond += state.beyond + sum(kind.letters for kind in ranked[_HELD:])
    after = replace(
        state, known=dict(list(known.items())[-_KNOWN:]), held={kind.fingerprint: kind for kind in ranked[:_HELD]}, beyond=beyond
    )
    return replace(after, since=now) if _waiting(after) and not before else after


def _told(state: AlertState, why: str, now: float, rules: AlertRules) -> Step:
    alert = Alert(
        why,
        letters=state.beyond + sum(kind.letters for kind in state.held.values()),
        kinds=tuple(_ranked(state.held.values())),
        beyond=state.beyond,
        since=state.since,
        at=now,
        count=int(state.peak) if why == "rate" else 0,
        rate=rules.rate if why == "rate" else None,
    )
    state = replace(state, held={}, beyond=0, since=0.0, sent=now)
    if why == "rate":
        state = replace(state, sent_rate=now, peak=0.0, reminders=state.reminders + 1)
    return Step(state, alert, _rate_wait(state, now, rules))


def _without_stale(state: AlertState, now: float, rules: AlertRules) -> AlertState:
    """Forget letters of known kinds that nobody had to be told of: the next message is of its own time, not of last month."""
    stale = _waiting(state) and _left(state.since, now, rules.quiet) <= 0
    if not stale or state.peak or any(kind.new for kind in state.held.values()):
        return state
    return replace(state, held={}, beyond=0, since=0.0)


def _rate_wait(state: AlertState, now: float, rules: AlertRules) -> float | None:
    """Return the seconds before the present peak may be told of; None where there is none."""
    if rules.rate is None or not state.peak:
        return None
    distance = rules.every * min(_SLOWEST, 2 ** max(0, state.reminders - 1))
    # the last message of a flood need not wait for the next reminder
    calm = max(_left(state.over, now, _calm(rules)), _left(state.sent_rate, now, rules.every))
    return min(_left(state.sent_rate, now, distance), calm)


def _calm(rules: AlertRules) -> float:
    """Return the seconds below the rate after which a flood is over."""
    return max(rules.every, rules.rate.seconds if rules.rate is not None else 0.0)


def _left(since: float, now: float, span: float) -> float:
    """Return the seconds of a span that are left; a clock that was set back by more than the span has none left."""
    left = since + span - now
    return left if left <= 2 * span else 0.0


def _waiting(state: AlertState) -> bool:
    return bool(state.held or state.beyond)


def _ranked(kinds: Iterable[Kind]) -> list[Kind]:
    return sorted(kinds, key=lambda kind: (not kind.new, -kind.letters))
