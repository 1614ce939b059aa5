"""Servers in a thread of this process, and things between them and a client that misbehave."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from SAMFineTuneLib.service.server import WorkerServer
from SAMFineTuneLib.service.server_app import ServerApp


@contextmanager
def serving(app: ServerApp, tls: ssl.SSLContext | None = None, port: int = 0) -> Iterator[WorkerServer]:
    """The application over HTTP at 127.0.0.1."""
    server = WorkerServer(app, port=port, tls=tls)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Line:
    """A TCP proxy that behaves like a long line: a delay, so many bytes a second, and it can be cut."""

    def __init__(self, port: int, delay: float = 0.0, rate: float = 1e12) -> None:
        self._target, self._delay, self._rate = port, delay, rate
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self.connections = 0
        self.open = True
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Hang up on everybody."""
        for one in self._sockets:
            one.close() if one.fileno() < 0 else _abort(one)
        self._sockets = []

    def close(self) -> None:
        self.open = False
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while self.open:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            self._sockets += [client, server]
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(16384):
                time.sleep(self._delay + len(data) / self._rate)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def _abort(one: socket.socket) -> None:
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    one.close()


@contextmanager
def answering(answer: bytes, hang_up: bool = True) -> Iterator[int]:
    """A port where everything is answered with the same bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            line.settimeout(5)
            try:
                line.recv(65536)
                line.sendall(answer)
                if hang_up:
                    line.close()
                else:
                    kept.append(line)
            except OSError:
                pass

    kept: list[socket.socket] = []
    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
        for line in kept:
            line.close()
