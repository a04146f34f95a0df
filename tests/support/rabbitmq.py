"""A private RabbitMQ node that a test may kill, stop and start again.

It has its own node name, ports, data and cookie, listens on the loopback interface only, and needs neither epmd, nor
root, nor Docker: the installed ``rabbitmq-server`` scripts are called without the distribution's wrapper, which would
switch users and touch the machine's own node.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import threading
from pathlib import Path

from . import processes
from .own_server import OwnServer
from .waiting import eventually

#: Virtual hosts are made in batches: a call of rabbitmqctl starts an Erlang machine, which takes a second.
VHOST_BATCH = 12

_CONF = """\
loopback_users.guest = true
vm_memory_high_watermark.absolute = 1GB
disk_free_limit.absolute = 50MB
log.console = false
"""


def find_scripts() -> Path | None:
    """Return the directory of rabbitmq-server and rabbitmqctl, or None."""
    candidates: list[Path] = []
    for pattern in (
        "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",  # Debian, Ubuntu, Fedora
        "/opt/rabbitmq/sbin",  # the Docker image
        "/opt/homebrew/opt/rabbitmq/sbin",
        "/usr/local/opt/rabbitmq/sbin",
    ):
        candidates += sorted(Path("/").glob(pattern.lstrip("/")), reverse=True)
    on_path = shutil.which("rabbitmq-server")
    if on_path:
        candidates.append(Path(on_path).resolve().parent)  # an unpacked release
    for candidate in candidates:
        # A distribution's wrapper in /usr/sbin has no plugins beside it.
        if (candidate / "rabbitmqctl").exists() and (candidate.parent / "plugins").is_dir():
            return candidate
    return None


class RabbitNode(OwnServer):
    """One node of our own.

    Args:
        directory: for data, log and cookie; keep it short, Erlang has limits.
        conf: further lines of ``rabbitmq.conf``, e.g. ``consumer_timeout = 10000``.
    """

    title = "RabbitMQ"

    def __init__(self, directory: Path, *, conf: str = "") -> None:
        scripts = find_scripts()
        if scripts is None:
            raise RuntimeError("rabbitmq-server is not installed: apt-get install rabbitmq-server, or brew install rabbitmq")
        super().__init__()
        self.directory = directory
        self._scripts = scripts
        self._conf = _CONF + conf
        self._name = f"guardrails-{secrets.token_hex(4)}@localhost"
        self._dist_port = 0
        self._vhosts: list[str] = []
        self._made = 0
        self._lock = threading.Lock()

    # -- addresses ----------------------------------------------------------------------------------------------

    def url(self, vhost: str = "/") -> str:
        """URL of a virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{'/' if vhost == '/' else vhost}"

    def fresh_url(self) -> str:
        """URL of a virtual host that nobody had before: its own queues and exchanges."""
        with self._lock:
            if not self._vhosts:
                self._make_vhosts()
            return self.url(self._vhosts.pop(0))

    def _make_vhosts(self) -> None:
        names = [f"t{self._made + number}" for number in range(VHOST_BATCH)]
        self._made += VHOST_BATCH
        listed = ",".join(f'<<"{name}">>' for name in names)
        self.ctl(
            "eval",
            f'[begin ok = rabbit_vhost:add(V, <<"test">>),'
            f' ok = rabbit_auth_backend_internal:set_permissions(<<"guest">>, V, <<".*">>, <<".*">>, <<".*">>, <<"test">>)'
            f" end || V <- [{listed}]].",
        )
        self._vhosts += names

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self) -> RabbitNode:
        """Start, or start again on the same ports with the same data; returns when it speaks AMQP."""
        for name in ("mnesia", "log"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "rabbitmq.conf").write_text(self._conf)
        (self.directory / "enabled_plugins").write_text("[].\n")
        (self.directory / "env.conf").write_text("")
        if self.port:
            self._boot()
            return self
        for again in (True, True, False):
            self.port, self._dist_port = processes.free_port(), processes.free_port()
            try:
                self._boot()
                break
            except ChildProcessError:  # another process may have taken a port meanwhile
                if not again:
                    raise
        return self

    def _boot(self) -> None:
        self._process = processes.spawn(
            [str(self._scripts / "rabbitmq-server")], log=self._boot_log, env=self._environment(), cwd=self.directory
        )
        eventually(lambda: self._is_up(self.port), 90, every=0.05, because=lambda: f"RabbitMQ on port {self.port}\n{self.log()}")

    @property
    def _boot_log(self) -> Path:
        return self.directory / "log" / "boot.out"

    def _environment(self) -> dict[str, str]:
        # A fixed distribution port, known to rabbitmqctl too, replaces epmd (OTP 24 and later). The port in
        # ERL_EPMD_PORT is closed: whatever still asks for epmd must not meet the machine's own.
        distribution = f"-start_epmd false -erl_epmd_port {self._dist_port}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        environment.update(
            HOME=str(self.directory),
            LANG="C.UTF-8",
            ERL_EPMD_PORT="1",
            # RabbitMQ's boot asks for epmd in a helper of its own; as root even port 1 could be had, and the daemon would stay.
            ERL_EPMD_ADDRESS="127.0.0.1",
            ERL_AFLAGS="-start_epmd false",
            RABBITMQ_NODENAME=self._name,
            RABBITMQ_NODE_IP_ADDRESS="127.0.0.1",
            RABBITMQ_NODE_PORT=str(self.port),
            RABBITMQ_DIST_PORT=str(self._dist_port),
            RABBITMQ_MNESIA_BASE=str(self.directory / "mnesia"),
            RABBITMQ_LOG_BASE=str(self.directory / "log"),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(self.directory / "enabled_plugins"),
            RABBITMQ_CONFIG_FILE=str(self.directory / "rabbitmq"),
            RABBITMQ_CONF_ENV_FILE=str(self.directory / "env.conf"),
            RABBITMQ_PID_FILE=str(self.directory / "pid"),
            RABBITMQ_CTL_DIST_PORT_MIN="0",
            RABBITMQ_CTL_DIST_PORT_MAX="0",
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=(
                f"{distribution} -sname {self._name} -kernel inet_dist_use_interface {{127,0,0,1}}"
                f" inet_dist_listen_min {self._dist_port} inet_dist_listen_max {self._dist_port} +S 1:1 +sbwt none"
            ),
            RABBITMQ_CTL_ERL_ARGS=f"{distribution} -dist_listen false",
        )
        return environment

    def _answers(self, port: int) -> bool:
        # The port is open before the broker is ready: ask for the protocol header and look for connection.start.
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
            probe.sendall(b"AMQP\x00\x00\x09\x01")
            return probe.recv(1) == b"\x01"
        return False

    def ctl(self, *args: str, timeout: float = 60) -> str:
        """Run ``rabbitmqctl`` on this node and return its output.

        Raises:
            RuntimeError: with its output, when it fails.
        """
        done = subprocess.run(
            [str(self._scripts / "rabbitmqctl"), "-q", "-n", self._name, *args],
            env=self._environment(),
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(args)}\n{done.stdout}{done.stderr}")
        return done.stdout

    def reset_vhost(self, name: str = "/") -> None:
        """Throw a virtual host away, with all that is in it, and make it anew."""
        self.ctl(
            "eval",
            f'begin V = <<"{name}">>, rabbit_vhost:delete(V, <<"test">>), ok = rabbit_vhost:add(V, <<"test">>),'
            f' ok = rabbit_auth_backend_internal:set_permissions(<<"guest">>, V, <<".*">>, <<".*">>, <<".*">>, <<"test">>) end.',
        )

    def close_connections(self, why: str = "test") -> None:
        """Close every client connection from the broker's side."""
        self.ctl("close_all_connections", why)

    def stop(self) -> None:
        """SIGTERM: an orderly end; quiet when it is down already."""
        if self._process is not None:
            processes.end(self._process, grace=30)

    def kill(self) -> None:
        """SIGKILL to the Erlang machine: a crash."""
        assert self._process is not None
        processes.end(self._process)
        eventually(lambda: not processes.listens(self.port), 10, because="the port is closed")

    def log(self) -> str:
        """The last lines of its logs."""
        return "\n".join(processes.tail(path, 30) for path in sorted((self.directory / "log").glob("*")))
