"""A dead letter as a test: what is written, and that it dies the same way."""

from __future__ import annotations

import ast
import base64
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_guardrails import DeadLetterError, GuardedTask, Guardrails, RetryPolicy
from celery_guardrails.cli import commands
from celery_guardrails.dead_letters.decoder import KombuDecoder
from celery_guardrails.dead_letters.letter import DeadLetter, read_letter
from celery_guardrails.dead_letters.redaction import HIDDEN
from celery_guardrails.dead_letters.reproduce import literal, reproduction
from celery_guardrails.policy.deadletter import REASONS
from celery_guardrails.policy.delivery import DEAD_LETTER_HEADER, RawMessage
from celery_guardrails.testing.harness import Harness
from tests.support.dead_letters import certificate_for
from tests.unit.test_dead_letters_cli import make_runner

#: Where a careless writer of Python would be lost.
NASTY = (
    '"""',
    "'''",
    '\\"""',
    "\n# x\nimport os\n",
    "\r",
    "\x00",
    "\x0c",
    "\u2028",
    "\u202e",
    "\ud800",
    "{0}",
    "%s",
    "\\",
    "\\N{DIGIT ONE}",
    "é",
)

texts = st.one_of(st.sampled_from(NASTY), st.text(), st.lists(st.sampled_from(NASTY)).map("".join))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


def a_letter(
    *args: Any, reason: str = "permanent", task: str = "shop.charge", body: bytes | None = None, content_type: str = "application/json",
    accept: tuple[str, ...] = ("json",), headers: dict[str, Any] | None = None, kwargs: dict[str, Any] | None = None, **certificate: Any,
) -> DeadLetter:  # fmt: skip
    body = json.dumps([args, kwargs or {}, {}]).encode() if body is None else body
    message = RawMessage(body, content_type, "utf-8", {"id": "a-b-c", "task": task, **(headers or {})}, {}, "", "celery")
    death = certificate_for(message, reason, **certificate)
    return read_letter(
        message.with_headers(**{DEAD_LETTER_HEADER: death.to_header()}),
        queue="celery",
        dead_letter_queue="celery.dead",
        decoder=KombuDecoder(accept),
    )


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """Return which method of the harness publishes, and with what; the file compiles, and does nothing else."""
    tree = ast.parse(text)
    compile(tree, "test_it.py", "exec")
    assert text.isascii()
    kinds = [type(node) for node in tree.body]
    assert kinds[0] is ast.Expr  # the docstring
    assert kinds.count(ast.FunctionDef) == 1
    assert set(kinds[1:-1]) <= {ast.Import, ast.ImportFrom}
    function = tree.body[-1]
    assert isinstance(function, ast.FunctionDef)
    assert [type(node) for node in function.body] == [ast.Assign, ast.Assign, ast.Expr, ast.Assign, ast.Assert]
    for call in ast.walk(function.body[1]):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in ("send", "put"):
            found = {"task": ast.literal_eval(call.args[0])}
            for option in call.keywords:
                assert option.arg is not None
                value = option.value.args[0] if isinstance(option.value, ast.Call) else option.value
                found[option.arg] = ast.literal_eval(value)
            return call.func.attr, found
    raise AssertionError(text)


# -- the text -----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(values, max_size=4), st.dictionaries(texts, values, max_size=4), texts, texts, texts)
def test_no_payload_breaks_out_of_its_literals(args, kwargs, task, error, message):
    letter = a_letter(*args, kwargs=kwargs, task=task or "t", error=error, message=message)
    how, sent = parsed(reproduction(letter, app=("proj", "app")))
    assert sent["task"] == (task or "t")
    if how == "send":
        again = json.dumps([sent.get("args", []), sent.get("kwargs", {})])
        assert again == json.dumps([list(letter.payload.args), dict(letter.payload.kwargs)])
    else:
        assert base64.b64decode(sent["body"]) == letter.message.body


