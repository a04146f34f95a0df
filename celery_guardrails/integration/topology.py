"""Task queues that carry a dead letter exchange, adopted without ever quarrelling with a queue that exists."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import amqp
from amqp import exceptions as amqp_errors
from celery.app.amqp import AMQP
from celery.utils.imports import symbol_by_name

from ..config import Settings
from .brokers.amqp_declare import at_least_once, ensure_dead_letters
from .carrying_on import patient_policy

if TYPE_CHECKING:
    Queue: Any = object  # kombu sets a queue's attributes from a table, which no checker can read
else:
    from kombu import Queue

__all__ = ["GuardedAMQP", "GuardedQueue", "dead_letter_queue_name", "declare_dead_letters", "install"]

logger = logging.getLogger("celery_guardrails.topology")

_DEFAULT = "celery.app.amqp:AMQP"
#: Attribute of an app: returns our settings. Called when queues are needed, not before: the app may not be configured yet.
_SETTINGS = "_guardrails_topology_settings"


def dead_letter_queue_name(settings: Settings, queue: str) -> str:
    """Return the name of the dead letter queue of a task queue."""
    return settings.dead_letter_queue.format(queue=queue)


def declare_dead_letters(broker: Any, queues: Iterable[str]) -> None:
    """Declare what dead letters and delays of these queues need.

    Raises:
        PublishFailed: the broker is away or refuses.
    """
    broker.declare(list(queues))


class GuardedQueue(Queue):
    """A queue that, where it has to be created on RabbitMQ, is created with a dead letter exchange.

    Where it exists it is left as it is: no comparison of arguments, so never a PreconditionFailed. All of it happens on
    channels of its own, so the caller's channel survives. On other brokers it is a plain queue.
    """

    # In attrs, so that copies, bound copies and pickles keep them.
    attrs = (*Queue.attrs, ("dead_letter_exchange", None), ("dead_letter_queue", None))

    dead_letter_exchange: str | None = None
    dead_letter_queue: str | None = None

    @classmethod
    def guard(cls, queue: Any, settings: Settings) -> Any:
        """Make a guarded queue of a plain one, in place, and return it.

        In place, because the same object may also stand in ``task_routes`` or in the user's own code: were that one declared
        without our arguments after ours, it would fail. Subclasses (Broadcast, or the user's own) are left alone.
        """
        if type(queue) is Queue:
            queue.__class__ = cls
            queue.dead_letter_exchange = settings.dead_letter_exchange
            queue.dead_letter_queue = dead_letter_queue_name(settings, queue.name)
        return queue

    def queue_declare(self, nowait: bool = False, passive: bool = False, channel: Any = None) -> Any:
        """Declare the queue where there is none.

        Raises:
            amqp.exceptions.ChannelError: what RabbitMQ says to the declaration of a queue that is new to it.
        """
        channel = channel or self.channel
        guarded = self.name and self.dead_letter_exchange and not self.exclusive
        if passive or not guarded or not isinstance(channel, amqp.Channel):
            return super().queue_declare(nowait=nowait, passive=passive, channel=channel)
        try:
            found = self._ask(channel)
        except amqp_errors.NotFound:
            found = self._create(channel)
        if self.on_declared:
            self.on_declared(*found)
        return found

    def _ask(self, channel: Any) -> Any:
        with _scratch(channel) as scratch:
            return scratch.queue_declare(self.name, passive=True)

    def _create(self, channel: Any) -> Any:
        try:
            with _scratch(channel) as scratch:
                made = scratch.queue_declare(
                    self.name,
                    durable=self.durable,
                    exclusive=self.exclusive,
                    auto_delete=self.auto_delete,
                    arguments=self._arguments(channel),
                )
        except amqp_errors.PreconditionFailed as refused:
            try:
                return self._ask(channel)  # another process was quicker
            except amqp_errors.NotFound:
                raise refused from None  # the arguments are no good
        self._create_dead_letters(channel)
        return made

    def _arguments(self, channel: Any) -> dict[str, Any]:
        given: dict[str, Any] = channel.prepare_queue_arguments(
            dict(self.queue_arguments or {}),
            expires=self.expires,
            message_ttl=self.message_ttl,
            max_length=self.max_length,
            max_length_bytes=self.max_length_bytes,
            max_priority=self.max_priority,
        )
        if "x-dead-letter-exchange" in given:
            return given
        ours = {"x-dead-letter-exchange": self.dead_letter_exchange, "x-dead-letter-routing-key": self.name}
        return {**given, **ours, **at_least_once(channel, given)}

    def _create_dead_letters(self, channel: Any) -> None:
        """A publisher may be first here: what expires before a worker starts must find its dead letter queue."""
        kind = (self.queue_arguments or {}).get("x-queue-type")
        try:
            ensure_dead_letters(
                functools.partial(_scratch, channel),
                exchange=cast(str, self.dead_letter_exchange),
                queue=self.name,
                dead=cast(str, self.dead_letter_queue),
                quorum=kind == "quorum",
            )
        except amqp_errors.ChannelError as exc:
            logger.warning("the dead letter queue of %r could not be declared; a worker will try again: %r", self.name, exc)


@contextlib.contextmanager
def _scratch(channel: Any) -> Iterator[Any]:
    scratch = channel.connection.channel()
    try:
        yield scratch
    finally:
        with contextlib.suppress(amqp_errors.AMQPError, OSError):
            scratch.close()


class _GuardingQueues:
    """Mixin over :class:`celery.app.amqp.Queues`: every queue that comes in, however, is guarded."""

    guardrails_settings: Settings

    def __setitem__(self, name: str, queue: Any) -> None:
        super().__setitem__(name, GuardedQueue.guard(queue, self.guardrails_settings))  # type: ignore[misc]

    def new_missing(self, name: str) -> Any:
        return GuardedQueue.guard(super().new_missing(name), self.guardrails_settings)  # type: ignore[misc]


class _GuardingAMQP:
    """Mixin over :class:`celery.app.amqp.AMQP`."""

    app: Any

    def Queues(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 - Celery's name
        """Return the queues, guarded."""
        queues = super().Queues(*args, **kwargs)  # type: ignore[misc]
        return _guard_queues(self.app, queues)

    def _create_task_sender(self) -> Callable[..., Any]:
        send: Callable[..., Any] = super()._create_task_sender()  # type: ignore[misc]
        app = self.app

        @functools.wraps(send)
        def send_task_message(producer: Any, name: Any, message: Any, *args: Any, **kwargs: Any) -> Any:
            # task_routes and apply_async(queue=…) take Queue objects as well, which no mapping has ever seen.
            if isinstance(kwargs.get("queue"), Queue) and (settings := _settings(app)) is not None:
                GuardedQueue.guard(kwargs["queue"], settings)
            policy = patient_policy(app.conf.task_publish_retry_policy, kwargs.get("retry_policy"))
            if policy is not None:
                kwargs["retry_policy"] = policy
            return send(producer, name, message, *args, **kwargs)

        return send_task_message


class GuardedAMQP(_GuardingAMQP, AMQP):
    """Celery's AMQP with guarded queues; at module level, so that an app that uses it can be pickled."""


def install(app: Any, settings: Settings | Callable[[], Settings]) -> None:
    """Make the queues of an app guarded ones; without loading its configuration.

    Args:
        app: the Celery app; queues it has made already are converted.
        settings: ours, or what returns them once the app is configured.
    """
    setattr(app, _SETTINGS, settings if callable(settings) else lambda: settings)
    if app.amqp_cls == _DEFAULT:
        app.amqp_cls = "celery_guardrails.integration.topology:GuardedAMQP"
    else:
        app.amqp_cls = _guarding(symbol_by_name(app.amqp_cls), _GuardingAMQP)
    present = vars(app).get("amqp")
    if present is not None:
        present.__class__ = _guarding(type(present), _GuardingAMQP)
        vars(present).pop("send_task_message", None)
        if "queues" in vars(present):
            _guard_queues(app, present.queues)


def _settings(app: Any) -> Settings | None:
    found: Callable[[], Settings] | None = getattr(app, _SETTINGS, None)
    return found() if found is not None else None


def _guard_queues(app: Any, queues: Any) -> Any:
    settings = _settings(app)
    if settings is None:
        return queues
    queues.__class__ = _guarding(type(queues), _GuardingQueues)
    queues.guardrails_settings = settings
    for queue in {id(queue): queue for queue in [*queues.values(), *queues.consume_from.values()]}.values():
        GuardedQueue.guard(queue, settings)
    return queues


def _guarding(cls: Any, mixin: Any) -> Any:
    """Return ``cls`` with the mixin before it; itself where it has it already."""
    if issubclass(cls, mixin):
        return cls
    if cls is AMQP:
        return GuardedAMQP
    return type(f"Guarded{cls.__name__}", (mixin, cls), {"__module__": __name__})
