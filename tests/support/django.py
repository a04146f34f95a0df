"""Django in the test process itself, with as many databases as the tests want. Projects run in processes of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

#: Set it to test with psycopg 2 where both are installed; Django takes the newer one otherwise.
PSYCOPG2_VARIABLE = "GUARDRAILS_TEST_PSYCOPG2"

#: Of the admin.
_CONTRIB = ("admin", "auth", "contenttypes", "sessions", "messages", "staticfiles")
_ENGINES = {"postgresql": "postgresql", "mysql": "mysql", "sqlite": "sqlite3"}


def database_settings(url: str) -> dict[str, Any]:
    """Return what ``DATABASES`` has for a URL of one of our servers, or of a file: ``sqlite:////path``."""
    parts = urlsplit(url)
    settings: dict[str, Any] = {"ENGINE": f"django.db.backends.{_ENGINES[parts.scheme]}", "NAME": parts.path[1:]}
    if parts.scheme == "sqlite":
        return settings
    return settings | {
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": parts.port or "",
    }


def mysqldb() -> None:
    """Let PyMySQL be the driver that Django asks for by another name."""
    import pymysql

    pymysql.install_as_MySQLdb()


def configure() -> None:
    """Set Django up once in this process, with the guard's app and no Celery app."""
    from django.conf import settings

    if settings.configured:
        return
    mysqldb()
    settings.configure(
        # a subclass: the app's own ready() would look for a Celery app, and find one of another test
        INSTALLED_APPS=["tests.support.django_app.QuietConfig", *(f"django.contrib.{name}" for name in _CONTRIB)],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
        SECRET_KEY="not secret",
        ROOT_URLCONF="tests.support.django_urls",
        STATIC_URL="/static/",
        ALLOWED_HOSTS=["127.0.0.1", "testserver"],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    )
    if os.environ.get(PSYCOPG2_VARIABLE):
        _with_psycopg2()
    import django

    django.setup()


def _with_psycopg2() -> None:
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name == "psycopg" or name.startswith("psycopg.")}
    sys.modules["psycopg"] = None  # type: ignore[assignment]
    try:
        import django.db.backends.postgresql.base  # noqa: F401
    finally:
        del sys.modules["psycopg"]
        sys.modules.update(hidden)


@contextmanager
def database(alias: str, url: str, *, migrate: bool = True, **options: Any) -> Iterator[str]:
    """Add a database to the configured ones.

    Args:
        alias: a name that no other test uses.
        url: see :func:`database_settings`.
        migrate: make our tables.
        options: further settings of the database.
    """
    from django.core.management import call_command
    from django.db import connections

    configure()
    ours = {**database_settings(url), **options}
    connections.configure_settings({"default": {"ENGINE": "django.db.backends.dummy"}, alias: ours})
    connections.settings[alias] = ours
    try:
        if migrate:
            call_command("migrate", "guardrails", database=alias, verbosity=0)
        yield alias
    finally:
        connections[alias].close()
        del connections[alias]
        del connections.settings[alias]


def url_of(alias: str) -> str:
    """Return the URL of a database that :func:`database` added."""
    from django.db import connections

    found = connections[alias].settings_dict
    scheme = {engine: scheme for scheme, engine in _ENGINES.items()}[found["ENGINE"].rpartition(".")[2]]
    return f"{scheme}://{found['USER']}:{found['PASSWORD']}@{found['HOST']}:{found['PORT']}/{found['NAME']}"


def psycopg_version() -> int:
    """Return 2 or 3: the psycopg that Django uses in this process."""
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    return 3 if is_psycopg3 else 2
