"""What is the same for every contestant: the phases, the dependency's capacity, the fleet, the number of attempts."""

from __future__ import annotations

from dataclasses import dataclass

#: The dependency's phases, in their order.
PHASES = ("normal", "slow", "down", "healed")

#: Attempts of every contestant, the first one included.
ATTEMPTS = 12
#: Seconds a worker waits for the dependency's answer.
CALL_TIMEOUT = 1.0
#: The queue of every contestant.
QUEUE = "gateway"
#: Worker processes, and how many tasks each runs at once.
WORKERS, CONCURRENCY = 3, 4


@dataclass(frozen=True)
class Plan:
    """One storm.

    Args:
        seconds: of each of :data:`PHASES`.
        rate: tasks published a second, from the first phase to the end of the last, whatever becomes of them.
        slots: calls that the dependency works on at once.
        queue: calls that may wait for a slot; further ones get a 503 at once.
        service: seconds a call takes in a slot.
        slow_service: the same in the phase ``slow``.
        hang_every: while it is down, each of this many calls gets no answer at all; all others get a 503 at once.
    """

    seconds: tuple[float, float, float, float] = (20.0, 15.0, 60.0, 90.0)
    rate: float = 20.0
    slots: int = 5
    queue: int = 16
    service: float = 0.1
    slow_service: float = 0.8
    hang_every: int = 20

    @property
    def total(self) -> float:
        """Seconds from the first task to the end."""
        return sum(self.seconds)

    @property
    def capacity(self) -> float:
        """Calls a second that the dependency can answer while it is well."""
        return self.slots / self.service


#: All phases in 24 seconds: a smoke test of the benchmark, not a measurement.
QUICK_SECONDS = (3.0, 3.0, 8.0, 10.0)


def task_name(number: int) -> str:
    """Return what identifies a task in the dependency's log and in whatever a contestant keeps of it in Redis."""
    return f"storm-{number:06d}"
