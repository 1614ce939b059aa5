"""HTTP/1.1 around a `ServerApp`: one thread per connection, keep-alive, TLS, an access log.

Clients without the token are limited in number of connections, length of heads and time.

Why the standard library and not Starlette on Uvicorn: that was built and measured in alternating runs. A request that
only asks for news took 0.50 ms instead of 0.26 ms and 2.5 times the processor time, and a click whose model answers at
once 1.18 times as long. Uvicorn limits neither how long a head may take to arrive nor tells who speaks HTTP to a TLS
port what to do, and Slicer's users would install seven more packages. The figures are in docs/development-log.md.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from logging.handlers import RotatingFileHandler
from pathlib import Path

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import require_log
from SAMFineTuneLib.service.protocol import MARK, PROTOCOL, Request, Response
from SAMFineTuneLib.service.server_app import ServerApp, loggable_path

_log = logging.getLogger(__name__)
_access = logging.getLogger("samfinetune.access")

_IDLE_SECONDS = 75.0  # between two requests on one connection
_SLOWEST = 20_000  # bytes a second: a longer body has more time, by this rate
_TLS_HANDSHAKE = b"\x16"  # the first byte that a client sends when it uses TLS
_LARGEST_LOG, _KEPT_LOGS = 10 << 20, 5  # bytes of an access log, and how many older ones are kept
_LOOK_AROUND = 2.0  # seconds between two searches for connections and sessions that have taken too long


class WorkerServer(ThreadingHTTPServer):
    """Serves an application; `serve_forever` returns after `shutdown`.

    Args:
        app: what answers the requests.
        host, port: where to listen; port 0 is any free one, which `server_port` then is.
        tls: certificate and key, see `tls_context`; None for plain HTTP.

    Raises:
        UserError: when the address cannot be used.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, app: ServerApp, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.app = app
        self._tls = tls
        self._lines: dict[socket.socket, float] = {}  # open connections, each with the time at which it is closed
        self._lock = threading.Lock()
        self._looked = 0.0
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            text = f"Nothing can be served at {host}:{port} ({reason}); choose another host or port."
            raise UserError(text) from error

    def server_bind(self) -> None:
        """Bind without looking up this computer's name, which may take seconds."""
        if os.name == "posix":  # on Windows it would let two programs share a port
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    # ---- connections

    def process_request(self, request: socket.socket, client_address) -> None:
        with self._lock:
            full = len(self._lines) >= self.app.limits.connections
            if not full:
                self._lines[request] = time.monotonic() + self.app.limits.request_seconds
        if full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def finish_request(self, request: socket.socket, client_address) -> None:
        if self._tls is not None:
            request.settimeout(self.app.limits.request_seconds)
            if request.recv(1, socket.MSG_PEEK) not in (_TLS_HANDSHAKE, b""):
                _PlainOnTls(request, client_address, self)
                return
            with self._tls.wrap_socket(request, server_side=True) as secured:
                with self._lock:
                    self._lines[secured] = self._lines.pop(request, time.monotonic())
                try:
                    self.RequestHandlerClass(secured, client_address, self)
                finally:
                    with self._lock:
                        self._lines.pop(secured, None)
        else:
            self.RequestHandlerClass(request, client_address, self)

    def shutdown_request(self, request: socket.socket) -> None:
        with self._lock:
            self._lines.pop(request, None)
        super().shutdown_request(request)

    def must_end_in(self, request: socket.socket, seconds: float) -> None:
        """Leave this connection open for so long."""
        with self._lock:
            if request in self._lines:
                self._lines[request] = time.monotonic() + seconds

    def service_actions(self) -> None:
        """End connections that have taken too long; `serve_forever` calls this now and then."""
        now = time.monotonic()
        if now - self._looked < _LOOK_AROUND:
            return
        self._looked = now
        self.app.expire()
        self._hang_up(now)

    def handle_error(self, request, client_address) -> None:
        _log.debug("A connection ended early", exc_info=True)

    def server_close(self) -> None:
        """Stop listening, end all connections, and close sessions and models."""
        super().server_close()
        self._hang_up(float("inf"))
        self.app.close()

    def _hang_up(self, now: float) -> None:
        """Shut down the connections whose time ended before `now`, which makes their threads close them."""
        with self._lock:
            late = [line for line, end in self._lines.items() if now > end]
        for line in late:
            try:
                line.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class _Handler(BaseHTTPRequestHandler):
    """One connection: requests one after another."""

    server: WorkerServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = _IDLE_SECONDS

    def do_POST(self) -> None:
        begun = time.perf_counter()
        lengths = self.headers.get_all("Content-Length") or ["0"]
        if self.headers.get("Transfer-Encoding") or len(lengths) > 1 or not _is_length(lengths[0]):
            return self.send_error(411, "A request must say its length once, in Content-Length.")
        length = int(lengths[0])
        headers = {name.lower(): value for name, value in self.headers.items()}
        response = self.server.app.admit(Request(self.command, self.path, headers), length)
        if response is not None:
            self.close_connection |= length > 0  # its body is not read
        else:
            limits = self.server.app.limits
            self.server.must_end_in(self.connection, limits.request_seconds + length / _SLOWEST)
            try:
                body = self._read(length)
            except MemoryError:
                return self.send_error(507, "The server has too little free memory for this request.")
            if body is None:
                self.close_connection = True
                return None
            response = self.server.app.handle(Request(self.command, self.path, headers, body))
        self._log(length, response, time.perf_counter() - begun)
        return self._send(response)

    do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do_POST

    def do_GET(self) -> None:
        if self.headers.get("Transfer-Encoding") or self.headers.get("Content-Length", "0") != "0":
            return self.send_error(400, "A GET has no body.")
        response = self.server.app.greet(Request(self.command, self.path))
        self._log(0, response, 0.0)
        return self._send(response)

    do_HEAD = do_GET

    def _read(self, length: int) -> bytearray | None:
        body = bytearray(length)
        view, have = memoryview(body), 0
        while have < length:
            count = self.rfile.readinto(view[have:])
            if not count:
                return None
            have += count
        return body

    def _log(self, received: int, response: Response, seconds: float) -> None:
        """One line: when, from where, what kind, how it ended. Never a token, voxels or names."""
        if not response.idle and _access.isEnabledFor(logging.INFO):
            sent = sum(len(memoryview(piece).cast("B")) for piece in response.body)
            _access.info("%s %s %s %d, %d bytes in, %d out, %.0f ms", self.client_address[0], self.command,
                         loggable_path(self.path), response.status, received, sent, seconds * 1000)  # fmt: skip

    def _send(self, response: Response) -> None:
        pieces = list(response.body)
        self.send_response_only(response.status)
        if "Content-Type" not in response.headers:
            self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(sum(map(len, pieces))))
        self.send_header("Cache-Control", "no-store")
        for name, value in response.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self._headers_buffer.append(b"\r\n")
        head = b"".join(self._headers_buffer)
        self._headers_buffer = []
        limits = self.server.app.limits
        self.server.must_end_in(self.connection, limits.request_seconds + sum(map(len, pieces)) / _SLOWEST)
        if self.command == "HEAD":
            pieces = []
        self.wfile.write(head + pieces[0] if pieces else head)
        for piece in pieces[1:]:
            self.wfile.write(piece)
        self.server.must_end_in(self.connection, _IDLE_SECONDS)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer invalid HTTP with a sentence."""
        text = (message or "The server did not understand the request.").encode("utf-8", "replace")[:500]
        self.close_connection = True
        self.request_version = self.protocol_version  # without a version the answer would have no head
        self.send_response_only(code)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Connection", "close")
        self.send_header(MARK, str(PROTOCOL))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args) -> None:
        pass


class _PlainOnTls(_Handler):
    """Answers a connection without TLS to a server that uses it with a sentence, and closes it."""

    def do_POST(self) -> None:
        self.send_error(400, "This server uses TLS: begin its address with https://.")

    do_GET = do_HEAD = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do_POST


def tls_context(certificate: str | Path, key: str | Path) -> ssl.SSLContext:
    """Read a server's certificate.

    Args:
        certificate: certificate chain (PEM), the server's own certificate first.
        key: its private key (PEM), without a password.

    Raises:
        UserError: when they cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ssl.SSLError, ValueError) as error:
        raise UserError(
            f"The certificate {certificate} and key {key} cannot be used ("
            f"{getattr(error, 'strerror', None) or error}); give both as PEM files, the key without a password."
        ) from error
    return context


def keep_access_log(path: str | Path) -> None:
    """Append a line for each request to a file, which is renewed at 10 MB, with five older ones kept. UserError when
    it cannot be written."""
    path = Path(path).expanduser()
    try:
        require_log(path)
        handler = RotatingFileHandler(
            path, maxBytes=_LARGEST_LOG, backupCount=_KEPT_LOGS, encoding="utf-8"
        )
    except OSError as error:
        raise UserError(f"The access log {path} cannot be written ({error.strerror}); choose another file.") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    _access.addHandler(handler)
    _access.setLevel(logging.INFO)


def _is_length(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 16
