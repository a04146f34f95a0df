"""The ledgers, as they are printed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .ledger import Figures, Letter
from .processes import Worker
from .screen import Screen

#: What the receipt library writes on standard error before it takes its process down (see shop.py).
CRASH = "receipt library: fatal error"


def crashes(crew: Sequence[Worker]) -> int:
    """Return how many worker children the poison order has killed."""
    return sum(worker.log.read_text(errors="replace").count(CRASH) for worker in crew if worker.log.exists())


def money(figures: Figures) -> str:
    """Return what the gateway took and what the orders say."""
    return f"EUR {figures.gateway.amount / 100:,.2f} of {sum(figures.accepted.orders.values()) / 100:,.2f}"


def judged(good: bool) -> str:
    """Return the style of a figure that should be so."""
    return "green" if good else "red"


def some(numbers: set[int]) -> str:
    """Return a few order numbers."""
    listed = sorted(numbers)
    return ", ".join(map(str, listed[:8])) + (" …" if len(listed) > 8 else "")


# -- guarded ----------------------------------------------------------------------------------------------------


def ledger_after_day(screen: Screen, figures: Figures, crew: Sequence[Worker], key: bool) -> bool:
    """Print the first ledger and return whether it balances."""
    screen.title("LEDGER 1: the day is over, nothing has been mended yet")
    conservation(screen, figures)
    at_the_gateway(screen, figures, key)
    meaning = "children; 3 a copy (guardrails_max_crashes), then it is dead"
    screen.rows([("workers killed by the poison order", f"{crashes(crew)}", meaning, "")])
    reasons(screen, figures)
    return good(figures, key)


def ledger_after_replay(screen: Screen, figures: Figures, before: Figures, codes: Sequence[int | None], key: bool) -> bool:
    """Print the second ledger and return whether everything is charged and nothing is left but the bad messages."""
    screen.title("LEDGER 2: after the replay, with all workers stopped")
    conservation(screen, figures)
    left = figures.waiting + figures.delayed + (figures.taken or 0)
    replayed = len(figures.gateway.charged) - len(before.gateway.charged)
    letters = len(before.letters) - len(before.accepted.garbage)
    paid = figures.gateway.amount == sum(figures.accepted.orders.values())
    clean = all(code == 0 for code in codes)
    second = figures.gateway.doubled
    screen.rows(
        [
            ("charged by the replay", f"{replayed}", f"from {letters} letters: both copies of an order had died", ""),
            ("charged more than once", f"{second}", "second charges of an order, both ledgers together", judged(not second)),
            ("money", "exact" if paid else "off", "what the gateway took and what the orders say, to the cent", judged(paid or not key)),
            ("left in the queues", f"{left}", "waiting, delayed or taken by a worker", judged(not left)),
            ("workers stopped with", " ".join(map(str, codes)), "exit codes after SIGTERM", judged(clean)),
        ]
    )
    reasons(screen, figures)
    return good(figures, key) and not left and clean and not figures.dead


def conservation(screen: Screen, figures: Figures) -> None:
    """Print where every accepted order is."""
    orders, charged, dead, missing = figures.accepted.orders, figures.gateway.charged, figures.dead, figures.missing
    success, failure = figures.finished.get("SUCCESS", 0), figures.finished.get("FAILURE", 0)
    kept, put = figures.garbage_kept, len(figures.accepted.garbage)
    screen.rows(
        [
            ("orders accepted", f"{len(orders)}", f"confirmed by the broker, in {len(figures.accepted.tasks)} messages", "bold"),
            ("  charged", f"{len(charged)}", f"in the gateway's ledger; {money(figures)}", "bold"),
            ("  dead-lettered", f"{len(dead)}", "in the dead letter queue with a reason, and not charged", "bold"),
            ("  missing", f"{len(missing)}", f"in neither: {len(orders)} − {len(charged)} − {len(dead)}", judged(not missing)),
            (
                "messages without an end",
                f"{len(figures.endless)}",
                f"Celery's result backend: {success} SUCCESS, {failure} FAILURE",
                judged(not figures.endless),
            ),
            ("bad messages kept", f"{kept} of {put}", "in the dead letter queue, byte for byte", judged(kept == put)),
        ]
    )
    if missing:
        screen.line(f"  missing: {some(missing)}", "red")
    for task_id, order in list(figures.endless.items())[:5]:
        screen.line(f"  without an end: {task_id} of order {order}", "red")


def reasons(screen: Screen, figures: Figures) -> None:
    """Print the dead letters by reason."""
    if figures.gateway.needless:
        screen.line(f"  needless: {some(set(figures.gateway.needless_for))}", "red")
    screen.line()
    rows = [(reason, error or "–", str(letters), str(orders)) for reason, error, letters, orders in figures.reasons()]
    screen.table(("dead letters by reason", "error", "letters", "orders"), rows)


def good(figures: Figures, key: bool) -> bool:
    """Return whether every order and every bad message is accounted for, and none charged twice."""
    return (
        not figures.missing
        and not figures.endless
        and figures.garbage_kept == len(figures.accepted.garbage)
        and (not key or not figures.gateway.doubled)
        and not figures.accepted.refused
    )


# -- both -------------------------------------------------------------------------------------------------------


def at_the_gateway(screen: Screen, figures: Figures, key: bool) -> None:
    """Print what the gateway saw."""
    gateway, down = figures.gateway, list(figures.gateway.down_calls.values())
    each = f"for {len(down)} orders: {sum(down) / len(down):.1f} an order, at most {max(down)}" if down else ""
    sent = "Idempotency-Key was sent" if key else "no Idempotency-Key was sent"
    screen.line()
    screen.rows(
        [
            ("charged more than once", f"{gateway.doubled}", f"second charges of an order ({sent})", judged(not gateway.doubled)),
            ("calls after the money had moved", f"{gateway.repeated}", "the key made them harmless" if key else "they moved it again", ""),
            ("  nobody had been told yet", f"{gateway.unanswered}", "a time-out, a caller killed in mid-call, or two at once", ""),
            ("  who had been told was killed", f"{gateway.cut_off}", "by us, before it could write it down", ""),
            ("  needless", f"{gateway.needless}", "a living worker had been told so", judged(not gateway.needless)),
            ("two calls at once", f"{gateway.overlaps}", "pairs of calls for one order that overlapped", judged(not gateway.overlaps)),
            ("calls while the gateway was down", f"{sum(down)}", each, ""),
        ]
    )


# -- plain ------------------------------------------------------------------------------------------------------


def plain_ledger(screen: Screen, figures: Figures, left: Sequence[Letter], poison: set[int], crew: Sequence[Worker], key: bool) -> None:
    """Print what became of the day on plain Celery."""
    screen.title("LEDGER: the same day on plain Celery, workers stopped")
    orders, charged = figures.accepted.orders, figures.gateway.charged
    queued = {letter.order_id for letter in left if letter.order_id in orders} - charged
    looping, retrying = queued & poison, queued - poison
    failed = figures.failed - charged - queued
    untraced = set(orders) - charged - queued - failed
    lost = failed | untraced
    kept = sum(1 for body in figures.accepted.garbage if body in {letter.body for letter in left})
    put, killed = len(figures.accepted.garbage), crashes(crew)
    screen.rows(
        [
            ("orders accepted", f"{len(orders)}", f"confirmed by the broker, in {len(figures.accepted.tasks)} messages", "bold"),
            ("  charged", f"{len(charged)}", f"in the gateway's ledger; {money(figures)}", "bold"),
            ("  still retrying", f"{len(retrying)}", "back in the queue when the workers were stopped", "bold"),
            ("  poison, for ever", f"{len(looping)}", f"killed {killed} worker children so far, and would go on", judged(not looping)),
            ("  lost", f"{len(lost)}", "not charged and in no queue: nothing is left to replay", judged(not lost)),
            ("    given up", f"{len(failed)}", "a FAILURE in the result backend, without the order", ""),
            ("    without a trace", f"{len(untraced)}", "not even that", ""),
            ("bad messages kept", f"{kept} of {put}", "dropped, with a line in a worker's log", judged(kept == put)),
        ]
    )
    if lost:
        screen.line(f"  lost: {some(lost)}", "red")
    at_the_gateway(screen, figures, key)


def final_word(screen: Screen, balanced: bool | None, seconds: float, options: argparse.Namespace) -> None:
    """Print the verdict and what to look at next."""
    screen.line()
    if balanced is True:
        screen.line("The ledger balances: nothing lost, and every accepted order is charged.", "bold", "green")
    elif balanced is False:
        screen.line("THE LEDGER DOES NOT BALANCE. With --keep the workers' logs stay.", "bold", "red")
    broker = f" BROKER={options.broker}" if options.broker else ""
    other = f"make demo{broker}   (with the guard)" if options.plain else f"make demo-plain{broker}   (plain Celery, without the guard)"
    screen.line(f"{seconds:.0f} s in all. What each figure means: docs/demo.md. The same day again, for comparison:")
    screen.line(f"  {other}", "bold")
