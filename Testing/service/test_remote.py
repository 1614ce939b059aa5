"""A client and a server run by somebody else: failures of the connection, and other programs at the address."""

from __future__ import annotations

import socket
import time

import numpy as np
import pytest
import trustme
from pumped_clients import TOKEN, Host, RegionEngines
from region_engine import WINDOW, phantom
from servers import Line, answering, serving

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.prompts import PointPrompt
from SAMFineTuneLib.service import link as http_link
from SAMFineTuneLib.service import server_app as app_module
from SAMFineTuneLib.service.client import SessionClient
from SAMFineTuneLib.service.protocol import MARK, Limits
from SAMFineTuneLib.service.remote_server import RemoteServer
from SAMFineTuneLib.service.server import tls_context
from SAMFineTuneLib.service.server_address import Address, parse_address
from SAMFineTuneLib.service.server_app import ServerApp
from SAMFineTuneLib.session.events import Answered, Failed, Finished, MaskChanged, Notice, StateChanged, StatusChanged

LONGEST_PUMP = 0.25  # seconds of the processor; 0.05 is meant, the rest is for slow ones


@pytest.fixture(scope="module")
def volume():
    return phantom()[0]


@pytest.fixture
def remote():
    """Makes hosts of clients of a remote server, and closes them."""
    hosts = []

    def connect(address, token: str = TOKEN, ca_file=None) -> Host:
        if isinstance(address, int):
            address = f"http://127.0.0.1:{address}"
        hosts.append(Host(SessionClient(RemoteServer(address, token, ca_file))))
        return hosts[-1]

    yield connect
    for host in hosts:
        host.client.close()


def tube(volume, k):
    return PointPrompt(tuple(volume.ijk_to_ras((round(14 + 0.3 * k), 16, k))))


def use(host: Host, volume, seconds: float = 60) -> StateChanged:
    """Volume, segment, a click; until its mask is there."""
    host.client.set_volume(volume, WINDOW)
    host.client.add_segment("tube", 1)
    host.client.add_prompt(1, tube(volume, 9))
    return host.until_told(StateChanged, seconds, settled=True)


def sentence_of_failure(host: Host, seconds: float = 60) -> str:
    host.client.start()
    failed = host.until_told(Failed, seconds)
    assert host.client.status.state == "failed" and host.client.status.sentence == failed.text
    assert failed.text.endswith(".") and "Error" not in failed.text and "Errno" not in failed.text
    return failed.text


# ---- who answers


def test_a_wrong_token_is_a_sentence_and_the_right_one_helps(app, remote):
    with serving(app) as server:
        assert "token" in sentence_of_failure(remote(server.server_port, "wrong"))
        host = remote(server.server_port)
        host.client.start()
        host.until(lambda _: host.client.status.state == "ready")


def test_another_version_of_the_protocol_says_what_to_update(app, remote, monkeypatch):
    monkeypatch.setattr(app_module, "PROTOCOL", 99)
    monkeypatch.setattr(app_module, "__version__", "9.0.0")
    with serving(app) as server:
        said = sentence_of_failure(remote(server.server_port))
    assert "9.0.0" in said and "update SAMFineTune on this computer" in said
    monkeypatch.setattr(app_module, "__version__", "0.0.1")
    with serving(app) as server:
        assert "update the server" in sentence_of_failure(remote(server.server_port))


def test_another_version_of_the_package_is_a_notice(app, remote, monkeypatch, volume):
    monkeypatch.setattr(app_module, "__version__", "0.0.9")
    with serving(app) as server:
        host = remote(server.server_port)
        use(host, volume)
    notices = [event.text for event in host.told if isinstance(event, Notice)]
    assert len(notices) == 1 and "0.0.9" in notices[0] and "update the server" in notices[0]
    assert host.client.status.version == "0.0.9"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 Proxy\r\nContent-Type: text/html\r\nContent-Length: 24\r\n\r\n<html>Log in here</html>",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>Log in here</html>",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n<html\r\n0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 xx yy\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x15\x03\x03\x00\x02\x02\x46",
    ],
)
def test_a_proxy_or_another_program_is_a_sentence(remote, answer):
    with answering(answer) as port:
        said = sentence_of_failure(remote(port))
    assert f"127.0.0.1:{port}" in said


@pytest.mark.parametrize(("status", "advice"), [("413 Too Large", "allow 128 MB"), ("504 Timeout", "behind it")])
def test_what_a_proxy_before_the_server_refuses_is_said(remote, status, advice):
    with answering(f"HTTP/1.1 {status}\r\nContent-Length: 4\r\n\r\nhtml".encode()) as port:
        said = sentence_of_failure(remote(port))
    assert f"A proxy at 127.0.0.1:{port}" in said and advice in said


def test_a_server_that_talks_nonsense_under_our_mark_is_a_sentence(remote):
    head = f"HTTP/1.1 200 OK\r\n{MARK}: 1\r\nContent-Length: 4\r\n\r\n"
    with answering(head.encode() + b"oops") as port:
        assert "update" in sentence_of_failure(remote(port))


