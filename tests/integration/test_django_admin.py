"""Django's admin shows dead letters escaped and redacted, asks before it acts, and lets only those act who may."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from celery_guardrails.dead_letters import KombuDecoder
from celery_guardrails.policy.lease import StoredResult
from tests.support.dead_letters import Kit, task_message

pytest.importorskip("django", reason="pip install 'celery-guardrails[django]'")

from tests.support import django as dj

LETTERS = "/admin/guardrails/archivedletter/"
TRAIL = "/admin/guardrails/auditentry/"
EVIL = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>"
ACTIONS = ("replay", "canary", "discard", "restore")


@pytest.fixture(scope="module")
def tables() -> Iterator[None]:
    dj.configure()
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", verbosity=0)
    yield
    connection.close()  # a database in memory is gone with it


class Office:
    """The admin over an archive, and browsers of users with some permissions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from celery_guardrails.contrib.django import admin
        from celery_guardrails.contrib.django.archive import Archive
        from celery_guardrails.contrib.django.models import ArchivedLetter, AuditEntry

        self.kit = Kit("celery", "other")
        decoder = KombuDecoder(["json"])
        archive = Archive(self.kit.broker, self.kit.store, clock=self.kit.clock, decoder=decoder)
        monkeypatch.setattr(admin, "working_archive", lambda: archive)
        monkeypatch.setattr(admin, "celery_app", lambda: None)
        self.letters, self.trail = ArchivedLetter.objects, AuditEntry.objects
        self.letters.all().delete()
        self.trail.all().delete()

    def archive(self) -> None:
        from celery_guardrails.contrib.django.archiving import run_archive

        app = SimpleNamespace(conf=SimpleNamespace(accept_content=["json"]))
        run_archive(SimpleNamespace(broker=self.kit.broker, clock=self.kit.clock, app=app, dead_letters=self.kit.service))

    def bury(self, *args: Any, **fields: Any) -> Any:
        """Put a dead letter into the archive and return its row."""
        self.kit.bury(task_message("shop.charge", *args), **fields)
        self.archive()
        return self.letters.latest("pk")

    def browser(self, *permissions: str, **options: Any) -> Any:
        from django.contrib.auth.models import Permission, User
        from django.test import Client

        User.objects.filter(username="ann").delete()
        user = User.objects.create_user("ann", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        client = Client(**options)
        client.force_login(user)
        return client

    def states(self) -> list[str]:
        return list(self.letters.order_by("pk").values_list("state", flat=True))


@pytest.fixture
def office(tables: None, monkeypatch: pytest.MonkeyPatch) -> Office:
    return Office(monkeypatch)


def all_rights() -> tuple[str, ...]:
    return ("view_archivedletter", "view_auditentry", "replay_letter", "discard_letter", "restore_letter")


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
    page = asked(client, action, rows, url, **more)
    assert page.status_code == 200, page
    return client.post(url, {**hidden(page), "why": why}, follow=True)


# -- pages ----------------------------------------------------------------------------------------------------------


def test_the_index_shows_groups_with_their_numbers_and_a_way_to_their_letters(office: Office) -> None:
    for number in range(3):
        office.bury(number, error="shop.GatewayBusy", message="no answer", last_seen=office.kit.clock.now() - number * 3600)
    office.bury(error="shop.Broken", queue="other")
    client = office.browser(*all_rights())
    page = client.get(LETTERS).content.decode()
    assert page.index("shop.GatewayBusy") < page.index("shop.Broken")
    assert "no answer" in page
    assert page.count('<svg class="guardrails-trend"') == 2
    assert "4 waiting letters in 2 groups" in page
    url = html.unescape(re.search(r'href="(\?[^"]*GatewayBusy[^"]*)"', page)[1])
    letters = client.get(LETTERS + url)
    assert "3 archived dead letters" in letters.content.decode()
    assert "shop.Broken" not in letters.content.decode()
    assert "No discarded dead letters" in client.get(LETTERS + "?groups=discarded").content.decode()


def test_a_letter_is_shown_with_its_history_and_its_secrets_hidden(office: Office) -> None:
    office.bury({"order": 7, "card_number": "4111"}, worker="w1@host", attempts=6)
    again = office.letters.latest("pk")
    page = office.browser(*all_rights()).get(f"{LETTERS}{again.pk}/change/").content.decode()
    for text in ("gateway away", "ConnectionError", "6 attempts", "w1@host", "********", "orders.new", "archived from celery.dead"):
        assert text in page, text
    assert "4111" not in page


def test_earlier_deaths_of_the_same_task_are_linked(office: Office) -> None:
    message = task_message("shop.charge", task_id="same")
    office.kit.bury(message, last_seen=1.0)
    office.kit.bury(message, last_seen=2.0)
    office.archive()
    first, second = office.letters.order_by("pk")
    page = office.browser("view_archivedletter").get(f"{LETTERS}{second.pk}/change/").content.decode()
    assert f"{LETTERS}{first.pk}/change/" in page


def test_everything_that_a_message_brings_is_escaped_on_every_page(office: Office) -> None:
    row = office.bury(
        EVIL, {EVIL: EVIL}, error=EVIL, message=EVIL, traceback=EVIL + "\n\x1b[2J\u202e", worker=EVIL, key=EVIL, task=EVIL, queue="celery"
    )
    office.kit.bury_raw(task_message(EVIL, **{EVIL: EVIL}))
    office.kit.bury_raw(task_message("broken", **{EVIL: "x"}).with_headers(task=None))
    office.archive()
    client = office.browser(*all_rights())
    rows = list(office.letters.order_by("pk"))
    pages = [client.get(url) for url in (LETTERS, LETTERS + "?state__exact=waiting", *(f"{LETTERS}{each.pk}/change/" for each in rows))]
    pages += [asked(client, action, rows) for action in ("replay", "canary", "discard")]
    pages += [
        confirmed(client, "discard", [row], why=EVIL),
        client.get(TRAIL),
        asked(client, "restore", [row], LETTERS + "?state__exact=discarded"),
    ]
    for page in pages:
        text = page.content.decode()
        assert page.status_code == 200
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert not re.search(r"<[^>]* on[a-z]+=", re.sub('"[^"]*"', '""', text)), "no inline event handlers"
    assert "&lt;script&gt;alert(1)" in pages[0].content.decode()


def test_a_letter_that_is_not_there_leads_back_with_a_word(office: Office) -> None:
    page = office.browser(*all_rights()).get(LETTERS + "999999/change/", follow=True)
    assert "999999" in page.content.decode()
    assert page.status_code == 200


# -- permissions ----------------------------------------------------------------------------------------------------


def test_nobody_sees_letters_without_permission(office: Office) -> None:
    row = office.bury()
    client = office.browser("replay_letter")
    assert [client.get(url).status_code for url in (LETTERS, LETTERS + "?q=x", f"{LETTERS}{row.pk}/change/", TRAIL)] == [403] * 4


def test_nothing_is_added_changed_or_deleted_by_hand(office: Office) -> None:
    row = office.bury()
    client = office.browser(*all_rights(), "add_archivedletter", "change_archivedletter", "delete_archivedletter")
    assert client.get(LETTERS + "add/").status_code == 403
    assert client.get(f"{LETTERS}{row.pk}/delete/").status_code == 403
    client.post(f"{LETTERS}{row.pk}/change/", {"state": "replayed"})
    assert office.states() == ["waiting"]
    assert "delete_selected" not in client.get(LETTERS + "?q=").content.decode()


@pytest.mark.parametrize("action", ACTIONS)
def test_each_action_has_a_permission_of_its_own(office: Office, action: str) -> None:
    row = office.bury()
    if action == "restore":
        office.letters.update(state="discarded")
    state = row.state if action != "restore" else "discarded"
    needed = {"canary": "replay"}.get(action, action) + "_letter"
    others = [right for right in all_rights() if right != needed]
    client = office.browser(*others)
    data = {"action": action, "index": "0", "select_across": "0", "_selected_action": [row.pk], "confirmed": action, "newest": str(row.pk)}
    url = f"{LETTERS}?state__exact={state}"
    client.post(url, data)
    assert (office.states(), office.kit.broker.depth("celery")) == ([state], 0)
    for page in (LETTERS + f"?groups={state}", f"{LETTERS}{row.pk}/change/", url):
        assert f'value="{action}"' not in client.get(page).content.decode()

    allowed = office.browser("view_archivedletter", needed)
    assert f'value="{action}"' in allowed.get(LETTERS + f"?groups={state}").content.decode()
    allowed.post(url, data)
    assert office.states() != [state]


def test_a_post_without_a_csrf_token_is_refused(office: Office) -> None:
    row = office.bury()
    client = office.browser(*all_rights(), enforce_csrf_checks=True)
    assert asked(client, "discard", [row], confirmed="discard", newest=str(row.pk)).status_code == 403
    assert office.states() == ["waiting"]


# -- acting ---------------------------------------------------------------------------------------------------------


def test_it_asks_first_and_says_what_will_happen(office: Office) -> None:
    rows = [office.bury(number, queue="celery") for number in range(3)] + [office.bury(9, queue="other"), office.bury(8, replays=3)]
    key = office.kit.store
    done = rows[0].key
    claim = key.claim(done, holder="h", fingerprint=None, lease=60)
    result = StoredResult("application/json", "utf-8", b"1", "task")
    key.complete(done, holder="h", fingerprint=None, fence=claim.fence, result=result, retention=600)
    page = asked(office.browser(*all_rights()), "replay", rows)
    text = re.sub(r"<[^>]+>", " ", page.content.decode())
    assert re.search(r"To the queue celery\s+4", text)
    assert re.search(r"To the queue other\s+1", text)
    assert re.search(r"Already completed meanwhile\s+1: their tasks do not run again", text)
    assert "1 dead letter replayed too often before" in text
    assert "gateway away" in text
    assert office.states() == ["waiting"] * 5
    assert office.kit.broker.depth("celery") == 0
    assert "replay" not in office.trail.values_list("action", flat=True)


def test_selected_letters_are_replayed_once_confirmed_and_it_is_on_the_trail(office: Office) -> None:
    rows = [office.bury(number) for number in range(3)]
    client = office.browser(*all_rights())
    page = confirmed(client, "replay", rows[:2], why="gateway mended")
    assert "Replayed 2 dead letters to celery (2)." in page.content.decode()
    assert office.states() == ["replayed", "replayed", "waiting"]
    assert office.kit.broker.depth("celery") == 2
    entry = office.trail.latest("pk")
    assert (entry.action, entry.who, entry.why, entry.before, entry.after, entry.letters) == ("replay", "ann", "gateway mended", 2, 0, 2)
    assert entry.selection == f"2 selected: {rows[0].pk}, {rows[1].pk}"
    assert "gateway mended" in client.get(TRAIL).content.decode()


def test_a_whole_group_is_replayed_but_not_what_came_in_after_the_question(office: Office) -> None:
    for number in range(120):
        office.kit.bury(task_message("shop.charge", number), error="a.B")
    office.kit.bury(error="c.D")
    office.archive()
    client = office.browser(*all_rights())
    text = client.get(LETTERS).content.decode()
    url = LETTERS + html.unescape(re.search(r'action="(\?[^"]*a\.B[^"]*)"', text)[1])
    sample = office.letters.filter(error="a.B").latest("pk")
    page = asked(client, "replay", [sample], url, select_across="1")
    late = office.bury(error="a.B")
    done = client.post(url, hidden(page), follow=True)
    assert done.redirect_chain[-1][0] == LETTERS
    assert office.kit.broker.depth("celery") == 120
    assert list(office.letters.filter(state="waiting").values_list("error", flat=True)) == ["c.D", "a.B"]
    assert office.letters.get(pk=late.pk).state == "waiting"
    assert office.trail.latest("pk").selection.startswith("all of: reason = exhausted, error = a.B, fingerprint = ")


def test_a_canary_is_one_letter_and_then_it_is_asked_again(office: Office) -> None:
    rows = [office.bury(number) for number in range(3)]
    page = confirmed(office.browser(*all_rights()), "canary", rows)
    assert "then replay the rest" in page.content.decode()
    assert office.states() == ["waiting", "waiting", "replayed"]
    assert office.trail.latest("pk").action == "canary"


def test_discard_and_restore_go_forth_and_back(office: Office) -> None:
    row = office.bury()
    client = office.browser(*all_rights())
    confirmed(client, "discard", [row], f"{LETTERS}?id__exact={row.pk}", why="a test order")
    assert office.states() == ["discarded"]
    page = client.get(f"{LETTERS}{row.pk}/change/").content.decode()
    assert 'value="restore"' in page
    assert 'value="replay"' not in page
    back = confirmed(client, "restore", [row], f"{LETTERS}?id__exact={row.pk}")
    assert back.redirect_chain[-1][0] == f"{LETTERS}{row.pk}/change/"
    assert office.states() == ["waiting"]
    assert list(office.trail.order_by("pk").values_list("action", flat=True)) == ["archive", "discard", "restore"]


def test_a_broker_that_is_away_is_told_and_letters_wait_on(office: Office) -> None:
    row = office.bury()
    client = office.browser(*all_rights())
    office.kit.broker.close()
    page = confirmed(client, "replay", [row])
    assert "the broker is closed" in page.content.decode()
    assert office.states() == ["waiting"]


def test_a_replay_that_takes_too_long_for_a_request_stops_and_says_how_to_go_on(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    from celery_guardrails.contrib.django import admin

    monkeypatch.setattr(admin, "REPLAY_SECONDS", 0.0)
    rows = [office.bury(number) for number in range(3)]
    page = confirmed(office.browser(*all_rights()), "replay", rows)
    assert "2 dead letters wait on: do it again to go on" in page.content.decode()
    assert office.kit.broker.depth("celery") == 1


def test_a_project_without_a_celery_app_is_told_that_nothing_was_done(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    from celery_guardrails.contrib.django import admin
    from celery_guardrails.errors import GuardrailsConfigError

    def none() -> None:
        raise GuardrailsConfigError("no Celery app was found")

    monkeypatch.setattr(admin, "working_archive", none)
    row = office.bury()
    client = office.browser(*all_rights())
    page = client.post(LETTERS + "?state__exact=waiting", {"action": "replay", "index": "0", "_selected_action": [row.pk]}, follow=True)
    assert "Nothing was done: no Celery app was found" in page.content.decode()


def test_a_replay_is_committed_letter_by_letter_also_where_requests_are_atomic(tables: None) -> None:
    from celery_guardrails.contrib.django.admin import ArchivedLetterAdmin

    assert "default" in ArchivedLetterAdmin.changelist_view._non_atomic_requests
