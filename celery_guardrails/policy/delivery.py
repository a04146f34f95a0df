"""One delivery of a message, as the policy sees it, and the header that carries a task's history.

Celery's own ``retries`` header is raised by ``self.retry()`` in user code, RabbitMQ's ``x-delivery-count`` exists on
quorum queues only and is raised by clean deploys, Redis has neither: so the charged attempts travel in a header of our own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import PublishFailed
from .history import PastAttempt, PastDeath, history_header, read_deaths, read_history

__all__ = ["DEAD_LETTER_HEADER", "ORIGINAL_PREFIX", "TRAVEL_HEADER", "TRIES", "Delivery", "RawMessage", "Travel", "of_one_delivery"]

#: Carries key, fingerprint and counters with a message that is alive.
TRAVEL_HEADER = "x-guardrails"
#: Says why a message is dead; only on dead letters.
DEAD_LETTER_HEADER = "guardrails"
#: How often a message that should be alone is tried elsewhere before it runs beside others.
TRIES = 5
#: What a copy that waits or is dead cannot carry (an expiration would expire it) stands in headers that begin with this.
ORIGINAL_PREFIX = "guardrails-original-"

#: What the broker itself wrote on a delivery; on a message published again it would be read as the new delivery's.
#: RabbitMQ takes an ``x-death`` of a client for its own and silently drops a message that seems to travel in a circle;
#: x-delivery-count (quorum) and redelivered (kombu's Redis transport) would charge the new message for old deliveries.
_DELIVERY_HEADERS = frozenset({"x-death", "x-delivery-count", "x-acquired-count", "redelivered"})
_DELIVERY_PREFIXES = ("x-first-death-", "x-last-death-")


def of_one_delivery(header: str) -> bool:
    """Return whether a header belongs to one delivery only, and must not be published again."""
    return header in _DELIVERY_HEADERS or header.startswith(_DELIVERY_PREFIXES)


@dataclass(frozen=True)
class Travel:
    """The content of ``x-guardrails``: what a live message remembers between its deliveries.

    Args:
        key: idempotency key, or None where the publisher had no guard.
        fingerprint: of the arguments that must agree for the key, or None for no check.
        attempts: attempts charged so far.
        deferrals: times handed back without a charge since the last attempt.
        deliveries: deliveries before this one.
        first: unix time in seconds of the first publish, or None where unknown.
        replays: times replayed from a dead letter queue.
        waited: the last retry wait in seconds (for decorrelated jitter).
        origin: exchange and routing key of the first publish, kept while the message takes the way through a delay.
        slot: due time of the schedule that beat fired, where beat could not make the key itself.
        throttled: the last attempt was told to slow down, so that its retry costs more of a budget.
        until: unix time in seconds of the deadline that was inherited from the task that published this one.
        history: the attempts that failed so far, the oldest first.
        deaths: what it was replayed from, the oldest first.
        edited: arguments that an operator changed before a replay: name, old value and new one as redacted texts, the newest last.
        echo: it is a copy that comes once more after its key has completed, so that what follows the task is begun.
        vain: times it should have been alone and could not be, since the last attempt.
    """

    key: str | None = None
    fingerprint: str | None = None
    attempts: int = 0
    deferrals: int = 0
    deliveries: int = 0
    first: float | None = None
    replays: int = 0
    waited: float | None = None
    origin: tuple[str, str] | None = None
    slot: str | None = None
    throttled: bool = False
    until: float | None = None
    history: tuple[PastAttempt, ...] = ()
    deaths: tuple[PastDeath, ...] = ()
    edited: tuple[tuple[str, str, str], ...] = ()
    echo: bool = False
    vain: int = 0

    @classmethod
    def from_headers(cls, headers: Mapping[str, Any] | None) -> Travel:
        """Read the header; what is missing or of a wrong type counts as unset (another program may have written it)."""
        # dict first: asking an abstract class takes a microsecond each time
        raw = headers.get(TRAVEL_HEADER) if isinstance(headers, (dict, Mapping)) else None
        if not isinstance(raw, (dict, Mapping)):
            return cls()
        # by what is there: most messages carry a time and perhaps a key, and every one of them is read
        return cls(**{_READERS[name][0]: _READERS[name][1](value) for name, value in raw.items() if name in _READERS})

    def to_header(self) -> dict[str, Any]:
        """Return the value of the header, without what is unset."""
        values: dict[str, Any] = {
            "key": self.key,
            "fp": self.fingerprint,
            "attempts": self.attempts or None,
            "deferrals": self.deferrals or None,
            "deliveries": self.deliveries or None,
            "first": self.first,
            "replays": self.replays or None,
            "waited": self.waited,
            "origin": list(self.origin) if self.origin else None,
            "slot": self.slot,
            "throttled": self.throttled or None,
            "until": self.until,
            "history": history_header(self.history) if self.history else None,
            "deaths": history_header(self.deaths) if self.deaths else None,
            "edited": [list(change) for change in self.edited] or None,
            "echo": self.echo or None,
            "vain": self.vain or None,
        }
        return {name: value for name, value in values.items() if value is not None}

    def evolve(self, **changes: Any) -> Travel:
        """Return a copy with changes."""
        return replace(self, **changes)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # a year 2**62 comes from no clock; NaN compares with nothing
    return float(value) if abs(value) < 2**62 else None


def _pair(value: Any) -> tuple[str, str] | None:
    return (str(value[0]), str(value[1])) if isinstance(value, (list, tuple)) and len(value) == 2 else None


def _changes(value: Any) -> tuple[tuple[str, str, str], ...]:
    if not isinstance(value, (list, tuple)):
        return ()
    return tuple((str(c[0]), str(c[1]), str(c[2])) for c in value if isinstance(c, (list, tuple)) and len(c) == 3)


#: Name in the header → field, and what reads it.
_READERS: dict[Any, tuple[str, Callable[[Any], Any]]] = {
    "key": ("key", _text),
    "fp": ("fingerprint", _text),
    "attempts": ("attempts", _count),
    "deferrals": ("deferrals", _count),
    "deliveries": ("deliveries", _count),
    "first": ("first", _number),
    "replays": ("replays", _count),
    "waited": ("waited", _number),
    "origin": ("origin", _pair),
    "slot": ("slot", _text),
    "throttled": ("throttled", lambda value: value is True),
    "until": ("until", _number),
    "history": ("history", read_history),
    "deaths": ("deaths", read_deaths),
    "edited": ("edited", _changes),
    "echo": ("echo", lambda value: value is True),
    "vain": ("vain", _count),
}


@dataclass(frozen=True)
class RawMessage:
    """A message byte for byte, as it came from the broker.

    Args:
        body: the bytes on the wire (compressed ones too).
        content_type: as received.
        content_encoding: as received.
        headers: application headers as received.
        properties: the other properties as received.
        exchange: it was published to.
        routing_key: it was published with.
    """

    body: bytes
    content_type: str | None
    content_encoding: str | None
    headers: Mapping[str, Any]
    properties: Mapping[str, Any]
    exchange: str
    routing_key: str

    def with_headers(self, **headers: Any) -> RawMessage:
        """Return a copy with these headers set; a header set to None is removed."""
        merged = {**self.headers, **headers}
        return replace(self, headers={name: value for name, value in merged.items() if name not in headers or value is not None})


@dataclass(frozen=True)
class Delivery:
    """One delivery of one task message to one worker.

    Args:
        task_id: of the Celery task.
        task_name: registered name.
        key: idempotency key.
        fingerprint: of the arguments, or None for no check.
        holder: our own identifier of this very delivery (a delivery tag or a task id is not unique to it).
        queue: the message was consumed from.
        travel: counters that came with the message.
        redelivered: as the broker says.
        raw: the message itself; None when a task runs eagerly.
    """

    task_id: str
    task_name: str
    key: str
    fingerprint: str | None
    holder: str
    queue: str = ""
    travel: Travel = field(default_factory=Travel)
    redelivered: bool = False
    raw: RawMessage | None = None

    @property
    def origin(self) -> tuple[str, str]:
        """Exchange and routing key of the first publish."""
        if self.travel.origin is not None:
            return self.travel.origin
        return (self.raw.exchange, self.raw.routing_key) if self.raw is not None else ("", self.queue)

    @property
    def counted(self) -> bool:
        """Whether the broker counts the deliveries of this message and has counted one: a quorum queue, which may have a limit."""
        return self.raw is not None and bool(self.raw.headers.get("x-delivery-count"))

    def travelled(self, now: float) -> Travel:
        """Return what a copy of this message remembers; ``now`` is unix time in seconds, for one that knows no first publish."""
        travel = self.travel
        return travel.evolve(
            key=self.key,
            fingerprint=self.fingerprint,
            deliveries=travel.deliveries + 1,
            first=travel.first if travel.first is not None else now,
            origin=self.origin,
        )

    def again(self, travel: Travel, *, retries: int | None = None) -> RawMessage:
        """Return the message to publish again: without what belongs to this delivery only.

        Args:
            travel: what the copy remembers.
            retries: attempts charged, for Celery's own header; it never goes down.

        Raises:
            PublishFailed: it did not come from a broker.
        """
        if self.raw is None:
            raise PublishFailed(f"{self.task_name}[{self.task_id}] has no message to publish again: it did not come from a broker")
        headers: dict[str, Any] = {TRAVEL_HEADER: travel.to_header()}
        for name in self.raw.headers:
            if of_one_delivery(name):
                headers[name] = None
        if retries is not None:
            headers["retries"] = max(retries, int(self.raw.headers.get("retries") or 0) + 1)
        return self.raw.with_headers(**headers)

    def __reduce__(self) -> tuple[Any, ...]:
        # Every task's delivery travels from the main process to a child: pickled field by field, names and all, it would
        # take twice the time.
        own = {**vars(self), "travel": None, "raw": None}
        raw = None if self.raw is None else tuple(vars(self.raw).values())
        return _restore, (tuple(own.values()), tuple(vars(self.travel).values()), raw)


def _restore(own: tuple[Any, ...], travel: tuple[Any, ...], raw: tuple[Any, ...] | None) -> Delivery:
    delivery: Delivery = _filled(Delivery, own)
    vars(delivery).update(travel=_filled(Travel, travel), raw=None if raw is None else _filled(RawMessage, raw))
    return delivery


def _filled(cls: Any, values: tuple[Any, ...]) -> Any:
    made = object.__new__(cls)
    vars(made).update(zip(cls.__dataclass_fields__, values, strict=True))
    return made
