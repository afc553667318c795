"""`python -m tests.interop.interop_sdk`: requests between the TypeScript SDK and this implementation, both ways, over real HTTP.

As `tests.interop.interop`, it is not part of `make test`. Give it the TypeScript command line, and the folder whose `node_modules` has
`@authmesh/sdk`, `@authmesh/core`, `@authmesh/keystore` and `express`; `--runtime` runs what uses them (`bun`, `node`):

    python -m tests.interop.interop_sdk --sdk . --runtime bun \\
        --cli "bun --define '__VERSION__=\\"0.7.0\\"' packages/cli/src/sea.ts"

Every client sends its cases to every server, theirs to theirs as well. What is known to be refused there (`refused`,
docs/compatibility.md) must be refused; all else must be accepted, and arrive as it was sent.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import requests

from authmesh.client import AmeshAuth, AmeshRequestsAuth, authorization_header
from authmesh.device import LocalDevice
from authmesh.protocol.key_line import build_key_line
from authmesh.protocol.keys import decode_public_key
from tests.interop.interop import OURS, SECONDS, THEIRS, Machine
from tests.support import databases, services
from tests.verification.wire import Caller, send

CLIENT = """
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { signMessage } from '@authmesh/core';
import { createForBackend } from '@authmesh/keystore';
import { amesh, AuthMeshClient } from '@authmesh/sdk';

const directory = process.env.AUTH_MESH_DIR;
const identity = JSON.parse(readFileSync(`${directory}/identity.json`, 'utf-8'));
const alias = identity.keyAlias ?? identity.deviceId;
const store = await createForBackend(identity.storageBackend, `${directory}/keys`, process.env.AUTH_MESH_PASSPHRASE);
const key = await store.loadPrivateKey(alias);  // once: its own sign() spends seconds on each signature
const keyStore = { sign: async (_, message) => signMessage(key, message) };
const client = new AuthMeshClient({ deviceId: alias, publicKeyBase64: identity.publicKey, keyStore });
const apis = { 'amesh.fetch': amesh, AuthMeshClient: client };
const made = {
  Uint8Array: (bytes) => new Uint8Array(bytes),
  ArrayBuffer: (bytes) => new Uint8Array(bytes).buffer,
  Buffer: (bytes) => bytes,
  Blob: (bytes) => new Blob([bytes]),
  stream: (bytes) => new Blob([bytes]).stream(),
  FormData: (bytes) => {
    const form = new FormData();
    form.set('a', bytes.toString());
    return form;
  },
};
const fetchUnsigned = globalThis.fetch;
let sent;
globalThis.fetch = (url, init) => {
  sent = init.headers.get('authorization');
  return fetchUnsigned(url, init);
};
for await (const line of createInterface({ input: process.stdin })) {
  const { api, url, method, headers, text, bytes, type } = JSON.parse(line);
  const body = bytes === undefined ? text : made[type](Buffer.from(bytes, 'base64'));
  const answer = await apis[api].fetch(url, { method, headers, body, duplex: 'half' });
  console.log(JSON.stringify({ status: answer.status, text: await answer.text(), sent }));
}
"""
SERVER = """
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import express from 'express';
import { AllowList, createForBackend } from '@authmesh/keystore';
import { amesh, authMeshVerify } from '@authmesh/sdk';

