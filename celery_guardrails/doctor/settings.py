"""What Celery's and our settings say."""

from __future__ import annotations

from collections.abc import Iterator

from .facts import Facts
from .finding import Said, check
from .words import seconds

__all__ = ["CHECKS"]

#: Seconds: what dead workers held and that waits longer is worth a word.
_LONG_VISIBILITY = 900.0


@check("E004", "Celery 5.4 with a kombu whose Redis transport it cannot use")
def broken_pair(facts: Facts) -> Iterator[Said]:
    celery, kombu = facts.app.versions.get("celery", ()), facts.app.versions.get("kombu", ())
    # Celery 5.4 takes any kombu 5 (its requirements), and breaks with the transport of 5.5 and later.
    if facts.app.broker == "redis" and celery[:2] == (5, 4) and kombu[:2] >= (5, 5):
        yield Said(
            "celery, kombu",
            f"Celery {'.'.join(map(str, celery))} with kombu {'.'.join(map(str, kombu))} on Redis.",
            "Celery 5.4 was written for an older Redis transport: workers break on it.",
            "pip install 'kombu<5.5'  # or 'celery[redis]>=5.5'",
        )


@check("W006", "RabbitMQ does not confirm what Celery publishes")
def unconfirmed(facts: Facts) -> Iterator[Said]:
    if facts.app.broker == "amqp" and not facts.app.confirms:
        yield Said(
            "broker_transport_options",
            "confirm_publish is False.",
            "What is published while RabbitMQ goes down, or into a full queue, is lost without an error: a task, a chain's next step.",
            facts.app.assign_option("confirm_publish", True),
        )


@check("W012", "messages do not survive a restart of the broker")
def transient(facts: Facts) -> Iterator[Said]:
    if facts.app.broker == "amqp" and not facts.app.persistent:
        yield Said(
            "task_default_delivery_mode",
            "messages are published as transient.",
            "RabbitMQ drops what waits in classic queues when it restarts.",
            facts.app.assign("task_default_delivery_mode", "persistent"),
        )


@check("W007", "workers fetch without a limit")
def unlimited_prefetch(facts: Facts) -> Iterator[Said]:
    if facts.app.prefetch == 0:
        yield Said(
            "worker_prefetch_multiplier",
            "0: a worker takes all that waits.",
            "One worker holds the whole queue in its memory while others idle; when it dies everything is delivered once more, on Redis "
            "only after the visibility timeout.",
            facts.app.assign("worker_prefetch_multiplier", 1),
        )


@check("W008", "workers decode pickle")
def pickle_accepted(facts: Facts) -> Iterator[Said]:
    whose = {
        "accept_content": "Whoever can write to the broker, or replay a dead letter, runs",
        "result_accept_content": "Whoever can write to the result backend runs",
    }
    for setting in facts.app.accepts_pickle:
        yield Said(
            setting,
            "pickle is accepted.",
            f"{whose[setting]} code of theirs in your workers and in these commands.",
            facts.app.assign(setting, ["json"]),
        )


@check("I003", "on Redis, what a dead worker held comes back late")
def long_visibility(facts: Facts) -> Iterator[Said]:
    app = facts.app
    if app.broker == "redis" and app.visibility_timeout > _LONG_VISIBILITY:
        yield Said(
            "broker_transport_options",
            f"visibility_timeout is {seconds(app.visibility_timeout)}.",
            "The messages that a killed worker held wait that long. The guard's workers extend it for all that they hold, plain tasks "
            "and ETAs included, so it may be shorter than your longest task; not where workers without the guard share the queues.",
            app.assign_option("visibility_timeout", 300),
        )


@check("I007", "a publish is not tried again")
def unrepeated_publish(facts: Facts) -> Iterator[Said]:
    if not facts.app.publish_retries:
        yield Said(
            "task_publish_retry",
            "False.",
            "delay() fails when the connection has been idle for so long that it is dead: the caller must be ready for it.",
            facts.app.assign("task_publish_retry", True),
        )


CHECKS = (broken_pair, unconfirmed, transient, unlimited_prefetch, pickle_accepted, long_visibility, unrepeated_publish)
