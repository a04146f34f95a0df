"""Dead-letters what cannot be a task, byte for byte, where Celery would drop it or die of it.

Celery 5.7, default behaviour: bad JSON is acknowledged and gone (consumer.py ``on_decode_error``); a body that is not a
triple, a message without an id or with a broken ``timelimit`` ends the main process, and the message stays.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from celery import bootsteps
from celery.exceptions import InvalidTaskError, NotRegistered
from celery.utils.functional import noop
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from celery.worker.consumer import Tasks
from kombu.exceptions import ContentDisallowed, DecodeError

from .. import events
from ..errors import PublishFailed
from ..integration.app import ensure_guardrails
from ..integration.stopping import is_stopping
from ..integration.translate import queue_of, raw_message
from ..policy.deadletter import DeathCertificate, error_fingerprint
from ..policy.delivery import Travel
from .giving_back import give_back
from .safe_pop import take_safely

__all__ = ["BadMessages"]

logger = get_logger(__name__)

#: Seconds until a bad message that could not be dead-lettered is looked at again.
_AGAIN = 5.0


@dataclass(frozen=True)
class _Garbage:
    """An item of a Redis list that is no message.

    Args:
        payload: as it was in the list.
        queue: it was taken from.
        exc: what is wrong with it.
        forget: takes it out of what is unacknowledged, where it may be: it would be restored at its visibility timeout, and buried again.
    """

    payload: bytes
    queue: str
    exc: BaseException
    forget: Callable[[], None] = noop


class BadMessages(bootsteps.StartStopStep):
    """Looks at every message before Celery's handler does, and catches what that one throws."""

    label = "guardrails bad messages"
    requires = (Tasks,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._rails = ensure_guardrails(c.app)
        self._consumer = c
        c.on_decode_error = self.on_decode_error
        c.on_unknown_message = self.on_unknown_message
        c.on_unknown_task = self.on_unknown_task
        c.on_invalid_task = self.on_invalid_task
        #: Garbage that is nowhere but here.
        self._held: list[_Garbage] = []
        create = c.create_task_handler
        c.create_task_handler = lambda *args, **kw: self._wrap(create(*args, **kw))

    def start(self, c: Any) -> None:
        """Prepare the channel of this connection."""
        channel = c.task_consumer.channel
        take_safely(channel)
        _keep_wire_bytes(channel)
        _survive_garbage(channel, self._on_garbage)
        if self._held:  # Celery before 5.7 has cleared the timer when the connection was lost
            self._look_later()

    # -- Celery's own hooks -----------------------------------------------------------------------------------

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """The body is not what its headers say."""
        if not hasattr(message, "delivery_tag"):  # kombu could not even make a message of it
            self._on_garbage(_Garbage(_dump(message), "", exc))
            return
        self._bury(message, "undecodable", exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Neither protocol 1 nor 2."""
        self._bury(message, "invalid", InvalidTaskError("the message names no task"))

    def on_unknown_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """This worker does not know the task: a deploy that came in the wrong order, or a wrong queue."""
        name = _task_name(message)
        if not self._bury(message, "unknown_task", NotRegistered(name)):
            return
        task_id = (message.headers or {}).get("id")
        if isinstance(task_id, str):
            self._consumer.app.backend.mark_as_failure(task_id, NotRegistered(name), request=_Unknown(name, message))

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """Celery's own checks refused it."""
        self._bury(message, "undecodable" if isinstance(exc, (ContentDisallowed, DecodeError)) else "invalid", exc)

    # -- the handler ------------------------------------------------------------------------------------------

    def _wrap(self, handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def on_message(message: Any) -> Any:
            try:
                problem = check(message)
            except Exception as exc:  # noqa: BLE001 - a decoder may raise anything on garbage
                return self._bury(message, "undecodable", exc)
            if problem is not None:
                return self._bury(message, "invalid", InvalidTaskError(problem))
            try:
                return handler(message)
            except self._consumer.connection_errors + self._consumer.channel_errors as exc:
                if not isinstance(exc, (KeyError, TypeError, ValueError, AttributeError)):
                    raise
                return self._refused(message, exc)  # kombu's Redis transport lists KeyError among connection errors
            except (KeyError, TypeError, ValueError, AttributeError) as exc:
                return self._refused(message, exc)

        return on_message

    def _refused(self, message: Any, exc: BaseException) -> bool:
        """Celery's handler could not take a message: one that it had made a request of was sound, and it is the worker that is not.

        One that is told to stop while it connects again gets messages although its pool has ended.
        """
        request = next((one for one in list(worker_state.requests.values()) if one.message is message), None)
        if request is None:
            return self._bury(message, "invalid", exc)
        logger.error("%s[%s] could not be given to the pool, and goes back to its queue: %r", request.name, request.id, exc)
        if is_stopping():
            give_back(self._consumer, request)
        else:  # at once it would come again and again
            self._consumer.timer.call_after(_AGAIN, give_back, (self._consumer, request))
        return False

    def _bury(self, message: Any, reason: str, exc: BaseException) -> bool:
        if message.acknowledged:
            logger.error("a message failed after it was acknowledged: %r", exc, exc_info=exc)
            return False
        queue = queue_of(message, self._consumer.task_consumer)
        raw = raw_message(message)
        certificate = self._certificate(reason, exc, queue, headers=raw.headers, exchange=raw.exchange, routing_key=raw.routing_key)
        try:
            self._rails.broker.dead_letter(raw, queue, certificate)
        except PublishFailed as failed:
            logger.error("a bad message stays in %s, it could not be dead-lettered: %r", queue, failed)
            self._consumer.timer.call_after(_AGAIN, message.reject_log_error, (logger, self._consumer.connection_errors, True))
            return False
        message.ack_log_error(logger, self._consumer.connection_errors)
        self._rails.emit(events.DeadLettered(queue, certificate))
        return True

    def _on_garbage(self, garbage: _Garbage) -> None:
        """An item of a Redis list that is no message at all; it has left the list already."""
        queue = garbage.queue
        certificate = self._certificate("undecodable", garbage.exc, queue, headers={}, exchange="", routing_key=queue)
        broker: Any = self._rails.broker
        try:
            broker.dead_letter_raw(garbage.payload, queue, certificate)
        except PublishFailed as failed:
            # No longer in Redis and not in the dead letter queue: this process may be the only one that has it.
            logger.error("garbage from %s is held in memory, it could not be dead-lettered: %r", queue, failed)
            self._held.append(garbage)
            if len(self._held) == 1:
                self._look_later()
            return
        garbage.forget()
        self._rails.emit(events.DeadLettered(queue, certificate))

    def _look_later(self) -> None:
        self._consumer.timer.call_after(_AGAIN, self._look_again)

    def _look_again(self) -> None:
        held, self._held = self._held, []
        for garbage in held:
            self._on_garbage(garbage)

    def _certificate(
        self, reason: str, exc: BaseException, queue: str, *, headers: Mapping[str, Any], exchange: str, routing_key: str
    ) -> DeathCertificate:
        now = self._rails.clock.now()
        error = f"{type(exc).__module__}.{type(exc).__qualname__}".removeprefix("builtins.")
        text = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
        travel = Travel.from_headers(headers)
        return DeathCertificate(
            reason=reason,
            task=str(headers.get("task") or ""),
            task_id=str(headers.get("id") or ""),
            key=travel.key,
            error=error,
            message=str(exc),
            traceback=text,
            fingerprint=error_fingerprint(f"{reason}:{error}", ""),
            attempts=travel.attempts,
            first_seen=travel.first if travel.first is not None else now,
            last_seen=now,
            worker=str(self._consumer.hostname),
            exchange=exchange,
            routing_key=routing_key,
            queue=queue,
            replays=travel.replays,
        )


def check(message: Any) -> str | None:
    """Return what is wrong with a task message, or None.

    Raises:
        Exception: whatever the decoder raises where the body cannot be decoded.
    """
    headers = message.headers
    if not isinstance(headers, (dict, Mapping)):  # dict first: asking an abstract class takes a microsecond, and this is every message
        return "the headers are not a mapping"
    payload = message.payload
    if "task" not in headers:
        return _check_protocol_1(payload)
    for name in ("task", "id"):
        if not isinstance(headers.get(name), str) or not headers[name]:
            return f"header {name!r} is missing or not a text"
    limits = headers.get("timelimit")
    if limits is not None and not (
        isinstance(limits, (list, tuple))
        and len(limits) == 2
        and all(item is None or (isinstance(item, (int, float)) and not isinstance(item, bool)) for item in limits)
    ):
        return f"header 'timelimit' = {limits!r}: two numbers of seconds or None are allowed"
    for name, kinds in (("retries", (int,)), ("stamped_headers", (list, tuple)), ("stamps", (dict, Mapping)), ("shadow", (str,))):
        value = headers.get(name)
        if value is not None and not isinstance(value, kinds):
            return f"header {name!r} = {value!r} has the wrong type"
    if not isinstance(payload, (list, tuple)) or len(payload) != 3:
        if isinstance(payload, Mapping) and "args" in payload:
            return None  # the hybrid of protocols 1 and 2 that Celery knows
        return "the body is not a list of arguments, keyword arguments and options"
    args, kwargs, embed = payload
    if not isinstance(args, (list, tuple)) or not isinstance(kwargs, (dict, Mapping)):
        return "the body's arguments are not a list, or its keyword arguments not a mapping"
    if embed is not None and not isinstance(embed, (dict, Mapping)):
        return "the body's options are not a mapping"
    return None


def _check_protocol_1(payload: Any) -> str | None:
    if not isinstance(payload, Mapping) or not isinstance(payload.get("task"), str):
        return "the message names no task"
    if not isinstance(payload.get("id"), str):
        return "the message has no id"
    if not isinstance(payload.get("args", ()), (list, tuple)) or not isinstance(payload.get("kwargs", {}), Mapping):
        return "the arguments are not a list, or the keyword arguments not a mapping"
    return None


def _task_name(message: Any) -> str:
    try:
        return str(message.headers.get("task") or message.payload["task"])
    except Exception:  # noqa: BLE001 - a message of which not even this is known
        return ""


class _Unknown:
    """As much of a request as a result backend wants to know of a task that nobody knows."""

    chord = errbacks = group = root_id = None
    ignore_result = False
    delivery_info: Mapping[str, Any] = {}

    def __init__(self, name: str, message: Any) -> None:
        self.name = self.task = name
        self.root_id = message.headers.get("root_id")
        self.correlation_id = message.properties.get("correlation_id")
        self.reply_to = message.properties.get("reply_to")

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)


def _keep_wire_bytes(channel: Any) -> None:
    """Have AMQP messages remember their body as it was on the wire: kombu decompresses it and forgets."""
    plain = getattr(channel, "Message", None)
    if plain is None or hasattr(channel, "_brpop_read") or getattr(plain, "keeps_wire_bytes", False):
        return

    class WireMessage(plain):  # type: ignore[misc, valid-type]
        keeps_wire_bytes = True

        def __init__(self, msg: Any, *args: Any, **kwargs: Any) -> None:
            self.guardrails_body = msg.body
            super().__init__(msg, *args, **kwargs)

    channel.Message = WireMessage


def _forget(channel: Any, item: bytes) -> None:
    """Take an item out of what is unacknowledged, if it can be there: it was noted when it was taken (``take.lua``)."""
    try:
        tag = json.loads(item)["properties"]["delivery_tag"]
    except (ValueError, TypeError, LookupError):
        return
    try:
        channel.qos._remove_from_indices(tag).execute()
    except Exception as exc:  # noqa: BLE001 - the server is away: it comes again, and is buried once more
        logger.warning("garbage is in the dead letter queue, and could not be acknowledged: %r", exc)


def _survive_garbage(channel: Any, on_garbage: Callable[[_Garbage], None]) -> None:
    """Keep an item of a Redis list that is no kombu message from ending the worker (redis.py ``_brpop_read``).

    What fails before kombu has made a message of it is garbage; what fails afterwards is a message that kombu will restore.
    """
    read = getattr(channel, "_brpop_read", None)
    handlers = getattr(channel, "handlers", None)
    if read is None or not isinstance(handlers, dict):
        return
    client, unmade = channel.client, [None]
    parse = client.parse_response

    def remember(connection: Any, command: Any, **options: Any) -> Any:
        answer = parse(connection, command, **options)
        if command == "BRPOP":
            unmade[0] = answer
        return answer

    def guarded_read(**options: Any) -> Any:
        unmade[0] = None
        try:
            return read(**options)
        except Exception as exc:
            if not unmade[0]:
                raise
            key, item = unmade[0]
            queue = (key.decode() if isinstance(key, bytes) else str(key)).rsplit(channel.sep, 1)[0]
            on_garbage(_Garbage(bytes(item), queue, exc, partial(_forget, channel, bytes(item))))
            return True

    class WholeMessage(channel.Message):
        def __init__(self, payload: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(payload, *args, **kwargs)
            info = self.delivery_info
            if not (self.delivery_tag and isinstance(self.headers, Mapping) and isinstance(self.properties, Mapping)):
                raise InvalidTaskError("a message has a delivery tag, and headers and properties that are mappings")
            if not (isinstance(info, Mapping) and "exchange" in info and "routing_key" in info):
                raise InvalidTaskError("a message says from which exchange and by which routing key it came")
            unmade[0] = None

    client.parse_response = remember
    handlers["BRPOP"] = guarded_read
    channel.Message = WholeMessage


def _dump(message: Any) -> bytes:
    try:
        return json.dumps(message, default=repr).encode()
    except (TypeError, ValueError):
        return repr(message).encode()
