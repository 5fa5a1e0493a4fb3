"""The report of a running search, served on this machine alone; browsers are told of changes by server-sent events."""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from raysearch.errors import first_line
from raysearch.logging import logger
from raysearch.report.html_page import PageContent, report_html
from raysearch.study.folder import TRIALS
from raysearch.study.front import Front
from raysearch.study.status import Status

ADDRESS = "127.0.0.1"
MAX_FOLLOWERS = 20
SECONDS_BETWEEN_LOOKS, SECONDS_BETWEEN_BEATS = 1.0, 15.0
SECONDS_TO_ASK, SECONDS_TO_SAY_GOODBYE = 1.0, 10.0
"""After the end: for browsers to ask for the last state, and for its answer."""
SECONDS_BETWEEN_PAGES, SHARE_OF_TIME = 5.0, 0.05
"""A page is made anew at most so often, and at most for this share of the time: large studies take seconds."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}


class LivePage:
    """Serves a study's page from a thread of this process, at an address that holds a secret; a context manager.

    Args:
        folder: of the study.
        empty: the front before there is one.

    Attributes:
        url: address of the page, for browsers of this machine.
    """

    def __init__(self, folder: Path, empty: Front) -> None:
        self._folder, self._empty = folder, empty
        self._token = secrets.token_urlsafe(16)
        self._lock, self._counting = threading.Lock(), threading.Lock()
        self._pages: dict[bool, str] = {}
        self._shown: object = None  # state of the files behind `_pages`
        self._next_at = 0.0
        self._status = "The search begins."
        self._is_over = threading.Event()
        self._num_followers = self._num_open = 0
        self._server = _Server((ADDRESS, 0), self)
        self.url = f"http://{ADDRESS}:{self._server.server_address[1]}/{self._token}/"

    def __enter__(self) -> "LivePage":
        threading.Thread(target=self._server.serve_forever, daemon=True, name="live page").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._next_at = 0.0
        self._is_over.set()  # followers get the last state, and have a moment to ask for it
        until = time.monotonic() + SECONDS_TO_SAY_GOODBYE
        while self._num_open and time.monotonic() < until:
            time.sleep(0.1)
        self._server.shutdown()
        self._server.server_close()

    def how_to_reach(self) -> list[str]:
        """Lines for the person who has started the search, also where that was done on another machine."""
        lines = [f"live page  {self.url}"]
        is_remote = "SSH_CONNECTION" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
        if is_remote or "runtime_resources" in Path.cwd().parts:
            port, host = self._server.server_address[1], socket.gethostname()
            tunnel = f"ssh -N -L {port}:{ADDRESS}:{port} {host}"
            lines.append(f"           from your own machine: {tunnel}, then open it there")
        return lines

    def follow(self, status: Status) -> None:
        """Note what the search does; a listener of its narrator."""
        self._status = "\n".join(status.lines())

    @property
    def token(self) -> str:
        """The secret part of the address."""
        return self._token

    def page(self, is_update: bool) -> str:
        """The page as of now, or as of a moment ago; an update leaves out plotly, which the browser has."""
        with self._lock:
            if not self._pages or (self._is_due() and self._state() != self._shown):
                began, self._shown = time.monotonic(), self._state()
                content = PageContent.read(self._folder, self._empty)
                self._pages = {leaves_out: report_html(content, True, leaves_out) for leaves_out in (True, False)}
                took = time.monotonic() - began
                self._next_at = time.monotonic() + max(SECONDS_BETWEEN_PAGES, took / SHARE_OF_TIME)
            return self._pages[is_update]

    def events(self) -> Iterator[str]:
        """Server-sent events until the search is over: what it does, and that the page has changed."""
        if self._num_followers >= MAX_FOLLOWERS:
            return
        self._num_followers += 1
        try:
            seen, told, beat_at = self._shown, "", time.monotonic()
            while True:
                is_over = self._is_over.wait(SECONDS_BETWEEN_LOOKS)
                if self._status != told:
                    told = self._status
                    yield _event("status", told)
                if (self._is_due() or is_over) and self._state() != seen:
                    seen = self._state()
                    yield _event("changed", "")
                    if is_over:
                        time.sleep(SECONDS_TO_ASK)
                if is_over:
                    yield _event("ended", "The search has ended. report.html in its folder is this page.")
                    return
                if time.monotonic() - beat_at > SECONDS_BETWEEN_BEATS:
                    beat_at = time.monotonic()
                    yield ": \n\n"
        finally:
            self._num_followers -= 1

    @contextmanager
    def answering(self) -> Iterator[None]:
        """A request is answered inside; the server outlives it."""
        with self._counting:
            self._num_open += 1
        try:
            yield
        finally:
            with self._counting:
                self._num_open -= 1

    def _is_due(self) -> bool:
        return time.monotonic() >= self._next_at

    def _state(self) -> object:
        """Changes with the files that the page shows."""
        found = []
        for name in ("front.json", TRIALS):
            with suppress(OSError):
                found.append((self._folder / name).stat().st_mtime_ns)
        return found


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], page: LivePage) -> None:
        super().__init__(address, _Handler)
        self.page = page


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """Answer a request for the page, an update of it, or its events; nothing else is here."""
        with self.server.page.answering():
            self._answer()

    def _answer(self) -> None:
        page = self.server.page
        parts = urlsplit(self.path).path.split("/")
        named = urlsplit(f"//{self.headers.get('Host', '')}").hostname  # another name: a page elsewhere, rebound
        if named not in (ADDRESS, "localhost") or len(parts) != 3 or not _is_same(parts[1], page.token):
            self.send_error(404)
        elif parts[2] == "events":
            self._head("text/event-stream")
            with suppress(OSError):  # the browser has gone
                for event in page.events():
                    self.wfile.write(event.encode())
                    self.wfile.flush()
        elif parts[2] in ("", "content"):
            try:
                body = page.page(is_update=parts[2] == "content").encode()
            except Exception as error:  # the search goes on whatever its page meets
                logger.warning("live page: %s", first_line(error))
                self.send_error(500)
                return
            self._head("text/html; charset=utf-8", len(body))
            with suppress(OSError):
                self.wfile.write(body)
        else:
            self.send_error(404)

    def _head(self, kind: str, num_bytes: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if num_bytes is not None:
            self.send_header("Content-Length", str(num_bytes))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the address holds a secret."""


def _is_same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())
