"""What the guard costs a worker and a publisher, against plain Celery in interleaved rounds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from .contestant import Contestant, Round
from .report import Table, median, paired, spread


def throughput(title: str, contestants: Sequence[Contestant], *, tasks: int, rounds: int) -> Table:
    """Drain a filled queue, one contestant after the other, round for round; the first one is what others are compared with."""
    with ExitStack() as stack:
        for contestant in contestants:
            stack.callback(contestant.stop)
            contestant.start()
        results: list[list[Round]] = [[] for _ in contestants]
        for number in range(rounds):
            # A B, B A: who goes first has no advantage
            order = list(enumerate(contestants))
            for index, contestant in order if number % 2 == 0 else order[::-1]:
                results[index].append(contestant.round(tasks))
    table = Table(
        f"{title}: {rounds} rounds of {tasks} no-op tasks, prefork -c 2, medians",
        ["variant", "tasks/s", "lowest–highest", "ratio", "main µs/task", "children µs/task", "apply_async µs", "publish ratio"],
        notes=["ratio: median of the ratios of each round; µs/task is CPU time of the worker's processes"],
    )
    rates = [[one.rate for one in result] for result in results]
    published = [[one.publish for one in result] for result in results]
    for index, contestant in enumerate(contestants):
        table.rows.append(
            [
                contestant.title,
                median(rates[index]),
                spread(rates[index]),
                paired(rates[index], rates[0]),
                median([one.main for one in results[index]]),
                median([one.children for one in results[index]]),
                median(published[index]),
                paired(published[0], published[index]),
            ]
        )
    return table


def publishing(title: str, contestants: Sequence[Contestant], *, tasks: int, rounds: int) -> Table:
    """Time ``apply_async`` alone, with no worker beside it."""
    results: list[list[float]] = [[] for _ in contestants]
    for number in range(-1, rounds):
        for index, contestant in enumerate(contestants):
            cost = contestant.publish(tasks)
            contestant.purge()
            if number >= 0:  # the first one connects and declares
                results[index].append(cost)
    table = Table(f"{title}: {rounds} rounds of {tasks} apply_async, medians", ["variant", "µs", "lowest–highest", "rate ratio"])
    for index, contestant in enumerate(contestants):
        table.rows.append([contestant.title, median(results[index]), spread(results[index]), paired(results[0], results[index])])
        contestant.stop()
    return table
