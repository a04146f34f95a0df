"""What an app knows of the tasks that its dead letters are for."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import GuardrailsConfigError

__all__ = ["KnownTask", "Names", "Tasks", "names_of", "no_names", "no_tasks", "positional", "tasks_of"]

#: Makes key and fingerprint of a call, from its arguments and the slot of its schedule; both None where the task id is the key.
Identify = Callable[[Sequence[Any], Mapping[str, Any], Union[str, None]], tuple[Union[str, None], Union[str, None]]]

#: Annotations that a value of JSON can be held against; whatever else an annotation says is the task's own affair.
_PLAIN: dict[Any, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
    list: (list, tuple),
    dict: (dict,),
    None: (type(None),),
    type(None): (type(None),),
}


@dataclass(frozen=True)
class KnownTask:
    """A task of the app, as far as an operator's change of its arguments is concerned.

    Args:
        name: registered name.
        signature: as a caller sees it.
        identify: makes key and fingerprint.
        hints: annotations by parameter.
    """

    name: str
    signature: inspect.Signature
    identify: Identify
    hints: Mapping[str, Any] = field(default_factory=dict)

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Refuse arguments that the task cannot be called with.

        Raises:
            GuardrailsConfigError: naming what is missing or too much.
        """
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise GuardrailsConfigError(f"{self.name}{self.signature}: {exc}") from None

    def check_type(self, name: str, value: Any) -> None:
        """Refuse a value that a plain annotation (``int``, ``str | None``, ``list[int]``) rules out.

        Raises:
            GuardrailsConfigError: naming the argument, the value and the annotation.
        """
        if name in self.hints and not _fits(value, self.hints[name]):
            raise GuardrailsConfigError(f"{self.name}: {name} = {value!r}: {inspect.formatannotation(self.hints[name])} is allowed")


#: Finds a task by its registered name; None where the app does not know it.
Tasks = Callable[[str], Union[KnownTask, None]]


def no_tasks(name: str) -> KnownTask | None:
    """Know no task."""
    return None


#: Finds the names of a task's positional arguments, in order; none where nobody knows them.
Names = Callable[[str], Sequence[str]]


def no_names(name: str) -> Sequence[str]:
    """Know no name."""
    return ()


def positional(signature: inspect.Signature) -> list[str]:
    """Return the names of the arguments that may be given by position, in order."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in signature.parameters.items() if parameter.kind in kinds]


def names_of(tasks: Tasks) -> Names:
    """Return what finds the names of positional arguments; each task is looked for once."""
    known: dict[str, Sequence[str]] = {}

    def names(name: str) -> Sequence[str]:
        if name not in known:
            try:
                task = tasks(name)
            except Exception:  # noqa: BLE001 - finding a task imports a project's modules; a letter must be shown without them, too
                task = None
            known[name] = () if task is None else positional(task.signature)
        return known[name]

    return names


def tasks_of(app: Any) -> Tasks:
    """Return what finds the tasks of a Celery app; modules that only a worker would import are imported at the first miss."""

    def find(name: str) -> KnownTask | None:
        if name not in app.tasks:
            app.loader.import_default_modules()
        task = app.tasks.get(name)
        return None if task is None else _known(task)

    return find


def _known(task: Any) -> KnownTask:
    try:
        hints = get_type_hints(inspect.unwrap(task.run))
    except Exception:  # noqa: BLE001 - evaluating annotations runs a project's code, and many a name is there for type checkers only
        hints = {}
    if getattr(task, "guarded", False):
        options = task.guard_options
        return KnownTask(task.name, options.signature, options.identify, hints)
    return KnownTask(task.name, inspect.signature(task.run), _by_task_id, hints)


def _by_task_id(args: Sequence[Any], kwargs: Mapping[str, Any], slot: str | None) -> tuple[str | None, str | None]:
    return None, None


def _fits(value: Any, hint: Any) -> bool:
    plain = _PLAIN.get(hint) if isinstance(hint, (type, type(None))) and not get_args(hint) else None
    if plain is not None:
        return isinstance(value, plain) and (bool in plain or not isinstance(value, bool))
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, getattr(types, "UnionType", Union)):
        return any(_fits(value, item) for item in inner)
    if origin is Literal:
        return value in inner
    if origin is list:
        return isinstance(value, (list, tuple)) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    return True
