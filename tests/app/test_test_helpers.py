"""amesh_django.test: signed clients at every kind of protected view (a "door"), devices, fixtures."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.test import Client
from django.urls import path, re_path
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.decorators import device_required
from amesh_django.drf import AmeshAuthentication, IsTrustedDevice
from amesh_django.server import server_device
from amesh_django.test import AmeshAPIClient, AmeshAsyncClient, AmeshClient, EphemeralDevice
from amesh_django.verification.target import raw_target
from authmesh.client import authorization_header
from authmesh.device import FileAllowList, LocalDevice
from authmesh.protocol import b64encode, verify_signature

pytestmark = pytest.mark.urls(__name__)


def described(request: HttpRequest) -> dict[str, Any]:
    from amesh_django.conf import amesh_settings

    device = getattr(request, "amesh", None)
    return {
        "device": device and device.device_id,
        "method": request.method,
        "path": request.path,
        "target": raw_target(request, amesh_settings()),
        "query": dict(request.GET.lists()),
        "form": dict(request.POST.lists()),
        "files": {name: len(file.read()) for name, file in request.FILES.items()},
    }


def plain(request: HttpRequest) -> JsonResponse:
    return JsonResponse(described(request))


async def plain_async(request: HttpRequest) -> JsonResponse:
    return JsonResponse(described(request))


class Rest(APIView):
    authentication_classes = (AmeshAuthentication,)
    permission_classes = (IsTrustedDevice,)

    def handle(self, request: Request, *args: Any) -> Response:
        return Response({"device": request.auth.device_id, "data": request.data, **described(request._request)})

    get = post = put = patch = delete = options = handle


def moved(request: HttpRequest, status: int, to: str) -> HttpResponse:
    response = HttpResponseRedirect(f"/{to}?x=1")
    response.status_code = status
    return response


urlpatterns = [
    path("moved/<int:status>/<path:to>", device_required(moved)),
    re_path("^decorated/", device_required(plain)),
    re_path("^async/", device_required(plain_async)),
    re_path("^rest/", Rest.as_view()),
    re_path("^plain/", plain),
]

MIDDLEWARE = "amesh_django.middleware.AmeshMiddleware"
DOORS = ["decorated", "async", "rest", "plain"]


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest, settings: Any) -> str:
    """Each way to protect a view; ``plain`` is protected by the middleware."""
    if request.param == "plain":
        settings.MIDDLEWARE = [MIDDLEWARE, *settings.MIDDLEWARE]
    return str(request.param)


def awaited(client: AmeshAsyncClient) -> Callable[..., Any]:
    """Return ``generic`` of the async client as a sync function."""

    async def send(*args: Any, **options: Any) -> Any:
        return await client.generic(*args, **options)

    return async_to_sync(send)  # runs sync code in this thread, which has the database


@pytest.fixture(params=[AmeshClient, AmeshAPIClient, AmeshAsyncClient])
def send(request: pytest.FixtureRequest, amesh_trusted_device: EphemeralDevice) -> Callable[..., Any]:
    """Each client's ``generic(method, path, data, content_type)``, signed by the trusted device."""
    client = request.param(amesh_trusted_device)
    return awaited(client) if isinstance(client, AmeshAsyncClient) else client.generic


# --- clients behind doors ---------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_every_client_is_accepted_at_every_door(
    send: Callable[..., Any], door: str, method: str, amesh_device: EphemeralDevice
) -> None:
    body = b'{"a": 1}' if method not in ("GET", "OPTIONS") else b""
    response = send(method, f"/{door}/x?b=2&a=1&a=%C3%BC+y", body, "application/json")
    assert response.status_code == 200, response.content
    found = json.loads(response.content)
    assert found["device"] == amesh_device.identity.device_id
    assert found["method"] == method
    assert found["query"] == {"b": ["2"], "a": ["1", "ü y"]}
    if door == "rest":
        assert found["data"] == ({"a": 1} if body else {})


TARGETS = {
    "/decorated/a%2Fb%2fc": "/decorated/a%2Fb%2fc",
    "/decorated/é ü": "/decorated/%C3%A9%20%C3%BC",
    "/decorated/%C3%A9?q=ü&q=x+y%20z": "/decorated/%C3%A9?q=%C3%BC&q=x+y%20z",
    "/decorated/?": "/decorated/",
    "/decorated/;x=1,2/@:!$&'()*~?a=[1]&b": "/decorated/;x=1,2/@:!$&'()*~?a=[1]&b",
    "http://testserver/decorated/?a=1#part": "/decorated/?a=1",
}


@pytest.mark.django_db
@pytest.mark.parametrize("url", TARGETS)
def test_the_target_is_that_of_a_real_client(send: Callable[..., Any], url: str) -> None:
    response = send("GET", url)
    assert response.status_code == 200, response.content
    assert json.loads(response.content)["target"] == TARGETS[url]


