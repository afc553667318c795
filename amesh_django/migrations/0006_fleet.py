from __future__ import annotations

from typing import Any

from django.db import migrations, models


def without_triggers(apps: Any, schema_editor: Any) -> None:
    """Remove the triggers: SQLite cannot remake a table that a trigger names. ``migrate`` creates them again when it ends."""
    if schema_editor.connection.vendor == "sqlite":
        for event in ("insert", "update", "delete"):
            schema_editor.execute(f"DROP TRIGGER IF EXISTS amesh_django_touched_{event}")
            schema_editor.execute(f"DROP TRIGGER IF EXISTS amesh_django_touched_group_{event}")


class Migration(migrations.Migration):
    """Add hubs and servers. Each row of an older list keeps its hash, and the list keeps its seal."""

    dependencies = [
        ("amesh", "0005_audit"),
    ]

    operations = [
        migrations.CreateModel(
            name="Hub",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("device_id", models.CharField(max_length=32, unique=True, verbose_name="device ID")),
                ("url", models.CharField(blank=True, max_length=500, verbose_name="address")),
                ("epoch", models.CharField(blank=True, max_length=32)),
                ("applied", models.BigIntegerField(default=0, verbose_name="applied")),
                ("head", models.BigIntegerField(default=0, verbose_name="newest")),
                ("past", models.CharField(blank=True, max_length=255)),
                ("issued_at", models.BigIntegerField(default=0)),
                ("list_epoch", models.CharField(blank=True, max_length=32)),
                ("list_serial", models.BigIntegerField(default=0)),
                ("last_contact_at", models.DateTimeField(blank=True, null=True, verbose_name="last contact")),
                ("entries", models.BigIntegerField(default=0)),
                ("digest", models.CharField(blank=True, max_length=64)),
                ("mask", models.CharField(blank=True, max_length=64)),
                ("mac", models.CharField(max_length=64)),
                ("minute_at", models.DateTimeField(blank=True, null=True)),
                ("minute_count", models.PositiveIntegerField(default=0)),
                ("lease_until", models.DateTimeField(blank=True, null=True)),
                ("lease_by", models.CharField(blank=True, max_length=64)),
            ],
            options={
                "verbose_name": "hub",
                "verbose_name_plural": "hubs",
                "ordering": ["device_id"],
                "default_permissions": ("view",),
            },
        ),
        migrations.CreateModel(
            name="Server",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("device_id", models.CharField(max_length=32, unique=True, verbose_name="device ID")),
                ("url", models.CharField(max_length=500, verbose_name="address")),
                (
                    "scope_of_events",
                    models.CharField(
                        choices=[("revoke", "revocations and suspensions"), ("enroll", "also which devices to trust")],
                        default="revoke",
                        max_length=16,
                        verbose_name="told of",
                    ),
                ),
                (
                    "groups_json",
                    models.TextField(
                        default="[]",
                        help_text="JSON list of groups whose devices it is told to trust; * for all devices.",
                        verbose_name="groups",
                    ),
                ),
                ("enabled", models.BooleanField(default=True, verbose_name="enabled")),
                ("added_at", models.DateTimeField(verbose_name="added")),
                ("added_by", models.CharField(blank=True, max_length=150, verbose_name="added by")),
                ("mac", models.CharField(max_length=64)),
                ("epoch", models.CharField(blank=True, max_length=32)),
                ("acked", models.BigIntegerField(default=0, verbose_name="acknowledged")),
                ("ahead_epoch", models.CharField(blank=True, max_length=32)),
                ("attempts", models.PositiveIntegerField(default=0, verbose_name="attempts")),
                ("next_attempt_at", models.DateTimeField(blank=True, null=True, verbose_name="next attempt")),
                ("lease_until", models.DateTimeField(blank=True, null=True)),
                ("lease_by", models.CharField(blank=True, max_length=64)),
                ("last_error", models.TextField(blank=True, verbose_name="last error")),
                ("last_ok_at", models.DateTimeField(blank=True, null=True, verbose_name="last answer")),
                ("last_sent_at", models.DateTimeField(blank=True, null=True, verbose_name="last attempt")),
                ("refused_json", models.TextField(default="[]")),
            ],
            options={
                "verbose_name": "server",
                "verbose_name_plural": "servers",
                "ordering": ["url", "id"],
                "permissions": [("manage_server", "Can add, pause and remove servers")],
                "default_permissions": ("view",),
            },
        ),
        migrations.CreateModel(
            name="Sweep",
            fields=[
                ("id", models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False)),
                ("swept_at", models.DateTimeField(verbose_name="last run")),
            ],
            options={
                "verbose_name": "sweep",
                "verbose_name_plural": "sweeps",
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="HubEntry",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("hub", models.CharField(max_length=32, verbose_name="hub")),
                ("key", models.CharField(max_length=43, verbose_name="hash of the key")),
                ("device_id", models.CharField(db_index=True, max_length=32, verbose_name="device ID")),
                ("epoch", models.CharField(max_length=32)),
                ("serial", models.BigIntegerField()),
                ("event", models.CharField(max_length=16, verbose_name="event")),
                ("at", models.DateTimeField(verbose_name="at")),
                ("reason", models.TextField(blank=True, verbose_name="reason")),
                ("suspended", models.BooleanField(default=False, verbose_name="suspended")),
                ("suspended_until", models.DateTimeField(blank=True, null=True, verbose_name="suspended until")),
                ("added", models.BooleanField(default=False, verbose_name="added by the hub")),
                ("expires_at", models.DateTimeField(blank=True, null=True, verbose_name="expires")),
                ("given_json", models.TextField(default="{}", verbose_name="given")),
                ("expiry_limit", models.DateTimeField(blank=True, null=True, verbose_name="latest expiry")),
                ("decided_json", models.TextField(default="{}", verbose_name="decided by people")),
                ("allowed_epoch", models.CharField(blank=True, max_length=32)),
                ("allowed_serial", models.BigIntegerField(blank=True, null=True)),
                ("allowed_at", models.DateTimeField(blank=True, null=True, verbose_name="trusted in spite of it")),
                ("mac", models.CharField(max_length=64)),
            ],
            options={
                "verbose_name": "word of a hub",
                "verbose_name_plural": "words of hubs",
                "ordering": ["hub", "id"],
                "default_permissions": ("view",),
                "constraints": [models.UniqueConstraint(fields=("hub", "key"), name="amesh_one_word_of_a_hub")],
            },
        ),
        migrations.RunPython(without_triggers, migrations.RunPython.noop),
        migrations.AddField(
            model_name="device",
            name="kept_by",
            field=models.CharField(
                blank=True, db_default="", default="", max_length=150, verbose_name="also suspended by"
            ),
        ),
        migrations.AddField(
            model_name="device",
            name="kept_reason",
            field=models.TextField(blank=True, db_default="", default="", verbose_name="reason of that suspension"),
        ),
        migrations.AddField(
            model_name="device",
            name="kept_until",
            field=models.DateTimeField(blank=True, null=True, verbose_name="also suspended until"),
        ),
        migrations.AddField(
            model_name="device",
            name="replaced_by",
            field=models.CharField(
                blank=True, db_default="", default="", max_length=32, verbose_name="was replaced by"
            ),
        ),
        migrations.AddField(
            model_name="device",
            name="replaced_until",
            field=models.DateTimeField(blank=True, null=True, verbose_name="was replaced, with an end"),
        ),
        migrations.RunPython(migrations.RunPython.noop, without_triggers),
    ]
