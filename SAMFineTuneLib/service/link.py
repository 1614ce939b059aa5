"""A keep-alive HTTP/1.1 connection that never blocks: one request at a time, advanced by `step`.

A host name is looked up once, in a thread of its own, because the system offers no lookup that does not block.

Written on the standard library's sockets rather than on an HTTP library: Slicer's Python stays as it is installed, and
its threads starve while Slicer idles, so that the panel's timer must advance a request in short steps.
"""

from __future__ import annotations

import errno
import select
import socket
import ssl
import threading
import time
from collections.abc import Sequence

from SAMFineTuneLib.service.http_answer import HttpAnswer
from SAMFineTuneLib.service.protocol import MARK, Buffer, Response
from SAMFineTuneLib.service.server_address import Address

_CONNECT_SECONDS = 8.0
_SILENCE_SECONDS = 30.0  # without a byte in either direction while a request is under way
_LONGEST_STEP = 0.015  # seconds of sending and receiving in one call of `step`
_PIECE = 256 << 10
_AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class LinkError(OSError):
    """Why a request failed, as a sentence.

    Args:
        sentence: what went wrong and what to do.
        permanent: trying again does not help.
        silence: the server has sent nothing for too long.
    """

    def __init__(self, sentence: str, permanent: bool = False, silence: bool = False) -> None:
        super().__init__(sentence)
        self.permanent, self.silence = permanent, silence


