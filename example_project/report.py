"""The ledgers, as they are printed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .ledger import Figures, Letter
from .processes import Worker
from .screen import Screen

CRASH = "receipt library: fatal error"


def euros(cents: int) -> str:
    """Return an amount for people."""
    return f"{cents / 100:,.2f}"


def crashes(crew: Sequence[Worker]) -> int:
    """Return how many worker children the poison order has killed, from what they wrote on standard error as they died."""
    return sum(worker.log.read_text(errors="replace").count(CRASH) for worker in crew if worker.log.exists())


def judged(good: bool) -> str:
    """Return the style of a figure that should be so."""
    return "green" if good else "red"


def conservation(screen: Screen, figures: Figures) -> None:
    """Print where every accepted order is."""
    orders, dead, missing = figures.accepted.orders, figures.dead, figures.missing
    wanted, got = sum(orders.values()), figures.gateway.amount
    balance = f"{len(figures.gateway.charged)} + {len(dead)} = {len(figures.gateway.charged) + len(dead)}"
    screen.rows(
        [
            ("orders accepted", f"{len(orders)}", f"a copy was confirmed by the broker ({len(figures.accepted.tasks)} messages)", "bold"),
            ("  charged", f"{len(figures.gateway.charged)}", f"in the gateway's ledger: EUR {euros(got)} of {euros(wanted)}", "bold"),
            ("  dead-lettered", f"{len(dead)}", "not charged; kept in the dead letter queue with its reason", "bold"),
            ("  missing", f"{len(missing)}", f"accepted but in neither place; charged + dead: {balance}", judged(not missing)),
        ]
    )
    if missing:
        screen.line(f"  missing: {', '.join(map(str, sorted(missing)[:20]))}", "red")


def charges(screen: Screen, figures: Figures, key: bool) -> None:
    """Print what the gateway saw more than once."""
    gateway = figures.gateway
    down = list(gateway.down_calls.values())
    why = "the idempotency key was sent" if key else "no idempotency key was sent"
    screen.rows(
        [
            ("charged more than once", f"{gateway.doubled}", f"charges beyond the first of an order; {why}", judged(not gateway.doubled)),
            ("calls after the money had moved", f"{gateway.repeated}", "each a second charge, were it not for the gateway's key", ""),
            ("  of them needless", f"{gateway.needless}", "a caller had the answer already; the others: it never arrived", ""),
            ("two calls at once for one order", f"{gateway.overlaps}", "in the gateway's ledger", ""),
            ("calls while the gateway was down", f"{sum(down)}", f"for {len(down)} orders, each with {len(figures.accepted.tasks)}"
             f"/{len(figures.accepted.orders)} copies", ""),
            ("  per order", f"{sum(down) / len(down) if down else 0:.1f}", f"at most {max(down, default=0)}", ""),
        ]
    )


def reasons(screen: Screen, figures: Figures) -> None:
    """Print the dead letters by reason."""
    screen.line()
    if not figures.letters:
        screen.line("  no dead letters", "dim")
        return
    rows = [(reason, error or "–", str(letters), str(orders)) for reason, error, letters, orders in figures.reasons()]
    screen.table(("dead letters: reason", "error", "letters", "orders"), rows)


def ends(figures: Figures) -> tuple[str, str, str, str]:
    """Return the row that says what became of the messages."""
    success, failure = figures.finished.get("SUCCESS", 0), figures.finished.get("FAILURE", 0)
    text = f"result backend: {success} SUCCESS + {failure} FAILURE, of {len(figures.accepted.tasks)} messages"
    return ("messages without an end", f"{figures.unfinished}", text, judged(not figures.unfinished))


def ledger_after_day(screen: Screen, figures: Figures, crew: Sequence[Worker], key: bool) -> bool:
    """Print the first ledger and return whether it balances."""
    screen.title("Ledger 1: the day is over, nothing is mended yet")
    conservation(screen, figures)
    kept, put = figures.garbage_kept, len(figures.accepted.garbage)
    screen.rows(
        [
            ends(figures),
            ("bad messages kept", f"{kept} of {put}", "in the dead letter queue, byte for byte", judged(kept == put)),
            ("children killed by the poison order", f"{crashes(crew)}", "then it was dead-lettered (guardrails_max_crashes = 3)", ""),
        ]
    )
    charges(screen, figures, key)
    reasons(screen, figures)
    return good(figures, key)


def ledger_after_replay(screen: Screen, figures: Figures, before: Figures, codes: Sequence[int | None], key: bool) -> bool:
    """Print the second ledger and return whether it balances and nothing is left but the garbage."""
    screen.title("Ledger 2: after the replay, with all workers stopped")
    conservation(screen, figures)
    left = figures.waiting + figures.delayed + (figures.taken or 0)
    replayed, doubled = len(figures.gateway.charged) - len(before.gateway.charged), figures.gateway.doubled
    clean = all(code == 0 for code in codes)
    kept, put = figures.garbage_kept, len(figures.accepted.garbage)
    paid = figures.gateway.amount == sum(figures.accepted.orders.values())
    screen.rows(
        [
            ("charged by the replay", f"{replayed}", f"from {len(before.letters) - put} letters (both copies of an order were dead)", ""),
            ("charged more than once", f"{doubled}", "", judged(not doubled)),
            ("left in the queues", f"{left}", "waiting, delayed or taken by a worker", judged(not left)),
            ("bad messages kept", f"{kept} of {put}", "still dead: nobody can run them", judged(kept == put)),
            ("money", "exact" if paid else "off", "what the orders say and what the gateway took, to the cent", judged(paid or not key)),
            ("workers' exit codes", " ".join(map(str, codes)), "after SIGTERM", judged(clean)),
        ]
    )
    reasons(screen, figures)
    return good(figures, key) and not left and clean and len(figures.dead) == 0


def good(figures: Figures, key: bool) -> bool:
    """Return whether every order and every bad message is accounted for, and none charged twice."""
    return (
        not figures.missing
        and not figures.unfinished
        and figures.garbage_kept == len(figures.accepted.garbage)
        and (not key or not figures.gateway.doubled)
        and not figures.accepted.refused
    )


def plain_ledger(screen: Screen, figures: Figures, left: Sequence[Letter], crew: Sequence[Worker], key: bool) -> None:
    """Print what became of the day on plain Celery."""
    screen.title("Ledger: the same day on plain Celery, workers stopped")
    orders, charged = figures.accepted.orders, figures.gateway.charged
    looping = {letter.order_id for letter in left if letter.order_id in orders} - charged
    failed = figures.failed - charged - looping
    untraced = set(orders) - charged - looping - failed
    kept = sum(1 for body in figures.accepted.garbage if body in {letter.body for letter in left})
    lost, put = len(failed) + len(untraced), len(figures.accepted.garbage)
    wanted, got = sum(orders.values()), figures.gateway.amount
    given_up = "Celery gave up: the message is acknowledged and gone; a FAILURE without arguments is left"
    screen.rows(
        [
            ("orders accepted", f"{len(orders)}", f"a copy was confirmed by the broker ({len(figures.accepted.tasks)} messages)", "bold"),
            ("  charged", f"{len(charged)}", f"in the gateway's ledger: EUR {euros(got)} of {euros(wanted)}", "bold"),
            ("  still in the queue", f"{len(looping)}", "the poison order: back at once each time it has killed a worker child", "bold"),
            ("  lost", f"{lost}", "not charged and in no queue: nothing is left to replay", judged(not lost)),
            ("    with a trace", f"{len(failed)}", given_up, ""),
            ("    without", f"{len(untraced)}", "neither a result nor a message", ""),
            ("bad messages kept", f"{kept} of {put}", "dropped with a line in the worker's log", judged(kept == put)),
            ("children killed by the poison order", f"{crashes(crew)}", "and it would go on for ever", judged(crashes(crew) <= 3)),
        ]
    )
    charges(screen, figures, key)


def final_word(screen: Screen, balanced: bool | None, seconds: float, options: argparse.Namespace) -> None:
    """Print the verdict and what to look at next."""
    screen.line()
    if balanced is True:
        screen.line("The ledger balances: every accepted order was charged once.", "bold", "green")
    elif balanced is False:
        screen.line("THE LEDGER DOES NOT BALANCE; run with --keep to look at the workers' logs.", "bold", "red")
    broker = f" BROKER={options.broker}" if options.broker else ""
    other = f"make demo{broker}" if options.plain else f"make demo-plain{broker}"
    what = "with the guard" if options.plain else "on plain Celery"
    screen.line(f"{seconds:.0f} s. The same day {what}: {other}. What each figure means: docs/demo.md", "dim")
