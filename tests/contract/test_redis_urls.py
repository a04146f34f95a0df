"""Store URLs of Redis: what they mean, and what a wrong one says."""

from __future__ import annotations

import traceback

import pytest
from celery import Celery

from celery_guardrails import Guardrails, GuardrailsConfigError, StoreUnavailable
from celery_guardrails.policy.lease import ClaimState
from celery_guardrails.stores import hide_password, open_store
from celery_guardrails.stores.redis.urls import Mode, parse


def test_hosts_without_a_port_get_the_usual_one_of_what_answers_there():
    assert parse("redis+sentinel://a,b:1,[::1]:2,[fe80::1]/m").nodes == (("a", 26379), ("b", 1), ("::1", 2), ("fe80::1", 26379))
    assert parse("redis+cluster://a,b:1").nodes == (("a", 6379), ("b", 1))
    assert (parse("redis://").options["host"], parse("redis://").options["port"]) == ("localhost", 6379)


def test_a_sentinel_url_names_servers_user_master_and_database_and_the_sentinels_own_options():
    place = parse(
        "redis+sentinel://u:p%2Fw@a,b/m%20m/3?sentinel_password=s%26s&sentinel_username=x&socket_timeout=1.5&min_other_sentinels=1"
    )
    assert (place.mode, place.service, place.min_other_sentinels) == (Mode.SENTINEL, "m m", 1)
    chosen = {name: place.options[name] for name in ("username", "password", "db", "socket_timeout")}
    assert chosen == {"username": "u", "password": "p/w", "db": 3, "socket_timeout": 1.5}
    assert {name: place.sentinel[name] for name in ("username", "password", "ssl")} == {"username": "x", "password": "s&s", "ssl": False}
    assert not {"host", "port"} & {*place.options, *place.sentinel}


def test_sentinels_speak_tls_as_their_servers_do_unless_they_say_otherwise():
    place = parse("rediss+sentinel://a/m?ssl_cert_reqs=none")
    assert (place.sentinel["ssl"], place.sentinel["ssl_cert_reqs"]) == (True, "none")
    plain = parse("rediss+sentinel://a/m?ssl_cert_reqs=none&sentinel_ssl=false").sentinel
    assert (plain["ssl"], "ssl_cert_reqs" in plain) == (False, False)
    assert parse("redis+sentinel://a/m?sentinel_ssl=true").sentinel["ssl"] is True


@pytest.mark.parametrize("celerys", ["CERT_NONE", "CERT_REQUIRED", "CERT_OPTIONAL"])
def test_celerys_names_of_certificate_requirements_are_understood(celerys):
    open_store(f"rediss://localhost?ssl_cert_reqs={celerys}", namespace="x")


def test_a_place_shows_no_password():
    assert "hush" not in repr(parse("redis+sentinel://u:hush@a/m?sentinel_password=hush"))


WRONG = {
    "redis://h:6379/0?colour=red": "colour",
    "redis://h/zero": "database must be a number",
    "redis://h/0/1": "too many parts",
    "redis://a,b/0": "redis.sentinel://",
    "redis://:hu/sh@h/0": "%2F",
    "redis://u:hush@h:port/0": "port must be a number",
    "redis://[::1": "not a URL",
    "redis://u:hush\u2100@h": "not a URL",
    "redis://h?socket_timeout=soon": "socket_timeout",
    "redis://h?decode_responses=true": "decode_responses",
    "rediss://h?ssl_cert_reqs=maybe": "maybe",
    "rediss://h?ssl_ca_certs=/no/such/file": "ssl_ca_certs: there is no '/no/such/file'",
    "unix://": "path of the socket",
    "redis+sentinel://u:hush@a:1,b:2?sentinel_password=hush": "master's name is missing",
    "redis+sentinel://u:hush@a:1,b:x/m": "port must be a number",
    "redis+sentinel://u:hush@a:1,u:hush@b:2/m": "once, before the first host",
    "redis+sentinel://u:hush@a:1,/m": "a host is missing",
    "redis+sentinel://u:hush@a/m/one": "database must be a number",
    "redis+sentinel://a/m?sentinel_colour=red&sentinel_password=hush": "colour",
    "redis+cluster://u:hush@a:1,b:2/3": "database 0 only",
    "redis+cluster://u:hush@a:1,b:2?colour=red": "colour",
    "redis+cluster://:hush@a:1,b:70000": "port must be a number",
}


