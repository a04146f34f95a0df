"""Which tests pytest-xdist keeps together: those that share workers, which would otherwise be started in each of its processes."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

from .processes import ROOT

_KIND = re.compile(r"[\[-](redis|amqp)[\]-]")


class OneSetOfWorkers(LoadScopeScheduling):  # type: ignore[misc]
    """Keeps the tests of a module together that has ``shared_deploy``, those of each kind of broker; all others go where there is room."""

    def _split_scope(self, nodeid: str) -> str:
        module, _, test = nodeid.partition("::")
        kind = _KIND.search(test)
        return f"{module} {kind[1]}" if kind and _shares(ROOT / module) else nodeid


@functools.cache
def _shares(module: Path) -> bool:
    return "shared_deploy" in module.read_text()
