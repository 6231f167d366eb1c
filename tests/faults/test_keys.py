"""API keys on a real server: who is let in, when a refusal is sent, and where keys could leak."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from launcher.options import FrontOptions
from launcher.prepare.exposure import exposure_warnings
from tests.cli.running import launch as command
from tests.e2e.running import Launch, Running

pytestmark = pytest.mark.slow

SERVER = ("--model", "random:tiny", "--backend", "fake", "--instances", "1")
FILE_KEY, OTHER_KEY, VARIABLE_KEY = "sk-of-alice-3f9a", "sk-without-name-77", "sk-in-variable-b2"
ADMIN_KEY = "sk-of-administrator-5c"
SECRETS = (FILE_KEY, OTHER_KEY, VARIABLE_KEY)
BEARER = {"authorization": f"Bearer {FILE_KEY}"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the server's keys."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"alice {FILE_KEY}\n{OTHER_KEY}\n")
    return file


@pytest.fixture(scope="module")
def server(launch: Launch, file: Path) -> Iterator[Running]:
    """A server with keys in a file and in the environment."""
    keys = {"LAUNCH_API_KEY": VARIABLE_KEY, "LAUNCH_ADMIN_KEY": ADMIN_KEY}
    with launch(*SERVER, "--api-key-file", str(file), "--log-level", "debug", env=keys) as started:
        yield started.wait_serving()


def test_mode_32_requests_need_a_key_and_probes_do_not(server: Running) -> None:
    assert server.get("/health").status_code == 200
    assert server.get("/ready").status_code == 200
    for path in ("/info", "/metrics", "/docs", "/v1/models"):
        assert server.get(path).status_code == 401
    refused = server.embed("one")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert refused.json()["error"]["type"] == "authentication_error"
    for key in SECRETS:
        for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}, {"api-key": key}):
            answer = server.post("/v1/embeddings", json={"input": "one"}, headers=headers)
            assert answer.status_code == 200, headers


def test_mode_32_a_key_appears_nowhere(server: Running) -> None:
    headers = {"authorization": f"Bearer {FILE_KEY}x"}
    pages = [
        httpx.get(server.address + "/info", headers=BEARER),
        httpx.get(server.address + "/metrics", headers=BEARER),
    ]
    pages += [httpx.get(server.address + path, headers=headers) for path in ("/info", "/absent")]
    process = psutil.Process(server.process.pid)
    places = {
        "pages": "".join(page.text for page in pages),
        "log": server.story(),
        "records": repr(server.records),
        "command line": repr(process.cmdline()),
        "workers": repr([(child.cmdline(), child.environ()) for child in server.workers()]),
    }
    assert server.workers()
    for secret in (*SECRETS, ADMIN_KEY):
        assert [name for name, text in places.items() if secret in text] == []


def test_mode_32_administration_needs_the_admin_key_and_no_api_key(server: Running) -> None:
    for key, status in ((ADMIN_KEY, 200), (FILE_KEY, 401)):
        answer = httpx.get(server.address + "/admin/change", headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == status
    assert server.get("/admin/change").status_code == 401
    assert httpx.get(server.address + "/info", headers={"authorization": f"Bearer {ADMIN_KEY}"}).status_code == 401
    port = server.address.rpartition(":")[2]
    done = command("ctl", "status", "--json", "--port", port)  # on the Unix socket, which needs no key
    assert (done.returncode, json.loads(done.stdout)["ready"]) == (0, True), done.stderr


def test_mode_32_reports_do_not_show_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(FILE_KEY)
    environment = {"LAUNCH_API_KEY": VARIABLE_KEY}
    for arguments in (("config",), ("config", "--json"), ("--dry-run", "--json"), ("topology", "--export", "systemd")):
        done = command(*arguments, "--api-key-file", str(file), "--model", "random:tiny", env=environment)
        assert done.returncode == 0, done.stderr
        assert not any(secret in done.stdout + done.stderr for secret in SECRETS)
        assert "LAUNCH_API_KEY" not in done.stderr, "it is not an unknown variable"


def connect(server: Running) -> socket.socket:
    url = httpx.URL(server.address)
    return socket.create_connection((url.host, url.port), timeout=30)


def head_of(client: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        part = client.recv(65536)
        assert part, f"the connection ended after {received!r}"
        received += part
    return received


@pytest.mark.parametrize("framing", ["Content-Length: 5000000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"])
def test_mode_32_a_refusal_does_not_wait_for_the_body(server: Running, framing: str, expect: str) -> None:
    with connect(server) as client:
        client.sendall(f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\n{framing}\r\n{expect}\r\n".encode())
        head = head_of(client)  # before any byte of the body
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b"100 Continue" not in head


def test_mode_32_a_client_with_a_key_is_asked_for_its_body(server: Running) -> None:
    body = b'{"input": "one"}'
    with connect(server) as client:
        client.sendall(
            f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nx-api-key: {FILE_KEY}\r\n"
            f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert head_of(client).startswith(b"HTTP/1.1 100 ")
        client.sendall(body)
        assert head_of(client).startswith(b"HTTP/1.1 200 ")


def test_mode_32_the_connection_of_a_refused_request_can_be_used_again(server: Running) -> None:
    with httpx.Client(base_url=server.address) as client:
        assert client.get("/info").status_code == 401
        assert client.get("/info", headers=BEARER).status_code == 200


def test_mode_32_sighup_replaces_keys_and_a_broken_file_keeps_them(server: Running, file: Path) -> None:
    def accepted(key: str) -> bool:
        return httpx.get(server.address + "/info", headers={"api-key": key}).status_code == 200

    file.write_text("two words more\n")
    server.signal(signal.SIGHUP)
    refused = server.wait_for("reload_refused")
    assert "line 1: has 3 words" in refused["message"]
    assert accepted(OTHER_KEY)
    file.write_text(f"alice {FILE_KEY}\nbob sk-new\n")
    server.signal(signal.SIGHUP)
    server.wait_for("access_reloaded")
    assert [accepted(key) for key in (FILE_KEY, "sk-new", VARIABLE_KEY, OTHER_KEY)] == [True, True, True, False]


@pytest.mark.parametrize("content", [None, "", "a b c\n"])
def test_mode_32_keys_that_cannot_be_read_stop_the_start(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    done = command(*SERVER, "--port", "0", "--api-key-file", str(file))
    assert done.returncode == 2
    assert done.stderr.startswith("launch: --api-key-file")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (FrontOptions(host="0.0.0.0"), True),
        (FrontOptions(host="::"), True),
        (FrontOptions(host="fe80::1%eth0"), True),
        (FrontOptions(host="server.example"), True),
        (FrontOptions(), False),
        (FrontOptions(host="127.0.0.2"), False),
        (FrontOptions(host="::1"), False),
        (FrontOptions(host="localhost"), False),
        (FrontOptions(host="0.0.0.0", api_key_file=Path("keys")), False),
        (FrontOptions(host="0.0.0.0", uds=Path("a.sock")), False),
    ],
)
def test_listening_beyond_loopback_without_a_key_is_a_warning(options: FrontOptions, warned: bool) -> None:
    assert (len(exposure_warnings(options, {})) == 1) is warned
    assert exposure_warnings(options, {"LAUNCH_API_KEY": "k"}) == ()


def test_a_plan_contains_that_warning() -> None:
    done = command("--dry-run", "--json", "--model", "random:tiny", "--host", "0.0.0.0")
    (warning,) = [warning for warning in json.loads(done.stdout)["warnings"] if "no API key is required" in warning]
    assert "0.0.0.0 port 8000" in warning
