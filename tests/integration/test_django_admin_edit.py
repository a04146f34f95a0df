"""A dead letter is edited in the admin: checked, shown as a difference, replayed once, remembered; and what is hidden stays hidden."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import pytest

from celery_guardrails.dead_letters import KombuDecoder
from celery_guardrails.policy.delivery import TRAVEL_HEADER, RawMessage, Travel
from tests.support.dead_letters import task_message
from tests.support.office import LETTERS, TRAIL, Office, all_rights, text_of

pytest.importorskip("django", reason="pip install 'celery-guardrails[django]'")


def bury(office: Office, args: list[Any], **kwargs: Any) -> Any:
    message = KombuDecoder(["json"]).rewrite(task_message("shop.charge", key="charge:7"), args, kwargs)
    office.kit.bury(message)
    office.archive()
    return office.letters.latest("pk")


def url_of(row: Any) -> str:
    return f"{LETTERS}{row.pk}/edit/"


def text_in(page: Any) -> str:
    return html.unescape(re.search(r"<textarea[^>]*>(.*?)</textarea>", page.content.decode(), re.DOTALL)[1])


def sent(client: Any, row: Any, args: list[Any], kwargs: dict[str, Any] | None = None, **more: str) -> Any:
    return client.post(url_of(row), {"text": json.dumps({"args": args, "kwargs": kwargs or {}}), **more}, follow=True)


def arguments(message: RawMessage) -> list[Any]:
    return json.loads(message.body)[:2]


def test_a_letter_is_edited_shown_as_a_difference_and_replayed_once_confirmed(office: Office) -> None:
    row = bury(office, [7, 12.5], note="old", api_key="k-1")
    client = office.browser(*all_rights())
    assert f'href="{url_of(row)}"' in client.get(f"{LETTERS}{row.pk}/change/").content.decode()
    form = client.get(url_of(row))
    assert "shop.charge(order_id: Any = None, amount: float = 0.0" in text_of(form).replace("'", "")
    data = json.loads(text_in(form))
    assert data == {"args": [7, 12.5], "kwargs": {"note": "old", "api_key": "********"}}
    data["args"][1] = 99.0

    question = client.post(url_of(row), {"text": json.dumps(data)})
    assert "will be published again to the queue celery" in text_of(question)
    assert "Changes Argument Old New amount 12.5 99.0" in text_of(question)
    assert "k-1" not in question.content.decode()
    assert (office.states(), office.kit.broker.depth("celery")) == (["waiting"], 0), "a question changes nothing"

    done = client.post(url_of(row), {"text": json.dumps(data), "confirmed": "edit", "why": "wrong price"}, follow=True)
    assert "Replayed to celery with other arguments." in text_of(done)
    assert done.redirect_chain[-1][0] == f"{LETTERS}{row.pk}/change/"
    [message] = office.kit.broker.messages("celery")
    assert arguments(message) == [[7, 99.0], {"note": "old", "api_key": "k-1"}]
    assert message.headers["id"] == row.task_id
    assert Travel.from_headers(message.headers).edited == (("amount", "12.5", "99.0"),)
    assert office.states() == ["replayed"]
    row.refresh_from_db()
    assert json.loads(bytes(row.body))[0] == [7, 12.5], "the archive keeps what died"

    entry = office.trail.latest("pk")
    assert (entry.action, entry.who, entry.why, entry.letters, entry.before, entry.after) == ("edit", "ann", "wrong price", 1, 1, 0)
    assert json.loads(entry.outcome) == {"changes": [{"argument": "amount", "old": "12.5", "new": "99.0"}]}
    assert "12.5" in client.get(f"{TRAIL}{entry.pk}/change/").content.decode()


def test_sent_twice_it_is_replayed_once(office: Office) -> None:
    row = bury(office, [7, 1.0])
    client, other = office.browser(*all_rights()), office.browser(*all_rights(), name="bob")
    sent(client, row, [7, 2.0], confirmed="edit")
    for again in (client, other):
        assert "Nothing was done: the letter was replayed meanwhile." in text_of(sent(again, row, [7, 3.0], confirmed="edit"))
    assert [arguments(message)[0] for message in office.kit.broker.messages("celery")] == [[7, 2.0]]
    assert office.trail.filter(action="edit").count() == 1


def test_somebody_who_is_faster_between_the_look_and_the_replay_wins(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    row = bury(office, [7, 1.0])
    send = office.desk.send

    def late(*args: Any, **kwargs: Any) -> bool:
        office.letters.update(state="discarded")
        return send(*args, **kwargs)

    monkeypatch.setattr(office.desk, "send", late)
    assert "somebody else was faster" in text_of(sent(office.browser(*all_rights()), row, [7, 2.0], confirmed="edit"))
    assert (office.kit.broker.depth("celery"), office.trail.latest("pk").letters) == (0, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"args": [7], "kwargs":', "a JSON object with"),
        ('{"args": 7, "kwargs": {}}', "a JSON object with"),
        ('{"args": [7, "much"], "kwargs": {}}', "amount = 'much': float is allowed"),
        ('{"args": [7, 1, 2, 3, 4], "kwargs": {}}', "too many positional arguments"),
        ('{"args": [7], "kwargs": {"colour": "red"}}', "unexpected keyword argument 'colour'"),
        ('{"args": ["********", 1.0], "kwargs": {}}', "stands where nothing was hidden"),
        ('{"args": [7, 1.0], "kwargs": {"api_key": "********"}}', "nothing was changed"),
    ],
)
@pytest.mark.parametrize("confirm", [{}, {"confirmed": "edit"}])
def test_what_does_not_fit_is_told_above_the_form_and_nothing_is_replayed(
    office: Office, text: str, said: str, confirm: dict[str, str]
) -> None:
    row = bury(office, [7, 1.0], api_key="k-1")
    page = office.browser(*all_rights()).post(url_of(row), {"text": text, **confirm})
    assert said in text_of(page)
    assert text_in(page).strip() == text, "what was typed is still there"
    assert (office.states(), office.kit.broker.depth("celery")) == (["waiting"], 0)


def test_force_goes_against_annotations_and_one_may_change_it_again(office: Office) -> None:
    row = bury(office, [7, 1.0])
    client = office.browser(*all_rights())
    question = sent(client, row, [7, "much"], force="1")
    assert 'name="force" value="1"' in question.content.decode()
    again = sent(client, row, [7, "much"], force="1", confirmed="edit", again="1")
    assert '"much"' in text_in(again)
    assert office.states() == ["waiting"]
    sent(client, row, [7, "much"], force="1", confirmed="edit")
    assert [arguments(message)[0] for message in office.kit.broker.messages("celery")] == [[7, "much"]]


def test_a_key_that_is_made_of_arguments_is_shown_before_and_after(office: Office) -> None:
    row = bury(office, [7, 1.0])
    client = office.browser(*all_rights())
    assert "Idempotency key Old charge:7 New charge:8" in text_of(sent(client, row, [8, 1.0]))
    sent(client, row, [8, 1.0], confirmed="edit")
    [message] = office.kit.broker.messages("celery")
    assert message.headers[TRAVEL_HEADER]["key"] == "charge:8"
    assert json.loads(office.trail.latest("pk").outcome)["new_key"] == "charge:8"


def test_a_broker_that_is_away_is_told_and_the_letter_waits_on(office: Office) -> None:
    row = bury(office, [7, 1.0])
    office.kit.broker.close()
    page = sent(office.browser(*all_rights()), row, [7, 2.0], confirmed="edit")
    assert "It was not replayed, and waits on: " in text_of(page)
    assert office.states() == ["waiting"]
    outcome = json.loads(office.trail.latest("pk").outcome)
    assert outcome["changes"]
    assert "closed" in outcome["stopped"]


def test_a_letter_that_nobody_can_read_cannot_be_edited(office: Office) -> None:
    office.kit.bury_raw(RawMessage(b"\x80junk", "application/x-python-serialize", "binary", {"task": "shop.charge", "id": "1"}, {}, "", ""))
    office.archive()
    page = office.browser(*all_rights()).get(url_of(office.letters.get()), follow=True)
    assert "Nothing was done: " in text_of(page)
    assert "is not in accept_content" in text_of(page)


def test_it_needs_a_permission_of_its_own_and_a_csrf_token(office: Office) -> None:
    row = bury(office, [7, 1.0])
    for rights in ([right for right in all_rights() if right != "edit_letter"], ["edit_letter"]):
        client = office.browser(*rights)
        assert client.get(url_of(row)).status_code == 403
        assert sent(client, row, [7, 2.0], confirmed="edit").status_code == 403
    without = office.browser(*(right for right in all_rights() if right != "edit_letter"))
    assert url_of(row) not in without.get(f"{LETTERS}{row.pk}/change/").content.decode()
    strict = office.browser(*all_rights(), enforce_csrf_checks=True)
    assert sent(strict, row, [7, 2.0], confirmed="edit").status_code == 403
    assert office.states() == ["waiting"]
    sent(office.browser("view_archivedletter", "edit_letter"), row, [7, 2.0], confirmed="edit")
    assert office.states() == ["replayed"]


def test_a_get_never_replays(office: Office) -> None:
    row = bury(office, [7, 1.0])
    office.browser(*all_rights()).get(url_of(row), {"text": '{"args": [8], "kwargs": {}}', "confirmed": "edit"})
    assert (office.states(), office.kit.broker.depth("celery")) == (["waiting"], 0)


def test_a_letter_that_is_gone_leads_back_with_a_word(office: Office) -> None:
    page = office.browser(*all_rights()).get(f"{LETTERS}999999/edit/", follow=True)
    assert page.status_code == 200
    assert "999999" in text_of(page)
