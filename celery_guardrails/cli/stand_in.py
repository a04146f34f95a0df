"""An exception of a class, made without its constructor, that carries what classification rules look at.

Libraries build their errors from responses and packets; for the question "what would become of a 503?" it is enough that the
attributes are there. The stand-in's class is a subclass of the same name, so every rule that fits the class fits it.
"""

from __future__ import annotations

import builtins
import errno
import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Carried", "find_class", "stand_in"]

_SQLSTATE = re.compile(r"^[0-9A-Z]{5}$")


@dataclass(frozen=True)
class Carried:
    """What a stand-in carries besides its class.

    Args:
        status: an HTTP status, or the reply code of a mail server.
        code: a SQLSTATE, a vendor's code, the name of an errno, of a gRPC status, of an SQLite result, or an API's error code.
        retry_after: what a response would say in ``Retry-After``.
        message: the text of the exception.
    """

    status: int | None = None
    code: str | None = None
    retry_after: str | None = None
    message: str = ""


@dataclass(frozen=True)
class _Named:
    """A member of an enumeration."""

    name: str


class _Response(dict):  # type: ignore[type-arg]
    """The response of an HTTP library (attributes) and of botocore (a mapping) in one."""

    def __init__(self, carried: Carried) -> None:
        headers = {} if carried.retry_after is None else {"Retry-After": carried.retry_after}
        meta = {"HTTPStatusCode": carried.status, "HTTPHeaders": headers}
        super().__init__(Error={"Code": carried.code, "Message": carried.message}, ResponseMetadata=meta)
        self.status_code = self.status = carried.status
        self.headers = headers


def find_class(name: str) -> type[BaseException]:
    """Import an exception class by its name.

    Args:
        name: ``"module.Class"`` (also nested, ``"module.Outer.Class"``), or the bare name of a builtin.

    Raises:
        LookupError: there is no such exception class; says what to write instead.
    """
    module, found = _import(name)
    if module is None:
        raise LookupError(f"{name!r} cannot be imported: {found}; write it as module.Class, as in requests.exceptions.HTTPError")
    if isinstance(found, type) and issubclass(found, BaseException):
        return found
    raise LookupError(f"{name!r} is {type(found).__name__} {getattr(found, '__name__', found)!s}, not an exception class")


def _import(name: str) -> tuple[str | None, Any]:
    """Return the module that was imported and what is called so in it; or None and what went wrong."""
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        return None, "it is no dotted name"
    if len(parts) == 1:
        found = getattr(builtins, name, None)
        return ("builtins", found) if found is not None else (None, f"Python has no {name} of its own")
    problem = ""
    for end in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:end])
        try:
            found = importlib.import_module(module)
            for part in parts[end:]:
                found = getattr(found, part)
        except ModuleNotFoundError as exc:
            problem = problem or f"there is no module {exc.name!r}: is its package installed, or the project's directory on the path?"
        except AttributeError:
            return None, f"{module} has no {'.'.join(parts[end:])}"
        except Exception as exc:  # noqa: BLE001 - a module may do anything when it is imported
            return None, f"importing {module} raised {exc!r}"
        else:
            return module, found
    return None, problem


def stand_in(cls: type[BaseException], carried: Carried, causes: Sequence[type[BaseException]] = ()) -> BaseException:
    """Return an exception of a class.

    Args:
        cls: the class.
        carried: what it, and each of its causes, carries.
        causes: what it wraps, the outermost first: as ``__cause__``, and where libraries keep it (``orig``, ``reason``).
    """
    cause = stand_in(causes[0], carried, causes[1:]) if causes else None
    body: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, **_attributes(cls, carried)}
    body["__str__"] = lambda _self: _text(cls, carried)  # its own would look for what the constructor leaves
    if cause is not None:
        body |= {"orig": cause, "reason": cause}
    for bases in ((cls,), _open_bases(cls), (Exception,)):  # not every class may be subclassed, or made without its constructor
        try:
            error = _bare(type(cls.__name__, bases, body), carried)
        except TypeError:
            continue
        error.__cause__ = cause
        return error
    raise AssertionError("Exception can be made")


def _bare(cls: type[BaseException], carried: Carried) -> BaseException:
    number = int(carried.code) if carried.code is not None and carried.code.isdecimal() else None
    args = (number, carried.message) if number is not None else (carried.message,) if carried.message else ()
    error: BaseException = cls.__new__(cls, *args)
    error.args = args
    return error


def _open_bases(cls: type[BaseException]) -> tuple[type[BaseException], ...]:
    bases = tuple(base for base in cls.__bases__ if issubclass(base, BaseException) and "Group" not in base.__name__)
    return bases or (Exception,)


def _attributes(cls: type[BaseException], carried: Carried) -> dict[str, Any]:
    """Return what the rules look at, under the names that the libraries have for it."""
    found: dict[str, Any] = {}
    if carried.status is not None or carried.retry_after is not None or carried.code is not None:
        response = _Response(carried)
        found |= {"response": response, "headers": response.headers}
    if carried.status is not None:
        found |= {"status": carried.status, "http_status": carried.status, "smtp_code": carried.status, "code": carried.status}
    if carried.code is not None:
        found |= _coded(carried.code, {base.__module__.partition(".")[0] for base in cls.__mro__})
    return found


def _coded(code: str, packages: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if code.isdecimal():
        found["errno"] = int(code)
    elif hasattr(errno, code):
        found["errno"] = getattr(errno, code)
    if code.startswith("SQLITE_"):
        found["sqlite_errorname"] = code
    if _SQLSTATE.match(code):
        found |= {"sqlstate": code, "pgcode": code}
    if "grpc" in packages:
        found["code"] = lambda _self: _Named(code)
    elif "google" in packages:
        found["grpc_status_code"] = _Named(code)
    elif "stripe" in packages:
        found["code"] = code
    return found


def _text(cls: type[BaseException], carried: Carried) -> str:
    """Redis says its code as the first word of the text."""
    if carried.code is not None and cls.__module__.partition(".")[0] in ("redis", "valkey"):
        return f"{carried.code} {carried.message}".strip()
    return carried.message or carried.code or ""
