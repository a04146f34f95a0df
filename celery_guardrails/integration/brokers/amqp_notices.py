"""Notices: how a worker hears of letters that the broker itself has made, without a look into any dead letter queue.

A letter of ours carries the header ``guardrails`` and its story is told when it is published. RabbitMQ's own letters (time to
live, length and delivery limit, another consumer's reject) do not, nor do those that other programs publish to the DLX. So a
headers exchange beside the DLX gets every letter, lets those with our header end in an exchange without queues, and by its
alternate exchange the others come out: into their dead letter queue, a second time over (RabbitMQ delivers a message to a queue
once, by however many ways), and into the queue of notices of the app.

The second way is what makes it safe: where the DLQ's binding to the DLX is lost, a letter that finds its notice still finds its
queue. For our own letters, published mandatory, nothing changes: the notices are no route for them.
"""

from __future__ import annotations

from collections.abc import Mapping

from .amqp_declare import Scratch, ensure_queue

__all__ = ["declare_notices", "drop_notices", "notices_queue"]


def notices_queue(namespace: str) -> str:
    """Return the name of the queue of notices of an app."""
    return f"guardrails.notices.{namespace}"


def _names(dlx: str) -> tuple[str, str, str]:
    return f"{dlx}.all", f"{dlx}.certified", f"{dlx}.uncertified"


def declare_notices(scratch: Scratch, dlx: str, queues: Mapping[str, str], into: str, *, quorum: bool) -> None:
    """Have copies of letters without our header put into the queue ``into``.

    Args:
        scratch: lends channels.
        dlx: name of the dead letter exchange.
        queues: the task queues, each with its dead letter queue; all exist.
        into: queue of notices; of the same kind as the dead letter queues, so that it is there whenever they are.
        quorum: whether that is a quorum queue.
    """
    every, certified, uncertified = _names(dlx)
    ensure_queue(scratch, into, quorum=quorum)
    with scratch() as channel:
        channel.exchange_declare(uncertified, "direct", durable=True, auto_delete=False)
        channel.exchange_declare(certified, "fanout", durable=True, auto_delete=False)
        arguments = {"alternate-exchange": uncertified}
        channel.exchange_declare(every, "headers", durable=True, auto_delete=False, arguments=arguments)
        # no value: the header is there
        channel.exchange_bind(certified, every, "", arguments={"x-match": "all", "guardrails": None})
        for queue, dead in queues.items():
            # in this order, so that no notice comes without its letter
            channel.queue_bind(dead, uncertified, queue)
            channel.queue_bind(into, uncertified, queue)
            channel.exchange_bind(every, dlx, queue)


def drop_notices(scratch: Scratch, dlx: str, queues: Mapping[str, str]) -> None:
    """Make no more notices of the letters of these queues."""
    every, _, _ = _names(dlx)
    with scratch() as channel:
        for queue in queues:
            channel.exchange_unbind(every, dlx, queue)  # no error where there is none, nor such an exchange
