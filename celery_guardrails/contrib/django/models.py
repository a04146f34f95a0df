"""The table of leases and completion records, as a model."""

from __future__ import annotations

from django.db import models

from celery_guardrails.stores.sql import TABLE

from .fields import DigestField

__all__ = ["IdempotencyRecord"]


class IdempotencyRecord(models.Model):
    """One idempotency key (:mod:`celery_guardrails.stores.sql.table` says what each column means).

    To look at. What changes a record is the store, in one statement, by the database's own clock: use
    ``guardrails.lookup(key)``, ``guardrails.forget(key)`` and ``guardrails.break_lease(key)``.
    """

    class State(models.IntegerChoices):
        """State of a key."""

        IDLE = 0, "idle"
        LEASED = 1, "leased"
        COMPLETED = 2, "completed"

    id = DigestField("digest", max_length=40, primary_key=True, editable=False)
    namespace = models.CharField("namespace", max_length=200)
    key_text = models.TextField("idempotency key")
    state = models.SmallIntegerField("state", choices=State.choices)
    fingerprint = models.CharField("fingerprint of the arguments", max_length=64, blank=True)
    fence = models.BigIntegerField("fencing token")
    attempts = models.IntegerField("attempts charged")
    crashes = models.IntegerField("crashes")
    holder = models.CharField("holder", max_length=64, blank=True)
    owner = models.CharField("host and process of the holder", max_length=255, blank=True)
    until_us = models.BigIntegerField("end of the lease, in microseconds since 1970")
    claimed_us = models.BigIntegerField("last claim or completion, in microseconds since 1970")
    expires_us = models.BigIntegerField("expiry, in microseconds since 1970")
    version = models.BigIntegerField("version")
    task_id = models.CharField("task id", max_length=255, blank=True)
    content_type = models.CharField("content type of the result", max_length=100, blank=True)
    content_encoding = models.CharField("content encoding of the result", max_length=40, blank=True)
    data = models.BinaryField("result")
    steps = models.TextField("recovery points", blank=True)

    class Meta:
        """For Django."""

        db_table = TABLE
        verbose_name = "idempotency record"
        verbose_name_plural = "idempotency records"
        indexes = (models.Index(fields=["expires_us"], name="guardrails_record_expires"),)

    def __str__(self) -> str:
        return str(self.key_text)
