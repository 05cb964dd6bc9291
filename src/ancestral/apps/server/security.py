"""ASGI middleware: host allow-list, token or cookie, same origin, size and time of bodies; before a request is used.

A page of another site can make a browser send requests here. It cannot read the answers, as no CORS header is sent; its
own name in `Origin` keeps it from changing anything; and a name of its own that points to this machine (DNS rebinding)
is no name that this server answers to.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

App = Callable[[Any, Any, Any], Awaitable[None]]
COOKIE = "ancestral_token"
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
SMALL, PATIENCE = 65536, 30.0  # bytes that are read without waiting for a turn; seconds for a whole body
TURNS = 8  # large bodies that are here at once
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::\d{1,5})?", re.ASCII | re.IGNORECASE)


class Refused(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


@dataclass(frozen=True)
class Rules:
    """Who may ask."""

    hosts: frozenset[str] = LOCAL  # names in `Host` besides the addresses of this machine's loopback
    addresses: bool = False  # whether any IP address may stand in `Host`; a name that is rebound is no address
    token: str | None = None  # what every request must show, if anything
    most: int = 11_000_000  # bytes of a body


@dataclass
class Security:
    """The checks, around an ASGI application."""

    app: App
    rules: Rules
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(TURNS))

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Refuse a request, or hand it on with its whole body read."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        api = scope["path"].startswith("/api") or scope["path"] == "/openapi.json"

        async def dressed(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store" if api else "no-cache")
            await send(message)

        async with AsyncExitStack() as held:
            try:
                self._host(request)
                answer = self._token(request)
                if answer is None:
                    self._origin(request)
                    receive = await self._body(request, receive, held)
            except Refused as refusal:
                answer = JSONResponse({"detail": refusal.detail}, refusal.status, refusal.headers)
            await (answer or self.app)(scope, receive, dressed)

    def _host(self, request: Request) -> None:
        name = host_name(request.headers.get("host", ""))
        if name is None or not (name in self.rules.hosts or (self.rules.addresses and _is_address(name))):
            raise Refused(400, "Host: this server does not answer to that name; open the address that it printed")

    def _token(self, request: Request) -> Response | None:
        """Nothing for who may come in; the answer to who comes with the token in the address."""
        token = self.rules.token
        if token is None:
            return None
        # Browsers send a cookie to every port of a machine: each server has one of its own name.
        name = f"{COOKIE}_{(request.scope.get('server') or ('', 0))[1]}"
        if request.scope["path"] == "/" and _same(request.query_params.get("token", ""), token):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(name, token, httponly=True, samesite="strict", path="/")
            return answer
        kind, _, shown = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(shown.strip(), token):
            return None
        if _same(request.cookies.get(name, ""), token):
            return None
        raise Refused(
            401,
            "token: missing or wrong; open the address with ?token= that the server printed, or send "
            "'Authorization: Bearer TOKEN'",
            **{"WWW-Authenticate": "Bearer"},
        )

    def _origin(self, request: Request) -> None:
        if request.method in ("GET", "HEAD", "OPTIONS"):
            return
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
        if origin is not None:
            host = request.headers["host"].lower()
            if origin.lower() not in (f"http://{host}", f"https://{host}"):
                raise Refused(403, "Origin: only the page of this server may ask for that")
        elif site not in (None, "same-origin", "none"):
            raise Refused(403, "Sec-Fetch-Site: only the page of this server may ask for that")

    async def _body(self, request: Request, receive: Any, held: AsyncExitStack) -> Any:
        """A `receive` that gives the body, which was read as far as it may be."""
        stated = request.headers.get("content-length", "0")
        if stated.isdecimal() and int(stated[:20]) > 2 * self.rules.most:
            raise self._large()
        if request.method in ("GET", "HEAD") and stated == "0" and "transfer-encoding" not in request.headers:
            return receive
        try:
            async with asyncio.timeout(PATIENCE):
                body = await self._read(receive, held)
        except TimeoutError:
            raise Refused(408, f"body: not all here after {PATIENCE:.0f} s", connection="close") from None
        replayed = False

        async def again() -> dict[str, Any]:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        return again

    async def _read(self, receive: Any, held: AsyncExitStack) -> bytes:
        """The body; a large one holds a turn until its request is answered, so that few are in memory.

        What is over the limit is read on without keeping it, to twice the limit: who still sends hears no answer.
        """
        body, size, turn = bytearray(), 0, False
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise Refused(400, "body: the connection ended before it did")
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size > self.rules.most:
                body.clear()
                if not more or size > 2 * self.rules.most:
                    raise self._large()
            else:
                body += part
            if not more:
                return bytes(body)
            if size > SMALL and not turn:
                turn = True
                await held.enter_async_context(self._turns)

    def _large(self) -> Refused:
        return Refused(
            413, f"body: over the limit of {self.rules.most} bytes; make the images smaller", connection="close"
        )


def host_name(value: str) -> str | None:
    """The name in a `Host` header, in small letters and without its port; None when it is none."""
    found = _HOST.fullmatch(value)
    return found and (found[1] or found[2]).lower()


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "replace"), token.encode())
