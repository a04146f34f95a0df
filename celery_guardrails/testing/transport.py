"""kombu's way into the memory broker: what an app publishes is serialized, routed and put there as in production."""

from __future__ import annotations

from queue import Empty
from typing import Any

from kombu.connection import Connection
from kombu.transport import virtual
from kombu.utils.json import dumps, loads

from ..policy.delivery import RawMessage
from .memory_broker import MemoryBroker

__all__ = ["connection_to"]

#: Properties of kombu's virtual transports that are no properties of the message.
_ENVELOPE = ("body_encoding", "delivery_info", "delivery_tag")


class _Channel(virtual.Channel):
    """Puts into the broker; takes nothing out of it."""

    do_restore = False
    supports_fanout = True

    @property
    def broker(self) -> MemoryBroker:
        found: MemoryBroker = self.connection.client.transport_options["memory_broker"]
        return found

    def _put(self, queue: str, message: Any, **_: Any) -> None:
        wire = loads(dumps(message))  # what cannot travel must fail here as it does on the way to Redis
        properties = wire["properties"]
        info = properties["delivery_info"]
        body = self.decode_body(wire["body"], properties.get("body_encoding"))  # type: ignore[no-untyped-call]
        self.broker.put(
            RawMessage(
                body=body.encode() if isinstance(body, str) else bytes(body),
                content_type=wire["content-type"],
                content_encoding=wire["content-encoding"],
                headers=wire["headers"],
                properties={name: value for name, value in properties.items() if name not in _ENVELOPE},
                exchange=info.get("exchange") or "",
                routing_key=info.get("routing_key") or "",
            ),
            queue,
        )

    def _put_fanout(self, exchange: str, message: Any, routing_key: Any, **_: Any) -> None:
        """Remote control and events: nobody listens."""

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        raise Empty

    def _new_queue(self, queue: str, **_: Any) -> None:
        """It is there as soon as something is put into it."""

    def _queue_bind(self, *_: Any) -> None:
        """The state has it already."""

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return True

    def _size(self, queue: str) -> int:
        return self.broker.depth(queue)

    def _purge(self, queue: str) -> int:
        return 0


class _Transport(virtual.Transport):
    Channel = _Channel
    driver_type = driver_name = "memory"

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)  # type: ignore[no-untyped-call]
        self.state = client.transport_options["state"]

    def driver_version(self) -> str:
        """See kombu."""
        return "N/A"


def connection_to(broker: MemoryBroker, state: virtual.BrokerState) -> Connection:
    """Return a new connection whose messages go to ``broker``.

    Args:
        broker: takes them.
        state: exchanges and bindings, shared by all connections to one broker.
    """
    return Connection(transport=_Transport, transport_options={"memory_broker": broker, "state": state})
