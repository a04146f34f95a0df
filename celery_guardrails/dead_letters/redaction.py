"""What of a dead letter is shown to people."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import translate
from typing import Any

from ..errors import GuardrailsConfigError

__all__ = ["HIDDEN", "Redactor", "hide_secrets", "redactor"]

#: Takes the arguments of a task, as a list or a mapping, or a text (an error's message, a traceback), and returns what may be
#: shown of it.
Redactor = Callable[[Any], Any]

HIDDEN = "********"
_SECRET = re.compile(
    r"passw|passphrase|secret|token|api_?key|private_?key|authorization|credential|cookie|card_?number|cvc|cvv|iban|ssn", re.IGNORECASE
)
_logger = logging.getLogger("celery_guardrails")


def hide_secrets(value: Any) -> Any:
    """Return a copy in which the values of mappings with a telling name are hidden, at any depth."""
    return _hide(value, _SECRET.search)


def redactor(wanted: Sequence[str] | str | Redactor | None) -> Redactor:
    """Return the redactor that ``guardrails_redact`` asks for, on top of :func:`hide_secrets`.

    Args:
        wanted: names to hide as well, whole, in any case, with ``*`` and ``?``; or a callable, or the dotted path of one. It is
            called with what :func:`hide_secrets` has left of a value. Where it raises, or gives back something of another
            kind, the whole value is hidden.

    Raises:
        GuardrailsConfigError: there is no such callable.
    """
    if not wanted:
        return hide_secrets
    if isinstance(wanted, str):
        wanted = _imported(wanted)
    return _by_names(wanted) if not callable(wanted) else _by_function(wanted)


def _hide(value: Any, is_secret: Callable[[str], object]) -> Any:
    if isinstance(value, Mapping):
        return {name: HIDDEN if isinstance(name, str) and is_secret(name) else _hide(item, is_secret) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hide(item, is_secret) for item in value]
    return value


def _by_names(names: Iterable[str]) -> Redactor:
    ours = re.compile("|".join(translate(name) for name in names), re.IGNORECASE)

    def is_secret(name: str) -> bool:
        return bool(_SECRET.search(name) or ours.match(name))

    return lambda value: _hide(value, is_secret)


def _by_function(function: Callable[[Any], Any]) -> Redactor:
    def redact(value: Any) -> Any:
        try:
            shown = function(hide_secrets(value))
        except Exception as exc:  # noqa: BLE001 - a user's code may raise anything; its text may hold what is to be hidden
            _logger.warning("guardrails_redact raised %s: the value is hidden", type(exc).__name__)
            return _hidden(value)
        return shown if _alike(shown, value) else _hidden(value)

    return redact


def _alike(shown: Any, value: Any) -> bool:
    if isinstance(value, Mapping):
        return isinstance(shown, Mapping)
    if isinstance(value, (list, tuple)):
        return isinstance(shown, (list, tuple)) and len(shown) == len(value)
    return isinstance(shown, str) or not isinstance(value, str)


def _hidden(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict.fromkeys(value, HIDDEN)
    return [HIDDEN] * len(value) if isinstance(value, (list, tuple)) else HIDDEN


def _imported(path: str) -> Redactor:
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as exc:  # a project's module may raise anything while it is imported
        raise _refused(path, f"{type(exc).__name__}: {exc}") from exc
    if not callable(found):
        raise _refused(path, "it is there and cannot be called")
    return found  # type: ignore[no-any-return]


def _refused(path: str, why: str) -> GuardrailsConfigError:
    return GuardrailsConfigError(
        f"guardrails_redact = {path!r}: a list of names, or a callable or its dotted path ('shop.privacy.redact') is allowed ({why})"
    )
