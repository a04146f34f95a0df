"""Letters that the broker itself has made: who is told of them, and what their tasks' callers hear.

Nobody runs when RabbitMQ takes a message out of a queue. It leaves a notice (:mod:`.brokers.amqp_notices`), and a worker of the
app does what it would have done for a letter of its own: the event, which alerts and logs listen to, and ``FAILURE`` for those
who wait for the task. The letter lies where the broker has put it and is not touched.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from celery import states
from celery.app.task import Context

from .. import events
from ..dead_letters.decoder import KombuDecoder
from ..dead_letters.letter import DeadLetter, digest_of, read_letter
from ..errors import DeadLetteredByBroker, GuardrailsError, StoreUnavailable
from ..policy.classification import PERMANENT
from ..policy.delivery import DEAD_LETTER_HEADER, RawMessage
from ..policy.lease import ClaimState, RecordState, StoredResult
from .logs import logger

if TYPE_CHECKING:
    from .app import Guardrails

__all__ = ["Notices"]

#: Seconds that one worker has a notice for itself, and seconds for which a letter is known as told.
_LEASE, _REMEMBERED = 30.0, 86400.0
#: Seconds after which a round makes a pause, so that the worker's main thread has its turn.
_ROUND, _PAUSE = 1.0, 0.2


class Notices:
    """Reads the notices of an app; any number of workers may do that side by side.

    A notice is acknowledged after its story is told, and the store remembers that it is: a worker that is killed in between
    leaves it to the next one, which tells nothing twice. While the store or the result backend is away notices wait in the broker.

    Args:
        rails: of the app.
    """

    def __init__(self, rails: Guardrails) -> None:
        self._rails = rails
        self._broker: Any = rails.broker
        self._decoder = KombuDecoder(rails.app.conf.accept_content)
        #: Queues whose dead letter queue was missing: what these notices are copies of is nowhere.
        self._missing: set[str] = set()

    def round(self) -> float:
        """Tell what there is to tell, for a second at most; return the seconds until the next round.

        Raises:
            GuardrailsError: broker or store are away.
        """
        interval: float = self._rails.settings.broker_letters_seconds or 60.0
        queue: str = self._broker.notices
        if not self._broker.depth(queue):
            return interval
        self._rails.store.ping()
        end = self._rails.clock.now() + _ROUND
        left = 0
        try:
            with closing(self._broker.browse(queue)) as notices:
                for notice in notices:
                    if not self._tell(notice.message):
                        left += 1
                        continue
                    self._broker.take(notice)
                    if self._rails.clock.now() >= end and not self._missing:
                        return _PAUSE
        finally:
            self._missing.clear()  # the queue is there now: what the next round finds in it was not restored by this one
        return interval if left else _PAUSE

    def _tell(self, message: RawMessage) -> bool:
        """Tell of one letter; False where that is another worker's to do, or has to wait."""
        if DEAD_LETTER_HEADER in message.headers:  # an older worker publishes as it likes
            return True
        queue = message.routing_key
        letter = read_letter(message, queue=queue, dead_letter_queue=self._broker.dead_letter_queue(queue), decoder=self._decoder)
        self._recover(letter)
        store, holder = self._rails.store, uuid.uuid4().hex
        key = f"\0notice:{digest_of(message, letter.dead_letter_queue)}"
        claim = store.claim(key, holder=holder, fingerprint=None, lease=_LEASE, owner="notice")
        if claim.state is not ClaimState.CLAIMED:
            return claim.state is ClaimState.COMPLETED
        told = False
        try:
            if not self._report(letter):
                return False
            store.complete(key, holder=holder, fingerprint=None, fence=claim.fence, result=StoredResult(), retention=_REMEMBERED)
            told = True
        finally:
            if not told:
                with suppress(StoreUnavailable):
                    store.release(key, holder=holder, drop=True)
        self._rails.emit(events.DeadLettered(letter.queue, letter.certificate))
        return True

    def _recover(self, letter: DeadLetter) -> None:
        """Put the letter into its queue where somebody has deleted that: then the notice is all that is left of it."""
        if letter.queue not in self._missing and self._broker.exists(letter.dead_letter_queue):
            return
        self._missing.add(letter.queue)
        self._broker.restore_letter(letter.message, letter.queue)

    # -- those who wait for the task --------------------------------------------------------------------------

    def _report(self, letter: DeadLetter) -> bool:
        """Store ``FAILURE`` and call errbacks, where nobody knows better; False where the result backend is away."""
        try:
            if letter.task_id and not self._settled(letter):
                self._fail(letter)
        except GuardrailsError:
            raise
        except Exception as exc:  # noqa: BLE001 - a result backend raises what it likes
            if self._rails.classify(exc).kind != PERMANENT:
                logger.warning("%s[%s] is dead, and its result cannot be stored yet: %r", letter.task, letter.task_id, exc)
                return False
            logger.exception("%s[%s] is dead, and its result cannot be stored", letter.task, letter.task_id)
        return True

    def _settled(self, letter: DeadLetter) -> bool:
        """Whether a copy of the message has completed, runs, or has had its result stored."""
        record = self._rails.store.lookup(letter.key) if letter.key else None
        if record is not None and record.state is not RecordState.IDLE:
            return True
        backend = self._rails.app.backend
        if not hasattr(backend, "_get_task_meta_for"):  # rpc:// keeps no states, and with no backend there are none
            return False
        return backend.get_task_meta(letter.task_id)["status"] in states.READY_STATES

    def _fail(self, letter: DeadLetter) -> None:
        app = self._rails.app
        cause = letter.certificate.message
        error = DeadLetteredByBroker(f"{letter.task}[{letter.task_id}]: {cause}; it waits in {letter.dead_letter_queue!r}")
        task = app.tasks.get(letter.task)
        ignored = letter.message.headers.get("ignore_result", getattr(task, "ignore_result", False))
        stored = not ignored or bool(getattr(task, "store_errors_even_if_ignored", False))
        app.backend.mark_as_failure(letter.task_id, error, request=_request(letter), store_result=stored)


def _request(letter: DeadLetter) -> Any:
    """Return what Celery's own worker would hand to the result backend and to errbacks."""
    payload, message = letter.payload, letter.message
    headers: Mapping[str, Any] = message.headers
    return Context(
        {
            **headers,
            **payload.options,
            "id": letter.task_id,
            "task": letter.task,
            "args": list(payload.args),
            "kwargs": dict(payload.kwargs),
            "correlation_id": message.properties.get("correlation_id"),
            "reply_to": message.properties.get("reply_to"),
            "delivery_info": {"exchange": letter.certificate.exchange, "routing_key": letter.certificate.routing_key},
            "called_directly": False,
        }
    )
