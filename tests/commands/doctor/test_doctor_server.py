"""`doctor URL`: the server, its clock, the network, and whether the server knows this device; with real servers and with one that lies."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from amesh_django.test.devices import EphemeralDevice
from authmesh.commands.doctor.answers import meaning
from authmesh.commands.doctor.findings import Finding
from authmesh.commands.doctor.server import ServerChecks, check_url
from authmesh.commands.terminal.errors import UsageProblem
from authmesh.protocol.check import CHECK_PATH
from authmesh.protocol.errors import RequestError
from tests.commands.doctor.doctors import FrontEnd, Told, told
from tests.support import services
from tests.support.front_ends import HOSTILE, HOSTILE_SHOWN

SERVED = {"gunicorn": services.gunicorn, "uvicorn": services.uvicorn}


def examine(url: str, device: Any = None, seconds: float = 20) -> dict[str, Finding]:
    """Return the findings of the three checks of a server, run in this process."""
    checks = ServerChecks(check_url(url), device, seconds)
    found = [*checks.reachable(), *checks.clock(), *checks.known()]
    return {finding.id: finding for finding in found}


@pytest.fixture
def device(tmp_path: Path) -> FrontEnd:
    """Return a laptop."""
    front_end = FrontEnd(tmp_path / "laptop")
    front_end.make("laptop")
    return front_end


@pytest.fixture
def liar() -> Iterator[Told]:
    with told() as found:
        yield found


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test server")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return file


# --- a real server ----------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("name", SERVED)
def test_a_server_knows_this_device_until_it_is_revoked(
    name: str, device: FrontEnd, sqlite_database: dict[str, str], tmp_path: Path
) -> None:
    there = FrontEnd(tmp_path / "there", sqlite_database)
    there.make()
    there.env |= {"DJANGO_SETTINGS_MODULE": "tests.verification.wire_settings", "TEST_AMESH_DIR": str(there.path)}
    laptop = EphemeralDevice("laptop")
    laptop.write(device.path)
    with services.serve(SERVED[name](), there.env) as server:
        for url in (server.url, f"{server.url}/", f"{server.url}{CHECK_PATH}"):
            found = device.doctor(url)
            assert found.code == 1 and found.problems() == {"known"}, found
            assert laptop.identity.device_id in found.text("known") and "amesh invite" in found.text("known")
        there.trust(laptop, "controller")
        there.done("grant", laptop.identity.device_id, "--shell")
        found = device.doctor(server.url)
        assert found.code == 0 and found.status("server") == found.status("clock") == "ok", found
        assert "knows this device as “laptop”, permissions: shell" in found.text("known")
        assert f"{server.url}{CHECK_PATH} answers" in found.text("server")
        there.done("revoke", laptop.identity.device_id, "--yes")
        assert device.doctor(server.url).problems() == {"known"}
        assert device.doctor(f"{server.url}/nowhere").text("known").startswith("There is no check address here (404)")
        with server.down():
            found = device.doctor(server.url)
            assert found.problems() == {"server"} and "Nothing listens" in found.text("server")
            assert found.status("clock") == found.status("known") == "skipped"
        assert "Traceback" not in server.output()


@pytest.mark.process
def test_a_server_asks_another_one(sqlite_database: dict[str, str], tmp_path: Path, liar: Told) -> None:
    """`manage.py amesh_doctor URL` signs with the identity of the server."""
    front_end = FrontEnd(tmp_path, sqlite_database)
    device = front_end.make()
    liar.knows(EphemeralDevice())
    found = front_end.doctor(liar.url)
    assert found.problems() == {"known"}
    written = EphemeralDevice()
    written.identity = device.identity
    liar.knows(written, friendlyName="backup")
    found = front_end.doctor(liar.url)
    assert found.code == 0 and "as “backup”, no further permissions" in found.text("known")
    liar.refuses(401, "unauthorized")
    assert "manage.py amesh_invite" in front_end.doctor(liar.url).text("known")


@pytest.mark.process
def test_the_shipped_project_offers_it(device: FrontEnd, tmp_path: Path) -> None:
    env = {"DJANGO_SETTINGS_MODULE": "relay_project.settings", "DJANGO_DATA_DIR": str(tmp_path / "data")}
    env |= {"AUTH_MESH_DIR": str(tmp_path / "there")}
    services.run([sys.executable, "manage.py", "migrate", "--verbosity=0"], env=env)
    services.run([sys.executable, "manage.py", "amesh_init", "--name", "there"], env=env)
    with services.serve(services.gunicorn("relay_project.wsgi:application"), env) as server:
        answer = httpx.get(f"{server.url}{CHECK_PATH}")
        assert (answer.status_code, answer.json()) == (400, {"error": "missing_header"})
        assert device.doctor(server.url).problems() == {"known"}


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ahead", "status", "text"),
    [
        (0, "ok", ""),
        (12, "ok", "behind"),
        (-12, "ok", "ahead of"),
        (25, "warning", "behind"),
        (-26, "warning", "ahead of"),
        (3600, "problem", "behind"),
        (-3600, "problem", "ahead of"),
    ],
)
def test_a_clock_that_is_off(liar: Told, ahead: int, status: str, text: str) -> None:
    liar.ahead = ahead
    found = examine(liar.url)["clock"]
    assert found.status == status and text in found.message, found
    if status != "ok":
        assert "NTP" in found.hint
    if abs(ahead) > 1000:
        seconds = re.search(r"clock is (\d+) s", found.message)
        assert seconds and abs(int(seconds[1]) - 3600) < 30


@pytest.mark.process
def test_a_clock_that_is_off_is_the_exit_code(device: FrontEnd, liar: Told) -> None:
    liar.ahead = 120
    liar.refuses(401, "timestamp_out_of_range")
    found = device.doctor(liar.url)
    assert found.code == 1 and found.problems() == {"clock", "known"}
    assert "knows this device" in found.text("known")


def test_a_server_without_a_date(liar: Told) -> None:
    liar.ahead = None
    assert examine(liar.url)["clock"].status == "skipped"
    device = EphemeralDevice()
    late = dt.datetime.fromtimestamp(time.time() - 600, dt.UTC).isoformat()
    liar.knows(device, time=late)
    found = examine(liar.url, device)
    assert found["clock"].status == "problem" and "ahead of" in found["clock"].message and found["known"].status == "ok"
    for odd in ("yesterday", "Thu, 99 Foo 2020 00:00:00 GMT"):
        liar.headers = {"Date": odd}
        assert examine(liar.url, device)["clock"].status == "problem"


# --- the way there ----------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_certificates(device: FrontEnd, certificate: Path) -> None:
    with told(certificate) as server:
        found = device.doctor(server.url)
        assert found.problems() == {"server"} and "is not trusted" in found.text("server")
        found = device.doctor(server.url, SSL_CERT_FILE=str(certificate))
        assert found.status("server") == "ok" and "its certificate is trusted" in found.text("server")
        found = device.doctor(server.url.replace("https", "http"))
        assert found.problems() == {"server"}
    with told() as plain:
        found = device.doctor(plain.url.replace("http", "https"))
        assert found.problems() == {"server"} and "http://" in found.text("server")


@pytest.mark.process
def test_what_never_answers(device: FrontEnd, liar: Told) -> None:
    liar.go_on.clear()
    found = device.doctor(liar.url, "--timeout", "0.3")
    assert found.problems() == {"server"} and "--timeout" in found.text("server")
    found = device.doctor("http://there-is-no-such-name.invalid")
    assert found.problems() == {"server"}


def test_what_never_ends(liar: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    liar.body = b"[" * 5_000_000
    assert examine(liar.url, EphemeralDevice())["known"].status == "problem"
    liar.body = b"[" * 60_000
    assert examine(liar.url, EphemeralDevice())["known"].status == "problem"


def test_no_tls_to_another_machine(monkeypatch: pytest.MonkeyPatch, liar: Told) -> None:
    port = liar.url.rpartition(":")[2]
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *words, **more: real("127.0.0.1", *words, **more))
    found = examine(f"http://server.example:{port}")
    assert found["server"].status == "warning" and "https" in found["server"].hint


@pytest.mark.process
def test_without_a_key_network_and_clock_are_looked_at(device: FrontEnd, liar: Told) -> None:
    found = device.doctor(liar.url, AUTH_MESH_PASSPHRASE="wrong")
    assert found.problems() == {"key-store"} and found.status("server") == found.status("clock") == "ok"
    assert found.status("known") == "skipped" and liar.authorization == [None]


@pytest.mark.process
def test_a_url_with_secrets(device: FrontEnd, liar: Told) -> None:
    url = liar.url.replace("//", "//user:hunter2@") + "/x?token=hunter3"
    found = device.doctor(url)
    assert "hunter" not in str(found.document) and liar.paths == ["/x?token=hunter3"]


def test_which_address_is_meant() -> None:
    for text, meant in {
        "https://a": f"https://a{CHECK_PATH}",
        "https://a/": f"https://a{CHECK_PATH}",
        "https://a/?x=1": f"https://a{CHECK_PATH}",
        "http://a:8000#b": f"http://a:8000{CHECK_PATH}",
        "https://a/amesh/check": "https://a/amesh/check",
        "https://a/b/": "https://a/b/",
    }.items():
        assert str(check_url(text)) == meant
    with pytest.raises(UsageProblem):
        check_url("a.example")


# --- what answers mean ------------------------------------------------------------------------------------------------


def every(base: type[RequestError] = RequestError) -> set[type[RequestError]]:
    return {base}.union(*(every(below) for below in base.__subclasses__()))


#: The errors of a signed request. Those of enrollment and rotation have addresses of their own.
CODES = {(error.status, error.code) for error in every() if error.__module__ == RequestError.__module__}


@pytest.mark.parametrize("code", sorted(CODES - {(401, "error")}))
def test_each_error_of_the_protocol_has_its_sentence(code: tuple[int, str]) -> None:
    message, hint = meaning(code[0], {}, {"error": code[1]}, own="am_x")
    assert message and hint and not message.startswith("Something else"), (code, message)


def test_a_database_that_is_down_is_no_manipulation() -> None:
    message, hint = meaning(503, {}, {"error": "allow_list_unavailable"}, own="am_x")
    assert "database" in message and "start the database" in str(hint)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (200, "no check address"),
        (204, "no check address"),
        (301, "redirects to https://elsewhere/"),
        (400, "ALLOWED_HOSTS"),
        (401, "credentials"),
        (403, "firewall"),
        (404, "amesh_django.urls"),
        (405, "no check address"),
        (500, "amesh_doctor"),
        (502, "proxy"),
        (503, "proxy"),
        (504, "proxy"),
        (599, "amesh_doctor"),
    ],
)
def test_each_status_has_its_sentence(liar: Told, status: int, text: str) -> None:
    liar.status, liar.body = status, b"" if status == 204 else b"<html>"
    liar.headers = {"Location": "https://elsewhere/"} if status == 301 else {}
    found = examine(liar.url, EphemeralDevice())["known"]
    assert found.status == "problem" and text in f"{found.message} {found.hint}"
    assert liar.paths == [CHECK_PATH], "no redirect is followed"


@pytest.mark.process
def test_a_server_does_not_steer_the_terminal(device: FrontEnd, liar: Told) -> None:
    known = EphemeralDevice("laptop")
    known.write(device.path)
    liar.knows(known, friendlyName=HOSTILE, permissions={HOSTILE: True})
    done = device.run("doctor", "--no-relay", liar.url)
    assert done.returncode == 0 and HOSTILE_SHOWN in done.stdout and "\x1b" not in done.stdout
    liar.status, liar.headers = 302, {"Location": "\x1b[2Jhttps://x/"}
    done = device.run("doctor", "--no-relay", liar.url)
    assert done.returncode == 1 and "\x1b" not in done.stdout + done.stderr


@pytest.mark.process
def test_a_name_that_can_be_none(device: FrontEnd) -> None:
    for host in ("a..b", "a" * 64 + ".invalid"):
        found = device.doctor(f"http://{host}")
        assert "There is no server with the name" in found.text("server")


@pytest.mark.process
@pytest.mark.parametrize(
    ("variable", "value", "scheme", "what"),
    [
        ("HTTP_PROXY", "http://127.0.0.1:1", "http", "The proxy on the way to 127.0.0.1 cannot be reached"),
        (
            "HTTPS_PROXY",
            "http://127.0.0.1:1",
            "https",
            "Correct HTTPS_PROXY or ALL_PROXY, or name the server in NO_PROXY",
        ),
        ("HTTP_PROXY", "::bad", "http", "is not a valid address"),
        ("ALL_PROXY", "ftp://127.0.0.1:1", "http", "is not a valid address"),
        ("ALL_PROXY", "socks5://127.0.0.1:1", "http", "SOCKS"),
        (
            "SSL_CERT_FILE",
            "/nowhere",
            "https",
            "The certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read",
        ),
    ],
)
@pytest.mark.unversioned  # it is about httpx, whose version is the same
def test_variables_that_are_in_the_way(
    device: FrontEnd, liar: Told, variable: str, value: str, scheme: str, what: str
) -> None:
    """The message blames the variable, not the server."""
    url = liar.url.replace("http:", f"{scheme}:")
    found = device.doctor(url, **{variable: value, "NO_PROXY": "", "no_proxy": ""})
    assert found.problems() == {"server"} and what in found.text("server")
    assert device.run("fetch", url, **{variable: value, "NO_PROXY": "", "no_proxy": ""}).returncode == 1


@pytest.mark.process
def test_no_part_of_a_proxy_s_password_is_shown(device: FrontEnd) -> None:
    for value in ("http://user:s3cr/et@h:1", "ftp://user:s3cret@h"):
        for words in (("fetch", "http://x.invalid/"), ("doctor", "--no-relay", "http://x.invalid/")):
            done = device.run(*words, ALL_PROXY=value, NO_PROXY="", no_proxy="")
            assert done.returncode == 1 and "is not a valid address" in done.stdout + done.stderr
            assert "s3cr" not in done.stdout + done.stderr


@pytest.mark.process
def test_it_works_beside_a_proxy_that_is_not_there(device: FrontEnd, liar: Told) -> None:
    found = device.doctor(liar.url, HTTP_PROXY="http://127.0.0.1:1", NO_PROXY="")
    assert found.problems() == {"server"}
    assert os.environ.get("HTTP_PROXY") != "http://127.0.0.1:1"
