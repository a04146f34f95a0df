"""The shipped rules, one file a library, none of which is imported: classes are matched by qualified name."""

from __future__ import annotations

from . import (
    aiohttp,
    botocore,
    builtin,
    celery,
    django,
    google,
    grpc,
    guardrails,
    httpx,
    kombu,
    mysql,
    psycopg,
    redis,
    requests,
    sqlalchemy,
    sqlite,
    stdlib,
    stripe,
    urllib3,
)
from .table import Handler, Look, Rule, Rules

__all__ = ["SHIPPED", "Handler", "Look", "Rule", "Rules"]

#: Every shipped rule by the qualified name of the class it is for.
SHIPPED: Rules = {
    name: rule
    for module in (
        builtin,
        stdlib,
        guardrails,
        celery,
        kombu,
        redis,
        requests,
        httpx,
        aiohttp,
        urllib3,
        botocore,
        google,
        grpc,
        stripe,
        psycopg,
        mysql,
        sqlite,
        sqlalchemy,
        django,
    )
    for name, rule in module.RULES.items()
}
