"""How a client reaches a server: `Connection`, the base of `LocalWorker` and `RemoteServer`, and the link below it.

`HttpLink` is a keep-alive HTTP/1.1 connection that never blocks: one request at a time, advanced by `step`. Every
failure of it is a LinkError, an OSError whose text is a sentence for the user. A host name is looked up once, in a
thread of its own, because the system offers no lookup that does not block.

Written on the standard library's sockets rather than on an HTTP library: Slicer's Python stays as it is installed, and
its threads starve while Slicer idles, so that the panel's timer must advance a request in short steps.
"""

from __future__ import annotations

import errno
import http.client
import io
import ipaddress
import select
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urlsplit

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.service.protocol import MARK, Buffer, Response

_CONNECT_SECONDS = 8.0
_SILENCE_SECONDS = 30.0  # without a byte in either direction while a request is under way
_LONGEST_STEP = 0.015  # seconds of sending and receiving in one call of `step`
_PIECE = 256 << 10
_LARGEST_HEAD = 64 << 10
_LARGEST_BODY = 512 << 20
_AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


@dataclass(frozen=True)
class Address:
    """Host (a name or an IP address), port, whether the server uses TLS, and a path that precedes the server's own."""

    host: str
    port: int
    tls: bool = False
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.host_in_url}:{self.port}"

    @property
    def host_in_url(self) -> str:
        """The host as URLs and the Host header write it: IPv6 addresses in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def is_number(self) -> bool:
        """Whether the host is an IP address, which needs no lookup."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    @property
    def is_loopback(self) -> bool:
        """Whether it is this computer."""
        return self.host == "localhost" or (self.is_number and ipaddress.ip_address(self.host).is_loopback)


