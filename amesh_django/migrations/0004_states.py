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
    """Give devices states and groups. Each row of an older list keeps its hash, and the list keeps its seal."""

    dependencies = [
        ("amesh", "0003_enrollmenttoken"),
    ]

    operations = [
        migrations.RunPython(without_triggers, migrations.RunPython.noop),
        migrations.CreateModel(
            name="DeviceGroup",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=64, unique=True, verbose_name="name")),
                ("scopes_json", models.TextField(help_text="JSON list of names.", verbose_name="scopes")),
            ],
            options={
                "verbose_name": "group of devices",
                "verbose_name_plural": "groups of devices",
                "ordering": ["name"],
                "base_manager_name": "objects",
            },
        ),
        migrations.AlterModelOptions(
            name="device",
            options={
                "base_manager_name": "objects",
                "default_permissions": ("view", "change"),
                "ordering": ["added_at", "id"],
                "permissions": [
                    ("revoke_device", "Can revoke device"),
                    ("approve_device", "Can approve and deny device"),
                    ("suspend_device", "Can suspend and lift device"),
                ],
                "verbose_name": "device",
                "verbose_name_plural": "devices",
            },
        ),
        migrations.AddField(
            model_name="allowlistseal",
            name="groups",
            field=models.CharField(db_default="", default="", max_length=64),
        ),
        migrations.AddField(
            model_name="device",
            name="denied_at",
            field=models.DateTimeField(blank=True, null=True, verbose_name="denied"),
        ),
        migrations.AddField(
            model_name="device",
            name="denied_by",
            field=models.CharField(blank=True, db_default="", default="", max_length=150, verbose_name="denied by"),
        ),
        migrations.AddField(
            model_name="device",
            name="deny_reason",
            field=models.TextField(blank=True, db_default="", default="", verbose_name="reason of the denial"),
        ),
        migrations.AddField(
            model_name="device",
            name="expires_at",
            field=models.DateTimeField(blank=True, null=True, verbose_name="expires"),
        ),
        migrations.AddField(
            model_name="device",
            name="groups_json",
            field=models.TextField(
                blank=True,
                db_default="",
                default="",
                help_text="JSON list of names; empty for none.",
                verbose_name="groups",
            ),
        ),
        migrations.AddField(
            model_name="device",
            name="pending_since",
            field=models.DateTimeField(blank=True, null=True, verbose_name="waits for approval since"),
        ),
        migrations.AddField(
            model_name="device",
            name="suspend_reason",
            field=models.TextField(blank=True, db_default="", default="", verbose_name="reason of the suspension"),
        ),
        migrations.AddField(
            model_name="device",
            name="suspended_at",
            field=models.DateTimeField(blank=True, null=True, verbose_name="suspended"),
        ),
        migrations.AddField(
            model_name="device",
            name="suspended_by",
            field=models.CharField(blank=True, db_default="", default="", max_length=150, verbose_name="suspended by"),
        ),
        migrations.AddField(
            model_name="device",
            name="suspended_until",
            field=models.DateTimeField(blank=True, null=True, verbose_name="suspended until"),
        ),
        migrations.RunPython(migrations.RunPython.noop, without_triggers),
    ]