const directory = process.env.AUTH_MESH_DIR;
const identity = JSON.parse(readFileSync(`${directory}/identity.json`, 'utf-8'));
const store = await createForBackend(identity.storageBackend, `${directory}/keys`, process.env.AUTH_MESH_PASSPHRASE);
const secret = await store.getHmacKeyMaterial(identity.keyAlias ?? identity.deviceId);
const allowList = new AllowList(`${directory}/allow_list.json`, secret, identity.deviceId);
const limit = '2mb';
const keep = (request, _, raw) => { request.rawBody = raw; };
const before = {
  'authMeshVerify': [authMeshVerify({ allowList })],
  'json+rawBody authMeshVerify': [express.json({ limit, verify: keep }), authMeshVerify({ allowList })],
  'amesh.verify': [amesh.verify()],
  'text amesh.verify': [express.text({ limit, type: '*/*' }), amesh.verify()],
  'json amesh.verify': [express.json({ limit }), amesh.verify()],
  'mounted authMeshVerify': ['/door', authMeshVerify({ allowList })],
}[process.argv[2]];
const app = express();
app.use(...before);
app.use((request, response) => {
  const url = new URL(request.originalUrl, 'http://localhost');
  if (url.pathname === '/moved') return response.redirect('/here');
  const raw = request.rawBody ?? request.body ?? '';
  const parsed = typeof raw === 'object' && !Buffer.isBuffer(raw);
  const query = {};
  for (const [name, value] of url.searchParams) (query[name] ??= []).push(value);
  response.json({
    device: request.authMesh && { id: request.authMesh.deviceId },
    method: request.method,
    path: decodeURIComponent(url.pathname),
    query,
    body: parsed ? undefined : { sha256: createHash('sha256').update(raw).digest('hex') },
  });
});
const server = app.listen(Number(process.argv[3]), '127.0.0.1');
server.keepAliveTimeout = 600_000;  // a client that computes Argon2id for seconds must not find its connection closed
"""
#: Theirs as it stands in their README and guide, and without anything before it.
THEIR_SERVERS = (
    "authMeshVerify",
    "json+rawBody authMeshVerify",
    "amesh.verify",
    "text amesh.verify",
    "json amesh.verify",
)
#: Express takes off the path where it is mounted, before it hashes the path: nobody can be let in.
MOUNTED = "mounted authMeshVerify"
OUR_DOORS = ("/middleware/sync", "/decorator/sync", "/drf")


@dataclass(frozen=True)
class Case:
    """One request. A body that is `bytes` goes into their client as an object of `type`."""

    name: str
    method: str = "GET"
    #: What follows the address of the view, as a person types it.
    rest: str = ""
    body: str | bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    type: str = "Uint8Array"

    @property
    def raw(self) -> bytes:
        return self.body.encode() if isinstance(self.body, str) else self.body or b""


JSON = {"Content-Type": "application/json"}
TEXT = {"Content-Type": "text/plain"}
BINARY = {"Content-Type": "application/octet-stream"}
MEGABYTE = 1 << 20
BODIES = ("Uint8Array", "ArrayBuffer", "Blob", "FormData", "stream")
CASES = (
    Case("plain"),
    Case("trailing slash", rest="/a/"),
    Case("repeated names", rest="?b=3&a=2&b=1&a=10&a="),
    Case("encoded query", rest="?n=K%C3%A4the&plus=%2B&space=%20&percent=%25&and=%26&is=%3D"),
    Case("lower-case hex", rest="/k%c3%a4the?n=k%c3%a4the"),
    Case("plus", rest="/a+b?c=d+e"),
    Case("unicode as typed", rest="/käthe/☃/📱?n=Käthe&☃=1&📱=2&\uffee=3"),
    Case("space as typed", rest="/a b?c=d e"),
    Case("empty query", rest="?"),
    Case("nameless", rest="?=1&&x"),
    Case("question marks", rest="?a=b?c&d=?"),
    Case("encoded slash", rest="/a%2Fb"),
    Case("two slashes", rest="/a//b"),
    Case("needless quoting", rest="/%41%7E~?%61=%7E~"),
    Case("sub-delims", rest="/!$&'()*+,;=:@?a='!$()*,;:@/'"),
    Case("quotes as typed", rest='/a<b>"c"?d=<e>"f"'),
    Case("braces and bars as typed", rest="/{a}|`b?c={d}|`"),
    Case("brackets as typed", rest="/[a]?b[]=1&b[c]=2"),
    Case("a caret as typed", rest="/a^b?c=d^e"),
    Case("a fragment", rest="?a=1#part"),
    Case("not UTF-8", rest="?a=%FF%C3"),
    Case("JSON", "POST", body='{"n": [1, 2.50, 1e3], "name": "Käthe",\n "t": "\\u0041"}', headers=JSON),
    Case("compact JSON", "POST", body='{"a":1,"name":"Käthe","list":[true,null]}', headers=JSON),
    Case("no body", "POST"),
    Case("empty body", "POST", body="", headers=TEXT),
    Case("text", "POST", rest="?a=1", body="Käthe ☃ 📱\r\n\x00", headers=TEXT),
    Case("1 MB of text", "POST", body="Kät\n" * (MEGABYTE // 5), headers=TEXT),
    Case("1 MB of bytes", "POST", body=bytes(range(256)) * (MEGABYTE // 256), headers=BINARY),
    *(Case(name, "PUT", body=b"abc", headers=BINARY, type=name) for name in BODIES),
    Case("a Buffer of UTF-8", "PUT", body="Käthe".encode(), headers=BINARY, type="Buffer"),
    Case("PUT", "PUT", rest="/1", body='{"a":2}', headers=JSON),
    Case("DELETE", "DELETE", rest="/1?force=1"),
    Case("DELETE with a body", "DELETE", rest="/1", body='{"why":"lost"}', headers=JSON),
    Case("PATCH", "PATCH", body="x", headers=TEXT),
)
#: These derive their key anew for each request.
SLOW = (f"{OURS} amesh fetch", f"{THEIRS} amesh.fetch")


@dataclass(frozen=True)
class Got:
    """What came back, and the signature where the client tells which one it sent."""

    status: int
    text: str
    sent: str = ""


Client = Callable[[str, Case], Got]


def refused(client: str, server: str, case: Case) -> bool | None:
    """True for what theirs cannot do, no matter who is on the other side; None for what depends on its runtime."""
    if client.startswith(THEIRS) and isinstance(case.body, bytes) and case.type != "Buffer":
        return True  # it signs the text that String() makes of it, such as "97,98,99"
    if case.name == "a caret as typed" and server.startswith(THEIRS) and client in (f"{OURS} httpx", SLOW[0]):
        return (
            None  # it hashes the path as a URL parser writes it; the newer ones write ^ as %5E, httpx sends it as it is
        )
    if server.endswith("amesh.verify"):  # it hashes a body that was decoded, or parsed and written again
        return case.name == "1 MB of bytes" or (case.name == "JSON" and "json " in server)
    return False


def problem(client: str, server: str, url: str, case: Case, got: Got, device_id: str) -> str | None:
    """What is wrong with an answer."""
    if (known := refused(client, server, case)) or (known is None and got.status == 401):
        return None if got.status == 401 else f"{got.status}, but it is known to be refused"
    if got.status != 200:
        return f"{got.status} {got.text[:200]}"
    saw = json.loads(got.text)
    parts = urlsplit(url)
    wanted: dict[str, Any] = {
        "method": case.method,
        "path": unquote(parts.path),
        "query": parse_qs(parts.query, keep_blank_values=True, errors="replace"),
    }
    found = {name: saw[name] for name in wanted}
    if saw.get("body"):
        wanted["sha256"], found["sha256"] = hashlib.sha256(case.raw).hexdigest(), saw["body"]["sha256"]
    if saw["device"]["id"] != device_id:
        return f"signed by {saw['device']}"
    return None if found == wanted else f"arrived as {found}, was {wanted}"


@contextmanager
def their_clients(command: Sequence[str], machine: Machine) -> Iterator[dict[str, Client]]:
    """Both of the SDK's clients, in one process."""
    with subprocess.Popen(
        command, env={**os.environ, **sdk_env(machine)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        tell, hear = process.stdin, process.stdout

        def client(api: str) -> Client:
            def ask(url: str, case: Case) -> Got:
                asked: dict[str, Any] = {"api": api, "url": url, "method": case.method, "headers": {**case.headers}}
                if isinstance(case.body, bytes):
                    asked |= {"bytes": base64.b64encode(case.body).decode(), "type": case.type}
                elif case.body is not None:
                    asked["text"] = case.body
                tell.write(json.dumps(asked) + "\n")
                tell.flush()
                return Got(**json.loads(hear.readline() or '{"status": 0, "text": "the client ended"}'))

            return ask

        yield {f"{THEIRS} {api}": client(api) for api in ("amesh.fetch", "AuthMeshClient")}
        tell.close()


@contextmanager
def our_clients(machine: Machine) -> Iterator[dict[str, Client]]:
    """AmeshAuth, AmeshRequestsAuth, and `amesh fetch` as a process."""
    device = LocalDevice(machine.path)
    cli = Machine(OURS, [sys.executable, "-m", "authmesh"], machine.path)
    with (
        httpx.Client(auth=AmeshAuth(device), follow_redirects=True, timeout=SECONDS) as by_httpx,
        requests.Session() as by_requests,
    ):
        by_requests.auth = AmeshRequestsAuth(device)

        def ask_httpx(url: str, case: Case) -> Got:
            got = by_httpx.request(case.method, url, content=case.body, headers=case.headers)
            return Got(got.status_code, got.text, got.request.headers["Authorization"])

        def ask_requests(url: str, case: Case) -> Got:
            got = by_requests.request(case.method, url, data=case.body, headers=case.headers, timeout=SECONDS)
            return Got(got.status_code, got.text, got.request.headers["Authorization"])

        def ask_cli(url: str, case: Case) -> Got:
            words = [word for name, value in case.headers.items() for word in ("-H", f"{name}: {value}")]
            with tempfile.NamedTemporaryFile() as file:
                file.write(case.raw)
                file.flush()
                body = [] if case.body is None else ["-d", f"@{file.name}"]
                options = ["-L", "-X", case.method, "--timeout", str(SECONDS), *words, *body]
                got = json.loads(cli.run("fetch", url, *options, "--json"))
            return Got(got["status"], got["body"])

        yield {
            f"{OURS} httpx": ask_httpx,
            f"{OURS} requests": ask_requests,
            f"{OURS} amesh fetch": ask_cli,
        }


def sdk_env(machine: Machine) -> dict[str, str]:
    """The SDK asks the environment for the passphrase, its command line the file."""
    return {**machine.env, "AUTH_MESH_PASSPHRASE": (machine.path / ".passphrase").read_text("utf-8").strip()}


@contextmanager
def their_server(runtime: Sequence[str], script: Path, kind: str, machine: Machine) -> Iterator[str]:
    with services.serve([*runtime, str(script), kind, "{port}"], env=sdk_env(machine)) as server:
        yield server.url


@dataclass
class Django:
    """Our project under gunicorn; its list is in a database."""

    machine: Machine
    folder: Path

    def __post_init__(self) -> None:
        database = databases.sqlite(self.folder / "db.sqlite3")
        databases.migrate(database)
        self.env = {
            "DJANGO_SETTINGS_MODULE": "tests.verification.wire_settings",
            "TEST_AMESH_DIR": str(self.machine.path),
            **databases.environment(database),
        }

    def command(self, *words: str) -> str:
        return services.run([sys.executable, "-m", "django", *words], env=self.env)

    @contextmanager
    def serve(self) -> Iterator[str]:
        with services.serve(services.gunicorn(), self.env) as server:
            yield server.url


def line_of(machine: Machine) -> str:
    """What export-key prints; the TypeScript command line has no such command."""
    identity = json.loads((machine.path / "identity.json").read_text("utf-8"))
    return build_key_line(decode_public_key(identity["publicKey"]), identity["friendlyName"])


class Report:
    """Lines on stdout, and how many of them are failures."""

    failures = 0

    def check(self, what: str, ok: bool, why: object = "") -> None:
        self.failures += not ok
        print(f"{what}: {'OK' if ok else f'FAILED {why}'}", flush=True)

    def cases(self, client: str, ask: Client, server: str, base: str, device_id: str) -> None:
        """The cases, and a replay."""
        cases = CASES[::4] if client in SLOW else CASES
        wrong = {
            case.name: why
            for case in cases
            if (why := problem(client, server, base + case.rest, case, ask(base + case.rest, case), device_id))
        }
        known = [case.name for case in cases if refused(client, server, case)]
        self.check(
            f"{client} → {server}, {len(cases)} cases, refused as known: {', '.join(known) or 'none'}", not wrong
        )
        for name, why in wrong.items():
            print(f"    {name}: {why}")
        first = ask(base + "/replay", CASES[0])
        if first.sent:
            url = httpx.URL(base + "/replay")
            again = services.Server((), url.port or 0, Path())
            status = send(again, "GET", url.path, {"Authorization": first.sent}).status
            self.check(f"{client} → {server}, replayed", (first.status, status) == (200, 401), (first.status, status))


def errors(url: str, device: LocalDevice) -> dict[str, tuple[int, str]]:
    """Status and code for requests that nobody lets in."""
    target, late = urlsplit(url).path, time.time() - 120
    stranger = Caller("stranger")
    headers = {
        "no header": None,
        "another scheme": "Bearer x",
        "no members": "AuthMesh x",
        "version 2": stranger.header("GET", target, shown={"v": "2"}),
        "a stranger": stranger.header("GET", target),
        "another path": authorization_header("GET", target + "x", device=device),
        "another body": authorization_header("GET", target, b"x", device=device),
        "a clock that is off": authorization_header("GET", target, device=device, now=late),
    }
    found = {}
    for name, value in headers.items():
        got = httpx.get(url, headers={"Authorization": value} if value else {}, timeout=SECONDS)
        found[name] = (got.status_code, got.json()["error"])
    return found


UNAUTHORIZED = (401, "unauthorized")
ERRORS = {
    "no header": (400, "missing_header"),
    "another scheme": (400, "malformed_header"),
    "no members": (400, "malformed_header"),
    "version 2": (400, "unsupported_version"),
    "a stranger": UNAUTHORIZED,
    "another path": UNAUTHORIZED,
    "another body": UNAUTHORIZED,
    "a clock that is off": UNAUTHORIZED,
}


def plain(ask: Client, url: str) -> int:
    return ask(url, CASES[0]).status


def revoke_there(machine: Machine, device_id: str) -> None:
    """Their command line asks at a terminal."""
    with machine.at_terminal("revoke", device_id) as here:
        here.expect("(y/N): ")
        here.type("y\n")
        assert here.end() == 0, here.shown


def both(machine: Machine, commands: Mapping[str, list[str]]) -> dict[str, Machine]:
    """The same directory in the hands of each implementation."""
    return {kind: Machine(kind, commands[kind], machine.path) for kind in (OURS, THEIRS)}


def their_servers(
    report: Report, runtime: Sequence[str], folder: Path, server: Machine, client: Machine, commands: Any
) -> None:
    """Each client to each of their servers, and the list of theirs edited by either while they run."""
    hands = both(server, commands)
    report.check("    its list begins empty for both", hands[THEIRS].peers() == hands[OURS].peers() == [])
    hands[OURS].run("trust", line_of(client), "--role", "controller", "--yes")
    trusted = [(client.device_id, "controller")]
    report.check("    trusted by ours, seen by theirs", hands[THEIRS].peers() == trusted)
    with ExitStack() as stack:
        clients = stack.enter_context(our_clients(client))
        clients |= stack.enter_context(their_clients([*runtime, str(folder / "client.mjs")], client))
        for number, kind in enumerate(THEIR_SERVERS):
            url = stack.enter_context(their_server(runtime, folder / "server.mjs", kind, server))
            for name, ask in clients.items():
                if number == 0 or name not in SLOW:
                    report.cases(name, ask, f"{THEIRS} {kind}", url + "/door", client.device_id)
            found = errors(url + "/door", LocalDevice(client.path))
            report.check(f"    {THEIRS} {kind}, errors", found == ERRORS, found)
            if number == 0:
                first = url
        mounted = stack.enter_context(their_server(runtime, folder / "server.mjs", MOUNTED, server))
        for name, ask in clients.items():
            report.check(f"{name} → {THEIRS} {MOUNTED}, refused", plain(ask, mounted + "/door") == 401)
            followed, wanted = plain(ask, first + "/moved"), 200 if name.startswith(OURS) else 401
            report.check(f"{name} → {THEIRS}, redirected: {followed}", followed == wanted)
        ask = clients[f"{OURS} httpx"]
        hands[OURS].run("revoke", client.device_id, "--yes")
        report.check("    revoked by ours, refused by theirs", plain(ask, first) == 401 and not hands[THEIRS].peers())
        hands[OURS].run("trust", line_of(client), "--role", "controller", "--yes")
        report.check("    trusted again", plain(ask, first) == 200 and hands[THEIRS].peers() == trusted)
        revoke_there(hands[THEIRS], client.device_id)
        report.check("    revoked by theirs, seen by ours", plain(ask, first) == 401 and not hands[OURS].peers())
        hands[OURS].run("trust", line_of(client), "--role", "target", "--yes")
        report.check("    a target is refused", plain(ask, first) == 401 and len(hands[THEIRS].peers()) == 1)
        path = server.path / "allow_list.json"
        path.write_text(path.read_text("utf-8").replace('"target"', '"controller"'), "utf-8")
        broken = httpx.get(first, auth=AmeshAuth(LocalDevice(client.path)), timeout=SECONDS)
        report.check(f"    a broken seal: {broken.status_code} {broken.text}", broken.status_code == 500)


def our_server(report: Report, runtime: Sequence[str], folder: Path, server: Machine, client: Machine) -> None:
    """Each client to each of our doors."""
    django = Django(server, server.path.parent)
    django.command("amesh_trust", line_of(client), "--role", "controller", "--yes")
    with ExitStack() as stack:
        url = stack.enter_context(django.serve())
        clients = stack.enter_context(our_clients(client))
        clients |= stack.enter_context(their_clients([*runtime, str(folder / "client.mjs")], client))
        for number, door in enumerate(OUR_DOORS):
            for name, ask in clients.items():
                if number == 0 or name not in SLOW:
                    report.cases(name, ask, f"{OURS} {door}", url + door, client.device_id)
        for name, ask in clients.items():
            followed, wanted = plain(ask, url + "/middleware/moved"), 200 if name.startswith(OURS) else 401
            report.check(f"{name} → {OURS}, redirected: {followed}", followed == wanted)
        found = errors(url + OUR_DOORS[0], LocalDevice(client.path))
        ours = {**ERRORS, "a clock that is off": (401, "timestamp_out_of_range")}
        report.check(f"    {OURS}, errors", found == ours, found)
        django.command("amesh_revoke", client.device_id, "--yes")
        for name, ask in clients.items():
            statuses = [plain(ask, url + door) for door in OUR_DOORS]
            report.check(f"{name} → {OURS}, revoked", statuses == [401] * len(OUR_DOORS), statuses)


def main() -> int:
    """Print a line for each client and server; the exit code is 1 if something is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.interop.interop_sdk", description=__doc__)
    parser.add_argument("--cli", required=True, type=shlex.split, help="command that is the TypeScript command line")
    parser.add_argument("--sdk", required=True, type=Path, help="folder whose node_modules has the SDK and express")
    parser.add_argument("--runtime", default=["bun"], type=shlex.split, help="command that runs a script; bun")
    arguments = parser.parse_args()
    commands = {OURS: [sys.executable, "-m", "authmesh"], THEIRS: arguments.cli}
    report = Report()
    for made, other in ((OURS, THEIRS), (THEIRS, OURS)):
        with tempfile.TemporaryDirectory(prefix="amesh-interop-") as name:
            folder = Path(name)
            (folder / "node_modules").symlink_to((arguments.sdk / "node_modules").resolve())
            (folder / "client.mjs").write_text(CLIENT, "utf-8")
            (folder / "server.mjs").write_text(SERVER, "utf-8")
            print(f"--- servers' directories made by {made}, the client's by {other}", flush=True)
            machines = {
                role: Machine(kind, commands[kind], folder / role / "amesh")
                for role, kind in (("django", made), ("express", made), ("client", other))
            }
            for role, machine in machines.items():
                machine.path.parent.mkdir()
                machine.init(role)
                for hand in both(machine, commands).values():
                    assert machine.device_id in hand.run("list")
                ours = both(machine, commands)[OURS]
                ours.run("sign-test")
                ours.run("doctor", "--no-relay")
            report.check("list by both; sign-test and doctor by ours", True)
            our_server(report, arguments.runtime, folder, machines["django"], machines["client"])
            their_servers(report, arguments.runtime, folder, machines["express"], machines["client"], commands)
    return bool(report.failures)


if __name__ == "__main__":
    os.environ.setdefault("NO_COLOR", "1")
    sys.exit(main())
