"""Records in a cluster: each on the node that has the slot of its key.

The map of the slots, redirections (MOVED, ASK) and the look-out for new nodes are redis-py's. Where nothing is unusual a
script goes straight to its node on a connection of our own, as on one server: redis-py's way takes three times the CPU.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.cluster import PRIMARY, REDIS_ALLOWED_KEYS, ClusterNode, RedisCluster
from redis.exceptions import AskError, ClusterDownError, MovedError, NoScriptError, RedisClusterException, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from .runner import FAILURES, Head, heads_of, script_texts, sha_of
from .scripts import Scripts
from .urls import Place
from .vitals import vitals

__all__ = ["Cluster"]

T = TypeVar("T")

#: A node does not answer.
_AWAY = (RedisConnectionError, RedisTimeoutError, OSError)
#: A node sends us elsewhere (MOVED is an ASK to redis-py), or does not know itself yet.
_REDIRECTED = (AskError, TryAgainError, ClusterDownError)
#: redis-py took this name for something else before 6: retries on a connection, not of a command.
_RETRIES_HAVE_A_NAME = int(redis.__version__.partition(".")[0]) < 6


class _Client(RedisCluster):
    """redis-py's client, which knows the node that an ASK names also when it is new in the cluster.

    redis-py (cluster.py, ``_execute_command``) looks for it among the nodes that have slots, and goes on with None.
    """

    def get_node(self, host: str | None = None, port: int | None = None, node_name: str | None = None) -> Any:
        found = RedisCluster.get_node(self, host, port, node_name)
        if found is None and node_name:
            address, _, number = node_name.rpartition(":")
            found = self.nodes_manager.nodes_cache.setdefault(node_name, ClusterNode(address, int(number), PRIMARY))
        return found


class _Process:
    """What one process has of a cluster."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.client: RedisCluster | None = None
        #: by the name of the node
        self.scripts: dict[str, Scripts] = {}


