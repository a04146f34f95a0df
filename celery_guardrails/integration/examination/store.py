"""Whether the store answers, how quickly, and by which clock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ...doctor.facts import StoreFacts
from ...errors import GuardrailsError
from ...stores import hide_password

if TYPE_CHECKING:
    from ..app import Guardrails

__all__ = ["store_facts"]

#: Round trips of which the middle one counts: the first may connect, one may be unlucky.
_PINGS = 5
#: What has no record.
_KEY = "guardrails:doctor"


def store_facts(rails: Guardrails) -> StoreFacts:
    """Return the facts of the store; what makes it useless is one of them."""
    url = "guardrails_store"
    try:
        url = hide_password(rails.store_url)
        store = rails.store
        store.ping()
        store.lookup(_KEY)  # the record's table, script or permission may be missing where a ping comes through
        rounds = sorted(_round(rails) for _ in range(_PINGS))
    except GuardrailsError as exc:
        return StoreFacts(url, error=hide_password(str(exc)))
    return StoreFacts(
        url,
        one_process=bool(getattr(store, "one_process_only", False)),
        latency=rounds[_PINGS // 2][0],
        skew=rounds[0][1],  # of the quickest answer, which leaves the least time for a wrong guess
    )


def _round(rails: Guardrails) -> tuple[float, float]:
    """Return the seconds of a round trip, and by how many the store's clock is ahead of this host's."""
    began, started = time.time(), time.monotonic()
    theirs = rails.store.now()
    took = time.monotonic() - started
    return took, theirs - (began + took / 2)
