"""Leases and completion records in a table of PostgreSQL, MySQL, MariaDB or SQLite.

What a database is asked for is written here once; :mod:`celery_guardrails.contrib.django.store` and
:mod:`celery_guardrails.contrib.sqlalchemy` bring the connections.
"""

from .dialects import DIALECTS, Dialect
from .store import Answer, Execute, SqlStore, SqlTransaction
from .table import TABLE

__all__ = ["DIALECTS", "TABLE", "Answer", "Dialect", "Execute", "SqlStore", "SqlTransaction"]
