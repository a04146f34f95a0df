"""Settings say what is wrong with them."""

from __future__ import annotations

import pytest
from celery import Celery

from celery_guardrails import Guardrails, GuardrailsConfigError
from celery_guardrails.config import Settings, address_of
from celery_guardrails.integration.app import ensure_guardrails


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = Settings()
    assert (settings.lease_seconds, settings.result_retention, settings.max_crashes, settings.drain_seconds) == (60, 86400, 3, 25)
    assert (settings.dead_letter_exchange, settings.dead_letter_queue) == ("guardrails.dlx", "{queue}.dead")
    assert (settings.store_failure, settings.default_kind, settings.max_result_bytes) == ("defer", "retryable", 262144)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lease_seconds", 0),
        ("lease_seconds", "60"),
        ("lease_seconds", True),
        ("result_retention", -1),
        ("max_result_bytes", 1.5),
        ("max_crashes", 0),
        ("dead_letter_queue", "dead"),
        ("dead_letter_queue", "{queue}"),
        ("drain_seconds", -1),
        ("store_failure", "ignore"),
        ("default_kind", "poison"),
        ("store", "localhost"),
        ("delay_queue_type", "stream"),
        ("http", "nowhere"),
        ("http", "9100"),
        ("http", ":9100"),
        ("http", 9100),
        ("http", "::1:9100"),
        ("http", "127.0.0.1:65536"),
        ("http", "127.0.0.1:-1"),
        ("http", "127.0.0.1:"),
        ("http", "http://127.0.0.1:9100"),
        ("http", "user@host:9100"),
        ("http", "my host:9100"),
        ("http", "[::1]"),
        ("http", "127.0.0.1:9100\n"),
        ("namespace", ""),
        ("archive", "postgres"),
        ("archive_seconds", 0.5),
        ("archive_seconds", True),
        ("archive_keep_days", 0),
        ("archive_keep_count", -1),
        ("archive_keep_count", 1.5),
        ("watch_leaks", "yes"),
        ("recycle_on_leak", 1),
        ("leak_runs", 1),
        ("leak_runs", True),
        ("leak_memory", 0),
        ("leak_memory", 1.5),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed(name: str, value: object) -> None:
    with pytest.raises(GuardrailsConfigError, match=rf"guardrails_{name} = .*is allowed") as caught:
        Settings.from_mapping({f"guardrails_{name}": value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("127.0.0.1:9100", ("127.0.0.1", 9100)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("worker-1.shop_net:65535", ("worker-1.shop_net", 65535)),
        ("[::1]:9100", ("::1", 9100)),
        ("[fe80::1%eth0]:9100", ("fe80::1%eth0", 9100)),
        ("[::]:9100", ("::", 9100)),
    ],
)
def test_where_the_worker_listens_is_host_and_port(value: str, address: tuple[str, int]) -> None:
    assert address_of(str(Settings(http=value).http)) == address


def test_an_unknown_setting_is_refused_and_the_nearest_is_named() -> None:
    with pytest.raises(GuardrailsConfigError, match="guardrails_lease_second = 5.*did you mean guardrails_lease_seconds"):
        Settings.from_mapping({"guardrails_lease_second": 5})


def test_settings_come_from_the_celery_configuration() -> None:
    app = Celery("shop", broker="memory://")
    app.conf.guardrails_lease_seconds = 7
    assert Guardrails(app).settings.lease_seconds == 7


def test_settings_come_from_a_namespaced_module_as_django_has_it() -> None:
    class Module:
        CELERY_BROKER_URL = "memory://"
        CELERY_GUARDRAILS_MAX_CRASHES = 5
        OTHER_GUARDRAILS_MAX_CRASHES = 9

    app = Celery("shop")
    app.config_from_object(Module, namespace="CELERY")
    assert Guardrails(app).settings.max_crashes == 5


def test_an_unknown_setting_in_the_celery_configuration_is_refused() -> None:
    app = Celery("shop", broker="memory://")
    app.conf.update(guardrails_leese_seconds=7)
    with pytest.raises(GuardrailsConfigError, match="guardrails_leese_seconds"):
        _ = Guardrails(app).settings


def test_arguments_go_before_the_configuration_and_are_checked_at_once() -> None:
    app = Celery("shop", broker="memory://")
    app.conf.guardrails_lease_seconds = 7
    assert Guardrails(app, lease_seconds=9).settings.lease_seconds == 9
    with pytest.raises(GuardrailsConfigError, match="guardrails_lease_seconds"):
        Guardrails(Celery("other"), lease_seconds=0)


@pytest.mark.parametrize(
    ("broker_url", "backend", "found"),
    [
        ("redis://broker/0", None, "redis://broker/0"),
        ("amqp://", "redis://backend/1", "redis://backend/1"),
        ("redis://broker/0", "redis://backend/1", "redis://broker/0"),
        ("redis://one/0;redis://two/0", None, "redis://one/0"),
    ],
)
def test_the_store_is_by_default_the_redis_that_the_app_uses_already(broker_url: str, backend: str | None, found: str) -> None:
    assert Guardrails(Celery("shop", broker=broker_url, backend=backend)).store_url == found


def test_no_redis_and_no_setting_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(GuardrailsConfigError, match="guardrails_store"):
        _ = Guardrails(Celery("shop", broker="amqp://")).store_url


def test_the_namespace_is_the_apps_name() -> None:
    assert Guardrails(Celery("shop", broker="memory://")).namespace == "shop"
    assert Guardrails(Celery("shop", broker="memory://"), namespace="other").namespace == "other"


def test_an_app_has_one_guardrails_and_gets_the_default_one_if_none_is_made() -> None:
    app = Celery("shop", broker="memory://")
    default = ensure_guardrails(app)
    assert ensure_guardrails(app) is default
    given = Guardrails(app, lease_seconds=5)
    assert ensure_guardrails(app) is given


def test_init_app_attaches_later() -> None:
    rails = Guardrails(lease_seconds=5)
    with pytest.raises(GuardrailsConfigError, match="init_app"):
        _ = rails.settings
    app = Celery("shop", broker="memory://")
    rails.init_app(app)
    assert ensure_guardrails(app) is rails


def test_publishes_are_confirmed_by_the_broker_unless_the_app_says_otherwise() -> None:
    app = Celery("shop", broker="amqp://")
    Guardrails(app)
    assert app.conf.broker_transport_options == {"confirm_publish": True}
    other = Celery("shop", broker="amqp://")
    Guardrails(other)
    other.conf.broker_transport_options = {"confirm_publish": False}
    assert other.conf.broker_transport_options == {"confirm_publish": False}
    third = Celery("shop", broker="amqp://", broker_transport_options={"confirm_publish": False, "x": 1})
    Guardrails(third)
    assert third.conf.broker_transport_options == {"confirm_publish": False, "x": 1}
