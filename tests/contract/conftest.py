"""Servers of the Redis store: with TLS, on a Unix socket, behind sentinels, and as a cluster."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from celery_guardrails.ports import IdempotencyStore
from celery_guardrails.stores import open_store
from tests.conftest import missing
from tests.support import RedisServer
from tests.support.provision import REDIS_MEND
from tests.support.redis import find_server
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_sentinel import SentinelSetup
from tests.support.redis_tls import TlsRedis


@pytest.fixture(scope="session")
def _redis_program() -> None:
    if find_server() is None:
        missing(REDIS_MEND)


@pytest.fixture(scope="session")
def redis_cluster(_redis_program: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """The session's own cluster of three. Not to be stopped: ask ``private_cluster`` for one that may be."""
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster")).start()
    yield cluster
    cluster.kill()


@pytest.fixture(scope="session")
def redis_sentinel(_redis_program: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelSetup]:
    """The session's own master, replica and sentinels. Not to be stopped: ask ``private_sentinel`` for some that may be."""
    setup = SentinelSetup(tmp_path_factory.mktemp("sentinel")).start()
    yield setup
    setup.kill()


@pytest.fixture(scope="session")
def redis_tls(_redis_program: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRedis]:
    """A server that is spoken to with TLS."""
    server = TlsRedis(tmp_path_factory.mktemp("tls")).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_socket(_redis_program: None) -> Iterator[Path]:
    """The Unix socket of a server."""
    directory = Path(tempfile.mkdtemp(prefix="gr"))  # the path of a socket has 104 bytes at most, pytest's are longer
    server = RedisServer(directory, args=("--unixsocket", str(directory / "redis.sock"))).start()
    yield directory / "redis.sock"
    server.stop()
    shutil.rmtree(directory)


@pytest.fixture
def private_cluster(_redis_program: None, tmp_path: Path) -> Iterator[Callable[..., RedisCluster]]:
    """Start clusters whose nodes the test may kill: ``private_cluster(replica=True)``."""
    clusters: list[RedisCluster] = []

    def start(**options: bool) -> RedisCluster:
        clusters.append(RedisCluster(tmp_path / f"cluster{len(clusters)}", **options))
        return clusters[-1].start()

    yield start
    for cluster in clusters:
        cluster.kill()


@pytest.fixture
def private_sentinel(_redis_program: None, tmp_path: Path) -> Iterator[SentinelSetup]:
    """A master, a replica and sentinels that the test may kill."""
    setup = SentinelSetup(tmp_path / "sentinel")
    yield setup.start()
    setup.kill()


@pytest.fixture
def opened(request: pytest.FixtureRequest) -> Iterator[Callable[..., IdempotencyStore]]:
    """Open stores that are closed with the test: ``opened(url)``."""
    stores: list[IdempotencyStore] = []

    def open_one(url: str, namespace: str = "test") -> IdempotencyStore:
        stores.append(open_store(url, namespace=namespace))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()
