"""A canary in the admin: one letter, 1 %, all; it goes on when somebody says so, stops itself, and survives whoever moves it."""

from __future__ import annotations

from typing import Any

import pytest

from celery_guardrails.dead_letters.restore import restored
from celery_guardrails.policy.delivery import Travel
from tests.support.dead_letters import certificate_for
from tests.support.killing import Killed, killed_at
from tests.support.office import LETTERS, Office, all_rights, asked, confirmed, hidden, text_of

pytest.importorskip("django", reason="pip install 'celery-guardrails[django]'")


class Run:
    """A canary of all letters, and the browser of who began it."""

    def __init__(self, office: Office, client: Any = None) -> None:
        self.office = office
        self.client = client or office.browser(*all_rights())
        self.page = confirmed(self.client, "canary", list(office.letters.filter(state="waiting")), why="mended")
        self.pk = office.runs.latest("pk").pk
        self.url = f"{LETTERS}canary/{self.pk}/"

    @property
    def row(self) -> Any:
        return self.office.runs.get(pk=self.pk)

    def look(self) -> str:
        return text_of(self.client.get(self.url))

    def go_on(self, stage: int | None = None, client: Any = None) -> str:
        data = {"do": "go on", "stage": str(self.row.stage if stage is None else stage)}
        return text_of((client or self.client).post(self.url, data, follow=True))

    def birds(self) -> list[Any]:
        return list(self.office.letters.filter(canary=self.pk, canary_stage=self.row.stage).order_by("pk"))

    def complete(self) -> None:
        self.office.complete(*(bird.key for bird in self.birds()))


def die_again(office: Office, row: Any, **fields: Any) -> None:
    """Let the task of a letter that was replayed die again, in the dead letter queue."""
    live = restored(office.desk.letter(row), now=office.kit.clock.now())
    office.kit.clock.advance(1.0)
    died = certificate_for(live, last_seen=office.kit.clock.now(), replays=Travel.from_headers(live.headers).replays, **fields)
    office.kit.broker.dead_letter(live, "celery", died)


# -- as it should be ------------------------------------------------------------------------------------------------


def test_it_goes_by_one_letter_one_in_a_hundred_and_all_each_when_somebody_says_so(office: Office) -> None:
    letters = office.bury_many(150)
    client = office.browser(*all_rights())
    question = text_of(asked(client, "canary", letters))
    assert "1 of 150 letters, the one archived first, will be published again now" in question
    assert "Then 2, then the other 147, each time after you have seen how it went and said so." in question
    assert "To the queue celery 150" in question
    assert office.states() == ["waiting"] * 150

    run = Run(office, client)
    assert run.page.redirect_chain[-1][0] == run.url
    assert office.states() == ["replayed"] + ["waiting"] * 149
    page = run.look()
    assert "It is being watched: nothing has been heard of 1 of 1" in page
    assert "Go on" not in page
    assert "http-equiv" in client.get(run.url).content.decode(), "it looks again by itself"

    run.complete()
    page = run.look()
    assert "The letter of this stage has completed." in page
    assert "Go on with 1 %: 2 dead letters" in page
    assert office.kit.broker.depth("celery") == 1, "looking lets nothing go"
    run.go_on()
    assert office.kit.broker.depth("celery") == 3

    run.complete()
    assert "Go on with all: 147 dead letters" in run.look()
    run.go_on()
    assert set(office.states()) == {"replayed"}
    page = run.look()
    assert "done" in page
    assert "All letters have been replayed" in page
    assert "one letter 1 1 1 0 0 over 1 % 2 2 2 0 0 over all 147 147" in page
    assert sorted({message.headers["id"] for message in office.kit.broker.messages("celery")}) == sorted(row.task_id for row in letters)
    assert "150 archived dead letters" in text_of(client.get(f"{LETTERS}?canary__id__exact={run.pk}"))
    trail = office.trail.filter(action="canary").order_by("pk")
    assert [(entry.who, entry.letters) for entry in trail] == [("ann", 1), ("ann", 2), ("ann", 147)]
    assert trail[0].why == "mended"


def test_one_letter_alone_is_done_when_it_has_completed(office: Office) -> None:
    office.bury()
    run = Run(office)
    assert run.row.state == "open"
    run.complete()
    run.look()
    assert run.row.state == "done"


def test_a_letter_whose_key_has_completed_proves_nothing_and_goes_beside_the_others(office: Office) -> None:
    letters = office.bury_many(3)
    office.complete(letters[0].key)
    run = Run(office)
    assert office.states() == ["replayed", "replayed", "waiting"]
    assert [bird.pk for bird in run.birds()] == [letters[1].pk]


