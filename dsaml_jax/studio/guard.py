"""Who may ask for what: hosts, origins, the owner's key, and the headers that keep pages to themselves."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SAFE_METHODS = ("GET", "HEAD")
_HEADERS = {
    # Plotly sets style attributes of what it draws; scripts come from this server alone.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "media-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # tokens are in addresses; with less, forms would name no origin
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_STATIC = ("/static/", "/plotly/")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """ASGI middleware. A page elsewhere can neither read nor write here, also not by a name that it points here."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        """Wraps an application.

        Args:
          app: what is guarded.
          hosts: names by which browsers may call it, with the port if it is not the usual one; `*` for any.
        """
        self._app, self._hosts = app, tuple(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses, or passes on and adds headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._refusal(scope["method"], Headers(scope=scope), scope["scheme"])

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                fixed = scope["path"].startswith(_STATIC)
                headers.setdefault("Cache-Control", "no-cache" if fixed else "no-store")
            await send(message)

        app = self._app if refused is None else PlainTextResponse(refused, 403)
        await app(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers, scheme: str) -> str | None:
        host = headers.get("host", "").lower()
        if "*" not in self._hosts and host not in self._hosts:
            return "this name is not one of the studio's; see dsaml studio --help, --allow-host"
        if method in _SAFE_METHODS:
            return None
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"{scheme}://{host}", f"https://{host}"):
            return "requests from other pages are refused"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return "requests from other pages are refused"
        return None


class Session:
    """The owner's, until the studio is stopped. Its cookie has a name of its own: browsers share them between ports."""

    def __init__(self) -> None:
        """Draws its secret."""
        self._name, self._value = f"dsaml_{secrets.token_hex(4)}", secrets.token_urlsafe(24)

    def begin(self, response: Response, *, secure: bool) -> None:
        """Lets whoever gets the response in."""
        response.set_cookie(self._name, self._value, httponly=True, samesite="strict", secure=secure)  # fmt: skip

    def holds(self, request: Request) -> bool:
        """Whether a request is the owner's."""
        return same(request.cookies.get(self._name, ""), self._value)


def same(first: str, second: str) -> bool:
    """Compares secrets in a time that does not tell where they differ."""
    return hmac.compare_digest(first.encode(errors="replace"), second.encode())
