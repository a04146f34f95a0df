"""The alerts of an app: ``guardrails.alert(...)``."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from celery import signals

from ... import events
from ...errors import GuardrailsConfigError
from ...events import Event
from ...policy.alerts import Alert, AlertRules, Kind
from ..logs import logger
from .channels import Call, Channel, Mail
from .desk import Counts, Desk
from .ledger import Ledger

if TYPE_CHECKING:
    from ..app import Guardrails

__all__ = ["Alerts", "Tried"]

#: Seconds that the end of a process waits for what it has not told yet.
FLUSH = 1.0


def _webhook(url: str) -> Channel:
    from .webhook import Webhook  # and the standard library's HTTP, which a process that declares none does not load

    return Webhook(url)


@dataclass(frozen=True)
class _Declared:
    channel: Channel
    rules: AlertRules

    @property
    def name(self) -> str:
        """The same in all processes that declare the same alert."""
        return blake2b(f"{self.channel.identity} {self.rules!r}".encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Tried:
    """What came of a test message.

    Args:
        channel: where it went, without what is secret.
        ok: it was taken.
        answer: what came back, or what went wrong.
    """

    channel: str
    ok: bool
    answer: str


class Alerts:
    """Hears of dead letters and takes them to the desk of each alert, one set of desks a process.

    Args:
        rails: whose dead letters.
    """

    def __init__(self, rails: Guardrails) -> None:
        self._rails = rails
        self._declared: dict[str, _Declared] = {}
        self._desks: tuple[int, dict[str, Desk]] = (0, {})
        self._heard = False

    def add(
        self,
        function: Callable[[Alert], object] | None,
        *,
        webhook: str | None = None,
        email: str | Sequence[str] | None = None,
        new: bool = True,
        rate: str | None = "100/m",
        every: float = 300.0,
        quiet: float = 86400.0,
        where: Mapping[str, Any] | None = None,
    ) -> None:
        """See :meth:`celery_guardrails.Guardrails.alert`."""
        rules = AlertRules.parse(new=new, rate=rate, every=every, quiet=quiet, where=where)
        makers: tuple[tuple[Callable[[Any], Channel], Any], ...] = ((Call, function), (_webhook, webhook), (Mail, email))
        chosen = [maker(target) for maker, target in makers if target is not None]
        if len(chosen) != 1:
            raise GuardrailsConfigError("alert: one of a callable, webhook=… and email=… is allowed; call it once for each")
        self._declare(_Declared(chosen[0], rules))

    def prepare(self) -> None:
        """Add the alert of the settings, and find out whether all can send; for a worker's start.

        Raises:
            GuardrailsConfigError: one never will.
        """
        url = self._rails.settings.alert_webhook
        if url is not None:
            self._declare(_Declared(_webhook(url), AlertRules()))
        for declared in self._declared.values():
            declared.channel.check()

    def inherit(self, others: Alerts) -> None:
        """Take over what was declared on the default guardrails of an app before these came."""
        others._rails._listeners[:] = [listener for listener in others._rails._listeners if listener != others.hear]
        for declared in others._declared.values():
            self._declare(declared)
        others._declared.clear()

    def _declare(self, declared: _Declared) -> None:
        self._declared.setdefault(declared.name, declared)
        if not self._heard:
            self._heard = True
            self._rails.listen(self.hear)
            signals.worker_ready.connect(self._on_worker_ready, weak=False)
            signals.worker_process_shutdown.connect(self._on_end, weak=False)
            signals.worker_shutdown.connect(self._on_end, weak=False)
            atexit.register(self.flush)

    # -- what dies --------------------------------------------------------------------------------------------

    def hear(self, event: Event) -> None:
        """Take a dead letter in; it costs microseconds and waits for nobody."""
        if not isinstance(event, events.DeadLettered):
            return
        kind = Kind.of(event.queue, event.certificate)
        for name, declared in self._declared.items():
            if declared.rules.concern(kind):
                self._desk(name).put(kind)

    def flush(self, timeout: float = FLUSH) -> bool:
        """Tell what is due, and hand the rest over to the store; whether that was done within so many seconds."""
        desks = self._present()
        for desk in desks.values():
            desk.hurry()
        end = time.monotonic() + timeout
        done = [desk.finished(end - time.monotonic()) for desk in desks.values()]
        if not all(done):
            logger.warning(
                "this process ends before its last dead letters were told to every alert; `guardrails dead-letters groups` has them"
            )
        return all(done)

    def close(self) -> None:
        """End the threads of this process, for an app that is no longer needed; what they have not told is in the queues."""
        for desk in self._present().values():
            desk.close()
        self._present().clear()

    def counts(self) -> dict[str, Counts]:
        """Return what became of the messages of this process, by channel."""
        return {self._declared[name].channel.label: desk.counts for name, desk in self._present().items()}

    def _present(self) -> dict[str, Desk]:
        pid, desks = self._desks
        if pid != os.getpid():  # a fork has neither the threads of its parent nor what waits for them, and maybe a lock that one held
            desks = {}
            self._desks = (os.getpid(), desks)
        return desks

    def _desk(self, name: str) -> Desk:
        desks = self._present()
        return desks.get(name) or desks.setdefault(name, self._made(name))

    def _made(self, name: str) -> Desk:
        rails, declared = self._rails, self._declared[name]
        return Desk(
            declared.channel,
            declared.rules,
            Ledger(lambda: rails.store, rails.clock, name, declared.rules),
            classify=rails.classify,
            chance=rails.clock.fraction,
            app=rails.namespace,
        )

    def _on_worker_ready(self, sender: Any = None, **_: Any) -> None:
        if getattr(sender, "app", None) is self._rails.app:
            for name in self._declared:
                self._desk(name).watch()

    def _on_end(self, **_: Any) -> None:
        self.flush()

    # -- trying -----------------------------------------------------------------------------------------------

    def test(self) -> Iterator[Tried]:
        """Send a test message through each channel, once, and yield what came of it.

        Raises:
            GuardrailsConfigError: there is no alert.
        """
        self.prepare()
        if not self._declared:
            raise GuardrailsConfigError(
                "no alert is declared: add guardrails.alert(webhook=…) beside Guardrails(app), or set guardrails_alert_webhook"
            )
        channels = {declared.channel.identity: declared.channel for declared in self._declared.values()}
        for channel in channels.values():
            try:
                yield Tried(channel.label, True, channel.send(Alert("test", at=self._rails.clock.now()), self._rails.namespace))
            except Exception as exc:  # noqa: BLE001 - a user's callable may raise anything
                yield Tried(channel.label, False, f"{type(exc).__name__}: {exc}")
