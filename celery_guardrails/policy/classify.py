"""What kind of failure an exception is.

Two passes over the exception and its ``__cause__`` chain. First what people have said: the task's own ``permanent``
and ``retryable``, ``RetryableError`` and ``PermanentError``, registered rules; a word about a cause counts before a
shipped rule about the error around it. Then the shipped rules. Then the default.

``__context__`` is not followed: it is whatever was being handled when the error was raised, and
``except KeyError: raise CacheMiss`` says nothing about a KeyError.

Of an exception group the worst of its members decides (poison, permanent, throttled, retryable), since another attempt
meets them all again; the longest ``retry_after`` counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar, Union, overload

from ..errors import GuardrailsConfigError, GuardrailsError, PermanentError, RetryableError
from .classification import KINDS, PERMANENT, POISON, RETRYABLE, THROTTLED, Classification
from .matches import ErrorMatch, as_tuple, check_matches, full_name, nearest_match
from .rules import SHIPPED, Look, Rule
from .rules.http import of_response
from .rules.table import attribute, seconds

__all__ = ["Classifier", "ErrorMatch", "Explanation", "Reason", "check_matches"]

Answer = Union[Classification, str, bool, None]
Decider = Callable[[Any], Answer]
DeciderT = TypeVar("DeciderT", bound=Decider)
Wait = Union[float, int, Callable[[Any], Union[float, int, None]], None]

#: Links of a ``__cause__`` chain that are followed.
DEPTH = 16
#: Exceptions that are looked at in all for one classification, the members of groups included.
BUDGET = 200
#: What the task's own lists say, in the order they are asked, and what our own errors say.
_OWN = (Classification(PERMANENT, rule="task.permanent"), Classification(RETRYABLE, rule="task.retryable"))
_OURS: tuple[tuple[type[BaseException], Classification], ...] = (
    (PermanentError, Classification(PERMANENT, rule="guardrails.PermanentError")),
    (RetryableError, Classification(RETRYABLE, rule="guardrails.RetryableError")),
)
_SEVERITY = {RETRYABLE: 0, THROTTLED: 1, PERMANENT: 2, POISON: 3}


@dataclass(frozen=True)
class Reason:
    """One step on the way to an answer: who spoke about which exception.

    Args:
        error: the exception: the one asked about, a cause, or one that is wrapped in it.
        source: ``"task"``, ``"raised"`` (our own errors), ``"registered"`` or ``"shipped"``.
        matched: the class of its MRO, or the name of the registered rule, that the answer belongs to.
    """

    error: BaseException
    source: str
    matched: str


@dataclass(frozen=True)
class Explanation:
    """Answer of :meth:`Classifier.explain`.

    Args:
        classification: the answer.
        reasons: who gave it, the outermost exception first; none for the default.
    """

    classification: Classification
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class _Registered:
    """A rule of the user's: which errors it is for, and what it says of them."""

    matches: tuple[ErrorMatch, ...] | None
    decide: Decider | None
    kind: str | None
    wait: Wait
    name: str

    def __call__(self, error: BaseException) -> Classification | None:
        if self.matches is not None and nearest_match(type(error).__mro__, self.matches) is None:
            return None
        try:
            said: Answer = True if self.decide is None else self.decide(error)
            if said is None or said is False:
                return None
            if isinstance(said, Classification):
                answer = Classification(said.kind, said.retry_after, self.name if said.rule == "default" else said.rule)
            else:
                kind = self.kind if said is True else said
                wait = self.wait(error) if callable(self.wait) else self.wait
                answer = Classification(kind, wait, self.name)  # type: ignore[arg-type]  # checked below
            if answer.kind in KINDS:
                return answer
            problem = f"said {answer.kind!r}: {_allowed()} is allowed"
        except Exception as exc:  # noqa: BLE001 - a failure is being handled: a broken rule must not take its place
            problem = f"raised {exc!r}"
        warnings.warn(f"guardrails.rule {self.name!r} {problem}; it is passed over", RuntimeWarning, stacklevel=2)
        return None


