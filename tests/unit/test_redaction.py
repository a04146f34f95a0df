"""guardrails_redact: names and callables hide more than the secrets that are always hidden; what breaks hides all."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from celery import Celery

from celery_guardrails import GuardedTask, Guardrails, GuardrailsConfigError, events
from celery_guardrails.config import Settings
from celery_guardrails.dead_letters import DeadLetters, KombuDecoder
from celery_guardrails.dead_letters.edit import edit_of_text, text_to_edit
from celery_guardrails.dead_letters.redaction import HIDDEN, redactor
from celery_guardrails.dead_letters.render import letter_data, letter_text
from celery_guardrails.dead_letters.reproduce import reproduction
from celery_guardrails.dead_letters.tasks import tasks_of
from celery_guardrails.policy.history import PastAttempt
from tests.support.dead_letters import Kit, certificate_for, task_message

CARD = "4111111111111111"


def without_cards(value: Any) -> Any:
    """What a project would write: goes by what is in a text, not by its name."""
    if isinstance(value, str):
        return value.replace(CARD, "…1111")
    if isinstance(value, dict):
        return {name: without_cards(item) for name, item in value.items()}
    return [without_cards(item) for item in value] if isinstance(value, list) else value


def broken(value: Any) -> Any:
    raise KeyError(value)


NOT_CALLABLE = 7


def letters(redact: Any, *args: Any, **fields: Any) -> Kit:
    kit = Kit()
    app = Celery("shop", broker="memory://", set_as_current=False)
    Guardrails(app, store="memory://")

    @app.task(base=GuardedTask, name="shop.charge", shared=False)
    def charge(order_id: int, pan: str = "", note: str = "") -> None: ...

    decoder = KombuDecoder(["json"])
    kit.service = DeadLetters(
        kit.broker, kit.store, settings=Settings(), clock=kit.clock, decoder=decoder, redact=redactor(redact), tasks=tasks_of(app)
    )
    message = task_message("shop.charge", *args, key="k")
    kit.bury(message, **fields)
    return kit


def everything_shown(kit: Kit) -> str:
    letter = kit.service.show(kit.ids()[0])
    groups = [vars(group) for group in kit.service.groups()]
    return json.dumps([letter_data(letter, full=True), list(letter_text(letter)), groups], default=str)


@pytest.mark.parametrize(
    ("names", "hidden", "shown"),
    [
        (["pan"], {"pan", "PAN", "password"}, {"pandemic", "note"}),
        (["*_no", "birth*"], {"passport_no", "birthday", "card_number"}, {"number", "stillbirth"}),
        (("a.c",), {"a.c"}, {"abc"}),
        ([], {"secret"}, {"pan"}),
    ],
)
def test_names_are_hidden_whole_in_any_case_beside_the_ones_that_always_are(names: Any, hidden: set[str], shown: set[str]) -> None:
    redact = redactor(names)
    value = {"deep": [dict.fromkeys(hidden | shown, 1)]}
    assert redact(value) == {"deep": [{**dict.fromkeys(hidden, HIDDEN), **dict.fromkeys(shown, 1)}]}


def test_positional_arguments_are_hidden_by_the_names_of_their_parameters() -> None:
    page = everything_shown(letters(["pan"], 7, CARD, "a note", "too many"))
    assert CARD not in page
    for text in (HIDDEN, "a note", "too many"):
        assert text in page


def test_a_callable_redacts_arguments_headers_messages_and_tracebacks_of_all_attempts() -> None:
    past = PastAttempt(1, 1.0, "shop.Refused", f"no {CARD}", "f" * 16, f"Traceback: {CARD}")
    kit = letters(without_cards, CARD, {"deep": [CARD]}, message=f"refused {CARD}", traceback=f"File: {CARD}")
    assert CARD not in everything_shown(kit)
    letter = kit.service.show(kit.ids()[0])
    assert letter.certificate.message == f"refused {CARD}", "what is kept is not changed"
    assert certificate_for(task_message(), history=(past,)).redacted(without_cards).history[0].message == "no …1111"
    assert CARD not in reproduction(letter, redact=True)


@pytest.mark.parametrize("function", [broken, lambda value: None, lambda value: value.clear(), lambda value: 7, lambda value: []])
def test_a_callable_that_raises_or_gives_back_something_else_hides_all(function: Callable[[Any], Any]) -> None:
    page = everything_shown(letters(function, 7, CARD, "a note", message=f"refused {CARD}", traceback=CARD))
    assert CARD not in page
    assert "a note" not in page
    assert "refused" not in page


def test_a_callable_that_raises_is_logged_without_what_it_was_given(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert redactor(broken)({"pan": CARD}) == {"pan": HIDDEN}
    assert "guardrails_redact raised KeyError" in caplog.text
    assert CARD not in caplog.text


def test_a_callable_gets_a_copy_with_the_usual_secrets_hidden() -> None:
    given: list[Any] = []
    value = {"token": "t", "rows": [{"n": 1}]}

    def spoil(seen: Any) -> Any:
        given.append(json.loads(json.dumps(seen)))
        seen["rows"][0]["n"] = 2
        return seen

    assert redactor(spoil)(value) == {"token": HIDDEN, "rows": [{"n": 2}]}
    assert (given, value) == ([{"token": HIDDEN, "rows": [{"n": 1}]}], {"token": "t", "rows": [{"n": 1}]})


def test_a_dotted_path_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shop_privacy", ModuleType("shop_privacy"))
    monkeypatch.setattr(sys.modules["shop_privacy"], "redact", without_cards, raising=False)
    for path in ("shop_privacy.redact", "shop_privacy:redact"):
        assert Settings.from_mapping({"guardrails_redact": path}).redact == path
        assert redactor(path)(CARD) == "…1111"


@pytest.mark.parametrize("value", ["redact", "", "a b.c", 7, [""], ["pan", 7], {"pan": 1}, "shop..redact"])
def test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed(value: Any) -> None:
    with pytest.raises(
        GuardrailsConfigError, match="guardrails_redact = .*None, a list of names, or a callable or its dotted path.*is allowed"
    ):
        Settings.from_mapping({"guardrails_redact": value})


@pytest.mark.parametrize("path", ["no_such_module_here.redact", "json.no_such_name", "string.digits"])
def test_a_path_without_a_callable_is_refused_at_the_start(path: str) -> None:
    rails = Guardrails(Celery("shop", broker="memory://", set_as_current=False), store="memory://", redact=path)
    with pytest.raises(GuardrailsConfigError, match=f"guardrails_redact = '{path}': .*is allowed"):
        _ = rails.redact


def test_the_service_of_an_app_redacts_as_its_settings_say() -> None:
    app = Celery("shop", broker="redis://localhost:1/0", set_as_current=False)  # not connected to
    app.conf.guardrails_redact = ["pan"]
    rails = Guardrails(app, store="memory://")
    assert rails.dead_letters._redact({"pan": 1, "n": 2}) == {"pan": HIDDEN, "n": 2}


@pytest.mark.parametrize("redact", [without_cards, broken])
def test_logs_and_listeners_get_redacted_texts(redact: Any, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Any] = []
    rails = Guardrails(Celery("shop", broker="memory://", set_as_current=False), store="memory://", redact=redact)
    rails.listen(heard.append)
    died = certificate_for(task_message(), message=f"refused {CARD}", traceback=f"File {CARD}")
    with caplog.at_level(logging.DEBUG):
        rails.emit(events.DeadLettered("celery", died))
        rails.emit(events.Retrying("shop.charge", "id", "k", 1, 1.0, f"shop.Refused: {CARD}", "default"))
    assert len(heard) == 2
    assert CARD not in caplog.text + repr(heard) + repr([vars(record) for record in caplog.records])
    assert "is dead: exhausted" in caplog.text


def test_names_leave_events_as_they_are() -> None:
    heard: list[Any] = []
    rails = Guardrails(Celery("shop", broker="memory://", set_as_current=False), store="memory://", redact=["pan"])
    rails.listen(heard.append)
    event = events.DeadLettered("celery", certificate_for(task_message()))
    rails.emit(event)
    assert heard == [event]
    assert heard[0] is event


# -- what somebody edits who does not see all ---------------------------------------------------------------------------


def edited(redact: Any, args: list[Any], change: Callable[[dict[str, Any]], None]) -> list[Any]:
    kit = letters(redact, *args)
    letter = kit.service.show(kit.ids()[0])
    data = json.loads(text_to_edit(letter))
    change(data)
    return list(edit_of_text(letter, json.dumps(data)).args or ())


def test_what_was_shown_in_part_and_left_so_stays_as_it_is() -> None:
    args = [7, CARD, {"cards": [CARD, "x"], "n": 1}]
    assert edited(without_cards, args, lambda data: data["args"][2].update(n=2)) == [7, CARD, {"cards": [CARD, "x"], "n": 2}]
    assert edited(without_cards, args, lambda data: data["args"][2]["cards"].append("y"))[2]["cards"] == [CARD, "x", "y"]
    assert edited(without_cards, args, lambda data: data["args"].__setitem__(1, "5500"))[1] == "5500"


def test_what_a_redactor_leaves_out_is_not_lost_by_an_edit() -> None:
    def drop(value: Any) -> Any:
        return {name: item for name, item in value.items() if name != "inner"} if isinstance(value, dict) else value

    def deep(value: Any) -> Any:
        return [drop(item) for item in value] if isinstance(value, list) else {name: drop(item) for name, item in value.items()}

    assert edited(deep, [7, {"inner": CARD, "n": 1}], lambda data: data["args"][1].update(n=2))[1] == {"inner": CARD, "n": 2}


def test_a_hidden_value_that_was_moved_is_refused() -> None:
    with pytest.raises(GuardrailsConfigError, match="stands where nothing was hidden"):
        edited(["pan"], [7, CARD], lambda data: data.update(args=[HIDDEN]))
    with pytest.raises(GuardrailsConfigError, match="stands where nothing was hidden"):
        edited(["pan"], [7, CARD], lambda data: data["kwargs"].update(copy={"deep": [HIDDEN]}))
