"""What an alert says, and the channels it goes through: a webhook on a real server, a callable, Django's mailer where there is one."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import trustme

from celery_guardrails.errors import GuardrailsConfigError, PermanentError
from celery_guardrails.integration.alerts import webhook as webhook_module
from celery_guardrails.integration.alerts.channels import Call, Mail
from celery_guardrails.integration.alerts.text import body, title
from celery_guardrails.integration.alerts.webhook import Webhook
from celery_guardrails.policy.alerts import Alert, AlertRate, Kind
from tests.support.http import HttpServer

NOON = 1_900_000_000.0
CARD = Kind("0123456789abcdef", "shop.charge", "celery", "permanent", "shop.CardDeclined", "no <money> & no hope", 3, new=True)
OLD = Kind("fedcba9876543210", "shop.mail", "mail", "exhausted", "ConnectionError", "gone", 412)
NEW = Alert("new", 415, (CARD, OLD), 0, NOON, NOON + 60)


# -- the text -------------------------------------------------------------------------------------------------------


def test_a_message_of_a_new_kind_says_what_died_where_why_and_how_to_look() -> None:
    assert title(NEW, "shop") == "[shop] a new kind of dead letter"
    assert body(NEW).splitlines() == [
        "• new: 3 × shop.charge from queue celery, permanent (shop.CardDeclined: no <money> & no hope)",
        "  guardrails dead-letters list --fingerprint 0123456789abcdef",
        "412 more letters of 1 other kind since 2030-03-17 17:46:40 UTC: guardrails dead-letters groups",
    ]


def test_a_message_of_a_rate_begins_with_the_numbers_and_lists_the_known_kinds_as_well() -> None:
    alert = Alert("rate", 515, (CARD, OLD), 100, NOON, NOON + 60, 480, AlertRate(100, 60.0))
    assert title(alert, "shop") == ("[shop] 480 dead letters within 60 s (the alert's rate is 100), 515 since 2030-03-17 17:46:40 UTC")
    lines = body(alert).splitlines()
    assert lines[2].startswith("• 412 × shop.mail from queue mail, exhausted (ConnectionError: gone)")
    assert lines[4].startswith("100 more letters of other kinds since")


def test_of_many_kinds_ten_are_listed() -> None:
    kinds = tuple(Kind(f"{number:04x}", "t", "q", "permanent", new=True) for number in range(15))
    text = body(Alert("new", 20, kinds, 5, NOON, NOON))
    assert text.count("--fingerprint") == 10
    assert "10 more letters of 5 other kinds and more since" in text
    assert title(Alert("new", 20, kinds, 5, NOON, NOON), "shop") == "[shop] 15 new kinds of dead letters"


def test_what_a_stranger_wrote_into_a_message_steers_no_terminal_and_begins_no_line() -> None:
    evil = Kind("ab", "shop\r\nBcc: me", "q\x1b[31m", "invalid", "E", "a\nb\u202ec" + "x" * 500, new=True)
    text = body(Alert("new", 1, (evil,), 0, NOON, NOON))
    assert len(text.splitlines()) == 2
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "x" * 200 not in text
    assert "\n" not in title(NEW, "shop\nBcc: me")


# -- the webhook ----------------------------------------------------------------------------------------------------


def test_a_webhook_gets_slacks_text_and_the_same_as_fields(server: HttpServer) -> None:
    assert Webhook(f"{server.url}/services/T0/secret").send(NEW, "shop") == "200 OK"
    ((method, path, headers, content),) = server.requests
    assert (method, path) == ("POST", "/services/T0/secret")
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    sent = json.loads(content)
    assert set(sent) == {"text", "guardrails"}
    assert sent["text"].startswith("[shop] a new kind of dead letter\n• new: 3 × shop.charge")
    assert "no &lt;money&gt; &amp; no hope" in sent["text"], "nothing in it may be a link or a mention"
    assert "<" not in sent["text"]
    fields = sent["guardrails"]
    assert (fields["app"], fields["why"], fields["letters"]) == ("shop", "new", 415)
    assert fields["kinds"][0] == {
        "fingerprint": "0123456789abcdef",
        "task": "shop.charge",
        "queue": "celery",
        "reason": "permanent",
        "error": "shop.CardDeclined",
        "message": "no <money> & no hope",
        "letters": 3,
        "new": True,
    }


def test_what_the_server_says_of_an_error_is_in_the_error(server: HttpServer) -> None:
    server.answer(404, b"no_service")
    with pytest.raises(urllib.error.HTTPError, match="404.*no_service"):
        Webhook(f"{server.url}/x").send(NEW, "shop")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_server_is_not_followed(server: HttpServer, status: int) -> None:
    other = HttpServer()
    other.answer(200)
    server.answer(status, headers={"Location": f"{other.url}/secret"})
    with pytest.raises(PermanentError) as caught:
        Webhook(f"{server.url}/x").send(NEW, "shop")
    assert f"answers {status} and redirects to http://127.0.0.1" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not other.requests
    other.close()


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirect_that_would_lose_the_message_is_a_failure(server: HttpServer, status: int) -> None:
    server.answer(status, headers={"Location": "/new"})
    with pytest.raises(PermanentError, match=f"answers {status}"):
        Webhook(f"{server.url}/x").send(NEW, "shop")
    assert len(server.requests) == 1


def test_a_redirect_that_keeps_message_and_server_is_followed_but_not_in_a_circle(server: HttpServer) -> None:
    server.answer(307, headers={"Location": "/new"})
    with pytest.raises(PermanentError, match="more than 3 times"):
        Webhook(f"{server.url}/x").send(NEW, "shop")
    assert [path for _, path, _, _ in server.requests] == ["/x", "/new", "/new", "/new"]
    assert len({content for *_, content in server.requests}) == 1
    assert {method for method, *_ in server.requests} == {"POST"}


def test_a_server_that_does_not_answer_is_left_after_a_short_time(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_module, "TIMEOUT", 0.2)
    server.misbehave("silent")
    with pytest.raises(OSError, match="timed out"):
        Webhook(f"{server.url}/x").send(NEW, "shop")


@pytest.mark.parametrize("how", ["nothing", "garbage"])
def test_a_server_that_speaks_something_else_has_not_taken_the_message(server: HttpServer, how: str) -> None:
    server.misbehave(how)
    with pytest.raises((OSError, http.client.HTTPException)):
        Webhook(f"{server.url}/x").send(NEW, "shop")
    assert len(server.requests) == 1


def test_the_certificate_of_the_server_is_verified() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = HttpServer(context)
    server.answer(200)
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        Webhook(f"{server.url}/x").send(NEW, "shop")
    assert not server.requests
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    assert Webhook(f"{server.url}/x", context=trusting).send(NEW, "shop") == "200 OK"
    server.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example.com/x",
        "ftp://hooks.example.com/x",
        "https://",
        "https://user:secret@hooks.example.com/x",
        "http://h:port/secret",
        5,
        "https://hooks.example.com/a b",
        "https://hooks.example.com/a\nb",
        "https://hooks.example.com/ä",
        "file:///etc/passwd",
    ],
)
def test_a_webhook_that_is_no_url_is_refused_and_not_shown(url: Any) -> None:
    with pytest.raises(GuardrailsConfigError) as caught:
        Webhook(url)
    assert "guardrails_alert_webhook" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_secret_of_a_webhook_is_in_no_label() -> None:
    hook = Webhook("https://hooks.example.com:8443/services/secret?token=secret")
    assert hook.label == "webhook https://hooks.example.com:8443/…"
    assert "secret" not in hook.identity
    assert hook.identity != Webhook("https://hooks.example.com:8443/services/other").identity


# -- callables and mail ---------------------------------------------------------------------------------------------


def test_a_callable_gets_the_alert() -> None:
    got: list[Alert] = []
    channel = Call(got.append)
    assert channel.send(NEW, "shop") == "done"
    assert got == [NEW]
    assert json.loads(json.dumps(NEW.as_dict()))["kinds"][1]["letters"] == 412


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(GuardrailsConfigError, match="a callable that takes an Alert"):
        Call("https://hooks.example.com/x")  # type: ignore[arg-type]


@pytest.mark.parametrize("email", ["", [], "ops", ["ops@example.com", "x"], ["a@b\nBcc: c@d"], [5]])
def test_addresses_that_are_none_are_refused(email: Any) -> None:
    with pytest.raises(GuardrailsConfigError, match="alert: email = "):
        Mail(email)


def test_without_django_e_mail_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "django", None)
    monkeypatch.setattr("celery_guardrails.integration.alerts.channels.find_spec", lambda name: None)
    with pytest.raises(GuardrailsConfigError, match="INSTALLED_APPS.*Django is not installed.*give webhook=…"):
        Mail("ops@example.com")


DJANGO = """
import sys
from django.conf import settings
from celery_guardrails.errors import GuardrailsConfigError
from celery_guardrails.integration.alerts.channels import Mail
from celery_guardrails.policy.alerts import Alert

