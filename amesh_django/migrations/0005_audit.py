from __future__ import annotations

from typing import Any

from django.db import migrations, models

import amesh_django.kinds


def without_triggers(apps: Any, schema_editor: Any) -> None:
    """Remove the triggers: SQLite cannot remake a table that a trigger names. ``migrate`` creates them again when it ends."""
    if schema_editor.connection.vendor == "sqlite":
        for event in ("insert", "update", "delete"):
            schema_editor.execute(f"DROP TRIGGER IF EXISTS amesh_django_touched_{event}")
            schema_editor.execute(f"DROP TRIGGER IF EXISTS amesh_django_touched_group_{event}")


class Migration(migrations.Migration):
    """Replace the journal by the audit log. The lines of the journal are not carried over: only the keys could do that."""

    dependencies = [
        ("amesh", "0004_states"),
    ]

    operations = [
        migrations.RunPython(without_triggers, migrations.RunPython.noop),
        migrations.CreateModel(
            name="AuditEvent",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("seq", models.BigIntegerField(db_index=True, null=True, verbose_name="number")),
                ("at", models.DateTimeField(verbose_name="at")),
                (
                    "kind",
                    models.CharField(
                        choices=amesh_django.kinds.event_kinds, db_index=True, max_length=32, verbose_name="event"
                    ),
                ),
                ("actor_type", models.CharField(blank=True, max_length=16, verbose_name="kind of actor")),
                ("actor", models.CharField(blank=True, max_length=150, verbose_name="by")),
                ("device_id", models.CharField(blank=True, db_index=True, max_length=32, verbose_name="device ID")),
                ("subject", models.TextField(blank=True, verbose_name="name")),
                ("address", models.CharField(blank=True, max_length=64, verbose_name="address")),
                ("reason_code", models.CharField(blank=True, max_length=64, verbose_name="reason code")),
                ("text", models.TextField(blank=True, verbose_name="text")),
                (
                    "data",
                    models.TextField(
                        default="{}", help_text="JSON object. A change of a device has its row, as it was sealed."
                    ),
                ),
                ("revision", models.BigIntegerField(db_index=True, null=True, verbose_name="revision")),
                ("mac", models.CharField(max_length=64)),
                ("link", models.CharField(blank=True, max_length=64)),
            ],
            options={
                "verbose_name": "event",
                "verbose_name_plural": "audit log",
                "ordering": ["-id"],
                "default_permissions": ("view",),
            },
        ),
        migrations.CreateModel(
            name="AuditSeal",
            fields=[
                ("id", models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False)),
                ("seq", models.BigIntegerField()),
                ("link", models.CharField(blank=True, max_length=64)),
                ("mac", models.CharField(max_length=64)),
            ],
            options={
                "verbose_name": "end of the audit log",
                "verbose_name_plural": "ends of the audit log",
                "default_permissions": (),
            },
        ),
        migrations.DeleteModel(name="AllowListChange"),
        migrations.AddField(
            model_name="allowlistseal",
            name="audit_seq",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="allowlistseal",
            name="audit_link",
            field=models.CharField(db_default="", default="", max_length=64),
        ),
        migrations.RunPython(migrations.RunPython.noop, without_triggers),
    ]
