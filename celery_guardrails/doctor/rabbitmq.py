"""RabbitMQ's queues: what the broker itself drops, and where our delays wait."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from .facts import Facts, QueueFacts, RabbitFacts
from .finding import Said, check
from .words import names

__all__ = ["CHECKS", "policy_line"]

#: Policies can do this much of a quorum queue's dead-lettering since then.
_AT_LEAST_ONCE = (3, 10)
#: Arguments by which letters vanish from a dead letter queue.
_LIMITS = ("x-message-ttl", "x-max-length", "x-max-length-bytes", "x-expires")


def policy_line(vhost: str, queue: str, definition: Mapping[str, Any]) -> str:
    """Return the command that gives a queue a policy. RabbitMQ applies one policy to a queue, the one of the highest priority."""
    # Quoted for Erlang's regular expressions and then for the shell; RabbitMQ limits no name.
    pattern = f"^{re.escape(queue)}$"
    words = ["rabbitmqctl", "set_policy", "-p", vhost, f"guardrails-{queue}", pattern, json.dumps(dict(definition))]
    return f"{shlex.join(words)} --apply-to queues --priority 10  # a queue has one policy: add what another one gave it"


def _delete_line(rabbit: RabbitFacts, queue: QueueFacts) -> str:
    # RabbitMQ knows no --if-empty for quorum queues (540 NOT_IMPLEMENTED)
    careful = [] if queue.quorum else ["--if-empty"]
    return shlex.join(["rabbitmqctl", "delete_queue", "-p", rabbit.vhost, queue.name, *careful]) + "  # while nothing is in it"


def _dead_lettering(facts: Facts, queue: QueueFacts, rabbit: RabbitFacts) -> dict[str, Any]:
    """Return the policy that sends what a queue drops to our DLX."""
    found: dict[str, Any] = {"dead-letter-exchange": facts.app.dead_letter_exchange, "dead-letter-routing-key": queue.name}
    if queue.quorum and rabbit.version >= _AT_LEAST_ONCE:
        found |= {"dead-letter-strategy": "at-least-once", "overflow": "reject-publish"}
    return found


def _task_queues(facts: Facts) -> Iterator[tuple[RabbitFacts, QueueFacts, QueueFacts]]:
    """Yield the task queues that are there and can be judged, each with its dead letter queue."""
    if facts.rabbit is not None:
        for queue, dead in facts.rabbit.queues:
            if queue.known:
                yield facts.rabbit, queue, dead


def _dead_letters(queue: QueueFacts) -> bool:
    """Whether it has a dead letter exchange; an empty name is RabbitMQ's default exchange."""
    return queue.get("x-dead-letter-exchange") is not None


def _drops(queue: QueueFacts) -> str | None:
    """Return by what a queue drops messages that nobody has looked at."""
    if (ttl := queue.get("x-message-ttl")) is not None:
        return f"messages expire after {ttl} ms"
    for argument in ("x-max-length", "x-max-length-bytes"):
        limit = queue.get(argument)
        if limit is not None and queue.get("x-overflow") in (None, "drop-head"):
            return f"{argument} is {limit}, and beyond that the oldest are dropped"
    return None


@check("E030", "a queue's dead letter exchange is not there", live=True)
def exchange_absent(facts: Facts) -> Iterator[Said]:
    for rabbit, queue, _ in _task_queues(facts):
        exchange = queue.get("x-dead-letter-exchange")
        if exchange and not rabbit.exchanges.get(exchange, True):
            yield Said(
                queue.name,
                f"its dead letter exchange {exchange!r} does not exist.",
                "What RabbitMQ dead-letters itself (time to live, length and delivery limit, rejects) is dropped without a word.",
                shlex.join(["rabbitmqadmin", f"--vhost={rabbit.vhost}", "declare", "exchange", f"name={exchange}", "type=direct"])
                + "  # the worker declares its own, and binds its queue",
            )


@check("E031", "a queue drops messages, and has no dead letter exchange", live=True)
def drops_messages(facts: Facts) -> Iterator[Said]:
    for rabbit, queue, _ in _task_queues(facts):
        dropped = _drops(queue)
        if dropped and not _dead_letters(queue):
            yield Said(
                queue.name,
                f"{dropped}; it has no dead letter exchange{_as_far_as_known(queue)}.",
                "These tasks are never done and leave nothing behind.",
                policy_line(rabbit.vhost, queue.name, {**(queue.policy or {}), **_dead_lettering(facts, queue, rabbit)}),
            )


@check("W030", "a task queue without a dead letter exchange", live=True)
def no_exchange(facts: Facts) -> Iterator[Said]:
    for rabbit, queue, _ in _task_queues(facts):
        if not _dead_letters(queue) and not _drops(queue):
            limit = "a delivery limit (20 by default since RabbitMQ 4), " if queue.quorum else ""
            yield Said(
                queue.name,
                f"it was declared without x-dead-letter-exchange{_as_far_as_known(queue)}.",
                f"The guard's own dead letters do not need it, but what RabbitMQ gives up itself is gone: {limit}a message's own "
                "expiration, and what plain tasks reject.",
                policy_line(rabbit.vhost, queue.name, {**(queue.policy or {}), **_dead_lettering(facts, queue, rabbit)}),
            )


def _as_far_as_known(queue: QueueFacts) -> str:
    return " (a policy cannot be seen over AMQP; --management-url shows it)" if queue.policy is None else ""