@pytest.mark.parametrize("url", WRONG)
def test_a_wrong_url_is_refused_when_the_store_is_opened_and_says_why_without_a_password(url):
    with pytest.raises(GuardrailsConfigError, match="guardrails_store = .*" + WRONG[url]) as caught:
        open_store(url, namespace="x")
    shown = "".join(traceback.format_exception(caught.value))
    assert "hush" not in shown
    assert "hu/sh" not in shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:pw@h:1/0", "redis://:***@h:1/0"),
        ("redis+cluster://u:p@a:1,b:2", "redis+cluster://u:***@a:1,b:2"),
        ("redis+sentinel://a:1,b:2/m?sentinel_password=s&db=1", "redis+sentinel://a:1,b:2/m?sentinel_password=***&db=1"),
        ("redis://:12/3@h", "redis://:***@h"),
        ("redis://h:6379/0?client_name=a@b", "redis://h:6379/0?client_name=a@b"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("unix:///run/redis.sock?password=p", "unix:///run/redis.sock?password=***"),
    ],
)
def test_passwords_are_hidden_wherever_they_stand(url, shown):
    assert hide_password(url) == shown


def test_a_broker_behind_sentinels_is_no_store_by_itself_and_the_error_names_the_setting():
    app = Celery("shop", broker="sentinel://u:hush@localhost:26379;sentinel://localhost:26380")
    with pytest.raises(GuardrailsConfigError, match="guardrails_store is not set") as caught:
        _ = Guardrails(app).store
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis+sentinel://127.0.0.1:1,127.0.0.1:2/m", "redis+cluster://127.0.0.1:1,127.0.0.1:2", "unix:///no/such/socket"]
)
def test_a_store_that_is_away_says_so_and_nothing_else(url, opened):
    store = opened(url)
    for call in (
        lambda: store.claim("k", holder="a", fingerprint=None, lease=1),
        lambda: store.release("k", holder="a"),
        lambda: store.renew([("k", "a")], 1),
        lambda: store.lookup("k"),
        lambda: store.forget("k"),
        lambda: list(store.leases()),
        store.now,
        store.ping,
    ):
        with pytest.raises(StoreUnavailable, match="guardrails_store"):
            call()


def test_a_server_with_a_certificate_of_somebody_else_is_not_spoken_to(redis_tls, opened, tmp_path):
    import trustme

    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    with pytest.raises(StoreUnavailable, match="(?i)certificate"):
        opened(redis_tls.url(trusting=tmp_path / "other.pem")).ping()


def test_a_server_without_a_trusted_certificate_is_spoken_to_where_the_url_says_so(redis_tls, opened):
    opened(f"rediss://127.0.0.1:{redis_tls.port}/0?ssl_cert_reqs=CERT_NONE").ping()


@pytest.mark.parametrize("kind", ["cluster", "sentinel"])
def test_the_urls_user_and_password_are_those_of_the_servers(request, opened, kind):
    setup = request.getfixturevalue(f"redis_{kind}")
    servers = setup.nodes if kind == "cluster" else setup.servers
    for server in servers:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "app", "on", ">se/cret", "~test:*", "+@all")
    store = opened(setup.url(user="app:se%2Fcret"))
    assert store.claim(f"{kind}-user", holder="a", fingerprint=None, lease=1).state is ClaimState.CLAIMED
    stranger = opened(setup.url(user="app:se%2Fcret"), namespace="elsewhere")  # that user may touch "test:" only
    with pytest.raises(StoreUnavailable, match="(?i)permission"):
        stranger.claim(f"{kind}-user", holder="a", fingerprint=None, lease=1)
    with pytest.raises(StoreUnavailable) as caught:
        opened(setup.url(user="app:wrong")).ping()
    assert "wrong" not in str(caught.value)