class Cluster:
    """A :class:`~.runner.Runner` on a cluster; safe among threads and after a fork.

    Args:
        connect: returns a client of redis-py that has found the nodes.
    """

    together = False

    def __init__(self, connect: Callable[[], RedisCluster]) -> None:
        self._connect = connect
        self._texts = script_texts()
        self._shas = {name: sha_of(text) for name, text in self._texts.items()}
        # A child leaves its parent's client alone, locks and all: another thread may have held one at the fork.
        self._processes: dict[int, _Process] = {}

    @classmethod
    def at(cls, place: Place) -> Cluster:
        """Return the cluster at a place; it is connected to with the first call.

        Raises:
            ValueError, TypeError, redis.exceptions.RedisError: the options are not redis-py's.
        """
        options = dict(place.options)
        # redis-py's pools look for themselves whether an idle connection has been closed
        del options["retry"], options["health_check_interval"]
        dropped = sorted(set(options) - set(REDIS_ALLOWED_KEYS))
        if dropped:
            raise ValueError(f"{', '.join(dropped)}: redis-py {redis.__version__} has no such option for a cluster")
        secure = options.pop("connection_class", None) is not None
        probe = redis.SSLConnection if secure else redis.Connection
        probe(**{name: value for name, value in options.items() if name != "max_connections"})
        extra: dict[str, Any] = {"cluster_error_retry_attempts": 0} if _RETRIES_HAVE_A_NAME else {"retry": Retry(NoBackoff(), 0)}
        if secure:
            extra["ssl"] = True

        def connect() -> RedisCluster:
            nodes = [ClusterNode(host, port) for host, port in place.nodes]
            # what a part of the nodes cannot do is said key by key
            return _Client(startup_nodes=nodes, require_full_coverage=False, **options, **extra)

        return cls(connect)

    def run(self, name: str, key: str, *args: Any) -> Any:
        """See :class:`~.runner.Runner`."""
        return self._with_client(lambda client: self._run(client, name, key, args))

    def _run(self, client: RedisCluster, name: str, key: str, args: Sequence[Any]) -> Any:
        try:
            node = client.nodes_manager.get_node_from_slot(client.keyslot(key))
            return self._scripts(client, node).once(name, key, *args)
        except _AWAY:
            client.nodes_manager.initialize()
        except (*_REDIRECTED, RedisClusterException):
            pass
        return self._routed(client, name, key, args)

    def _scripts(self, client: RedisCluster, node: ClusterNode) -> Scripts:
        scripts = self._process().scripts
        found = scripts.get(node.name)
        if found is None:
            found = scripts.setdefault(node.name, Scripts(client.get_redis_connection(node), self._texts))
        return found

    def _routed(self, client: RedisCluster, name: str, key: str, args: Sequence[Any]) -> Any:
        """Run a script redis-py's way, which finds the node wherever it is."""
        try:
            return client.execute_command("EVALSHA", self._shas[name], 1, key, *args)
        except NoScriptError:
            # the same with the text: the node then knows it, whichever it is after all redirections
            return client.execute_command("EVAL", self._texts[name], 1, key, *args)

    def run_many(self, name: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """See :class:`~.runner.Runner`; one round trip to each node that is concerned.

        redis-py's own pipeline for clusters refuses EVALSHA, and would ask the server for the key of every one.
        """
        return self._with_client(lambda client: self._run_many(client, name, calls))

    def _run_many(self, client: RedisCluster, name: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        answers: list[Any] = [None] * len(calls)
        numbers = list(range(len(calls)))
        for last in (False, True):
            away = self._round(client, name, calls, numbers, answers)
            if not away or last:
                break
            numbers = away
            client.nodes_manager.initialize()  # who has their slots now?
        if any(isinstance(answer, MovedError) for answer in answers):
            client.nodes_manager.initialize()
        for number, answer in enumerate(answers):
            if isinstance(answer, (*_REDIRECTED, NoScriptError)):
                answers[number] = self._alone(client, name, calls[number])
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    def _round(
        self, client: RedisCluster, name: str, calls: Sequence[tuple[Any, ...]], numbers: list[int], answers: list[Any]
    ) -> list[int]:
        """Ask every node once, put what it said in ``answers``, and return the calls whose node is away."""
        away: list[int] = []
        nodes: dict[str, tuple[ClusterNode, list[int]]] = {}
        for number in numbers:
            try:
                node = client.nodes_manager.get_node_from_slot(client.keyslot(calls[number][0]))
            except RedisClusterException as exc:  # nobody has the slot
                answers[number] = exc
                away.append(number)
            else:
                nodes.setdefault(node.name, (node, []))[1].append(number)
        for node, mine in nodes.values():
            try:
                found = self._at_server(client.get_redis_connection(node), name, [calls[number] for number in mine])
            except _AWAY as exc:
                found = [exc] * len(mine)
                away += mine
            for number, answer in zip(mine, found, strict=True):
                answers[number] = answer
        return away

    def _at_server(self, server: Any, name: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Return the answers of one node, errors among them."""
        answers: list[Any] = []
        for _ in range(2):
            pipeline = server.pipeline(transaction=False)
            for key, *args in calls:
                pipeline.evalsha(self._shas[name], 1, key, *args)
            answers = pipeline.execute(raise_on_error=False)
            if not any(isinstance(answer, NoScriptError) for answer in answers):
                break
            server.script_load(self._texts[name])
        return answers

    def _alone(self, client: RedisCluster, name: str, call: tuple[Any, ...]) -> Any:
        key, *args = call
        try:
            return self._routed(client, name, key, args)
        except FAILURES as exc:
            return exc  # raised when the others have been done

    def heads(self, pattern: str) -> Iterator[list[Head]]:
        """See :class:`~.runner.Runner`; one node after the other. What moves to a node that was read already is not seen."""
        self._with_client(lambda client: client.nodes_manager.initialize())
        for server in self._with_client(self._servers):
            yield from heads_of(server, pattern)

    def delete(self, key: str) -> int:
        """See :class:`~.runner.Runner`."""
        return int(self._with_client(lambda client: client.delete(key)))

    def time(self) -> tuple[int, int]:
        """See :class:`~.runner.Runner`; that of the first node that answers."""
        return self._with_client(self._time)

    def _time(self, client: RedisCluster) -> tuple[int, int]:
        failure: Exception = RedisConnectionError("the cluster has no node with slots")
        for server in self._servers(client):
            try:
                seconds, microseconds = server.time()
                return int(seconds), int(microseconds)
            except _AWAY as exc:
                failure = exc
        raise failure

    def ping(self) -> None:
        """See :class:`~.runner.Runner`; every node with slots must answer."""
        self._with_client(self._ping)

    def _ping(self, client: RedisCluster) -> None:
        client.nodes_manager.initialize()
        for server in self._servers(client):
            server.ping()

    def vitals(self) -> list[dict[str, Any]]:
        """See :class:`~.runner.Runner`."""
        return self._with_client(lambda client: [vitals(server) for server in self._servers(client)])

    @staticmethod
    def _servers(client: RedisCluster) -> list[Any]:
        return [client.get_redis_connection(node) for node in client.get_primaries()]

    def close(self) -> None:
        """See :class:`~.runner.Runner`."""
        mine = self._processes.pop(os.getpid(), None)
        if mine is None:
            return
        for scripts in mine.scripts.values():
            scripts.close()
        if mine.client is not None:
            with contextlib.suppress(*FAILURES):
                mine.client.close()

    def _process(self) -> _Process:
        pid = os.getpid()
        return self._processes.get(pid) or self._processes.setdefault(pid, _Process())

    def _with_client(self, call: Callable[[RedisCluster], T]) -> T:
        mine = self._process()
        try:
            if mine.client is None:
                with mine.lock:
                    if mine.client is None:
                        mine.client = self._connect()
            return call(mine.client)
        except LookupError as exc:
            # redis-py (cluster.py): a node without slots was asked for the cluster, or a slot that nobody had has moved
            raise RedisConnectionError(f"the cluster is being rebuilt: {exc!r}") from exc
