"""Many messages published at once: RabbitMQ's confirms are waited for once, and matched to their messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Bulk", "Wire"]

#: A message, its exchange and its routing key.
Wire = tuple[Any, str, str]


class Bulk:
    """A channel with confirms, for :meth:`publish` only.

    Args:
        channel: new.
        timeout: seconds without any answer after which it is given up.
    """

    def __init__(self, channel: Any, timeout: float) -> None:
        self._channel = channel
        self._timeout = timeout
        self._published = 0
        #: Publishes without a confirm, by their number on this channel; the first one first.
        self._open: dict[int, tuple[int, Wire]] = {}
        self._receipts: dict[int, bool] = {}
        # What RabbitMQ returns is to be compared byte for byte.
        channel.auto_decode = False
        channel.confirm_select()
        channel.events["basic_ack"].add(lambda tag, multiple: self._answered(tag, multiple, True))
        channel.events["basic_nack"].add(lambda tag, multiple: self._answered(tag, multiple, False))
        channel.events["basic_return"].add(self._returned)

    def publish(self, messages: Mapping[int, Wire], receipts: dict[int, bool]) -> None:
        """Publish all and return when all are answered; whatever is raised, the channel is of no use afterwards."""
        self._receipts = receipts
        for number, wire in messages.items():
            message, exchange, routing_key = wire
            self._published += 1
            self._open[self._published] = (number, wire)
            # not basic_publish: on a connection with confirms that one waits
            self._channel._basic_publish(message, exchange=exchange, routing_key=routing_key, mandatory=True)
        while self._open:
            self._channel.connection.drain_events(timeout=self._timeout)

    def _answered(self, tag: int, multiple: bool, accepted: bool) -> None:
        tags = [known for known in self._open if known <= tag] if multiple else [tag]
        for known in tags:
            number, _ = self._open.pop(known, (None, None))
            if number is not None:
                # what was returned is confirmed as well: it has gone where nothing was
                self._receipts.setdefault(number, accepted)

    def _returned(self, exc: Exception, exchange: str, routing_key: str, message: Any) -> None:
        """Note what went nowhere. A return does not say which publish it answers, but comes before its confirm, and in their order."""
        for number, wire in self._open.values():
            if number not in self._receipts and (exchange, routing_key) == wire[1:] and _same(message, wire[0]):
                self._receipts[number] = False
                return


def _same(one: Any, other: Any) -> bool:
    return _identity(one) == _identity(other)


def _identity(message: Any) -> tuple[Any, ...]:
    properties = message.properties
    headers = properties.get("application_headers") or {}
    return bytes(message.body or b""), properties.get("correlation_id"), headers.get("id")
