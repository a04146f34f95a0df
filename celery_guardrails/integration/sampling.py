"""What this process has right now: threads, child processes, open files, memory. From Linux' ``/proc``, with no library.

Elsewhere threads and (where there is ``/dev/fd``) open files are all that is seen.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Mapping

from ..policy.leaks import CHILDREN, FILES, MEMORY, THREADS, Snapshot, Suspect

__all__ = ["Sampler", "describe", "marks", "memory", "unseen"]

_LINUX = sys.platform.startswith("linux")
_FILES = "/proc/self/fd" if _LINUX else "/dev/fd"
_THREADS = "/proc/self/task"
#: Characters of a name: a path or a thread's name may be anything.
_LONGEST = 120


def unseen() -> list[str]:
    """Return the kinds that cannot be looked at on this system."""
    seen = Sampler().snapshot()
    all_of_it = ((THREADS, seen.threads), (CHILDREN, seen.children), (FILES, seen.files), (MEMORY, seen.memory))
    return [kind for kind, numbers in all_of_it if numbers is None]


class Sampler:
    """Looks at this process, again and again; each process wants its own.

    Where the kernel tells the numbers of threads and files without a list (of files since Linux 6.2), there is no new list
    while they are what they were. So something may have taken the place of something else unseen, and bear its name.
    """

    def __init__(self) -> None:
        self._threads = _Counted(_threads, lambda: os.stat(_THREADS).st_nlink - 2)
        self._files = _Counted(_files, lambda: os.stat(_FILES).st_size)

    def snapshot(self) -> Snapshot:
        """Return what this process has."""
        return Snapshot(self._threads.look(), _children(), self._files.look(), memory())


class _Counted:
    """A list that is only made anew when its length has changed.

    Args:
        make: the list.
        count: its length, or something else on systems that do not tell it.
    """

    def __init__(self, make: Callable[[], frozenset[int] | None], count: Callable[[], int]) -> None:
        self._make = make
        self._count = count
        self._seen: frozenset[int] | None = None
        first = make()
        self._told = _LINUX and first is not None and self._number() == len(first)

    def _number(self) -> int:
        try:
            return self._count()
        except OSError:
            return -1

    def look(self) -> frozenset[int] | None:
        if self._told and self._seen is not None and self._number() == len(self._seen):
            return self._seen
        self._seen = self._make()
        return self._seen


# -- looking ----------------------------------------------------------------------------------------------------------


def _threads() -> frozenset[int]:
    if _LINUX:
        with contextlib.suppress(OSError):
            return frozenset(map(int, os.listdir(_THREADS)))
    return frozenset(thread.native_id for thread in threading.enumerate() if thread.native_id is not None)


def _children() -> frozenset[int] | None:
    if not _LINUX:
        return None
    try:
        # Looks and takes nothing: the task's own wait() finds what it would have found.
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return frozenset()  # one system call, in nearly every run
    except OSError:
        return None
    found = _children_of_threads()
    return _children_by_parent() if found is None else found


def _children_of_threads() -> frozenset[int] | None:
    """Ask the kernel; one without CONFIG_PROC_CHILDREN does not say."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for thread in os.listdir(_THREADS):
            try:
                with open(f"{_THREADS}/{thread}/children", encoding="ascii") as file:
                    found.update(map(int, file.read().split()))
            except FileNotFoundError:
                if os.path.exists(f"{_THREADS}/{thread}"):
                    return None
    return frozenset(found)


def _children_by_parent() -> frozenset[int] | None:
    own = str(os.getpid())
    try:
        processes = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return None
    return frozenset(int(name) for name in processes if _stat(name)[1:2] == [own])


def _stat(process: str) -> list[str]:
    """Return the fields of a process from its state on; its name, which may be anything, stands in parentheses before them."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def _files() -> frozenset[int] | None:
    try:
        # listdir() opens the directory itself, with the lowest number that is free.
        own = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.close(own)
        found = set(map(int, os.listdir(_FILES)))
    except OSError:  # also: no descriptor is left
        return None
    found.discard(own)
    return frozenset(found)


def memory() -> int | None:
    """Return the resident memory in bytes."""
    if not _LINUX:
        return None
    try:
        file = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(file, 128).split()[1]) * _PAGE
        finally:
            os.close(file)
    except OSError:
        return None


_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


# -- telling one from another, and naming it --------------------------------------------------------------------------


def describe(kind: str, numbers: Iterable[int]) -> list[Suspect]:
    """Return what is behind numbers of one kind; those that have gone meanwhile are left out."""
    mark, name = _KINDS[kind]
    found = []
    for number in numbers:
        known = mark(number)
        if known is not None:
            found.append(Suspect(number, known, name(number, known)[:_LONGEST]))
    return found


def marks(suspects: Mapping[str, Iterable[int]]) -> dict[str, dict[int, str]]:
    """Return the marks of those numbers, by kind, that still live."""
    found: dict[str, dict[int, str]] = {}
    for kind, numbers in suspects.items():
        mark = _KINDS[kind][0]
        found[kind] = {number: known for number in numbers if (known := mark(number)) is not None}
    return found


def _thread_mark(number: int) -> str | None:
    if _LINUX:
        return "" if os.path.exists(f"{_THREADS}/{number}") else None
    return "" if any(thread.native_id == number for thread in threading.enumerate()) else None


def _thread_name(number: int, mark: str) -> str:
    for thread in threading.enumerate():
        if thread.native_id == number:
            return thread.name
    with contextlib.suppress(OSError), open(f"{_THREADS}/{number}/comm", encoding="utf-8", errors="replace") as file:
        return f"{file.read().strip()} (not Python's)"
    return "a thread"


def _child_mark(number: int) -> str | None:
    fields = _stat(str(number))
    if fields[1:2] != [str(os.getpid())]:
        return None
    return fields[19]  # when it started


def _child_name(number: int, mark: str) -> str:
    """Return number and program: the arguments may hold secrets."""
    program = "a process"
    with contextlib.suppress(OSError), open(f"/proc/{number}/comm", encoding="utf-8", errors="replace") as file:
        program = file.read().strip()
    ended = ", ended and not waited for" if _stat(str(number))[:1] == ["Z"] else ""
    return f"{program} (pid {number}{ended})"


def _file_mark(number: int) -> str | None:
    try:
        if _LINUX:
            return os.readlink(f"{_FILES}/{number}")
        found = os.fstat(number)
    except OSError:
        return None
    return f"{stat.S_IFMT(found.st_mode):o}:{found.st_dev}:{found.st_ino}"


def _file_name(number: int, mark: str) -> str:
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            return mark.split(":", 1)[0] if mark.startswith("pipe:") else mark
        with socket.socket(fileno=os.dup(number)) as copy:
            return f"socket {_address(copy.getsockname)} to {_address(copy.getpeername)}"
    except OSError:
        return "a socket"


def _address(ask: Callable[[], object]) -> str:
    try:
        found = ask()
    except OSError:
        return "nobody"
    if isinstance(found, tuple):
        return f"{found[0]}:{found[1]}"
    return os.fsdecode(found) if isinstance(found, (str, bytes)) and found else "unnamed"


_KINDS: dict[str, tuple[Callable[[int], str | None], Callable[[int, str], str]]] = {
    THREADS: (_thread_mark, _thread_name),
    CHILDREN: (_child_mark, _child_name),
    FILES: (_file_mark, _file_name),
}