class Classifier:
    """Says what kind of failure an exception is; callable, and never raises for any exception.

    Order: the task's own ``permanent`` and ``retryable``; ``RetryableError`` and ``PermanentError``; registered rules, the
    last registered first; shipped rules; the default. Where both of the task's lists fit, or one of them and our own
    errors, the class nearest to the exception's own wins (``retryable=(Exception,)`` does not retry a
    ``PermanentError``); at the same class ``permanent`` wins.

    Args:
        default_kind: ``"retryable"`` or ``"permanent"``, for errors that no rule knows.

    Raises:
        GuardrailsConfigError: for another ``default_kind``.
    """

    def __init__(self, default_kind: str = RETRYABLE) -> None:
        if default_kind not in (RETRYABLE, PERMANENT):
            raise GuardrailsConfigError(f'guardrails_default_kind = {default_kind!r}: "{RETRYABLE}" or "{PERMANENT}" is allowed')
        self._default = Classification(default_kind)
        self._registered: tuple[_Registered, ...] = ()

    @overload
    def rule(self, match: DeciderT, *, kind: str | None = None, retry_after: Wait = None, name: str | None = None) -> DeciderT: ...

    @overload
    def rule(self, match: ErrorMatch | tuple[ErrorMatch, ...], *, kind: str, retry_after: Wait = None, name: str | None = None) -> None: ...

    @overload
    def rule(
        self, match: None = None, *, kind: str | None = None, retry_after: Wait = None, name: str | None = None
    ) -> Callable[[DeciderT], DeciderT]: ...

    def rule(self, match: Any = None, *, kind: str | None = None, retry_after: Wait = None, name: str | None = None) -> Any:
        """Register a rule; it comes before those registered earlier and before the shipped ones.

        Args:
            match: an exception class, a name as ``"module.Class"`` (both also match subclasses) or a glob, a tuple of these,
                or a function of the exception that returns True (then ``kind`` holds), a kind, a ``Classification``, or None
                to decline. Works as a decorator of such a function.
            kind: ``"retryable"``, ``"throttled"``, ``"permanent"`` or ``"poison"``; needed unless a function says it.
            retry_after: seconds, or a function of the exception that returns them or None. Without it the wait that the
                exception itself carries (``Retry-After``) is kept.
            name: of the rule, for people; default is that of what it matches.

        Raises:
            GuardrailsConfigError: for a match, kind or wait that is not allowed.
        """
        if kind is not None and kind not in KINDS:
            raise GuardrailsConfigError(f"guardrails.rule(kind={kind!r}): {_allowed()} is allowed")
        if not callable(retry_after) and retry_after is not None and seconds(retry_after) is None:
            raise GuardrailsConfigError(
                f"guardrails.rule(retry_after={retry_after!r}): None, a number of seconds of at least 0, "
                "or a function that returns one is allowed"
            )
        if match is None:
            return lambda function: self.rule(function, kind=kind, retry_after=retry_after, name=name)
        if callable(match) and not isinstance(match, type):
            label = getattr(match, "__qualname__", None) or repr(match)
            self._add(_Registered(None, match, kind, retry_after, name or label))
            return match
        matches = check_matches(match, "guardrails.rule(match")
        if kind is None:
            raise GuardrailsConfigError(f"guardrails.rule({match!r}) has no kind: kind={_allowed()} is allowed")
        label = ", ".join(each if isinstance(each, str) else full_name(each) for each in matches)
        self._add(_Registered(matches, None, kind, retry_after, name or label))
        return None

    def _add(self, rule: _Registered) -> None:
        self._registered = (rule, *self._registered)

    def __call__(
        self,
        exc: BaseException,
        *,
        retryable: ErrorMatch | tuple[ErrorMatch, ...] = (),
        permanent: ErrorMatch | tuple[ErrorMatch, ...] = (),
        now: float | None = None,
    ) -> Classification:
        """Classify an exception.

        Args:
            exc: the exception.
            retryable: the task's own, classes or names.
            permanent: the task's own, classes or names.
            now: unix time in seconds, for a ``Retry-After`` that is a date.
        """
        return self.explain(exc, retryable=retryable, permanent=permanent, now=now).classification

    def explain(
        self,
        exc: BaseException,
        *,
        retryable: ErrorMatch | tuple[ErrorMatch, ...] = (),
        permanent: ErrorMatch | tuple[ErrorMatch, ...] = (),
        now: float | None = None,
    ) -> Explanation:
        """Classify an exception and say who gave the answer; the arguments are those of a call."""
        walk = _Walk(self._registered, self._default, (as_tuple(permanent), as_tuple(retryable)), now)
        try:
            return Explanation(walk.full(exc), tuple(reversed(walk.why)))
        except Exception as problem:  # noqa: BLE001 - a class that cannot be looked at must not hide the failure it stands for
            warnings.warn(f"{type(exc)!r} could not be classified: {problem!r}", RuntimeWarning, stacklevel=2)
            return Explanation(self._default, ())

    def looks_at(self, exc: BaseException) -> tuple[str, ...]:
        """Return what the shipped rules for its class ask an exception for until one answers; its text is ``"message"``.

        The ``response`` that any error may carry is not among it, unless a rule for its class asks for it.
        """
        watched, walk = _Watched(exc), _Walk((), self._default, ((), ()), None)
        for _, rule in _rules_of(type(exc)):  # type: ignore[arg-type]  # as in _Walk._shipped
            if rule is _response:
                continue
            with suppress(Exception):
                if isinstance(rule, Classification) or rule(watched, walk) is not None:
                    break
        return tuple(watched.asked)


class _Watched:
    """An exception that notes what it is asked for."""

    def __init__(self, error: BaseException) -> None:
        self._error = error
        #: Names, in the order of asking.
        self.asked: dict[str, None] = {}

    def __getattr__(self, name: str) -> Any:
        self.asked.setdefault(name)
        return getattr(self._error, name)

    def __str__(self) -> str:
        self.asked.setdefault("message")
        return str(self._error)


