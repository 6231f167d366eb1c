"""TLS: reads and checks the certificate and its private key.

Separate from the server because wrong files must be reported at start, before anything slow begins, and because a
renewed certificate is read again while the server runs.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from launcher.errors import UsageError
from launcher.options import FrontOptions

MAX_PASSWORD_BYTES = 1024
# Rounds of a handshake in memory; TLS 1.3 needs 2 of them, TLS 1.2 needs 3.
_ROUNDS = 10


def load_tls(front: FrontOptions) -> ssl.SSLContext | None:
    """The context of a server with the certificate of these options; None without TLS. Raises ``UsageError``."""
    if front.tls_cert is None:
        for flag, given in (("--tls-key", front.tls_key), ("--tls-key-password-file", front.tls_key_password_file)):
            if given is not None:
                raise UsageError(f"{flag} {str(given)!r} requires --tls-cert; add it, or omit {flag}")
        return None
    if front.uds is not None:
        raise UsageError("--tls-cert and --uds exclude each other: a Unix socket is not a network; omit one of them")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    reload_certificate(context, front)
    return context


def reload_certificate(context: ssl.SSLContext, front: FrontOptions) -> None:
    """Read the files again, for new connections. Raises ``UsageError`` and changes nothing if they cannot be used."""
    assert front.tls_cert is not None, "called with TLS only"
    trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(trial, front, front.tls_cert)
    _check_certificate(trial, front.tls_cert)
    _load(context, front, front.tls_cert)


def _load(context: ssl.SSLContext, front: FrontOptions, cert: Path) -> None:
    key = front.tls_key or cert
    _check_readable("--tls-cert", cert)
    if front.tls_key is not None:
        _check_readable("--tls-key", front.tls_key)
    asked = False

    def password() -> bytes:
        nonlocal asked
        asked = True
        return _password(front.tls_key_password_file)

    try:
        # Without a callback OpenSSL would ask for the password on the terminal.
        context.load_cert_chain(cert, key, password)
    except ssl.SSLError as error:
        raise UsageError(_reason(error, front, cert, asked=asked)) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"--tls-cert {str(cert)!r}: cannot be used: {error}") from error


def _check_readable(flag: str, file: Path) -> None:
    try:
        with file.open("rb") as opened:
            opened.read(1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the path is invalid"
        raise UsageError(f"{flag} {str(file)!r}: cannot be read: {reason}") from error


def _password(file: Path | None) -> bytes:
    if file is None:
        return b""
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_PASSWORD_BYTES).rstrip(b"\r\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the path is invalid"
        raise UsageError(f"--tls-key-password-file {str(file)!r}: cannot be read: {reason}") from error


def _reason(error: ssl.SSLError, front: FrontOptions, cert: Path, *, asked: bool) -> str:
    key = front.tls_key or cert
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"--tls-key {str(key)!r} is not the key of --tls-cert {str(cert)!r}; use the key of that certificate"
    if asked:
        file = front.tls_key_password_file
        if file is None:
            return f"--tls-key {str(key)!r} is encrypted; add --tls-key-password-file FILE"
        return f"--tls-key-password-file {str(file)!r}: is not the password of the key {str(key)!r}"
    if not _has_pem(cert, "CERTIFICATE"):
        return f"--tls-cert {str(cert)!r}: has no certificate in PEM format"
    if not _has_pem(key, "PRIVATE KEY"):
        flag = "--tls-cert" if front.tls_key is None else "--tls-key"
        add = "; add --tls-key FILE" if front.tls_key is None else ""
        return f"{flag} {str(key)!r}: has no private key in PEM format{add}"
    return f"--tls-cert {str(cert)!r} and its key cannot be used: {error.reason or error}"


def _has_pem(file: Path, label: str) -> bool:
    try:
        lines = file.read_text(encoding="latin-1").splitlines()
    except OSError:
        return False
    return any(line.startswith("-----BEGIN ") and line.rstrip().endswith(f"{label}-----") for line in lines)


def _check_certificate(server: ssl.SSLContext, cert: Path) -> None:
    """Complete a handshake in memory, as a client that trusts only this certificate: it must be valid now, and be
    meant for servers. Raises ``UsageError``."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        client.load_verify_locations(cert)
        _handshake(client, server)
    except ssl.SSLCertVerificationError as error:
        raise UsageError(
            f"--tls-cert {str(cert)!r}: clients would refuse this certificate: {error.verify_message}; renew it, or "
            "check the clock of this machine"
        ) from error
    except ssl.SSLError as error:
        raise UsageError(f"--tls-cert {str(cert)!r}: cannot be used: {error.reason or error}") from error


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(_ROUNDS):
        for side in list(sides):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            sides.remove(side)
        if not sides:
            return
    raise AssertionError("a handshake in memory ends after a few rounds")
