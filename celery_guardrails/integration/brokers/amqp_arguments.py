"""What a queue of RabbitMQ was declared with, asked over AMQP.

Nothing in AMQP tells it, but RabbitMQ compares a declaration with the queue that is there and says in its refusal in what they
differ, and what the queue has ("received 'x' but current is 'y'", rabbit_misc.erl, assert_args_equivalence). So each argument is
asked for with a value that no queue can be created with: where the queue was deleted meanwhile, none is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from amqp import exceptions as amqp_errors

from .amqp_declare import Scratch

__all__ = ["ARGUMENTS", "Shape", "shape_of"]

#: Arguments that decide what becomes of messages → a value that RabbitMQ creates no queue with, of whatever type.
ARGUMENTS: dict[str, Any] = {
    "x-queue-type": 0,
    "x-dead-letter-exchange": 0,
    "x-dead-letter-routing-key": 0,
    "x-dead-letter-strategy": 0,
    "x-overflow": 0,
    "x-message-ttl": "none",
    "x-max-length": "none",
    "x-max-length-bytes": "none",
    "x-expires": "none",
    "x-delivery-limit": "none",
}
_DIFFERENCE = re.compile(r"inequivalent arg '([^']+)' for .*: received .* but current is (.*)", re.DOTALL)
_VALUE = re.compile(r"^(?:the value )?'(.*?)'(?: of type '\w+')?$", re.DOTALL)
#: More refusals than there are arguments, each with a second round.
_ROUNDS = 40


@dataclass
class Shape:
    """What a queue was declared with.

    Args:
        arguments: those of :data:`ARGUMENTS`, and others that were in the way.
        durable: survives a restart.
        auto_delete: goes with its last consumer.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    durable: bool = True
    auto_delete: bool = False


def shape_of(scratch: Scratch, queue: str, names: Iterable[str] = ARGUMENTS) -> Shape | None:
    """Return what an existing queue was declared with; None where RabbitMQ does not say, or does not let us ask.

    Args:
        scratch: lends a channel that may die.
        queue: its name; it should be there.
        names: of arguments to ask for.
    """
    shape = Shape()
    rounds = _ROUNDS
    for name in names:
        while name not in shape.arguments:
            refusal = _refusal(scratch, queue, shape, name)
            rounds -= 1
            if refusal == "":  # this type of queue does not know the argument
                break
            difference = _DIFFERENCE.search(refusal or "")
            if difference is None or rounds < 0:
                return None
            found = _learn(shape, *difference.groups())
            if found == name:
                break
    # absent is what they are by default
    shape.arguments = {name: value for name, value in shape.arguments.items() if value is not None}
    return shape


def _refusal(scratch: Scratch, queue: str, shape: Shape, name: str) -> str | None:
    """Declare the queue as far as it is known and one argument wrong; return what RabbitMQ says, None where that is of no use."""
    arguments = {known: value for known, value in shape.arguments.items() if value is not None}
    arguments[name] = ARGUMENTS[name]
    try:
        with scratch() as channel:
            channel.queue_declare(queue, durable=shape.durable, auto_delete=shape.auto_delete, arguments=arguments)
    except amqp_errors.PreconditionFailed as exc:
        return str(exc.reply_text)
    except amqp_errors.ChannelError:  # no permission, exclusive to another connection, deleted meanwhile
        return None
    return ""


def _learn(shape: Shape, name: str, current: str) -> str:
    value = _VALUE.match(current)
    text = value.group(1) if value else None
    if name == "durable":
        shape.durable = text == "true"
    elif name == "auto_delete":
        shape.auto_delete = text == "true"
    else:
        shape.arguments[name] = None if text is None else _typed(name, text, current)
    return name


def _typed(name: str, text: str, current: str) -> Any:
    """Return a value as it is: RabbitMQ says the type, but not where both sides have a value."""
    if "of type 'bool'" in current:
        return text == "true"
    number = isinstance(ARGUMENTS.get(name), str) or ("of type" in current and "longstr" not in current)
    return int(text) if number and re.fullmatch(r"-?\d+", text) else text
