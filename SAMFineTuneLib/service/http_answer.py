"""Parses an HTTP answer while it arrives."""

from __future__ import annotations

import http.client
import io

_LARGEST_HEAD = 64 << 10
_LARGEST_BODY = 512 << 20


class HttpAnswer:
    """Status, headers and body, complete once it is `done`. `feed` raises ValueError for anything that is not HTTP."""

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
        """The part of the body that has arrived."""
        return b"".join(self._chunks) if self._chunked else self._data

    def feed(self, data: bytes) -> None:
        """Take the next bytes from the socket; ValueError when they are not an HTTP answer."""
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
