"""Enrollment tokens while the secret of the seal is being replaced: they work until the old secret is removed, and nobody else's do."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from amesh_django import lifecycle
from amesh_django.enrollment import tokens
from amesh_django.models import EnrollmentToken
from amesh_django.test import EphemeralDevice
from amesh_django.trust.keys import all_seal_keys
from authmesh.protocol import enrollment
from tests.enrollment.machines import come, make, refusal

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("amesh_server")]


@pytest.fixture
def use(tmp_path: Path, settings: Any) -> Any:
    """Return a function that lets this process use secrets of the seal, by name; ``own`` is the key of the server."""

    def use(*names: str) -> None:
        paths: list[str | None] = []
        for name in names:
            path = tmp_path / name
            path.write_text(name[0].encode().hex() * 32)
            path.chmod(0o600)
            paths.append(None if name == "own" else str(path))
        settings.AMESH = {**settings.AMESH, "SEAL_KEY_FILES": paths}
        lifecycle.reset()

    return use


def rekey() -> tuple[dict[str, Any], str]:
    out, err = io.StringIO(), io.StringIO()
    call_command("amesh_integrity", rekey=True, yes=True, json=True, stdout=out, stderr=err)
    return json.loads(out.getvalue()), err.getvalue()


@pytest.mark.parametrize("old", ["old", "own"])
def test_a_token_works_until_the_old_secret_is_removed(use: Any, old: str) -> None:
    use(old)
    token = make()
    assert come(token, EphemeralDevice()).status_code == 201
    use("new", old)
    assert come(token, EphemeralDevice()).status_code == 201
    later = make(name="later")
    answer, warning = rekey()
    assert answer["tokensUnderOldSecret"] == [token.jti]
    assert "1 open enrollment token made with the old secret: sensors" in " ".join(warning.split())
    assert come(token, EphemeralDevice()).status_code == 201
    assert refusal(come(token, EphemeralDevice())) == (403, "token_used_up")
    assert rekey()[0]["tokensUnderOldSecret"] == []
    use("new")
    assert refusal(come(token, EphemeralDevice())) == (401, "invalid_token")
    assert come(later, EphemeralDevice()).status_code == 201
    assert [tokens.state(row, 0) for row in tokens.every()] == ["open", "void"]


def test_a_changed_row_does_not_pass_with_either_secret(use: Any) -> None:
    use("old")
    token = make(uses=1)
    use("new", "old")
    EnrollmentToken.objects.update(max_uses=5)
    assert refusal(come(token, EphemeralDevice())) == (401, "invalid_token")


def test_who_knows_the_old_secret_does_not_know_the_secrets_of_new_tokens(use: Any) -> None:
    use("new", "old")
    token = make()
    old = all_seal_keys()[1]
    forged = dataclasses.replace(token, secret=enrollment.token_secret(old.enrollment, token.jti))
    assert refusal(come(forged, EphemeralDevice())) == (401, "invalid_token")
    assert come(token, EphemeralDevice()).status_code == 201
