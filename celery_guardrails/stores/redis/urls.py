"""Store URLs of Redis and Valkey: one server, a Unix socket, Sentinel, a cluster, each with TLS or without.

    redis://[user:password@]host[:6379]/[DB]
    unix:///path/to/socket?db=DB
    redis+sentinel://[user:password@]host[:26379],host[:26379],…/MASTER[/DB]
    redis+cluster://[user:password@]host[:6379],host[:6379],…

Options follow as a query and are those of redis-py's connections (``socket_timeout``, ``ssl_ca_certs``, ``client_name`` …).
User and password are the Redis servers'; what the sentinels themselves want is said with ``sentinel_`` before the name of
an option (``sentinel_password``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.backoff import ConstantBackoff, NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

__all__ = ["Mode", "Place", "parse"]


class Mode(str, Enum):
    """What answers at a place."""

    SERVER = "server"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True)
class Place:
    """Where the records are.

    Args:
        mode: what answers there.
        nodes: host and port of the sentinels, or of the nodes to ask for the others.
        options: of every connection to a server, as redis-py takes them.
        service: the name by which the sentinels know the master.
        sentinel: options of every connection to a sentinel.
        min_other_sentinels: a sentinel that sees fewer is not believed.
    """

    mode: Mode
    nodes: tuple[tuple[str, int], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    service: str = ""
    sentinel: Mapping[str, Any] = field(default_factory=dict, repr=False)
    min_other_sentinels: int = 0


#: Scheme → mode and redis-py's scheme for one connection. Those of Celery and Valkey name the same servers.
_SCHEMES: dict[str, tuple[Mode, str]] = {
    "redis": (Mode.SERVER, "redis"),
    "rediss": (Mode.SERVER, "rediss"),
    "unix": (Mode.SERVER, "unix"),
    "redis+socket": (Mode.SERVER, "unix"),
    "valkey": (Mode.SERVER, "redis"),
    "valkeys": (Mode.SERVER, "rediss"),
    "redis+sentinel": (Mode.SENTINEL, "redis"),
    "rediss+sentinel": (Mode.SENTINEL, "rediss"),
    "redis+cluster": (Mode.CLUSTER, "redis"),
    "rediss+cluster": (Mode.CLUSTER, "rediss"),
}
_PORTS = {Mode.SERVER: 6379, Mode.SENTINEL: 26379, Mode.CLUSTER: 6379}
_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
#: The records are bytes.
_REFUSED = ("decode_responses", "encoding", "encoding_errors")
_PREFIX = "sentinel_"


def parse(url: str) -> Place:
    """Read a store URL; nothing is connected.

    Raises:
        ValueError: it is no such URL; the text shows nothing of user or password.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # whose text shows the user and the password
        raise ValueError("it is not a URL") from None
    mode, scheme = _SCHEMES[parts.scheme]
    query = parse_qsl(parts.query, keep_blank_values=True)
    if parts.scheme == "redis+socket":  # kombu's name of it
        query = [("db" if name == "virtual_host" else name, value) for name, value in query]
    mine, theirs = _split(query) if mode is Mode.SENTINEL else (query, [])
    user, _, hosts = parts.netloc.rpartition("@")
    if scheme == "unix":
        if not parts.path:
            raise ValueError("the path of the socket is missing: unix:///path/to/socket")
        options = _options(f"unix://{user}@{parts.path}" if user else f"unix://{parts.path}", mine)
        return Place(mode, options=_with_defaults(options))
    nodes = _nodes(hosts, user, mode)
    host, port = nodes[0]
    service, database = _path(parts.path, mode)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    options = _options(f"{scheme}://{user}@{address}/{database}" if user else f"{scheme}://{address}/{database}", mine)
    others = _number(options.pop("min_other_sentinels", 0), "min_other_sentinels") if mode is Mode.SENTINEL else 0
    if mode is Mode.CLUSTER and options.pop("db", 0) != 0:
        raise ValueError("a cluster has the database 0 only: leave the number out")
    if mode is not Mode.SERVER:
        del options["host"], options["port"]
    sentinel = _sentinel_options(options, theirs) if mode is Mode.SENTINEL else {}
    return Place(mode, nodes, _with_defaults(options), service, sentinel, others)