@settings(max_examples=200, deadline=None)
@given(st.binary(), texts, texts)
def test_no_body_breaks_out_of_its_literal(body, content_type, compression):
    letter = a_letter(body=body, content_type=content_type, headers={"compression": compression})
    how, sent = parsed(reproduction(letter))
    if how == "put":
        assert base64.b64decode(sent["body"]) == body
        assert sent["content_type"] == content_type
        assert sent.get("headers", {}).get("compression", "") == compression


@given(values)
def test_a_literal_is_the_very_same_value_or_none(value):
    text = literal(value)
    if text is not None:
        assert repr(ast.literal_eval(text)) == repr(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")], object(), {"a": {1: object()}}, ast, [10**5000]])
def test_what_is_no_literal_is_none(value):
    assert literal(value) is None


def test_what_is_nested_too_deeply_for_the_parser_is_none():
    value: list[Any] = []
    for _ in range(500):
        value = [value]
    assert literal(value) is None


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize("value", [Text("x"), [True], {"a": (1, 2)}, b"\x00", -0.0, {1, 2}, 1e300, {"b": 1, "a": 2}])
def test_types_are_kept(value):
    text = literal(value)
    assert text is None if type(value) is Text else repr(ast.literal_eval(str(text))) == repr(value)


def test_long_arguments_take_a_line_each():
    text = reproduction(a_letter(kwargs={"order": {"lines": [{"sku": f"SKU-{n}", "count": n} for n in range(9)]}, "note": "x" * 90}))
    assert max(map(len, text.splitlines())) <= 124
    assert parsed(text)[1]["kwargs"]["order"]["lines"][8] == {"sku": "SKU-8", "count": 8}


def test_arguments_that_json_cannot_say_go_as_the_bytes_they_were():
    body = json.dumps([[{"__type__": "uuid", "__value__": {"hex": "0" * 32}}], {}, {}]).encode()
    how, sent = parsed(reproduction(a_letter(body=body)))
    assert (how, base64.b64decode(sent["body"])) == ("put", body)


def test_the_head_warns_of_personal_data_and_says_how_to_turn_the_test_round():
    text = reproduction(a_letter(7, message="card 4711 of Ann"), app=("proj.celery", "app"))
    assert "MAY HOLD PERSONAL DATA" in text
    assert "card 4711 of Ann" in text
    assert "put this in place of what follows" in text
    assert "from proj.celery import app\n" in text
    assert "from proj import celery_app as app\n" in reproduction(a_letter(7), app=("proj", "celery_app"))
    assert "import yours here" in reproduction(a_letter(7))


def test_redacted_it_holds_neither_secrets_nor_the_message():
    text = reproduction(a_letter(7, kwargs={"card": {"password": "hunter2"}}, message="hunter2 is wrong"), redact=True)
    assert "hunter2" not in text
    assert parsed(text)[1]["kwargs"] == {"card": {"password": HIDDEN}}
    body = json.dumps([[], {"password": {"__type__": "uuid", "__value__": {"hex": "0" * 32}}, "n": float("nan")}, {}]).encode()
    with pytest.raises(DeadLetterError, match="--redact: there are arguments"):
        reproduction(a_letter(body=body), redact=True)
    with pytest.raises(DeadLetterError, match="--redact: content type"):
        reproduction(a_letter(content_type="application/x-python-serialize"), redact=True)


@pytest.mark.parametrize("reason", [reason for reason in REASONS if reason not in ("permanent", "exhausted", "deadline", "rejected")])
def test_what_did_not_die_in_its_body_is_refused(reason):
    with pytest.raises(DeadLetterError, match=f"is dead for {reason}: .* would show nothing"):
        reproduction(a_letter(7, reason=reason))


@pytest.mark.parametrize(
    "error",
    ["billiard.exceptions.TimeLimitExceeded", "celery_guardrails.errors.DeadlineExceeded", "celery_guardrails.errors.NoProgress"],
)
def test_what_the_harness_has_not_is_refused(error):
    with pytest.raises(DeadLetterError, match="would show nothing"):
        reproduction(a_letter(7, reason="deadline", error=error))
    with pytest.raises(DeadLetterError, match="which task died"):
        reproduction(a_letter(7, task="", reason="permanent"))


# -- the command, and the file that it writes ---------------------------------------------------------------------------

PROJECT = """
from celery import Celery
from celery_guardrails import Guardrails, RetryPolicy, guarded_task

app = Celery("shop", broker="amqp://nowhere.invalid", backend="redis://nowhere.invalid")
app.conf.accept_content = ["json", "pickle"]
Guardrails(app, store="redis://nowhere.invalid")
MENDED = False

@guarded_task(name="shop.charge", key="charge:{order.id}", retry=RetryPolicy(max_attempts=3))
def charge(order, when=None):
    if not MENDED:
        raise ValueError(f"no {order}") if order["id"] else ConnectionError("away")
"""


@pytest.fixture
def project(tmp_path: Path) -> Any:
    """A project whose tasks have died, and its command line."""
    (tmp_path / "shop_to_mend.py").write_text(PROJECT)
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.accept_content = ["json", "pickle"]
    Guardrails(app, store="memory://")

    @app.task(base=GuardedTask, name="shop.charge", shared=False, key="charge:{order.id}", retry=RetryPolicy(max_attempts=3))
    def charge(order: Any, when: Any = None) -> None:
        raise ValueError(f"no {order}") if order["id"] else ConnectionError("away")

    harness = Harness().use(app)
    group = commands(lambda: app)

    def run(*args: str, code: int = 0) -> Any:
        done = make_runner().invoke(group, ["dead-letters", "reproduce", *args])
        assert done.exit_code == code, (done.output, done.exception)
        return done

    sys.modules["shop_to_mend"] = SimpleNamespace(app=app)  # type: ignore[assignment]
    yield SimpleNamespace(charge=charge, harness=harness, run=run, path=tmp_path)
    del sys.modules["shop_to_mend"]
    harness.close()


def run_pytest(where: Path) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "celery_guardrails.pytest_plugin", str(where)]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(where)}
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=120, check=False).stdout


