"""Watches tasks for what they leave behind, and replaces prefork processes whose task leaks."""

from __future__ import annotations

import sys
from typing import Any

import billiard.pool
from billiard.pool import EX_RECYCLE
from celery import bootsteps
from celery.concurrency import asynpool
from celery.utils.log import get_logger

from ..integration import leaks
from ..integration.app import ensure_guardrails
from .result_pipes import SoundAsynPool

__all__ = ["Leaks", "RecyclingAsynWorker", "RecyclingWorker"]

logger = get_logger(__name__)


class _Recycles:
    """Ends the pool process as ``maxtasksperchild`` does, when the last task's result is with the main process.

    What has been written to this process meanwhile and was not begun goes to another: the pool knows that the exit code is
    no crash and writes those jobs again (celery/concurrency/asynpool.py, ``on_partial_read``).
    """

    wait_for_job: Any

    def _make_child_methods(self, *args: Any, **kwargs: Any) -> None:
        super()._make_child_methods(*args, **kwargs)  # type: ignore[misc]
        receive = self.wait_for_job

        def wait_for_job(*args: Any, **kwargs: Any) -> Any:
            if leaks.recycling.wanted:
                sys.exit(EX_RECYCLE)  # billiard has put its own in this place, which notes the code
            return receive(*args, **kwargs)

        self.wait_for_job = wait_for_job


class RecyclingWorker(_Recycles, billiard.pool.Worker):
    """What runs in a process of the blocking pool."""


class RecyclingAsynWorker(_Recycles, asynpool.Worker):
    """What runs in a process of the pool on the event loop."""


class _RecyclingPool(billiard.pool.Pool):
    Worker = RecyclingWorker


class _RecyclingAsynPool(SoundAsynPool):
    Worker = RecyclingAsynWorker


class Leaks(bootsteps.Step):
    """Nothing at all unless ``guardrails_watch_leaks`` or ``guardrails_recycle_on_leak`` is set."""

    label = "guardrails leaks"

    def __init__(self, w: Any, **kwargs: Any) -> None:
        super().__init__(w, **kwargs)
        rails = ensure_guardrails(w.app)
        settings = rails.settings
        if not (settings.watch_leaks or settings.recycle_on_leak):
            return
        leaks.say_what_is_unseen()
        recycle = settings.recycle_on_leak and _install(w.pool_cls)
        leaks.watch(rails, recycle=recycle)


def _install(pool: Any) -> bool:
    """Give the prefork pool processes that can be replaced; whether it has them."""
    from celery.concurrency.prefork import TaskPool

    prefork = isinstance(pool, type) and issubclass(pool, TaskPool)
    if not prefork:
        logger.warning("guardrails_recycle_on_leak: only processes of the prefork pool can be replaced; what leaks is named")
        return False
    if pool.Pool in (asynpool.AsynPool, SoundAsynPool):  # whichever of the two steps came first
        pool.Pool = _RecyclingAsynPool
    if pool.BlockingPool is billiard.pool.Pool:
        pool.BlockingPool = _RecyclingPool
    ours = (_RecyclingAsynPool, _RecyclingPool)
    if not (issubclass(pool.Pool, ours) and issubclass(pool.BlockingPool, ours)):
        logger.warning("guardrails_recycle_on_leak: %s brings a pool of its own; what leaks is named, no process is replaced", pool)
        return False
    return True
