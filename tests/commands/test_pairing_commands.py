"""`listen` and `invite`, both front ends: two people at two terminals and a real relay, from start to end."""

from __future__ import annotations

import itertools
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.pairing_terminals import (
    STEERING,
    Machine,
    introduced,
    is_calm,
    machine,
    one_time_code,
    verification_code,
    wrong,
)
from tests.relay.relay_world import address, serving
from tests.support import fork_server, services
from tests.support.front_ends import HOSTILE, HOSTILE_SHOWN

pytestmark = pytest.mark.process

VERIFIED = "Does the other screen say “Verified”? [y/N] "


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("relay")) as server:
        yield address(server)


@pytest.fixture
def laptop(tmp_path: Path, relay: str) -> Machine:
    """Return a machine that runs `amesh`."""
    return machine(tmp_path, "laptop", relay)


@pytest.fixture
def server(tmp_path: Path, relay: str, sqlite_database: dict[str, str]) -> Machine:
    """Return a machine that runs `manage.py`."""
    return machine(tmp_path, "server", relay, sqlite_database)


@pytest.fixture
def desk(tmp_path: Path, relay: str) -> Machine:
    """Return another machine that runs `amesh`, for tests that do not depend on the front end."""
    return machine(tmp_path, "desk", relay)


def pair(target: Machine, controller: Machine, *options: str) -> None:
    with introduced(target, controller, options) as (there, here, code):
        there.type(f"{code}\n")
        here.expect(VERIFIED)
        here.type("y\n")
        assert (there.end(), here.end()) == (0, 0), (there.shown, here.shown)


# --- from start to end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v2", "v1"])
@pytest.mark.parametrize("target_is", ["server", "laptop"])
def test_two_people_pair(target_is: str, version: str, server: Machine, laptop: Machine) -> None:
    target, controller = (server, laptop) if target_is == "server" else (laptop, server)
    options = ["--v1"] if version == "v1" else []
    with introduced(target, controller, [*options, "--shell"], options) as (there, here, code):
        # Both people see the whole device ID of the other device before anything is stored.
        for person, other in ((there, controller), (here, target)):
            assert re.search(rf"\n  Name +{other.device.identity.friendly_name}\n", person.shown)
            assert other.id in person.shown
            assert ("Warning: Version 1 of pairing does not protect against a malicious relay" in person.shown) is bool(
                options
            )
        assert f"amesh invite {code}" not in there.shown
        # The TypeScript command line rejects --v1, and shows no device ID.
        assert f" --relay {target.relay}\n" in there.shown
        assert ("If that device runs amesh-django, add --v1 to the command." in there.shown) is bool(options)
        for person in (there, here):
            text = " ".join(person.shown.split())
            assert ("Compare the device ID with the one on the other screen." in text) is not bool(options)
            assert ("If the other screen shows a device ID, compare it" in text) is bool(options)
        assert "Permissions  shell" in there.shown
        assert not target.listed() and not controller.listed()

        there.type(f"{code[:3]} {code[3:]}\n")
        there.expect("Verified: the code is correct.")
        here.expect(VERIFIED)
        assert not controller.listed()
        here.type("y\n")
        assert (there.end(), here.end()) == (0, 0), (there.shown, here.shown)
        assert (
            f"Paired: {controller.id} ({controller.device.identity.friendly_name}) is stored as controller."
            in there.shown
        )
        assert "authenticate to this device, from now on, and open a shell on it" in there.shown
        assert f"Paired: {target.id} ({target.device.identity.friendly_name}) is stored as target." in here.shown
        assert f"{controller.call('fetch')} URL" in here.shown
        assert f"{target.call('revoke')} {controller.id}" in there.shown
        assert is_calm(there) and is_calm(here)
    (entry,), (mine,) = target.listed().values(), controller.listed().values()
    assert (entry.device_id, entry.role, dict(entry.permissions)) == (controller.id, "controller", {"shell": True})
    assert (mine.device_id, mine.role, dict(mine.permissions)) == (target.id, "target", {})
    assert entry.added_by == mine.added_by == "handshake"


