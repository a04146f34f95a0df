"""Python's own exceptions.

``ValueError`` is permanent: the same arguments give it again. That covers ``json.JSONDecodeError``, ``UnicodeError``
and pydantic's ``ValidationError``. ``RuntimeError`` and bare ``Exception`` say nothing and have no rule; nor has
``LookupError``'s cousin in the ORMs (``DoesNotExist``), most often a task that overtook its publisher's commit.
``MemoryError`` is retryable: it depends on what else ran on the machine.
"""

from __future__ import annotations

import errno
from typing import Any

from ..classification import PERMANENT, RETRYABLE, Classification
from .table import Look, Rules, always

__all__ = ["RULES"]

_RETRYABLE_ERRNO = (
    # the network, or the peer
    "ECONNREFUSED ECONNRESET ECONNABORTED EPIPE ESHUTDOWN ETIMEDOUT ENETDOWN ENETUNREACH ENETRESET EHOSTDOWN EHOSTUNREACH "
    "ENOTCONN EADDRINUSE EADDRNOTAVAIL EALREADY EINPROGRESS "
    # resources that others give back: memory, descriptors, disk, quota, locks
    "EAGAIN EWOULDBLOCK EINTR ENOBUFS ENOMEM EMFILE ENFILE ENOSPC EDQUOT EBUSY ETXTBSY EDEADLK ENOLCK "
    # storage behind a network
    "EIO ESTALE"
).split()
_PERMANENT_ERRNO = (
    "ENOENT EACCES EPERM EEXIST ENOTDIR EISDIR ENOTEMPTY EINVAL ENAMETOOLONG ELOOP EROFS EXDEV EFBIG ENODEV ENXIO EBADF EFAULT "
    "ENOTSOCK EAFNOSUPPORT EPROTONOSUPPORT EPROTOTYPE EOPNOTSUPP ENOTSUP EDESTADDRREQ EMSGSIZE ENOSYS EILSEQ ENOEXEC EDOM ERANGE "
    "ENOTTY ESPIPE ESRCH ECHILD E2BIG EISCONN ENOPROTOOPT"
).split()


def _by_number() -> dict[int, Classification]:
    table: dict[int, Classification] = {}
    for kind, names in ((PERMANENT, _PERMANENT_ERRNO), (RETRYABLE, _RETRYABLE_ERRNO)):
        for name in names:
            number = getattr(errno, name, None)
            if number is not None:
                table[number] = Classification(kind, rule=f"errno.{name}")
    return table


_ERRNO = _by_number()


def _os_error(error: Any, _look: Look) -> Classification | None:
    """By errno; an ``OSError`` without one (many libraries subclass it) says nothing."""
    number = error.errno
    return _ERRNO.get(number) if isinstance(number, int) else None


RULES: Rules = {
    "builtins.OSError": _os_error,
    **always(
        RETRYABLE,
        "builtins",
        "ConnectionError",
        "TimeoutError",
        "BlockingIOError",
        "InterruptedError",
        "EOFError",
        "MemoryError",
        # the process is told to stop: no fault of the task
        "SystemExit",
        "KeyboardInterrupt",
    ),
    **always(
        PERMANENT,
        "builtins",
        "FileNotFoundError",
        "FileExistsError",
        "PermissionError",
        "IsADirectoryError",
        "NotADirectoryError",
        "ProcessLookupError",
        "ChildProcessError",
        "TypeError",
        "AttributeError",
        "LookupError",
        "KeyError",
        "IndexError",
        "NameError",
        "ValueError",
        "ArithmeticError",
        "ZeroDivisionError",
        "OverflowError",
        "AssertionError",
        "ImportError",
        "ModuleNotFoundError",
        "SyntaxError",
        "NotImplementedError",
        "RecursionError",
        "ReferenceError",
        "StopIteration",
        "StopAsyncIteration",
    ),
}
