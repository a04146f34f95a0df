"""The bootsteps of an app's workers.

They are named, not imported: this room does not know the one above it, and a publisher does not load what only a worker runs.
"""

from __future__ import annotations

from celery import Celery

__all__ = ["add_steps"]

_WORKER = (
    "celery_guardrails.worker.cooperating:Cooperating",
    "celery_guardrails.worker.doorkeeper:Doorkeeper",
    "celery_guardrails.worker.drain:Drain",
    "celery_guardrails.worker.giving_back:GivingBack",
    "celery_guardrails.worker.http:Http",
    "celery_guardrails.worker.leaks:Leaks",
    "celery_guardrails.worker.orphans:Orphans",
    "celery_guardrails.worker.result_pipes:ResultPipes",
    "celery_guardrails.worker.shrinking:Shrinking",
)
_CONSUMER = (
    "celery_guardrails.worker.events:UnconfirmedEvents",
    "celery_guardrails.worker.topology:DeadLetterTopology",
    "celery_guardrails.worker.bad_messages:BadMessages",
    "celery_guardrails.worker.doorkeeper:Connected",
    "celery_guardrails.worker.prefetching:Prefetching",
    "celery_guardrails.worker.renewal:Renewal",
    "celery_guardrails.worker.overruns:OverrunWatch",
    "celery_guardrails.worker.health:Pulse",
    "celery_guardrails.worker.pausing:Pausing",
    "celery_guardrails.worker.pruning:Pruning",
    "celery_guardrails.worker.archiving:Archiving",
    "celery_guardrails.worker.lost_children:LostChildren",
    "celery_guardrails.worker.returning:Returning",
    "celery_guardrails.worker.delayed:DelayedPump",
    "celery_guardrails.worker.broker_letters:BrokerLetters",
)


def add_steps(app: Celery) -> None:
    """Give the workers of an app what the package runs in their main process."""
    app.steps["worker"].update(_WORKER)
    app.steps["consumer"].update(_CONSUMER)
