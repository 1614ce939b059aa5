"""The address of a server, as people write it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from SAMFineTuneLib.errors import UserError


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
