"""What an audit needs of a Celery app: its workers' word, its result backend's, and its tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..audit import Answer, ArchivedLetters, Auditor, Held, Sources, key_reader
from ..audit.standing import SILENT
from ..dead_letters.decoder import KombuDecoder
from ..dead_letters.tasks import tasks_of

if TYPE_CHECKING:
    from .app import Guardrails

__all__ = ["HOLDING", "auditor_of"]

#: The control command that workers answer (:mod:`celery_guardrails.worker.holding`).
HOLDING = "guardrails_holding"
#: Of the result backend, in a row: each may take as long as its timeout.
_MOST_FAILURES = 3


def auditor_of(rails: Guardrails, *, timeout: float = 1.0, **options: Any) -> Auditor:
    """Return the auditor of an app.

    Args:
        rails: of the app.
        timeout: seconds that workers get to answer.
        **options: of :class:`~celery_guardrails.audit.Auditor`.

    Raises:
        GuardrailsConfigError: an option is wrong.
    """
    app, archive = rails.app, rails.archive
    sources = Sources(
        broker=rails.broker,
        store=rails.store,
        letters=rails.dead_letters,
        archive=None if archive is None else ArchivedLetters(archive),
        workers=lambda: _ask(app, timeout),
        result=_results_of(app),
        key_of=key_reader(KombuDecoder(app.conf.accept_content), tasks_of(app)),
        clock=rails.clock,
        lease=rails.settings.lease_seconds,
    )
    return Auditor(sources, **options)


def _ask(app: Any, timeout: float) -> Sequence[Answer]:
    replies = app.control.broadcast(HOLDING, reply=True, timeout=timeout) or []
    return [_answer(worker, said) for reply in replies for worker, said in reply.items() if isinstance(said, Mapping) and "held" in said]


def _answer(worker: str, said: Mapping[str, Any]) -> Answer:
    return Answer(worker, frozenset(said["queues"]), tuple(Held(*one) for one in said["held"]))


def _results_of(app: Any) -> Callable[[str], str]:
    """Return what says a task's state in the result backend; after some failures in a row it is not asked any more."""
    # of a result that was sent as a message only its publisher hears
    if not app.conf.result_backend or str(app.conf.result_backend).startswith(("rpc", "amqp")):
        return lambda _: ""
    failures = 0

    def state_of(task_id: str) -> str:
        nonlocal failures
        if failures >= _MOST_FAILURES:
            return SILENT
        try:
            state = str(app.backend.get_state(task_id))
        except Exception:  # noqa: BLE001 - every backend has errors of its own, and one result may be unreadable
            failures += 1
            return SILENT
        failures = 0
        return state

    return state_of
