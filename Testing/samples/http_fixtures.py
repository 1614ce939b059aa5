"""A small file server and a forward proxy on 127.0.0.1 that misbehave on request."""

from __future__ import annotations

import http.client
import re
import ssl
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class FileServer:
    """Serves `body` at /file. The lists below are used up one request at a time."""

    body: bytes
    etag: str | None = '"v1"'
    ranges: bool = True  # honour Range
    content_type: str = "application/octet-stream"
    cut_after: list[int] = field(default_factory=list)  # bytes after which a request's connection is dropped
    answers: list[int] = field(default_factory=list)  # HTTP codes to answer instead of the file
    redirect: str = ""  # where /moved leads
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # (path, Range header)
    url: str = ""

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range") if self.ranges else None
        self.requests.append((request.path, request.headers.get("Range")))
        if self.answers:
            return request.send_error(self.answers.pop(0))
        if request.path == "/moved":
            request.send_response(302)
            request.send_header("Location", self.redirect)
            return request.end_headers()
        if request.path != "/file":
            return request.send_error(404)
        if asked and request.headers.get("If-Range") not in (None, self.etag):
            asked = None
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        if start >= len(self.body) and asked:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.body)}")
            return request.end_headers()
        request.send_response(206 if asked else 200)
        request.send_header("Content-Type", self.content_type)
        request.send_header("Content-Length", str(len(self.body) - start))
        if self.etag:
            request.send_header("ETag", self.etag)
        if asked:
            request.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        request.end_headers()
        end = start + self.cut_after.pop(0) if self.cut_after else len(self.body)
        request.wfile.write(self.body[start:end])


@dataclass
class Proxy:
    """Forwards plain HTTP requests and remembers them; answers 407 when `password` is set and not given."""

    password: str = ""
    seen: list[str] = field(default_factory=list)
    url: str = ""

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        self.seen.append(request.path)
        if self.password and request.headers.get("Proxy-Authorization") != self.password:
            return request.send_error(407)
        target = urlsplit(request.path)
        connection = http.client.HTTPConnection(target.netloc, timeout=5)
        connection.request("GET", target.path)
        answer = connection.getresponse()
        body = answer.read()
        request.send_response(answer.status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)
        connection.close()


@contextmanager
def serving(server, tls: ssl.SSLContext | None = None):
    """Run a FileServer or Proxy in a thread; yields it with its `url` set."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.handle(self)

        def do_CONNECT(self):
            server.handle(self)

        def log_message(self, *args):
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            pass  # clients that go away are what these tests are about

    with Quiet(("127.0.0.1", 0), Handler) as http_server:
        if tls:
            http_server.socket = tls.wrap_socket(http_server.socket, server_side=True)
        thread = threading.Thread(target=http_server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        server.url = f"{'https' if tls else 'http'}://127.0.0.1:{http_server.server_port}"
        try:
            yield server
        finally:
            http_server.shutdown()
            thread.join()
