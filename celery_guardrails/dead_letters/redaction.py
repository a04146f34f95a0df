"""What of a payload is shown to people."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["HIDDEN", "Redactor", "hide_secrets"]

#: Takes the arguments of a task, as a list or a mapping, and returns what may be shown of them.
Redactor = Callable[[Any], Any]

HIDDEN = "********"
_SECRET = re.compile(
    r"passw|passphrase|secret|token|api_?key|private_?key|authorization|credential|cookie|card_?number|cvc|cvv|iban|ssn", re.IGNORECASE
)


def hide_secrets(value: Any) -> Any:
    """Return a copy in which the values of mappings with a telling name are hidden, at any depth."""
    if isinstance(value, Mapping):
        return {name: HIDDEN if isinstance(name, str) and _SECRET.search(name) else hide_secrets(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [hide_secrets(item) for item in value]
    return value
