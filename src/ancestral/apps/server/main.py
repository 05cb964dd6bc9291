"""What `ancestral serve` does, once its options are known to be right: opens the run and the port."""

from __future__ import annotations

import contextlib
import errno
import secrets
import signal
import socket
import threading
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ancestral.apps.server.app import create_app
from ancestral.apps.server.job_queue import JobQueue, Limits
from ancestral.apps.server.security import LOCAL, Rules
from ancestral.apps.server.session import open_served_run
from ancestral.errors import UserError
from ancestral.runtime.console import screen
from ancestral.runtime.signals import handling

CONNECTIONS = 256
PATIENCE = 15.0  # seconds for a request to come in


class Patient(H11Protocol):
    """uvicorn's, which counts those who connect and waits for their requests for ever: here they are let go."""

    def connection_made(self, transport: Any) -> None:
        """Look now and then whether anything came."""
        super().connection_made(transport)
        self._look(self)

    def _look(self, before: Any) -> None:
        """Let go who has asked nothing new since `before`, the request of the last look."""
        answered = self.cycle is None or self.cycle.response_complete
        if self.transport.is_closing():
            return
        if answered and self.cycle is before:
            self.transport.close()
            return
        self.loop.call_later(PATIENCE, self._look, self.cycle if answered else self)


class Server(uvicorn.Server):
    """uvicorn's, which ends every stream when it is stopped, and then is done: that is no failure."""

    def __init__(self, config: uvicorn.Config, jobs: JobQueue, opened: str | None = None) -> None:
        super().__init__(config)
        self.jobs, self.opened = jobs, opened

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, then open the page if that was asked for."""
        await super().startup(sockets)
        if self.opened is not None:
            threading.Thread(target=webbrowser.open, args=(self.opened,), daemon=True).start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Cancel all jobs, whose streams end with that, then close."""
        closing = threading.Thread(target=self.jobs.close)
        closing.start()
        await super().shutdown(sockets)
        closing.join()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop the server; they are not raised again afterwards."""
        with handling(self.handle_exit, (signal.SIGINT, signal.SIGTERM)):
            yield


def serve(
    run: Path, *, host: str, port: int, token: str | None, open_page: bool, queue: int, average_width: float | None,
    device: str, precision: str,
) -> None:  # fmt: skip
    """Serve the page until stopped.

    Raises:
        UserError: when the run or the port cannot be opened.
    """
    listening = listen(host, port)
    try:
        rules = rules_for(host, token)
        served = open_served_run(run, device, average_width, precision)
        jobs = JobQueue(served.calls, Limits(queue=queue))
        address = url_of(listening, host, rules.token)
        server = Server(configured(create_app(served, jobs, rules)), jobs, address if open_page else None)
        screen.print(f"{run}: {address}  (Ctrl-C stops)")
        if rules.addresses:
            elsewhere = url_of(listening, socket.gethostname(), rules.token)
            screen.print(f"from other machines, unencrypted: {elsewhere}")
        server.run(sockets=[listening])
    finally:
        listening.close()
    screen.print("stopped")


def configured(app: Any) -> uvicorn.Config:
    """uvicorn with its limits."""
    return uvicorn.Config(
        app,
        http=Patient,
        log_level="critical",  # a stream that stopping cuts short is no news; what goes wrong in a job goes to its page
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="off",
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=5,
    )


def rules_for(host: str, token: str | None) -> Rules:
    """Who may come in: from this machine anybody, from elsewhere who has the token, which is made up if not given."""
    if host in LOCAL:
        return Rules(token=token)
    names = {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
    return Rules(LOCAL | names, addresses=True, token=token or secrets.token_urlsafe(24))


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for connections.

    Raises:
        UserError: when the port is taken, or the host is not of this machine.
    """
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(kind, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a name of the network"
        raise UserError(f"--host {host}: {reason}; give an address of this machine") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"--host {host}: not an address of this machine; give one of its own") from None
        raise UserError(f"--port {port}: {error.strerror} on {host}; choose another, or 0 for any free one") from None
    return listening


def url_of(listening: socket.socket, host: str, token: str | None) -> str:
    """Where a browser on this machine finds the page."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{listening.getsockname()[1]}/" + (f"?token={token}" if token else "")