@check("W031", "a quorum queue that dead-letters at most once", live=True)
def at_most_once(facts: Facts) -> Iterator[Said]:
    for rabbit, queue, _ in _task_queues(facts):
        if not (queue.quorum and _dead_letters(queue)) or rabbit.version < _AT_LEAST_ONCE:
            continue
        if queue.get("x-dead-letter-strategy") == "at-least-once" and queue.get("x-overflow") == "reject-publish":
            continue
        wanted = {"dead-letter-strategy": "at-least-once", "overflow": "reject-publish"}
        yield Said(
            queue.name,
            f"dead-letter-strategy at-least-once with overflow reject-publish is not set{_as_far_as_known(queue)}.",
            "A letter that RabbitMQ makes is lost when the dead letter queue cannot take it in that moment: a node is down, a binding "
            "is missing.",
            policy_line(rabbit.vhost, queue.name, {**(queue.policy or {}), **wanted}),
        )


@check("W032", "a queue that does not survive a restart", live=True)
def vanishing(facts: Facts) -> Iterator[Said]:
    for _, queue, dead in _task_queues(facts):
        for found in (queue, dead):
            if found.known and (not found.durable or found.auto_delete):
                which = "not durable" if not found.durable else "deleted with its last consumer"
                yield Said(
                    found.name,
                    f"it is {which}.",
                    "All that waits in it is gone with it.",
                    f"Queue({found.name!r}, durable=True, auto_delete=False)  # in task_queues, after the queue was emptied and deleted",
                )


@check("W033", "a dead letter queue whose letters vanish", live=True)
def limited_letters(facts: Facts) -> Iterator[Said]:
    for rabbit, _, dead in _task_queues(facts):
        limits = [f"{name} = {dead.get(name)}" for name in _LIMITS if dead.get(name) is not None] if dead.known else []
        if limits:
            yield Said(
                dead.name,
                f"{', '.join(limits)}.",
                "Letters beyond that are gone before anybody has looked at them.",
                f"{_delete_line(rabbit, dead)}, after dead-letters replay or archive; a worker declares it anew. Or mend its policy",
            )


@check("W034", "a classic dead letter queue beside a quorum queue", live=True)
def classic_letters(facts: Facts) -> Iterator[Said]:
    for rabbit, queue, dead in _task_queues(facts):
        if queue.quorum and dead.known and not dead.quorum:
            yield Said(
                dead.name,
                f"it is a classic queue; {queue.name} is a quorum queue.",
                "Tasks survive the loss of a node, their dead letters do not.",
                f"{_delete_line(rabbit, dead)}, after dead-letters replay or archive; a worker declares it anew, as a quorum queue",
            )


@check("W035", "RabbitMQ gives up before the guard has counted its crashes", live=True)
def low_delivery_limit(facts: Facts) -> Iterator[Said]:
    for rabbit, queue, _ in _task_queues(facts):
        limit = queue.get("x-delivery-limit")
        if queue.quorum and isinstance(limit, int) and 0 <= limit < facts.app.max_crashes:
            yield Said(
                queue.name,
                f"x-delivery-limit is {limit}, guardrails_max_crashes is {facts.app.max_crashes}.",
                "RabbitMQ counts every return, also of an innocent message beside a crash or in a deploy, and dead-letters it.",
                policy_line(rabbit.vhost, queue.name, {**(queue.policy or {}), "delivery-limit": 20})
                if "x-delivery-limit" not in (queue.arguments or {})
                else facts.app.assign("guardrails_max_crashes", max(1, limit)) + "  # or a new queue with x-delivery-limit = 20",
            )


@check("E032", "a delay queue of ours has other arguments than ours", live=True)
def strange_levels(facts: Facts) -> Iterator[Said]:
    rabbit = facts.rabbit
    for level in rabbit.levels if rabbit is not None else ():
        wanted = rabbit.expected_levels.get(level.name, {}) if rabbit is not None else {}
        strange = [f"{name} is {level.get(name)!r}, not {value!r}" for name, value in wanted.items() if level.get(name) != value]
        if rabbit is not None and level.known and strange:
            yield Said(
                level.name,
                f"{'; '.join(strange)}.",
                "RabbitMQ refuses our declaration of it, so no delay can be declared: retries and hand-backs fail, or wait too long.",
                f"{_delete_line(rabbit, level)}; the next worker declares it anew",
            )


@check("W036", "some of the delay queues are not there", live=True)
def missing_levels(facts: Facts) -> Iterator[Said]:
    rabbit = facts.rabbit
    missing = [level.name for level in rabbit.levels if not level.exists] if rabbit is not None else []
    if rabbit is not None and missing and len(missing) < len(rabbit.levels):
        yield Said(
            names(missing),
            f"{len(missing)} of {len(rabbit.levels)} levels of guardrails_delay_queue_type = {facts.app.delay_kind!r} are missing.",
            "A message whose delay leads through one of them is dropped there, or stays in the level above.",
            "celery -A proj worker  # declares them when it starts",
        )


@check("I006", "a queue that is not there yet", live=True)
def not_yet(facts: Facts) -> Iterator[Said]:
    for queue, dead in facts.rabbit.queues if facts.rabbit is not None else ():
        absent = [found.name for found in (queue, dead) if not found.exists]
        if absent:
            yield Said(
                names(absent),
                "there is no such queue.",
                "Nothing is lost by it: the first worker, or the first task, declares what is missing.",
                f"celery -A proj worker -Q {shlex.quote(queue.name)}",
            )


CHECKS = (
    exchange_absent,
    drops_messages,
    strange_levels,
    no_exchange,
    at_most_once,
    vanishing,
    limited_letters,
    classic_letters,
    low_delivery_limit,
    missing_levels,
    not_yet,
)
