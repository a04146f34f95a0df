"""``guardrails audit`` on the command line, and what of an app it asks."""

from __future__ import annotations

import json

import pytest
from celery import Celery

from celery_guardrails import GuardedTask, Guardrails
from celery_guardrails.audit import Answer, Auditor, Held, Sources, key_reader
from celery_guardrails.cli import commands
from celery_guardrails.dead_letters import KombuDecoder
from celery_guardrails.dead_letters.tasks import tasks_of
from celery_guardrails.errors import GuardrailsConfigError
from celery_guardrails.integration.auditing import auditor_of
from tests.support.dead_letters import Kit, task_message
from tests.unit.test_dead_letters_cli import make_runner


@pytest.fixture
def app():
    app = Celery("shop", broker="redis://127.0.0.1:1/0", set_as_current=False)
    Guardrails(app, store="memory://")

    @app.task(base=GuardedTask, name="shop.charge", key="charge:{order}", shared=False)
    def charge(order):
        """Nothing."""

    @app.task(base=GuardedTask, name="shop.by_id", shared=False)
    def by_id(order):
        """Nothing."""

    app.finalize()
    return app


@pytest.fixture
def run(app, monkeypatch):
    kit = Kit()
    monkeypatch.setattr(
        Guardrails,
        "audit",
        lambda self, keys, *, limit, wait, quorum, queues: Auditor(
            Sources(kit.broker, kit.store, kit.service, None, list, str, lambda message: None, kit.clock, 60.0),
            limit=limit,
            wait=wait,
            counted=quorum,
            queues=queues,
        ).run(keys),
    )

    def invoke(*arguments, text=""):
        return make_runner().invoke(commands(lambda: app), ["audit", *arguments], input=text)

    invoke.kit = kit
    return invoke


def test_nothing_odd_is_exit_code_0(run):
    done = run()
    assert done.exit_code == 0, done.output
    assert "nothing contradicts itself" in done.stdout


def test_keys_come_from_a_file_or_from_standard_input_one_a_line(run, tmp_path):
    run.kit.broker.put(task_message(key="a b"), "celery")
    file = tmp_path / "keys"
    file.write_bytes(b"a b\r\n\n  \nlost\n")
    for arguments, text in ((("--keys", str(file)), ""), (("--keys", "-"), "a b\nlost\n")):
        done = run(*arguments, "--json", text=text)
        assert done.exit_code == 1
        said = json.loads(done.stdout)["standings"]
        assert [(one["name"], one["state"]) for one in said] == [("a b", "waiting"), ("lost", "unaccounted")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keys", "-"], "there is no key in it"),
        (["--each"], "only together with --keys"),
        (["--limit", "-3"], "limit = -3"),
        (["--wait", "-1"], "wait = -1"),
        (["--keys", "nowhere.txt"], "nowhere.txt"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_bad_usage_is_exit_code_2(run, arguments, said):
    done = run(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr


def test_a_file_that_is_no_text_is_bad_usage(run, tmp_path):
    file = tmp_path / "keys"
    file.write_bytes(b"\xff\xfe\x00")
    done = run("--keys", str(file))
    assert done.exit_code == 2
    assert "UTF-8" in done.stderr


def test_too_many_messages_are_bad_usage_and_the_option_that_allows_them_is_named(run):
    for number in range(3):
        run.kit.broker.put(task_message(key=f"k{number}"), "celery")
    done = run("--keys", "-", "--limit", "2", text="k1\n")
    assert done.exit_code == 2
    assert "--limit 3" in done.stderr


def test_queues_that_the_app_does_not_know_are_audited_if_they_are_named(run):
    run.kit.broker.put(task_message(key="k"), "night")
    run.kit.broker._names.pop("night")
    assert run("--keys", "-", "--wait", "0", text="k\n").exit_code == 1
    assert run("--keys", "-", "--wait", "0", "--queue", "night", text="k\n").exit_code == 0


def test_what_could_steer_a_terminal_is_escaped(run):
    done = run("--keys", "-", "--wait", "0", "--each", text="k\x1b[2J\n")
    assert "\x1b" not in done.stdout
    assert "\\x1b" in done.stdout


def test_one_text_is_not_taken_for_a_list_of_letters(app):
    with pytest.raises(GuardrailsConfigError, match="several keys"):
        auditor_of(app.guardrails).run("abc")


def test_workers_are_asked_what_they_hold_and_older_ones_count_as_silent(app, monkeypatch):
    asked = []

    def broadcast(command, **options):
        asked.append((command, options))
        new = {"queues": ["celery"], "held": [["id", "key", "celery", True]]}
        return [{"w1@host": new}, {"w2@host": {"error": "unknown control command"}}]

    monkeypatch.setattr(app.control, "broadcast", broadcast)
    answers = auditor_of(app.guardrails, timeout=0.5)._from.workers()
    assert asked == [("guardrails_holding", {"reply": True, "timeout": 0.5})]
    assert answers == [Answer("w1@host", frozenset({"celery"}), (Held("id", "key", "celery", True),))]


def test_the_key_of_a_message_without_one_is_what_a_worker_would_compute(app):
    key_of = key_reader(KombuDecoder(["json"]), tasks_of(app))
    assert key_of(task_message("shop.charge", 5)) == "charge:5"
    assert key_of(task_message("shop.by_id", 5)) is None
    assert key_of(task_message("shop.nowhere", 5)) is None
    assert key_of(task_message("shop.charge", 5, 6, 7)) is None, "arguments that do not fit"
