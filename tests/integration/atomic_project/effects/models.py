"""The effects of the tasks."""

from __future__ import annotations

from django.db import models


class Effect(models.Model):
    """One effect. Nothing in the table keeps a key from having two: that is the guard's work."""

    key = models.CharField(max_length=100, db_index=True, db_column="key_")  # the bare word is MySQL's
    run = models.CharField(max_length=32)
    pid = models.IntegerField()

    def __str__(self) -> str:
        return self.key
