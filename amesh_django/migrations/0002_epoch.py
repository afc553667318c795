from __future__ import annotations

from typing import Any

from django.db import migrations, models


def without_triggers(apps: Any, schema_editor: Any) -> None:
    """Remove the triggers: SQLite cannot remake a table that a trigger names. ``migrate`` creates them again when it ends."""
    if schema_editor.connection.vendor == "sqlite":
        for event in ("insert", "update", "delete"):
            schema_editor.execute(f"DROP TRIGGER IF EXISTS amesh_django_touched_{event}")


class Migration(migrations.Migration):
    """Give the seal an epoch. A list of version 0.1 keeps its seal, and gets an epoch with its next change."""

    dependencies = [
        ("amesh", "0001_initial"),
    ]

    operations = [
        migrations.RunPython(without_triggers, migrations.RunPython.noop),
        migrations.AddField(
            model_name="allowlistseal",
            name="epoch",
            field=models.CharField(db_default="", default="", max_length=32),
        ),
        migrations.AddField(
            model_name="allowlistseal",
            name="continues",
            field=models.CharField(db_default="", default="", max_length=255),
        ),
        migrations.RunPython(migrations.RunPython.noop, without_triggers),
    ]