@pytest.mark.unversioned  # it is about text on a terminal
def test_the_code_is_large_and_the_time_runs(laptop: Machine, desk: Machine) -> None:
    with laptop.at("listen") as there:
        code = one_time_code(there)
        large = there.shown.partition("One-time code")[2]
        assert large.count("█") > 100
        assert max(len(line) for line in large.split("\n")) < 60
        there.expect(" the code is valid for 60 s")
        there.expect("\r the code is valid for 5")  # the same line again
        with desk.at("invite", code) as here:
            verification_code(here)
            here.expect(" waiting for the other device, 90 s left")
            there.expect("A device has used the code.")
            assert re.search(r"\r +\rA device has used", there.shown), "the countdown has left its line"


@pytest.mark.unversioned  # it is about text on a terminal
def test_a_narrow_terminal(laptop: Machine, desk: Machine) -> None:
    with introduced(laptop, desk, ["--qr"], columns=36) as (there, here, code):
        assert not {"█"} & set(there.shown + here.shown)
        assert "The QR code was not drawn: it needs a terminal of" in " ".join(there.shown.split())
        assert re.search(r"\n  amesh invite \d{6} --relay ws://\S+\n", there.shown), "to be copied in one piece"
        assert f"Device ID    {desk.id}\n" in there.shown
        there.type(f"{code}\n")
        here.expect("[y/N] ")
        here.type("y\n")
        assert (there.end(), here.end()) == (0, 0)


@pytest.mark.unversioned  # it is about text on a terminal
def test_no_color_is_respected(server: Machine, laptop: Machine) -> None:
    for target, controller in ((laptop, server), (server, laptop)):
        for one in (target, controller):
            one.more["NO_COLOR"] = "1"
        with introduced(target, controller, ["--qr"]) as (there, here, code):
            there.type(f"{code}\n")
            here.expect(VERIFIED)
            here.type("y\n")
            assert (there.end(), here.end()) == (0, 0)
            assert "\x1b" not in there.raw + here.raw


@pytest.mark.unversioned  # it is about text on a terminal
def test_the_code_may_be_typed_instead_of_named(laptop: Machine, server: Machine) -> None:
    with server.at("listen") as there:
        code = one_time_code(there)
        with laptop.at("invite") as here:
            here.expect("One-time code that listen shows: ")
            here.type("12345\n")
            here.expect("This is not a one-time code: it has six digits")
            here.expect("One-time code that listen shows: ")
            here.type(f"{code[:3]}-{code[3:]}\n")
            there.expect("Verification code: ")
            there.type(f"{verification_code(here)}\n")
            here.expect(VERIFIED)
            here.type("y\n")
            assert (there.end(), here.end()) == (0, 0)


@pytest.mark.unversioned  # it is about text on a terminal
def test_names_steer_no_terminal(tmp_path: Path, relay: str, sqlite_database: dict[str, str]) -> None:
    target = machine(tmp_path, HOSTILE, relay)
    controller = machine(tmp_path, HOSTILE, relay, sqlite_database)
    for one, other in ((target, controller), (controller, target)):
        with introduced(one, other) as (there, here, code):
            there.type(f"{code}\n")
            here.expect(VERIFIED)
            here.type("y\n")
            assert (there.end(), here.end()) == (0, 0)
            for person in (there, here):
                assert HOSTILE_SHOWN in person.shown
                assert not [text for text in STEERING if text in person.raw]
                assert is_calm(person)


# --- what was before --------------------------------------------------------------------------------------------------


def test_a_known_peer_is_refreshed(server: Machine, laptop: Machine) -> None:
    pair(server, laptop, "--shell")
    with introduced(server, laptop) as (there, here, code):
        for person in (there, here):
            assert "It is already trusted, added" in person.shown
        assert "Permissions  shell -> none" in there.shown
        there.type(f"{code}\n")
        here.expect(VERIFIED)
        here.type("y\n")
        there.expect("Paired again: ")
        here.expect("Paired again: ")
        assert (there.end(), here.end()) == (0, 0)
    assert [dict(entry.permissions) for entry in server.listed().values()] == [{}]


