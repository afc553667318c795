"""The server's end of enrollment, over HTTP: who gets in, who does not, and what a token gives."""

from __future__ import annotations

import datetime as dt
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth import get_user_model
from django.core.cache import cache
from django.core.handlers.asgi import ASGIRequest
from django.db import connection
from django.test import Client, override_settings
from django.urls import reverse

from amesh_django import lifecycle, views
from amesh_django.allow_list import DatabaseAllowList
from amesh_django.enrollment import limits, rotating, tokens
from amesh_django.models import AuditEvent, Device, EnrollmentToken
from amesh_django.server import server_device
from amesh_django.test import AmeshClient, EphemeralDevice
from amesh_django.trust import current_list
from amesh_django.trust.change import Change
from amesh_django.trust.sealing import now as moment
from amesh_django.trust.verified import Snapshot
from authmesh.device import LocalDevice
from authmesh.protocol import enrollment
from authmesh.protocol.check import CHECK_PATH
from authmesh.protocol.errors import InvalidInput
from tests.enrollment.machines import PATH, body, come, make, post, refusal
from tests.enrollment.test_rotation import ask
from tests.support.databases import as_default

if TYPE_CHECKING:
    from pytest_django import DjangoDbBlocker

MIDDLEWARE = ["amesh_django.middleware.AmeshMiddleware"]
pytestmark = pytest.mark.usefixtures("amesh_server")


@pytest.fixture(autouse=True)
def _fresh_counters() -> None:
    cache.clear()


def uses(token: enrollment.EnrollmentToken) -> int:
    return EnrollmentToken.objects.get(jti=token.jti).uses


def test_the_address_is_the_one_in_the_protocol() -> None:
    assert reverse("amesh_django:enroll") == PATH


@pytest.mark.django_db
@pytest.mark.parametrize("middleware", [[], MIDDLEWARE])
def test_a_machine_enrolls_and_may_authenticate(amesh_server: LocalDevice, middleware: list[str]) -> None:
    machine, user = EphemeralDevice("sensor 17\x1b[2J"), get_user_model().objects.create_user("robot")
    token = make(scopes=["orders:read", "a:*"], user_id=user.pk)
    with override_settings(MIDDLEWARE=middleware):
        response = come(token, machine)
        assert response.status_code == 201 and "no-store" in response["Cache-Control"], response.content
        answer = enrollment.verify_answer(token, public_key=machine.identity.public_key, value=response.json())
        assert (answer.state, answer.server_name) == ("active", amesh_server.identity.friendly_name)
        checked = AmeshClient(machine).get(CHECK_PATH)
    assert checked.status_code == 200 and checked.json()["permissions"] == {"scopes": ["a:*", "orders:read"]}
    row = Device.objects.get(device_id=machine.identity.device_id)
    assert (row.friendly_name, row.role, row.user) == ("sensor 17", "controller", user)
    event = AuditEvent.objects.get(device_id=row.device_id, kind="trust")
    assert event.actor == f"enrollment token {token.jti} (sensors)"
    assert uses(token) == 1 and DatabaseAllowList().verify().ok


@pytest.mark.django_db
def test_the_same_key_again_is_answered_as_before_and_counted_once() -> None:
    machine, token = EphemeralDevice(), make(uses=1)
    first = come(token, machine).json()
    assert come(token, machine).json() == first and uses(token) == 1
    assert refusal(come(token, EphemeralDevice())) == (403, "token_used_up")
    tokens.withdraw(token.jti, by="test")
    assert come(token, machine).json() == first and uses(token) == 1  # the answer may have been lost
    assert Device.objects.count() == 1


@pytest.mark.django_db
def test_a_trusted_controller_keeps_what_it_has(amesh_trust: Callable[..., EphemeralDevice]) -> None:
    machine, token = amesh_trust(permissions={"shell": True}), make(scopes=["orders:write"])
    assert come(token, machine).status_code == 201
    assert DatabaseAllowList().get(machine.identity.device_id).permissions == {"shell": True}
    assert uses(token) == 0