mail = Mail(["ops@example.com", "boss@example.com"])
if sys.argv[1] != "unset":
    installed = [] if sys.argv[1] == "foreign" else ["celery_guardrails.contrib.django"]
    settings.configure(INSTALLED_APPS=installed, SERVER_EMAIL="errors@example.com", CELERY_GUARDRAILS_STORE="memory://")
    import django
    django.setup()
    from django.test.utils import setup_test_environment
    setup_test_environment()
try:
    mail.check()
    print(mail.send(Alert("test"), "shop"))
except GuardrailsConfigError as exc:
    print("refused:", exc)
else:
    from django.core import mail
    (sent,) = mail.outbox
    print(sent.subject, "|", sent.from_email, "|", sent.to, "|", sent.body)
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("ready", ["1 message handed to Django's mailer", "[shop] a test of the alerts | errors@example.com | ['ops@example.com', 'boss@"]),
        ("unset", ["refused: alert: email=… is sent by Django's mailer, and Django is not set up"]),
        ("foreign", ["refused: alert: email=… is sent by Django's mailer: put 'celery_guardrails.contrib.django' into INSTALLED_APPS"]),
    ],
)
def test_e_mail_goes_through_djangos_mailer_where_the_app_is_installed(how: str, said: list[str], tmp_path: Path) -> None:
    script = tmp_path / "mail.py"
    script.write_text(DJANGO)
    root = str(Path(__file__).parents[2])
    environ = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        [sys.executable, str(script), how], capture_output=True, text=True, timeout=60, env={**environ, "PYTHONPATH": root}, check=False
    )
    assert done.returncode == 0, done.stderr
    for text in said:
        assert text in done.stdout
