"""Where a server is."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from SAMFineTuneLib.errors import UserError


@dataclass(frozen=True)
class Address:
    """Host (a name or a number), port, whether TLS is spoken, and a path before the server's own."""

    host: str
    port: int
    tls: bool = False
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.host_in_url}:{self.port}"

    @property
    def host_in_url(self) -> str:
        """The host as it is written in addresses and in the Host header."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def is_number(self) -> bool:
        """Whether the host needs not be looked up."""
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
    """An address as people write it; without http:// or https:// it is https, except on this computer.

    UserError for what is none.
    """
    example = "give it as https://gpu.example.org:8443"
    text = text.strip()
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UserError(f"“{text[:100]}” is no server address: {example}.") from None
    if not host or parts.scheme not in ("", "http", "https") or any(c.isspace() for c in text):
        raise UserError(f"“{text[:100]}” is no server address: {example}.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(f"A server address holds no name, password or question: {example}.")
    tls = parts.scheme == "https" if parts.scheme else not Address(host, 0).is_loopback
    return Address(host, port or (443 if tls else 80), tls, parts.path.rstrip("/"))