class _Walk:
    """One classification: remembers how many exceptions it has looked at. It is what the shipped rules call ``Look``."""

    __slots__ = ("_budget", "_default", "_own", "_reasons", "_registered", "now", "why")

    def __init__(
        self,
        registered: tuple[_Registered, ...],
        default: Classification,
        own: tuple[tuple[ErrorMatch, ...], tuple[ErrorMatch, ...]],
        now: float | None,
    ) -> None:
        self._registered = registered
        self._default = default
        self._own = own
        self.now = now
        self._budget = BUDGET
        self._reasons: list[Reason] = []
        self.why: list[Reason] = []

    def full(self, exc: BaseException) -> Classification:
        """Return the answer of both passes, or the default."""
        begun = len(self._reasons)
        for link in _causes(exc):
            found = self._said(link)
            if found is not None:
                why = self._reasons[begun:]
                answer = self._with_wait(found, link)
                self.why = why
                return answer
        found = self.known(exc)
        self.why = self._reasons[begun:]
        return self._default if found is None else self._with_wait(found, None)

    def known(self, error: object) -> Classification | None:
        """Return what the shipped rules say of an exception and its causes."""
        if isinstance(error, BaseException):
            for link in _causes(error):
                if self._budget <= 0:
                    break
                self._budget -= 1
                found = self._group(link) or self._shipped(link)
                if found is not None:
                    return found
        return None

    def _said(self, error: BaseException) -> Classification | None:
        """What people have said of this very exception."""
        mro = type(error).__mro__
        answer: Classification | None = None
        nearest, source = len(mro), "task"
        for matches, said in zip(self._own, _OWN, strict=True):
            depth = nearest_match(mro, matches) if matches else None
            if depth is not None and depth < nearest:
                nearest, answer = depth, said
        if isinstance(error, GuardrailsError):
            for cls, said in _OURS:
                if cls in mro and mro.index(cls) < nearest:
                    nearest, answer, source = mro.index(cls), said, "raised"
        if answer is not None:
            self._reasons.append(Reason(error, source, full_name(mro[nearest])))
            return answer
        for rule in self._registered:
            found = rule(error)
            if found is not None:
                self._reasons.append(Reason(error, "registered", rule.name))
                return found
        return None

    def _with_wait(self, found: Classification, error: BaseException | None) -> Classification:
        """Keep a sound wait only, and only where waiting helps; where none was said, take what the exception carries."""
        if found.kind in (PERMANENT, POISON):
            return found if found.retry_after is None else Classification(found.kind, rule=found.rule)
        wait = seconds(found.retry_after)
        if wait is None and error is not None:
            wait = seconds(attribute(error, "retry_after"))
            if wait is None:
                carried = self.known(error)
                wait = None if carried is None else carried.retry_after
        return found if wait == found.retry_after else Classification(found.kind, wait, found.rule)

    def _shipped(self, error: BaseException) -> Classification | None:
        for name, rule in _rules_of(type(error)):  # type: ignore[arg-type]  # mypy takes the hash of an instance for that of its class
            try:
                found = rule if isinstance(rule, Classification) else rule(error, self)
            except Exception:  # noqa: BLE001, S112 - attributes that are not as the library's own: the next class may do
                continue
            if found is not None:
                self._reasons.append(Reason(error, "shipped", name))
                return found
        return None

    def _group(self, error: BaseException) -> Classification | None:
        members = attribute(error, "exceptions")
        if not isinstance(members, tuple) or not any(cls.__name__ == "BaseExceptionGroup" for cls in type(error).__mro__):
            return None
        worst: Classification | None = None
        longest: float | None = None
        begun, why = len(self._reasons), self.why
        for member in members:
            if self._budget <= 0 or not isinstance(member, BaseException):
                break
            found = self.full(member)
            if found.retry_after is not None:
                longest = max(found.retry_after, longest or 0.0)
            if worst is None or _SEVERITY[found.kind] > _SEVERITY[worst.kind]:
                worst, why = found, self.why
        self._reasons[begun:] = why  # of the others nobody asks
        return None if worst is None else Classification(worst.kind, longest, worst.rule)


@lru_cache(maxsize=1024)
def _rules_of(cls: type) -> tuple[tuple[str, Rule], ...]:
    """Return the shipped rules for a class in the order they are asked, each with the name of the class it is for.

    The HTTP response that an error carries is looked at before the bases of Python's own: an API client's error may be
    a ``ValueError`` with a 503 in it.
    """
    found: list[tuple[str, Rule]] = []
    foreign = True
    for base in cls.__mro__:
        if foreign and base.__module__ == "builtins":
            foreign = False
            if base is not cls:  # Python's own classes carry no response
                found.append((full_name(cls), _response))
        rule = SHIPPED.get(full_name(base))
        if rule is not None:
            found.append((full_name(base), rule))
    return tuple(found)


def _response(error: BaseException, look: Look) -> Classification | None:
    return of_response(error, look.now)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception and its causes, the outermost first; a chain that bites its tail ends."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and len(seen) < DEPTH and not any(link is each for each in seen):
        seen.append(link)
        yield link
        link = link.__cause__


def _allowed() -> str:
    return ", ".join(f'"{kind}"' for kind in KINDS)