@pytest.mark.django_db
def test_forms_and_files(amesh_client: AmeshClient, door: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 5000)
    with (tmp_path / "file").open("rb") as file:
        found = amesh_client.post(f"/{door}/?x=1", {"a": ["1", "ü"], "f": file}).json()
    assert (found["form"], found["files"]) == ({"a": ["1", "ü"]}, {"f": 5000})
    found = amesh_client.post(f"/{door}/", "a=1&b=%20", content_type="application/x-www-form-urlencoded").json()
    assert found["form"] == {"a": ["1"], "b": [" "]}


@pytest.mark.django_db
def test_query_parameters_in_all_their_forms(amesh_client: AmeshClient, amesh_api_client: AmeshAPIClient) -> None:
    for client in (amesh_client, amesh_api_client):
        for options in ({"data": {"q": ["a", "ü b"]}}, {"QUERY_STRING": "q=a&q=%C3%BC+b"}):
            assert client.get("/rest/", **options).json()["query"] == {"q": ["a", "ü b"]}
    assert amesh_client.post("/rest/", {}, query_params={"q": "1"}).json()["query"] == {"q": ["1"]}


@pytest.mark.django_db
def test_rest_framework_s_formats(amesh_api_client: AmeshAPIClient) -> None:
    assert amesh_api_client.post("/rest/", {"a": [1, None]}, format="json").json()["data"] == {"a": [1, None]}
    assert amesh_api_client.post("/rest/", {"a": "1"}, format="multipart").json()["form"] == {"a": ["1"]}
    assert amesh_api_client.delete("/rest/").status_code == 200


@pytest.mark.django_db
def test_the_async_client(amesh_async_client: AmeshAsyncClient, amesh_device: EphemeralDevice) -> None:
    async def requests() -> list[Any]:
        return [
            await amesh_async_client.get("/async/", {"q": "ü"}),
            await amesh_async_client.post("/async/", {"a": "1"}),
            await amesh_async_client.put("/decorated/", {"a": 1}, content_type="application/json"),
            await amesh_async_client.get("/moved/302/async/", follow=True),
        ]

    found = [response.json() for response in async_to_sync(requests)()]
    assert [each["device"] for each in found] == [amesh_device.identity.device_id] * 4
    assert (found[0]["query"], found[1]["form"], found[3]["query"]) == ({"q": ["ü"]}, {"a": ["1"]}, {"x": ["1"]})


@pytest.mark.django_db
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_signed_again(amesh_client: AmeshClient, amesh_api_client: AmeshAPIClient, status: int) -> None:
    for client, options in ((amesh_client, {}), (amesh_api_client, {"format": "multipart"})):
        response = client.post(f"/moved/{status}/rest/", {"a": "1"}, follow=True, **options)
        assert response.status_code == 200, response.content
        found = response.json()
        kept = status in (307, 308)
        assert (found["method"], found["query"]) == ("POST" if kept else "GET", {"x": ["1"]})


# --- rejected requests --------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_device_that_is_not_trusted(door: str, amesh_server: LocalDevice) -> None:
    refusals = [
        AmeshClient().get(f"/{door}/"),
        AmeshAPIClient(EphemeralDevice()).get(f"/{door}/"),
        awaited(AmeshAsyncClient())("GET", f"/{door}/"),
    ]
    assert [(refusal.status_code, refusal.json()) for refusal in refusals] == [(401, {"error": "unauthorized"})] * 3


@pytest.mark.django_db
def test_a_given_header_is_sent_unchanged(amesh_trusted_device: EphemeralDevice) -> None:
    header = authorization_header("GET", "/decorated/?x=1", device=amesh_trusted_device)
    for client in (AmeshClient(amesh_trusted_device), AmeshAPIClient(amesh_trusted_device)):
        assert client.get("/decorated/?x=2", HTTP_AUTHORIZATION=header).status_code == 401
        assert client.get("/decorated/", headers={"Authorization": "nonsense"}).status_code == 400
    assert AmeshClient(amesh_trusted_device, HTTP_AUTHORIZATION="nonsense").get("/decorated/").status_code == 400
    asynchronous = awaited(AmeshAsyncClient(amesh_trusted_device))
    assert asynchronous("GET", "/decorated/", headers={"Authorization": "nonsense"}).status_code == 400
    client = AmeshAPIClient(amesh_trusted_device)
    client.credentials(HTTP_AUTHORIZATION="nonsense")
    assert client.get("/decorated/").status_code == 400
    assert AmeshClient().get("/decorated/?x=1", HTTP_AUTHORIZATION=header).status_code == 200
    assert AmeshClient().get("/decorated/?x=1", HTTP_AUTHORIZATION=header).status_code == 401


