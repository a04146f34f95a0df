"""Real threads, processes, files and memory of this process, left by what stands in for a task."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from celery import Celery, signals
from celery.concurrency import thread as threads

from celery_guardrails import Guardrails
from celery_guardrails.events import TaskLeaked
from celery_guardrails.integration import leaks, sampling
from celery_guardrails.policy.leaks import CHILDREN, FILES, MEMORY, THREADS
from celery_guardrails.worker.leaks import Leaks
from tests.support import eventually

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux'")


class Pool:
    """A process that runs tasks, watched."""

    def __init__(self, recycle: bool = False, **settings) -> None:
        rails = Guardrails(Celery("shop", broker="memory://"), store="memory://", **{"watch_leaks": True, "leak_runs": 3, **settings})
        self.told: list[TaskLeaked] = []
        rails._listeners.append(self.told.append)
        self.watching = leaks.Watching(rails, recycle=recycle)
        self.runs = 0

    def begin(self, name="shop.task", eager=False):
        self.runs += 1
        task = SimpleNamespace(name=name, request=SimpleNamespace(is_eager=eager))
        task_id = f"t{self.runs}"
        self.watching.before(task_id=task_id, task=task)
        return lambda: self.watching.after(task_id=task_id, task=task)

    def run(self, body, times=1, name="shop.task") -> list[TaskLeaked]:
        for _ in range(times):
            end = self.begin(name)
            body()
            end()
        return self.told


@pytest.fixture
def cleanup():
    """What a test leaves on purpose is ended by these."""
    calls = []
    yield calls
    for call in calls:
        call()


@pytest.fixture(autouse=True)
def threads_have_ended():
    """A thread of an earlier test that ends during a run would hide what that leaves: it lives on for a moment after its join()."""

    def steady() -> bool:
        before = os.listdir("/proc/self/task")
        time.sleep(0.03)
        return os.listdir("/proc/self/task") == before

    if sys.platform.startswith("linux"):
        eventually(steady, 30, because="threads have ended")


@pytest.fixture(autouse=True)
def not_recycling():
    yield
    leaks.recycling.wanted = False


@pytest.fixture
def leak_thread(cleanup):
    over = threading.Event()
    cleanup.append(over.set)

    def leak():
        thread = threading.Thread(target=over.wait, name="poller", daemon=True)
        thread.start()
        cleanup.append(thread.join)

    return leak


@pytest.fixture
def leak_child(cleanup):
    def leak():
        child = subprocess.Popen([sys.executable, "-c", "input()", "--password=s3cret"], stdin=subprocess.PIPE)
        cleanup.append(lambda: child.communicate(b"\n"))

    return leak


def test_threads_are_named(leak_thread):
    pool = Pool()
    (event,) = pool.run(leak_thread, times=3)
    assert (event.task, event.task_id, event.kind, event.amount, event.runs) == ("shop.task", "t3", THREADS, 3, 3)
    assert event.names == ("poller",) * 3
    assert event.text == "threads: 3 of 3 runs in this process still live (poller, poller, poller)"


@linux
def test_child_processes_are_named_without_their_arguments(leak_child):
    pool = Pool()
    events = {event.kind: event for event in pool.run(leak_child, times=3)}
    assert events[CHILDREN].amount == 3
    assert "pid" in events[CHILDREN].names[0]
    assert "s3cret" not in str(events)
    assert events[FILES].amount == 3, "the pipes to them"


@linux
def test_a_child_that_has_ended_and_is_not_waited_for_is_named_as_that(cleanup):
    def leak():
        pid = os.spawnlp(os.P_NOWAIT, "true", "true")
        cleanup.append(lambda: os.waitpid(pid, 0))
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    (event,) = Pool().run(leak, times=3)
    assert event.kind == CHILDREN
    assert "ended and not waited for" in event.names[0]


def test_open_files_are_named_by_path_and_sockets_by_address(cleanup, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def leak():
            file = open(tmp_path / "report.csv", "w")  # noqa: SIM115
            connection = socket.create_connection(("127.0.0.1", port))
            cleanup.extend((file.close, connection.close))

        (event,) = Pool().run(leak, times=3)
        assert (event.kind, event.amount, event.runs) == (FILES, 6, 3)
        if sys.platform.startswith("linux"):
            assert str(tmp_path / "report.csv") in event.names
        assert any(name.endswith(f"to 127.0.0.1:{port}") for name in event.names)


@linux
def test_memory_is_named():
    kept = []
    pool = Pool(leak_memory=16 * 2**20)
    pool.run(lambda: kept.append(os.urandom(2**20)), times=40)
    assert pool.told, "a MiB with each run"
    assert {event.kind for event in pool.told} == {MEMORY}
    assert "added by" in pool.told[0].text


def test_a_task_that_leaves_nothing_is_not_named(tmp_path):
    def body():
        with open(tmp_path / "out", "w") as out:
            subprocess.run([sys.executable, "-c", ""], stdout=out, check=True)
        thread = threading.Thread(target=len, args=("",))
        thread.start()
        thread.join()

    assert Pool().run(body, times=5) == []


def test_a_library_that_keeps_a_connection_and_a_thread_of_its_own_is_not_named(leak_thread, cleanup):
    connections = []

    def body():
        if not connections:
            leak_thread()
            connections.extend(socket.socketpair())
            cleanup.extend(connection.close for connection in connections)

    assert Pool().run(body, times=10) == []


def test_garbage_that_holds_a_file_is_collected_and_not_named(tmp_path):
    class Held:
        def __init__(self):
            self.me = self
            self.number = os.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY)

        def __del__(self):
            os.close(self.number)

    gc.disable()
    try:
        assert Pool().run(Held, times=12) == []
    finally:
        gc.enable()


@pytest.mark.parametrize("ending", ["first", "last"])
def test_of_tasks_that_overlap_none_is_named(leak_thread, ending):
    pool = Pool()
    for _ in range(5):
        ends = [pool.begin("shop.first"), pool.begin("shop.second")]
        leak_thread()
        for end in ends if ending == "first" else reversed(ends):
            end()
    assert pool.told == []


def test_alone_again_a_task_is_watched_again(leak_thread):
    pool = Pool()
    first, second = pool.begin(), pool.begin()
    first()
    second()
    assert pool.run(leak_thread, times=3)


def test_a_task_that_is_called_within_a_task_is_a_part_of_it(leak_thread):
    pool = Pool()

    def body():
        end = pool.begin("shop.inner", eager=True)
        leak_thread()
        end()

    (event,) = pool.run(body, times=3)
    assert event.task == "shop.task"


def test_a_process_forgets_what_its_parent_saw(leak_thread):
    pool = Pool()
    pool.run(leak_thread, times=2)
    pool.watching._pid = -1  # forked in between
    assert pool.run(leak_thread, times=2) == []


def test_the_process_is_only_given_up_when_something_leaks_and_that_is_wanted(leak_thread):
    wanted = Pool(recycle=True)
    wanted.run(leak_thread, times=2)
    assert not leaks.recycling.wanted
    wanted.run(leak_thread)
    assert leaks.recycling.wanted
    assert wanted.told[0].recycled
    assert wanted.told[0].text.endswith("; the process is replaced")
    leaks.recycling.wanted = False
    assert not Pool(recycle=False).run(leak_thread, times=3)[0].recycled
    assert not leaks.recycling.wanted


@pytest.mark.parametrize("settings", [{}, {"watch_leaks": True}, {"recycle_on_leak": True}])
def test_nothing_listens_to_the_tasks_unless_leaks_are_watched(settings):
    rails = Guardrails(Celery("shop", broker="memory://"), store="memory://", **settings)
    both = (signals.task_prerun, signals.task_postrun)
    before = [len(signal.receivers) for signal in both]
    Leaks(SimpleNamespace(app=rails.app, pool_cls=object))
    try:
        assert [len(signal.receivers) - there for signal, there in zip(both, before, strict=True)] == [bool(settings)] * 2
    finally:
        for signal in both:
            signal.disconnect(dispatch_uid=leaks._UID)


def test_only_the_prefork_pool_is_asked_for_new_processes(caplog):
    rails = Guardrails(Celery("shop", broker="memory://"), store="memory://", recycle_on_leak=True)
    Leaks(SimpleNamespace(app=rails.app, pool_cls=threads.TaskPool))
    for signal in (signals.task_prerun, signals.task_postrun):
        signal.disconnect(dispatch_uid=leaks._UID)
    assert "only processes of the prefork pool can be replaced" in caplog.text


@linux
def test_looking_changes_nothing():
    first = sampling.Sampler().snapshot()
    second = sampling.Sampler().snapshot()
    assert first.files == second.files
    assert first.threads == second.threads
    assert first.children == second.children


@linux
def test_all_is_seen_on_linux():
    assert sampling.unseen() == []
    assert threading.get_native_id() in sampling.Sampler().snapshot().threads


@linux
def test_children_are_found_without_the_kernels_list_of_them(leak_child, monkeypatch):
    monkeypatch.setattr(sampling, "_children_of_threads", lambda: None)
    before = sampling.Sampler().snapshot().children
    leak_child()
    (child,) = sampling.Sampler().snapshot().children - before
    assert sampling.marks({CHILDREN: [child]})[CHILDREN][child].isdigit(), "its start, which another of its number has not"
    assert sampling.describe(CHILDREN, [child])


def test_elsewhere_what_is_not_seen_is_said(monkeypatch, caplog):
    monkeypatch.setattr(sampling, "_LINUX", False)
    monkeypatch.setattr(sampling, "_FILES", "/dev/fd")
    seen = sampling.Sampler().snapshot()
    assert threading.get_native_id() in seen.threads
    assert seen.files
    leaks.say_what_is_unseen()
    assert "child processes, memory: these are not watched" in caplog.text


def test_elsewhere_threads_and_files_are_named_all_the_same(monkeypatch, leak_thread, cleanup):
    monkeypatch.setattr(sampling, "_LINUX", False)
    monkeypatch.setattr(sampling, "_FILES", "/dev/fd")

    def leak():
        leak_thread()
        cleanup.append(open(os.devnull).close)  # noqa: SIM115

    assert {event.kind for event in Pool().run(leak, times=3)} == {THREADS, FILES}
