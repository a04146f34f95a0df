"""Other arguments for a dead letter: checked against the task, written into the message, remembered, and nothing else touched."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import kombu.utils.json
import pytest
from celery import Celery

from celery_guardrails import GuardedTask, Guardrails, guarded_task
from celery_guardrails.dead_letters import DeadLetters, Edit, KombuDecoder
from celery_guardrails.dead_letters.edit import edit_of_text, parse_edit, text_to_edit
from celery_guardrails.dead_letters.redaction import HIDDEN
from celery_guardrails.dead_letters.render import letter_data
from celery_guardrails.dead_letters.tasks import tasks_of
from celery_guardrails.errors import GuardrailsConfigError
from celery_guardrails.policy.delivery import TRAVEL_HEADER, RawMessage, Travel
from celery_guardrails.policy.lease import StoredResult
from tests.support.dead_letters import Kit, certificate_for, task_message

EMBED = {"callbacks": [{"task": "next", "args": [1]}], "errbacks": None, "chain": [{"task": "last"}], "chord": None}


def shop_app() -> Celery:
    app = Celery("shop", broker="memory://", set_as_current=False)
    Guardrails(app, store="memory://")

    @app.task(base=GuardedTask, name="shop.charge", shared=False, key="charge:{order_id}")
    def charge(order_id: int, amount: float = 0.0, *, note: str | None = None, api_key: str = "") -> None: ...

    @app.task(base=GuardedTask, name="shop.mail", shared=False, bind=True)
    def mail(self: Any, to: str, *rest: Any, **options: Any) -> None: ...

    @app.task(name="shop.plain", shared=False)
    def plain(a: int, b: list[int] | None = None) -> None: ...

    return app


class Shop(Kit):
    def __init__(self) -> None:
        super().__init__(accept=("json", "pickle"))
        self.app = shop_app()
        self.service = DeadLetters(
            self.broker,
            self.store,
            settings=self.app.guardrails.settings,
            clock=self.clock,
            decoder=KombuDecoder(("json", "pickle")),
            tasks=tasks_of(self.app),
        )

    def put(self, name: str, args: list[Any], kwargs: dict[str, Any] | None = None, *, task_id: str = "task-1", **headers: Any) -> None:
        travel = {} if name != "shop.charge" else {"key": f"charge:{args[0]}", "fp": "0" * 16}
        message = task_message(name, task_id=task_id, **{TRAVEL_HEADER: {**travel, "first": 1.0}, "kwargsrepr": "{}", **headers})
        self.bury(replace(message, body=json.dumps([args, kwargs or {}, EMBED]).encode()))

    def edit(self, edit: Edit, **options: Any) -> Any:
        return self.service.replay(edit=edit, **options)

    def sent(self) -> tuple[list[Any], dict[str, Any], Any, RawMessage]:
        [message] = self.broker.messages("celery")
        args, kwargs, embed = json.loads(message.body)
        return args, kwargs, embed, message

    def refused(self, edit: Edit, **options: Any) -> str:
        dead = self.broker.messages("celery.dead")
        with pytest.raises(GuardrailsConfigError) as caught:
            self.edit(edit, **options)
        assert self.broker.messages("celery.dead") == dead
        assert self.broker.depth("celery") == 0
        return str(caught.value)


@pytest.fixture
def shop() -> Shop:
    return Shop()


# -- what is changed ------------------------------------------------------------------------------------------------


def test_an_argument_is_set_by_name_where_it_was_given_by_position(shop: Shop) -> None:
    shop.put("shop.charge", [7, 1.5], {"note": "old"})
    report = shop.edit(Edit({"amount": 2.5, "note": "new"}))
    args, kwargs, embed, message = shop.sent()
    assert (args, kwargs) == ([7, 2.5], {"note": "new"})
    assert embed == EMBED
    assert message.headers["id"] == "task-1"
    assert (report.replayed, report.edited, report.clean) == (1, 1, True)
    assert report.edits[0].changes == (("amount", "1.5", "2.5"), ("note", '"old"', '"new"'))


def test_a_value_is_set_by_its_place_and_a_new_one_by_its_name(shop: Shop) -> None:
    shop.put("shop.charge", [7])
    shop.edit(Edit({"0": 8, "amount": 1}))
    assert shop.sent()[:2] == ([8], {"amount": 1})


def test_all_positional_or_all_keyword_arguments_can_be_given(shop: Shop) -> None:
    shop.put("shop.charge", [7, 1.5], {"note": "x"})
    shop.edit(Edit(args=[9], kwargs={"amount": 3}))
    assert shop.sent()[:2] == ([9], {"amount": 3})


def test_what_is_set_to_what_it_was_is_no_edit(shop: Shop) -> None:
    shop.put("shop.charge", [7, 1.5])
    before = shop.broker.messages("celery.dead")[0].body
    report = shop.edit(Edit({"amount": 1.5}))
    assert (report.replayed, report.edited) == (1, 0)
    message = shop.sent()[3]
    assert message.body == before
    assert Travel.from_headers(message.headers).edited == ()


def test_one_and_true_are_two_values(shop: Shop) -> None:
    shop.put("shop.mail", ["a", 1])
    report = shop.edit(Edit({"1": True}))
    assert report.edits[0].changes == (("1", "1", "true"),)
    assert shop.sent()[0] == ["a", True]


# -- key and fingerprint --------------------------------------------------------------------------------------------


def test_key_and_fingerprint_are_made_anew_where_the_key_is_made_from_arguments(shop: Shop) -> None:
    shop.put("shop.charge", [7, 1.5])
    report = shop.edit(Edit({"order_id": 8}))
    travel = Travel.from_headers(shop.sent()[3].headers)
    wanted = shop.app.tasks["shop.charge"].guard_options.identify([8, 1.5], {})
    assert (travel.key, travel.fingerprint) == wanted
    assert (report.edits[0].key, report.edits[0].new_key) == ("charge:7", "charge:8")


def test_a_task_whose_key_is_its_id_keeps_it(shop: Shop) -> None:
    shop.put("shop.mail", ["a@b"])
    report = shop.edit(Edit({"to": "c@d"}))
    assert Travel.from_headers(shop.sent()[3].headers).key is None
    assert report.edits[0].key == report.edits[0].new_key == "task-1"


def test_a_dry_run_counts_keys_that_have_completed_by_the_new_arguments(shop: Shop) -> None:
    shop.put("shop.charge", [7, 1.5])
    key, mark = shop.app.tasks["shop.charge"].guard_options.identify([8, 1.5], {})
    claim = shop.store.claim(key, holder="h", fingerprint=mark, lease=10)
    shop.store.complete(key, holder="h", fingerprint=mark, fence=claim.fence, result=StoredResult(), retention=1000)
    report = shop.edit(Edit({"order_id": 8}), dry_run=True)
    assert (report.replayed, report.already_completed, report.edited) == (1, 1, 1)
    assert shop.broker.depth("celery.dead") == 1


def test_a_key_that_is_remembered_for_other_arguments_is_refused_before_it_dies_of_a_conflict(shop: Shop) -> None:
    shop.put("shop.charge", [7, 1.5])
    claim = shop.store.claim("charge:7", holder="h", fingerprint="other", lease=10)
    assert claim.fence
    shop.store.save_step("charge:7", holder="h", name="paid", value=StoredResult())
    shop.store.reset("charge:7", holder="h")
    refusal = shop.refused(Edit({"amount": 2}))
    assert "forget" in refusal
    assert "paid" in refusal


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (Edit({"ammount": 1}), "ammount"),
        (Edit({"5": 1}), "--set 5"),
        (Edit(args=[]), "order_id"),
        (Edit(args=[1, 2, 3]), "too many"),
        (Edit(kwargs={"colour": "red"}), "colour"),
        (Edit({"order_id": "8"}), "order_id = '8': int"),
        (Edit({"order_id": True}), "order_id = True"),
        (Edit({"amount": None}), "amount = None: float"),
        (Edit({"note": 5}), "note = 5"),
    ],
)
def test_arguments_that_do_not_fit_the_task_are_refused_and_nothing_moves(shop: Shop, edit: Edit, named: str) -> None:
    shop.put("shop.charge", [7, 1.5])
    refusal = shop.refused(edit)
    assert named in refusal
    assert "letter task1-" in refusal


@pytest.mark.parametrize(("name", "missing"), [("shop.plain", "'a'"), ("shop.mail", "'to'")])
def test_a_task_whose_key_needs_no_arguments_is_checked_all_the_same(shop: Shop, name: str, missing: str) -> None:
    shop.put(name, [7])
    assert missing in shop.refused(Edit(args=[]))


def test_one_letter_that_does_not_fit_keeps_all_where_they_are(shop: Shop) -> None:
    shop.put("shop.charge", [7])
    shop.put("shop.plain", [7], task_id="task-2")
    assert "amount" in shop.refused(Edit({"amount": 1.0}))


def test_a_task_that_the_app_does_not_know_wants_force(shop: Shop) -> None:
    shop.put("elsewhere", [7], {"a": 1})
    assert "--force" in shop.refused(Edit({"a": 2}))
    shop.edit(Edit({"a": 2, "0": 8}, force=True))
    assert shop.sent()[:2] == ([8], {"a": 2})


def test_force_goes_against_annotations_but_never_against_the_signature(shop: Shop) -> None:
    shop.put("shop.plain", [7])
    assert "a = 'x'" in shop.refused(Edit({"a": "x"}))
    assert "b = ['x']" in shop.refused(Edit({"b": ["x"]}))
    assert "nope" in shop.refused(Edit({"nope": 1}, force=True))
    assert shop.edit(Edit({"a": "x"}, force=True)).clean


def test_what_the_app_would_not_decode_is_not_edited(shop: Shop) -> None:
    message = replace(task_message("shop.plain"), content_type="application/x-yaml", body=b"[[1], {}, {}]")
    shop.bury(message)
    assert "accept_content" in shop.refused(Edit({"a": 2}, force=True))


def test_a_letter_that_comes_in_after_the_check_and_does_not_fit_stays_and_is_told(shop: Shop) -> None:
    shop.put("shop.plain", [7])
    depth, asked = shop.broker.depth, []

    def late(queue: str) -> int:
        asked.append(queue)
        if len(asked) == 2:  # planned with one letter; now the replay begins
            shop.put("shop.charge", [7], task_id="late")
        return depth(queue)

    shop.broker.depth = late  # type: ignore[method-assign]
    report = shop.edit(Edit({"a": 8}))
    assert (report.replayed, report.failed) == (1, 1)
    assert [message.headers["id"] for message in shop.broker.messages("celery.dead")] == ["late"]


# -- what is written ------------------------------------------------------------------------------------------------


def test_the_change_travels_redacted_and_is_shown_when_it_dies_again(shop: Shop) -> None:
    shop.put("shop.charge", [7], {"api_key": "hunter2"})
    shop.edit(Edit({"api_key": "hunter3", "amount": 2.0}))
    message = shop.sent()[3]
    assert "hunter" not in repr(dict(message.headers))
    shop.broker.dead_letter(message, "celery", certificate_for(message, replays=1))
    [letter] = shop.service.list()
    data = letter_data(letter, full=True)
    assert data["edited"] == [
        {"argument": "api_key", "old": f'"{HIDDEN}"', "new": f'"{HIDDEN}"'},
        {"argument": "amount", "old": "(unset)", "new": "2.0"},
    ]
    assert "hunter" not in json.dumps(data, default=str)
    shop.broker.receive("celery")
    shop.edit(Edit({"amount": 3.0}))
    assert [change[0] for change in Travel.from_headers(shop.sent()[3].headers).edited] == ["api_key", "amount", "amount"]


def test_changes_that_travel_are_few_and_short(shop: Shop) -> None:
    shop.put("shop.mail", ["a"])
    shop.edit(Edit(kwargs={f"n{number}": "x" * 5000 for number in range(50)}))
    header = shop.sent()[3].headers[TRAVEL_HEADER]
    assert len(json.dumps(header)) < 10_000
    assert len(header["edited"]) == 20


def test_compression_and_serializer_are_those_it_came_with(shop: Shop) -> None:
    body = zlib.compress(json.dumps([[7], {}, EMBED]).encode())
    shop.bury(replace(task_message("shop.plain", compression="application/x-gzip"), body=body))
    shop.edit(Edit({"a": 8}))
    [message] = shop.broker.messages("celery")
    assert json.loads(zlib.decompress(message.body)) == [[8], {}, EMBED]
    assert (message.content_type, message.headers["compression"]) == ("application/json", "application/x-gzip")


def test_a_pickled_letter_is_edited_where_the_app_accepts_pickle(shop: Shop) -> None:
    import pickle

    when = datetime(2031, 1, 1, tzinfo=timezone.utc)
    body = pickle.dumps(([7], {"b": None}, {"chain": (when,)}))
    shop.bury(replace(task_message("shop.plain"), body=body, content_type="application/x-python-serialize", content_encoding="binary"))
    shop.edit(Edit({"a": 8}))
    [message] = shop.broker.messages("celery")
    assert pickle.loads(message.body) == [[8], {"b": None}, {"chain": (when,)}]
    assert message.content_encoding == "binary"


def test_dates_and_uuids_beside_the_change_stay_what_they_are(shop: Shop) -> None:
    when, name = datetime(2031, 1, 1, tzinfo=timezone.utc), UUID(int=7)
    body = kombu.utils.json.dumps([["a", when, name], {}, EMBED]).encode()
    shop.bury(replace(task_message("shop.mail"), body=body))
    shop.edit(Edit({"to": "b"}))
    [message] = shop.broker.messages("celery")
    assert kombu.utils.json.loads(message.body)[0] == ["b", when, name]


def test_a_message_of_protocol_1_is_edited_too(shop: Shop) -> None:
    body = {"task": "shop.plain", "id": "old-1", "args": [7], "kwargs": {}, "retries": 2, "taskset": "x"}
    shop.bury_raw(RawMessage(json.dumps(body).encode(), "application/json", "utf-8", {}, {}, "", "celery"))
    shop.edit(Edit({"a": 8}))
    [message] = shop.broker.messages("celery")
    assert json.loads(message.body) == {**body, "args": [8]}


def test_a_letter_whose_arguments_were_invalid_is_mended_without_being_named(shop: Shop) -> None:
    shop.bury(replace(task_message("shop.charge"), body=json.dumps([[], {}, {}]).encode()), "invalid")
    assert shop.edit(Edit({"order_id": 5})).replayed == 1


def test_what_is_shown_in_lists_of_arguments_is_the_new_ones(shop: Shop) -> None:
    shop.put("shop.mail", ["a"], {"password": "hunter2"})
    shop.edit(Edit({"to": "b"}))
    headers = shop.sent()[3].headers
    assert headers["argsrepr"] == "['b']"
    assert headers["kwargsrepr"] == repr({"password": HIDDEN})


# -- texts ----------------------------------------------------------------------------------------------------------


def test_options_are_read_as_json() -> None:
    edit = parse_edit(['a={"b": [1]}', "0=null", 'c="x=y"'], args="[1]", kwargs='{"k": 2}', force=True)
    assert edit == Edit({"a": {"b": [1]}, "0": None, "c": "x=y"}, [1], {"k": 2}, force=True)


@pytest.mark.parametrize(
    "options",
    [{"sets": ["a"]}, {"sets": ["=1"]}, {"sets": ["a=x"]}, {"args": "{}"}, {"args": "["}, {"kwargs": "[]"}, {"kwargs": "x"}],
)
def test_what_is_no_json_is_refused_with_what_would_be(options: dict[str, Any]) -> None:
    with pytest.raises(GuardrailsConfigError, match="is allowed"):
        parse_edit(**options)


def test_what_was_hidden_in_the_editor_and_left_so_stays_as_it_is(shop: Shop) -> None:
    shop.put("shop.mail", ["a", {"token": "t", "x": 1}], {"password": "hunter2", "n": 1})
    [letter] = shop.service.list()
    text = text_to_edit(letter)
    assert "hunter2" not in text
    data = json.loads(text)
    data["args"][1]["x"] = 2
    data["kwargs"]["n"] = 3
    shop.edit(edit_of_text(letter, json.dumps(data)))
    assert shop.sent()[:2] == (["a", {"token": "t", "x": 2}], {"password": "hunter2", "n": 3})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"args": []}', '{"args": {}, "kwargs": {}}', '{"args": [], "kwargs": {}, "embed": {}}'])
def test_a_text_that_is_no_such_json_any_more_is_refused(shop: Shop, text: str) -> None:
    shop.put("shop.mail", ["a"])
    [letter] = shop.service.list()
    with pytest.raises(GuardrailsConfigError, match="edited text"):
        edit_of_text(letter, text)


# -- what an app knows ----------------------------------------------------------------------------------------------


def test_modules_that_only_a_worker_imports_are_imported_at_the_first_miss() -> None:
    app = Celery("late", broker="memory://", set_as_current=False)
    imported = []

    def load() -> None:
        imported.append(1)

        @app.task(name="late.task", shared=False)
        def late(a: int) -> None: ...

    app.loader.import_default_modules = load
    found = tasks_of(app)("late.task")
    assert found is not None
    assert list(found.signature.parameters) == ["a"]
    assert imported == [1]


def test_a_task_whose_annotations_cannot_be_evaluated_is_checked_by_its_signature_alone() -> None:
    def run(a: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821, UP037

    app = SimpleNamespace(tasks={"t": SimpleNamespace(name="t", run=run)}, loader=SimpleNamespace(import_default_modules=lambda: None))
    known = tasks_of(app)("t")
    assert known is not None
    known.check_type("a", "anything")
    known.check([1], {})
    with pytest.raises(GuardrailsConfigError):
        known.check([], {})


def test_a_shared_guarded_task_is_known_with_its_key() -> None:
    app = Celery("shared", broker="memory://", set_as_current=True)
    Guardrails(app, store="memory://")

    @guarded_task(name="shared.one", key="one:{n}")
    def one(n: int) -> None: ...

    known = tasks_of(app)("shared.one")
    assert known is not None
    assert known.identify([3], {}, None)[0] == "one:3"