def _split(query: Iterable[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the options of the servers and those of the sentinels."""
    mine, theirs = [], []
    for name, value in query:
        if name.startswith(_PREFIX):
            theirs.append((name[len(_PREFIX) :], value))
        else:
            mine.append((name, value))
    return mine, theirs


def _nodes(hosts: str, user: str, mode: Mode) -> tuple[tuple[str, int], ...]:
    names = hosts.split(",") if hosts else ["localhost"]
    if mode is Mode.SERVER and len(names) > 1:
        raise ValueError("one server has one host: several are for redis+sentinel://host,host/MASTER or redis+cluster://host,host")
    if "@" in user and mode is not Mode.SERVER:
        raise ValueError("user and password stand once, before the first host, and an @ in them is written %40")
    return tuple(_node(name, _PORTS[mode]) for name in names)


def _node(name: str, default: int) -> tuple[str, int]:
    parts = urlsplit(f"//{name}")
    try:
        port = parts.port
    except ValueError:
        # nothing of it is shown: it may be a part of a password
        raise ValueError(
            "a port must be a number up to 65535; write :, /, ?, # and @ in a password as %3A, %2F, %3F, %23 and %40"
        ) from None
    if not parts.hostname:
        raise ValueError("a host is missing")
    return unquote(parts.hostname), port or default


def _path(path: str, mode: Mode) -> tuple[str, int]:
    """Return the name of the master and the number of the database."""
    words = [unquote(word) for word in path.split("/") if word]
    service = ""
    if mode is Mode.SENTINEL:
        if not words:
            raise ValueError("the master's name is missing: redis+sentinel://host:26379,host:26379/MASTER/0")
        service, *words = words
    if len(words) > 1:
        raise ValueError("the path has too many parts")
    return service, _number(words[0], "the database") if words else 0


def _number(text: Any, what: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{what} must be a number") from None


def _options(base: str, query: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return what redis-py makes of a URL for one connection, with the types of its own options."""
    options: dict[str, Any] = dict(parse_url(f"{base}?{urlencode(list(query))}"))
    for name in _REFUSED:
        if name in options:
            raise ValueError(f"{name} cannot be used here")
    for name in _FILES:
        if name in options and not os.path.exists(options[name]):
            raise ValueError(f"{name}: there is no {options[name]!r}")
    if isinstance(options.get("ssl_cert_reqs"), str):  # Celery writes CERT_REQUIRED for redis-py's "required"
        options["ssl_cert_reqs"] = options["ssl_cert_reqs"].lower().removeprefix("cert_")
    return options


def _with_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "socket_timeout": 5.0,
        # redis-py 4 does not take it for a Unix socket, where it says little
        **({"socket_connect_timeout": 2.0} if "path" not in options else {}),
        # the first command after a server's restart meets a dead connection: every script may be repeated, so repeat it
        "retry": Retry(ConstantBackoff(0.05), 1),
        "health_check_interval": 0,
        **options,
    }


def _sentinel_options(options: Mapping[str, Any], query: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the sentinels' own options; TLS is as the servers' where they do not say otherwise."""
    chosen = _options("redis://localhost/", query)
    for name in ("host", "port", "db"):
        chosen.pop(name, None)
    secure = str(chosen.pop("ssl", "connection_class" in options)).lower() in ("1", "true", "yes")
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")} if secure else {}
    return {
        "socket_timeout": 2.0,
        "socket_connect_timeout": 2.0,
        # the next sentinel is asked instead; redis-py's default waits for seconds at each that is away
        "retry": Retry(NoBackoff(), 0),
        "ssl": secure,
        **tls,
        **chosen,
    }
