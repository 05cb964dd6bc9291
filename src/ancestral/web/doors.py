"""Who may come in, and how much they may carry: what is checked of every request before anything of it is used.

A page of another site can make a browser send requests here. It cannot read the answers, as no CORS header is sent; its
own name in `Origin` keeps it from changing anything; and a name of its own that points to this machine (DNS rebinding)
is no name that this server answers to.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.responses import JSONResponse, RedirectResponse, Response

App = Callable[[Any, Any, Any], Awaitable[None]]
COOKIE = "ancestral_token"
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
SMALL, PATIENCE = 65536, 30.0  # bytes that are read without waiting for a turn; seconds for a whole body
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Refused(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


@dataclass(frozen=True)
class Rules:
    """For whom the doors open.

    Args:
        hosts: names in `Host` besides the addresses of this machine's loopback.
        addresses: whether any IP address may stand in `Host`; a name that is rebound is no address.
        token: what every request must show, if anything.
        most: bytes of a body.
    """

    hosts: frozenset[str] = LOCAL
    addresses: bool = False
    token: str | None = None
    most: int = 11_000_000


@dataclass
class Doors:
    """The checks, around an ASGI application."""

    app: App
    rules: Rules
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(8))

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Refuse a request, or hand it on with its whole body read."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        api = scope["path"].startswith("/api") or scope["path"] == "/openapi.json"

        async def dressed(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = {**HEADERS, "cache-control": "no-store" if api else "no-cache"}
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in more.items() if k.encode() not in present),
                ]
            await send(message)

        try:
            self._host(headers)
            entered = self._token(scope, headers)
            if entered is not None:
                return await entered(scope, receive, dressed)
            if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
                self._origin(headers)
            receive = await self._body(scope, headers, receive)
        except Refused as refusal:
            answer = JSONResponse({"detail": refusal.detail}, refusal.status, refusal.headers)
            return await answer(scope, receive, dressed)
        return await self.app(scope, receive, dressed)

    def _host(self, headers: dict[str, str]) -> None:
        name = host_name(headers.get("host", ""))
        if name is None or not (name in self.rules.hosts or (self.rules.addresses and _is_address(name))):
            raise Refused(400, "Host: this server does not answer to that name; open the address that it printed")

    def _token(self, scope: dict[str, Any], headers: dict[str, str]) -> Response | None:
        """Nothing for who may come in; the answer to who comes with the token in the address."""
        token = self.rules.token
        if token is None:
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if scope["path"] == "/" and given and _same(given[0], token):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", path="/")
            return answer
        kind, _, shown = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(shown.strip(), token):
            return None
        if any(_same(one, token) for one in _cookies(headers.get("cookie", ""))):
            return None
        raise Refused(
            401,
            "token: missing or wrong; open the address with ?token= that the server printed, or send "
            "'Authorization: Bearer TOKEN'",
            **{"WWW-Authenticate": "Bearer"},
        )

    def _origin(self, headers: dict[str, str]) -> None:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            raise Refused(403, "Origin: only the page of this server may ask for that")
        if origin is None and site not in (None, "same-origin", "none"):
            raise Refused(403, "Sec-Fetch-Site: only the page of this server may ask for that")

    async def _body(self, scope: dict[str, Any], headers: dict[str, str], receive: Any) -> Any:
        """A `receive` that gives the body, which was read as far as it may be."""
        stated = headers.get("content-length", "0")
        if stated.isdigit() and int(stated[:20]) > self.rules.most:
            raise self._large()
        if scope["method"] in ("GET", "HEAD") and stated == "0" and "transfer-encoding" not in headers:
            return receive
        try:
            async with asyncio.timeout(PATIENCE):
                body = await self._read(receive)
        except TimeoutError:
            raise Refused(408, f"body: not all here after {PATIENCE:.0f} s", connection="close") from None
        told = False

        async def again() -> dict[str, Any]:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        return again

    async def _read(self, receive: Any) -> bytes:
        body, turn = bytearray(), False
        try:
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise Refused(400, "body: the connection ended before it did")
                body += message.get("body", b"")
                if len(body) > self.rules.most:
                    raise self._large()
                if not message.get("more_body", False):
                    return bytes(body)
                if len(body) > SMALL and not turn:
                    turn = await self._turns.acquire()
        finally:
            if turn:
                self._turns.release()

    def _large(self) -> Refused:
        return Refused(
            413, f"body: over the limit of {self.rules.most} bytes; make the images smaller", connection="close"
        )


def host_name(value: str) -> str | None:
    """The name in a `Host` header, without its port; None when it is none."""
    try:
        return urlsplit(f"//{value}").hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _cookies(header: str) -> Iterable[str]:
    try:
        cookie = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ()
    return () if cookie is None else (cookie.value,)
