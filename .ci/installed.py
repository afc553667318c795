"""Uses what `.ci/wheel` installed, step by step, in a folder with the virtual environments `device` and `server`.

installed.py bare      `device` without extras
installed.py device    `device` with [cli]: makes an identity, signs, fetches
installed.py django    `server` with [django]
installed.py server    `server` with [django,drf,redis]: answers a request that `device` signed
"""

from __future__ import annotations

import http.client
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path.cwd()
DEVICE = HERE / "device" / "bin"
SERVER = HERE / "server" / "bin"
HOST = "127.0.0.1"
ENVIRONMENT = {
    **{
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AMESH_", "AUTH_MESH_", "DJANGO_", "PYTHON"))
    },
    "HOME": str(HERE),
    "AMESH_TPM_TCTI": "none",
}

SETTINGS = """
import os
from pathlib import Path

SECRET_KEY = "only for this check, and longer than fifty characters, as Django asks"
ALLOWED_HOSTS = ["127.0.0.1"]
DEBUG = False
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "amesh_django"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(__file__).with_name("db.sqlite3")}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
USE_TZ = True
ROOT_URLCONF = "urls"
AMESH = {"DIR": str(Path(__file__).with_name("server-identity"))}
LOCAL_MEMORY = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
CACHES = {"default": LOCAL_MEMORY, "amesh": LOCAL_MEMORY}
if "REDIS_URL" in os.environ:
    CACHES["amesh"] = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": os.environ["REDIS_URL"]}
"""
URLS = """
from django.urls import include, path

urlpatterns = [path("", include("amesh_django.urls"))]
"""
API = """
from django.urls import path
from rest_framework.response import Response
from rest_framework.views import APIView

from amesh_django.drf import AmeshAuthentication, IsTrustedDevice


class Notes(APIView):
    authentication_classes = [AmeshAuthentication]
    permission_classes = [IsTrustedDevice]

    def get(self, request):
        return Response({"device": request.amesh.friendly_name})


urlpatterns = [path("notes/", Notes.as_view())]
"""


