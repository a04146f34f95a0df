"""Model fields of the package; migrations name them."""

from __future__ import annotations

from typing import Any

from django.db import models

__all__ = ["DigestField"]


class DigestField(models.CharField):
    """A text of fixed length.

    Not a ``CharField`` in the database: on PostgreSQL Django gives every indexed ``varchar`` a second index, for ``LIKE``.
    """

    def db_type(self, connection: Any) -> str:
        """Return the column's type."""
        return f"char({self.max_length})"
