"""`samfinetune serve`: the server, as the worker of the client that starts it or for a whole department."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from SAMFineTuneLib.cli.arguments import read_token
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write

if TYPE_CHECKING:
    from SAMFineTuneLib.service.protocol import Limits
    from SAMFineTuneLib.service.server import WorkerServer

_EPILOG = """examples:
  samfinetune serve                                            try it on this computer; prints address and token
  samfinetune serve --host 0.0.0.0 --token-file token.txt --tls-cert server.pem --tls-key server.key
                                                               for the computers of a department
  samfinetune serve --host … --cohort /data/liver-cohort       several people work on this cohort

The command creates the token file when it does not exist. Give its content and the address to those who may use the
server. docs/server.md says what is stored and limited.
"""

_PORT = 8577
_GB = 1 << 30


def add_parser(subparsers) -> None:
    """Add `serve`."""
    parser = subparsers.add_parser(
        "serve",
        help="run a server that segments for other programs and computers",
        description="Run a server that segments for Slicer and `samfinetune segment`, on this computer or on others.",
        epilog=_EPILOG,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this computer only)")
    parser.add_argument("--port", type=int, help=f"port to listen on (default: {_PORT})")
    parser.add_argument("--token-file", metavar="FILE", help="file with the token that clients must send")
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate chain (PEM)")
    parser.add_argument("--tls-key", metavar="FILE", help="private key of the certificate (PEM, without a password)")
    parser.add_argument("--cohort", metavar="FOLDER", action="append", default=[], help="a cohort that clients may "
                        "work on together, under the name of its folder; give the option again for others")  # fmt: skip
    parser.add_argument("--sessions", type=int, default=8, help="most sessions at a time (default: 8)")
    parser.add_argument("--memory-gb", type=float, default=16, help="most memory for volumes (default: 16)")
    parser.add_argument("--volume-gb", type=float, default=4, help="largest volume (default: 4)")
    parser.add_argument("--idle-minutes", type=float, default=30,
                        help="end a session after so long without a request (default: 30)")  # fmt: skip
    parser.add_argument("--read-only", action="store_true", help="clients may not add scans to cohorts, add or remove "
                        "models, or clear caches")
    parser.add_argument("--access-log", metavar="FILE",
                        help="append a line for each request, without anything about patients")  # fmt: skip
    parser.add_argument("--handshake", metavar="FILE", help=argparse.SUPPRESS)  # for a client that starts its worker
    parser.add_argument("--verbose", action="store_true", help="also print each request and its errors")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted, or until the client that started the server has ended."""
    from SAMFineTuneLib.service.server import keep_access_log

    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(asctime)s %(message)s")
    if args.access_log:
        keep_access_log(args.access_log)
    limits = _limits(args)
    token = _token(args)
    server = _server(args, token, limits)
    for sign in (signal.SIGTERM, signal.SIGINT):  # KeyboardInterrupt is lost if it comes in a callback
        signal.signal(sign, lambda *_: threading.Thread(target=server.shutdown, daemon=True).start())
    try:
        if args.handshake:
            _end_with_parent(Path(args.handshake))
            _say_port(server, Path(args.handshake))
        else:
            _print_welcome(args, server, token)
        server.serve_forever(poll_interval=0.5)
    finally:
        server.server_close()
    return 0


def _limits(args: argparse.Namespace) -> Limits:
    from SAMFineTuneLib.service.protocol import Limits

    if min(args.sessions, args.memory_gb, args.volume_gb, args.idle_minutes) <= 0:
        raise UserError("The numbers of sessions, gigabytes and minutes must be above 0.")
    return Limits(
        sessions=args.sessions,
        memory_bytes=int(args.memory_gb * _GB),
        volume_bytes=int(min(args.volume_gb, args.memory_gb) * _GB),
        idle_seconds=args.idle_minutes * 60,
    )


def _token(args: argparse.Namespace) -> str:
    from SAMFineTuneLib.service.server_address import Address
    from SAMFineTuneLib.service.worker import TOKEN_VARIABLE

    given = os.environ.pop(TOKEN_VARIABLE, "")  # removed, so that child processes do not see it
    if args.token_file:
        return _own_token(Path(args.token_file).expanduser())
    if not Address(args.host, 0).is_loopback:
        raise UserError(f"To serve others at {args.host}, give --token-file FILE; the command creates the file.")
    return given or secrets.token_urlsafe(32)


