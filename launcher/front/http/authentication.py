"""API keys: reads them, and refuses requests without a valid one before their body is read.

Separate because it is a wrapper around the whole application that exists only if keys are configured: without keys it
costs nothing. Keys are kept as keyed digests, so they cannot appear in a log, a report or a traceback. What a client
may do once it is known does not belong here.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from launcher.errors import RequestError, UsageError
from launcher.front.counters import CounterValue
from launcher.front.http.error_response import ErrorFormat, ErrorResponse
from launcher.front.http.responses import send_json_and_close, with_connection_close
from launcher.options.env_prefixes import API_KEY_VARIABLE

# These routes check the admin key (`admin_access`), which is sent in the same header.
ADMIN_PREFIX = "/admin/"
# What load balancers and orchestrators call; they have no key.
OPEN_PATHS = frozenset({"/health", "/health/", "/ready", "/ready/"})
# The headers of a key besides ``Authorization``, and the APIs whose clients send them.
KEY_HEADERS = {"x-api-key": "Anthropic and many gateways", "api-key": "Azure OpenAI"}
MAX_FILE_BYTES = 1024 * 1024

_KEY = re.compile(r"[!-+\--~]+")  # visible ASCII without the comma
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,63}")  # not a number, which stands for a key without a name
_COMMENT = re.compile(r"(?:^|\s)#")
_KEY_HEADERS = frozenset(name.encode() for name in KEY_HEADERS)
_CHALLENGE = b'Bearer realm="launch"'


@dataclass(frozen=True, slots=True)
class _Key:
    """The digest of a key, and the client that it stands for."""

    digest: bytes
    client: str


class ApiKeys:
    """The valid keys, from a file and from the text of an environment variable.

    Each has one key per line: ``KEY``, or ``NAME KEY``. Empty lines and comments, which begin with ``#`` at the start
    of a word, are ignored. A key without a name is named by its number, counted from 1. Several keys may have
    the same name.
    """

    def __init__(self, file: Path | None, text: str) -> None:
        """Read the keys. Raises ``UsageError``, which never contains a key."""
        self._file = file
        self._text = text
        self._secret = secrets.token_bytes(32)
        self._keys: tuple[_Key, ...] = ()
        self.reload()

    def __len__(self) -> int:
        return len(self._keys)

    def reload(self) -> None:
        """Read the file again. Raises ``UsageError`` and keeps the previous keys if it cannot be used."""
        keys: list[_Key] = []
        if self._file is not None:
            self._add(keys, _read(self._file), f"--api-key-file {str(self._file)!r}")
        if self._text:
            self._add(keys, self._text, API_KEY_VARIABLE)
        self._keys = tuple(keys)

    def _add(self, keys: list[_Key], text: str, source: str) -> None:
        found = False
        for number, name, key in _entries(text, source):
            digest = self._digest(key.encode())
            if any(digest == other.digest for other in keys):
                raise UsageError(f"{source}, line {number}: this key occurs twice; keep one of them")
            keys.append(_Key(digest, f"key:{name or len(keys) + 1}"))
            found = True
        if not found:
            raise UsageError(f"{source}: there is no key; write one key per line")

    def client_of(self, given: bytes) -> str | None:
        """The client of a key, ``key:NAME``; None for an invalid key. Takes the same time whichever key matches."""
        digest, client = self._digest(given), None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                client = key.client
        return client

    def _digest(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, key=self._secret, digest_size=32).digest()


def load_api_keys(file: Path | None, environment: Mapping[str, str]) -> ApiKeys | None:
    """The keys of the file and of ``LAUNCH_API_KEY``; None if neither is set. Raises ``UsageError``."""
    text = environment.get(API_KEY_VARIABLE, "")
    return ApiKeys(file, text) if file is not None or text else None


def _read(file: Path) -> str:
    source = f"--api-key-file {str(file)!r}"
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the path is invalid"
        raise UsageError(f"{source}: cannot be read: {reason}") from error
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(f"{source}: has more than {MAX_FILE_BYTES} bytes; it must have one key per line")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        # Not chained: the exception holds the content of the file.
        raise UsageError(f"{source}: is not a text in UTF-8; it must have one key per line") from None


def _entries(text: str, source: str) -> Iterator[tuple[int, str, str]]:
    """The line number, the name and the key of each entry; an empty name if there is none."""
    for number, line in enumerate(text.splitlines(), 1):
        words = _COMMENT.split(line)[0].split()
        if not words:
            continue
        *names, key = words
        if len(names) > 1:
            raise UsageError(f"{source}, line {number}: has {len(words)} words; it must be KEY or NAME KEY")
        if not _KEY.fullmatch(key):
            raise UsageError(
                f"{source}, line {number}: a key must consist of visible ASCII characters other than the comma; "
                "write one key per line"
            )
        name = names[0] if names else ""
        if name and not _NAME.fullmatch(name):
            raise UsageError(
                f"{source}, line {number}: a name must begin with a letter and have at most 64 letters, digits, '.', "
                "'_' or '-'"
            )
        yield number, name, key


@dataclass(frozen=True, slots=True)
class RefusalContext:
    """What a refusal needs: the error format of a request, whether the server is draining, and a counter."""

    errors_of: Callable[[Scope], ErrorFormat]
    draining: Callable[[], bool]
    counter: CounterValue


class RequireApiKey:
    """An ASGI application that passes requests with a valid key to ``app`` and answers all others with 401.

    ``/health`` and ``/ready`` need no key, the routes under ``/admin/`` another one. On success,
    ``scope["state"]["client"]`` is ``key:NAME``.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, context: RefusalContext) -> None:
        self._app = app
        self._keys = keys
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or scope["path"].startswith(ADMIN_PREFIX):
            await self._app(scope, receive, send)
            return
        try:
            client = self._client_of(scope["headers"])
        except RequestError as error:
            await self._refuse(error, scope, receive, send)
            return
        scope.setdefault("state", {})["client"] = client
        await self._app(scope, receive, send)

    def _client_of(self, headers: Sequence[tuple[bytes, bytes]]) -> str:
        given = [(name, value) for name, value in headers if name == b"authorization" or name in _KEY_HEADERS]
        if not given:
            others = " or ".join(f"'{name}: KEY'" for name in KEY_HEADERS)
            raise _unauthorized(
                f"an API key is required: send 'Authorization: Bearer KEY', {others}", "missing_api_key"
            )
        # More of them would let one request try many keys.
        if len({name for name, _ in given}) < len(given):
            raise _unauthorized("a header with an API key is sent twice; send each at most once", "invalid_api_key")
        found = [client for name, value in given if (client := self._keys.client_of(_credential(name, value)))]
        if not found:
            raise _unauthorized("the API key is not valid", "invalid_api_key")
        return found[0]

    async def _refuse(self, error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
        self._context.counter.add()
        status, body, headers = self._context.errors_of(scope).response(error)
        challenge = _CHALLENGE + (b', error="invalid_token"' if error.code == "invalid_api_key" else b"")
        response = ErrorResponse(status, body, [*headers, (b"www-authenticate", challenge)])
        if _has_body(scope["headers"]):
            await send_json_and_close(receive, send, response)
            return
        send = with_connection_close(send) if self._context.draining() else send
        start = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *response.headers]
        await send({"type": "http.response.start", "status": status, "headers": start})
        await send({"type": "http.response.body", "body": body})


def _credential(name: bytes, value: bytes) -> bytes:
    """The key in a header; an empty one, which is never valid, for another scheme than Bearer."""
    if name != b"authorization":
        return value.strip()
    scheme, _, key = value.strip().partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def _unauthorized(message: str, code: str) -> RequestError:
    return RequestError(message, status=401, code=code)


def _has_body(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers)