def test_letters_that_can_only_die_again_or_were_replayed_too_often_are_left_out(office: Office) -> None:
    fine = office.bury()
    office.bury(reason="undecodable")
    office.bury(replays=3)
    client = office.browser(*all_rights())
    page = text_of(asked(client, "canary", office.letters.all()))
    assert "2 of 3: replayed too often before, or they would only die again" in page
    run = Run(office, client)
    assert run.row.chosen == 1
    assert list(office.letters.filter(canary=run.pk)) == [fine]


def test_of_letters_that_cannot_be_canaries_there_is_nothing_to_do(office: Office) -> None:
    row = office.bury(replays=3)
    client = office.browser(*all_rights())
    page = asked(client, "canary", [row])
    assert "None of the selected letters can be a canary" in text_of(page)
    forced = asked(client, "canary", [row], confirmed="canary", newest=str(row.pk))
    assert forced.status_code == 302
    assert office.runs.count() == 0


# -- it stops itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("archived", [False, True])
def test_it_stops_itself_when_a_canary_is_dead_again(office: Office, archived: bool) -> None:
    letters = office.bury_many(3)
    run = Run(office)
    die_again(office, letters[0], error="shop.Another", fingerprint="a" * 16)
    if archived:
        office.archive()
    page = run.look()
    assert "It stopped itself at the stage 'one letter': shop.charge" in page
    assert "is dead again" in page
    assert run.row.state == "stopped"
    assert "Go on" not in page
    free = office.letters.filter(state="waiting")
    assert free.count() == 2 + archived
    assert not free.exclude(canary=None).exists(), "the letters that are left are anybody's again"
    assert "somebody else was faster: it is stopped" in run.go_on()
    assert office.kit.broker.depth("celery") == 1


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_it_stops_itself_when_the_same_error_is_back_at_any_stage_and_lets_no_more_go(
    office: Office, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    from celery_guardrails.contrib.django import canary_pages

    office.bury_many(110)
    run = Run(office)
    for number in range(stage):
        run.complete()
        if number == 1:
            monkeypatch.setattr(canary_pages, "REPLAY_SECONDS", 0.0)
        run.go_on()
    assert run.row.stage == stage
    run.complete()
    before = office.kit.broker.depth("celery")
    office.kit.clock.advance(1.0)
    office.kit.bury(last_seen=office.kit.clock.now())
    assert "is back" in run.go_on()
    assert (run.row.state, office.kit.broker.depth("celery")) == ("stopped", before)


def test_what_died_before_it_began_does_not_stop_it(office: Office) -> None:
    office.bury_many(3)
    run = Run(office)
    office.kit.bury(last_seen=office.kit.clock.now() - 60)
    run.complete()
    run.go_on()
    assert run.row.stage == 1


def test_it_does_not_go_on_while_a_canary_waits_for_its_retry(office: Office) -> None:
    letters = office.bury_many(3)
    run = Run(office)
    store = office.kit.store
    store.claim(letters[0].key, holder="h", fingerprint=None, lease=60)
    store.release(letters[0].key, holder="h", attempts=1)
    office.kit.clock.advance(100)
    page = run.look()
    assert "a canary has failed again, and waits for its retry" in page
    assert "Go on with" not in page
    assert "still being watched" in run.go_on()
    run.complete()
    run.go_on()
    assert run.row.stage == 1


def test_after_half_a_minute_without_a_word_an_operator_may_go_on_and_is_told_what_that_proves(office: Office) -> None:
    office.bury_many(3)
    run = Run(office)
    office.kit.clock.advance(29)
    assert "still being watched" in run.go_on()
    office.kit.clock.advance(2)
    page = run.look()
    assert "Nothing has been heard of 1 of 1 within 30 s; none has died." in page
    assert "To go on now proves nothing about it" in page
    run.go_on()
    assert run.row.stage == 1
    assert "1 % 2 1" not in page


def test_a_first_letter_that_cannot_be_moved_stops_it(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    office.bury_many(3)
    client = office.browser(*all_rights())
    office.kit.broker.close()
    run = Run(office, client)
    assert "The first letter was not replayed" in text_of(run.page)
    assert run.row.state == "stopped"
    assert office.states() == ["waiting"] * 3
    assert not office.letters.exclude(canary=None).exists()


def test_nobody_goes_on_while_the_store_or_the_broker_does_not_answer(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    from celery_guardrails.errors import StoreUnavailable

    office.bury_many(3)
    run = Run(office)
    run.complete()

    def away(*_: Any) -> Any:
        raise StoreUnavailable("no answer")

    places = [
        (office.kit.store, "lookup", away, "the store does not say"),
        (office.kit.broker, "browse", _boom, "cannot be looked through"),
    ]
    for port, method, answer, said in places:
        with monkeypatch.context() as patch:
            patch.setattr(port, method, answer)
            assert said in run.look()
            assert said in run.go_on()
    assert (run.row.state, run.row.stage) == ("open", 0)
    run.go_on()
    assert run.row.stage == 1


def _boom(*_: Any) -> Any:
    raise OSError("connection refused")


# -- several people, killed processes -------------------------------------------------------------------------------


def test_two_operators_cannot_both_run_it(office: Office) -> None:
    letters = office.bury_many(3)
    ann, bob = office.browser(*all_rights()), office.browser(*all_rights(), name="bob")
    pages = {client: asked(client, "canary", letters) for client in (ann, bob)}
    url = LETTERS + "?state__exact=waiting"
    ann.post(url, hidden(pages[ann]))
    second = bob.post(url, hidden(pages[bob]), follow=True)
    assert "none of these letters can be a canary" in text_of(second)
    assert (office.runs.count(), office.kit.broker.depth("celery")) == (1, 1)
    assert "Canary" in text_of(bob.get(LETTERS))
    assert "of ann is open: 3 letters" in text_of(bob.get(LETTERS))


@pytest.mark.parametrize("action", ["replay", "discard", "canary"])
def test_letters_of_an_open_canary_are_nobody_elses(office: Office, action: str) -> None:
    letters = office.bury_many(3)
    bob = office.browser(*all_rights(), name="bob")
    before = asked(bob, action, letters)
    run = Run(office)
    assert "2 of the selected letters are in an open canary" in text_of(asked(bob, action, letters))
    bob.post(LETTERS + "?state__exact=waiting", hidden(before), follow=True)
    assert office.states() == ["replayed", "waiting", "waiting"]
    assert office.kit.broker.depth("celery") == 1
    page = bob.get(f"{LETTERS}{letters[2].pk}/change/").content.decode()
    assert f'href="{run.url}"' in page
    assert 'name="action"' not in page
    assert "is in an open canary" in text_of(bob.get(f"{LETTERS}{letters[2].pk}/edit/", follow=True))

    bob.post(run.url, {"do": "stop"})
    assert run.row.state == "stopped"
    assert "Stopped by bob" in run.look()
    confirmed(bob, "discard", letters)
    assert office.states() == ["replayed", "discarded", "discarded"]


def test_a_button_pressed_twice_or_by_two_lets_the_next_stage_go_once(office: Office) -> None:
    office.bury_many(120)
    run = Run(office)
    run.complete()
    bob = office.browser(*all_rights(), name="bob")
    run.go_on(stage=0)
    assert "somebody else was faster" in run.go_on(stage=0, client=bob)
    assert "somebody else was faster" in run.go_on(stage=0)
    assert (run.row.stage, office.kit.broker.depth("celery")) == (1, 3)


def test_two_who_let_go_at_once_never_let_more_go_than_the_stage_may(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one's request comes in the middle of each publish of the first one's."""
    from celery_guardrails.contrib.django.canarying import Canaries

    office.bury_many(120)
    run = Run(office)
    run.complete()
    other_desk, nested = Canaries(office.desk), []

    def interrupted(self: Canaries, mine: Any, row: Any) -> Any:
        if not nested:
            nested.append(True)
            for other in office.letters.filter(canary=run.pk, state="waiting").order_by("pk")[:3]:
                original(other_desk, office.runs.get(pk=run.pk), other)
        return original(self, mine, row)

    original = Canaries._let_one_go
    monkeypatch.setattr(Canaries, "_let_one_go", interrupted)
    run.go_on()
    assert nested
    assert (len(run.birds()), run.row.counted, office.kit.broker.depth("celery")) == (2, 2, 3)


def test_a_process_that_is_killed_loses_no_letter_and_anybody_goes_on(office: Office) -> None:
    """Killed at every point of every publish; the letter in hand may be repeated, and its key keeps it from running twice."""
    letters = office.bury_many(110)
    run = Run(office)
    run.complete()
    bob = office.browser(*all_rights(), name="bob")
    for point in ["before send", "after send"] * 2:
        with pytest.raises(Killed), killed_at(office.kit.broker, point):
            bob.post(run.url, {"do": "go on", "stage": str(run.row.stage)})
        waiting = {row.task_id for row in office.letters.filter(state="waiting")}
        live = {message.headers["id"] for message in office.kit.broker.messages("celery")}
        assert waiting | live == {row.task_id for row in letters}, "each letter waits, or is in its queue"
    assert "0 sent in this stage" in run.look()
    assert "Send the rest of this stage" in run.look()
    run.go_on(client=bob)
    assert len(run.birds()) == 2
    run.complete()
    run.go_on(client=bob)
    assert set(office.states()) == {"replayed"}


def test_a_replay_of_very_many_goes_on_where_a_request_has_left_it(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    from celery_guardrails.contrib.django import canary_pages

    office.bury_many(110)
    run = Run(office)
    for _ in range(2):
        run.complete()
        if run.row.stage == 1:
            monkeypatch.setattr(canary_pages, "REPLAY_SECONDS", 0.0)
        run.go_on()
    assert "Send on: 106 dead letters left" in run.look()
    assert "1 sent in this stage" in run.look()
    monkeypatch.setattr(canary_pages, "REPLAY_SECONDS", 20.0)
    assert "All letters have been replayed" in run.go_on()
    assert set(office.states()) == {"replayed"}


def test_letters_that_cannot_be_moved_in_the_last_stage_are_told_and_free_again(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    from celery_guardrails.errors import PublishFailed

    letters = office.bury_many(10)
    run = Run(office)
    run.complete()
    run.go_on()
    run.complete()
    send = office.kit.broker.send

    def refuse(message: Any, queue: str) -> None:
        if message.headers["id"] in (letters[5].task_id, letters[6].task_id):
            raise PublishFailed("no such queue")
        send(message, queue)

    monkeypatch.setattr(office.kit.broker, "send", refuse)
    assert "2 dead letters could not be moved and wait on" in run.go_on()
    assert run.row.state == "done"
    assert office.states().count("waiting") == 2
    assert not office.letters.filter(state="waiting").exclude(canary=None).exists()


# -- permissions ----------------------------------------------------------------------------------------------------


def test_moving_it_needs_its_own_permission_a_post_and_a_csrf_token(office: Office) -> None:
    office.bury_many(3)
    run = Run(office)
    run.complete()
    without = office.browser(*(right for right in all_rights() if right != "canary_letter"), name="bob")
    page = without.get(run.url)
    assert page.status_code == 200
    assert 'name="do"' not in page.content.decode()
    strict = office.browser(*all_rights(), name="bob", enforce_csrf_checks=True)
    for data in ({"do": "go on", "stage": "0"}, {"do": "stop"}):
        without = office.browser(*(right for right in all_rights() if right != "canary_letter"), name="eve")
        assert without.post(run.url, data).status_code == 403
        assert strict.post(run.url, data).status_code == 403
        assert run.client.get(run.url, data).status_code == 200
    assert (run.row.state, run.row.stage, office.kit.broker.depth("celery")) == ("open", 0, 1)
    nobody = office.browser("canary_letter", name="eve")
    assert nobody.get(run.url).status_code == 403
    enough = office.browser("view_archivedletter", "canary_letter", name="eve")
    run.go_on(client=enough)
    assert run.row.stage == 1


def test_an_unknown_canary_or_button_leads_back_with_a_word(office: Office) -> None:
    client = office.browser(*all_rights())
    assert "There is no canary 99999." in text_of(client.get(f"{LETTERS}canary/99999/", follow=True))
    office.bury_many(2)
    run = Run(office, client)
    run.complete()
    for data in ({}, {"do": "go on"}, {"do": "go on", "stage": "x"}, {"do": "other"}):
        assert client.post(run.url, data, follow=True).status_code == 200
    assert (run.row.state, run.row.stage) == ("open", 0)


def test_a_canary_without_a_celery_app_is_shown_and_nothing_goes_on(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    from celery_guardrails.contrib.django import pages
    from celery_guardrails.errors import GuardrailsConfigError

    office.bury_many(2)
    run = Run(office)

    def none() -> None:
        raise GuardrailsConfigError("no Celery app was found")

    monkeypatch.setattr(pages, "working_archive", none)
    assert "Nobody can say how it stands, so it does not go on: no Celery app was found" in run.look()
    run.go_on()
    assert run.row.stage == 0


def test_a_letter_that_code_has_taken_away_takes_no_place_of_a_stage(office: Office) -> None:
    letters = office.bury_many(110)
    run = Run(office)
    run.complete()
    send = office.desk.send

    def taken_first(row: Any, *args: Any, **marks: Any) -> bool:
        office.letters.filter(pk=letters[1].pk).update(state="discarded")
        return send(row, *args, **marks)

    office.desk.send = taken_first  # type: ignore[method-assign]
    run.go_on()
    assert [bird.pk for bird in run.birds()] == [letters[2].pk, letters[3].pk]
    assert (run.row.counted, run.row.moved) == (2, 2)