class HttpLink:
    """A connection to one address: `send` a request, then `step` until it returns the answer.

    Args:
        address: where the server is.
        token: sent with every request.
        ca_file: certificate (PEM) to trust besides those that the computer knows.
    """

    def __init__(self, address: Address, token: str, ca_file: str | None = None) -> None:
        self.address = address
        self._token = token
        self._ca_file = ca_file
        self._tls: ssl.SSLContext | None = None
        self._lookup: _LookUp | None = None
        self._socket: socket.socket | None = None
        self._state = "closed"  # "closed", "connecting", "securing", "open"
        self._tries: list[tuple] = []
        self._used = False  # whether the open line has carried an answer already
        self._outgoing: list[memoryview] = []
        self._request: tuple[str, Sequence[Buffer]] | None = None
        self._reader: HttpAnswer | None = None
        self._moved = 0.0

    # ---- for the caller

    def send(self, path: str, body: Sequence[Buffer]) -> None:
        """Begin a POST of `body`, given in pieces. `step` sends it."""
        self._request = (path, body)
        self._moved = time.monotonic()
        self._prepare()

    def step(self, wait: float = 0.0) -> Response | None:
        """Advance the request, waiting at most `wait` seconds for the network.

        Returns:
            The answer once it is complete, None before.

        Raises:
            LinkError: when the request failed.
        """
        end = time.monotonic() + _LONGEST_STEP
        while time.monotonic() < end:
            if self._advance():
                self._moved = time.monotonic()
                if self._reader is not None and self._reader.done:
                    return self._finish()
                continue
            self._check_silence()
            if wait <= 0:
                return None
            started = time.monotonic()
            self._wait(wait)
            wait -= time.monotonic() - started
            end = time.monotonic() + _LONGEST_STEP
        return None

    def close(self) -> None:
        """Drop the request and close the connection."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._state, self._used = None, "closed", False
        self._request = self._reader = None
        self._outgoing = []

    # ---- inside: each returns whether it made progress

    def _advance(self) -> bool:
        try:
            if self._state == "closed":
                return self._begin_connecting()
            if self._state == "connecting":
                return self._go_on_connecting()
            if self._state == "securing":
                return self._go_on_securing()
            moved = self._go_on_sending() if self._outgoing else False
            return self._go_on_receiving() or moved
        except _AGAIN:
            return False

    def _prepare(self) -> None:
        """Turn the request into bytes, to be sent from the beginning."""
        path, body = self._request
        size = sum(len(memoryview(piece).cast("B")) for piece in body)
        head = (
            f"POST {self.address.prefix}{path} HTTP/1.1\r\nHost: {self.address}\r\n"
            f"Authorization: Bearer {self._token}\r\nContent-Type: application/octet-stream\r\n"
            f"Content-Length: {size}\r\n\r\n"
        )
        self._outgoing = [memoryview(piece).cast("B") for piece in (head.encode("latin-1", "replace"), *body)]
        self._reader = HttpAnswer()

    def _begin_connecting(self) -> bool:
        if not self._tries:
            self._lookup = self._lookup or _LookUp(self.address)
            if not self._lookup.done:
                time.sleep(0.001)  # lets the lookup's thread run: in Slicer, threads run only while Python is called
                return False
            self._tries = list(self._lookup.places)
            if not self._tries:
                self._lookup = None
                raise LinkError(f"No computer is known by the name {self.address.host}; check the server's address "
                                "and the network.")  # fmt: skip
        family, kind, protocol, _, place = self._tries.pop(0)
        self._socket = socket.socket(family, kind, protocol)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._state = "connecting"
        try:
            self._socket.connect(place)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._next_try(error)
        return True

    def _go_on_connecting(self) -> bool:
        if not _ready(self._socket, write=True):
            if time.monotonic() - self._moved > _CONNECT_SECONDS:
                self._next_try(TimeoutError())
                return True
            return False
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._next_try(OSError(code, ""))
            return True
        self._tries = []
        if self.address.tls:
            self._socket = self._context().wrap_socket(
                self._socket, server_hostname=self.address.host, do_handshake_on_connect=False
            )
            self._state = "securing"
        else:
            self._state = "open"
        return True

    def _next_try(self, error: OSError) -> None:
        """Try the host's next IP address; raise LinkError when there is none left."""
        self._socket.close()
        self._state = "closed"
        self._moved = time.monotonic()
        if not self._tries:
            raise LinkError(self._unreachable(error)) from error

    def _unreachable(self, error: OSError) -> str:
        where = str(self.address)
        if isinstance(error, TimeoutError) or _is(error, "ETIMEDOUT"):
            return f"{where} does not answer; check the address, and whether a firewall blocks it."
        if _is(error, "ECONNREFUSED"):
            return f"No server runs at {where}; start it there, or check the port."
        if _is(error, "ENETUNREACH", "EHOSTUNREACH", "ENETDOWN", "EHOSTDOWN"):
            return f"The network does not reach {where}; check the network or VPN."
        return f"{where} cannot be reached ({error.strerror or error}); check the address and the network."

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            try:
                self._tls = ssl.create_default_context(cafile=self._ca_file or None)
            except (OSError, ssl.SSLError) as error:
                reason = "it contains no certificate" if isinstance(error, ssl.SSLError) else error.strerror
                raise LinkError(f"The certificate file {self._ca_file} cannot be used ({reason}); choose the "
                                "certificate (.pem) of the server.", permanent=True) from error  # fmt: skip
        return self._tls

    def _go_on_securing(self) -> bool:
        try:
            self._socket.do_handshake()
        except _AGAIN:
            raise
        except ssl.SSLCertVerificationError as error:
            raise LinkError(f"The certificate of {self.address} is not trusted ({error.verify_message}); choose its "
                            "certificate file, or check the address.", permanent=True) from error  # fmt: skip
        except ssl.SSLError as error:
            raise LinkError(f"{self.address} does not speak TLS ({error.reason or error}); check the "
                            "port, or begin the address with http://.", permanent=True) from error  # fmt: skip
        except OSError as error:
            raise LinkError(f"{self.address} closed the connection; check the address and the port.") from error
        self._state = "open"
        return True

    def _go_on_sending(self) -> bool:
        moved = False
        end = time.monotonic() + _LONGEST_STEP / 2
        try:
            while self._outgoing and time.monotonic() < end:
                piece = self._outgoing[0]
                count = self._socket.send(piece[:_PIECE]) if len(piece) else 0
                moved = True
                if count == len(piece):
                    self._outgoing.pop(0)
                else:
                    self._outgoing[0] = piece[count:]
        except _AGAIN:
            pass
        except OSError as error:
            self._outgoing = []  # the server may have refused the request before it closed the connection
            if not _ready(self._socket, read=True):
                return self._hung_up(error)
        return moved

    def _go_on_receiving(self) -> bool:
        try:
            data = self._socket.recv(_PIECE)
        except _AGAIN:
            return False
        except OSError as error:
            return self._hung_up(error)
        if not data:
            if self._reader.end():
                return True
            return self._hung_up(None)
        try:
            self._reader.feed(data)
        except ValueError as error:
            raise LinkError(f"The program at {self.address} is not a SAMFineTune server ({error}); check the address "
                            "and port.", permanent=True) from error  # fmt: skip
        return True

    def _hung_up(self, error: OSError | None) -> bool:
        """Send the request again over a new connection where an idle one was closed; else raise LinkError."""
        again = self._used and not self._reader.began
        request = self._request
        self.close()
        if not again:
            advice = "" if self._used else self._or_tls
            raise LinkError(f"The connection to {self.address} was lost; it is tried again{advice}.") from error
        self.send(*request)
        return True

    @property
    def _or_tls(self) -> str:
        """More advice where the server may expect TLS, which this address does not use."""
        return "" if self.address.tls else ", or begin the address with https:// if the server uses TLS"

    def _check_silence(self) -> None:
        if time.monotonic() - self._moved > _SILENCE_SECONDS:
            raise LinkError(f"{self.address} no longer answers; check the network, and whether the server is "
                            "overloaded.", silence=True)  # fmt: skip

    def _wait(self, seconds: float) -> None:
        if self._socket is not None:
            busy = self._state == "connecting" or bool(self._outgoing and self._state == "open")
            _ready(self._socket, read=self._state != "connecting", write=busy, seconds=seconds)

    def _finish(self) -> Response:
        reader = self._reader
        self._request = self._reader = None
        self._used = True
        if reader.closes or self._outgoing:
            self.close()
        if reader.headers.get(MARK.lower()) is None:
            raise self._another_program(reader.status)
        if reader.headers.get("content-type", "").startswith("text/plain"):  # refused by its HTTP layer
            said = bytes(reader.body).decode("utf-8", "replace").strip()
            raise LinkError(f"{self.address} says: {said}", permanent=reader.status < 500)
        return Response(reader.status, [reader.body], reader.headers)

    def _another_program(self, status: int) -> LinkError:
        """The error for an answer that does not come from a server of ours."""
        if status == 413:
            return LinkError(f"A proxy at {self.address} refuses requests of this size (status 413); ask its "
                             "administrator to allow 128 MB.", permanent=True)  # fmt: skip
        if status in (502, 503, 504):
            return LinkError(f"A proxy at {self.address} gets no answer from the server behind it (status {status}); "
                             "ask its administrator whether the server runs and is reached in time.")  # fmt: skip
        return LinkError(f"A program other than SAMFineTune answers at {self.address} (status {status}), perhaps a "
                         f"proxy or another program; check the address and the port{self._or_tls}.",
                         permanent=True)  # fmt: skip