def test_a_revoked_peer_is_said_to_be_one(server: Machine, laptop: Machine) -> None:
    server.trust(laptop.device)
    assert server.run("revoke", laptop.id, "--yes", "--reason", "left on a train").returncode == 0
    with introduced(server, laptop) as (there, here, code):
        assert "It was revoked 2" in there.shown and "left on a train" in there.shown
        there.type(f"{code}\n")
        here.expect(VERIFIED)
        here.type("y\n")
        assert (there.end(), here.end()) == (0, 0)
    assert list(server.listed()) == [laptop.id]


@pytest.mark.parametrize("answer", ["y\n", "\n"])
def test_one_controller_too_many_is_asked_about(answer: str, server: Machine, laptop: Machine, desk: Machine) -> None:
    server.trust(desk.device)
    with introduced(server, laptop) as (there, here, code):
        there.type(f"{code}\n")
        there.expect(f"Revoke {desk.id} (desk) and trust {laptop.id} (laptop) in its place? [y/N] ")
        # The other device receives nothing before the question is answered.
        assert "The other device reports" not in here.shown
        there.type(answer)
        if answer == "y\n":
            here.expect(VERIFIED)
            here.type("y\n")
            there.expect(f"Revoked     {desk.id} (desk)")
        else:
            there.expect("Declined. Nothing was stored here.")
            here.expect("The other device refused")
        assert (there.end(), here.end()) == ((0, 0) if answer == "y\n" else (1, 1))
    assert list(server.listed()) == [laptop.id if answer == "y\n" else desk.id]
    assert bool(laptop.listed()) is (answer == "y\n")


def test_one_of_several_controllers_is_chosen(tmp_path: Path, relay: str, laptop: Machine, desk: Machine) -> None:
    target = machine(tmp_path, "two", relay, max_controllers=2)
    other = machine(tmp_path, "other", relay)
    for one in (desk, other):
        target.trust(one.device)
    with introduced(target, laptop) as (there, here, code):
        there.type(f"{code}\n")
        there.expect(f"{other.id} (other)\n")
        there.expect("Which controller do you want to revoke")
        there.expect("[1-2, Enter for none] ")
        there.type("3\n")
        there.expect("Please answer with a number from 1 to 2")
        there.expect("[1-2, Enter for none] ")
        there.type("2\n")
        here.expect(VERIFIED)
        here.type("y\n")
        assert (there.end(), here.end()) == (0, 0)
    assert sorted(target.listed()) == sorted([desk.id, laptop.id])


def test_the_one_to_be_replaced_may_be_named(server: Machine, laptop: Machine, desk: Machine) -> None:
    server.trust(desk.device)
    with introduced(server, laptop, ["--replace", desk.id]) as (there, here, code):
        assert f"{desk.id} (desk) will be revoked in its place." in there.shown
        there.type(f"{code}\n")
        here.expect(VERIFIED)
        here.type("y\n")
        assert (there.end(), here.end()) == (0, 0)
    assert list(server.listed()) == [laptop.id]
    gone = server.run("listen", "--replace", desk.id)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "No trusted device has the device ID" in gone.stderr
    with introduced(server, laptop, ["--replace", laptop.id]) as (there, here, code):
        there.type(f"{code}\n")
        there.expect("The device to replace is the device that is pairing")
        assert (there.end(), here.end()) == (1, 1)
    assert list(server.listed()) == [laptop.id]


# --- what comes with a device that is trusted -------------------------------------------------------------------------


def map_to_root(server: Machine, device_id: str) -> None:
    """Let a device act as a superuser in REST framework views."""
    program = (
        "from django.contrib.auth import get_user_model; from amesh_django.allow_list import DatabaseAllowList; "
        f"DatabaseAllowList(by='boss').map_user({device_id!r}, get_user_model().objects.create_superuser('root'))"
    )
    argv = [sys.executable, "-m", "django", "shell", "-c", program]
    done = fork_server.run(argv, env=server.env)
    assert done.returncode == 0, done.stderr


def user_of(server: Machine, device_id: str) -> str:
    """Return the name of the user a device is mapped to."""
    program = f"from amesh_django.models import Device; print(Device.objects.get(device_id={device_id!r}).user)"
    argv = [sys.executable, "-m", "django", "shell", "-v", "0", "-c", program]
    return fork_server.run(argv, env=server.env).stdout.strip()


