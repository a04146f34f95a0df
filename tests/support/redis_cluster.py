"""A private Redis (or Valkey) cluster whose nodes a test may kill, add, and move slots between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import processes
from .redis import RedisServer
from .waiting import eventually

SLOTS = 16384
#: The nodes talk to each other on their port plus this.
BUS = 10_000
#: A cluster has one database; a node that does not answer for half a second is taken for dead,
#: and a replica is served at once, not after five.
OPTIONS = (
    *("--databases", "1", "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"),
    *("--cluster-node-timeout", "500", "--cluster-require-full-coverage", "no"),
    *("--repl-diskless-sync-delay", "0"),
)


class RedisCluster:
    """Primaries that share the slots evenly, on loopback ports.

    Args:
        directory: for data and logs.
        primaries: number of nodes with slots.
        replica: whether the first of them gets a replica, which takes over when it dies.
    """

    def __init__(self, directory: Path, *, primaries: int = 3, replica: bool = False) -> None:
        self.directory = directory
        self.nodes: list[RedisServer] = []
        self._primaries = primaries
        self._replica = replica

    def url(self, *, user: str = "") -> str:
        """URL of all nodes; ``user`` is ``name:password``."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"redis+cluster://{user + '@' if user else ''}{hosts}"

    def start(self) -> RedisCluster:
        """Start the nodes and wait until they agree; nothing is left of them where that fails."""
        try:
            for _ in range(self._primaries):
                self._launch()
            for number, node in enumerate(self.nodes):
                with node.client() as client:
                    client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                    first, end = (SLOTS * step // self._primaries for step in (number, number + 1))
                    client.execute_command("CLUSTER ADDSLOTS", *range(first, end))
                    self._meet(client)
            self._settle()
            if self._replica:
                self.add_replica(self.nodes[0])
        except BaseException:
            self.kill()
            raise
        return self

    def add_node(self) -> RedisServer:
        """Start a node without slots that belongs to the cluster."""
        node = self._launch()
        with node.client() as client:
            self._meet(client)
        self._settle()
        return node

    def add_replica(self, primary: RedisServer) -> RedisServer:
        """Start a node that follows another."""
        node = self.add_node()
        with node.client() as client:
            client.execute_command("CLUSTER REPLICATE", self.identity(primary))
            eventually(lambda: client.info("replication").get("master_link_status") == "up", 20, because=node.log)
        # the others must know of it as well, or it gets no votes
        eventually(lambda: all(self._knows_replica(other, primary, node) for other in self.nodes), 20, because=self.log)
        return node

    def identity(self, node: RedisServer) -> str:
        """Return the name by which the cluster knows a node."""
        with node.client() as client:
            name: bytes = client.execute_command("CLUSTER MYID")
            return name.decode()

    def slot(self, key: str) -> int:
        """Return the slot of a key, as the servers see it."""
        with self._alive()[0].client() as client:
            return int(client.execute_command("CLUSTER KEYSLOT", key))

    def owner(self, slot: int) -> RedisServer:
        """Return the node that serves a slot, as the first living node sees it."""
        with self._alive()[0].client() as client:
            for row in client.execute_command("CLUSTER SLOTS"):
                if int(row[0]) <= slot <= int(row[1]):
                    return next(node for node in self.nodes if node.port == int(row[2][1]))
        raise LookupError(f"nobody has slot {slot}")

    def begin_move(self, slot: int, target: RedisServer) -> None:
        """Open a slot for moving: what is not there any more is asked for at the target."""
        source = self.owner(slot)
        with target.client() as there, source.client() as here:
            there.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", self.identity(source))
            here.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", self.identity(target))

    def move_keys(self, slot: int, target: RedisServer) -> int:
        """Move the keys of an open slot that are there now; how many."""
        with self.owner(slot).client() as here:
            keys = here.execute_command("CLUSTER GETKEYSINSLOT", slot, 1000)
            for key in keys:
                here.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
            return len(keys)

    def end_move(self, slot: int, target: RedisServer) -> None:
        """Give an empty open slot to the target."""
        identity, source = self.identity(target), self.owner(slot)
        for node in (target, source, *(other for other in self._alive() if other not in (target, source))):
            with node.client() as client:
                client.execute_command("CLUSTER SETSLOT", slot, "NODE", identity)

    def kill(self) -> None:
        """SIGKILL all that runs."""
        for node in self.nodes:
            if node.alive():
                node.kill()

    def log(self) -> str:
        """The last lines of all logs."""
        return "\n".join(f"--- {node.port}\n{node.log()}" for node in self.nodes)

    def _launch(self) -> RedisServer:
        node = RedisServer(self.directory / f"node{len(self.nodes)}", args=OPTIONS)
        node.port = _port_with_bus()
        self.nodes.append(node)
        return node.start()

    def _alive(self) -> list[RedisServer]:
        return [node for node in self.nodes if node.alive()]

    def _meet(self, client: Any) -> None:
        client.execute_command("CLUSTER MEET", "127.0.0.1", self.nodes[0].port)

    def _settle(self) -> None:
        eventually(lambda: all(self._agrees(node) for node in self._alive()), 30, because=self.log)

    def _agrees(self, node: RedisServer) -> bool:
        with node.client() as client:
            info = client.execute_command("CLUSTER INFO")
            if isinstance(info, bytes):
                info = dict(line.split(":", 1) for line in info.decode().split())
            known = len(self.nodes) == int(info["cluster_known_nodes"])
            rows = client.execute_command("CLUSTER SLOTS")
        return info["cluster_state"] == "ok" and known and sum(int(row[1]) - int(row[0]) + 1 for row in rows) == SLOTS

    @staticmethod
    def _knows_replica(node: RedisServer, primary: RedisServer, replica: RedisServer) -> bool:
        with node.client() as client:
            rows = client.execute_command("CLUSTER SLOTS")
        return any(int(row[2][1]) == primary.port and [int(other[1]) for other in row[3:]] == [replica.port] for row in rows)


def _port_with_bus() -> int:
    """Return a free port whose bus port is free, too, and below those of outgoing connections as well."""
    for _ in range(200):
        port = processes.free_port()
        if port + BUS < 32_768 and processes.is_free(port + BUS):
            return port
    raise RuntimeError("no two free ports that are 10000 apart")
