"""What tasks are declared with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .facts import Facts, TaskFacts
from .finding import Said, check
from .words import names, seconds

__all__ = ["CHECKS"]

#: Seconds that RabbitMQ lets a consumer keep a message (``consumer_timeout`` of rabbitmq.conf, since 3.8.17).
CONSUMER_TIMEOUT = 1800.0


def _plain(facts: Facts) -> list[TaskFacts]:
    return [task for task in facts.tasks if not task.guarded]


def _list(tasks: Iterable[TaskFacts]) -> str:
    return names(task.name for task in tasks)


@check("E002", "an atomic task, and a store that keeps its records elsewhere than the task's own data")
def atomic_refused(facts: Facts) -> Iterator[Said]:
    for task in facts.tasks:
        if task.atomic_refused:
            why = "It cannot be published: effects and completion could not commit together."
            yield Said(task.name, task.atomic_refused, why, facts.app.assign("guardrails_store", "django://default"))


@check("E003", "a task names a resource that is not declared, or that the store cannot keep")
def resource_refused(facts: Facts) -> Iterator[Said]:
    for task in facts.tasks:
        if task.resource_refused:
            why = "Without a declaration there is no breaker, no retry budget and no limit: an outage is met with every retry."
            yield Said(task.name, task.resource_refused, why, "guardrails.resource(...)  # beside Guardrails(app), see docs/resources.md")


@check("W003", "the app's task class is guarded, and some tasks have a base class that is not")
def bypasses_the_guard(facts: Facts) -> Iterator[Said]:
    plain = _plain(facts)
    if plain and facts.app.guards_by_default:
        yield Said(
            _list(plain),
            f"{len(plain)} of {len(facts.tasks)} tasks have a base class of their own that is not guarded.",
            "task_cls does not reach them: they are lost when their process dies, run twice when they are delivered twice, and leave no "
            "dead letter.",
            "@app.task(base=GuardedTask)  # or let their base class inherit from celery_guardrails.GuardedTask",
        )


@check("I001", "tasks that are not guarded, beside others that are")
def plain_by_choice(facts: Facts) -> Iterator[Said]:
    plain = _plain(facts)
    if plain and not facts.app.guards_by_default:
        early = sum(not task.late for task in plain)
        yield Said(
            _list(plain),
            f"{len(plain)} of {len(facts.tasks)} tasks are not guarded; {early} of them are acknowledged before they run.",
            "Acknowledged first, a task is gone when its process dies; acknowledged last, it runs again from the start after every loss of "
            "the worker, and its failures leave no dead letter.",
            "@guarded_task(key=...)  # in place of @shared_task or @app.task",
        )


@check("W004", "a plain task that goes back to its queue whenever its process dies")
def endless_losses(facts: Facts) -> Iterator[Said]:
    endless = [task for task in _plain(facts) if task.late and task.requeues_losses]
    if endless:
        yield Said(
            _list(endless),
            "acks_late with reject_on_worker_lost, and no guard that counts crashes.",
            "A message that kills its process comes back at once and kills the next, for ever (a classic queue or Redis has no delivery "
            "limit); what runs beside it is repeated each time.",
            "@guarded_task(key=...)  # dead-letters it after guardrails_max_crashes; or reject_on_worker_lost=False",
        )


@check("W005", "a plain task whose failures reject its message")
def rejected_failures(facts: Facts) -> Iterator[Said]:
    rejecting = [task for task in _plain(facts) if task.late and task.rejects_failures]
    if rejecting:
        where = (
            "Redis has no dead letter exchange: a rejected message is deleted."
            if facts.app.broker == "redis"
            else "A rejected message goes to the queue's dead letter exchange, and is deleted where the queue has none."
        )
        yield Said(
            _list(rejecting),
            "acks_on_failure_or_timeout is False, and the task is not guarded.",
            f"{where} One that meets its time limit is put back instead, and meets it again without end.",
            "@guarded_task(key=...)  # or acks_on_failure_or_timeout=True",
        )


@check("W010", "a completion is forgotten before a copy of its message has waited to its end")
def forgotten_too_soon(facts: Facts) -> Iterator[Said]:
    for task in facts.tasks:
        waits = max(task.longest_wait, facts.app.lease_seconds)
        if task.guarded and task.retention < waits:
            yield Said(
                task.name,
                f"its completion is remembered for {seconds(task.retention)}, a second delivery may wait {seconds(waits)} for its turn.",
                "The copy then finds no record and runs again: the effect is done twice.",
                f"@guarded_task(retention={int(max(86400, 2 * waits))})  # or {facts.app.assign('guardrails_result_retention', 86400)}",
            )


@check("W011", "a completion is forgotten before Redis gives back what a dead worker held")
def forgotten_before_redelivery(facts: Facts) -> Iterator[Said]:
    app = facts.app
    redelivered = app.visibility_timeout + app.sweep_seconds
    for task in facts.tasks:
        if app.broker == "redis" and task.guarded and task.retention < redelivered:
            yield Said(
                task.name,
                f"its completion is remembered for {seconds(task.retention)}; a message that a dead worker held comes back after up to "
                f"{seconds(redelivered)} (visibility_timeout, and the sweep).",
                "A worker that is killed between the completion and the acknowledgement leaves such a message: it finds no record and "
                "runs again.",
                f"@guarded_task(retention={int(max(86400, 2 * redelivered))})  # or {app.assign_option('visibility_timeout', 300)}",
            )


@check("W009", "results expire while tasks are still being retried")
def results_expire(facts: Facts) -> Iterator[Said]:
    expires = facts.app.result_expires
    slow = [task for task in facts.tasks if expires and task.guarded and expires < task.waits]
    if slow and expires:
        longest = max(task.waits for task in slow)
        yield Said(
            _list(slow),
            f"result_expires is {seconds(expires)}, and the attempts of these tasks may wait {seconds(longest)} in all.",
            "A chord whose last task succeeds on a late attempt finds the results of the others gone: its body never runs.",
            facts.app.assign("result_expires", int(max(86400, 2 * longest))),
        )


@check("W013", "a task may hold its message for longer than RabbitMQ allows", live=True)
def outlasts_the_consumer_timeout(facts: Facts) -> Iterator[Said]:
    for task in facts.tasks:
        patience = _patience(facts, task)
        if patience is None or not task.late:
            continue
        holds = facts.app.hand_over_seconds if task.guarded and task.loops else task.limit
        unlimited = holds is None and task.guarded and task.loops
        if unlimited or (holds is not None and holds >= patience):
            limit = "without an end (guardrails_hand_over_seconds is None)" if holds is None else f"for up to {seconds(holds)}"
            yield Said(
                task.name,
                f"it may run {limit}, and RabbitMQ waits {seconds(patience)} for an acknowledgement (consumer_timeout).",
                "RabbitMQ then closes the channel of the worker and delivers all that it held once more: plain tasks run twice, guarded "
                "ones are handed back until the first run ends.",
                _less_than(facts, task, patience),
            )


def _less_than(facts: Facts, task: TaskFacts, patience: float) -> str:
    if task.guarded and task.loops:
        return facts.app.assign("guardrails_hand_over_seconds", int(patience * 2 / 3))
    return (
        f"time_limit={int(patience * 0.9)}  # or loop with current_execution().resume(), see docs/long-tasks.md; or a longer "
        "consumer_timeout in rabbitmq.conf"
    )


def _patience(facts: Facts, task: TaskFacts) -> float | None:
    """Return the seconds that RabbitMQ waits for this task; None on another broker."""
    if facts.rabbit is None:
        return None
    for queue, _ in facts.rabbit.queues:
        if queue.name == task.queue and isinstance(given := queue.get("x-consumer-timeout"), int):
            return given / 1000
    return CONSUMER_TIMEOUT


@check("I002", "tasks without a time limit, on RabbitMQ", live=True)
def without_a_limit(facts: Facts) -> Iterator[Said]:
    endless = [task for task in facts.tasks if task.late and task.limit is None and not (task.guarded and task.loops)]
    if facts.rabbit is not None and endless:
        yield Said(
            _list(endless),
            f"{len(endless)} of {len(facts.tasks)} tasks may run for as long as they like.",
            f"One that runs longer than RabbitMQ's consumer_timeout ({seconds(CONSUMER_TIMEOUT)} unless the server says otherwise) has its "
            "channel closed and is delivered again.",
            facts.app.assign("task_time_limit", int(CONSUMER_TIMEOUT * 0.9)),
        )


CHECKS = (
    atomic_refused,
    resource_refused,
    bypasses_the_guard,
    endless_losses,
    rejected_failures,
    results_expire,
    forgotten_too_soon,
    forgotten_before_redelivery,
    outlasts_the_consumer_timeout,
    plain_by_choice,
    without_a_limit,
)