@pytest.mark.slow
def test_listen_names_the_user_before_the_code_is_typed(server: Machine, laptop: Machine) -> None:
    """The person who types the code gives the device what its user may do. A device that was revoked has lost its user."""
    server.trust(laptop.device)
    map_to_root(server, laptop.id)
    for says, after in (
        ("In REST framework views, it acts as the superuser root, as before.", "root"),
        ("Trusting it undoes the revocation. It acted as the superuser root, and no longer will", "None"),
    ):
        with introduced(server, laptop) as (there, here, code):
            shown, prompt, _ = there.shown.rpartition("Verification code: ")
            assert prompt and says in " ".join(shown.split())
            there.type(f"{code}\n")
            here.expect(VERIFIED)
            here.type("y\n")
            assert (there.end(), here.end()) == (0, 0), (there.shown, here.shown)
        assert user_of(server, laptop.id) == after
        assert server.run("revoke", laptop.id, "--yes").returncode == 0


@pytest.mark.unversioned  # it is about the pairing, whose tests in tests/pairing run on both pairs
@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--yes"]])
def test_invite_names_the_user_before_the_target_is_stored(options: list[str], server: Machine, desk: Machine) -> None:
    server.trust(desk.device, "target")
    map_to_root(server, desk.id)
    with introduced(desk, server, [], options) as (there, here, code):
        there.type(f"{code}\n")
        if not options:
            here.expect(VERIFIED)
            here.type("y\n")
        assert (there.end(), here.end()) == (0, 0), (there.shown, here.shown)
        before = here.shown.partition("is stored as target.")[0]
        assert "In REST framework views, it acts as the superuser root, as before." in " ".join(before.split())


# --- no ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v2", "v1"])
def test_a_wrong_verification_code(version: str, server: Machine, laptop: Machine) -> None:
    options = ["--v1"] if version == "v1" else []
    with introduced(server, laptop, options, options) as (there, here, code):
        there.type(f"{wrong(code)}\n")
        there.expect("Error: This is not the verification code that the controller shows.")
        there.expect("this may be an attack. Nothing was stored. Pair again")
        here.expect("The other device refused: a wrong verification code was typed there")
        assert (there.end(), here.end()) == (1, 1)
    assert not server.listed() and not laptop.listed()


@pytest.mark.unversioned  # it is about text on a terminal
def test_what_is_no_code_is_asked_again(laptop: Machine, desk: Machine) -> None:
    with introduced(laptop, desk) as (there, here, _):
        for text in ("12345\n", "abc\n"):
            there.type(text)
            there.expect("That is not six digits.")
            there.expect("Verification code: ")
        there.type("x\n")
        there.expect("The verification code that was typed does not have six digits. Nothing was stored here")
        assert (there.end(), here.end()) == (1, 1)
    assert not laptop.listed() and not desk.listed()


def test_enter_alone_and_ctrl_d_are_no(server: Machine, laptop: Machine) -> None:
    for key, says in (
        ("\n", "Declined. Nothing was stored here."),
        ("\x04", "The verification code of the other screen was not typed"),
    ):
        with introduced(server, laptop) as (there, here, _):
            there.type(key)
            there.expect(says)
            here.expect("The other device refused")
            assert (there.end(), here.end()) == (1, 1)
    assert not server.listed() and not laptop.listed()


@pytest.mark.unversioned  # it is about the pairing, whose tests in tests/pairing run on both pairs
@pytest.mark.parametrize("answer", ["\n", "n\n", "\x04"])
def test_the_controller_says_no(answer: str, server: Machine, laptop: Machine) -> None:
    with introduced(server, laptop) as (there, here, code):
        there.type(f"{code}\n")
        here.expect(VERIFIED)
        here.type(answer)
        here.expect("Nothing was stored here." if answer == "\x04" else "Declined. Nothing was stored here.")
        there.expect("The operator of the controller declined")
        assert (there.end(), here.end()) == (1, 1)
    assert not server.listed() and not laptop.listed()


@pytest.mark.unversioned  # it is about text on a terminal
def test_what_was_typed_too_early_is_no_answer(laptop: Machine, desk: Machine) -> None:
    """Keys pressed before the question was shown are discarded."""
    with introduced(laptop, desk) as (there, here, code):
        here.type("y\n\n")
        there.type(f"{code}\n")
        here.expect(VERIFIED)
        here.type("n\n")
        assert (there.end(), here.end()) == (1, 1)
    assert not laptop.listed() and not desk.listed()


