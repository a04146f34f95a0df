"""What an app's :class:`~celery_guardrails.Guardrails` tells of itself and of what is around it; it changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from ..audit import Audit
    from ..doctor import Diagnosis
    from .app import Guardrails

__all__ = ["Inspected"]


class Inspected:
    """The part of :class:`~celery_guardrails.Guardrails` that asks and judges."""

    def audit(
        self,
        keys: Iterable[str] | None = None,
        *,
        limit: int = 10_000,
        wait: float = 10.0,
        quorum: bool = False,
        queues: Iterable[str] = (),
    ) -> Audit:
        """Say where everything is, and what contradicts itself: waiting, delayed, running, completed, dead.

        Args:
            keys: idempotency keys or task ids that were published: each gets its state, or is told as unaccounted for. None: counts
                alone, and what is odd without a list.
            limit: messages in one queue above which nobody looks through it; RabbitMQ holds what is looked at for the moment.
            wait: seconds for which what cannot be found is looked for; tasks move meanwhile.
            quorum: look through quorum queues of tasks, too: RabbitMQ counts each look as a delivery of what is ready.
            queues: task queues that the app does not know (workers were started with ``-Q``).

        Raises:
            GuardrailsConfigError: an option is wrong, or ``limit`` forbids to look for the keys.
            StoreUnavailable: the store did not answer.
            PublishFailed, DeadLetterError: the broker did not.
        """
        from .auditing import auditor_of

        return auditor_of(cast("Guardrails", self), limit=limit, wait=wait, counted=quorum, queues=queues).run(keys)

    def doctor(self, *, live: bool = True, management_url: str | None = None, ignore: Sequence[str] = ()) -> Diagnosis:
        """Say what is wrong with the configuration and, live, with broker and store: what ``guardrails doctor`` shows.

        It imports the app's task modules, asks, and changes nothing. What does not answer is a finding.

        Args:
            live: ask broker and store; False judges the configuration and the tasks only, without any connection.
            management_url: of RabbitMQ's management API, ``http://user:password@host:15672``, which knows policies.
            ignore: identifiers that are not to be told, ``"W030"``.

        Raises:
            GuardrailsConfigError: the settings are wrong, tasks cannot be imported, the management API cannot be asked.
        """
        from ..doctor import diagnose
        from .examination import collect

        return diagnose(collect(cast("Guardrails", self), live=live, management_url=management_url), live=live, ignore=ignore)
