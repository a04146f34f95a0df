from django.db import migrations, models

import celery_guardrails.contrib.django.fields


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="IdempotencyRecord",
            fields=[
                (
                    "id",
                    celery_guardrails.contrib.django.fields.DigestField(
                        editable=False, max_length=40, primary_key=True, serialize=False, verbose_name="digest"
                    ),
                ),
                ("namespace", models.CharField(max_length=200, verbose_name="namespace")),
                ("key_text", models.TextField(verbose_name="idempotency key")),
                ("state", models.SmallIntegerField(choices=[(0, "idle"), (1, "leased"), (2, "completed")], verbose_name="state")),
                ("fingerprint", models.CharField(blank=True, max_length=64, verbose_name="fingerprint of the arguments")),
                ("fence", models.BigIntegerField(verbose_name="fencing token")),
                ("attempts", models.IntegerField(verbose_name="attempts charged")),
                ("crashes", models.IntegerField(verbose_name="crashes")),
                ("holder", models.CharField(blank=True, max_length=64, verbose_name="holder")),
                ("owner", models.CharField(blank=True, max_length=255, verbose_name="host and process of the holder")),
                ("until_us", models.BigIntegerField(verbose_name="end of the lease, in microseconds since 1970")),
                ("claimed_us", models.BigIntegerField(verbose_name="last claim or completion, in microseconds since 1970")),
                ("expires_us", models.BigIntegerField(verbose_name="expiry, in microseconds since 1970")),
                ("version", models.BigIntegerField(verbose_name="version")),
                ("task_id", models.CharField(blank=True, max_length=255, verbose_name="task id")),
                ("content_type", models.CharField(blank=True, max_length=100, verbose_name="content type of the result")),
                ("content_encoding", models.CharField(blank=True, max_length=40, verbose_name="content encoding of the result")),
                ("data", models.BinaryField(verbose_name="result")),
                ("steps", models.TextField(blank=True, verbose_name="recovery points")),
            ],
            options={
                "verbose_name": "idempotency record",
                "verbose_name_plural": "idempotency records",
                "db_table": "guardrails_record",
                "indexes": [models.Index(fields=["expires_us"], name="guardrails_record_expires")],
            },
        ),
    ]
