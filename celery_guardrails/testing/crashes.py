"""Where and how a simulated process dies."""

from __future__ import annotations

from types import TracebackType

__all__ = ["POINTS", "Crash", "CrashPlan"]

#: In the order in which a message passes them.
POINTS = {
    "before_start": "a child has the message, and has done nothing yet",
    "before_effect": "the key is claimed, the body has not begun",
    "after_effect": "the body has ended, and nobody knows",
    "in_store": "the store knows how it ended, and the child does not hear that it does",
    "in_publish": "a message that follows (retry, dead letter, next step) is out, and the child does not hear that it is",
    "before_ack": "all is done, the message is not acknowledged",
}


class Crash(BaseException):
    """A simulated process dies; no ``except Exception`` stops it.

    Args:
        how: ``"child"`` or ``"worker"``.
    """

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class CrashPlan:
    """A crash that is to come; as a context manager it must come before the block ends.

    Args:
        point: one of :data:`POINTS`.
        how: ``"child"``: the worker's main process notices and charges a crash; ``"worker"``: the host is gone, the broker
            delivers the message again and the lease stays until it ends. None: ``"worker"`` at ``"before_ack"``, else ``"child"``.
        times: how many processes die there, one after another.

    Raises:
        ValueError: there is no such point or way.
    """

    def __init__(self, point: str, how: str | None = None, times: int = 1) -> None:
        how = how or ("worker" if point == "before_ack" else "child")
        if point not in POINTS:
            raise ValueError(f"crash_at({point!r}): {', '.join(map(repr, POINTS))} are allowed")
        if how not in ("child", "worker") or (how, point) == ("child", "before_ack"):
            raise ValueError(f'crash_at({point!r}, how={how!r}): "child" or "worker" is allowed; it is the worker that acknowledges')
        if times < 1:
            raise ValueError(f"crash_at({point!r}, times={times!r}): at least 1 is allowed")
        self.point, self.how, self.left = point, how, times

    def strike(self, point: str) -> Crash | None:
        """Return the crash if it is to come at this point, now."""
        if point != self.point or not self.left:
            return None
        self.left -= 1
        return Crash(self.how)

    def __enter__(self) -> CrashPlan:  # noqa: PYI034 - Self wants typing_extensions on 3.10
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        left, self.left = self.left, 0
        if left and kind is None:
            raise AssertionError(f"nothing came to {self.point!r} ({POINTS[self.point]}): {left} of the planned crashes did not happen")
