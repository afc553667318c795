"""The documents are true: their examples run, the names in them exist, and their links work."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands, load_command_class

from amesh_django.conf import AmeshSettings
from amesh_django.relay.conf import RelaySettings
from amesh_django.test import plugin
from amesh_django.test.devices import EphemeralDevice
from authmesh.commands.app import parsers
from authmesh.protocol import device_id
from authmesh.protocol.errors import AmeshError
from authmesh.protocol.key_line import parse_key_line
from tests.support import services
from tests.support.documents import DOCUMENTS, PLANS, Stage, anchors, blocks, prose
from tests.support.services import ROOT

pytestmark = pytest.mark.process

PLAYED = {"README.md", "docs/guide.md", "docs/integration.md"}
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCE = {
    ".".join(path.relative_to(base).with_suffix("").parts): path.read_text()
    for base, package in ((ROOT, "amesh_django"), (ROOT / "cli", "authmesh"), (ROOT, "relay_project"))
    for path in (base / package).rglob("*.py")
}
AMESH, COMMANDS = parsers()
#: Names that begin like a command and are not one: packages (one of which is gone), and tables.
PACKAGES = {"amesh_django", "amesh_device", "amesh_cli"}
#: Names of metrics, which look like commands of `manage.py`.
METRICS = {
    f"{name}{ending}"
    for module in ("metrics.py", "relay/reports.py")
    for name in re.findall(r'"(amesh_[a-z_]+)"', (ROOT / "amesh_django" / module).read_text())
    for ending in ("", "_total")
}
#: Names of loggers. They look like modules, and stay when a module moves.
LOGGERS = set(re.findall(r"""getLogger\(["']([\w.]+)["']\)""", "\n".join(SOURCE.values())))


def text(name: str) -> str:
    return (ROOT / name).read_text()


# --- examples run --------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def _programs() -> None:
    """Require the programs that the documents call in addition to ours."""
    for name in ("curl", "openssl"):
        services.program(name, package=name)


def new_project(stage: Stage, machine: str = "server") -> None:
    stage.execute(machine, "django-admin startproject mysite .")


@pytest.mark.long
@pytest.mark.unversioned  # the integration guide plays the same commands in a project of its own
def test_the_readme(tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:
        new_project(stage)
        for block in blocks(ROOT / "README.md"):
            stage.play(block)


@pytest.mark.long
@pytest.mark.unversioned  # the other guide plays its first five sections too
def test_the_guide(tmp_path: Path, redis: services.Redis) -> None:
    with Stage(tmp_path, {"6379": redis.port}, forked=True) as stage:
        new_project(stage)
        new_project(stage, "api")
        for block in blocks(ROOT / "docs" / "guide.md"):
            stage.play(block)


@pytest.mark.long
def test_the_integration_guide(tmp_path: Path) -> None:
    with Stage(tmp_path, forked=True) as stage:
        new_project(stage)
        new_project(stage, "desk")
        for block in blocks(ROOT / "docs" / "guide.md"):
            if block.section[:2] in ("1.", "2.", "3.", "4.", "5."):
                stage.play(block)
        for block in blocks(ROOT / "docs" / "integration.md"):
            stage.play(block)


def test_examples_of_settings(tmp_path: Path) -> None:
    found = [block for block in blocks(ROOT / "docs" / "settings.md") if block.kind == "settings"]
    assert found
    for block in found:
        Stage(tmp_path).play(block)


def test_the_session_in_the_python_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    EphemeralDevice("laptop").write(tmp_path / "amesh")
    monkeypatch.setenv("AMESH_DIR", str(tmp_path / "amesh"))
    page = ROOT / "docs" / "repl.md"
    session = "\n".join(block.text for block in blocks(page) if block.kind == "repl")
    examples = doctest.DocTestParser().get_doctest(session, {}, page.name, str(page), 0)
    assert len(examples.examples) > 25
    report: list[str] = []
    failed = doctest.DocTestRunner().run(examples, out=report.append).failed
    assert not failed, "".join(report)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_is_run_or_says_why_not(path: Path) -> None:
    for block in blocks(path):
        if str(path.relative_to(ROOT)) in PLAYED:
            assert block.kind, f"{block} has no comment above it that says how it is run"
        else:
            assert block.kind in ("settings", "repl", "not run"), f"{block} is in a document that no test plays"
        assert block.kind != "not run" or len(block.words) > 5, f"{block} does not say why it is not run"


def test_a_wrong_document_is_noticed(tmp_path: Path) -> None:
    """The stage fails if an output is missing, an exit code differs, or a block has no comment."""
    path = tmp_path / "wrong.md"
    for marker, body in {
        "run: here": "$ echo one\ntwo",
        "run: here, exit 1": "$ true",
        "python: here": "raise SystemExit(3)",
        "run": "$ true",
        "": "$ true",
    }.items():
        path.write_text(f"<!-- {marker} -->\n```console\n{body}\n```\n" if marker else f"```console\n{body}\n```\n")
        with Stage(tmp_path / re.sub(r"\W", "", marker)) as stage, pytest.raises(AssertionError):
            for block in blocks(path, root=tmp_path):
                stage.play(block)
    path.write_text("<!-- run: here -->\n```console\n$ echo am_0123456789abcdef; echo am_0123456789abcdef\n"
                    "am_AAAAAAAAAAAAAAAA\nam_AAAAAAAAAAAAAAAA\n```\n")  # fmt: skip
    with Stage(tmp_path / "right") as stage:
        stage.play(blocks(path, root=tmp_path)[0])


# --- names exist ---------------------------------------------------------------------------------------------------


def code(path: Path) -> Iterator[str]:
    """Yield the command lines and the inline code of a document."""
    for block in blocks(path):
        yield from (command for command, _ in block.commands)
    yield from (match[1] for match in re.finditer(r"`([^`\n]+)`", prose(path)))


def words(line: str) -> list[str]:
    """Return the words of a command, up to the beginning of the next command."""
    line = re.split(r"[|;&)]|\s#|\"$", line)[0]
    try:
        return shlex.split(line)
    except ValueError:  # cut inside of quotes
        return line.split()


def manage_options(name: str) -> set[str]:
    command = load_command_class(get_commands()[name], name)
    return set(command.create_parser("manage.py", name)._option_string_actions)


def amesh_options(name: str | None = None) -> set[str]:
    return set((COMMANDS[name] if name else AMESH)._option_string_actions)


def check_options(line: str, given: list[str], known: set[str]) -> None:
    for word in given:
        if re.match(r"--?[a-zA-Z]", word):
            assert word.partition("=")[0] in known, f"`{line}`: there is no option {word}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_options_exist(path: Path) -> None:
    for line in code(path):
        for match in re.finditer(r"manage\.py (\S.*)", line):
            name, *given = words(match[1])
            if name == "amesh_*":
                continue
            assert name in get_commands(), f"`{line}`: there is no command {name}"
            check_options(line, given, manage_options(name))
        for match in re.finditer(r"(?:^|(?<=[\s(|]))(?<!migrate )amesh (\S.*)", line):
            given = words(match[1])
            if given[0] == "--dir":
                given = given[2:] or ["list"]
            assert given[0] in COMMANDS, f"`{line}`: there is no command {given[0]}"
            check_options(line, given[1:], amesh_options(given[0]) | amesh_options())
        if bare := re.match(r"(amesh_[a-z_]+)(?: (--.*))?$", line):
            fixture = hasattr(plugin, bare[1])
            assert bare[1] in PACKAGES | METRICS or fixture or bare[1] in get_commands(), (
                f"`{line}`: there is no {bare[1]}"
            )
            if bare[2]:
                check_options(line, words(bare[2]), manage_options(bare[1]))
        if short := re.match(r"([a-z-]+) (--[a-z0-9-]+)", line):
            if short[1] in COMMANDS:
                check_options(line, [short[2]], amesh_options(short[1]))


def test_the_guide_names_every_command() -> None:
    guide = text("docs/guide.md")
    ours = {name for name, app in get_commands().items() if app == "amesh_django"}
    missing = {f"`amesh {name}`" for name in COMMANDS} | {f"`{name}`" for name in ours}
    missing = {name for name in missing if name not in guide}
    assert not missing, f"docs/guide.md, Commands: {missing}"


def test_every_setting_is_documented_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| `([^`]*)`", text("docs/settings.md"), re.MULTILINE))
    known = (*fields(AmeshSettings), *fields(RelaySettings))
    assert rows == {field.name: repr(field.default).replace("'", '"') for field in known}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_settings_that_are_named_exist(path: Path) -> None:
    known = {field.name for field in fields(AmeshSettings)}
    named = set(re.findall(r"""AMESH\[["'](\w+)["']\]""", path.read_text()))
    assert named <= known, f"{path.name} names {named - known}"


def test_every_system_check_is_documented() -> None:
    checks = "\n".join(source for name, source in SOURCE.items() if name.startswith("amesh_django.checks."))
    known = set(re.findall(r"amesh\.[EW]\d{3}", checks))
    assert set(re.findall(r"^\| `(amesh\.[EW]\d{3})`", text("docs/settings.md"), re.MULTILINE)) == known
    for path in DOCUMENTS:
        assert set(re.findall(r"amesh\.[EW]\d{3}", path.read_text())) <= known, path.name


def every_error(base: type[AmeshError] = AmeshError) -> set[type[AmeshError]]:
    return {base}.union(*(every_error(below) for below in base.__subclasses__()))


def test_every_error_and_reason_is_in_troubleshooting() -> None:
    page = text("docs/troubleshooting.md")
    for name in [name for name, source in SOURCE.items() if "(AmeshError)" in source]:
        importlib.import_module(name)
    codes = {error.code for error in every_error()}
    found = re.findall(r"""reason=f?["']([a-z]+_[a-z_]+)""", "\n".join(SOURCE.values()))
    reasons = {*found, "clock_drift_warning", "user_inactive"}
    missing = {name for name in codes | reasons if not re.search(rf"`{name}\b", page)}
    assert not missing, f"docs/troubleshooting.md has no `{'`, `'.join(sorted(missing))}`"
    table = {(int(status), code) for status, code in re.findall(r"^\| (\d{3}) \| `(\w+)` \|", page, re.MULTILINE)}
    assert table == {
        (error.status, error.code) for error in every_error() if error.status and error.__name__ != "RequestError"
    }


def strings(name: str, source: str) -> str:
    """Return the literals of a module as text, one on each line. Literals that Python joins are one."""
    constants = (node.value for node in ast.walk(ast.parse(source, name)) if isinstance(node, ast.Constant))
    texts = (value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in constants)
    return "\n".join(" ".join(value.split()) for value in texts)


#: Tables of docs/troubleshooting.md that quote messages, by heading and by the title of the column.
QUOTING = [
    ("What doctor finds", "`known` says"),
    ("Other lines in the log", "Line"),
    ("The relay", "Line"),
    ("The relay", "Message"),
    ("Keys in a TPM", "Message"),
    ("Keys on a Mac", "Message"),
    ("Errors of the client library", "Error"),
]


@pytest.mark.parametrize(("heading", "column"), QUOTING, ids=[" ".join(pair) for pair in QUOTING])
def test_messages_that_troubleshooting_quotes_exist(heading: str, column: str) -> None:
    """Each piece of a quotation, between its ellipses, is in a string of the source."""
    known = "\n".join(strings(name, source) for name, source in SOURCE.items())
    page = re.split(r"^## ", text("docs/troubleshooting.md"), flags=re.MULTILINE)
    (section,) = (part for part in page if part.startswith(f"{heading}\n"))
    tables = re.findall(rf"^\| {re.escape(column)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", section, re.MULTILINE)
    cells = [line.split(" | ")[0].removeprefix("| ") for table in tables for line in table.splitlines()]
    assert cells
    quoted = [quote for cell in cells for quote in re.findall(r"`([^`]+)`", cell) or [cell]]
    pieces = {
        piece.strip(" .,;:()[]-") for quote in quoted for piece in re.split(r"…|(?<=\d), (?=errSec)|NUMBER", quote)
    }
    missing = {piece for piece in pieces if len(piece) > 3 and piece not in known}
    assert not missing, f"docs/troubleshooting.md, {heading}: nothing says {missing}"


def look_up(dotted: str) -> Any:
    """Return what a dotted name means: a module, or an attribute of one.

    Raises:
        AttributeError: nothing has that name.
    """
    module, rest = dotted, list[str]()
    while True:
        try:
            found: Any = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
    for name in rest:
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("path", (*DOCUMENTS, *PLANS), ids=lambda path: path.name)
def test_names_of_python_exist(path: Path) -> None:
    page = prose(path)
    if path.name == "CHANGELOG.md":  # the first column of its table has the paths that are gone
        page = re.sub(r"^\|[^|\n]*\|", "", page, flags=re.MULTILINE)
    for dotted in sorted(set(re.findall(r"`((?:amesh_django|authmesh)(?:\.\w+)+)(?:\(\))?`", page)) - LOGGERS):
        try:
            look_up(dotted)
        except AttributeError:
            pytest.fail(f"{path.name}: there is no {dotted}")


def moved() -> Iterator[tuple[str, str]]:
    """Yield each row of the table of moved paths in CHANGELOG.md: the old and the new column."""
    page = text("CHANGELOG.md").partition("| Old | New |\n|---|---|\n")[2].partition("\n\n")[0]
    yield from re.findall(r"^\| (.+) \| (.+) \|$", page, re.MULTILINE)


def paths(column: str) -> Iterator[str]:
    """Yield the dotted paths of a column. A path that begins with a dot stands beside the module before it."""
    before = ""
    for name in re.findall(r"`([\w.]+)`", column):
        if name.startswith("."):
            beside = before if exists(before + name) else before.rpartition(".")[0]
            before = beside + name
            yield before
        elif "." in name or name == "authmesh":
            before = name
            yield name


def exists(dotted: str) -> bool:
    try:
        look_up(dotted)
    except AttributeError:
        return False
    return True


def test_the_new_paths_of_the_changelog_exist() -> None:
    rows = list(moved())
    assert len(rows) > 25
    missing = {name for _, new in rows for name in paths(new) if not exists(name)}
    assert not missing


def test_the_api_lists_what_is_public() -> None:
    """Each table of docs/api.md has exactly the names of the module's ``__all__``."""
    sections = re.split(r"^## `([\w.]+)`$", text("docs/api.md"), flags=re.MULTILINE)[1:]
    listed = dict(zip(sections[::2], sections[1::2], strict=True))
    assert {"authmesh", "amesh_django.drf", "amesh_django.middleware", "amesh_django.decorators"} <= set(listed)
    for module, section in listed.items():
        names = set(re.findall(r"^\| `(\w+)", section, re.MULTILINE))
        assert names == set(importlib.import_module(module).__all__), f"docs/api.md, {module}"
        for name in names:
            look_up(f"{module}.{name}")


def rooms(contract: str) -> set[str]:
    """Return the rooms of a package that exist, from its contract in pyproject.toml."""
    contracts = tomllib.loads(text("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    (layers,) = (one["layers"] for one in contracts if one["id"] == contract)
    return {layer for layer in layers if not layer.startswith("(")}


@pytest.mark.parametrize("name", ["docs/design.md", "CONTRIBUTING.md"])
def test_the_pictures_have_every_room(name: str) -> None:
    pictures = "\n".join(re.findall(r"^ {4}.*$", text(name), re.MULTILINE))
    device, app = (set(re.findall(r"\w+", part)) for part in split_pictures(pictures))
    assert rooms("device") <= device
    assert rooms("app") <= app


def split_pictures(pictures: str) -> tuple[str, str]:
    """Return what a picture shows of authmesh, and of amesh_django."""
    parts = re.split(r"^ {4}(?=\S)", pictures, flags=re.MULTILINE)
    device = "".join(part for part in parts if part.removeprefix("cli/").startswith("authmesh"))
    return device, "".join(part for part in parts if part.startswith("amesh_django"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_variables_extras_and_targets_exist(path: Path) -> None:
    page = path.read_text()
    for name in set(re.findall(r"\b(?:AUTH_MESH|AMESH)_[A-Z_]+\b", page)):
        assert any(f'"{name}"' in source for source in SOURCE.values()), f"{path.name}: nothing reads {name}"
    for extras in re.findall(r"amesh-django\[([\w,]+)\]", page):
        assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]), f"{path.name}: {extras}"
    for target in re.findall(r"`make (\w+)|^\$ make (\w+)", page, re.MULTILINE):
        assert f"\n{''.join(target)}:" in text("Makefile"), f"{path.name}: make {''.join(target)}"


#: Variables of the table in docs/settings.md that libraries read: httpx, and the TLS of Python.
OF_LIBRARIES = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"}


def variables(name: str, tree: ast.Module) -> Iterator[str]:
    """Yield the environment variables that a module reads, by a literal or by a constant."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and re.fullmatch(r"(AUTH_MESH|AMESH)_[A-Z_]*[A-Z]", str(node.value)):
            yield str(node.value)
        key: ast.expr | None = None
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("environ"):
            key = node.slice
        if isinstance(node, ast.Call) and re.search(r"environ\.(get|pop)$", ast.unparse(node.func)):
            key = node.args[0]
        if isinstance(key, ast.Constant):
            yield str(key.value)
        elif isinstance(key, ast.Name) and key.id.isupper():
            yield getattr(importlib.import_module(name), key.id)


def test_every_environment_variable_is_in_the_table() -> None:
    of_wsgi = {"QUERY_STRING", "PATH_INFO", "REQUEST_METHOD", "HTTP_AUTHORIZATION", "wsgi.input"}
    ours = {name: source for name, source in SOURCE.items() if not name.startswith("relay_project")}
    read = {found for name, source in ours.items() for found in variables(name, ast.parse(source))} - of_wsgi
    assert {"AMESH_RELAY_URL", "AMESH_DIR", "NO_COLOR", "AMESH_TPM_TCTI"} <= read
    table = text("docs/settings.md").partition("\n## Environment variables\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == read | OF_LIBRARIES


def test_every_variable_of_the_shipped_project_is_at_the_top_of_its_settings() -> None:
    source = SOURCE["relay_project.settings"]
    read = set(re.findall(r"""(?:flag|words|environ\.get)\(f?"([A-Z_]+)|environ\["([A-Z_]+)""", source))
    top = ast.get_docstring(ast.parse(source)) or ""
    top = top.replace(", _", ", DJANGO_DB_")  # DJANGO_DB_ENGINE, _NAME, …
    missing = {name for pair in read for name in pair if name and name.rstrip("_") not in top}
    assert not missing


def test_the_changelog_lists_the_extras() -> None:
    table = text("CHANGELOG.md").partition("| Extra | For |")[2].partition("\n\n")[0]
    listed = {name for row in table.split("\n")[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert listed == set(PROJECT["optional-dependencies"])


def test_permissions_and_fixtures_exist() -> None:
    from amesh_django.models import AuditEvent, Device, EnrollmentToken, Hub, Server

    known = {
        f"{action}_{model._meta.model_name}"
        for model in (Device, AuditEvent, EnrollmentToken, Hub, Server)
        for action in model._meta.default_permissions
    }
    known |= {name for model in (Device, AuditEvent, EnrollmentToken, Server) for name, _ in model._meta.permissions}
    named = {name for path in DOCUMENTS for name in re.findall(r"`amesh\.([a-z]+_[a-z]+)`", path.read_text())}
    assert named and named <= known
    page = text("docs/integration.md").partition("| Fixture |")[2].partition("\n\n")[0]
    fixtures = {name for name in vars(plugin) if name.startswith("amesh_")}
    assert set(re.findall(r"`(amesh_\w+)`", page)) == fixtures


def test_versions_are_those_of_the_package() -> None:
    page = text("README.md")
    for what in ("Python", "Django"):
        pattern = re.compile(rf"(?:Programming Language|Framework) :: {what} :: (\d\.\d+)")
        versions = [match[1] for line in PROJECT["classifiers"] if (match := pattern.fullmatch(line))]
        assert f"| {what} | {', '.join(versions)} |" in page
    assert f"version {PROJECT['version']}" in page
    assert f"## {PROJECT['version']}" in text("CHANGELOG.md")
    for pair in re.findall(r'suite "\$(\w+)" \S+ (\S+)', text(".ci/run")):
        version = re.search(rf"{pair[0]}=\$\(interpreter (\S+)\)", text(".ci/run"))
        assert version and f"Python {version[1]} with Django {pair[1]}" in page


def test_keys_that_are_shown_are_real() -> None:
    """A line of export-key in a document belongs to a device ID on the same page."""
    for path in DOCUMENTS:
        page = path.read_text()
        for line in set(re.findall(r"amesh-key-v1\.[\w-]{44}\.\S+?\.[0-9a-f]{8}", page)):
            found = parse_key_line(line)
            assert device_id(found.public_key) in page, (
                f"{path.name}: {line[:40]}… is not the key of an id on that page"
            )


# --- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", (*DOCUMENTS, *PLANS), ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        other = Path(os.path.normpath(path.parent / name)) if name else path
        assert other.is_file() and other.is_relative_to(ROOT), f"{path.name}: {target} leads nowhere"
        assert not anchor or anchor in anchors(other), f"{path.name}: {other.name} has no heading for #{anchor}"


def test_every_document_can_be_found_from_the_readme() -> None:
    page = text("README.md")
    missing = [
        path.name
        for path in (*DOCUMENTS, *PLANS)
        if path.name != "README.md" and f"({path.relative_to(ROOT)})" not in page
    ]
    assert not missing
