"""``guardrails resources``: what is printed, what is done, how it ends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery

from celery_guardrails import Guardrails
from celery_guardrails.cli import commands
from celery_guardrails.policy.resource import Ask
from tests.unit.test_dead_letters_cli import make_runner


class Shop:
    """An app with two resources on a memory store."""

    def __init__(self) -> None:
        self.app = Celery("shop", set_as_current=False)
        self.rails = Guardrails(self.app, store="memory://")
        self.payments = self.rails.resource("payments", max_concurrency=2, rate="100/s")
        self.rails.resource("mail", breaker=None, retry_budget=None)
        self.store = self.rails.store
        self.group = commands(lambda: self.app)

    def run(self, *args: str, code: int = 0) -> Any:
        result = make_runner().invoke(self.group, ["resources", *args])
        assert result.exit_code == code, (result.output, result.exception)
        return result

    def json(self, *args: str) -> dict[str, Any]:
        return {found["name"]: found for found in json.loads(self.run(*args, "--json").stdout)}


@pytest.fixture
def shop() -> Shop:
    return Shop()


def test_resources_are_listed_with_what_they_let_in(shop: Shop) -> None:
    shop.store.claim("k", holder="h", fingerprint=None, lease=60, ask=Ask(shop.payments))
    lines = shop.run().stdout.splitlines()
    assert lines[0].split() == ["RESOURCE", "BREAKER", "UNTIL", "FAILED", "RETRIES", "RUNNING", "RATE", "WAIT"]
    assert lines[1].split() == ["mail", "closed", "-", "0", "of", "0", "-", "0", "-", "-"]
    assert lines[2].split()[:2] == ["payments", "closed"]
    assert "1 of 2" in lines[2]
    # what the rate lets in comes back meanwhile
    assert [line.split()[:-2] for line in shop.run("list").stdout.splitlines()] == [line.split()[:-2] for line in lines]
    for found in (shop.json(), shop.json("list")):
        assert found["payments"]["running"] == 1
        assert found["payments"]["max_concurrency"] == 2
        assert found["mail"]["budget"] is None


def test_a_breaker_is_opened_for_a_time_closed_and_left_to_itself(shop: Shop) -> None:
    assert "payments is open until 2" in shop.run("open", "payments", "--for", "10m").stdout
    assert shop.json()["payments"]["condition"] == "open"
    assert 590 < shop.json()["payments"]["wait"] <= 600
    assert "(forced)" in shop.run().stdout
    assert "payments is closed until 2" in shop.run("close", "payments").stdout
    assert shop.json()["payments"]["forced"] is True
    assert "payments is left to itself: closed" in shop.run("auto", "payments").stdout
    assert shop.json()["payments"]["forced"] is False
    assert json.loads(shop.run("open", "payments", "--json").stdout)["condition"] == "open"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("open", "paymants"), "there is no resource 'paymants'; declared are mail, payments"),
        (("close", "payments", "--for", "soon"), "--for 'soon'"),
        (("close", "payments", "--for", "0s"), "--for '0s'"),
    ],
)
def test_a_wrong_word_is_refused_with_what_is_allowed(shop: Shop, words: tuple[str, ...], said: str) -> None:
    assert said in shop.run(*words, code=2).stderr


def test_without_resources_it_says_how_to_declare_one() -> None:
    app = Celery("bare", set_as_current=False)
    Guardrails(app, store="memory://")
    result = make_runner().invoke(commands(lambda: app), ["resources"])
    assert result.exit_code == 0
    assert "guardrails.resource(name, ...)" in result.stderr


def test_a_store_that_keeps_no_resources_is_named(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(shop.rails), "store", object())
    assert "guardrails_store = 'memory://' keeps no resources" in shop.run(code=2).stderr
