"""What calls the server, and what a person types into a shell, as in docs/guide.md and docs/integration.md."""

import httpx
import requests

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.server import server_device
from authmesh import (
    AmeshAuth,
    AmeshRequestsAuth,
    InMemoryNonceStore,
    LocalDevice,
    canonical_string,
    device_id,
    encode_public_key,
    fetch,
    generate_private_key,
    load_private_key,
    public_key_bytes,
    session_key,
    shared_secret,
    verify_signature,
)


def deliver(client: httpx.Client, url: str, event: dict[str, str]) -> httpx.Response:
    return client.post(url, json=event)


async def read() -> int:
    async with httpx.AsyncClient(auth=AmeshAuth()) as client:
        return (await client.get("/internal/report/")).status_code


def call() -> None:
    with httpx.Client(auth=AmeshAuth(server_device())) as client:
        deliver(client, "/hooks/event/", {"id": "e1"}).raise_for_status()
    session = requests.Session()
    session.auth = AmeshRequestsAuth(LocalDevice(".amesh-client"))
    status: int = fetch(
        "http://127.0.0.1:8001/hello/", "POST", body=b"x", device=LocalDevice(".amesh-client")
    ).status_code
    print(status)


def grant() -> None:
    devices = DatabaseAllowList(by="anna")
    laptop = devices.read()[0]
    devices.update_permissions(laptop.device_id, lambda granted: {**granted, "notes.write": True})
    devices.set_permissions(laptop.device_id, {"notes.write": True})
    devices.purge(laptop.device_id)


def keys() -> bool:
    ours: bytes = generate_private_key()
    public_key: bytes = public_key_bytes(load_private_key(ours))
    message = canonical_string("POST", "/notes", 1774692300, "jdXnR4NZ0uPvvRJLWbDZ7A", b"milk").encode()
    name: str = device_id(public_key) + encode_public_key(public_key)
    secret: bytes = session_key(shared_secret(ours, public_key))
    new: bool = InMemoryNonceStore().record(name, "jdXnR4NZ0uPvvRJLWbDZ7A", 60)
    return new and verify_signature(public_key, message, secret)
