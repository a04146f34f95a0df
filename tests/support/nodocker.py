"""A Docker client without Docker: what pytest-celery asks of one, done with local processes.

pytest-celery reaches Docker in one place only, its ``docker_client`` fixture. :class:`LocalClient` stands in for what that
fixture returns: ``redis:…`` and ``rabbitmq:…`` images become private servers, every other image becomes the command that
is run in it, and a volume is a directory. Names are those of docker-py, whose duck this is.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from . import processes
from .rabbitmq import RabbitNode
from .redis import RedisServer


class _Program(Protocol):
    """What runs in a container."""

    def start(self) -> object: ...
    def signal(self, number: int) -> None: ...
    def alive(self) -> bool: ...
    def wait(self, timeout: float) -> int: ...
    def logs(self) -> str: ...


class _Server:
    """A private Redis or RabbitMQ."""

    def __init__(self, server: RedisServer | RabbitNode, logs: Path) -> None:
        self.server = server
        self._logs = logs

    def start(self) -> object:
        return self.server.start()

    def signal(self, number: int) -> None:
        if number == signal.SIGKILL:
            self.server.kill()
        else:
            self.server.stop()

    def alive(self) -> bool:
        return self.server.alive()

    def wait(self, timeout: float) -> int:
        self.server.stop()
        return 0

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self._logs.glob("*")) if path.suffix in (".log", ".out"))


class _Command:
    """A command of an image, in a directory of its own."""

    def __init__(self, command: list[str], directory: Path, environment: Mapping[str, str]) -> None:
        self.directory = directory
        self.environment = dict(environment)
        self._command = command
        self._log = directory.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> object:
        self._process = processes.spawn(self._command, log=self._log, env=self.environment, cwd=self.directory)
        return self._process

    def signal(self, number: int) -> None:
        assert self._process is not None
        if number == signal.SIGKILL:
            processes.end(self._process)
        else:
            self._process.send_signal(number)

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self, timeout: float) -> int:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):  # docker kills what did not stop in time
            self._process.wait(timeout)
        return processes.end(self._process)

    def logs(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""


class LocalContainer:
    """docker-py's Container."""

    def __init__(
        self,
        program: _Program | None,
        *,
        image: str,
        environment: Mapping[str, str],
        ports: Mapping[str, int],
        labels: Any,
        shared: bool = False,
    ) -> None:
        self.id = uuid.uuid4().hex * 2
        self.short_id = self.id[:12]
        self.name = f"local-{image.partition(':')[0]}-{self.id[:6]}"
        self.labels = labels or {}
        self.volumes: dict[str, Path] = {}
        self.status = "created"
        self._image = image
        self._environment = environment
        self._ports = ports
        self._program = program
        self._shared = shared

    @property
    def attrs(self) -> dict[str, Any]:
        """What ``docker inspect`` says, as far as it is asked for."""
        # The hostname goes into URLs as it is: with the port in it, containers need no addresses of their own.
        host = "".join(f"127.0.0.1:{port}" for port in self._ports.values()) or "localhost"
        return {
            "Config": {
                "Hostname": host,
                "Env": [f"{name}={value}" for name, value in self._environment.items()],
                "Labels": self.labels,
                "Image": self._image,
            },
            "NetworkSettings": {
                "Networks": {"local": {"IPAddress": "127.0.0.1"}},
                "Ports": {name: [{"HostIp": "127.0.0.1", "HostPort": str(port)}] for name, port in self._ports.items()},
            },
            "HostConfig": {"PortBindings": {}},
            "Mounts": [],
        }

    def reload(self) -> None:
        """Look at the state again."""
        if self._program is not None:
            self.status = "running" if self._program.alive() else "exited"

    def start(self) -> None:
        """Start it again, with its data and on its ports."""
        if self._program is not None:
            self._program.start()
        self.reload()

    def kill(self, signal: str | int | None = None) -> None:
        """Send a signal to the first process of the container."""
        number = _signal_number(signal)
        if self._program is not None:
            self._program.signal(number)

    def stop(self, timeout: float = 10) -> None:
        """SIGTERM, and SIGKILL after the time."""
        if self._program is not None and self._program.alive():
            self._program.signal(signal.SIGTERM)
            self._program.wait(timeout)
        self.reload()

    def restart(self, timeout: float = 10) -> None:
        """Stop and start."""
        self.stop(timeout)
        self.start()

    def wait(self, timeout: float = 60) -> dict[str, int]:
        """Wait for its end."""
        return {"StatusCode": self._program.wait(timeout) if self._program is not None else 0}

    def remove(self, force: bool = False) -> None:
        """End it; a server that the next container gets goes on."""
        if self._program is not None and not self._shared and self._program.alive():
            self._program.signal(signal.SIGKILL)
        self.status = "removed"

    def logs(self, **_: Any) -> bytes:
        """Everything it printed."""
        return self._program.logs().encode() if self._program is not None else b""

    def exec_run(self, cmd: str | list[str], **_: Any) -> tuple[int, bytes]:
        """Run a command beside it; the question for open ports is answered for the ports inside."""
        command = shlex.split(cmd) if isinstance(cmd, str) else list(cmd)
        if command[:2] == ["cat", "/proc/net/tcp"]:
            open_ports = [int(inside.split("/")[0]) for inside, port in self._ports.items() if processes.listens(port)]
            return 0, "\n".join(f"0: 00000000:{port:04X} 00000000:0000 0A" for port in open_ports).encode()
        if not isinstance(self._program, _Command):
            return 126, b"only a command's container runs further commands"
        if command[0] == "python":
            command[0] = sys.executable
        done = subprocess.run(
            command, cwd=self._program.directory, env=self._program.environment, capture_output=True, timeout=60, check=False
        )
        return done.returncode, done.stdout + (done.stderr if done.returncode else b"")

    def put_archive(self, path: str, data: Any) -> bool:
        """Unpack a tar file, as pytest-docker-tools does to fill a volume."""
        with tarfile.open(fileobj=io.BytesIO(data if isinstance(data, bytes) else data.read())) as archive:
            for member in archive.getmembers():
                target = self.volumes[path] / member.name
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                else:
                    content = archive.extractfile(member)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content.read() if content is not None else b"")
        return True


