"""Fixtures of several modules of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from tests.support.http import HttpServer
from tests.support.sent import Sent

if TYPE_CHECKING:
    from celery_guardrails.contrib.sqlalchemy_archive import SQLAlchemyTable


@pytest.fixture(scope="module")
def letter_table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SQLAlchemyTable]:
    """An archive's table in a file, one for the module: a ``Desk`` empties it."""
    from celery_guardrails.contrib.sqlalchemy_archive import SQLAlchemyTable

    made = SQLAlchemyTable(f"sqlite:///{tmp_path_factory.mktemp('archive')}/letters.db")
    yield made
    made.close()


@pytest.fixture
def sent(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Record what the module's ``app`` would publish."""
    found = Sent()

    def send_task(name: str, args: Any = None, kwargs: Any = None, **options: Any) -> None:
        found.append({"name": name, "args": args, "kwargs": kwargs, **options})

    monkeypatch.setattr(app, "send_task", send_task)
    return found


@pytest.fixture
def server(receiver: HttpServer) -> HttpServer:
    """``receiver``, by the name that these tests have for it."""
    return receiver
