"""Who killed a worker? A crash is charged to a message only where nobody else can have done it.

Where a pool process dies, the worker's main process knows whose it was. Where the whole worker vanishes, all that anybody sees
is that the leases of what ran in it end: one of these messages may be poison, the others ran *beside* it. So a lease says
whether others may have run beside its holder. If so, its end is a *suspicion* and charges nothing.

Suspicion costs nothing until it could condemn: a message that lacks one crash to being poison, and has suspicions among its
losses, next runs in *quarantine*, one message at a time in the whole fleet and no other task beside it in its worker. If
that worker vanishes, it was that message: what was suspicion is charged with the crash that proves it. So poison is dead after
``max_crashes`` losses all the same, and who ran beside it pays for none. Where others run on it waits, and is tried elsewhere; only
after so many tries in vain does it run beside them, and then its loss is one suspicion more.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CROWDED", "QUARANTINE", "QUARANTINED", "Losses", "is_suspect"]

#: Key of the lease that whoever is in quarantine holds; with a character that no template and no person would put into one.
QUARANTINE = "\x7fquarantine"
#: Why a message must wait: another is in quarantine.
QUARANTINED = "quarantine"
#: The same of a suspect: it cannot be alone where it is, and is tried elsewhere.
CROWDED = "crowded"

#: Stores keep one number: crashes, suspicions in thousands, and a million where others may run beside the holder.
_SUSPICION, _BESIDE = 1_000, 1_000_000


class Losses(NamedTuple):
    """The workers that vanished while they ran a key.

    Args:
        crashes: that the key is charged with.
        suspicions: that another may have caused, since the last attempt that came to an end.
        beside: others may run beside the present holder, in the same worker.
    """

    crashes: int = 0
    suspicions: int = 0
    beside: bool = False

    @classmethod
    def unpack(cls, number: int) -> Losses:
        """Read what :meth:`pack` wrote."""
        beside, rest = divmod(number, _BESIDE)
        suspicions, crashes = divmod(rest, _SUSPICION)
        return cls(crashes, suspicions, bool(beside))

    def pack(self) -> int:
        """Return it as one number, below two million."""
        most = _SUSPICION - 1
        return min(self.crashes, most) + _SUSPICION * min(self.suspicions, most) + _BESIDE * self.beside

    def vanished(self) -> Losses:
        """Return them after the holder has vanished with its whole worker."""
        if self.beside:
            return Losses(self.crashes, self.suspicions + 1)
        return self.charged(1)

    def charged(self, crashes: int) -> Losses:
        """Return them after crashes that were the holder's: what it was alone with is proven together with what was suspicion."""
        if self.beside or not crashes:
            return Losses(self.crashes + crashes, self.suspicions)
        return Losses(self.crashes + self.suspicions + crashes)


def is_suspect(crashes: int, suspicions: int, max_crashes: int) -> bool:
    """Whether a message must be alone the next time it runs, because one loss more would make it poison."""
    return suspicions > 0 and crashes + suspicions >= max_crashes - 1
