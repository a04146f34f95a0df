"""Django's admin shows dead letters escaped and redacted, asks before it acts, and lets only those act who may."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from celery_guardrails import Guardrails
from celery_guardrails.dead_letters.redaction import HIDDEN, redactor
from celery_guardrails.policy.delivery import TRAVEL_HEADER, Travel
from celery_guardrails.policy.history import PastAttempt, PastDeath
from tests.support import django as dj
from tests.support.dead_letters import Kit, task_message
from tests.support.office import ACTIONS, LETTERS, TRAIL, Office, all_rights, asked, confirmed, hidden, text_of

pytest.importorskip("django", reason="pip install 'celery-guardrails[django]'")

EVIL = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>"


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


def test_the_error_and_the_traceback_of_every_attempt_are_shown_and_earlier_deaths(office: Office) -> None:
    history = (
        PastAttempt(1, 1_800_000_000.0, "shop.First", "the first one", "f" * 16, "Traceback: first"),
        PastAttempt(5, 1_800_000_100.0, "shop.Fifth", "the fifth one", "e" * 16, "", skipped=3),
    )
    deaths = (PastDeath("permanent", "shop.Earlier", 1_799_000_000.0),)
    message = task_message("shop.charge", 7)
    travel = Travel(attempts=6, first=1_800_000_000.0, replays=1, history=history, deaths=deaths, edited=(("amount", "1", "2"),))
    office.kit.bury(message.with_headers(**{TRAVEL_HEADER: travel.to_header()}))
    office.archive()
    page = office.browser("view_archivedletter").get(f"{LETTERS}{office.letters.get().pk}/change/")
    text = text_of(page).rpartition(" History ")[2]
    order = [
        *(
            "died before, permanent shop.Earlier, and was replayed",
            "published (replayed 1 time since)",
            "died, exhausted, after 6 attempts",
        ),
        *("The last attempt", "ConnectionError: gateway away", "pay()"),
        *("Attempt 5", "shop.Fifth: the fifth one", "Its traceback was not kept.", "3 attempts before it were left out"),
        *("Attempt 1", "shop.First: the first one", "Traceback: first"),
        *("Arguments that were changed before a replay", "amount 1 2"),
    ]
    assert sorted(order, key=text.index) == order
    assert page.content.decode().count("<details open>") == 1


def test_what_is_hidden_by_configuration_is_hidden_on_every_page(tables_of_the_admin: None, monkeypatch: pytest.MonkeyPatch) -> None:
    office = Office(monkeypatch, redact=redactor(without_cards))
    row = office.bury("card 4111", message="refused 4111", traceback="File 4111", reason="permanent")
    client = office.browser(*all_rights())
    pages = [client.get(LETTERS), client.get(LETTERS + "?q="), client.get(f"{LETTERS}{row.pk}/change/"), asked(client, "replay", [row])]
    pages += [
        client.get(f"{LETTERS}{row.pk}/edit/"),
        client.post(f"{LETTERS}{row.pk}/edit/", {"text": '{"args": ["card 5500"], "kwargs": {}}'}),
    ]
    for page in pages:
        assert page.status_code == 200
        assert "4111" not in page.content.decode()
        assert "…" in page.content.decode()


def without_cards(value: Any) -> Any:
    if isinstance(value, list):
        return [without_cards(item) for item in value]
    if isinstance(value, dict):
        return {name: without_cards(item) for name, item in value.items()}
    return value.replace("4111", "…") if isinstance(value, str) else value


def test_nothing_is_shown_while_the_redaction_is_configured_wrong(tables_of_the_admin: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from celery_guardrails.contrib.django import pages

    app = Celery("wrong", broker="memory://", set_as_current=False)
    Guardrails(app, store="memory://", redact="no_such_module.redact")
    monkeypatch.setattr(pages, "celery_app", lambda: app)
    archive = pages.reading_archive()
    assert [archive.redact(value) for value in ("text", "", [1, 2], {"a": 1})] == [HIDDEN, "", [HIDDEN, HIDDEN], {"a": HIDDEN}]


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
        client.get(f"{LETTERS}{row.pk}/edit/"),
        client.post(f"{LETTERS}{row.pk}/edit/", {"text": EVIL}),
        client.post(f"{LETTERS}{row.pk}/edit/", {"text": json.dumps({"args": [EVIL, EVIL + "!"], "kwargs": {EVIL: 1}}), "force": "1"}),
        confirmed(client, "canary", rows, why=EVIL),
        client.get(LETTERS),
        client.get(f"{LETTERS}{row.pk}/change/"),
    ]
    run = office.runs.get()
    client.post(f"{LETTERS}canary/{run.pk}/", {"do": "stop"})
    office.runs.update(outcome=EVIL, who=EVIL)
    pages += [
        client.get(f"{LETTERS}canary/{run.pk}/"),
        confirmed(client, "discard", rows, why=EVIL),
        client.get(TRAIL),
        client.get(f"{TRAIL}{office.trail.latest('pk').pk}/change/"),
        asked(client, "restore", rows, LETTERS + "?state__exact=discarded"),
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
    needed = action + "_letter"
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
    office.complete(rows[0].key)
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
    from celery_guardrails.contrib.django import pages
    from celery_guardrails.errors import GuardrailsConfigError

    def none() -> None:
        raise GuardrailsConfigError("no Celery app was found")

    monkeypatch.setattr(pages, "working_archive", none)
    row = office.bury()
    client = office.browser(*all_rights())
    page = client.post(LETTERS + "?state__exact=waiting", {"action": "replay", "index": "0", "_selected_action": [row.pk]}, follow=True)
    assert "Nothing was done: no Celery app was found" in page.content.decode()


def test_a_replay_is_committed_letter_by_letter_also_where_requests_are_atomic(tables_of_the_admin: None) -> None:
    from django.urls import resolve

    for page in ("", "5/edit/", "canary/5/"):
        assert "default" in resolve(LETTERS + page).func._non_atomic_requests


# -- which database -------------------------------------------------------------------------------------------------


@pytest.fixture
def far_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Letters in another database of the project, which ``guardrails_archive`` names."""
    from celery_guardrails.contrib.django import pages
    from celery_guardrails.contrib.django.archiving import run_archive
    from celery_guardrails.contrib.django.models import ArchivedLetter

    with dj.database("far", f"sqlite:///{tmp_path / 'far.sqlite3'}") as alias:
        app = Celery("far", broker="memory://", set_as_current=False)
        rails = Guardrails(app, store="memory://", archive=f"django://{alias}")
        kit = Kit("celery")
        kit.bury(task_message("shop.far", 1), message="far away", last_seen=1e9)
        monkeypatch.setattr(pages, "celery_app", lambda: app)
        monkeypatch.setattr(pages, "project_app", lambda: app)
        monkeypatch.setattr(type(rails), "broker", kit.broker)
        conf = SimpleNamespace(conf=SimpleNamespace(accept_content=["json"]))
        run_archive(SimpleNamespace(broker=kit.broker, clock=kit.clock, app=conf, dead_letters=kit.service), using=alias)
        yield ArchivedLetter.objects.using(alias)


def test_it_shows_and_moves_what_is_in_the_database_that_the_archive_is_set_to(office: Office, far_letters: Any) -> None:
    from celery_guardrails.contrib.django.models import AuditEntry, CanaryRun

    office.bury(1, message="near by")
    office.leave()
    client = office.browser(*all_rights())
    [row] = far_letters.all()
    for page in (LETTERS, LETTERS + "?state__exact=waiting", f"{LETTERS}{row.pk}/change/"):
        text = text_of(client.get(page))
        assert "far away" in text, page
        assert "near by" not in text, page
    assert "Discard: are you sure?" in text_of(asked(client, "discard", [row]))
    confirmed(client, "canary", [row])
    run = CanaryRun.objects.using("far").get()
    assert far_letters.get().state == "replayed"
    assert "It is being watched" in text_of(client.get(f"{LETTERS}canary/{run.pk}/"))
    assert office.states() == ["waiting"]
    assert [entry.action for entry in AuditEntry.objects.using("far").order_by("pk")][-1] == "canary"
    assert "canary 1, one letter" in text_of(client.get(TRAIL))
