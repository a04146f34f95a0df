"""Archives dead letters every so often, in one worker of the fleet at a time, and deletes what retention does not keep."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.utils.log import get_logger
from celery.worker.consumer import Tasks

from ..errors import GuardrailsConfigError, StoreUnavailable
from ..integration.app import Guardrails, ensure_guardrails
from ..policy.lease import ClaimState, StoredResult
from .background import Background

if TYPE_CHECKING:
    from ..dead_letters.archive import ArchiveReport

__all__ = ["Archiving", "check_archive", "turn_of"]

logger = get_logger(__name__)

#: Seconds after which a worker that died while it archived is in nobody's way.
_LEASE = 60.0
#: Letters of one transaction: fewer than the command takes, since they are in the memory of a worker.
_BATCH = 100
#: Seconds that it pauses at most after a batch, in which it leaves the interpreter to the worker.
_LONGEST_PAUSE = 0.5
#: Seconds until it is tried again after a failure, at most.
_AGAIN = 60.0


def turn_of(dead_letter_queues: Iterable[str]) -> str:
    """Return the key, in the guard's store, that is leased by who archives these queues, and completed for as long as nobody needs to.

    Workers that know other queues have another one: none of them waits for the turn of a worker that does not know its queues.
    """
    digest = hashlib.blake2b("\0".join(sorted(dead_letter_queues)).encode(), digest_size=8)
    return f"\0archive:{digest.hexdigest()}"  # no template and no person makes such a key


def check_archive(rails: Guardrails) -> None:
    """Refuse settings that cannot work, for a worker's start; the database may be away.

    Raises:
        GuardrailsConfigError: naming the setting.
    """
    seconds = rails.settings.archive_seconds
    if rails.settings.archive is None and seconds is None:
        return
    if rails.archive_url is None:
        raise GuardrailsConfigError(
            f"guardrails_archive_seconds = {seconds!r}: there is no archive; set guardrails_archive to a database, "
            'such as "sqlalchemy+postgresql+psycopg://…" or "django://default", or leave this setting out'
        )
    from ..dead_letters.archive import open_table  # not loaded by a worker that does not archive

    open_table(rails.archive_url)  # connects when it is used


class Archiving(bootsteps.StartStopStep):
    """A thread of the main process of every worker where ``guardrails_archive_seconds`` is set.

    Who finds the key neither leased nor completed archives, renews the lease after each batch, and at the end completes the key
    for ``guardrails_archive_seconds``. A worker that is killed loses nothing and doubles nothing, nor do two that archive at the same
    time because a lease was lost: see :class:`~celery_guardrails.dead_letters.archive.Archiver`.
    """

    label = "guardrails archiving"
    requires = (Tasks,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._rails = ensure_guardrails(c.app)
        self._who = f"worker {getattr(c, 'hostname', '')}".strip()
        self._background = Background("guardrails-archiving", self._round)
        self._told = ""
        self._seconds = self._rails.settings.archive_seconds

    def include_if(self, c: Any) -> bool:
        """Only where it is wanted."""
        return self._seconds is not None

    def start(self, c: Any) -> None:
        """Start with the consumer; after a reconnect the thread runs already."""
        self._background.start()

    def stop(self, c: Any) -> None:
        """Nothing: see :meth:`shutdown`."""

    def shutdown(self, c: Any) -> None:
        """End the thread, behind the batch in hand."""
        self._background.stop()

    def _round(self) -> float:
        assert self._seconds is not None
        fraction = self._rails.clock.fraction()
        try:
            self._take_turn()
        except Exception as exc:  # noqa: BLE001 - database, store and broker raise what they like, and the worker goes on
            self._tell(f"{type(exc).__name__}: {exc}")
            return min(self._seconds, _AGAIN) * (1 + fraction)
        # Soon enough to be on time within half of the span, seldom enough not to be noticed, and not all workers together.
        return max(0.5, self._seconds * (0.25 + fraction / 4))

    def _take_turn(self) -> None:
        """Archive if nobody else does or has done so lately."""
        store, holder = self._rails.store, uuid.uuid4().hex
        key = turn_of(self._rails.dead_letters.queues().values())
        claim = store.claim(key, holder=holder, fingerprint=None, lease=_LEASE, owner=self._who)
        if claim.state is not ClaimState.CLAIMED:
            return
        try:
            report = self._archive(key, holder)
        except BaseException:
            with suppress(StoreUnavailable):  # the lease ends by itself
                store.release(key, holder=holder)
            raise
        if report.clean:
            self._told = ""
        elif not self._background.stopping:
            self._tell(report.stopped or f"left in the queue: {report.failed}, such as {report.failures[0].id}: {report.failures[0].why}")
        if report.stopped:
            store.release(key, holder=holder)
        else:
            store.complete(key, holder=holder, fingerprint=None, fence=claim.fence, result=StoredResult(), retention=self._seconds or 1.0)

    def _archive(self, key: str, holder: str) -> ArchiveReport:
        from ..dead_letters.archive import run_archive
        from ..dead_letters.halt import Halt

        rails, settings = self._rails, self._rails.settings
        archive = rails.archive
        if archive is None:
            raise GuardrailsConfigError("guardrails_archive_seconds: the archive has no tables yet: run `python manage.py migrate`")
        began = time.monotonic()

        def on_batch(_: ArchiveReport) -> None:
            nonlocal began
            if self._background.stopping:
                raise Halt("the worker stops")
            if not rails.store.renew([(key, holder)], _LEASE)[0]:
                raise Halt("another worker has taken over")
            self._background.pause(min(_LONGEST_PAUSE, time.monotonic() - began))
            began = time.monotonic()

        try:
            return run_archive(
                rails,
                archive.table,
                batch=_BATCH,
                keep_days=settings.archive_keep_days,
                keep_count=settings.archive_keep_count,
                who=self._who,
                on_batch=on_batch,
            )
        finally:
            archive.table.close()  # a child that is forked later must not have its connection

    def _tell(self, what: str) -> None:
        if what != self._told:  # one line an outage
            self._told = what
            logger.warning("dead letters are not archived: %s; it goes on trying", what)
