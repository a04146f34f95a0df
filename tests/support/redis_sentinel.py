"""A private Redis (or Valkey) with a replica, and sentinels that make it the master when the first one dies."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path

from . import processes
from .redis import RedisServer, find_server
from .waiting import eventually

#: The sentinels' name for the master.
SERVICE = "main"
#: The sentinels' own password.
PASSWORD = "open/sesame"


class Sentinel:
    """One sentinel process on a loopback port.

    Args:
        directory: for its configuration, which it rewrites, and its log.
        master: the server to watch.
    """

    def __init__(self, directory: Path, master: RedisServer) -> None:
        self.directory = directory
        self.port = 0
        self._master = master
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Sentinel:
        """Start; returns when it knows its master."""
        binary = find_server()
        assert binary is not None
        self.directory.mkdir(parents=True)
        self.port = processes.free_port()
        config = self.directory / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.directory}\n"
            f"requirepass {PASSWORD}\nsentinel sentinel-pass {PASSWORD}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {self._master.port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} 500\n"
            f"sentinel failover-timeout {SERVICE} 3000\n"
        )
        self._process = processes.spawn([binary, str(config), "--sentinel"], log=self.directory / "sentinel.log")
        eventually(partial(processes.listens, self.port), 20, because=self.log)
        return self

    def knows(self, sentinels: int) -> bool:
        """Whether it sees that many others, and one replica."""
        import redis

        with redis.Redis(port=self.port, password=PASSWORD) as client:
            state = client.sentinel_master(SERVICE)
        return int(state["num-other-sentinels"]) == sentinels and int(state["num-slaves"]) == 1

    def kill(self) -> None:
        """SIGKILL; quiet when it is down already."""
        if self._process is not None and self._process.poll() is None:
            processes.end(self._process)

    def log(self) -> str:
        """The last lines of its log."""
        return processes.tail(self.directory / "sentinel.log")


class SentinelSetup:
    """A master, a replica and three sentinels.

    Args:
        directory: for data and logs.
    """

    def __init__(self, directory: Path) -> None:
        at_once = ("--repl-diskless-sync-delay", "0")
        self.servers = [RedisServer(directory / f"server{number}", args=at_once) for number in (0, 1)]
        self.sentinels = [Sentinel(directory / f"sentinel{number}", self.servers[0]) for number in range(3)]

    def url(self, database: int = 0, *, user: str = "") -> str:
        """URL of all sentinels; ``user`` is the servers' ``name:password``."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        password = PASSWORD.replace("/", "%2F")
        return f"redis+sentinel://{user + '@' if user else ''}{hosts}/{SERVICE}/{database}?sentinel_password={password}"

    def start(self) -> SentinelSetup:
        """Start all and wait until they know each other; nothing is left of them where that fails."""
        try:
            first, second = (server.start() for server in self.servers)
            with second.client() as client:
                client.replicaof("127.0.0.1", first.port)
                eventually(lambda: client.info("replication").get("master_link_status") == "up", 20, because=second.log)
            for sentinel in self.sentinels:
                sentinel.start()
            eventually(lambda: all(sentinel.knows(2) for sentinel in self.sentinels), 30, because=self.log)
        except BaseException:
            self.kill()
            raise
        return self

    def role(self, server: RedisServer) -> str:
        """Return ``master`` or ``slave``."""
        with server.client() as client:
            role: str = client.info("replication")["role"]
            return role

    def master(self) -> RedisServer:
        """Return the living server that is master."""
        return next(server for server in self.servers if server.alive() and self.role(server) == "master")

    def kill(self) -> None:
        """SIGKILL all that runs."""
        for sentinel in self.sentinels:
            sentinel.kill()
        for server in self.servers:
            if server.alive():
                server.kill()

    def log(self) -> str:
        """The last lines of the sentinels' logs."""
        return "\n".join(f"--- {sentinel.port}\n{sentinel.log()}" for sentinel in self.sentinels)