def test_nobody_there_is_a_sentence(remote):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    assert f"No server runs at 127.0.0.1:{port}" in sentence_of_failure(remote(port))


def test_a_name_is_looked_up_without_waiting(app, remote, volume, monkeypatch):
    slow = socket.getaddrinfo

    def look_up(*arguments, **options):
        time.sleep(0.5)
        return slow(*arguments, **options)

    with serving(app) as server:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        host = remote(f"http://localhost:{server.server_port}")
        use(host, volume)
        assert host.longest < LONGEST_PUMP


def test_an_unknown_name_is_a_sentence(remote):
    assert "No computer is known by the name" in sentence_of_failure(remote("https://no-such-host.invalid"))


def test_silence_is_a_sentence_and_never_blocks(remote, monkeypatch):
    monkeypatch.setattr(http_link, "_SILENCE_SECONDS", 0.5)
    with answering(b"", hang_up=False) as port:
        host = remote(port)
        assert "no longer answers" in sentence_of_failure(host)
        assert host.longest < LONGEST_PUMP


def test_a_way_to_nowhere_never_blocks(remote, monkeypatch):
    monkeypatch.setattr(http_link, "_CONNECT_SECONDS", 0.5)
    host = remote("http://203.0.113.1:8443")  # a network that exists in documentation only
    assert "203.0.113.1:8443" in sentence_of_failure(host)
    assert host.longest < LONGEST_PUMP


def test_a_full_server_is_a_sentence_and_retry_helps(remote, volume):
    app = ServerApp(TOKEN, Limits(sessions=1), RegionEngines())
    with serving(app) as server:
        first, second = remote(server.server_port), remote(server.server_port)
        use(first, volume)
        assert "sessions of the server are in use" in sentence_of_failure(second)
        second.client.set_volume(volume, WINDOW)
        first.client.close()
        end = time.monotonic() + 60
        while app.sessions and time.monotonic() < end:
            time.sleep(0.01)
        second.client.retry()
        use(second, volume)


def test_a_volume_too_large_for_the_server_is_a_sentence(remote, volume):
    with serving(ServerApp(TOKEN, Limits(volume_bytes=1000), RegionEngines())) as server:
        host = remote(server.server_port)
        host.client.set_volume(volume)
        assert "crop or resample it" in sentence_of_failure(host)


# ---- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Files of an authority and of a server's certificate."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    cert = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    cert.private_key_pem.write_to_path(str(folder / "key.pem"))
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
    return folder


def test_tls_with_a_certificate_of_ones_own(app, remote, volume, certificates):
    with serving(app, tls_context(certificates / "cert.pem", certificates / "key.pem")) as server:
        address = f"https://127.0.0.1:{server.server_port}"
        host = remote(address, ca_file=str(certificates / "ca.pem"))
        use(host, volume)
        assert any(isinstance(event, MaskChanged) for event in host.told)
        assert "not trusted" in sentence_of_failure(remote(address))
        assert "certificate file" in sentence_of_failure(remote(address, ca_file=str(certificates / "none.pem")))
        plain = sentence_of_failure(remote(server.server_port))
        assert f"127.0.0.1:{server.server_port}" in plain


def test_a_volume_goes_over_a_slow_line_with_tls(app, remote, certificates):
    with serving(app, tls_context(certificates / "cert.pem", certificates / "key.pem")) as server:
        line = Line(server.server_port, rate=1e7)
        host = remote(f"https://localhost:{line.port}", ca_file=str(certificates / "ca.pem"))
        host.client.set_volume(noise_volume(6), WINDOW)
        host.client.add_segment("square", 1)
        host.client.add_prompt(1, PointPrompt((125.0, 125.0, 20.0)))
        host.until_told(MaskChanged)
        assert host.longest < LONGEST_PUMP, host.longest
        line.close()


def test_a_server_without_tls_is_a_sentence(app, remote):
    with serving(app) as server:
        assert "does not speak TLS" in sentence_of_failure(remote(f"https://127.0.0.1:{server.server_port}"))


# ---- the line


def noise_volume(megabytes: float) -> Volume:
    """A volume of so many MB whose slices hold a bright square."""
    count = int(megabytes * 1e6 / (256 * 256 * 2))
    array = np.random.default_rng(0).integers(0, 50, (count, 256, 256), dtype=np.int16)
    array[:, 100:150, 100:150] = 200
    return Volume(array, np.diag([1.0, 1.0, 2.0, 1.0]), "CT")


def test_a_slow_network_is_only_slow(app, remote):
    """4 MB/s: the volume takes seconds, and no call takes long."""
    volume = noise_volume(6)
    with serving(app) as server:
        line = Line(server.server_port, delay=0.002, rate=4e6)
        host = remote(line.port)
        host.client.set_volume(volume, WINDOW)
        host.client.add_segment("square", 1)
        host.client.add_prompt(1, PointPrompt((125.0, 125.0, 20.0)))
        host.until_told(MaskChanged, 60)
        told = [event.status for event in host.told if isinstance(event, StatusChanged)]
        progress = [status.progress for status in told if status.state == "uploading"]
        assert len(progress) >= 3 and progress == sorted(progress)
        assert host.longest < LONGEST_PUMP, host.longest
        line.close()