@pytest.mark.django_db
def test_the_test_sets_the_clock(amesh_trusted_device: EphemeralDevice) -> None:
    late = AmeshClient(amesh_trusted_device, now=lambda: time.time() - 31)
    assert late.get("/decorated/").json() == {"error": "timestamp_out_of_range"}


@pytest.mark.django_db
def test_roles_permissions_revoking(amesh_trust: Callable[..., EphemeralDevice]) -> None:
    controller, target = amesh_trust(permissions={"shell": True}), amesh_trust(role="target")
    assert DatabaseAllowList().get(controller.identity.device_id).permissions == {"shell": True}
    assert AmeshClient(controller).get("/decorated/").status_code == 200
    assert AmeshClient(target).get("/decorated/").status_code == 401
    DatabaseAllowList().revoke(controller.identity.device_id)
    assert AmeshClient(controller).get("/decorated/").status_code == 401


# --- devices and fixtures ---------------------------------------------------------------------------------------------


def test_an_ephemeral_device_and_its_directory_have_the_same_key(tmp_path: Path) -> None:
    device = EphemeralDevice("näme")
    written = device.write(tmp_path / "d", max_controllers=3)
    assert written.identity == device.identity
    assert (written.identity.friendly_name, written.identity.controller_limit) == ("näme", 3)
    assert written.seal_secret() == device.seal_secret()
    assert verify_signature(device.identity.public_key, b"m", written.sign(b"m"))
    assert verify_signature(device.identity.public_key, b"m", device.sign(b"m"))
    FileAllowList(written).add(EphemeralDevice().entry())


def test_each_ephemeral_device_has_a_key_of_its_own() -> None:
    key = bytes(range(1, 33))
    assert EphemeralDevice().identity.public_key != EphemeralDevice().identity.public_key
    assert EphemeralDevice(private_key=key).identity.public_key == EphemeralDevice(private_key=key).identity.public_key
    assert b64encode(key) not in repr(vars(EphemeralDevice())["identity"])


def test_amesh_server_is_the_server_of_the_project(amesh_server: LocalDevice, settings: Any) -> None:
    assert server_device().identity == amesh_server.identity
    assert settings.AMESH["DIR"] == str(amesh_server.path)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Callable[[str, str], str]]:
    """A function that runs the tests of another project by pytest, in a new process, with the installed plugin."""

    def run(settings: str, tests: str) -> str:
        (tmp_path / "theirs.py").write_text(settings)
        (tmp_path / "test_theirs.py").write_text(tests)
        options = ["-q", "-p", "no:cacheprovider", "-W", "error", "--rootdir", str(tmp_path), "-c", "/dev/null"]
        django = ["--ds", "theirs"] if settings else ["-p", "no:django"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *django, str(tmp_path)],
            cwd=tmp_path,
            env={"PATH": "", "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        return done.stdout + done.stderr

    yield run


THEIR_SETTINGS = """
SECRET_KEY = "x" * 50
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "amesh_django"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "theirs"
USE_TZ = True
def hook(request):
    from django.http import HttpResponse
    return HttpResponse(request.amesh.friendly_name)
def __getattr__(name):
    if name != "urlpatterns":
        raise AttributeError(name)
    from django.urls import path
    from amesh_django.decorators import device_required
    return [path("hook/", device_required(hook))]
"""

THEIR_TESTS = """
def test_trusted(amesh_client, amesh_device):
    response = amesh_client.post("/hook/", {"a": 1}, content_type="application/json")
    assert response.content.decode() == amesh_device.identity.friendly_name

def test_nobody(db, amesh_server, amesh_device):
    from amesh_django.test import AmeshClient
    assert AmeshClient(amesh_device).post("/hook/").status_code == 401
    assert AmeshClient(amesh_device).post("/hook/").status_code == 401
"""


@pytest.mark.process
def test_the_fixtures_in_another_project(project: Callable[[str, str], str]) -> None:
    said = project(THEIR_SETTINGS, THEIR_TESTS)
    assert "2 passed" in said, said


@pytest.mark.process
def test_a_project_without_django(project: Callable[[str, str], str]) -> None:
    said = project(
        "",
        "import sys\n"
        "def test_it(amesh_device):\n"
        "    assert len(amesh_device.sign(b'm')) == 64\n"
        "    assert not {'django', 'rest_framework'} & set(sys.modules)\n",
    )
    assert "1 passed" in said, said


@pytest.mark.django_db
def test_django_s_own_client_is_rejected(amesh_server: LocalDevice, door: str) -> None:
    """Proves that the views that the signed clients reach are protected."""
    response = Client().get(f"/{door}/")
    assert (response.status_code, door) in ((400, door), (401, "rest"))
