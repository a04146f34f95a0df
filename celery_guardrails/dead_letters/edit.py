"""Other arguments for a dead letter, before it is replayed: checked against its task, and written down in the message."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import kombu.utils.json

from ..errors import GuardrailsConfigError, StoreUnavailable
from ..policy.delivery import TRAVEL_HEADER
from ..ports import IdempotencyStore
from .decoder import Decoder, Payload, UndecodedPayload
from .letter import DeadLetter
from .redaction import HIDDEN, Redactor, hide_secrets
from .render import plain, printable
from .tasks import KnownTask, Tasks, positional

__all__ = ["Edit", "Edited", "Editor", "edit_of_text", "parse_edit", "text_to_edit"]

#: Changes that travel with a message, and characters of each value: RabbitMQ wants all headers in one frame.
_CHANGES_KEPT = 20
_VALUE_LIMIT = 200
#: Characters of ``argsrepr`` and ``kwargsrepr``, as Celery cuts them.
_REPR_LIMIT = 1024


@dataclass(frozen=True)
class Edit:
    """What an operator wants changed in the arguments of each chosen letter.

    Args:
        values: new values by the name of the argument, or by its position ("0") among the positional ones.
        args: all positional arguments, in place of those that were there; ``values`` are set after that.
        kwargs: all keyword arguments, likewise.
        force: also where the app does not know the task, and against its annotations.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    args: Sequence[Any] | None = None
    kwargs: Mapping[str, Any] | None = None
    force: bool = False

    def applied(self, payload: Payload, task: KnownTask | None) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional and keyword arguments with the changes made.

        Raises:
            GuardrailsConfigError: a name that the task has no argument for.
        """
        args = list(payload.args if self.args is None else self.args)
        kwargs = dict(payload.kwargs if self.kwargs is None else self.kwargs)
        places = {} if task is None else {name: place for place, name in enumerate(positional(task.signature))}
        for name, value in self.values.items():
            place = int(name) if name.isdecimal() else places.get(name, len(args))
            if name.isdecimal() and place >= len(args):
                raise GuardrailsConfigError(f"--set {name}: there are {len(args)} positional arguments, counted from 0")
            if place < len(args):
                args[place] = value
            elif task is not None and not _takes(task.signature, name):
                known = ", ".join(task.signature.parameters) or "it has none"
                raise GuardrailsConfigError(f"{task.name}: --set {printable(name)}: its arguments are allowed ({known})")
            else:
                kwargs[name] = value
        return args, kwargs


@dataclass(frozen=True)
class Edited:
    """A letter with its changes.

    Args:
        letter: with the new arguments, key and fingerprint; its identifier is the old one.
        changes: name, old value and new one of each argument that changed, as redacted texts.
        key: before.
        new_key: after.
    """

    letter: DeadLetter
    changes: tuple[tuple[str, str, str], ...]
    key: str | None
    new_key: str | None


class Editor:
    """Makes the same change in letters, and refuses those it does not fit.

    Args:
        edit: the change.
        tasks: finds what the app knows of a task.
        decoder: reads and writes arguments; nothing is decoded that it would not show.
        redact: what of the arguments may be written down.
        store: says which keys are taken by other arguments; None where there is none.
    """

    def __init__(
        self, edit: Edit, *, tasks: Tasks, decoder: Decoder, redact: Redactor = hide_secrets, store: IdempotencyStore | None
    ) -> None:
        self._edit = edit
        self._tasks = tasks
        self._decoder = decoder
        self._redact = redact
        self._store = store

    def __call__(self, letter: DeadLetter) -> Edited:
        """Return the letter with its new arguments; nothing is moved.

        Raises:
            GuardrailsConfigError: saying of which letter, what is wrong.
        """
        try:
            return self._edited(letter)
        except (GuardrailsConfigError, UndecodedPayload, TypeError) as exc:
            raise GuardrailsConfigError(f"letter {letter.id} cannot be edited: {exc}") from exc

    def _edited(self, letter: DeadLetter) -> Edited:
        payload = letter.payload
        if payload.error:
            raise GuardrailsConfigError(payload.error)
        task = self._tasks(letter.task)
        if task is None and not self._edit.force:
            raise GuardrailsConfigError(
                f"this app does not know the task {printable(letter.task)!r}, so nobody can check its arguments: "
                "import it where the app is made, or use --force"
            )
        args, kwargs = self._edit.applied(payload, task)
        signature = None if task is None else task.signature
        old, new = _by_name(signature, payload.args, payload.kwargs), _by_name(signature, args, kwargs)
        changed = [name for name in {**old, **new} if name not in old or name not in new or not _same(old[name], new[name])]
        if task is not None:
            task.check(args, kwargs)
            if not self._edit.force:
                for name in changed:
                    if name in new:
                        task.check_type(name, new[name])
        if not changed:
            return Edited(letter, (), letter.key, letter.key)
        changes = tuple((name, self._shown(name, old), self._shown(name, new)) for name in changed)
        return self._written(letter, task, args, kwargs, changes)

    def _written(
        self, letter: DeadLetter, task: KnownTask | None, args: list[Any], kwargs: dict[str, Any], changes: tuple[tuple[str, str, str], ...]
    ) -> Edited:
        travel = letter.travel
        key, mark = (None, None) if task is None else task.identify(args, kwargs, travel.slot)
        if key is not None:
            self._refuse_conflict(key, mark)
            travel = travel.evolve(key=key, fingerprint=mark)
        travel = travel.evolve(edited=(*travel.edited, *changes)[-_CHANGES_KEPT:])
        message = self._decoder.rewrite(letter.message, args, kwargs)
        headers: dict[str, Any] = {TRAVEL_HEADER: travel.to_header()}
        for name, value in (("argsrepr", args), ("kwargsrepr", kwargs)):
            if name in message.headers:  # the task's own redaction is not known here, so ours is used
                headers[name] = repr(self._redact(value))[:_REPR_LIMIT]
        certificate = letter.certificate if key is None else replace(letter.certificate, key=key)
        edited = replace(letter, message=message.with_headers(**headers), certificate=certificate)
        return Edited(edited, changes, letter.key, edited.key)

    def _refuse_conflict(self, key: str, mark: str | None) -> None:
        try:
            record = None if self._store is None else self._store.lookup(key)
        except StoreUnavailable:
            return
        if record is not None and mark is not None and record.fingerprint is not None and record.fingerprint != mark:
            done = f", with the steps {', '.join(sorted(record.steps))} done" if record.steps else ""
            raise GuardrailsConfigError(
                f"its key {printable(key)!r} is remembered for other arguments ({record.state.value}{done}): "
                "it would die of a conflict; `guardrails forget KEY` makes the store forget it"
            )

    def _shown(self, name: str, values: Mapping[str, Any]) -> str:
        if name not in values:
            return "(unset)"
        text = json.dumps(plain(self._redact({name: values[name]})[name]), ensure_ascii=False)
        return text if len(text) <= _VALUE_LIMIT else text[: _VALUE_LIMIT - 1] + "…"


def parse_edit(sets: Iterable[str] = (), *, args: str | None = None, kwargs: str | None = None, force: bool = False) -> Edit:
    """Build a change from texts as they are typed.

    Args:
        sets: ``NAME=JSON`` each.
        args: a JSON list.
        kwargs: a JSON object.
        force: see :class:`Edit`.

    Raises:
        GuardrailsConfigError: naming the option, its value and what is allowed.
    """
    values: dict[str, Any] = {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise GuardrailsConfigError(f"""--set {text!r}: NAME=JSON is allowed, such as amount=12 or name='"text"'""")
        values[name.strip()] = _json(f"--set {text!r}", value, """NAME=JSON, where a text is '"text"', in quotes,""", object)
    return Edit(
        values=values,
        args=None if args is None else _json(f"--args {args!r}", args, "a JSON list", list),
        kwargs=None if kwargs is None else _json(f"--kwargs {kwargs!r}", kwargs, "a JSON object", dict),
        force=force,
    )


def text_to_edit(letter: DeadLetter) -> str:
    """Return the arguments of a letter as JSON text for an editor, redacted; dates, UUIDs and the like as kombu writes them.

    Raises:
        GuardrailsConfigError: they cannot be read, or cannot be written as JSON.
    """
    payload = letter.payload
    if payload.error:
        raise GuardrailsConfigError(f"letter {letter.id} cannot be edited: {payload.error}")
    shown = letter.shown_payload()
    try:
        return str(kombu.utils.json.dumps({"args": list(shown.args), "kwargs": dict(shown.kwargs)}, indent=2, ensure_ascii=False)) + "\n"
    except (TypeError, ValueError) as exc:
        raise GuardrailsConfigError(f"letter {letter.id} cannot be written as JSON: {exc}; use --set NAME=JSON") from exc


def edit_of_text(letter: DeadLetter, text: str, *, force: bool = False) -> Edit:
    """Return the change that somebody made in :func:`text_to_edit`'s text; what was hidden and left so stays as it is.

    Raises:
        GuardrailsConfigError: it is no such JSON any more.
    """
    allowed = 'a JSON object with "args" (a list) and "kwargs" (an object)'
    data = _json("the edited text", text, allowed, dict)
    if set(data) != {"args", "kwargs"} or not isinstance(data["args"], list) or not isinstance(data["kwargs"], dict):
        raise GuardrailsConfigError(f"the edited text: {allowed} is allowed")
    payload = letter.payload
    shown = kombu.utils.json.loads(text_to_edit(letter))
    args = _uncovered(data["args"], shown["args"], list(payload.args))
    return Edit(args=args, kwargs=_uncovered(data["kwargs"], shown["kwargs"], dict(payload.kwargs)), force=force)


def _uncovered(value: Any, shown: Any, original: Any) -> Any:
    """Return what somebody made of a value that they saw redacted; what they left as it was shown is the original.

    Raises:
        GuardrailsConfigError: something hidden was moved, so that nobody can say what it stands for.
    """
    if _same(value, shown):
        return original
    if isinstance(value, dict) and isinstance(shown, dict) and isinstance(original, Mapping):
        unseen = {name: item for name, item in original.items() if name not in shown}
        return unseen | {name: _uncovered(item, shown.get(name), original.get(name)) for name, item in value.items()}
    if isinstance(value, list) and isinstance(shown, list) and isinstance(original, (list, tuple)) and len(shown) == len(original):
        beyond = [None] * len(value)
        return [_uncovered(*each) for each in zip(value, [*shown, *beyond], [*original, *beyond], strict=False)]
    return _refuse_hidden(value)


def _refuse_hidden(value: Any) -> Any:
    """Return a new value that has nothing hidden in it."""
    if value == HIDDEN:
        raise GuardrailsConfigError(f"the edited text: {HIDDEN} stands where nothing was hidden; write the value itself")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_hidden(item)
    return value


def _json(what: str, text: str, allowed: str, kind: type) -> Any:
    try:
        value = kombu.utils.json.loads(text)
    except (ValueError, TypeError, KeyError) as exc:
        raise GuardrailsConfigError(f"{what}: {allowed} is allowed ({exc})") from None
    if not isinstance(value, kind):
        raise GuardrailsConfigError(f"{what}: {allowed} is allowed")
    return value


def _same(old: Any, new: Any) -> bool:
    """Whether two values are the same in JSON, where 1, 1.0 and true are three things."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return old.keys() == new.keys() and all(_same(old[name], new[name]) for name in old)
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        return len(old) == len(new) and all(map(_same, old, new))
    return type(old) is type(new) and bool(old == new)


def _takes(signature: inspect.Signature, name: str) -> bool:
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return True
    found = signature.parameters.get(name)
    return found is not None and found.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _by_name(signature: inspect.Signature | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by name where the task says their names, else the positional ones by their place."""
    names = [] if signature is None else positional(signature)
    placed = {names[place] if place < len(names) else str(place): value for place, value in enumerate(args)}
    return {**placed, **{name: value for name, value in kwargs.items() if name not in placed}}
