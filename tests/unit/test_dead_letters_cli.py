"""The commands: what they print, what they do, how they end."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner
from redis.exceptions import ConnectionError as RedisAway

from celery_guardrails.cli import commands
from celery_guardrails.cli.tree import tree as celery_group
from celery_guardrails.dead_letters.redaction import HIDDEN
from celery_guardrails.dead_letters.render import moment, printable, table
from celery_guardrails.errors import PublishFailed, StoreUnavailable
from celery_guardrails.policy.lease import RecordState, StoredResult
from celery_guardrails.policy.progress import PROGRESS, Progress
from celery_guardrails.stores.codec import KombuCodec
from tests.support.dead_letters import Kit, task_message

LETTER_FIELDS = set(
    "id task task_id key reason error message fingerprint attempts crashes replays first_seen last_seen worker queue dead_letter_queue "
    "exchange routing_key content_type size place state".split()
)


def make_runner() -> CliRunner:
    """Return a runner that keeps stdout and stderr apart, which click does by itself since 8.2."""
    apart: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    return CliRunner(**apart)


class Shop(Kit):
    """An app whose commands can be run."""

    def __init__(self) -> None:
        super().__init__("celery", "mail")
        store = self.store
        self.rails = SimpleNamespace(
            dead_letters=self.service,
            store=store,
            lookup=store.lookup,
            forget=store.forget,
            leases=store.leases,
            break_lease=store.break_lease,
        )
        self.app = SimpleNamespace(main="shop", guardrails=self.rails)
        self.group = commands(lambda: self.app)

    def run(self, *args: str, code: int = 0, answer: str | None = None) -> Any:
        result = make_runner().invoke(self.group, list(args), input=answer)
        assert result.exit_code == code, (result.output, result.exception)
        if code != 1:
            assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    def letters(self, *args: str, code: int = 0, answer: str | None = None) -> Any:
        return self.run("dead-letters", *args, code=code, answer=answer)

    def json(self, *args: str, code: int = 0) -> Any:
        return json.loads(self.letters(*args, "--json", code=code).stdout)


@pytest.fixture
def shop() -> Shop:
    return Shop()


# -- leases ---------------------------------------------------------------------------------------------------------


def held(shop: Shop, key: str = "charge:7") -> None:
    shop.store.claim(key, holder="h" * 16, fingerprint=None, lease=60, owner="celery@host/12")


def test_leases_lists_who_holds_what_since_when(shop):
    held(shop)
    shop.store.claim("done", holder="h", fingerprint=None, lease=60)
    shop.store.complete("done", holder="h", fingerprint=None, fence=1, result=StoredResult(), retention=60)
    lines = shop.run("leases").stdout.splitlines()
    assert lines[0].split() == ["KEY", "HELD", "BY", "SINCE", "AGE", "LEFT", "FENCE", "ATTEMPTS", "CRASHES", "CURSOR"]
    assert len(lines) == 2
    assert "charge:7" in lines[1]
    assert "celery@host/12" in lines[1]
    assert "60 s" in lines[1]
    (data,) = json.loads(shop.run("leases", "--json").stdout)
    assert (data["key"], data["owner"], data["attempts"]) == ("charge:7", "celery@host/12", 0)


def test_leases_says_when_no_key_is_held_long_enough(shop):
    held(shop)
    assert "no key is held" in shop.run("leases", "--older", "3600").stderr
    assert shop.run("leases", "--older", "3600", "--json").stdout == "[]\n"


def test_break_asks_and_then_takes_the_lease_away(shop):
    held(shop)
    refused = shop.run("break", "charge:7", code=1, answer="n\n")
    assert "celery@host/12" in refused.output
    assert shop.store.lookup("charge:7").state is RecordState.LEASED
    assert "took charge:7 from celery@host/12" in shop.run("break", "charge:7", answer="y\n").output
    assert shop.store.lookup("charge:7").state is RecordState.IDLE


def test_break_of_a_key_that_nobody_holds_makes_exit_code_1(shop):
    assert "nobody holds" in shop.run("break", "x", code=1).output
    assert json.loads(shop.run("break", "x", "--json", code=1).stdout) == {"key": "x", "broken": False, "record": None}
    held(shop)
    assert json.loads(shop.run("break", "charge:7", "--yes", "--json").stdout)["record"]["owner"] == "celery@host/12"


# -- list, groups, show ---------------------------------------------------------------------------------------------


def test_list_is_a_table_with_a_line_for_each_letter(shop):
    message = shop.bury(task_message("shop.charge", key="charge:7"))
    shop.bury(queue="mail")
    lines = shop.letters("list").stdout.splitlines()
    assert lines[0].split() == ["ID", "DIED", "IN", "QUEUE", "REASON", "TASK", "REPLAYS", "KEY", "ERROR"]
    assert len(lines) == 3
    for part in (message.headers["id"][:8], "2030-03-17T15:00:00.000Z", "exhausted", "shop.charge", "charge:7", "gateway away"):
        assert part in lines[1]
    assert lines[1].index("celery") == lines[0].index("QUEUE")


def test_list_as_json_is_an_array_with_the_same_fields_for_every_letter(shop):
    shop.bury()
    shop.bury_raw(task_message("foreign"), "mail.dead")
    listed = shop.json("list")
    assert [set(letter) for letter in listed] == [LETTER_FIELDS] * 2
    assert listed[0]["last_seen"] == "2030-03-17T15:00:00.000Z"
    assert listed[1]["last_seen"] is None
    assert (listed[1]["reason"], listed[1]["queue"], listed[1]["dead_letter_queue"]) == ("broker", "mail", "mail.dead")


@pytest.mark.parametrize("command", ["list", "groups"])
def test_without_letters_there_is_an_empty_array_or_a_word_on_stderr(shop, command):
    assert shop.json(command) == []
    result = shop.letters(command, "--queue", "nowhere")
    assert result.stdout == ""
    assert "nowhere.dead" in result.stderr


@pytest.mark.parametrize(
    ("options", "hits"),
    [
        (["--queue", "mail"], 1),
        (["--task", "shop.*"], 2),
        (["--reason", "permanent"], 1),
        (["--error", "CardDeclined"], 1),
        (["--key", "charge:7"], 1),
        (["--since", "4h"], 2),
        (["--until", "2030-03-17T00:00:00Z"], 1),
        (["--limit", "1"], 1),
        (["--task", "shop.*", "--reason", "permanent"], 0),
    ],
)
@pytest.mark.parametrize("command", ["list", "replay", "discard"])
def test_every_command_takes_the_same_options(shop, command, options, hits):
    shop.bury(task_message("shop.charge", key="charge:7"))
    shop.bury(task_message("shop.mail"), queue="mail")
    shop.bury(task_message("other"), "permanent", error="x.CardDeclined", last_seen=1_800_000_000.0)
    found = shop.json(command, *options, *(["--yes"] if command == "discard" else []))
    assert (len(found) if command == "list" else found["total"]) == hits
    groups = shop.json("groups", *options)
    if command == "list" and "--limit" not in options:
        assert sum(group["count"] for group in groups) == hits


def test_groups_show_count_error_tasks_and_a_sample(shop):
    for _ in range(3):
        shop.bury(task_message("shop.charge"))
    [group] = shop.json("groups")
    assert set(group) == {"reason", "error", "fingerprint", "message", "count", "first_seen", "last_seen", "tasks", "queues", "sample"}
    assert (group["count"], group["tasks"], group["queues"]) == (3, ["shop.charge"], ["celery"])
    text = shop.letters("groups").stdout
    assert group["sample"] in text
    assert group["fingerprint"] in text
    assert shop.letters("show", group["sample"]).exit_code == 0


def test_show_tells_everything_with_the_arguments_redacted(shop):
    shop.bury(task_message("shop.charge", {"password": "hunter2"}, 7, api_key="hunter2"))
    identifier = shop.ids()[0]
    data = shop.json("show", identifier)
    assert set(data) == LETTER_FIELDS | {"args", "kwargs", "undecoded", "headers", "properties", "traceback", "history", "previous_deaths"}
    assert data["args"] == [{"password": HIDDEN}, 7]
    assert data["headers"]["lang"] == "py"
    text = shop.letters("show", identifier).stdout
    assert 'File "/srv/shop/tasks.py", line 7, in charge\n' in text
    for shown in (text, json.dumps(data)):
        assert "hunter2" not in shown


def test_show_of_what_cannot_be_decoded_shows_bytes_and_why(shop):
    from celery_guardrails.policy.delivery import RawMessage

    shop.bury_raw(RawMessage(b"\x00\x1b[31m" + b"x" * 500, "application/x-python-serialize", "binary", {}, {}, "", ""))
    data = shop.json("show", shop.ids()[0])
    assert data["undecoded"] == "content type 'application/x-python-serialize' is not in accept_content"
    assert data["body"].startswith("\\x00\\x1b[31mxxx")
    assert len(data["body"]) < 300
    assert "\x1b" not in shop.letters("show", shop.ids()[0]).stdout


def test_show_of_a_letter_that_is_not_there_says_so_in_one_line(shop):
    result = shop.letters("show", "nope", code=1)
    assert result.stdout == ""
    assert re.fullmatch(r"Error: there is no dead letter 'nope'.*are given whole\n", result.stderr)


# -- replay ---------------------------------------------------------------------------------------------------------


def test_replay_says_what_it_did(shop):
    shop.bury()
    shop.bury(replays=3)
    shop.bury(reason="undecodable")
    text = shop.letters("replay").stdout
    assert "replayed 1 of 3 dead letters" in text
    assert "to celery: 1" in text
    assert "skipped 1 dead letter replayed 3 times before; --max-replays" in text
    assert "skipped 1 dead letter that would only die again" in text
    assert shop.broker.depth("celery") == 1


def test_replay_as_json_is_one_report(shop):
    shop.bury()
    assert shop.json("replay") == {
        "total": 1, "replayed": 1, "skipped_max_replays": 0, "skipped_hopeless": 0, "failed": 0, "failures": [], "missing": [],
        "already_completed": None, "destinations": {"celery": 1}, "reasons": {"exhausted": 1}, "stopped": None, "dry_run": False,
    }  # fmt: skip


def test_a_dry_run_moves_nothing_and_says_so(shop):
    shop.bury(task_message(key="k"))
    claim = shop.store.claim("k", holder="h", fingerprint=None, lease=10)
    shop.store.complete("k", holder="h", fingerprint=None, fence=claim.fence, result=StoredResult(), retention=1000)
    text = shop.letters("replay", "--dry-run").stdout
    assert "would replay 1 of 1 dead letter\n" in text
    assert "dead for exhausted: 1" in text
    assert "already completed meanwhile: 1" in text
    assert shop.letters("discard", "--dry-run").stdout == "would discard 1 of 1 dead letter\n"
    assert shop.broker.depth("celery.dead") == 1


def test_replay_takes_identifiers_a_rate_a_queue_and_a_number_of_replays(shop):
    for _ in range(4):
        shop.bury(replays=3)
    ids = shop.ids()[1:]
    start = shop.clock.now()
    shop.consumed_elsewhere("slow")
    report = shop.json("replay", *ids, "--rate", "2/s", "--to-queue", "slow", "--max-replays", "4")
    assert (report["replayed"], report["destinations"]) == (3, {"slow": 3})
    assert shop.clock.now() - start == pytest.approx(1.0)


def test_a_letter_that_fails_makes_exit_code_1_and_is_named(shop, monkeypatch):
    shop.bury()
    identifier = shop.ids()[0]
    monkeypatch.setattr(shop.broker, "send", lambda *_: (_ for _ in ()).throw(PublishFailed("NO_ROUTE")))
    result = shop.letters("replay", code=1)
    assert f"failed {identifier}: NO_ROUTE" in result.stderr
    assert shop.json("replay", code=1)["failures"] == [{"id": identifier, "why": "NO_ROUTE"}]


@pytest.mark.parametrize("command", [["replay"], ["discard", "--yes"]])
def test_an_identifier_that_is_not_there_makes_exit_code_1(shop, command):
    assert "not found: gone" in shop.letters(*command, "gone", code=1).stderr


# -- discard --------------------------------------------------------------------------------------------------------


def test_discard_asks_first(shop):
    shop.bury()
    shop.bury()
    result = shop.letters("discard", code=1, answer="n\n")
    assert "Discard 2 dead letters for good?" in result.stderr
    assert shop.broker.depth("celery.dead") == 2
    unheard = shop.letters("discard", code=1, answer="")
    assert "Error: nobody answered, so nothing was done; --yes does it without asking" in unheard.stderr
    assert shop.broker.depth("celery.dead") == 2
    result = shop.letters("discard", answer="y\n")
    assert "discarded 2 of 2 dead letters" in result.stdout
    assert shop.broker.depth("celery.dead") == 0


def test_discard_without_anybody_to_ask_discards_nothing(shop):
    shop.bury()
    shop.letters("discard", code=1, answer="")
    assert shop.broker.depth("celery.dead") == 1
    assert shop.json("discard", "--yes")["discarded"] == 1


def test_discard_of_nothing_does_not_ask(shop):
    assert "discarded 0 of 0 dead letters" in shop.letters("discard").stdout


# -- keys -----------------------------------------------------------------------------------------------------------


def test_lookup_shows_the_record_of_a_key(shop):
    claim = shop.store.claim("charge:7", holder="h", fingerprint="f", lease=10, owner="w1@host")
    data = json.loads(shop.run("lookup", "charge:7", "--json").stdout)
    assert (data["key"], data["state"], data["owner"], data["fence"], data["result"]) == (
        "charge:7",
        "leased",
        "w1@host",
        claim.fence,
        None,
    )
    shop.store.complete(
        "charge:7", holder="h", fingerprint="f", fence=claim.fence, result=StoredResult("t", "e", b"123", "id"), retention=9
    )
    text = shop.run("lookup", "charge:7").stdout
    assert re.search(r"^state +completed$", text, re.MULTILINE)
    assert json.loads(shop.run("lookup", "charge:7", "--json").stdout)["result"] == {"task_id": "id", "kept": True, "bytes": 3}


def looping(shop: Shop, key: str = "charge:7", cursor: Any = 41) -> None:
    """The task of this key loops, and stands at a cursor."""
    shop.store.claim(key, holder="h", fingerprint=None, lease=10, owner="w1@host")
    progress = Progress({"": cursor}, items=812, saved_at=1_700_000_000.0, stalls=2)
    value = KombuCodec("json", ["json"], 1000, lambda _: None).pack(progress.to_value())
    shop.store.save_step(key, holder="h", name=PROGRESS, value=value)


def test_lookup_shows_how_far_a_loop_has_come(shop):
    looping(shop)
    data = json.loads(shop.run("lookup", "charge:7", "--json").stdout)
    assert {name: data[name] for name in ("cursor", "items", "saved_at", "stalls", "steps")} == {
        "cursor": 41,
        "items": 812,
        "saved_at": "2023-11-14T22:13:20.000Z",
        "stalls": 2,
        "steps": [],
    }
    assert re.search(r"^cursor +41$", shop.run("lookup", "charge:7").stdout, re.MULTILINE)


def test_leases_shows_where_loops_stand(shop):
    looping(shop, cursor=["2026-01-02", "\x1b[31mred"])
    (line,) = shop.run("leases").stdout.splitlines()[1:]
    assert line.endswith('["2026-01-02", "\\u001b[31mred"]')
    (data,) = json.loads(shop.run("leases", "--json").stdout)
    assert (data["cursor"], data["items"]) == (["2026-01-02", "\x1b[31mred"], 812)


def test_a_dead_letter_shows_where_a_replay_goes_on(shop):
    shop.bury()
    (letter,) = shop.ids()
    assert "progress" not in shop.json("show", letter)
    key = shop.json("show", letter)["key"]
    looping(shop, key)
    assert shop.json("show", letter)["progress"]["cursor"] == 41
    text = shop.letters("show", letter).stdout
    assert re.search(r"where a replay goes on:\ncursor +41$", text, re.MULTILINE)


def test_a_dead_letter_is_shown_while_the_store_is_away(shop):
    shop.bury()
    (letter,) = shop.ids()

    def away(_: str) -> None:
        raise StoreUnavailable("down")

    shop.rails.lookup = away
    assert "progress" not in shop.json("show", letter)


def test_lookup_of_an_unknown_key_makes_exit_code_1(shop):
    assert "no record" in shop.run("lookup", "x", code=1).stderr
    assert shop.run("lookup", "x", "--json", code=1).stdout == "null\n"


def test_forget_lets_a_completed_key_run_again_without_asking(shop):
    claim = shop.store.claim("k", holder="h", fingerprint=None, lease=10)
    shop.store.complete("k", holder="h", fingerprint=None, fence=claim.fence, result=StoredResult(), retention=9)
    assert shop.run("forget", "k").stdout == "forgot k\n"
    assert shop.store.lookup("k") is None
    assert json.loads(shop.run("forget", "k", "--json", code=1).stdout) == {"key": "k", "forgotten": False}


def test_forget_asks_before_it_lets_a_second_task_start(shop):
    shop.store.claim("k", holder="h", fingerprint=None, lease=1000, owner="w1@host")
    assert "w1@host" in shop.run("forget", "k", code=1, answer="n\n").stderr
    assert shop.store.lookup("k") is not None
    shop.run("forget", "k", "--yes")
    assert shop.store.lookup("k") is None


# -- bad usage, bad days --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["dead-letters", "nonsense"],
        ["dead-letters", "list", "--nonsense"],
        ["dead-letters", "list", "--reason", "bored"],
        ["dead-letters", "list", "--since", "yesterday"],
        ["dead-letters", "list", "--limit", "x"],
        ["dead-letters", "list", "--limit", "0"],
        ["dead-letters", "list", "--fingerprint", "xx"],
        ["dead-letters", "show"],
        ["dead-letters", "replay", "--rate", "fast"],
        ["dead-letters", "replay", "--max-replays", "0"],
        ["dead-letters", "replay", "--to-queue", "celery.dead"],
        ["dead-letters", "replay", "--canary-wait", "5"],
        ["dead-letters", "replay", "--canary", "--canary-wait", "0"],
        ["dead-letters", "replay", "--edit"],
        ["dead-letters", "replay", "--force"],
        ["dead-letters", "replay", "--set", "amount"],
        ["dead-letters", "replay", "--set", "amount=1"],
        ["dead-letters", "replay", "--args", "{}"],
        ["lookup"],
    ],
)
def test_bad_usage_makes_exit_code_2_and_moves_nothing(shop, arguments):
    shop.bury()
    result = shop.run(*arguments, code=2)
    assert "Traceback" not in result.output
    assert result.stderr
    assert shop.broker.depth("celery.dead") == 1


def test_an_app_without_guardrails_is_told_how_to_get_them(shop):
    del shop.app.guardrails
    result = shop.letters("list", code=2)
    assert re.search(r"^Error: .*shop.*Guardrails\(app\).*INSTALLED_APPS", result.stderr)


@pytest.mark.parametrize("error", [RedisAway("no route to redis"), ConnectionRefusedError("refused"), StoreUnavailable("store away")])
def test_a_server_that_is_away_makes_one_line_and_exit_code_1(shop, monkeypatch, error):
    def away(*_: object) -> None:
        raise error

    monkeypatch.setattr(shop.broker, "queues", away)
    result = shop.letters("list", code=1)
    assert re.fullmatch(r"Error: [^\n]*(no route to redis|refused|store away)[^\n]*\n", result.stderr)


def test_a_mistake_of_ours_is_not_hidden(shop, monkeypatch):
    monkeypatch.setattr(shop.broker, "queues", lambda: 1 / 0)
    result = make_runner().invoke(shop.group, ["dead-letters", "list"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_every_command_has_help(shop):
    def walk(command: click.Command, path: list[str]) -> None:
        assert command.help, path
        assert shop.run(*path, "--help").stdout
        for name, child in getattr(command, "commands", {}).items():
            walk(child, [*path, name])

    walk(shop.group, [])


def test_the_groups_of_two_apps_do_not_mix():
    one, two = Shop(), Shop()
    one.bury()
    assert len(one.json("list")) == 1
    assert two.json("list") == []
    assert celery_group.commands["dead-letters"].commands["list"].get_app is None  # type: ignore[attr-defined]


def test_celery_s_own_commands_do_not_import_what_these_need():
    code = "import sys, celery.bin.celery as main; assert 'guardrails' in main.celery.commands; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert "celery_guardrails.cli" in loaded
    assert not {"celery_guardrails.cli.tree", "celery_guardrails.dead_letters", "celery_guardrails.audit"} & set(loaded)


# -- what is printed ------------------------------------------------------------------------------------------------


def test_nothing_that_a_message_holds_can_steer_the_terminal(shop):
    evil = "\x1b]0;owned\x07\r\n\u202egnp\x9b31m\u2028\ud800"
    shop.bury(
        task_message(f"task{evil}", evil, {evil: evil}, task_id=f"id{evil}", key=f"key{evil}", foreign=evil),
        message=evil,
        error=evil,
        traceback=evil,
    )
    shop.bury_raw(task_message(evil))
    identifier = shop.ids()[0]
    outputs = [
        shop.letters("list").output,
        shop.letters("groups").output,
        shop.letters("show", identifier).output,
        shop.letters("show", identifier, "--json").output,
        shop.letters("list", "--json").output,
        shop.letters("replay", evil, code=1).output,
        shop.run("lookup", evil, code=1).output,
        shop.letters("show", evil, code=1).output,
    ]
    for output in outputs:
        assert not set(output) & set("\x1b\x07\r\u202e\x9b\u2028\ud800"), output


def test_harmless_text_of_any_language_is_printed_as_it_is():
    text = "Überweisung 送金 – “déjà” €"
    assert printable(text) == text
    assert printable("a\tb\nc") == "a\\tb\\nc"
    assert printable("a\tb\nc\x00", lines=True) == "a\tb\nc\\x00"
    assert printable("x" * 100, limit=10) == "x" * 9 + "…"


def test_moments_are_what_since_takes():
    from celery_guardrails.dead_letters import Filter

    assert Filter.parse(now=0, since=moment(1893499200.5)).since == 1893499200.5


def test_a_table_reads_its_rows_as_it_goes():
    def endless():
        number = 0
        while True:
            number += 1
            yield (number, "x" * 300)

    lines = table(("N", "TEXT"), endless(), width=80)
    assert [len(next(lines)) <= 80 for _ in range(500)] == [True] * 500


def test_a_terminal_gets_a_progress_bar_and_a_pipe_does_not(shop, monkeypatch):
    for _ in range(3):
        shop.bury()
    assert "replaying" not in shop.letters("replay").output
    for _ in range(3):
        shop.bury()
    bars: list[Any] = []
    real = click.progressbar

    def remembered(**options: Any) -> Any:
        bars.append(real(**{**options, "file": None}))
        return bars[-1]

    monkeypatch.setattr("celery_guardrails.cli.letters.click.progressbar", remembered)
    terminal = SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True), stdout=sys.stdout)
    monkeypatch.setattr("celery_guardrails.cli.letters.sys", terminal)
    shop.letters("replay")
    assert [(bar.length, bar.pos) for bar in bars] == [(3, 3)]
    shop.bury()
    shop.letters("replay", "--json")
    assert len(bars) == 1


def test_an_interrupted_replay_says_how_far_it_came(shop, monkeypatch):
    for _ in range(3):
        shop.bury()
    real = shop.broker.send

    def interrupted(message: Any, queue: str) -> None:
        if shop.broker.depth(queue) == 2:
            raise KeyboardInterrupt
        real(message, queue)

    monkeypatch.setattr(shop.broker, "send", interrupted)
    result = shop.letters("replay", code=1)
    assert "interrupted: 2 done, 0 skipped, 0 failed; run it again to go on" in result.stderr
