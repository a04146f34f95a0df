"""The guarded app of the integration and chaos tests: one task for each thing that can happen to a task.

``name`` is what the effect is on, and the idempotency key where nothing else is said: ``effect:{name}``.
Besides the variables of ``plain.py``: ``TESTAPP_RETRY``, a RetryPolicy as JSON, and ``TESTAPP_STORE_URL``.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery
from celery.exceptions import Ignore, Reject

from celery_guardrails import GuardedTask, Guardrails, PermanentError, RetryableError, RetryPolicy, current_execution
from tests.support.ledger import Ledger, Run

from .plain import hold_gil, make_celery, vanish

#: Quick, so that a test of three attempts is over in a second.
QUICK = {"max_attempts": 3, "base": 0.1, "cap": 1.0, "jitter": "none"}


class Unserialisable:
    """A value that no serializer knows."""


def named_error(path: str) -> type[BaseException]:
    """Return an exception class by its dotted name; a bare name is a builtin."""
    module, _, name = path.rpartition(".")
    found: type[BaseException] = getattr(importlib.import_module(module or "builtins"), name)
    return found


def make_app(environ: Mapping[str, str]) -> Celery:
    """Return the app with its guard and its tasks."""
    app = make_celery(environ)
    Guardrails(app, store=environ["TESTAPP_STORE_URL"], namespace=environ["TESTAPP_NAMESPACE"])
    ledger = Ledger(environ["TESTAPP_LEDGER"])
    retry = RetryPolicy(**json.loads(environ.get("TESTAPP_RETRY", json.dumps(QUICK))))

    def task(name: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        chosen = {"key": "effect:{name}", "retry": retry, **options}
        return app.task(base=GuardedTask, bind=True, name=f"testapp.{name}", shared=False, **chosen)  # type: ignore[no-any-return]

    def running(self: Any, name: str) -> Any:
        now = current_execution()
        return ledger.run(
            name, task_id=self.request.id, fence=now.fence, attempt=now.attempt, deliveries=now.deliveries, crashes=now.crashes
        )

    # -- going well -------------------------------------------------------------------------------------------------

    @task("effect")
    def effect(self: Any, name: str, seconds: float = 0.0) -> str:
        """Wait, do the effect, return the name."""
        with running(self, name) as run:
            time.sleep(seconds)
            run.effect()
        return name

    @task("effect_in_steps")
    def effect_in_steps(self: Any, name: str, seconds: float) -> str:
        """Wait in little steps: a signal that comes just before one long sleep is handled behind it only, as CPython has it."""
        with running(self, name) as run:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(0.05)
            run.effect()
        return name

    @task("effect_first")
    def effect_first(self: Any, name: str, seconds: float = 0.0) -> str:
        """Do the effect, then wait: the window between effect and completion record is open meanwhile."""
        with running(self, name) as run:
            run.effect()
            time.sleep(seconds)
        return name

    @task("token")
    def token(self: Any, name: str, seconds: float = 0.0) -> str:
        """Return what no other run returns."""
        with running(self, name) as run:
            time.sleep(seconds)
            run.effect()
        return run.id  # type: ignore[no-any-return]

    @task("by_id", key=None)
    def by_id(self: Any, name: str, seconds: float = 0.0) -> str:
        """The key is the task id."""
        with running(self, name) as run:
            time.sleep(seconds)
            run.effect()
        return name

    @task("charge", key="charge:{order}", fingerprint=("order", "amount"))
    def charge(self: Any, order: str, amount: int, note: str = "") -> dict[str, Any]:
        """A key with a fingerprint: another amount for the same order is a conflict, another note is not."""
        with running(self, order) as run:
            run.effect(amount=amount)
        return {"order": order, "amount": amount}

    @task("add", key=None)
    def add(self: Any, x: int, y: int, name: str = "add") -> int:
        """A step of a canvas."""
        with running(self, name) as run:
            run.effect(x=x, y=y)
        return x + y

    @task("total", key=None)
    def total(self: Any, numbers: list[int], name: str = "total") -> int:
        """The body of a chord."""
        with running(self, name) as run:
            run.effect(numbers=numbers)
        return sum(numbers)

    @task("duplicate_ignored", on_duplicate="ignore")
    def duplicate_ignored(self: Any, name: str) -> str:
        with running(self, name) as run:
            run.effect()
        return name

    @task("duplicate_raises", on_duplicate="raise")
    def duplicate_raises(self: Any, name: str) -> str:
        with running(self, name) as run:
            run.effect()
        return name

    @task("big")
    def big(self: Any, name: str, size: int) -> str:
        """A result of ``size`` characters."""
        with running(self, name) as run:
            run.effect()
        return "x" * size

    @task("unserialisable", ignore_result=True)
    def unserialisable(self: Any, name: str) -> Any:
        """A result that cannot be kept."""
        with running(self, name) as run:
            run.effect()
        return Unserialisable()

    @task("until_told")
    def until_told(self: Any, name: str, seconds: float = 30.0) -> str:
        """Work until the worker is told to stop, or for ``seconds``."""
        with running(self, name) as run:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                if current_execution().should_stop():
                    run.record("told")
                    break
                time.sleep(0.02)
            run.effect()
        return name

    # -- going wrong ------------------------------------------------------------------------------------------------

    def fail_until(run: Run, name: str, times: int | None, error: BaseException) -> None:
        """Raise for the first ``times`` runs of a name, for ever if None."""
        if times is None or ledger.count(name, "start") <= times:
            run.record("failed", error=type(error).__name__)
            raise error

    def _fail(self: Any, name: str, error: str = "ConnectionError", times: int | None = None, message: str = "on demand") -> str:
        with running(self, name) as run:
            fail_until(run, name, times, named_error(error)(message))
            run.effect()
        return name

    task("fail")(_fail)
    task("fail_plainly", dead_letter=False)(_fail)
    task("fail_deadline", retry=RetryPolicy(max_attempts=100, base=0.2, cap=0.2, jitter="none", deadline=5.0))(_fail)
    task("fail_own_rules", retryable=(ValueError,), permanent=(ConnectionError,))(_fail)

    @task("fail_later")
    def fail_later(self: Any, name: str, error: str, seconds: float, times: int | None = None) -> str:
        """Wait, then fail in the first ``times`` runs of a name, in all if None."""
        with running(self, name) as run:
            time.sleep(seconds)
            known = {"PermanentError": PermanentError}
            fail_until(run, name, times, (known.get(error) or named_error(error))("on demand"))
            run.effect()
        return name

    @task("fail_asking")
    def fail_asking(self: Any, name: str, retry_after: float, times: int | None = 1) -> str:
        """Raise RetryableError with ``retry_after``."""
        with running(self, name) as run:
            fail_until(run, name, times, RetryableError("busy", retry_after=retry_after))
            run.effect()
        return name

    @task("fail_for_good")
    def fail_for_good(self: Any, name: str) -> str:
        with running(self, name):
            raise PermanentError("the card is declined")

    @task("fail_after_effect")
    def fail_after_effect(self: Any, name: str, times: int | None = 1) -> str:
        """The effect is done, then the body fails: the guard cannot know, the task has to."""
        with running(self, name) as run:
            run.effect()
            fail_until(run, name, times, ConnectionError("after the effect"))
        return name

    @task("retry_itself", max_retries=5)
    def retry_itself(self: Any, name: str, times: int = 1, countdown: float = 0.1) -> str:
        """Celery's own ``self.retry()``."""
        with running(self, name) as run:
            if ledger.count(name, "start") <= times:
                raise self.retry(exc=ConnectionError("asked for"), countdown=countdown)
            run.effect()
        return name

    @task("reject")
    def reject(self: Any, name: str, requeue: bool = False, times: int | None = None) -> str:
        with running(self, name) as run:
            fail_until(run, name, times, Reject("on demand", requeue=requeue))
            run.effect()
        return name

    @task("ignore")
    def ignore(self: Any, name: str) -> str:
        with running(self, name) as run:
            run.effect()
            raise Ignore

    # -- dying ------------------------------------------------------------------------------------------------------

    @task("kill_self")
    def kill_self(self: Any, name: str, times: int | None = None, number: int = signal.SIGKILL, seconds: float = 0.0) -> str:
        """Kill this process in the first ``times`` runs of a name, in all if None, after ``seconds``."""
        with running(self, name) as run:
            if times is None or ledger.count(name, "start") <= times:
                run.record("dies")
                time.sleep(seconds)
                vanish(number)
            run.effect()
        return name

    @task("kill_after_effect")
    def kill_after_effect(self: Any, name: str, times: int | None = 1) -> str:
        """Do the effect, then die before the completion can be recorded."""
        with running(self, name) as run:
            run.effect()
            if times is None or ledger.count(name, "start") <= times:
                run.record("dies")
                vanish()
        return name

    @task("kill_main")
    def kill_main(self: Any, name: str, times: int | None = 1) -> str:
        """Kill the worker's main process (prefork) in the first ``times`` runs."""
        with running(self, name) as run:
            if times is None or ledger.count(name, "start") <= times:
                run.record("dies")
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(10)
            run.effect()
        return name

    @task("memory_error")
    def memory_error(self: Any, name: str, times: int | None = None) -> str:
        """Celery lets a MemoryError end the main process."""
        with running(self, name) as run:
            fail_until(run, name, times, MemoryError("on demand"))
            run.effect()
        return name

    @task("exit")
    def exit_process(self: Any, name: str, code: int = 1, times: int | None = None) -> str:
        with running(self, name) as run:
            if times is None or ledger.count(name, "start") <= times:
                run.record("dies")
                sys.exit(code)
            run.effect()
        return name

    @task("hold_gil")
    def hold(self: Any, name: str, seconds: float) -> str:
        """Stay in C code: no thread of this process can renew anything."""
        with running(self, name) as run:
            hold_gil(seconds)
            run.effect()
        return name

    @task("hard_limited", time_limit=1)
    def hard_limited(self: Any, name: str, seconds: float = 30.0) -> str:
        """Over its hard time limit: the main process kills it."""
        with running(self, name) as run:
            time.sleep(seconds)
            run.effect()
        return name

    @task("soft_limited", soft_time_limit=1)
    def soft_limited(self: Any, name: str, seconds: float = 30.0) -> str:
        """Over its soft time limit: SoftTimeLimitExceeded is raised in it."""
        with running(self, name) as run:
            time.sleep(seconds)
            run.effect()
        return name

    # -- beside the guard -------------------------------------------------------------------------------------------

    @app.task(bind=True, name="testapp.unguarded", shared=False, acks_late=True)
    def unguarded(self: Any, name: str, seconds: float = 0.0) -> str:
        """A plain Celery task in the same worker."""
        with ledger.run(name, task_id=self.request.id) as run:
            time.sleep(seconds)
            run.effect()
        return name

    @app.task(bind=True, name="testapp.unguarded_kill", shared=False, acks_late=True)
    def unguarded_kill(self: Any, name: str, whose: str = "parent", seconds: float = 0.0) -> str:
        """A plain task whose first run kills its worker after ``seconds``: its process' parent (prefork), or its own process."""
        with ledger.run(name, task_id=self.request.id) as run:
            if ledger.count(name, "start") == 1:
                time.sleep(seconds)
                run.record("dies")
                os.kill(os.getppid() if whose == "parent" else os.getpid(), signal.SIGKILL)
                time.sleep(10)
            run.effect()
        return name

    @app.task(bind=True, name="testapp.errback", shared=False)
    def errback(self: Any, *args: Any, **kwargs: Any) -> None:
        """For ``link_error``: writes ``errback``."""
        ledger.record("errback", "errback", request=repr(args[:1]))

    app.finalize()
    return app


if "TESTAPP_BROKER_URL" in os.environ:  # in a worker; a test calls make_app itself
    app = make_app(os.environ)
