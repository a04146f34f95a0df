import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("guardrails", "0002_archive"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="archivedletter",
            options={
                "default_permissions": ("view",),
                "permissions": (
                    ("replay_letter", "Can replay archived dead letters"),
                    ("canary_letter", "Can replay archived dead letters in stages"),
                    ("edit_letter", "Can replay an archived dead letter with other arguments"),
                    ("discard_letter", "Can discard archived dead letters"),
                    ("restore_letter", "Can restore discarded dead letters"),
                ),
                "verbose_name": "archived dead letter",
                "verbose_name_plural": "archived dead letters",
            },
        ),
        migrations.CreateModel(
            name="CanaryRun",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("who", models.CharField(max_length=255, verbose_name="who")),
                ("why", models.TextField(blank=True, verbose_name="why")),
                ("selection", models.TextField(blank=True, verbose_name="which letters")),
                ("started_at", models.DateTimeField(verbose_name="started")),
                ("changed_at", models.DateTimeField(verbose_name="last letter sent, or ended")),
                (
                    "state",
                    models.CharField(
                        choices=[("open", "open"), ("done", "done"), ("stopped", "stopped")],
                        default="open",
                        max_length=10,
                        verbose_name="state",
                    ),
                ),
                ("stage", models.SmallIntegerField(default=0, verbose_name="stage")),
                ("chosen", models.IntegerField(default=0, verbose_name="letters chosen")),
                ("moved", models.IntegerField(default=0, verbose_name="letters sent in this stage")),
                ("counted", models.IntegerField(default=0, verbose_name="of these, letters that prove something")),
                ("stages", models.TextField(default="[]", verbose_name="stages that are over")),
                ("outcome", models.TextField(blank=True, verbose_name="outcome")),
            ],
            options={
                "verbose_name": "canary",
                "verbose_name_plural": "canaries",
                "db_table": "guardrails_canary",
                "default_permissions": (),
            },
        ),
        migrations.AddField(
            model_name="archivedletter",
            name="canary",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="letters",
                to="guardrails.canaryrun",
                verbose_name="canary",
            ),
        ),
        migrations.AddField(
            model_name="archivedletter",
            name="canary_stage",
            field=models.SmallIntegerField(blank=True, null=True, verbose_name="stage of the canary"),
        ),
    ]
