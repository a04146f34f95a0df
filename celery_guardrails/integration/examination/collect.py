"""All facts of an app."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

from ...doctor.facts import Facts, LetterFacts, RedisFacts
from ...errors import GuardrailsConfigError, GuardrailsError
from ...stores import hide_password
from .application import app_facts, import_tasks, tasks_of
from .management import Management
from .redis import redis_facts
from .store import store_facts

if TYPE_CHECKING:
    from ..app import Guardrails

__all__ = ["collect"]

T = TypeVar("T")


def collect(rails: Guardrails, *, live: bool = True, management_url: str | None = None, imports: bool = True) -> Facts:
    """Return the facts of an app; see :meth:`~celery_guardrails.Guardrails.doctor`.

    ``imports`` is False for who has imported the tasks' modules already: under Django Celery's loader runs all system checks.
    """
    management = None if management_url is None else Management(management_url)
    if imports:
        import_tasks(rails.app)
    facts = Facts(app=app_facts(rails), tasks=tasks_of(rails))
    if not live:
        return facts
    facts = _with_broker(rails, facts, management)
    store = store_facts(rails)
    redis = facts.redis
    if store.error is None and hasattr(rails.store, "vitals"):
        vitals: list[dict[str, Any]] | None = _unless_away(rails.store.vitals)
        redis = _merged([*redis, *(redis_facts(one, "store") for one in vitals or ())])
    return replace(facts, store=store, redis=redis)


def _with_broker(rails: Guardrails, facts: Facts, management: Management | None) -> Facts:
    try:
        broker: Any = rails.broker
    except GuardrailsConfigError as exc:
        return replace(facts, broker_unfit=hide_password(str(exc)))
    try:
        if hasattr(broker, "vitals"):
            facts = replace(facts, redis=(redis_facts(broker.vitals(), "broker"),))
        elif hasattr(broker, "ask"):
            from .rabbitmq import rabbit_facts

            facts = replace(facts, rabbit=rabbit_facts(broker, facts.app.delay_kind, management))
        return replace(facts, letters=_letters(rails))
    except GuardrailsConfigError:
        raise
    except GuardrailsError as exc:
        return replace(facts, broker_error=hide_password(str(exc)))


def _letters(rails: Guardrails) -> tuple[LetterFacts, ...]:
    from ...dead_letters.filters import Filter
    from ...dead_letters.render import moment

    found = []
    for queue, dead in rails.dead_letters.queues().items():
        count = rails.broker.depth(dead)
        oldest = None
        if count:
            first = list(rails.dead_letters.list(Filter(queue=queue, limit=1)))
            oldest = moment(first[0].certificate.last_seen) if first else None
        found.append(LetterFacts(dead, count, oldest))
    return tuple(found)


def _merged(servers: list[RedisFacts]) -> tuple[RedisFacts, ...]:
    """Return each server once, with all that it is."""
    ordered = sorted(servers, key=lambda server: server.run_id)
    merged = []
    for _, group in groupby(ordered, key=lambda server: server.run_id):
        same = list(group)
        merged.append(replace(same[0], roles=tuple(dict.fromkeys(role for server in same for role in server.roles))))
    return tuple(merged)


def _unless_away(ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except GuardrailsError:
        return None
