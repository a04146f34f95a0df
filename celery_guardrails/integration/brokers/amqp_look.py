"""RabbitMQ from outside: how much lies in its queues, by passive declarations, and what waits in the levels of delays.

Over AMQP it tells what is ready and who consumes, never what consumers hold: that the workers must be asked themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from amqp import exceptions as amqp_errors

from ...ports import Backlog, Depth, FoundMessage
from . import delays
from .amqp_browse import Browse, translated
from .amqp_declare import Scratch

__all__ = ["backlog", "delayed_messages"]

#: Levels made before ``guardrails_delay_queue_type`` was changed go on until they are empty.
_KINDS = ("quorum", "classic")


def _look(scratch: Scratch, queue: str) -> tuple[int, int] | None:
    """Return ready messages and consumers, or None where there is no such queue."""
    try:
        with scratch() as channel:
            found = channel.queue_declare(queue, passive=True)
            return int(found.message_count), int(found.consumer_count)
    except amqp_errors.NotFound:
        return None
    except amqp_errors.ResourceLocked:  # exclusive to another connection
        return 0, 1


def _levels(scratch: Scratch) -> list[tuple[str, int]]:
    """Return the levels that exist with what is in them, the longest first: a message goes from there to shorter ones."""
    found = []
    for kind in _KINDS:
        for level in range(delays.LEVELS):
            name = delays.level_name(kind, level)
            there = _look(scratch, name)
            if there is None:  # they are declared together, the shortest first
                break
            found.append((name, there[0]))
    return found[::-1]


def backlog(scratch: Scratch, queues: Iterable[str], is_quorum: Callable[[str], bool]) -> Backlog:
    """Return how much there is.

    Args:
        scratch: lends channels.
        queues: names.
        is_quorum: whether a task queue is one, as far as the app knows.
    """
    depths = {}
    for queue in queues:
        ready, consumers = _look(scratch, queue) or (0, 0)
        depths[queue] = Depth(ready, consumers, is_quorum(queue))
    unrouted = _look(scratch, delays.UNROUTED) or (0, 0)
    return Backlog(depths, delayed=sum(count for _, count in _levels(scratch)), unrouted=unrouted[0])


def delayed_messages(
    scratch: Scratch, connect: Callable[[], Any], run: Callable[..., Any], words: dict[str, str], timeout: float
) -> Iterator[FoundMessage]:
    """Yield what is in the levels, the longest first; those of each level are held while they are read, and go on where they were.

    They are not renewed as dead letters are: a copy would begin its time anew. One that RabbitMQ 4 takes out of its level at its 20th
    look goes on to the next level, a little early.
    """
    for name, count in run("look at the levels of delays", lambda: _levels(scratch)):
        if not count:
            continue
        with translated(f"look at {name!r}"):
            browse = Browse(connect(), name, ahead=True, timeout=timeout, renew=False)
        for letter in browse.letters():
            word = letter.message.routing_key.split(".", delays.LEVELS)[-1]
            yield FoundMessage(letter.message, words.get(word, word))
