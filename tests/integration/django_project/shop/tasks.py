"""A task that works once its gateway has been mended."""

from __future__ import annotations

import os
from pathlib import Path

from celery_guardrails import PermanentError, guarded_task


@guarded_task(key="charge:{order}")
def charge(order: int) -> int:
    """Write the order into the ledger, or fail for good while there is no file that says that the gateway is mended."""
    home = Path(os.environ["SHOP_HOME"])
    if not (home / "mended").exists():
        raise PermanentError("the gateway is broken")
    with (home / "charged").open("a") as ledger:
        ledger.write(f"{order}\n")
    return order
