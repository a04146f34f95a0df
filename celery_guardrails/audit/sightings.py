"""Who a message is: its names, and the tasks that are looked for by them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

from ..dead_letters.decoder import Decoder
from ..dead_letters.tasks import Tasks
from ..policy.delivery import RawMessage, Travel
from .standing import Letter, Sight

__all__ = ["Answer", "Held", "KeyOf", "Sightings", "key_reader"]

#: Returns the idempotency key of a message that travels without one; None where it has none but its task id.
KeyOf = Callable[[RawMessage], "str | None"]


@dataclass(frozen=True)
class Held:
    """A message that a worker says it has in hand.

    Args:
        task_id: Celery's id.
        key: idempotency key.
        queue: it came from.
        active: whether it runs.
    """

    task_id: str
    key: str
    queue: str
    active: bool


@dataclass(frozen=True)
class Answer:
    """What a worker said.

    Args:
        worker: node name.
        queues: it consumes.
        held: messages that it has in hand.
    """

    worker: str
    queues: frozenset[str] = frozenset()
    held: tuple[Held, ...] = ()


def key_reader(decoder: Decoder, tasks: Tasks) -> KeyOf:
    """Return what computes the key of a message as a worker would: from its arguments, by the options of its task."""
    known = cache(tasks)

    def key_of(message: RawMessage) -> str | None:
        try:
            task = known(str(message.headers.get("task") or ""))
            if task is None:
                return None
            payload = decoder(message)
            slot = Travel.from_headers(message.headers).slot or str(message.headers.get("id") or "")
            return None if payload.error else task.identify(payload.args, payload.kwargs, slot)[0]
        except Exception:  # noqa: BLE001 - arguments that do not fit, a project's modules that do not import: then only the id is known
            return None

    return key_of


@dataclass
class Sightings:
    """What one look has seen of the tasks that are looked for.

    Args:
        wanted: by idempotency key or task id.
        key_of: computes the key of a message that has none.
    """

    wanted: frozenset[str]
    key_of: KeyOf
    messages: defaultdict[str, list[Sight]] = field(default_factory=lambda: defaultdict(list))
    letters: defaultdict[str, list[Letter]] = field(default_factory=lambda: defaultdict(list))
    #: Idempotency keys of those that were asked for by their task id, as messages and letters tell.
    keys: dict[str, str] = field(default_factory=dict)

    def message(self, message: RawMessage, sight: Sight) -> None:
        """Note a message that was seen."""
        key = Travel.from_headers(message.headers).key or self.key_of(message)
        task_id = message.headers.get("id")
        for name in self._names(key, task_id if isinstance(task_id, str) else None):
            self.messages[name].append(sight)

    def held(self, held: Held, sight: Sight) -> None:
        """Note what a worker holds."""
        for name in self._names(held.key, held.task_id):
            self.messages[name].append(sight)

    def letter(self, key: str | None, task_id: str, letter: Letter) -> None:
        """Note a dead letter."""
        for name in self._names(key, task_id):
            self.letters[name].append(letter)

    def _names(self, *names: str | None) -> Iterator[str]:
        key = names[0]
        for name in dict.fromkeys(names):
            if name and name in self.wanted:
                if key:
                    self.keys[name] = key
                yield name