def test_a_line_that_breaks_is_taken_up_again_and_nothing_is_lost(app, remote, volume):
    with serving(app) as server:
        line = Line(server.server_port)
        host = remote(line.port)
        use(host, volume)
        line.cut()
        host.client.add_prompt(1, tube(volume, 15))
        state = host.until_told(StateChanged, settled=True)
        assert [info.number for info in state.prompts] == [1, 2]
        assert line.connections >= 2 and app.sessions == 1  # the session was still there
        assert not any(isinstance(event, Notice) for event in host.told)
        line.close()


def test_a_line_that_breaks_during_the_upload_goes_on(app, remote):
    volume = noise_volume(8)
    with serving(app) as server:
        line = Line(server.server_port, rate=2e7)
        host = remote(line.port)
        host.client.set_volume(volume, WINDOW)
        host.until(lambda _: (host.client.status.progress or 0) > 0.3)
        line.cut()
        host.client.add_segment("square", 1)
        host.client.add_prompt(1, PointPrompt((125.0, 125.0, 20.0)))
        host.until_told(MaskChanged)
        line.close()


def test_while_a_server_is_gone_the_status_says_that_it_is_tried_again(app, remote, volume):
    with serving(app) as server:
        host = remote(server.server_port)
        use(host, volume)
    host.client.add_prompt(1, tube(volume, 12))
    host.until(lambda _: "does not answer and is tried again" in host.client.status.sentence)
    assert host.client.status.state == "connecting"
    with serving(ServerApp(TOKEN, engines=RegionEngines()), port=server.server_port):
        host.until_told(StateChanged, settled=True)
    assert host.client.status.state == "ready"


def test_a_server_that_restarts_gets_everything_anew(remote, volume):
    with serving(ServerApp(TOKEN, engines=RegionEngines())) as server:
        port = server.server_port
        host = remote(port)
        use(host, volume)
        job = host.client.propagate(1)
        host.until_told(Finished, job=job)
    host.client.add_prompt(1, tube(volume, 15))
    host.until(lambda _: host.client.status.state == "connecting")
    with serving(ServerApp(TOKEN, engines=RegionEngines()), port=port):
        state = host.until_told(StateChanged, settled=True)
        assert [info.number for info in state.prompts] == [1, 2]
        request = host.client.take_snapshot()
        document = host.until_told(Answered, request=request).value
        assert len(document["propagated"]) == 23
    notices = [event.text for event in host.told if isinstance(event, Notice) and "server had lost" in event.text]
    assert len(notices) == 1


def test_a_session_that_expired_is_made_anew(remote, volume):
    app = ServerApp(TOKEN, Limits(idle_seconds=1.0), RegionEngines())
    with serving(app) as server:
        host = remote(server.server_port)
        use(host, volume)
        time.sleep(1.1)
        app.expire()
        assert app.sessions == 0
        host.client.add_prompt(1, tube(volume, 15))
        state = host.until_told(StateChanged, settled=True)
        assert [info.number for info in state.prompts] == [1, 2]


def test_a_client_that_vanishes_leaves_a_session_that_ends(remote, volume):
    app = ServerApp(TOKEN, Limits(idle_seconds=1.0), RegionEngines())
    with serving(app) as server:
        host = remote(server.server_port)
        use(host, volume)
        job = host.client.propagate(1)
        host.until_told(MaskChanged)
        session = next(iter(app._sessions.values()))
        host.client._connection.drop()  # not a word more
        assert job and session.log is not None
        end = time.monotonic() + 60
        while app.sessions and time.monotonic() < end:
            time.sleep(0.05)
        assert app.sessions == 0
        session.join(60)
        assert session.held_bytes == 0 and not session._thread.is_alive()


# ---- addresses


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("https://gpu.example.org", Address("gpu.example.org", 443, True)),
        ("http://gpu.example.org:80/", Address("gpu.example.org", 80, False)),
        ("gpu.example.org:8443", Address("gpu.example.org", 8443, True)),
        (" 10.0.0.5:8443 ", Address("10.0.0.5", 8443, True)),
        ("localhost:8577", Address("localhost", 8577, False)),
        ("https://[fd00::5]:8443", Address("fd00::5", 8443, True)),
        ("https://proxy.example.org/samfinetune/", Address("proxy.example.org", 443, True, "/samfinetune")),
    ],
)
def test_addresses_as_people_write_them(text, meant):
    assert parse_address(text) == meant


@pytest.mark.parametrize(
    "text", ["", "ftp://a", "https://", "a b", "https://a:99999", "https://u:p@a", "http://[::1", "https://a?b", "a:b"]
)
def test_what_is_no_address_is_a_sentence(text):
    with pytest.raises(UserError, match="https://gpu.example.org:8443"):
        parse_address(text)


def test_proxy_variables_are_not_used(app, remote, monkeypatch, volume):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(app) as server:
        use(remote(server.server_port), volume)