def _own_token(path: Path) -> str:
    """The token in a file, which is created, readable for its owner alone, when it does not exist."""
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.touch(0o600)
            temporary.write_text(secrets.token_urlsafe(32) + "\n", encoding="ascii")
    token = read_token(path)
    if len(token) < 16 or not token.isascii() or any(c.isspace() for c in token):
        raise UserError(f"The token in {path} must have at least 16 letters and digits and no spaces; delete the "
                        "file, and the command creates a valid one.")  # fmt: skip
    return token


def _server(args: argparse.Namespace, token: str, limits: Limits) -> WorkerServer:
    from SAMFineTuneLib.service.server import WorkerServer, tls_context
    from SAMFineTuneLib.service.server_app import ServerApp

    if bool(args.tls_cert) != bool(args.tls_key):
        raise UserError("TLS needs both --tls-cert and --tls-key.")
    tls = tls_context(args.tls_cert, args.tls_key) if args.tls_cert else None
    port = args.port if args.port is not None else (0 if args.handshake else _PORT)
    cohorts = None
    if args.cohort:
        from SAMFineTuneLib.service.cohort_api import CohortApi  # with the readers of images, for which no worker waits

        cohorts = CohortApi(args.cohort, limits, not args.read_only)
    return WorkerServer(ServerApp(token, limits, may_change=not args.read_only, cohorts=cohorts), args.host, port, tls)


def _print_welcome(args: argparse.Namespace, server: WorkerServer, token: str) -> None:
    from SAMFineTuneLib.service.server_address import Address

    address = Address(args.host, server.server_port, bool(args.tls_cert))
    scheme = "https" if args.tls_cert else "http"
    for word, host in zip(("address", "or", "or"), reachable_hosts(args.host), strict=False):
        print(f"{word:<8} {scheme}://{replace(address, host=host)}")
    print(f"token    {'in ' + args.token_file if args.token_file else token}")
    if not address.is_loopback and not args.tls_cert:
        print("warning  without --tls-cert and --tls-key, others on the network can read images and token; serve like "
              "this only behind a proxy that uses TLS", file=sys.stderr)  # fmt: skip
    print("stop     with Ctrl+C", flush=True)


def reachable_hosts(host: str) -> list[str]:
    """Names and IP addresses at which others reach a server that listens at `host`.

    0.0.0.0 and :: mean every network card, and cannot be entered as an address: others enter this computer's name or
    its IP address.
    """
    if host not in ("", "0.0.0.0", "::"):
        return [host]
    found = [socket.gethostname()]
    family = socket.AF_INET6 if host == "::" else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        # This sends nothing; it finds the network card that the system would use for an address reserved for examples.
        probe.connect(("2001:db8::1" if host == "::" else "192.0.2.1", 9))
        found.append(probe.getsockname()[0])
    return [name for name in dict.fromkeys(found) if name and name not in ("0.0.0.0", "::")] or ["127.0.0.1"]


def _say_port(server: WorkerServer, handshake: Path) -> None:
    from SAMFineTuneLib import __version__
    from SAMFineTuneLib.service.protocol import PROTOCOL

    with atomic_write(handshake, durable=False) as temporary:
        values = {"port": server.server_port, "pid": os.getpid(), "protocol": PROTOCOL, "version": __version__}
        temporary.write_text(json.dumps(values), encoding="utf-8")


def _end_with_parent(handshake: Path) -> None:
    """End with the parent.

    Nothing needs to be cleaned up first: files appear complete or not at all.
    """
    from SAMFineTuneLib.service.child_process import when_parent_ends

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C in the terminal is meant for the parent

    def leave() -> None:
        with contextlib.suppress(OSError):  # the parent's folder, which it may not have had time to remove
            os.chdir(handshake.parent.parent)
            handshake.unlink(missing_ok=True)
            handshake.with_name("worker.log").unlink(missing_ok=True)
            handshake.parent.rmdir()
        os._exit(0)

    when_parent_ends(leave)
