"""Every error carries its message and its hint as attributes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest

from authmesh.protocol import errors
from authmesh.protocol.errors import AmeshError, IdentityMissing, RequestError, Run, spelled
from authmesh.protocol.pairing import errors as pairing_errors
from authmesh.protocol.pairing import token_errors
from authmesh.protocol.pairing.errors import PairingError
from authmesh.protocol.pairing.token_errors import BootstrapFailed, TokenExpired

MODULES = (errors, pairing_errors, token_errors)
EVERY_ERROR = [
    found
    for module in MODULES
    for found in vars(module).values()
    if isinstance(found, type) and issubclass(found, AmeshError) and found.__module__ == module.__name__
]
#: The only error that is made of another one.
WITHOUT_CAUSE = [kind for kind in EVERY_ERROR if kind is not BootstrapFailed]
PRINT_ALL = """
from tests.protocol.test_errors import WITHOUT_CAUSE
for kind in WITHOUT_CAUSE:
    print(kind())
"""


def django(run: Run) -> str:
    return f"manage.py amesh_{run.name} {run.arguments}".rstrip()


@pytest.mark.parametrize("kind", WITHOUT_CAUSE)
def test_message_and_hint_are_sentences(kind: type[AmeshError]) -> None:
    error = kind()
    assert error.message == kind.default_message and error.hint == kind.default_hint
    for text in (error.message, spelled(error.hint)):
        assert not text or (text[0].isupper() and text.endswith(".")), text
        assert "\n" not in text and "  " not in text and ". ." not in text
    plain = "".join(part for part in [error.message, *error.hint] if isinstance(part, str))
    assert "manage.py" not in plain and "AMESH[" not in plain and "amesh_" not in plain
    assert error.text(django).count("manage.py amesh_") == len([part for part in error.hint if isinstance(part, Run)])


def test_texts_and_codes_are_distinct() -> None:
    assert len({str(kind()) for kind in WITHOUT_CAUSE}) == len(WITHOUT_CAUSE)
    named = [kind for kind in EVERY_ERROR if kind is not RequestError]  # a base that is never raised
    assert len({kind.code for kind in named}) == len(named)


@pytest.mark.parametrize("kind", WITHOUT_CAUSE)
def test_a_message_of_its_own_comes_without_the_default_hint(kind: type[AmeshError]) -> None:
    assert str(kind("It failed.")) == "It failed."
    hint = ("To see it, run ", Run("list", "--json"), ".")
    assert str(kind("It failed.", hint=hint)) == "It failed. To see it, run amesh list --json."
    assert kind(hint=hint).message == kind.default_message


@pytest.mark.parametrize("kind", EVERY_ERROR)
def test_an_error_can_be_copied(kind: type[AmeshError]) -> None:
    error = kind(TokenExpired()) if kind is BootstrapFailed else kind("It failed.", hint="Try again.")
    if isinstance(error, RequestError):
        error.reason = "seal_mismatch"
    for copied in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301 -- made in the line itself
        assert type(copied) is kind and str(copied) == str(error) and copied.code == error.code
        assert getattr(copied, "reason", None) == getattr(error, "reason", None)


@pytest.mark.process
def test_messages_do_not_depend_on_docstrings() -> None:
    command = [sys.executable, "-OO", "-c", PRINT_ALL]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert printed.splitlines() == [str(kind()) for kind in WITHOUT_CAUSE]


def test_failed_enrollment_has_code_and_hint_of_its_cause() -> None:
    cause = TokenExpired()
    failed = BootstrapFailed(cause)
    assert isinstance(failed, IdentityMissing) and not isinstance(failed, PairingError)
    assert (failed.code, failed.hint) == ("token_expired", cause.hint)
    assert str(failed).startswith("This device has no identity") and str(failed).endswith(str(cause))
    assert BootstrapFailed.code == "bootstrap_failed"
