"""The commands where there is an archive: they work on the letters in the queues and on the archived ones, and say where each lies."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")

from celery_guardrails.cli import commands
from celery_guardrails.contrib.sqlalchemy_archive import SQLAlchemyTable
from celery_guardrails.dead_letters import Edit
from celery_guardrails.errors import PublishFailed
from celery_guardrails.policy.lease import StoredResult
from tests.support.archive import Desk
from tests.support.dead_letters import task_message
from tests.support.killing import Killed, killed_at, meanwhile
from tests.unit.test_dead_letters_cli import make_runner


class Office(Desk):
    """An app with an archive whose commands can be run: two letters are archived, two lie in the queue."""

    def __init__(self, table: Any) -> None:
        super().__init__(table, "celery", "mail")
        self.group = commands(lambda: SimpleNamespace(main="shop", guardrails=self.rails))

    def fill(self) -> None:
        for name in ("a1", "a2"):
            self.bury(name)
        self.run()
        for name in ("q1", "q2"):
            self.bury(name)

    def bury(self, name: str, **fields: Any) -> None:
        self.kit.bury(task_message("shop.charge", 7, task_id=name, key=f"key-{name}"), **fields)

    def cli(self, *args: str, code: int = 0, answer: str | None = None) -> Any:
        result = make_runner().invoke(self.group, ["dead-letters", *args], input=answer)
        assert result.exit_code == code, (result.output, result.exception)
        return result

    def json(self, *args: str, code: int = 0) -> Any:
        return json.loads(self.cli(*args, "--json", code=code).stdout)

    def listed(self, *args: str) -> list[tuple[str, str, str]]:
        return [(letter["task_id"], letter["place"], letter["state"]) for letter in self.json("list", *args)]

    def live(self) -> list[str]:
        return [message.headers["id"] for message in self.kit.broker.messages("celery")]

    def queued(self) -> list[str]:
        return [message.headers["id"] for message in self.kit.broker.messages("celery.dead")]


@pytest.fixture
def office(letter_table: SQLAlchemyTable) -> Office:
    made = Office(letter_table)
    made.fill()
    return made


WAITING = [("a1", "archive", "waiting"), ("a2", "archive", "waiting"), ("q1", "queue", "waiting"), ("q2", "queue", "waiting")]

# -- looking --------------------------------------------------------------------------------------------------------


def test_list_shows_both_and_says_where_each_lies(office: Office) -> None:
    assert office.listed() == WAITING
    assert office.listed("--archived") == WAITING[:2]
    assert office.listed("--queued") == WAITING[2:]
    assert office.listed("--limit", "3") == WAITING[:3]
    assert office.listed("--key", "key-a2") == WAITING[1:2]
    lines = office.cli("list").stdout.splitlines()
    column = lines[0].index(" IN ") + 1
    assert [line[column:].split()[0] for line in lines[1:]] == ["archive", "archive", "queue", "queue"]
    assert "in celery.dead or in the archive" in office.cli("list", "--queue", "celery", "--task", "nobody").stderr


def test_what_does_not_wait_is_seen_when_asked_for(office: Office) -> None:
    office.cli("replay", "a1")
    office.cli("discard", "a2", "q1", "--yes")
    assert office.listed() == [("q2", "queue", "waiting")]
    assert office.listed("--state", "replayed") == [("a1", "archive", "replayed")]
    assert office.listed("--state", "discarded") == [("a2", "archive", "discarded"), ("q1", "archive", "discarded")]
    assert len(office.listed("--state", "all")) == 4
    assert "archive, discarded" in office.cli("list", "--state", "discarded").stdout
    assert [group["count"] for group in office.json("groups", "--state", "discarded")] == [2]


def test_letters_of_a_queue_that_the_app_does_not_know_any_more_are_found(office: Office) -> None:
    office.kit.bury(task_message(task_id="o"), queue="old")
    office.run(queues=["old"])
    assert ("o", "archive", "waiting") in office.listed()
    assert office.listed("--queue", "old") == [("o", "archive", "waiting")]


def test_groups_are_of_both_places(office: Office) -> None:
    now = office.kit.clock.now()
    office.bury("late", error="a.B", message="the last one", last_seen=now, queue="mail")
    office.bury("early", error="a.B", message="the first one", last_seen=now - 60)
    office.run(queues=["mail"])
    found = [(group["error"], group["count"], group["message"], group["queues"]) for group in office.json("groups")]
    assert found == [("builtins.ConnectionError", 4, "gateway away", ["celery"]), ("a.B", 2, "the last one", ["celery", "mail"])]
    assert [group["count"] for group in office.json("groups", "--queued")] == [2, 1]
    assert [group["count"] for group in office.json("groups", "--archived", "--limit", "1")] == [2]


def test_show_finds_a_letter_wherever_it_is(office: Office) -> None:
    assert [office.json("show", name)["place"] for name in ("a1", "q1")] == ["archive", "queue"]
    office.cli("replay", "a1")
    assert (office.json("show", "a1")["state"], office.json("show", "a1")["place"]) == ("replayed", "archive")
    assert "none in the archive" in office.cli("show", "nobody", code=1).output
    assert "no dead letter 'q1' in the archive" in office.cli("show", "q1", "--archived", code=1).output
    assert "no dead letter 'a1' in celery.dead" in office.cli("show", "a1", "--queued", code=1).output
    office.bury("a1")  # it died again: that one waits
    assert office.json("show", "a1")["state"] == "waiting"


def cut_off(office: Office) -> None:
    """Let an archiving run be killed between its insert and its first take."""
    with pytest.raises(Killed), killed_at(office.kit.broker, "before take"):
        office.run()
    assert office.queued() == ["q1", "q2"]


def test_a_letter_whose_archiving_was_cut_off_is_there_once(office: Office) -> None:
    cut_off(office)
    assert [name for name, _, _ in office.listed()] == ["a1", "a2", "q1", "q2"]
    assert [group["count"] for group in office.json("groups")] == [4]
    assert office.json("replay")["replayed"] == 4
    assert office.listed() == []
    assert Counter(office.live()) == Counter(["a1", "a2", "q1", "q2"])
    office.run()  # the next run takes the copies away
    assert (office.queued(), office.states()) == ([], {"replayed": 4})


def test_a_letter_whose_archiving_was_cut_off_is_discarded_once(office: Office) -> None:
    cut_off(office)
    report = office.json("discard", "--yes")
    assert (report["total"], report["discarded"]) == (4, 4)
    assert (office.listed(), office.queued(), office.states()) == ([], [], {"discarded": 4})


# -- replay ---------------------------------------------------------------------------------------------------------


def test_a_replay_takes_letters_from_both_and_is_on_the_trail(office: Office) -> None:
    report = office.json("replay", "--task", "shop.*", "--by", "ann", "--why", "the gateway is back")
    assert (report["total"], report["replayed"], report["destinations"]) == (4, 4, {"celery": 4})
    assert (office.live(), office.queued(), office.states()) == (["a1", "a2", "q1", "q2"], [], {"replayed": 2})
    entry = office.trail[-1]
    assert (entry.action, entry.who, entry.why, entry.before, entry.after, entry.letters) == (
        "replay",
        "ann",
        "the gateway is back",
        4,
        0,
        4,
    )
    assert entry.selection == "task = shop.*; in queues and archive"


def test_one_place_alone_is_replayed_when_asked_for(office: Office) -> None:
    assert office.json("replay", "--queued")["replayed"] == 2
    assert office.states() == {"waiting": 2}
    assert office.json("replay", "--archived", "--limit", "1")["replayed"] == 1
    assert office.live() == ["q1", "q2", "a1"]


def test_letters_are_asked_for_by_name_and_missing_ones_told(office: Office) -> None:
    report = office.json("replay", "a2", "q1", "nobody", code=1)
    assert (report["replayed"], report["missing"]) == (2, ["nobody"])
    assert office.live() == ["a2", "q1"]
    assert office.trail[-1].selection == "3 named: a2, q1, nobody; in queues and archive"


def test_a_dry_run_counts_both_and_leaves_no_trace(office: Office) -> None:
    claim = office.kit.store.claim("key-a1", holder="h", fingerprint=None, lease=60)
    office.kit.store.complete("key-a1", holder="h", fingerprint=None, fence=claim.fence, result=StoredResult(), retention=600)
    trail = len(office.trail)
    report = office.json("replay", "--dry-run")
    assert (report["replayed"], report["already_completed"]) == (4, 1)
    assert (office.listed(), len(office.trail)) == (WAITING, trail)


def test_a_letter_of_the_archive_can_be_edited(office: Office) -> None:
    report = office.everywhere().replay(ids=["a1"], edit=Edit(args=[8], force=True))
    assert (report.replayed, report.edited) == (1, 1)
    assert office.kit.broker.messages("celery")[0].body.startswith(b"[[8]")
    assert office.trail[-1].action == "edit"


def test_a_canary_that_dies_again_and_is_archived_at_once_stops_it(office: Office) -> None:
    def dies() -> None:
        message = office.kit.broker.messages("celery")[0]
        office.kit.bury(message, last_seen=office.kit.clock.now() + 1)
        office.run(queues=["celery"])

    with meanwhile(office.kit.broker, "after send", dies):
        report = office.json("replay", "--archived", "--canary", code=1)
    assert (report["replayed"], report["canary"]["stage"]) == (1, "one letter")
    assert "dead again" in report["stopped"]
    assert [entry.action for entry in office.trail[-2:]] == ["canary", "archive"]


def test_what_another_operator_replays_meanwhile_is_left_to_them(office: Office) -> None:
    with meanwhile(office.kit.broker, "before send", lambda: office.everywhere("bob").replay(ids=["a2"])):
        assert office.json("replay", "--archived")["replayed"] == 1
    assert sorted(office.live()) == ["a1", "a2"]


def test_what_cannot_be_published_waits_on_where_it_is(office: Office) -> None:
    def broken(point: str) -> None:
        if point == "before send":
            raise PublishFailed("no such queue")

    office.kit.broker._on_operation = broken
    report = office.json("replay", code=1)
    assert (report["failed"], report["failures"][0]["why"]) == (4, "no such queue")
    office.kit.broker._on_operation = lambda point: None
    assert office.listed() == WAITING


def test_a_refused_command_says_so_on_the_trail(office: Office) -> None:
    assert "--max-replays" in office.cli("replay", "--max-replays", "0", code=2).output
    assert "refused: --max-replays" in office.trail[-1].outcome


@pytest.mark.parametrize("number", range(12))
def test_a_replay_killed_anywhere_loses_nothing_and_repeats_one_letter_at_most(office: Office, number: int) -> None:
    with pytest.raises(Killed), killed_at(office.kit.broker, number):
        office.everywhere().replay()
    assert {name for name, _, _ in office.listed()} | set(office.live()) == {"a1", "a2", "q1", "q2"}
    assert office.trail[-1].after is None
    assert office.everywhere().replay().clean
    assert set(office.live()) == {"a1", "a2", "q1", "q2"}
    assert len(office.live()) <= 5


# -- discard and restore --------------------------------------------------------------------------------------------


def test_a_discard_is_taken_back_by_restore_wherever_the_letters_lay(office: Office) -> None:
    said = office.cli("discard", "--why", "test orders", "--by", "ann", answer="y\n")
    assert "Discard 4 dead letters?" in said.output
    assert "for good" not in said.output
    assert "`restore` takes it back" in said.output
    assert (office.listed(), office.queued(), office.states()) == ([], [], {"discarded": 4})
    said = office.cli("restore", "--by", "bob", answer="y\n")
    assert "Restore 4 dead letters?" in said.output
    assert "restored 4 dead letters" in said.output
    assert [name for name, _, _ in office.listed("--archived")] == ["a1", "a2", "q1", "q2"]
    found = [(entry.action, entry.who, entry.why, entry.before, entry.after, entry.letters) for entry in office.trail[-2:]]
    assert found == [("discard", "ann", "test orders", 4, 0, 4), ("restore", "bob", "", 4, 0, 4)]
    assert office.json("replay")["replayed"] == 4


def test_only_what_was_chosen_is_discarded(office: Office) -> None:
    assert office.json("discard", "--yes", "--limit", "3")["discarded"] == 3
    assert office.listed() == [("q2", "queue", "waiting")]
    office.cli("restore", "--yes")
    assert office.json("discard", "--yes", "--key", "key-q1")["discarded"] == 1
    report = office.json("discard", "a1", "q2", "nobody", "--yes", code=1)
    assert (report["discarded"], report["missing"]) == (2, ["nobody"])
    assert office.listed() == [("a2", "archive", "waiting")]
    assert office.json("discard", "--queued", "--yes")["discarded"] == 0
    assert office.json("discard", "--archived", "--yes")["discarded"] == 1


def test_only_what_was_chosen_is_restored(office: Office) -> None:
    office.cli("discard", "--yes")
    assert office.json("restore", "--dry-run")["restored"] == 4
    assert office.json("restore", "--limit", "1", "--yes") == {"total": 1, "restored": 1, "missing": [], "dry_run": False}
    report = office.json("restore", "q2", "a1", "nobody", code=1)
    assert (report["restored"], report["missing"]) == (1, ["a1", "nobody"])
    assert "not found among the discarded: a1" in office.cli("restore", "a1", code=1).output
    assert [name for name, _, _ in office.listed()] == ["a1", "q2"]
    assert "aborted" in office.cli("restore", answer="n\n", code=1).output.lower()
    assert office.states() == {"waiting": 2, "discarded": 2}


def test_a_discard_and_its_dry_run_agree(office: Office) -> None:
    assert office.json("discard", "--dry-run")["discarded"] == 4
    assert office.listed() == WAITING


@pytest.mark.parametrize("number", range(4))
def test_a_discard_killed_anywhere_loses_nothing(office: Office, number: int) -> None:
    with pytest.raises(Killed), killed_at(office.kit.broker, number):
        office.everywhere().discard()
    assert set(office.queued()) | set(office.tasks()) == {"a1", "a2", "q1", "q2"}
    assert office.everywhere().discard().clean
    assert (office.listed(), office.states(), office.queued()) == ([], {"discarded": 4}, [])


def test_a_discarded_letter_that_comes_again_waits_again_and_can_be_discarded_again(office: Office) -> None:
    original = office.kit.bury(task_message(task_id="x"))
    office.cli("discard", "x", "--yes")
    office.kit.bury(original)
    assert ("x", "queue", "waiting") in office.listed()
    assert office.json("discard", "x", "--yes")["discarded"] == 1
    assert office.tasks(state="discarded") == ["x"]


# -- export, import, archive, trail ---------------------------------------------------------------------------------


def test_an_export_has_both_and_an_import_knows_what_is_archived(office: Office, tmp_path: Path) -> None:
    file = tmp_path / "letters.jsonl"
    assert office.json("export", "--output", str(file))["exported"] == 4
    assert office.json("import", str(file)) == {**office.json("import", str(file), "--dry-run"), "dry_run": False}
    assert office.json("import", str(file))["skipped"] == 4
    office.cli("discard", "--yes")
    assert office.json("import", str(file))["imported"] == 4
    assert office.json("export", "--state", "discarded", "--output", str(file))["exported"] == 4


def test_archive_moves_letters_and_trail_tells_of_it(office: Office) -> None:
    assert office.json("archive", "--dry-run")["archived"] == 2
    assert "archived 2 dead letters\n  from celery.dead: 2" in office.cli("archive", "--by", "cron").stdout
    assert office.listed("--queued") == []
    office.cli("discard", "--yes", "--why", "old")
    assert "deleted 4 dead letters" in office.cli("archive", "--keep-count", "0").stdout
    found = office.json("trail", "--limit", "3")
    assert [(entry["action"], entry["letters"]) for entry in found] == [("purge", 4), ("discard", 4), ("archive", 2)]
    assert (found[2]["who"], found[1]["why"], found[2]["at"][:4]) == ("cron", "old", "2030")
    assert office.cli("trail", "--limit", "1").stdout.splitlines()[1].split()[2] == "purge"
    assert "--batch" in office.cli("archive", "--batch", "0", code=2).output


# -- where there is none, or it is away -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["restore"], ["archive"], ["trail"], ["list", "--archived"], ["list", "--state", "discarded"], ["replay", "--archived"]]
)
def test_without_an_archive_a_command_says_what_to_set_up(office: Office, command: list[str]) -> None:
    office.rails.archive = None
    said = office.cli(*command, code=2).output
    assert "there is no archive of dead letters" in said
    assert "guardrails_archive = " in said


def test_without_an_archive_a_discard_is_for_good(office: Office) -> None:
    office.rails.archive = None
    assert "Discard 2 dead letters for good?" in office.cli("discard", answer="y\n").output
    assert office.queued() == []


@pytest.mark.parametrize("command", [["list", "--queued", "--archived"], ["list", "--queued", "--state", "discarded"]])
def test_options_that_contradict_each_other_are_refused(office: Office, command: list[str]) -> None:
    assert "--queued" in office.cli(*command, code=2).output


class Away:
    """Guardrails whose archive does not answer."""

    def __init__(self, rails: Any) -> None:
        self.dead_letters = rails.dead_letters

    @property
    def archive(self) -> Any:
        raise ConnectionRefusedError("the database is away")


def test_an_archive_that_is_away_does_not_keep_anybody_from_the_queues(office: Office) -> None:
    office.rails = Away(office.rails)
    said = office.cli("list", code=1).output
    assert "the database is away; --queued looks at the queues alone" in said
    found = office.cli("replay", "--queued")
    assert "not on its audit trail" in found.output
    assert office.live() == ["q1", "q2"]
    assert "the database is away" in office.cli("discard", "--queued", "--yes", code=1).output
