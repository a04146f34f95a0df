"""Dead letters exported and imported: what the files hold, what is skipped, what a bad line does, how the commands end."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from celery_guardrails.dead_letters import Filter
from celery_guardrails.errors import DeadLetterError, GuardrailsConfigError, PublishFailed
from tests.support.dead_letters import Kit, task_message
from tests.unit.test_dead_letters_cli import Shop


@pytest.fixture
def kit() -> Kit:
    return Kit("celery", "mail")


@pytest.fixture
def shop() -> Shop:
    return Shop()


def twin() -> Any:
    return task_message(task_id="twin")


# -- the service ----------------------------------------------------------------------------------------------------


def test_what_is_exported_here_and_imported_there_is_the_same_when_it_is_exported_again(kit):
    kit.bury(task_message("shop.charge", 7, raw=b"\xff", at=datetime(2026, 1, 2)), reason="poison")  # noqa: DTZ001 - as py-amqp has them
    kit.bury(queue="mail")
    kit.bury_raw(replace(task_message(**{"x-death": [{"queue": "celery", "reason": "expired", "count": 1}]}), body=b"\x80\x00"))
    lines = list(kit.service.export())
    there = Kit("celery", "mail")
    report = there.service.import_(lines)
    assert (report.total, report.imported, report.skipped, report.failed, report.clean) == (3, 3, 0, 0, True)
    assert report.destinations == {"celery.dead": 2, "mail.dead": 1}
    assert list(there.service.export()) == lines
    for queue in ("celery.dead", "mail.dead"):
        assert [(m.headers, m.properties, m.body) for m in there.broker.messages(queue)] == [
            (m.headers, m.properties, m.body) for m in kit.broker.messages(queue)
        ]


def test_an_export_moves_nothing_and_reads_no_further_than_it_is_asked(kit):
    for _ in range(5):
        kit.bury()
    kit.points.clear()
    lines = kit.service.export()
    first = json.loads(next(lines))
    assert (first["id"], first["queue"], lines.count) == (kit.ids()[0], "celery", 1)
    lines.close()
    assert list(lines) == []
    assert kit.points == []
    assert kit.broker.depth("celery.dead") == 5


def test_an_export_takes_filters_and_names_and_says_what_it_did_not_find(kit):
    kit.bury(reason="poison")
    wanted = kit.bury()
    kit.bury(queue="mail")
    assert [json.loads(line)["queue"] for line in kit.service.export(Filter(queue="mail.dead"))] == ["mail"]
    assert len(list(kit.service.export(Filter(limit=2)))) == 2
    lines = kit.service.export(Filter(reason="exhausted"), ids=[wanted.headers["id"], "gone"])
    assert [json.loads(line)["id"] for line in lines] == [kit.ids()[1]]
    assert (lines.count, lines.missing) == (1, ("gone",))


def test_a_letter_that_the_format_cannot_hold_is_told_and_the_rest_exported(kit):
    kit.bury(task_message(odd=1j))
    kit.bury()
    lines = kit.service.export()
    assert len(list(lines)) == 1
    (failure,) = lines.failures
    assert (lines.failed, failure.id) == (1, kit.ids()[0])
    assert "complex" in failure.why


def test_letters_that_lie_there_already_are_skipped_unless_they_are_wanted_again(kit):
    kit.bury()
    kit.bury()
    lines = list(kit.service.export())
    kit.service.discard(ids=[kit.ids()[0]])
    assert (kit.service.import_(lines).skipped, kit.broker.depth("celery.dead")) == (1, 2)
    report = kit.service.import_(lines, again=True)
    assert (report.imported, report.skipped, kit.broker.depth("celery.dead")) == (2, 0, 4)


def test_letters_that_are_the_same_byte_for_byte_are_as_many_as_they_were(kit):
    for message in (twin(), twin(), task_message()):
        kit.bury(message)
    lines = list(kit.service.export())
    there = Kit()
    assert there.service.import_(lines[:1]).imported == 1
    assert (there.service.import_(lines).imported, there.service.import_(lines).imported) == (2, 0)
    assert list(there.service.export()) == [lines[0], lines[1], lines[2]]


def test_a_file_with_the_same_letter_twice_brings_it_once(kit):
    for message in (twin(), twin()):
        kit.bury(message)
    lines = list(kit.service.export())
    there = Kit()
    report = there.service.import_(lines + lines)
    assert (report.imported, report.skipped, there.broker.depth("celery.dead")) == (2, 2, 2)


def test_an_import_that_broke_off_is_just_run_again(kit):
    for _ in range(6):
        kit.bury()
    lines = list(kit.service.export())
    there = Kit()

    def die(point: str) -> None:
        if point == "after restore_letter" and there.broker.depth("celery.dead") == 3:
            raise KeyboardInterrupt

    there.broker._on_operation = die
    with pytest.raises(KeyboardInterrupt):
        there.service.import_(lines)
    there.broker._on_operation = lambda _: None
    assert (there.service.import_(lines).imported, list(there.service.export())) == (3, lines)


def test_a_queue_that_is_named_gets_all_letters_by_either_of_its_names(kit):
    kit.bury()
    kit.bury(queue="mail")
    lines = list(kit.service.export())
    for name in ("elsewhere", "mail.dead"):
        there = Kit("celery", "mail")
        target = "mail.dead" if name == "mail.dead" else "elsewhere.dead"
        assert there.service.import_(lines, queue=name).destinations == {target: 2}
        assert there.broker.depth(target) == 2
        assert there.service.import_(lines, queue=name).skipped == 2


def test_a_dry_run_counts_and_puts_nothing_there(kit):
    kit.bury()
    lines = list(kit.service.export())
    kit.points.clear()
    report = kit.service.import_([*lines, *Kit("mail").service.export(), "{"], dry_run=True)
    assert (report.imported, report.skipped, report.failed, report.dry_run) == (0, 1, 1, True)
    there = Kit()
    assert there.service.import_(lines, dry_run=True).imported == 1
    assert there.points == kit.points == []


def test_a_bad_line_is_told_by_its_number_and_does_not_stop_the_rest(kit):
    kit.bury()
    kit.bury()
    one, two = kit.service.export()
    report = Kit().service.import_(["garbage", one, "", '{"v":9}', two.encode(), b"\xff"])
    assert (report.total, report.imported, report.failed, report.clean) == (5, 2, 3, False)
    assert [failure.id for failure in report.failures] == ["line 1", "line 4", "line 6"]


def test_a_file_without_any_letter_is_the_wrong_one_and_is_not_read_to_its_end(kit):
    with pytest.raises(GuardrailsConfigError, match="no file of `dead-letters export`: line 2: no JSON"):
        kit.service.import_(["", "x,y", "1,2"])
    endless = iter(lambda: b"noise\n", None)
    with pytest.raises(GuardrailsConfigError, match="line 1"):
        kit.service.import_(endless)
    assert kit.service.import_([]).clean
    assert kit.service.import_(["\n"]).total == 0


def test_a_letter_that_the_broker_refuses_is_told_and_ten_in_a_row_end_the_import(kit):
    for _ in range(24):
        kit.bury()
    lines = list(kit.service.export())
    there = Kit()
    refuse = set(range(1, 24, 2))
    calls = 0

    def full(point: str) -> None:
        nonlocal calls
        if point == "before restore_letter":
            calls += 1
            if calls in refuse:
                raise PublishFailed("full")

    there.broker._on_operation = full
    report = there.service.import_(lines)
    assert (report.imported, report.failed, report.stopped) == (12, 12, "")
    assert [(failure.id, failure.why) for failure in report.failures[:2]] == [("line 1", "full"), ("line 3", "full")]
    assert there.service.import_(lines).imported == 12, "what was refused is not taken for one that lies there"
    there, calls, refuse = Kit(), 0, set(range(100))
    there.broker._on_operation = full
    report = there.service.import_(lines)
    assert (report.imported, report.failed, calls) == (0, 10, 10)
    assert report.stopped == "line 10: DeadLetterError: the broker refused 10 letters one after another"


def test_a_queue_that_cannot_be_looked_through_ends_the_import_with_what_was_done(kit, monkeypatch):
    kit.bury()
    kit.bury(queue="mail")
    lines = list(kit.service.export())
    there = Kit("celery", "mail")
    browse = there.broker.browse

    def broken(queue: str, **_: Any) -> Any:
        if queue == "mail.dead":
            raise DeadLetterError("gone")
        return browse(queue)

    monkeypatch.setattr(there.broker, "browse", broken)
    report = there.service.import_(lines)
    assert (report.imported, report.stopped, report.clean) == (1, "line 2: DeadLetterError: gone", False)


# -- the commands ---------------------------------------------------------------------------------------------------


def test_export_writes_lines_to_standard_output_and_what_it_did_to_standard_error(shop):
    shop.bury()
    result = shop.letters("export")
    assert json.loads(result.stdout)["v"] == 1
    assert result.stderr == "exported 1 dead letter\n"
    assert shop.letters("export", "--queue", "mail").stdout == ""


def test_a_file_that_is_exported_is_complete_and_its_owners_alone(shop, tmp_path: Path):
    shop.bury()
    target = tmp_path / "letters.jsonl"
    target.write_text("old")
    shop.letters("export", "--output", str(target))
    assert json.loads(target.read_text())["v"] == 1
    assert target.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["letters.jsonl"]


def test_an_export_that_breaks_off_leaves_the_old_file(shop, tmp_path: Path, monkeypatch):
    shop.bury()
    target = tmp_path / "letters.jsonl"
    target.write_text("old")

    def broken(queue: str, **_: Any) -> Any:
        yield from shop.broker.__class__.browse(shop.broker, queue)
        raise DeadLetterError("the broker went away")

    monkeypatch.setattr(shop.broker, "browse", broken)
    assert "went away" in shop.letters("export", "--output", str(target), code=1).stderr
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["letters.jsonl"]


def test_a_pipe_or_a_link_that_is_exported_to_stays_one(shop, tmp_path: Path):
    shop.bury()
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    shop.letters("export", "--output", str(link))
    assert link.is_symlink()
    assert json.loads(real.read_text())["v"] == 1
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    shop.letters("export", "--output", str(pipe))
    reader.join(10)
    assert pipe.is_fifo()
    assert read == [real.read_text()]


def test_export_makes_exit_code_1_where_something_is_missing_and_2_where_it_cannot_write(shop, tmp_path: Path):
    shop.bury()
    assert "not found: gone" in shop.letters("export", "gone", code=1).stderr
    assert "No such file" in shop.letters("export", "--output", str(tmp_path / "no" / "where"), code=2).stderr
    shop.letters("export", "--reason", "nonsense", code=2)


def test_export_reports_as_json_beside_the_letters(shop, tmp_path: Path):
    shop.bury()
    expected = {"exported": 1, "failed": 0, "failures": [], "missing": []}
    result = shop.letters("export", "--json")
    assert json.loads(result.stderr) == expected
    assert json.loads(result.stdout)["v"] == 1
    assert json.loads(shop.letters("export", "--json", "--output", str(tmp_path / "f")).stdout) == expected


def test_import_reads_a_file_or_standard_input_and_tells_where_letters_went(shop, tmp_path: Path):
    shop.bury()
    shop.bury(queue="mail")
    target = tmp_path / "letters.jsonl"
    exported = shop.letters("export").stdout
    target.write_text(exported)
    shop.letters("discard", "--yes", "--queue", "mail")
    assert shop.letters("import", str(target), "--dry-run").stdout.splitlines() == [
        "would import 1 of 2 dead letters",
        "  to mail.dead: 1",
        "skipped 1 dead letter, there already; --again imports them as well",
    ]
    assert "imported 1 of 2" in shop.letters("import", "-", answer=exported).stdout
    assert shop.json("import", str(target), "--again", "--queue", "mail") == {
        "total": 2,
        "imported": 2,
        "skipped": 0,
        "failed": 0,
        "failures": [],
        "destinations": {"mail.dead": 2},
        "stopped": None,
        "dry_run": False,
    }


def test_import_ends_with_1_for_a_bad_line_and_with_2_for_a_wrong_file(shop, tmp_path: Path):
    shop.bury()
    good = shop.letters("export").stdout
    result = shop.letters("import", "-", "--again", code=1, answer=f"{good}garbage\n")
    assert "imported 1 of 2" in result.stdout
    assert result.stderr.startswith("failed line 2: no JSON")
    assert "no file of `dead-letters export`" in shop.letters("import", "-", code=2, answer="a,b\n").stderr
    shop.letters("import", str(tmp_path / "missing"), code=2)
    shop.letters("import", str(tmp_path), code=2)
    shop.letters("import", code=2)
    assert shop.broker.depth("celery.dead") == 2