def run(*argv: object, fails: bool = False, text: str | None = None, **environment: str) -> str:
    """Run a program and return what it printed. It must succeed, or fail without a traceback."""
    done = subprocess.run(
        [str(word) for word in argv],
        env={**ENVIRONMENT, **environment},
        input=text or "",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    if (done.returncode != 0) != fails or "Traceback" in done.stdout:
        sys.exit(f"{' '.join(map(str, argv))}\nended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def must(condition: bool, what: str, output: str = "") -> None:
    """End this program if a condition does not hold."""
    if not condition:
        sys.exit(f"The installed wheel is not as it must be: {what}\n{output}")


def names_extra(extra: str, *argv: object, **environment: str) -> None:
    """Run a program that must fail and name the extra that it needs."""
    output = run(*argv, fails=True, **environment)
    must(f"pip install 'amesh-django[{extra}]'" in output, f"this does not name the extra [{extra}]:", output)


def python_names_extra(extra: str, code: str, python: Path = DEVICE / "python") -> None:
    """Run Python code that must raise an error whose text names the extra that it needs."""
    names_extra(
        extra, python, "-c", f"try:\n    {code}\nexcept ImportError as error:\n    raise SystemExit(str(error))"
    )


def absent(python: Path, *modules: str) -> None:
    """End this program if one of these modules is installed."""
    code = f"import importlib.util as u; print(*(name for name in {modules!r} if u.find_spec(name)))"
    found = run(python, "-c", code).split()
    must(not found, f"{', '.join(found)} came with the wheel, though its extra was not asked for")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(port: int, *argv: object, **environment: str) -> Iterator[None]:
    """Run a server inside the block, from the moment when it answers."""
    log = HERE / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(word) for word in argv], env={**ENVIRONMENT, **environment}, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection((HOST, port), timeout=1).close()
                break
            except OSError:
                must(process.poll() is None, f"{argv[0]} ended:", log.read_text())
                must(time.monotonic() < deadline, f"{argv[0]} does not answer:", log.read_text())
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def bare() -> None:
    """Without extras, there is a device without a command line."""
    python = DEVICE / "python"
    absent(python, "django", "rest_framework", "click", "rich", "websockets", "requests", "redis", "tpm2_pytss")
    run(
        python,
        "-W",
        "error",
        "-c",
        "import amesh_django, authmesh; [getattr(authmesh, name) for name in authmesh.__all__]",
    )
    run(python, "-c", "import authmesh; assert 'site-packages' in authmesh.__file__")
    names_extra("cli", DEVICE / "amesh", "--help")
    names_extra("cli", python, "-m", "authmesh")
    python_names_extra("requests", "import authmesh; authmesh.AmeshRequestsAuth()")
    python_names_extra("aiohttp", "import authmesh; authmesh.AmeshAiohttpMiddleware()")


def device() -> None:
    """With [cli], the command line works without Django."""
    absent(DEVICE / "python", "django", "rest_framework", "channels", "redis", "requests")
    amesh = [DEVICE / "amesh", "--dir", HERE / "laptop"]
    run(*amesh, "init", "--name", "laptop")
    must("verifies" in run(*amesh, "sign-test"), "sign-test does not say that the signature verifies")
    names_extra(
        "tpm",
        DEVICE / "amesh",
        "--dir",
        HERE / "other",
        "init",
        "--name",
        "x",
        "--backend",
        "tpm2",
        AMESH_TPM_TCTI="swtpm:port=1",
    )

    seen: list[str] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"milk")

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((HOST, 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        body = run(*amesh, "fetch", f"http://{HOST}:{server.server_address[1]}/notes/?q=1")
        server.shutdown()
    must("milk" in body, "fetch does not print the answer:", body)
    must(len(seen) == 1 and seen[0].startswith('AuthMesh v="1"'), f"fetch did not sign the request: {seen}")

    output = run(*amesh, "listen", "--relay", f"ws://{HOST}:{free_port()}/ws", fails=True)
    must("relay" in output.lower(), "listen does not say that the relay cannot be reached:", output)


def django() -> None:
    """With [django], each part that needs another extra names it."""
    python = SERVER / "python"
    absent(python, "rest_framework", "redis", "channels", "click", "websockets", "requests", "tpm2_pytss")
    (HERE / "settings.py").write_text(SETTINGS)
    (HERE / "urls.py").write_text(URLS)
    manage = [python, "-m", "django"]
    python_names_extra("drf", "import amesh_django.drf", python)
    project = {"DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": str(HERE)}
    run(*manage, "migrate", "--verbosity", "0", **project)
    run(*manage, "amesh_init", "--name", "server", **project)
    names_extra("relay", *manage, "amesh_relay", **project)
    names_extra("cli", *manage, "amesh_listen", **project)


def server() -> None:
    """With [django,drf,redis], a server accepts a request that a device signed, once."""
    manage = [SERVER / "python", "-W", "error::DeprecationWarning:amesh_django", "-m", "django"]
    (HERE / "urls.py").write_text(API)
    redis = shutil.which("redis-server") or shutil.which("valkey-server")
    must(redis is not None, "redis-server is missing. Run: make system")
    redis_port, port = free_port(), free_port()
    project = {
        "DJANGO_SETTINGS_MODULE": "settings",
        "PYTHONPATH": str(HERE),
        "REDIS_URL": f"redis://{HOST}:{redis_port}/0",
    }
    amesh = [DEVICE / "amesh", "--dir", HERE / "laptop"]
    url = f"http://{HOST}:{port}/notes/"
    with running(redis_port, redis, "--port", redis_port, "--bind", HOST, "--save", "", "--dir", HERE):
        run(*manage, "check", "--fail-level", "WARNING", "--database", "default", **project)
        line = run(*amesh, "export-key")
        run(*manage, "amesh_trust", "-", "--role", "controller", "--yes", text=line, **project)
        with running(port, *manage, "runserver", "--noreload", f"{HOST}:{port}", **project):
            answer = run(*amesh, "fetch", "--fail", url)
            must(json.loads(answer) == {"device": "laptop"}, "the server does not know the device:", answer)
            header = run(*amesh, "header", "GET", url).strip().partition(": ")[2]
            must(status(port, header) == 200, "the server does not accept a header")
            must(status(port, header) == 401, "the server accepts a header a second time")
            must(status(port) in (401, 403), "the server accepts a request that nobody signed")


def status(port: int, header: str | None = None) -> int:
    """Return the status of the answer to a GET of the notes."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        connection.request("GET", "/notes/", headers={"Authorization": header} if header else {})
        return connection.getresponse().status
    finally:
        connection.close()


if __name__ == "__main__":
    {step.__name__: step for step in (bare, device, django, server)}[sys.argv[1]]()
