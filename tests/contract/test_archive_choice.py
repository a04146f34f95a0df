"""Which archive an app has: the one that is set, or under Django its database once the tables are there; else none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_guardrails import Guardrails, GuardrailsConfigError
from celery_guardrails.dead_letters.archive import open_table
from celery_guardrails.dead_letters.archive.rows import values_of
from celery_guardrails.dead_letters.redaction import HIDDEN
from tests.support.dead_letters import Kit, task_message

pytest.importorskip("django", reason="pip install 'celery-guardrails[django]'")
pytest.importorskip("sqlalchemy")

from tests.support import django as dj


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database without our tables."""
    with dj.database("archive-bare", f"sqlite:///{tmp_path_factory.mktemp('db') / 'bare.sqlite3'}", migrate=False) as alias:
        yield alias


def rails(fallback: str | None = None, **settings: Any) -> Guardrails:
    made = Guardrails(Celery("shop", broker="redis://", set_as_current=False), store="memory://", **settings)
    made.fallback_archive = fallback
    return made


def test_without_a_database_there_is_none() -> None:
    assert rails().archive is None


def test_djangos_is_one_only_where_its_tables_are_there(bare: str, tmp_path: Path) -> None:
    assert rails(f"django://{bare}").archive is None
    early = rails("django://archive-made")
    with dj.database("archive-made", f"sqlite:///{tmp_path}/made.sqlite3", migrate=False):
        assert early.archive is None
    with dj.database("archive-made", f"sqlite:///{tmp_path}/made.sqlite3") as made:
        found = rails(f"django://{made}").archive
        assert found is not None
        assert found.table.name == "django://archive-made"
        assert early.archive is not None, "it is asked again"


def test_one_that_was_asked_for_must_have_its_tables(bare: str) -> None:
    with pytest.raises(GuardrailsConfigError, match=f"guardrails_archive = 'django://{bare}'.*migrate --database {bare}"):
        rails(archive=f"django://{bare}").archive  # noqa: B018 - asking opens it


def test_what_is_set_goes_before_djangos_and_makes_its_tables(bare: str, tmp_path: Path) -> None:
    found = rails(f"django://{bare}", archive=f"sqlalchemy+sqlite:///{tmp_path}/letters.db").archive
    assert found is not None
    assert found.table.count(found.rows()) == 0
    found.table.close()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://x", "no archive for 'redis://'; allowed are django://, sqlalchemy\\+://"),
        ("django://nowhere", "no 'nowhere' in DATABASES"),
        ("django://default/x", "takes the alias"),
        ("sqlalchemy+nodb://u:secret@h/x", "no archive for the database 'nodb'"),
        ("sqlalchemy+postgresql+nodriver://u:secret@h/x", "SQLAlchemy says"),
        ("sqlalchemy+sqlite://", "in memory"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str, why: str) -> None:
    dj.configure()
    with pytest.raises(GuardrailsConfigError, match=why) as caught:
        open_table(url)
    assert "secret" not in str(caught.value)
    assert str(caught.value).startswith("guardrails_archive = ")


def test_it_knows_the_tasks_of_the_app_and_what_may_be_shown(tmp_path: Path) -> None:
    made = rails(archive=f"sqlalchemy+sqlite:///{tmp_path}/letters.db", redact=["pan"])

    def charge(order: int, pan: str) -> None: ...

    made.app.task(charge, name="shop.charge", shared=False)
    kit = Kit("celery")
    kit.bury(task_message("shop.charge", 7, "4111"))
    found = made.archive
    assert found is not None
    [letter] = kit.service.list()
    found.table.insert([values_of(letter, now=1.0)], again=[], state="waiting", note="", now=1.0)
    assert found.show(letter.id).shown_payload().args == (7, HIDDEN)
    found.table.close()


def test_a_database_that_the_project_does_not_have_is_a_system_check(bare: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from celery_guardrails.contrib.django import checks

    for alias, told in (("nowhere", ["guardrails.E001"]), (bare, [])):
        made = rails(archive=f"django://{alias}")
        monkeypatch.setattr(checks, "made_app", lambda made=made: made.app)
        assert [message.id for message in checks.check_configuration()] == told
