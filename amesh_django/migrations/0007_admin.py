from __future__ import annotations

from typing import Any

from django.db import migrations, models

from amesh_django.kinds import event_kinds


def without_triggers(apps: Any, schema_editor: Any) -> None:
    """Remove the triggers: SQLite cannot remake a table that a trigger names. ``migrate`` creates them again when it ends."""
    if schema_editor.connection.vendor == "sqlite":
        for event in ("insert", "update", "delete"):
            schema_editor.execute(f"DROP TRIGGER IF EXISTS amesh_django_touched_{event}")
            schema_editor.execute(f"DROP TRIGGER IF EXISTS amesh_django_touched_group_{event}")


class Migration(migrations.Migration):
    """Add what the admin shows: counted requests, pairings, and notes. Each row of an older list keeps its hash."""

    dependencies = [
        ("amesh", "0006_fleet"),
    ]

    operations = [
        migrations.CreateModel(
            name="ApprovalMail",
            fields=[
                ("id", models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False)),
                ("tried_at", models.DateTimeField(blank=True, null=True, verbose_name="last try")),
                ("told", models.BigIntegerField(default=0)),
            ],
            options={
                "verbose_name": "mail about approvals",
                "verbose_name_plural": "mails about approvals",
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="PairingSession",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("token", models.CharField(max_length=43, unique=True)),
                ("owner", models.CharField(max_length=150)),
                ("by", models.CharField(max_length=150, verbose_name="by")),
                ("begun_at", models.DateTimeField(verbose_name="begun")),
                ("ends_at", models.DateTimeField(blank=True, null=True, verbose_name="ends")),
                ("chosen_json", models.TextField(default="{}")),
                ("relay", models.CharField(blank=True, max_length=500, verbose_name="relay")),
                (
                    "step",
                    models.CharField(
                        choices=[
                            ("starting", "connecting to the relay"),
                            ("waiting", "waiting for the device"),
                            ("code", "waiting for the verification code"),
                            ("confirm", "waiting for the confirmation"),
                            ("done", "paired"),
                            ("failed", "failed"),
                            ("canceled", "canceled"),
                        ],
                        default="starting",
                        max_length=16,
                        verbose_name="step",
                    ),
                ),
                ("code", models.CharField(blank=True, max_length=32, verbose_name="code")),
                ("device_id", models.CharField(blank=True, max_length=32, verbose_name="device ID")),
                ("public_key", models.CharField(blank=True, max_length=64, verbose_name="public key")),
                ("name", models.TextField(blank=True, verbose_name="name")),
                ("answer", models.CharField(blank=True, max_length=128)),
                ("wrong", models.PositiveSmallIntegerField(default=0)),
                ("is_canceled", models.BooleanField(default=False)),
                ("error_code", models.CharField(blank=True, max_length=64)),
                ("error_json", models.TextField(blank=True)),
                ("alive_at", models.DateTimeField(blank=True, null=True)),
                ("host", models.CharField(blank=True, max_length=100)),
                ("seen_at", models.DateTimeField()),
                ("mac", models.CharField(max_length=64)),
            ],
            options={
                "verbose_name": "pairing",
                "verbose_name_plural": "pairings",
                "ordering": ["-id"],
                "default_permissions": (),
            },
        ),
        migrations.AlterModelOptions(
            name="auditevent",
            options={
                "default_permissions": ("view",),
                "ordering": ["-id"],
                "permissions": [("export_auditevent", "Can export and verify audit log")],
                "verbose_name": "event",
                "verbose_name_plural": "audit log",
            },
        ),
        migrations.AlterField(
            model_name="auditevent",
            name="kind",
            field=models.CharField(choices=event_kinds, max_length=32, verbose_name="event"),
        ),
        *(
            migrations.AddIndex(
                model_name="auditevent",
                index=models.Index(fields=[*columns, "at", "id"], name=f"amesh_events_by_{name}"),
            )
            for name, columns in {"time": [], "kind": ["kind"], "actor": ["actor"], "device": ["device_id"]}.items()
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
                    ("reinstate_device", "Can reinstate device"),
                    ("grant_device", "Can grant permissions, scopes and groups to device"),
                    ("enroll_device", "Can add device by hand"),
                    ("pair_device", "Can pair device"),
                ],
                "verbose_name": "device",
                "verbose_name_plural": "devices",
            },
        ),
        migrations.RunPython(without_triggers, migrations.RunPython.noop),
        migrations.AddField(
            model_name="device",
            name="note",
            field=models.TextField(blank=True, db_default="", default="", verbose_name="note"),
        ),
        migrations.AddField(
            model_name="device",
            name="rotation_requested_at",
            field=models.DateTimeField(blank=True, null=True, verbose_name="asked to replace its key"),
        ),
        migrations.AddIndex(
            model_name="device",
            index=models.Index(fields=["-added_at", "-id"], name="amesh_newest_first"),
        ),
        migrations.AddIndex(
            model_name="device",
            index=models.Index(
                condition=models.Q(("pending_since__isnull", False)),
                fields=["pending_since", "id"],
                name="amesh_waiting",
            ),
        ),
        migrations.RunPython(migrations.RunPython.noop, without_triggers),
        migrations.AddField(
            model_name="deviceactivity",
            name="address",
            field=models.CharField(blank=True, db_default="", default="", max_length=45, verbose_name="address"),
        ),
        migrations.AddField(
            model_name="deviceactivity",
            name="client",
            field=models.CharField(blank=True, db_default="", default="", max_length=100, verbose_name="client"),
        ),
        migrations.AddField(
            model_name="deviceactivity",
            name="route",
            field=models.CharField(blank=True, db_default="", default="", max_length=200, verbose_name="path"),
        ),
        migrations.CreateModel(
            name="RequestCount",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "period",
                    models.CharField(choices=[("hour", "hour"), ("day", "day")], max_length=4, verbose_name="period"),
                ),
                ("start", models.DateTimeField(verbose_name="beginning")),
                ("device_id", models.CharField(blank=True, max_length=32, verbose_name="device ID")),
                ("route", models.CharField(blank=True, max_length=200, verbose_name="path")),
                ("reason", models.CharField(blank=True, max_length=64, verbose_name="reason")),
                ("times", models.PositiveBigIntegerField(default=0, verbose_name="times")),
            ],
            options={
                "verbose_name": "count of requests",
                "verbose_name_plural": "counts of requests",
                "default_permissions": (),
                "indexes": [models.Index(fields=["period", "start"], name="amesh_counts_by_time")],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("period", "device_id", "start", "route", "reason"), name="amesh_one_count_of_a_period"
                    )
                ],
            },
        ),
    ]