# --- somebody leaves --------------------------------------------------------------------------------------------------


@pytest.mark.unversioned  # it is about the pairing, whose tests in tests/pairing run on both pairs
@pytest.mark.parametrize("who", ["target", "controller"])
@pytest.mark.parametrize("target_is", ["server", "laptop"])
def test_the_other_side_is_killed_while_a_person_is_asked(
    target_is: str, who: str, server: Machine, laptop: Machine
) -> None:
    """The message is shown at once, and a partly typed answer does not reach the shell."""
    target, controller = (server, laptop) if target_is == "server" else (laptop, server)
    with introduced(target, controller) as (there, here, code):
        asked, other = (there, here) if who == "controller" else (here, there)
        if who == "target":
            there.type(f"{code}\n")
            here.expect(VERIFIED)
        asked.type("12")
        other.process.kill()
        asked.expect("Error: The other device has left")
        assert asked.end() == 1
        assert is_calm(asked)
        assert asked.shown.count("Error") == 1
    assert not target.listed() and not controller.listed()


@pytest.mark.unversioned  # it is about text on a terminal
def test_half_an_answer_does_not_reach_the_shell(laptop: Machine, desk: Machine) -> None:
    shell = [
        "sh",
        "-c",
        'trap : INT; "$@"; echo "ended with $?"; read line; echo "<$line>"',
        "sh",
        *laptop.argv("listen"),
    ]
    from tests.support.terminal import terminal

    for key in ("", "\x03"):
        with terminal(shell, laptop.env) as there:
            code = one_time_code(there)
            with desk.at("invite", code) as here:
                verification_code(here)
                there.expect("Verification code: ")
                there.type("rm -rf")
                if key:
                    there.type(key)
                else:
                    here.process.kill()
                there.expect("ended with 130" if key else "ended with 1")
                there.type("x\n")
                there.expect("<x>")
                assert here.end() in (1, -9)


@pytest.mark.unversioned  # it is about the pairing, whose tests in tests/pairing run on both pairs
@pytest.mark.parametrize("target_is", ["server", "laptop"])
def test_the_relay_is_killed_while_both_are_asked(
    target_is: str, server: Machine, laptop: Machine, tmp_path: Path
) -> None:
    target, controller = (server, laptop) if target_is == "server" else (laptop, server)
    with serving(tmp_path / "own") as own:
        target.relay = controller.relay = address(own)
        with introduced(target, controller) as (there, here, _):
            own.stop(signal.SIGKILL)
            for person in (there, here):
                person.expect("Error: The relay closed the connection.")
                assert person.end() == 1
                assert is_calm(person)
        with target.at("listen") as there:
            there.expect("cannot be reached: no server listens there.")
            assert there.end() == 1
    assert not target.listed() and not controller.listed()


@pytest.mark.unversioned  # it is about the pairing, whose tests in tests/pairing run on both pairs
def test_nobody_comes(server: Machine, laptop: Machine, tmp_path: Path) -> None:
    with serving(tmp_path / "own", MATCH_SECONDS=1) as own:
        for one in (server, laptop):
            one.relay = address(own)
            with one.at("listen") as there:
                code = one_time_code(there)
                there.expect(
                    f"No controller used the one-time code in time. Nothing was stored. Run {one.call('listen')} again"
                )
                assert there.end() == 1
            with one.at("invite", code) as here:
                here.expect("The relay does not know this one-time code")
                assert here.end() == 1


@pytest.mark.unversioned  # it is about the pairing, whose tests in tests/pairing run on both pairs
def test_too_many_tries(laptop: Machine, tmp_path: Path) -> None:
    with serving(tmp_path / "own", TRIES_PER_MINUTE=1) as own:
        laptop.relay = address(own)
        assert "does not know this one-time code" in laptop.run("invite", "482916", "--yes").stderr
        for words in (["invite", "482916", "--yes"], ["listen"]):
            done = laptop.run(*words)
            assert done.returncode == 1
            assert "accepts no more attempts from this address for now. Wait a minute" in done.stderr


