"""The servers and the deployment of a soak; nothing of it outlives the process."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from celery_guardrails.policy.deadletter import DeathCertificate
from celery_guardrails.policy.delivery import DEAD_LETTER_HEADER, RawMessage
from tests.support import BrokerUnderTest, Deployment, Ledger, Proxy, RabbitNode, RedisServer, Workers
from tests.support.postgres import PostgresServer

from .app import effects, key_of, metadata

#: Seconds of a lease; a frozen worker stays so for longer.
LEASE = 4.0
STORES = ("redis", "sqlite", "postgres")
SETTINGS = {
    "guardrails_lease_seconds": LEASE,
    "guardrails_drain_seconds": 5,
    "worker_prefetch_multiplier": 4,
    "result_expires": 86400,
}
#: On Redis what a dead worker held comes back after so many seconds.
REDIS = {"visibility_timeout": 8, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
#: Header by which a bad message is known again: it has no readable task.
NAME_HEADER = "soak"


class Site:
    """Private servers, a proxy before the broker, and the app deployed on them.

    Args:
        directory: for data, logs and ledger.
        broker: ``"redis"`` or ``"amqp"``.
        store: one of :data:`STORES`; a database has the effects too, and tasks are atomic.
    """

    def __init__(self, directory: Path, *, broker: str, store: str) -> None:
        self.broker_kind, self.store_kind = broker, store
        self.atomic = store != "redis"
        self._directory = directory
        self._stack = ExitStack()
        self.ledger = Ledger(directory / "ledger.jsonl")
        self.workers = Workers(directory / "workers")
        self.broker: RedisServer | RabbitNode
        self.store: RedisServer | PostgresServer | None = None
        self.proxy: Proxy
        self.deployment: Deployment
        self._engine: Any = None
        self._read_at = 0
        self._in_file: Counter[str] = Counter()

    def __enter__(self) -> Site:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        path = self._directory
        self.broker = RedisServer(path / "broker", persistent=True) if self.broker_kind == "redis" else RabbitNode(path / "mq")
        self._stack.callback(self._end, self.broker.start())
        # The result backend is never killed: what Celery's chords do without it is not what is asked here.
        backend = RedisServer(path / "backend")
        self._stack.callback(self._end, backend.start())
        self.proxy = self._stack.enter_context(Proxy(self.broker.port))
        url = self.broker.url() if isinstance(self.broker, RabbitNode) else self.broker.url(1)
        self.deployment = Deployment(
            "tests.chaos.soak.app",
            broker=BrokerUnderTest(self.broker_kind, url, self.broker),
            store_url=self._store_url(),
            backend_url=backend.url(1),
            queue="soak",
            namespace="soak",
            ledger=self.ledger,
            workers=self.workers,
            settings={**SETTINGS, **({"broker_transport_options": REDIS} if self.broker_kind == "redis" else {})},
            env={"SOAK_ATOMIC": "1" if self.atomic else "0"},
        )
        self._stack.callback(self.deployment.close)
        self._stack.callback(self.workers.destroy)

    def _store_url(self) -> str:
        if self.store_kind == "redis":
            self.store = RedisServer(self._directory / "store", persistent=True)
            self._stack.callback(self._end, self.store.start())
            return self.store.url(1)
        if self.store_kind == "postgres":
            self.store = PostgresServer()
            self._stack.callback(self.store.close)
            self.store.start()
            url = self.store.admin_url.replace("postgresql://", "postgresql+psycopg://")
        else:
            url = f"sqlite:///{self._directory / 'store.sqlite3'}"
        self._engine = sa.create_engine(url)
        self._stack.callback(self._engine.dispose)
        metadata.create_all(self._engine)
        return f"sqlalchemy+{url}"

    @staticmethod
    def _end(server: RedisServer | RabbitNode) -> None:
        if server.alive():
            server.kill()

    @property
    def worker_env(self) -> dict[str, str]:
        """Variables of the workers: they reach the broker through the proxy."""
        return {"TESTAPP_BROKER_URL": self.proxy.through(self.deployment.broker.url)}

    # -- what became of the tasks -------------------------------------------------------------------------------

    def effects(self) -> Counter[str]:
        """Return the number of effects of each name, so far."""
        self._read_file()
        if not self.atomic:
            return Counter(self._in_file)
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(effects.c.name, sa.func.count()).group_by(effects.c.name))
            return self._in_file + Counter({name: int(count) for name, count in rows})

    def _read_file(self) -> None:
        # Of a long soak the file is long: what was read is not read again.
        if not self.ledger.path.exists():
            return
        with self.ledger.path.open("rb") as file:
            file.seek(self._read_at)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        self._read_at += len(text)
        marks = (b'{"event": "effect", "key": "',)
        self._in_file.update(line.split(b'"', 8)[7].decode() for line in text.splitlines() if line.startswith(marks))

    def letters(self) -> dict[str, list[str]]:
        """Return the reasons of the dead letters of each name; they stay where they are."""
        found: dict[str, list[str]] = {}
        with closing(self.deployment.guardrails.broker.browse(self.deployment.dead_queue)) as letters:
            for letter in letters:
                name, reason = read_letter(letter.message)
                found.setdefault(name, []).append(reason)
        return found

    def whereabouts(self, name: str) -> str:
        """Say where a task was last seen: its record in the store, and the last lines of its ledger."""
        record = self.deployment.guardrails.lookup(key_of(name))
        lines = [f"{entry.event} (pid {entry.pid}, {entry.fields})" for entry in self.ledger.entries(key=name)[-4:]]
        return f"{name}: record {record.state.value if record else 'none'}; ledger: {'; '.join(lines) or 'nothing'}"


def read_letter(message: RawMessage) -> tuple[str, str]:
    """Return the name and the reason of a dead letter."""
    headers = message.headers
    certificate = DeathCertificate.from_header(headers.get(DEAD_LETTER_HEADER))
    if certificate is None:
        return str(headers.get(NAME_HEADER) or headers.get("id")), "broker"
    name = headers.get(NAME_HEADER) or (certificate.key or "").removeprefix("soak:") or certificate.task_id
    return str(name), certificate.reason
