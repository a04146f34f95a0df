"""Settings: read from the Celery configuration, validated once, frozen."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from .errors import GuardrailsConfigError
from .policy.classification import PERMANENT, RETRYABLE

__all__ = ["PREFIX", "Settings", "address_of"]

PREFIX = "guardrails_"


@dataclass(frozen=True)
class Settings:
    """All settings of the package; each is ``guardrails_<name>`` in the Celery configuration.

    Args:
        store: URL of the store, or None to find one (the Redis in ``broker_url`` or ``result_backend``).
        namespace: prefix of every key and queue of ours; None means the app's ``main`` name.
        lease_seconds: length of a lease, renewed at a third of it.
        result_retention: seconds a completion record is kept.
        max_result_bytes: a serialised result over this is remembered as completed without its value.
        max_crashes: worker losses after which a message is poison; those before a loop of it moved on do not count.
        max_stalls: runs in a row that may leave the loops of a task where they found them without a charge.
        hand_over_seconds: after which a task that loops with ``resume()`` goes back into its queue and goes on later, or None.
        dead_letter_exchange: name of the DLX.
        dead_letter_queue: name of the DLQ, with ``{queue}`` for the source queue.
        drain_seconds: time running tasks get after SIGTERM.
        store_failure: ``"defer"`` (do not run, hand back) or ``"open"`` (run unguarded).
        default_kind: of errors that no rule knows.
        delay_queue_type: ``"quorum"`` or ``"classic"``: RabbitMQ queues that hold waiting retries.
        broker_letters_seconds: how often workers look for dead letters that RabbitMQ itself has made, or None for never.
        http: ``host:port`` of the worker's own HTTP server (metrics, probes), or None; port 0 is any that is free.
        alert_webhook: URL that is told of dead letters, or None.
        archive: URL of the database that dead letters are archived in, or None (under Django its database).
        archive_seconds: seconds after which workers archive dead letters again, or None: they do not.
        archive_keep_days: workers delete letters that were replayed or discarded, and archived so many days ago, or None.
        archive_keep_count: of those they keep so many, or None.
        redact: what is hidden of dead letters beside secrets: names, or a callable or its dotted path; None for nothing.
        watch_leaks: compare what the process has before and after each task.
        recycle_on_leak: and replace a prefork process whose task leaks, after it has finished.
        leak_runs: runs of a task in one process, of the last few, that must each have left something behind before it is named.
        leak_memory: bytes that the runs of a task must have added before it is named.
    """

    store: str | None = None
    namespace: str | None = None
    lease_seconds: float = 60.0
    result_retention: float = 86400.0
    max_result_bytes: int = 262144
    max_crashes: int = 3
    max_stalls: int = 5
    hand_over_seconds: float | None = 1200.0
    dead_letter_exchange: str = "guardrails.dlx"
    dead_letter_queue: str = "{queue}.dead"
    drain_seconds: float = 25.0
    store_failure: str = "defer"
    default_kind: str = RETRYABLE
    delay_queue_type: str = "quorum"
    broker_letters_seconds: float | None = 5.0
    http: str | None = None
    alert_webhook: str | None = None
    archive: str | None = None
    archive_seconds: float | None = None
    archive_keep_days: float | None = None
    archive_keep_count: int | None = None
    redact: Sequence[str] | str | Callable[[Any], Any] | None = None
    watch_leaks: bool = False
    recycle_on_leak: bool = False
    leak_runs: int = 5
    leak_memory: int = 67108864

    def __post_init__(self) -> None:
        for name, (allowed, test) in _RULES.items():
            value = getattr(self, name)
            try:
                good = test(value)
            except TypeError:
                good = False
            if not good:
                raise GuardrailsConfigError(f"{PREFIX}{name} = {value!r}: {allowed} is allowed")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Settings:
        """Build from ``guardrails_*`` names.

        Raises:
            GuardrailsConfigError: for a name that is unknown or a value that is not allowed.
        """
        known = {PREFIX + field.name: field.name for field in fields(cls)}
        chosen: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise GuardrailsConfigError(f"{name} = {value!r}: there is no such setting{hint} Known are {', '.join(sorted(known))}")
            chosen[known[name]] = value
        return cls(**chosen)


def _positive(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and value > 0


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


#: host:port, an IPv6 address in brackets. A port alone is refused: nobody shall have to guess who may connect.
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([^\s:/@\[\]]+)):([0-9]{1,5})", re.ASCII)


def address_of(text: str) -> tuple[str, int]:
    """Return host and port of a valid ``guardrails_http``."""
    found = _ADDRESS.fullmatch(text)
    assert found is not None
    return found[1] or found[2], int(found[3])


def _dotted(text: str) -> bool:
    parts = text.replace(":", ".").split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts)


_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "store": ("None or a store URL", lambda v: v is None or (_text(v) and "://" in v)),
    "namespace": ("None or a text that is not empty", lambda v: v is None or _text(v)),
    "lease_seconds": ("a number of seconds of at least 1", lambda v: _positive(v) and v >= 1),
    "result_retention": ("a number of seconds above 0", _positive),
    "max_result_bytes": ("a whole number of bytes of at least 0", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0),
    "max_crashes": ("a whole number of at least 1", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 1),
    "max_stalls": ("a whole number of at least 1", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 1),
    "hand_over_seconds": ("None or a number of seconds above 0", lambda v: v is None or _positive(v)),
    "dead_letter_exchange": ("a text that is not empty", _text),
    "dead_letter_queue": ("a text with {queue} in it", lambda v: _text(v) and "{queue}" in v and v != "{queue}"),
    "drain_seconds": ("a number of seconds of at least 0", lambda v: not isinstance(v, bool) and isinstance(v, (int, float)) and v >= 0),
    "store_failure": ('"defer" or "open"', lambda v: v in ("defer", "open")),
    "default_kind": (f'"{RETRYABLE}" or "{PERMANENT}"', lambda v: v in (RETRYABLE, PERMANENT)),
    "delay_queue_type": ('"quorum" or "classic"', lambda v: v in ("quorum", "classic")),
    "broker_letters_seconds": ("None or a number of seconds above 0", lambda v: v is None or _positive(v)),
    "http": (
        "None or host:port (127.0.0.1:9100; 0.0.0.0:9100 or [::]:9100 for all addresses of the host)",
        lambda v: v is None or (_text(v) and _ADDRESS.fullmatch(v) is not None and address_of(v)[1] <= 65535),
    ),
    "alert_webhook": (
        "None or a URL with https:// or http://",
        lambda v: v is None or (_text(v) and v.startswith(("https://", "http://"))),
    ),
    "archive": ("None, django://ALIAS or sqlalchemy+DIALECT://…", lambda v: v is None or (_text(v) and "://" in v)),
    "archive_seconds": ("None or a number of seconds of at least 1", lambda v: v is None or (_positive(v) and v >= 1)),
    "archive_keep_days": ("None or a number of days above 0", lambda v: v is None or _positive(v)),
    "archive_keep_count": (
        "None or a whole number of at least 0",
        lambda v: v is None or (isinstance(v, int) and not isinstance(v, bool) and v >= 0),
    ),
    "redact": (
        "None, a list of names, or a callable or its dotted path ('shop.privacy.redact')",
        lambda v: v is None or callable(v) or (_text(v) and _dotted(v)) or (isinstance(v, (list, tuple)) and all(map(_text, v))),
    ),
    "watch_leaks": ("True or False", _flag),
    "recycle_on_leak": ("True or False", _flag),
    "leak_runs": ("a whole number of at least 2", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 2),
    "leak_memory": ("a whole number of bytes of at least 1", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 1),
}
