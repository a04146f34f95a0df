"""Every error that the package raises, in one tree.

An error that a user meets names the setting or the command that mends it.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "DeadLetterError",
    "DeadLetteredByBroker",
    "DeadlineExceeded",
    "DuplicateTask",
    "GuardrailsConfigError",
    "GuardrailsError",
    "IdempotencyConflict",
    "LeaseLost",
    "LettersReturned",
    "NoProgress",
    "PermanentError",
    "PoisonTask",
    "PublishFailed",
    "QueueFull",
    "RejectedTask",
    "RetryableError",
    "StoreUnavailable",
]


class GuardrailsError(Exception):
    """Base of every error of this package."""


class GuardrailsConfigError(GuardrailsError, ValueError):
    """A setting or an option is unknown or wrong.

    The message names the setting, the value and what is allowed.
    """


class RetryableError(GuardrailsError):
    """Raise it from a task: this failure will pass, try again.

    Args:
        message: what happened, for people.
        retry_after: seconds the dependency asked to be left alone; honoured up to the policy's cap.
    """

    def __init__(self, message: object = "", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild_retryable, (type(self), self.args, self.retry_after))


def _rebuild_retryable(cls: type[RetryableError], args: tuple[Any, ...], retry_after: float | None) -> RetryableError:
    error = cls.__new__(cls)
    Exception.__init__(error, *args)
    error.retry_after = retry_after
    return error


class PermanentError(GuardrailsError):
    """Raise it from a task: no retry can help, dead-letter it at once."""


class IdempotencyConflict(PermanentError):
    """The key is in use for other arguments.

    Either the ``key`` template is too coarse, or the caller reused a key for different work.
    """


class DuplicateTask(PermanentError):
    """The key has completed already and the task says ``on_duplicate="raise"``."""


class DeadlineExceeded(PermanentError):
    """The task's deadline passed before it could start, or a worker stopped it when the deadline came."""


class PoisonTask(PermanentError):
    """The message killed its worker ``guardrails_max_crashes`` times."""


class NoProgress(PermanentError):
    """The task was resumed ``guardrails_max_stalls`` times and its loop never came any further."""


class RejectedTask(PermanentError):
    """The task raised ``Reject``: it is dead-lettered, and its state is FAILURE."""


class DeadLetteredByBroker(PermanentError):
    """The broker took the message out of its queue (time to live, length or delivery limit, a reject), and its task has not completed."""


class LeaseLost(GuardrailsError):
    """Another execution took the key's lease over; this one may no longer complete it."""


class StoreUnavailable(GuardrailsError):
    """The store did not answer; see ``guardrails_store`` and ``guardrails_store_failure``."""


class PublishFailed(GuardrailsError):
    """The broker did not confirm a message; nothing was acknowledged because of it."""


class DeadLetterError(GuardrailsError):
    """A dead letter could not be found, read or moved."""


class LettersReturned(DeadLetterError):
    """The broker has put back what was held, as RabbitMQ does after its ``consumer_timeout``: the queue is to be looked through again."""


class QueueFull(GuardrailsError):
    """The queue is at its limit; nothing was published.

    Args:
        queue: name of the queue.
        depth: messages that wait in it.
        limit: the limit that was reached.
        retry_after: seconds after which the queue should have room, from its depth and measured drain rate.
    """

    def __init__(self, queue: str, depth: int, limit: int, retry_after: float) -> None:
        super().__init__(f"queue {queue!r} holds {depth} messages, its limit is {limit}; try again in {retry_after:.0f} s")
        self.queue = queue
        self.depth = depth
        self.limit = limit
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.queue, self.depth, self.limit, self.retry_after))
