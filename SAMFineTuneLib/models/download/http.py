"""Connections over http and https only, through a proxy if one is set, and sentences about their failures.

The proxy comes from HTTP_PROXY, HTTPS_PROXY and NO_PROXY or the system's settings; certificates are the system's, or
those of SSL_CERT_FILE.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from SAMFineTuneLib.errors import UserError

_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}  # HTTP answers worth another attempt


class BrokenDownload(Exception):
    """The connection failed, and another attempt may succeed; the text says why."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https, and from http to http, only."""

    def redirect_request(self, request, file, code, message, headers, new_url):
        if urlsplit(new_url).scheme not in ("https", request.type):
            raise urllib.error.HTTPError(request.full_url, code, message, headers, file)
        return super().redirect_request(request, file, code, message, headers, new_url)


def open_safely() -> urllib.request.OpenerDirector:
    """An opener for http and https only, without file:, ftp: or data: addresses."""
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(), urllib.request.HTTPHandler(),
                    urllib.request.HTTPSHandler(context=_tls()), urllib.request.HTTPDefaultErrorHandler(),
                    _Redirects(), urllib.request.HTTPErrorProcessor(), urllib.request.UnknownHandler()):
        opener.add_handler(handler)
    return opener


def _tls() -> ssl.SSLContext:
    """The system's certificates; when Python knows none (macOS), certifi's if it is installed."""
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if not (paths.cafile or paths.capath or context.get_ca_certs()):
        with contextlib.suppress(ImportError):
            import certifi

            context.load_verify_locations(certifi.where())
    return context


def host(url: str) -> str:
    """The name of the computer in an address, for messages."""
    return urlsplit(url).hostname or url


def _proxy_for(url: str) -> str:
    """host:port of the proxy for `url`, without credentials; "" for a direct connection."""
    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc):
        return ""
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    netloc = urlsplit(proxy if "://" in proxy else f"//{proxy}").netloc
    return netloc.rpartition("@")[2]


def refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    """An HTTP error as a sentence; Broken when it may be temporary."""
    if error.code in _TEMPORARY:
        return BrokenDownload(f"HTTP {error.code} {error.reason}")
    if error.code == 407:
        return _proxy_wants_password(url)
    if error.code in (404, 410):
        return UserError(f"{host(url)} has no file at {url} (HTTP {error.code}); find its new place on the "
                         "model's page and import the file with `samfinetune models import`.")
    if error.code in (401, 403):
        return UserError(f"{host(url)} refuses this computer the file (HTTP {error.code}); "
                         "get it in a browser and import it with `samfinetune models import`.")
    if error.code // 100 == 3:
        return UserError(f"{host(url)} redirects to an address that is not safe to follow (HTTP {error.code}); "
                         "get the file in a browser and import it with `samfinetune models import`.")
    return UserError(f"{host(url)} refused the download with HTTP {error.code} {error.reason}.")


def unreachable(url: str, error: Exception) -> Exception:
    """A failed connection as a sentence; Broken when it may be temporary."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    proxy = _proxy_for(url)
    way = f" through the proxy {proxy}" if proxy else ""
    advice = "check HTTPS_PROXY" if proxy else "check the network, or set HTTPS_PROXY if there is a proxy"
    if isinstance(reason, ssl.SSLCertVerificationError):
        return UserError(
            f"The certificate of {host(url)} could not be verified ({reason.verify_message}); where a "
            "hospital's proxy inspects traffic, set SSL_CERT_FILE to its IT department's certificate file."
        )
    if isinstance(reason, ssl.SSLError):
        return UserError(f"No secure connection to {host(url)}{way} was possible ({reason.reason or reason}).")
    if "Tunnel connection failed: 407" in str(reason):
        return _proxy_wants_password(url)
    if isinstance(reason, (TimeoutError, ConnectionResetError, http.client.RemoteDisconnected)):
        return BrokenDownload("no answer in time" if isinstance(reason, TimeoutError) else "the connection closed")
    if isinstance(reason, socket.gaierror):
        return UserError(f"The address of {proxy or host(url)} cannot be found; {advice}.")
    if "unknown url type" in str(reason):
        if proxy:
            return UserError(f"The proxy {proxy} is of an unknown kind; give HTTPS_PROXY an http:// address.")
        return UserError(f"Only http and https addresses can be downloaded, not {url}.")
    cause = getattr(reason, "strerror", None) or reason
    return UserError(f"{host(url)} cannot be reached{way} ({cause}); {advice}.")


def _proxy_wants_password(url: str) -> UserError:
    return UserError(f"The proxy {_proxy_for(url)} asks for a user name and password; "
                     "give them as HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT.")
