"""Tables as models: leases and completion records, archived dead letters, and who did what to them."""

from __future__ import annotations

from django.db import models

from celery_guardrails.dead_letters.archive.table import AUDIT_TABLE, LETTER_TABLE, Action, State
from celery_guardrails.stores.sql import TABLE

from .fields import DigestField

__all__ = ["ArchivedLetter", "AuditEntry", "CanaryRun", "IdempotencyRecord"]


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


class ArchivedLetter(models.Model):
    """A dead letter that ``archive_dead_letters`` has moved out of the broker.

    The message is kept byte for byte; the other columns are read from it, cut to their length, to find it by. What moves
    letters is :class:`~celery_guardrails.contrib.django.archive.Archive`: use its methods, which publish and keep the audit trail.
    """

    State = State

    id = models.BigAutoField(primary_key=True)
    letter_id = models.CharField("letter", max_length=64)
    dead_letter_queue = models.CharField("dead letter queue", max_length=255)
    queue = models.CharField("queue", max_length=255, blank=True)
    task = models.CharField("task", max_length=255, blank=True)
    task_id = models.CharField("task id", max_length=255, blank=True)
    key = models.TextField("idempotency key", blank=True)
    reason = models.CharField("reason", max_length=32)
    error = models.CharField("error", max_length=255, blank=True)
    message = models.TextField("message of the error", blank=True)
    fingerprint = models.CharField("fingerprint of the error", max_length=32, blank=True)
    worker = models.CharField("worker", max_length=255, blank=True)
    attempts = models.IntegerField("attempts charged", default=0)
    crashes = models.IntegerField("crashes", default=0)
    replays = models.IntegerField("replays before", default=0)
    first_seen = models.DateTimeField("first published", null=True, blank=True)
    died_at = models.DateTimeField("died", null=True, blank=True)
    archived_at = models.DateTimeField("archived")
    #: None until the letter is known to be out of the broker: a run that is killed in between finds it there again.
    taken_at = models.DateTimeField("taken out of the broker", null=True, blank=True)
    state = models.CharField("state", max_length=10, choices=State.choices, default=State.WAITING)
    changed_at = models.DateTimeField("state since")
    note = models.CharField("note", max_length=200, blank=True)
    body = models.BinaryField("body")
    content_type = models.CharField("content type", max_length=255, null=True, blank=True)
    content_encoding = models.CharField("content encoding", max_length=255, null=True, blank=True)
    exchange = models.CharField("exchange", max_length=255, blank=True)
    routing_key = models.CharField("routing key", max_length=255, blank=True)
    #: The replay in stages that has chosen it; it is nobody else's while that is open.
    canary = models.ForeignKey("CanaryRun", models.SET_NULL, null=True, blank=True, related_name="letters", verbose_name="canary")
    #: Stage in which it was let go and is watched; None where it was not, or proves nothing.
    canary_stage = models.SmallIntegerField("stage of the canary", null=True, blank=True)
    headers = models.TextField("headers")
    properties = models.TextField("properties")
    certificate = models.TextField("certificate")

    class Meta:
        """For Django."""

        db_table = LETTER_TABLE
        verbose_name = "archived dead letter"
        verbose_name_plural = "archived dead letters"
        default_permissions = ("view",)
        permissions = (
            ("replay_letter", "Can replay archived dead letters"),
            ("canary_letter", "Can replay archived dead letters in stages"),
            ("edit_letter", "Can replay an archived dead letter with other arguments"),
            ("discard_letter", "Can discard archived dead letters"),
            ("restore_letter", "Can restore discarded dead letters"),
        )
        constraints = (models.UniqueConstraint(fields=["dead_letter_queue", "letter_id"], name="guardrails_letter_once"),)
        indexes = (
            models.Index(fields=["fingerprint", "died_at"], name="guardrails_letter_group"),
            models.Index(fields=["state", "id"], name="guardrails_letter_state"),
            models.Index(fields=["archived_at"], name="guardrails_letter_age"),
            models.Index(fields=["task_id"], name="guardrails_letter_task"),
        )

    def __str__(self) -> str:
        return str(self.letter_id)


class CanaryRun(models.Model):
    """A replay of archived letters in stages; :mod:`celery_guardrails.contrib.django.canarying` moves it on."""

    class State:
        """What has become of it."""

        OPEN = "open"
        DONE = "done"
        STOPPED = "stopped"
        choices = tuple((name, name) for name in (OPEN, DONE, STOPPED))

    id = models.BigAutoField(primary_key=True)
    who = models.CharField("who", max_length=255)
    why = models.TextField("why", blank=True)
    selection = models.TextField("which letters", blank=True)
    started_at = models.DateTimeField("started")
    changed_at = models.DateTimeField("last letter sent, or ended")
    state = models.CharField("state", max_length=10, choices=State.choices, default=State.OPEN)
    stage = models.SmallIntegerField("stage", default=0)
    chosen = models.IntegerField("letters chosen", default=0)
    moved = models.IntegerField("letters sent in this stage", default=0)
    counted = models.IntegerField("of these, letters that prove something", default=0)
    stages = models.TextField("stages that are over", default="[]")
    outcome = models.TextField("outcome", blank=True)

    class Meta:
        """For Django."""

        db_table = "guardrails_canary"
        verbose_name = "canary"
        verbose_name_plural = "canaries"
        default_permissions = ()

    def __str__(self) -> str:
        return f"canary {self.pk}"


class AuditEntry(models.Model):
    """One thing that somebody did to archived letters: who, what, which, why, and how many."""

    Action = Action

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField("when")
    who = models.CharField("who", max_length=255)
    action = models.CharField("what", max_length=10, choices=Action.choices)
    selection = models.TextField("which letters", blank=True)
    why = models.TextField("why", blank=True)
    before = models.IntegerField("letters before", default=0)
    after = models.IntegerField("letters after", null=True, blank=True)
    letters = models.IntegerField("letters", default=0)
    outcome = models.TextField("outcome", blank=True)

    class Meta:
        """For Django."""

        db_table = AUDIT_TABLE
        verbose_name = "audit entry"
        verbose_name_plural = "audit entries"
        default_permissions = ("view",)
        ordering = ("-at", "-id")
        indexes = (models.Index(fields=["at"], name="guardrails_audit_at"),)

    def __str__(self) -> str:
        return f"{self.who}: {self.action}"