@pytest.mark.unversioned  # it is about the pairing, whose tests in tests/pairing run on both pairs
def test_one_speaks_version_1_and_the_other_does_not(laptop: Machine, desk: Machine) -> None:
    for listen, invite in itertools.permutations((["--v1"], []), 2):
        with laptop.at("listen", *listen) as there, desk.at("invite", one_time_code(there), *invite) as here:
            codes = there.end(), here.end()
            assert codes == (1, 1)
            assert "--v1" in there.shown.partition("A device has used")[2]
            assert "--v1" in here.shown.partition("The relay has found")[2]
    assert not laptop.listed() and not desk.listed()


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------

GONE = "The other device has left: it was closed or interrupted, or its connection broke. Nothing was stored here"


@pytest.mark.parametrize("front_end", ["server", "laptop"])
def test_ctrl_c_before_anybody_is_there(front_end: str, request: pytest.FixtureRequest) -> None:
    one: Machine = request.getfixturevalue(front_end)
    for words, wait in ((["listen"], "Run this command on the device"), (["invite"], "that listen shows: ")):
        with one.at(*words) as person:
            person.expect(wait)
            person.type("\x03")
            assert person.end() == 130
            assert person.shown.endswith("Interrupted. Nothing was stored.\n"), person.shown
            assert is_calm(person)


@pytest.mark.unversioned  # it is about the pairing, whose tests in tests/pairing run on both pairs
@pytest.mark.parametrize("target_is", ["server", "laptop"])
@pytest.mark.parametrize("place", ["code", "replace", "answered", "waiting", "confirm"])
def test_ctrl_c_at_every_question_and_wait(
    place: str, target_is: str, server: Machine, laptop: Machine, desk: Machine
) -> None:
    """The message is true, the other device learns of it, and nothing is stored."""
    target, controller = (server, laptop) if target_is == "server" else (laptop, server)
    before = {}
    if place == "replace":
        target.trust(desk.device)
        before = target.listed()
    with introduced(target, controller) as (there, here, code):
        me, other = (there, here) if place in ("code", "replace", "answered") else (here, there)
        if place != "code" and place != "waiting":
            there.type(f"{code}\n")
            there.expect("Verified: the code is correct.")
        if place == "replace":
            there.expect("[y/N] ")
        elif place in ("answered", "confirm"):
            here.expect(VERIFIED)
        me.type("\x03")
        assert me.end() == 130
        assert is_calm(me)
        says = "Interrupted. Nothing was stored here."
        if place == "answered":
            says += " The other device may list this one as its target, which gives nobody access."
        assert " ".join(me.shown.split()).endswith(says), me.shown
        other.expect(GONE[:40])
        assert other.end() == 1
        assert is_calm(other)
        assert GONE in " ".join(other.shown.split())
    assert target.listed() == before and not controller.listed()


# --- several processes, one server ------------------------------------------------------------------------------------


def test_a_server_of_postgresql_leaves_no_connection(
    relay: str, laptop: Machine, tmp_path: Path, postgres_database: dict[str, str], postgres_server: services.Postgres
) -> None:
    target = machine(tmp_path, "pg", relay, postgres_database)
    with introduced(target, laptop) as (there, here, code):
        there.type(f"{code}\n")
        here.expect(VERIFIED)
        import psycopg

        with psycopg.connect(
            host=services.HOST, port=postgres_server.port, user="amesh", dbname="postgres", autocommit=True
        ) as watching:
            count = "SELECT count(*), count(*) FILTER (WHERE state LIKE '%%in transaction%%') FROM pg_stat_activity WHERE datname = %s"

            def connections() -> object:
                return watching.execute(count, [postgres_database["NAME"]]).fetchone()

            # The command has one connection, and no open transaction while it waits for people.
            assert connections() == (1, 0)
            here.type("y\n")
            assert (there.end(), here.end()) == (0, 0)
            deadline = time.monotonic() + 30
            while connections() != (0, 0):  # PostgreSQL takes a moment to notice that a client has left
                assert time.monotonic() < deadline
                time.sleep(0.02)
    assert list(target.listed()) == [laptop.id]
