"""What is inside a dead letter's body, read only as far as the app itself would read it."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import kombu.compression
import kombu.serialization

from ..policy.delivery import RawMessage

__all__ = ["Decoder", "KombuDecoder", "Payload", "UndecodedPayload"]

#: Bytes that a compressed body may unfold to before it is left alone: a few kilobytes of a hostile one can stand for gigabytes.
UNFOLDED_LIMIT = 64 * 1024 * 1024

_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "application/x-gzip": zlib.decompressobj,
    "gzip": zlib.decompressobj,
    "zlib": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "bzip2": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
    "lzma": lzma.LZMADecompressor,
}


class UndecodedPayload(Exception):
    """A body was not decoded; the text says why."""


@dataclass(frozen=True)
class Payload:
    """The arguments of a task message.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
        task: name, where the body itself carries it (message protocol 1).
        task_id: Celery's id, where the body itself carries it (message protocol 1).
        error: why there are no arguments to show, or "".
        options: what comes with the arguments (message protocol 2): callbacks, errbacks, chain, chord.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    task: str = ""
    task_id: str = ""
    error: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


class Decoder(Protocol):
    """Reads the arguments out of a message."""

    def __call__(self, message: RawMessage) -> Payload:
        """Return the arguments; what cannot or may not be decoded gives a payload with an error, never an exception."""

    def rewrite(self, message: RawMessage, args: Sequence[Any], kwargs: Mapping[str, Any]) -> RawMessage:
        """Return the message with other arguments and all else as it was: serializer, compression, callbacks, chain.

        Raises:
            UndecodedPayload: it cannot or may not be decoded, or the arguments cannot be encoded.
        """


class KombuDecoder:
    """Decodes with kombu's serializers, and with those only that the app accepts.

    Args:
        accept: content types or serializer names, as in Celery's ``accept_content``. A body of any other type is
            never handed to a deserializer, so that looking at a dead letter cannot run what a pickle says.
    """

    def __init__(self, accept: Iterable[str]) -> None:
        self._accept = frozenset(kombu.serialization.prepare_accept_content(accept) or ())

    def __call__(self, message: RawMessage) -> Payload:
        """Return the arguments of a message of Celery's protocol 2 or 1."""
        try:
            return _arguments(self._load(message))
        except UndecodedPayload as exc:
            return Payload(error=str(exc))
        except Exception as exc:  # noqa: BLE001 - a body can be anything; every way it breaks is told, none may end the list
            return Payload(error=f"{type(exc).__name__}: {exc}")

    def rewrite(self, message: RawMessage, args: Sequence[Any], kwargs: Mapping[str, Any]) -> RawMessage:
        """Return the message with other arguments, written by the serializer and the compression that it came with.

        Raises:
            UndecodedPayload: it cannot or may not be decoded, or the arguments cannot be encoded.
        """
        try:
            body = self._load(message)
            _arguments(body)
            given = {"args": list(args), "kwargs": dict(kwargs)}
            changed = {**body, **given} if isinstance(body, Mapping) else [*given.values(), body[2]]
            serializer = kombu.serialization.registry.type_to_name[str(message.content_type)]
            _, encoding, data = kombu.serialization.dumps(changed, serializer=serializer)
            raw = data.encode(encoding) if isinstance(data, str) else bytes(data)
            compression = message.headers.get("compression")
            if compression:
                raw, _ = kombu.compression.compress(raw, str(compression))
        except UndecodedPayload:
            raise
        except Exception as exc:
            raise UndecodedPayload(f"{type(exc).__name__}: {exc}") from exc
        return replace(message, body=raw, content_encoding=encoding)

    def _load(self, message: RawMessage) -> Any:
        content_type = str(message.content_type or "")
        if content_type not in self._accept:
            raise UndecodedPayload(f"content type {content_type!r} is not in accept_content")
        body = _unfold(message.body, message.headers.get("compression"))
        return kombu.serialization.loads(body, content_type, message.content_encoding, accept=self._accept)


def _unfold(body: bytes, compression: object) -> bytes:
    if not compression:
        return body
    make = _DECOMPRESSORS.get(str(compression))
    if make is None:
        unfolded: bytes = kombu.compression.decompress(body, str(compression))
        return unfolded
    whole: bytes = make().decompress(body, UNFOLDED_LIMIT + 1)
    if len(whole) > UNFOLDED_LIMIT:
        raise UndecodedPayload(f"the body unfolds to more than {UNFOLDED_LIMIT} bytes")
    return whole


def _arguments(body: Any) -> Payload:
    if isinstance(body, Mapping) and ("args" in body or "kwargs" in body):  # protocol 1
        return Payload(
            args=_positional(body.get("args")),
            kwargs=_named(body.get("kwargs")),
            task=str(body.get("task") or ""),
            task_id=str(body.get("id") or ""),
        )
    if not isinstance(body, (list, tuple)) or len(body) != 3:
        raise UndecodedPayload("the body is not a task's: [args, kwargs, embed] is expected")
    return Payload(args=_positional(body[0]), kwargs=_named(body[1]), options=body[2] if isinstance(body[2], Mapping) else {})


def _positional(value: Any) -> tuple[Any, ...]:
    if value is not None and not isinstance(value, (list, tuple)):
        raise UndecodedPayload("the positional arguments are not a list")
    return tuple(value or ())


def _named(value: Any) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise UndecodedPayload("the keyword arguments are not a mapping")
    return dict(value or {})
