from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("guardrails", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="ArchivedLetter",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("letter_id", models.CharField(max_length=64, verbose_name="letter")),
                ("dead_letter_queue", models.CharField(max_length=255, verbose_name="dead letter queue")),
                ("queue", models.CharField(blank=True, max_length=255, verbose_name="queue")),
                ("task", models.CharField(blank=True, max_length=255, verbose_name="task")),
                ("task_id", models.CharField(blank=True, max_length=255, verbose_name="task id")),
                ("key", models.TextField(blank=True, verbose_name="idempotency key")),
                ("reason", models.CharField(max_length=32, verbose_name="reason")),
                ("error", models.CharField(blank=True, max_length=255, verbose_name="error")),
                ("message", models.TextField(blank=True, verbose_name="message of the error")),
                ("fingerprint", models.CharField(blank=True, max_length=32, verbose_name="fingerprint of the error")),
                ("worker", models.CharField(blank=True, max_length=255, verbose_name="worker")),
                ("attempts", models.IntegerField(default=0, verbose_name="attempts charged")),
                ("crashes", models.IntegerField(default=0, verbose_name="crashes")),
                ("replays", models.IntegerField(default=0, verbose_name="replays before")),
                ("first_seen", models.DateTimeField(blank=True, null=True, verbose_name="first published")),
                ("died_at", models.DateTimeField(blank=True, null=True, verbose_name="died")),
                ("archived_at", models.DateTimeField(verbose_name="archived")),
                ("taken_at", models.DateTimeField(blank=True, null=True, verbose_name="taken out of the broker")),
                (
                    "state",
                    models.CharField(
                        choices=[("waiting", "waiting"), ("replayed", "replayed"), ("discarded", "discarded")],
                        default="waiting",
                        max_length=10,
                        verbose_name="state",
                    ),
                ),
                ("changed_at", models.DateTimeField(verbose_name="state since")),
                ("note", models.CharField(blank=True, max_length=200, verbose_name="note")),
                ("body", models.BinaryField(verbose_name="body")),
                ("content_type", models.CharField(blank=True, max_length=255, null=True, verbose_name="content type")),
                ("content_encoding", models.CharField(blank=True, max_length=255, null=True, verbose_name="content encoding")),
                ("exchange", models.CharField(blank=True, max_length=255, verbose_name="exchange")),
                ("routing_key", models.CharField(blank=True, max_length=255, verbose_name="routing key")),
                ("headers", models.TextField(verbose_name="headers")),
                ("properties", models.TextField(verbose_name="properties")),
                ("certificate", models.TextField(verbose_name="certificate")),
            ],
            options={
                "verbose_name": "archived dead letter",
                "verbose_name_plural": "archived dead letters",
                "db_table": "guardrails_letter",
                "permissions": (
                    ("replay_letter", "Can replay archived dead letters"),
                    ("discard_letter", "Can discard archived dead letters"),
                    ("restore_letter", "Can restore discarded dead letters"),
                ),
                "default_permissions": ("view",),
                "indexes": [
                    models.Index(fields=["fingerprint", "died_at"], name="guardrails_letter_group"),
                    models.Index(fields=["state", "id"], name="guardrails_letter_state"),
                    models.Index(fields=["archived_at"], name="guardrails_letter_age"),
                    models.Index(fields=["task_id"], name="guardrails_letter_task"),
                ],
                "constraints": [models.UniqueConstraint(fields=("dead_letter_queue", "letter_id"), name="guardrails_letter_once")],
            },
        ),
        migrations.CreateModel(
            name="AuditEntry",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("at", models.DateTimeField(verbose_name="when")),
                ("who", models.CharField(max_length=255, verbose_name="who")),
                (
                    "action",
                    models.CharField(
                        choices=[
                            ("archive", "archive"),
                            ("replay", "replay"),
                            ("canary", "canary"),
                            ("discard", "discard"),
                            ("restore", "restore"),
                            ("edit", "edit"),
                            ("purge", "purge"),
                        ],
                        max_length=10,
                        verbose_name="what",
                    ),
                ),
                ("selection", models.TextField(blank=True, verbose_name="which letters")),
                ("why", models.TextField(blank=True, verbose_name="why")),
                ("before", models.IntegerField(default=0, verbose_name="letters before")),
                ("after", models.IntegerField(blank=True, null=True, verbose_name="letters after")),
                ("letters", models.IntegerField(default=0, verbose_name="letters")),
                ("outcome", models.TextField(blank=True, verbose_name="outcome")),
            ],
            options={
                "verbose_name": "audit entry",
                "verbose_name_plural": "audit entries",
                "db_table": "guardrails_audit",
                "ordering": ("-at", "-id"),
                "default_permissions": ("view",),
                "indexes": [models.Index(fields=["at"], name="guardrails_audit_at")],
            },
        ),
    ]