def _signal_number(name: str | int | None) -> int:
    if isinstance(name, str):
        return int(signal.Signals[name if name.startswith("SIG") else f"SIG{name}"])
    return int(name) if name is not None else int(signal.SIGKILL)


class _Named:
    """A network, an image, a volume: something with a name that can be removed."""

    def __init__(self, name: str, path: Path | None = None) -> None:
        self.id = self.name = name
        self.tags = [name]
        self.attrs: dict[str, Any] = {"Labels": {}}
        self.path = path

    def remove(self, *_: Any, **__: Any) -> None:
        if self.path is not None:
            shutil.rmtree(self.path, ignore_errors=True)


class _Images:
    def build(self, *, tag: str = "local:latest", **_: Any) -> tuple[_Named, Iterator[object]]:
        return _Named(tag), iter(())

    def pull(self, repository: str, **_: Any) -> _Named:
        return _Named(repository)

    def get(self, name: str) -> _Named:
        return _Named(name)


class _Networks:
    def create(self, name: str, **_: Any) -> _Named:
        return _Named(name)


class _Volumes:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def create(self, name: str, **_: Any) -> _Named:
        path = self._directory / name
        path.mkdir(parents=True)
        return _Named(name, path)

    def find(self, name: str) -> Path:
        return self._directory / name


class _Containers:
    def __init__(self, directory: Path, volumes: _Volumes) -> None:
        self._directory = directory
        self._volumes = volumes
        self._rabbit: RabbitNode | None = None
        self.all: list[LocalContainer] = []

    def create(self, image: str, *, volumes: Mapping[str, Any] | None = None, **_: Any) -> LocalContainer:
        """Make a container that is never started; it is only used to fill a volume."""
        container = LocalContainer(None, image=image, environment={}, ports={}, labels={})
        container.volumes = {mount["bind"]: self._volumes.find(name) for name, mount in (volumes or {}).items()}
        return container

    def run(
        self,
        image: str,
        command: Iterable[str] | str | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        volumes: Mapping[str, Any] | None = None,
        labels: Any = None,
        **_: Any,
    ) -> LocalContainer:
        arguments = shlex.split(command) if isinstance(command, str) else list(command or ())
        directory = self._directory / f"c{len(self.all)}"
        directory.mkdir(parents=True)
        program: _Program
        ports: dict[str, int] = {}
        env = dict(environment or {})
        if image.startswith(("redis:", "valkey/")):
            redis = RedisServer(directory, args=tuple(arguments[1:]))
            redis.start()
            program, ports = _Server(redis, directory), {"6379/tcp": redis.port}
        elif image.startswith("rabbitmq:"):
            rabbit = self._fresh_rabbit(directory)
            program, ports = _Server(rabbit, rabbit.directory / "log"), {"5672/tcp": rabbit.port}
        else:
            mounted = [self._volumes.find(name) for name, mount in (volumes or {}).items() if mount["bind"] == "/app"]
            env = {**_environment(), **env, "PYTHONPATH": str(mounted[0] if mounted else directory)}
            if arguments[0] == "celery":
                arguments = [sys.executable, "-m", *arguments]
            program = _Command(arguments, mounted[0] if mounted else directory, env)
            program.start()
        container = LocalContainer(program, image=image, environment=env, ports=ports, labels=labels, shared="5672/tcp" in ports)
        container.reload()
        self.all.append(container)
        return container

    def _fresh_rabbit(self, directory: Path) -> RabbitNode:
        """Return the node of the last container, emptied: a new one takes many times as long."""
        if self._rabbit is not None and self._rabbit.alive():
            self._rabbit.reset_vhost()
        else:
            self._rabbit = RabbitNode(directory)
            self._rabbit.start()
        return self._rabbit

    def close(self) -> None:
        for container in self.all:
            container.remove(force=True)
        if self._rabbit is not None:
            self._rabbit.stop()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "GUARDRAILS_", "TESTAPP_"))}


class LocalClient:
    """docker-py's DockerClient, as far as pytest-celery uses it."""

    def __init__(self, directory: Path) -> None:
        self.images = _Images()
        self.networks = _Networks()
        self.volumes = _Volumes(directory / "volumes")
        self.containers = _Containers(directory, self.volumes)

    def close(self) -> None:
        """End what is left."""
        self.containers.close()
