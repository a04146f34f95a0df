"""Task queues with a dead letter exchange: declared where they are new, left alone where they exist."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
from typing import Any

import pytest
from celery import Celery
from celery.app.amqp import AMQP, Queues
from kombu import Exchange, Queue, binding
from kombu.common import Broadcast, maybe_declare

from celery_guardrails.config import Settings
from celery_guardrails.integration.brokers import make_broker
from celery_guardrails.integration.topology import GuardedQueue, dead_letter_queue_name, declare_dead_letters, install
from tests.support import BrokerUnderTest, consistently, eventually

SETTINGS = Settings()


def guarded_app(url: str = "memory://", *, settings: Settings = SETTINGS, **conf: Any) -> Celery:
    app = Celery("shop", broker=url, set_as_current=False)
    app.conf.update(conf)
    install(app, settings)
    return app


def arguments_of(broker: BrokerUnderTest, queue: str) -> str:
    """What RabbitMQ says that the queue was declared with."""
    listed = broker.server.ctl("list_queues", "-p", broker.vhost, "name", "arguments", "--quiet")
    return next(line for line in listed.splitlines() if line.split("\t")[0] == queue)


def declare(broker: BrokerUnderTest, queue: Any) -> Any:
    """Declare on a channel as a publisher does, and see that the channel lives."""
    with broker.connection() as connection:
        channel = connection.channel()
        maybe_declare(queue.bind(channel), channel)
        channel.queue_declare("", exclusive=True)
        return queue


# -- which queues are guarded ---------------------------------------------------------------------------------------


def test_every_queue_however_it_comes_into_being_is_guarded():
    mine = Queue("mine")
    app = guarded_app(task_queues=[mine, Queue("other", Exchange("x", type="topic"), "a.#")], task_default_queue="mine")
    queues = app.amqp.queues
    queues.select(["mine", "from-the-command-line"])
    queues.select_add("at-run-time")
    queues.add("compat", exchange="x", exchange_type="direct", routing_key="y")
    missing = queues["missing"]
    assert {type(queue) for queue in queues.values()} == {GuardedQueue}
    assert {type(queue) for queue in queues.consume_from.values()} == {GuardedQueue}
    assert type(missing) is GuardedQueue
    # the same object: it may stand in task_routes as well
    assert queues["mine"] is mine
    assert (queues["missing"].dead_letter_exchange, queues["missing"].dead_letter_queue) == ("guardrails.dlx", "missing.dead")
    assert queues["other"].exchange.type == "topic"


def test_the_default_queue_is_guarded():
    app = guarded_app()
    assert type(app.amqp.queues["celery"]) is GuardedQueue
    assert app.amqp.default_queue.dead_letter_queue == "celery.dead"


def test_queues_that_the_app_made_before_are_converted():
    app = Celery("shop", broker="memory://", set_as_current=False)
    queues, sender = app.amqp.queues, app.amqp.send_task_message
    install(app, SETTINGS)
    assert app.amqp.queues is queues
    assert type(queues["celery"]) is type(queues["new"]) is GuardedQueue
    assert type(queues.consume_from["celery"]) is GuardedQueue
    assert app.amqp.send_task_message is not sender


def test_broadcast_queues_and_subclasses_of_the_users_own_are_left_alone():
    class Own(Queue):
        pass

    app = guarded_app(task_queues=[Broadcast("tell-all"), Own("own"), Queue("plain")])
    assert {name: type(queue) for name, queue in app.amqp.queues.items() if name in ("own", "plain")} == {"own": Own, "plain": GuardedQueue}
    assert type(app.amqp.queues["tell-all"]) is Broadcast


def test_installing_does_not_load_the_configuration():
    app = Celery("shop", set_as_current=False)
    app.config_from_object("no.such.module")

    def settings() -> Settings:
        raise AssertionError("asked too early")

    install(app, settings)
    assert not app.configured


def test_installing_twice_is_the_same_as_once():
    app = guarded_app()
    install(app, Settings(dead_letter_exchange="other"))
    assert app.amqp.queues["celery"].dead_letter_exchange == "other"
    assert [cls.__name__ for cls in type(app.amqp).__mro__].count("_GuardingAMQP") == 1


def test_an_amqp_class_of_the_users_own_is_kept():
    class OwnQueues(Queues):
        pass

    class Own(AMQP):
        queues_cls = OwnQueues

    app = Celery("shop", broker="memory://", amqp=Own, set_as_current=False)
    install(app, SETTINGS)
    assert isinstance(app.amqp, Own)
    assert isinstance(app.amqp.queues, OwnQueues)
    assert type(app.amqp.queues["celery"]) is GuardedQueue


def test_an_app_can_still_be_pickled():
    app = guarded_app(task_default_queue="q")
    app.amqp.queues["x"]
    again = pickle.loads(pickle.dumps(app))
    assert again.amqp.queues["q"].name == "q"


@pytest.mark.parametrize("duplicate", [copy.copy, lambda queue: pickle.loads(pickle.dumps(queue))], ids=["copy", "pickle"])
def test_copies_of_a_guarded_queue_are_guarded(duplicate):
    queue = GuardedQueue.guard(Queue("q", Exchange("x"), "k", queue_arguments={"x-max-length": 5}, max_priority=3), SETTINGS)
    again = duplicate(queue)
    assert type(again) is GuardedQueue
    assert again == queue
    assert (again.dead_letter_exchange, again.dead_letter_queue, again.max_priority) == ("guardrails.dlx", "q.dead", 3)


def test_the_name_of_a_dead_letter_queue_comes_from_the_setting():
    assert dead_letter_queue_name(Settings(dead_letter_queue="dead:{queue}"), "a.b") == "dead:a.b"


# -- what RabbitMQ sees ---------------------------------------------------------------------------------------------

amqp_only = pytest.mark.brokers("amqp")


@amqp_only
def test_a_new_queue_carries_the_dead_letter_exchange_and_the_users_arguments(broker, queue):
    mine = GuardedQueue.guard(Queue(queue, Exchange(queue), queue, queue_arguments={"x-max-length": 7}, message_ttl=60), SETTINGS)
    declare(broker, mine)
    arguments = arguments_of(broker, queue)
    for expected in ('"x-dead-letter-exchange","guardrails.dlx"', f'"x-dead-letter-routing-key","{queue}"', '"x-max-length",7', "60000"):
        assert expected in arguments


@amqp_only
def test_a_dead_letter_exchange_of_the_users_own_is_kept(broker, queue):
    mine = GuardedQueue.guard(Queue(queue, queue_arguments={"x-dead-letter-exchange": "own"}), SETTINGS)
    declare(broker, mine)
    arguments = arguments_of(broker, queue)
    assert '"x-dead-letter-exchange","own"' in arguments
    assert "routing-key" not in arguments


@amqp_only
def test_what_the_broker_rejects_before_any_worker_ran_is_a_dead_letter(broker, queue):
    """The publisher is the first to declare; with no dead letter queue yet, what expires would be gone."""
    declare(broker, GuardedQueue.guard(Queue(queue, message_ttl=0.05), SETTINGS))
    broker.publish_raw(queue, b"x")
    eventually(lambda: broker.depth(f"{queue}.dead") == 1)


@amqp_only
def test_a_quorum_queue_keeps_what_dies_until_its_dead_letter_is_confirmed(broker, queue):
    """It wants a full queue to refuse what comes: where a queue is told otherwise, it is left so."""
    app = guarded_app(broker.url, task_default_queue=f"{queue}.default", task_default_queue_type="quorum")
    declare(broker, app.amqp.queues[f"{queue}.default"])
    own = [("quorum", {}), ("classic", {}), ("quorum", {"x-overflow": "drop-head", "x-max-length": 7})]
    for number, (kind, arguments) in enumerate(own):
        declare(broker, GuardedQueue.guard(Queue(f"{queue}.{number}", queue_arguments={"x-queue-type": kind, **arguments}), SETTINGS))
    listed = broker.server.ctl("list_queues", "-p", broker.vhost, "name", "arguments", "--quiet")
    found = {name: arguments for name, _, arguments in (line.partition("\t") for line in listed.splitlines())}
    both = ('"x-dead-letter-strategy","at-least-once"', '"x-overflow","reject-publish"')
    wanted = {"default": True, "0": True, "1": False, "2": False}
    assert {name: all(part in found[f"{queue}.{name}"] for part in both) for name in wanted} == wanted
    assert "reject-publish" not in found[f"{queue}.2"]
    # of the same kind, so that one is there as long as the other
    assert "quorum" in found[f"{queue}.0.dead"]
    assert "quorum" not in found[f"{queue}.1.dead"]


@amqp_only
def test_what_dies_in_a_quorum_queue_while_there_is_no_exchange_for_it_comes_when_there_is(broker, queue):
    retry = "dead_letter_worker_publisher_confirm_timeout"  # milliseconds; three minutes by default
    before = broker.server.ctl("eval", f"{{ok, V}} = application:get_env(rabbit, {retry}), application:set_env(rabbit, {retry}, 300), V.")
    try:
        mine = GuardedQueue.guard(Queue(queue, queue_arguments={"x-queue-type": "quorum"}), SETTINGS)
        declare(broker, mine)
        with broker.connection() as connection:
            connection.default_channel.exchange_delete("guardrails.dlx")
        broker.publish_raw(queue, b"x", expiration=0.05)
        eventually(lambda: broker.depth(queue) == 0, 30)
        consistently(lambda: broker.depth(f"{queue}.dead") == 0)
        with contextlib.closing(make_broker(guarded_app(broker.url), SETTINGS)) as port:
            port.declare([queue])
        eventually(lambda: broker.depth(f"{queue}.dead") == 1, 60)
        assert broker.drain(f"{queue}.dead")[0].headers["x-death"][0]["reason"] == "expired"
    finally:
        broker.server.ctl("eval", f"application:set_env(rabbit, {retry}, {int(before)}).")


@amqp_only
@pytest.mark.parametrize("arguments", [{}, {"x-message-ttl": 60_000}, {"x-queue-type": "quorum"}], ids=["plain", "ttl", "quorum"])
def test_a_queue_that_exists_is_left_as_it_is(broker, queue, arguments):
    with broker.connection() as connection:
        connection.default_channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
    mine = GuardedQueue.guard(Queue(queue, Exchange(queue), queue, queue_arguments={"x-max-length": 7}), SETTINGS)
    declare(broker, mine)
    assert "dead-letter" not in arguments_of(broker, queue)
    with broker.connection() as connection, connection.Producer() as producer:
        producer.publish({}, exchange=queue, routing_key=queue, mandatory=True)
    eventually(lambda: broker.depth(queue) == 1)


@amqp_only
def test_arguments_that_rabbitmq_refuses_are_still_refused(broker, queue):
    mine = GuardedQueue.guard(Queue(queue, queue_arguments={"x-queue-type": "no-such"}), SETTINGS)
    with broker.connection() as connection, pytest.raises(connection.channel_errors, match="x-queue-type"):
        mine.bind(connection.channel()).declare()


@amqp_only
def test_passive_undeclared_and_bound_queues_behave_as_before(broker, queue):
    with broker.connection() as connection:
        channel = connection.channel()
        passive = GuardedQueue.guard(Queue(queue), SETTINGS).bind(channel)
        with pytest.raises(connection.channel_errors, match="NOT_FOUND"):
            passive.queue_declare(passive=True)
    declare(broker, GuardedQueue.guard(Queue(queue, no_declare=True), SETTINGS))
    assert not broker.exists(queue)
    exchange = Exchange(queue, type="topic")
    declare(broker, GuardedQueue.guard(Queue(queue, [binding(exchange, "a.*"), binding(exchange, "b")]), SETTINGS))
    with broker.connection() as connection, connection.Producer() as producer:
        for key in ("a.x", "b", "c"):
            producer.publish({}, exchange=queue, routing_key=key)
    eventually(lambda: broker.depth(queue) == 2)


@amqp_only
def test_many_publishers_that_declare_at_once_all_succeed(broker, queue):
    failures: list[BaseException] = []
    barrier = threading.Barrier(8)

    def publish() -> None:
        try:
            barrier.wait(10)
            app = guarded_app(broker.url, task_default_queue=queue)
            with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
                app.send_task("x", producer=producer)
        except Exception as exc:  # noqa: BLE001 - whatever it is
            failures.append(exc)

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    eventually(lambda: broker.depth(queue) == 8)


@amqp_only
def test_a_publisher_meets_no_error_on_a_queue_declared_otherwise_nor_with_a_queue_object(broker, queue):
    with broker.connection() as connection:
        connection.default_channel.queue_declare(queue, durable=True, auto_delete=False, arguments={"x-max-length": 9})
    app = guarded_app(broker.url, task_default_queue=queue)
    other = Queue(f"{queue}.other", Exchange(f"{queue}.other"), "k")
    app.send_task("x")
    app.send_task("x", queue=other)
    app.send_task("x", queue=f"{queue}.created")
    app.close()
    eventually(lambda: [broker.depth(name) for name in (queue, other.name, f"{queue}.created")] == [1, 1, 1])
    assert "guardrails.dlx" in arguments_of(broker, other.name)
    assert "guardrails.dlx" in arguments_of(broker, f"{queue}.created")


def test_publishing_and_consuming_work_on_each_broker(broker, queue):
    app = guarded_app(broker.url, task_default_queue=queue)
    app.send_task("x", args=[1])
    with app.connection_for_read() as connection:
        got: list[Any] = []
        with app.amqp.TaskConsumer(connection.channel(), on_message=lambda message: (got.append(message), message.ack())):
            eventually(lambda: got or connection.drain_events(timeout=1), ignoring=(OSError,))
    app.close()
    assert got[0].headers["task"] == "x"


def test_dead_letter_queues_are_declared_for_all_queues(broker, queue):
    app = guarded_app(broker.url, task_default_queue=queue)
    port: Any = make_broker(app, SETTINGS)
    declare_dead_letters(port, [queue, f"{queue}.two"])
    port.close()
    with broker.connection() as connection, connection.Producer() as producer:
        producer.publish(b"x", exchange="guardrails.dlx", routing_key=f"{queue}.two", content_type="x", content_encoding="binary")
        if broker.kind == "redis":
            assert connection.default_channel.get_table("guardrails.dlx")
        else:
            eventually(lambda: broker.depth(f"{queue}.two.dead") == 1)