def parse_address(text: str) -> Address:
    """Parse an address as people write it; without http:// or https:// it means https, except on this computer.

    Raises:
        UserError: for text that is not an address, or that contains a user name, password or query.
    """
    example = "give it as https://gpu.example.org:8443"
    text = text.strip()
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UserError(f"“{text[:100]}” is not a server address: {example}.") from None
    if not host or parts.scheme not in ("", "http", "https") or any(c.isspace() for c in text):
        raise UserError(f"“{text[:100]}” is not a server address: {example}.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(f"A server address must not contain a user name, password or query: {example}.")
    tls = parts.scheme == "https" if parts.scheme else not Address(host, 0).is_loopback
    return Address(host, port or (443 if tls else 80), tls, parts.path.rstrip("/"))


class Broken(Exception):
    """The request failed; another try may succeed. The text is a sentence."""


class Unusable(UserError):
    """The request failed, and trying again does not help until the user changes what the sentence says."""


class Connection:
    """A connection to one server, over an HttpLink."""

    is_local: ClassVar[bool]
    """Whether the client started the server itself, and may restart it."""
    waiting: str
    """What the client waits for until it is `ready`, as a sentence."""
    encrypted = True
    """Whether nobody in the network can read what is sent."""

    def __init__(self, link: HttpLink | None) -> None:
        self._link = link

    def ready(self) -> bool:
        """Whether a request can be sent; takes the next step towards that. Raises Unusable."""
        raise NotImplementedError

    def send(self, path: str, body: Sequence[Buffer]) -> None:
        """Begin a request. There is one at a time."""
        self._link.send(path, body)

    def receive(self, wait: float) -> Response | None:
        """Advance the request, waiting for the network at most `wait` seconds.

        Returns:
            The answer once it is complete, None before.

        Raises:
            Broken, Unusable: when the request failed.
        """
        raise NotImplementedError

    def drop(self) -> None:
        """Drop the request and close the connection it uses; `ready` opens a new one."""
        if self._link is not None:
            self._link.close()

    def retry(self) -> None:
        """Forget earlier failures, because the user changed something."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the connection, and end a server that the client started."""
        self.drop()


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
        self._reader: _Reader | None = None
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
        self._reader = _Reader()

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
            return f"{where} does not answer; check the address, and whether a firewall is in between."
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
            raise LinkError(f"{self.address} does not answer any more; check the network, and whether the server is "
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
            raise LinkError(f"Something else than SAMFineTune answers at {self.address} (status {reader.status}), "
                            f"perhaps a proxy or another program; check the address and the port{self._or_tls}.",
                            permanent=reader.status not in (502, 503, 504))  # fmt: skip
        if reader.headers.get("content-type", "").startswith("text/plain"):  # refused by its HTTP layer
            said = bytes(reader.body).decode("utf-8", "replace").strip()
            raise LinkError(f"{self.address} says: {said}", permanent=reader.status < 500)
        return Response(reader.status, [reader.body], reader.headers)


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


class _Reader:
    """Parses an HTTP answer as it arrives; ValueError for anything else."""

    def __init__(self) -> None:
        self.began = self.done = False
        self.closes = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self._head: bytearray | None = bytearray()
        self._data = bytearray()
        self._length: int | None = None
        self._chunked = False
        self._chunks: list[bytes] = []

    @property
    def body(self) -> bytes | bytearray:
        return b"".join(self._chunks) if self._chunked else self._data

    def feed(self, data: bytes) -> None:
        self.began = True
        if self._head is not None:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                if len(self._head) > _LARGEST_HEAD or not self._head.startswith(b"HTTP/"[: len(self._head)]):
                    raise ValueError("its answer is not HTTP")
                return
            rest = self._head[end + 4 :]
            self._read_head(bytes(self._head[: end + 4]))
            if self.status < 200:  # such as 100 Continue: the answer follows
                self._head = bytearray()
                if rest:
                    self.feed(bytes(rest))
                return
            self._head = None
            data = rest
        self._data += data
        if len(self._data) > _LARGEST_BODY:
            raise ValueError("its answer is too long")
        self._look()

    def end(self) -> bool:
        """The server closed the connection; returns whether the answer is complete."""
        if self._head is None and not self.done and self._length is None and not self._chunked:
            self.done = self.closes = True
        return self.done

    def _read_head(self, head: bytes) -> None:
        first, _, rest = head.partition(b"\r\n")
        words = first.split(None, 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1") or not words[1].isdigit():
            raise ValueError("its answer is not HTTP/1")
        self.status = int(words[1])
        try:
            fields = http.client.parse_headers(io.BytesIO(rest))
            length = fields.get("Content-Length")
            self._length = None if length is None else int(length)
        except (http.client.HTTPException, ValueError):
            raise ValueError("its headers are damaged") from None
        self.headers = {name.lower(): value for name, value in fields.items()}
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        self.closes = "close" in self.headers.get("connection", "").lower() or words[0] == b"HTTP/1.0"
        if self._length is not None and not 0 <= self._length <= _LARGEST_BODY:
            raise ValueError("its answer is too long")

    def _look(self) -> None:
        if self._chunked:
            while not self.done and self._take_chunk():
                pass
        elif self._length is not None and len(self._data) >= self._length:
            self.closes |= len(self._data) > self._length
            del self._data[self._length :]
            self.done = True

    def _take_chunk(self) -> bool:
        end = self._data.find(b"\r\n")
        if end < 0:
            return False
        try:
            size = int(bytes(self._data[:end]).split(b";")[0], 16)
        except ValueError:
            raise ValueError("its answer is damaged") from None
        if not 0 <= size <= _LARGEST_BODY:
            raise ValueError("its answer is too long")
        if size == 0:
            self.done = b"\r\n\r\n" in self._data[end - 1 :] or self._data[end + 2 : end + 4] == b"\r\n"
            return False
        if len(self._data) < end + 2 + size + 2:
            return False
        self._chunks.append(bytes(self._data[end + 2 : end + 2 + size]))
        del self._data[: end + 2 + size + 2]
        return True


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
