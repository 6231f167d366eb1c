"""TLS and Unix sockets on a real server."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from launcher.errors import UsageError
from launcher.front.http.tls import load_tls, reload_certificate
from launcher.options import FrontOptions
from tests.cli.running import launch as command
from tests.e2e.running import Launch, Running, gone

SERVER = ("--model", "random:tiny", "--backend", "fake", "--instances", "1")
PASSWORD = "of the key"


@dataclass(frozen=True)
class Files:
    """Certificates of one authority."""

    folder: Path
    authority: trustme.CA

    def path(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def issue(self, name: str, **arguments: object) -> tuple[Path, Path]:
        """The paths of a new certificate and of its key."""
        issued = self.authority.issue_cert("localhost", "127.0.0.1", **arguments)  # type: ignore[arg-type]
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        return self.path(f"{name}.pem", chain), self.path(f"{name}.key", issued.private_key_pem.bytes())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"), trustme.CA())


def encrypted(key: Path) -> Path:
    private = load_pem_private_key(key.read_bytes(), None)
    path = key.with_suffix(".encrypted")
    encryption = BestAvailableEncryption(PASSWORD.encode())
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return path


# ------------------------------------------------------------------------------------- files


def test_a_certificate_with_its_key_is_loaded_with_tls_1_2_as_the_minimum(files: Files) -> None:
    cert, key = files.issue("good")
    context = load_tls(FrontOptions(tls_cert=cert, tls_key=key))
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    both = files.path("both.pem", cert.read_bytes() + key.read_bytes())
    assert load_tls(FrontOptions(tls_cert=both)) is not None
    password = files.path("password", f"{PASSWORD}\n".encode())
    assert load_tls(FrontOptions(tls_cert=cert, tls_key=encrypted(key), tls_key_password_file=password)) is not None
    assert load_tls(FrontOptions()) is None


def refusals(files: Files) -> list[tuple[FrontOptions, str]]:
    cert, key = files.issue("one")
    _, other = files.issue("other")
    past = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    expired, expired_key = files.issue("expired", not_after=past, not_before=past - datetime.timedelta(days=9))
    coming = past + datetime.timedelta(days=9)
    future, future_key = files.issue("future", not_before=coming, not_after=coming + datetime.timedelta(days=9))
    text, wrong = files.path("text", b"text"), files.path("wrong", b"wrong")
    return [
        (FrontOptions(tls_cert=cert, tls_key=other), "is not the key of --tls-cert"),
        (FrontOptions(tls_cert=cert), "has no private key in PEM format; add --tls-key"),
        (FrontOptions(tls_key=key), "requires --tls-cert"),
        (FrontOptions(tls_cert=text, tls_key=key), "has no certificate"),
        (FrontOptions(tls_cert=cert, tls_key=text), "has no private key"),
        (FrontOptions(tls_cert=files.folder / "absent", tls_key=key), "No such file"),
        (FrontOptions(tls_cert=cert, tls_key=files.folder), "Is a directory"),
        (FrontOptions(tls_cert=expired, tls_key=expired_key), "certificate has expired"),
        (FrontOptions(tls_cert=future, tls_key=future_key), "not yet valid"),
        (FrontOptions(tls_cert=cert, tls_key=encrypted(key)), "is encrypted; add --tls-key-password-file"),
        (FrontOptions(tls_cert=cert, tls_key=encrypted(key), tls_key_password_file=wrong), "is not the password"),
        (FrontOptions(tls_cert=cert, tls_key=key, uds=Path("a.sock")), "exclude each other"),
    ]


def test_files_that_clients_would_refuse_are_refused_at_start(files: Files) -> None:
    for options, reason in refusals(files):
        with pytest.raises(UsageError, match=reason):
            load_tls(options)


def test_a_wrong_certificate_ends_the_command_before_a_model_is_read(files: Files) -> None:
    cert, _ = files.issue("mine")
    _, other = files.issue("theirs")
    done = command("--port", "0", "--model", "/absent", "--tls-cert", str(cert), "--tls-key", str(other))
    assert done.returncode == 2
    assert "is not the key of" in done.stderr


def test_a_renewed_certificate_is_used_for_new_connections_and_a_broken_one_is_not(files: Files) -> None:
    cert, key = files.issue("renewed")
    options = FrontOptions(tls_cert=cert, tls_key=key)
    context = load_tls(options)
    assert context is not None
    good = cert.read_bytes()
    cert.write_bytes(b"broken")
    with pytest.raises(UsageError):
        reload_certificate(context, options)
    cert.write_bytes(good)
    reload_certificate(context, options)


# ------------------------------------------------------------------------------------- server


@pytest.fixture(scope="module")
def server(launch: Launch, files: Files) -> Iterator[Running]:
    cert, key = files.issue("server")
    with launch(*SERVER, "--tls-cert", str(cert), "--tls-key", str(key), "--request-seconds", "1") as started:
        yield started.wait_serving()
        assert started.end() == 0
        assert "Traceback" not in started.story()


@pytest.fixture(scope="module")
def trusting(files: Files) -> ssl.SSLContext:
    context = ssl.create_default_context()
    files.authority.configure_trust(context)
    return context


def connect(server: Running) -> socket.socket:
    url = httpx.URL(server.address)
    return socket.create_connection((url.host, url.port), timeout=30)


@pytest.mark.slow
def test_requests_over_tls_are_answered(server: Running, trusting: ssl.SSLContext) -> None:
    assert server.address.startswith("https://")
    with httpx.Client(verify=trusting, base_url=server.address) as client:
        texts = ["one", "two " * 100]
        for _ in range(3):
            answer = client.post("/v1/embeddings", json={"input": texts * 200})
            assert (answer.status_code, len(answer.json()["data"])) == (200, 400)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        server.get("/health")


@pytest.mark.slow
def test_clients_that_do_not_speak_tls_are_disconnected_and_the_server_lives(
    server: Running, trusting: ssl.SSLContext
) -> None:
    for data in (b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\xff" * 1000, b"\0" * 5000):
        with connect(server) as client:
            client.sendall(data)
            try:
                while received := client.recv(4096):
                    assert b"HTTP/1.1" not in received
            except ConnectionResetError:
                pass  # closed with a part of the data unread
    with httpx.Client(verify=trusting, base_url=server.address) as client:
        assert client.get("/health").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"])
def test_a_client_that_stalls_in_the_handshake_is_disconnected(server: Running, sent: bytes) -> None:
    with connect(server) as client:
        client.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_1_1_is_refused(server: Running, trusting: ssl.SSLContext) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    with connect(server) as client, pytest.raises(ssl.SSLError), old.wrap_socket(client):
        pass


@pytest.mark.slow
def test_sighup_replaces_the_certificate_of_new_connections(
    server: Running, files: Files, trusting: ssl.SSLContext
) -> None:
    def certificate() -> bytes | None:
        with connect(server) as client, trusting.wrap_socket(client, server_hostname="127.0.0.1") as secured:
            return secured.getpeercert(binary_form=True)

    before = certificate()
    files.issue("server")
    server.signal(signal.SIGHUP)
    server.wait_for("access_reloaded")
    assert certificate() != before


# ------------------------------------------------------------------------------------- Unix socket


def over(path: Path) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://server", timeout=30)


@pytest.mark.slow
def test_mode_38_a_unix_socket_serves_and_that_of_a_crashed_run_is_replaced(launch: Launch, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with launch(*SERVER, "--uds", str(path), "--uds-mode", "660") as server:
        server.wait_serving()
        assert server.address == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o660
        with over(path) as client:
            assert client.post("/v1/embeddings", json={"input": "one"}).status_code == 200
        second = command(*SERVER, "--uds", str(path))
        assert second.returncode == 2
        assert f"process {server.process.pid} " in second.stderr
        with over(path) as client:
            assert client.get("/health").status_code == 200, "the second launcher has not removed it"
        workers = [worker.pid for worker in server.workers()]
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        assert gone(workers)
    assert path.exists()
    with launch(*SERVER, "--uds", str(path)) as server:
        server.wait_serving()
        assert path.stat().st_mode & 0o777 == 0o600
        with over(path) as client:
            assert client.get("/ready").status_code == 200
        assert server.end() == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent/a.sock", "No such file or directory"),
        ("file", "exists and is not a socket"),
        ("x" * 108, "has more than 107 bytes"),
    ],
)
def test_mode_38_other_files_and_unusable_paths_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_text("kept")
    done = command(*SERVER, "--uds", str(tmp_path / name))
    assert done.returncode == 2
    assert reason in done.stderr
    assert (tmp_path / "file").read_text() == "kept"


def test_control_characters_in_a_path_are_escaped(tmp_path: Path) -> None:
    done = command(*SERVER, "--uds", str(tmp_path / "absent\x1b[31m" / "a"))
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert "\\x1b[31m" in done.stderr
