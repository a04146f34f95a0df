"""What an app's configuration and its tasks say."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import celery
import kombu

from ...doctor.facts import AppFacts, TaskFacts
from ...errors import GuardrailsConfigError, GuardrailsError
from ...policy.retry import RetryPolicy
from ...stores import hide_password

if TYPE_CHECKING:
    from ..app import Guardrails

__all__ = ["app_facts", "import_tasks", "tasks_of"]

_PICKLE = frozenset({"pickle", "application/x-python-serialize"})
#: kombu's own defaults (transport/redis.py, ``Channel``).
_VISIBILITY, _RESTORE_INTERVAL, _RESTORE_THROTTLE = 3600.0, 10.0, 10.0


def import_tasks(app: Any) -> None:
    """Import the modules of the app's tasks, as a worker does.

    Raises:
        GuardrailsConfigError: one of them cannot be imported.
    """
    try:
        app.loader.import_default_modules()
        app.finalize(auto=True)
    except GuardrailsError:
        raise
    except Exception as exc:
        raise GuardrailsConfigError(f"the tasks of {app.main or 'the app'} cannot be imported: {type(exc).__name__}: {exc}") from exc


def app_facts(rails: Guardrails) -> AppFacts:
    """Return what the configuration says.

    Raises:
        GuardrailsConfigError: a setting of ours is wrong.
    """
    app, conf, settings = rails.app, rails.app.conf, rails.settings
    options = dict(conf.broker_transport_options or {})
    interval = float(options.get("unacked_restore_interval") or _RESTORE_INTERVAL)
    namespace = getattr(app, "namespace", None)
    return AppFacts(
        broker=_kind(app),
        broker_url=_broker_url(conf),
        settings_prefix=f"{namespace}_" if namespace else None,
        guards_by_default=bool(getattr(app.Task, "guarded", False)),
        versions={"celery": _version(celery.__version__), "kombu": _version(kombu.__version__)},
        lease_seconds=settings.lease_seconds,
        hand_over_seconds=settings.hand_over_seconds,
        max_crashes=settings.max_crashes,
        dead_letter_exchange=settings.dead_letter_exchange,
        delay_kind=settings.delay_queue_type,
        # a confirm_publish that is True is what we have put there ourselves
        transport_options=bool(set(options) - {"confirm_publish"}) or options.get("confirm_publish") is False,
        confirms=bool(options.get("confirm_publish", True)),
        persistent=conf.task_default_delivery_mode not in (1, "transient"),
        publish_retries=bool(conf.task_publish_retry),
        prefetch=int(conf.worker_prefetch_multiplier),
        accepts_pickle=tuple(name for name in ("accept_content", "result_accept_content") if _PICKLE.intersection(conf[name] or ())),
        result_expires=_seconds(conf.result_expires),
        visibility_timeout=float(options.get("visibility_timeout") or _VISIBILITY),
        sweep_seconds=interval * float(options.get("unacked_restore_throttle") or _RESTORE_THROTTLE),
    )


def _kind(app: Any) -> str:
    connection = app.connection_for_write()
    try:
        return str(connection.transport.driver_type)
    except (ImportError, KeyError):  # its library is not installed, or there is no such transport: opening the broker tells
        return str(connection.transport_cls)


def _broker_url(conf: Any) -> str:
    urls = conf.broker_write_url or conf.broker_url or "amqp://"
    return ";".join(hide_password(url) for url in ([urls] if isinstance(urls, str) else urls))


def tasks_of(rails: Guardrails) -> tuple[TaskFacts, ...]:
    """Return the tasks of the app, without those that Celery brings along."""
    tasks = sorted(rails.app.tasks.items())
    return tuple(_guarded(rails, task) if getattr(task, "guarded", False) else _plain(rails, task) for _, task in _own(tasks))


def _own(tasks: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    return ((name, task) for name, task in tasks if not name.startswith("celery."))


def _guarded(rails: Guardrails, task: Any) -> TaskFacts:
    options = task.guard_options
    waits = _waits(options.retry)
    return TaskFacts(
        name=task.name,
        limit=_limit(rails, task),
        loops=_loops(task.run),
        retention=options.retention or rails.settings.result_retention,
        longest_wait=max(waits, default=0.0),
        waits=min(sum(waits), options.retry.deadline or float("inf")),
        queue=_queue(rails, task),
        atomic_refused=_refusal(task, lambda: rails.transactional(options)) if options.atomic else None,
        resource_refused=_refusal(task, lambda: rails.check_task(replace(options, atomic=False))),
    )


def _plain(rails: Guardrails, task: Any) -> TaskFacts:
    keeps = [getattr(task, name, None) for name in ("acks_on_failure_or_timeout", "acks_on_failure", "acks_on_timeout")]
    return TaskFacts(
        name=task.name,
        guarded=False,
        late=bool(task.acks_late),
        # Celery 5.7 can bound it
        requeues_losses=bool(task.reject_on_worker_lost) and not getattr(task, "retry_on_worker_lost", False),
        rejects_failures=any(value is False for value in keeps),
        limit=_limit(rails, task),
        queue=_queue(rails, task),
    )


def _waits(retry: RetryPolicy) -> list[float]:
    """Return the longest waits between the attempts of a policy, in seconds; no more of them than change anything."""
    return [retry.step(attempt) for attempt in range(1, min(retry.max_attempts, 10_000))]


def _limit(rails: Guardrails, task: Any) -> float | None:
    conf = rails.app.conf
    hard = task.time_limit or conf.task_time_limit
    soft = task.soft_time_limit or conf.task_soft_time_limit
    found = hard or soft
    return None if not found else float(found)


def _loops(run: Any) -> bool:
    """Whether a body hands over when its time is up; by the names in its code, which is as far as one can look without running it."""
    code = getattr(inspect.unwrap(run), "__code__", None)
    return code is not None and "resume" in code.co_names


def _queue(rails: Guardrails, task: Any) -> str | None:
    try:
        # the options that a publish without any would be routed by
        found = rails.app.amqp.router.route({"queue": getattr(task, "queue", None)}, task.name).get("queue")
    except Exception:  # noqa: BLE001 - routers are the project's own code, and some want the arguments of a real call
        return None
    name = getattr(found, "name", found)
    return str(name) if name else None


def _refusal(task: Any, attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except GuardrailsError as exc:
        return hide_password(str(exc)).removeprefix(f"{task.name}: ")
    return None


def _seconds(value: Any) -> float | None:
    if not value:
        return None
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])