class _LookUp:
    """Looks up a host name. Once it is `done`, `places` holds what socket.getaddrinfo found, perhaps nothing."""

    def __init__(self, address: Address) -> None:
        self.places: list[tuple] = []
        self.done = False
        self._address = address
        if address.is_number:
            self._ask(socket.AI_NUMERICHOST)
        else:
            threading.Thread(target=self._ask, args=(0,), name="samfinetune-lookup", daemon=True).start()

    def _ask(self, flags: int) -> None:
        try:
            place = self._address.host, self._address.port
            self.places = socket.getaddrinfo(*place, type=socket.SOCK_STREAM, flags=flags)
        except (OSError, UnicodeError):
            pass
        self.done = True


def _ready(place: socket.socket, read: bool = False, write: bool = False, seconds: float = 0.0) -> bool:
    """Whether a socket can be read or written, waiting at most `seconds` for that."""
    if read and isinstance(place, ssl.SSLSocket) and place.pending():
        return True
    if hasattr(select, "poll"):  # select() cannot take file numbers above 1023
        poll = select.poll()
        poll.register(place, (select.POLLIN if read else 0) | (select.POLLOUT if write else 0))
        return bool(poll.poll(seconds * 1000))
    found = select.select([place] if read else [], [place] if write else [], [place], seconds)
    return any(found)


def _is(error: OSError, *names: str) -> bool:
    """Whether an error has one of these codes of POSIX or Windows."""
    known = [getattr(errno, prefix + name, None) for name in names for prefix in ("", "WSA")]
    return error.errno is not None and error.errno in known