@pytest.mark.django_db
def test_groups_and_expiry_come_from_the_token_and_go_on_with_a_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    current_list().change("alice", lambda pending: pending.put_group("store", ["stock:read"]))
    old, new = EphemeralDevice(), EphemeralDevice()
    token = make(groups=["store", "gone"], device_seconds=90 * 86400)
    assert come(token, old).status_code == 201
    row = Device.objects.get()
    assert (row.groups, row.expires_at - row.added_at) == (["store"], dt.timedelta(days=90))
    assert list(current_list().snapshot().by_key[old.identity.public_key].scopes) == ["stock:read"]
    days = dt.timedelta(days=60)
    later = row.added_at + days
    monkeypatch.setattr(rotating, "moment", lambda: later)
    assert ask(old, new, server_device()).status_code == 200
    after = Device.objects.get(device_id=new.identity.device_id)
    assert (after.groups, after.expires_at) == (["store"], row.expires_at + days)


def test_groups_are_read_without_the_rows_of_all_devices(
    default_database: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other changes wait for an enrollment."""
    current_list().change("alice", lambda pending: pending.put_group("store", ["stock:read"]))
    token = make(groups=["store"])
    current_list().snapshot()
    monkeypatch.setattr(Snapshot, "build", lambda *args: pytest.fail("All rows are read."))
    assert come(token, EphemeralDevice()).status_code == 201
    assert Device.objects.get().groups == ["store"]


@pytest.mark.django_db
def test_machines_wait_unless_the_token_is_approved(settings: Any) -> None:
    settings.AMESH = {**settings.AMESH, "REQUIRE_APPROVAL": True, "MAX_KEY_AGE_DAYS": 30}
    lifecycle.reset()
    waiting, approved = EphemeralDevice("w"), EphemeralDevice("a")
    token = make(device_seconds=90 * 86400)
    answer = come(token, waiting)
    assert (
        enrollment.verify_answer(token, public_key=waiting.identity.public_key, value=answer.json()).state == "pending"
    )
    assert come(make(approved=True, device_seconds=86400), approved).json()["state"] == "active"
    assert [AmeshClient(one).get(CHECK_PATH).status_code for one in (waiting, approved)] == [401, 200]
    assert refusal(ask(waiting, EphemeralDevice(), server_device())) == (401, "unauthorized")
    ends = [row.expires_at - row.added_at for row in Device.objects.order_by("id") if row.expires_at]
    assert [round(end.total_seconds()) for end in ends] == [30 * 86400, 86400]  # whichever comes first
    DatabaseAllowList().approve([waiting.identity.device_id])
    assert come(token, waiting).json()["state"] == "active" and uses(token) == 1
    new = EphemeralDevice()
    assert ask(waiting, new, server_device()).status_code == 200  # approved already
    assert AmeshClient(new).get(CHECK_PATH).status_code == 200
    after = Device.objects.get(device_id=new.identity.device_id)
    assert after.expires_at is not None and round((after.expires_at - after.added_at).total_seconds()) == 30 * 86400


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_unknown_tokens_and_wrong_proofs_have_one_answer_and_cost_no_query(django_assert_num_queries: Any) -> None:
    token, machine = make(), EphemeralDevice()
    right = body(token, machine)
    unknown = {**right, "jti": "et_" + "0" * 32}
    wrong = {**right, "proof": body(make(), EphemeralDevice())["proof"]}
    with django_assert_num_queries(0):
        answers = [post(value) for value in (unknown, wrong)]
    assert {refusal(answer) for answer in answers} == {(401, "invalid_token")}
    assert len({answer.content for answer in answers}) == 1
    other = EphemeralDevice()
    assert refusal(post({**right, "sig": body(token, other)["sig"]})) == (401, "invalid_token")
    EnrollmentToken.objects.filter(jti=token.jti).delete()  # a right proof, and no row any more
    assert refusal(post(right)) == (401, "invalid_token")
    assert not Device.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("column", "value"),
    [("max_uses", 100), ("uses", 0), ("user_id", 1), ("scopes_json", '["admin"]'), ("expires_at", dt.datetime(2099, 1, 1, tzinfo=dt.UTC)), ("withdrawn_at", None), ("approved", True)],
)  # fmt: skip
def test_a_row_that_was_changed_outside_django_is_refused(
    column: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    user = get_user_model().objects.create_user("root")
    token = make(uses=1)
    come(token, EphemeralDevice())
    tokens.withdraw(token.jti, by="test")
    EnrollmentToken.objects.filter(jti=token.jti).update(**{column: user.pk if column == "user_id" else value})
    assert refusal(come(token, EphemeralDevice())) == (401, "invalid_token")
    assert any(record.levelname == "CRITICAL" and token.jti in record.message for record in caplog.records)
    assert Device.objects.count() == 1


@pytest.mark.django_db
def test_tokens_that_are_over() -> None:
    withdrawn = make()
    tokens.withdraw(withdrawn.jti, by="test")
    assert refusal(come(withdrawn, EphemeralDevice())) == (403, "token_withdrawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens.timezone, "now", lambda: dt.datetime.now(dt.UTC) - dt.timedelta(hours=2))
        expired = make()
    assert refusal(come(expired, EphemeralDevice())) == (403, "token_expired")


@pytest.mark.django_db
def test_a_token_neither_brings_a_device_back_nor_changes_its_role(amesh_trust: Callable[..., EphemeralDevice]) -> None:
    token, revoked, target = make(), amesh_trust(), amesh_trust(role="target")
    DatabaseAllowList().revoke(revoked.identity.device_id)
    for device in (revoked, target):
        assert refusal(come(token, device)) == (403, "key_denied")
    assert uses(token) == 0 and DatabaseAllowList().get(target.identity.device_id).role == "target"


@pytest.mark.django_db
def test_the_limit_of_controllers_holds_and_counts_no_use(settings: Any) -> None:
    token = make(uses=5)
    settings.AMESH = {**settings.AMESH, "MAX_CONTROLLERS": 1}
    lifecycle.reset()
    assert come(token, EphemeralDevice()).status_code == 201
    assert refusal(come(token, EphemeralDevice())) == (409, "max_controllers")
    assert uses(token) == 1


@pytest.mark.django_db
def test_clocks_bodies_and_methods() -> None:
    token, machine = make(), EphemeralDevice()
    import time

    for seconds in (-62, 62):
        assert refusal(come(token, machine, now=time.time() + seconds)) == (401, "timestamp_out_of_range")
    assert refusal(post(b"{")) == (400, "malformed_request")
    assert refusal(post([])) == (400, "malformed_request")
    assert refusal(post(b'"' + b"x" * 20_000 + b'"')) == (413, "payload_too_large")
    assert Client().get(PATH).status_code == 405


class BrokenStream(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        raise OSError("the connection was reset")


@pytest.mark.django_db
def test_a_body_that_cannot_be_read_is_a_refusal_and_no_traceback(settings: Any, caplog: Any) -> None:
    assert refusal(post([], **{"wsgi.input": BrokenStream()})) == (400, "malformed_request")
    assert refusal(post([], CONTENT_LENGTH="9" * 5000)) == (413, "payload_too_large")
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10  # no larger than the body: the limit of this address is another one
    assert refusal(post([1] * 20)) == (400, "malformed_request")
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.django_db
def test_a_body_of_any_size_is_not_read_into_memory() -> None:
    """A chunked body has no declared length, and an ASGI server hands it over as a file."""
    read: list[int] = []

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            read.append(-1 if size is None else size)
            return b" " * (size if size is not None and size >= 0 else 1 << 30)

    scope = {"type": "http", "method": "POST", "path": PATH, "headers": []}
    request = ASGIRequest(scope, Endless())
    assert views.enroll(request).status_code == 413 and read and 0 < max(read) <= 2 * views.MAX_BODY_BYTES


@pytest.mark.django_db
def test_a_device_that_is_not_active_is_not_brought_back(amesh_trust: Callable[..., EphemeralDevice]) -> None:
    now, later = moment(), moment() + dt.timedelta(hours=1)
    columns: list[tuple[dict[str, Any], str]] = [
        ({"suspended_at": now}, "key_denied"),
        ({"denied_at": now}, "key_denied"),
        ({"expires_at": now}, "key_denied"),
        ({"pending_since": now}, "pending"),
        ({"expires_at": later}, "active"),
    ]
    token = make(uses=1)
    for values, answer in columns:
        machine = amesh_trust()
        name = machine.identity.device_id
        current_list().change("alice", functools.partial(_set, name=name, values=values))
        found = come(token, machine).json()
        assert found.get("error", found.get("state")) == answer, values
        row = Device.objects.get(device_id=name)
        assert {column: getattr(row, column) for column in values} == values
    assert uses(token) == 0


def _set(pending: Change, name: str, values: dict[str, Any]) -> None:
    row = pending.find(device_id=name)
    assert row is not None
    pending.update(row, **values)


@pytest.mark.django_db
def test_wrong_proofs_of_an_address_are_limited_and_right_ones_are_not() -> None:
    token = make(uses=2)
    wrong = {**body(token, EphemeralDevice()), "jti": "et_" + "0" * 32}
    codes = [refusal(post(wrong)) for _ in range(limits.WRONG_PER_MINUTE + 1)]
    assert codes == [(401, "invalid_token")] * limits.WRONG_PER_MINUTE + [(429, "too_many_attempts")]
    assert refusal(post(wrong, REMOTE_ADDR="192.0.2.1")) == (401, "invalid_token")
    assert come(token, EphemeralDevice()).status_code == 201  # from the same address, such as that of a proxy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "USES_PER_MINUTE", 1)
        assert refusal(come(token, EphemeralDevice())) == (429, "too_many_attempts")


@pytest.mark.django_db
def test_without_a_cache_that_counts_nothing_is_limited(settings: Any) -> None:
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    assert come(make(), EphemeralDevice()).status_code == 201


@pytest.mark.django_db
def test_a_database_that_is_down_is_unavailable(django_db_blocker: DjangoDbBlocker, tmp_path: Path) -> None:
    token = make()
    nowhere = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path / "missing" / "file"),
        "ATOMIC_REQUESTS": True,
    }
    with django_db_blocker.unblock(), as_default(nowhere):
        refused = come(token, EphemeralDevice())
    assert refusal(refused) == (503, "allow_list_unavailable") and refused["Retry-After"]


def test_a_list_that_does_not_match_its_seal_takes_nobody_in(amesh_trusted_device: EphemeralDevice) -> None:
    token = make()
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {Device._meta.db_table} SET friendly_name = 'forged'")  # noqa: S608
    assert refusal(come(token, EphemeralDevice())) == (500, "allow_list_integrity_failure")
    assert uses(token) == 0


@pytest.mark.django_db
def test_only_the_address_of_the_app_needs_no_signature() -> None:
    with override_settings(MIDDLEWARE=MIDDLEWARE):
        for path in ("/other/enroll", "/amesh/enroll/", "/amesh/x/../enroll"):
            assert Client().post(path).json() == {"error": "missing_header"}


@pytest.mark.django_db
@pytest.mark.parametrize(
    "wrong", [{"uses": 0}, {"uses": 10_001}, {"lifetime": 0}, {"lifetime": 30 * 86400 + 1}, {"url": "x"}]
)
def test_what_is_no_token(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        make(**wrong)
    assert not EnrollmentToken.objects.exists()
