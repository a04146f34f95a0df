"""The admin over an archive on a broker, a store and a clock in memory, and browsers of users with some permissions."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from celery_guardrails import GuardedTask, Guardrails
from celery_guardrails.dead_letters import KombuDecoder
from celery_guardrails.dead_letters.redaction import Redactor, hide_secrets
from celery_guardrails.dead_letters.tasks import tasks_of
from celery_guardrails.policy.lease import StoredResult

from . import django as dj
from .dead_letters import Kit, task_message

__all__ = ["ACTIONS", "LETTERS", "TRAIL", "Office", "admin_tables", "all_rights", "asked", "confirmed", "hidden", "text_of"]

LETTERS = "/admin/guardrails/archivedletter/"
TRAIL = "/admin/guardrails/auditentry/"
ACTIONS = ("replay", "canary", "discard", "restore")


@contextmanager
def admin_tables() -> Iterator[None]:
    """Make the tables of the admin in a database in memory, which is gone with Django's connection to it."""
    from django.core.management import call_command
    from django.db import connection

    dj.configure()
    call_command("migrate", verbosity=0)
    yield
    connection.close()


class Office:
    """The admin over an archive.

    Args:
        monkeypatch: puts the archive in the place of the project's.
        redact: what may be shown.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, redact: Redactor = hide_secrets) -> None:
        from celery_guardrails.contrib.django import pages
        from celery_guardrails.contrib.django.archive import Archive
        from celery_guardrails.contrib.django.models import ArchivedLetter, AuditEntry, CanaryRun

        self.kit = Kit("celery", "other")
        options: dict[str, Any] = {"clock": self.kit.clock, "decoder": KombuDecoder(["json"]), "tasks": tasks_of(_shop()), "redact": redact}
        self.desk = Archive(self.kit.broker, self.kit.store, **options)
        self._of_the_project = {name: getattr(pages, name) for name in ("working_archive", "reading_archive")}
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(pages, "working_archive", lambda: self.desk)
        monkeypatch.setattr(pages, "reading_archive", lambda: Archive(None, None, **options))
        self.letters, self.trail, self.runs = ArchivedLetter.objects, AuditEntry.objects, CanaryRun.objects
        for manager in (self.letters, self.trail, self.runs):
            manager.all().delete()

    def leave(self) -> None:
        """Let the pages show the project's own archive."""
        from celery_guardrails.contrib.django import pages

        for name, found in self._of_the_project.items():
            self._monkeypatch.setattr(pages, name, found)

    def archive(self) -> None:
        """Move what lies in the dead letter queues into the archive."""
        from celery_guardrails.contrib.django.archiving import run_archive

        app = SimpleNamespace(conf=SimpleNamespace(accept_content=["json"]))
        run_archive(SimpleNamespace(broker=self.kit.broker, clock=self.kit.clock, app=app, dead_letters=self.kit.service))

    def bury(self, *args: Any, **fields: Any) -> Any:
        """Put a dead letter into the archive and return its row."""
        self.kit.bury(task_message("shop.charge", *args), **fields)
        self.archive()
        return self.letters.latest("pk")

    def bury_many(self, number: int, **fields: Any) -> list[Any]:
        """Put dead letters into the archive at once and return their rows."""
        for each in range(number):
            self.kit.bury(task_message("shop.charge", each), **fields)
        self.archive()
        return list(self.letters.order_by("pk"))[-number:]

    def complete(self, *keys: str) -> None:
        """Let tasks have completed."""
        store = self.kit.store
        for key in keys:
            claim = store.claim(key, holder="h", fingerprint=None, lease=60)
            result = StoredResult("application/json", "utf-8", b"1", "task")
            store.complete(key, holder="h", fingerprint=None, fence=claim.fence, result=result, retention=600)

    def browser(self, *permissions: str, name: str = "ann", **options: Any) -> Any:
        """Return a test client of a staff user with these permissions."""
        from django.contrib.auth.models import Permission, User
        from django.test import Client

        User.objects.filter(username=name).delete()
        user = User.objects.create_user(name, is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        client = Client(**options)
        client.force_login(user)
        return client

    def states(self) -> list[str]:
        """Return the states of all letters, in order."""
        return list(self.letters.order_by("pk").values_list("state", flat=True))


def _shop() -> Celery:
    app = Celery("shop", broker="memory://", set_as_current=False)
    Guardrails(app, store="memory://")

    def charge(order_id: Any = None, amount: float = 0.0, *, note: str | None = None, api_key: str = "") -> None: ...

    app.task(charge, base=GuardedTask, name="shop.charge", shared=False, key="charge:{order_id}")
    return app


def all_rights() -> tuple[str, ...]:
    """Return every permission of the admin's pages."""
    return ("view_archivedletter", "view_auditentry", *(f"{name}_letter" for name in (*ACTIONS, "edit")))


def asked(client: Any, action: str, rows: Any, url: str = LETTERS + "?state__exact=waiting", **more: str) -> Any:
    """Choose an action for letters, as the list's form does."""
    data = {"action": action, "index": "0", "select_across": "0", "_selected_action": [row.pk for row in rows], **more}
    return client.post(url, data)


def hidden(page: Any) -> dict[str, Any]:
    """Return the fields of the form on a confirmation page."""
    text = page.content.decode().partition('<input type="hidden" name="confirmed"')
    fields: dict[str, Any] = {}
    found = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', text[0].rpartition("<form")[2] + "".join(text[1:]))
    for name, value in found:
        fields.setdefault(name, []).append(html.unescape(value))
    return fields


def confirmed(client: Any, action: str, rows: Any, url: str = LETTERS + "?state__exact=waiting", why: str = "", **more: str) -> Any:
    """Choose an action for letters, and say yes."""
    page = asked(client, action, rows, url, **more)
    assert page.status_code == 200, page
    return client.post(url, {**hidden(page), "why": why}, follow=True)


def text_of(page: Any) -> str:
    """Return what a page says, without its tags, in single spaces."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.content.decode().partition("<body")[2])).split())