def test_the_written_file_dies_the_same_way_until_the_task_is_mended(project):
    import datetime as dt

    project.charge.delay({"id": 7, "note": 'it\'s """quoted"""\n'})
    project.charge.delay({"id": 0})
    project.charge.delay({"id": 9}, when=dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc))
    project.charge.apply_async(({"id": 8},), {"when": (1, 2)}, serializer="pickle", compression="gzip")
    project.harness.drain()
    letters = project.harness.dead_letters
    assert sorted(letter.reason for letter in letters) == ["exhausted", "permanent", "permanent", "permanent"]
    for number, letter in enumerate(letters):
        project.run(letter.id, "--output", str(project.path / f"test_{number}.py"))
    texts = [(project.path / f"test_{number}.py").read_text() for number in range(4)]
    assert [parsed(text)[0] for text in texts].count("put") == 1  # that with a date
    assert all("from shop_to_mend import app" in text for text in texts)
    said = run_pytest(project.path)
    assert "4 passed" in said, said

    shop = project.path / "shop_to_mend.py"
    shop.write_text(shop.read_text().replace("MENDED = False", "MENDED = True"))
    said = run_pytest(project.path)
    assert "4 failed" in said, said
    for number, text in enumerate(texts):
        head, _, _ = text.partition("    deaths = ")
        (project.path / f"test_{number}.py").write_text(head + "    assert harness.dead_letters == []\n")
    said = run_pytest(project.path)
    assert "4 passed" in said, said


def test_without_a_file_it_is_printed_and_a_file_is_never_overwritten(project):
    task_id = project.charge.delay({"id": 7}).id
    project.harness.drain()
    assert parsed(project.run(task_id).stdout)[1]["args"] == [{"id": 7}]
    target = project.path / "test_it.py"
    project.run(task_id, "--output", str(target))
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    target.write_text("mine")
    assert "is there already" in project.run(task_id, "--output", str(target), code=1).output
    assert target.read_text() == "mine"
    assert "there is no dead letter 'nobody'" in project.run("nobody", code=1).output
