from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pumped_clients import TOKEN, RegionEngines
from servers import serving

from SAMFineTuneLib import __version__
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.service.link import HttpLink, LinkError
from SAMFineTuneLib.service.protocol import (
    MARK,
    PROTOCOL,
    Close,
    Hello,
    Limits,
    Opened,
    OpenSession,
    Received,
    Refusal,
    Sent,
    Sync,
    Synced,
)
from SAMFineTuneLib.service.server import WorkerServer, tls_context
from SAMFineTuneLib.service.server_address import Address
from SAMFineTuneLib.service.server_app import ServerApp
from SAMFineTuneLib.service.wire import decode, encode
from SAMFineTuneLib.session.intents import AddSegment

HELLO = b"".join(encode(Hello(PROTOCOL, __version__)))
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def server():
    limits = Limits(body_bytes=1 << 20, request_seconds=1.0, connections=12)
    with serving(ServerApp(TOKEN, limits, RegionEngines())) as server:
        yield server


def ask(server, method="POST", path="/v1/hello", body=HELLO, headers=HEADERS):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def speak(server, data: bytes, seconds: float = 5.0) -> bytes:
    """Send bytes, then read until the server hangs up or falls silent."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=seconds) as line:
        line.sendall(data)
        line.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while piece := line.recv(65536):
                received += piece
        except (ConnectionResetError, TimeoutError):
            pass
        return received


def assert_alive(server):
    assert ask(server)[0].status == 200


def test_a_request_is_answered_and_the_line_kept(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    for _ in range(3):
        connection.request("POST", "/v1/hello", HELLO, HEADERS)
        answer = connection.getresponse()
        assert answer.status == 200 and answer.headers[MARK] == str(PROTOCOL)
        assert decode(answer.read(), Hello).version == __version__
        assert connection.sock is not None
    connection.close()


def test_a_wrong_token_gets_no_further_than_the_head(server):
    answer, content = ask(server, headers={"Authorization": "Bearer wrong"}, body=b"x" * 100_000)
    assert answer.status == 401 and "token" in decode(content, Refusal).error
    assert answer.headers["Connection"] == "close"


def test_a_body_beyond_the_limit_is_refused_before_it_comes(server):
    head = f"POST /v1/hello HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {1 << 40}\r\n\r\n"
    assert speak(server, head.encode()).startswith(b"HTTP/1.1 413")
    assert_alive(server)


@pytest.mark.parametrize(
    "head",
    [
        f"POST /v1/hello HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        f"POST /v1/hello HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: -1\r\n\r\n",
        f"POST /v1/hello HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        f"POST /v1/hello HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: ²\r\n\r\n",
        "POST\r\n\r\n",
        "NONSENSE / HTTP/1.1\r\n\r\n",
        "POST /v1/hello HTTP/9.9\r\n\r\n",
        "POST /" + "x" * 70_000 + " HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nA: " + "x" * 70_000 + "\r\n\r\n",
        "POST / HTTP/1.1\r\n" + "A: b\r\n" * 200 + "\r\n",
        "GET /v1/hello HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
    ],
)
def test_heads_that_are_wrong_get_a_4xx_and_no_trace(server, head):
    said = speak(server, head.encode())
    assert said == b"" or said[9:10] in (b"4", b"5")
    assert b"Traceback" not in said and b"File " not in said
    assert_alive(server)


@given(st.binary(max_size=400))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_on_the_line_harms_nobody(server, noise):
    said = speak(server, noise)
    assert b"Traceback" not in said and not said.startswith(b"HTTP/1.1 2")


@given(st.binary(max_size=400), st.sampled_from(["hello", "sessions", "sessions/x/sync", "sessions/x/part"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_as_a_body_gets_a_sentence(server, noise, path):
    answer, content = ask(server, path=f"/v1/{path}", body=noise)
    assert 400 <= answer.status < 500
    assert decode(content, Refusal).error.endswith(".")


def test_other_methods_are_refused(server):
    for method in ("PUT", "DELETE", "OPTIONS"):
        assert ask(server, method, body=b"")[0].status == 405


def test_a_browser_and_a_monitor_get_a_word_of_text_without_a_token(server):
    for path, says in (("/", b"3D Slicer"), ("/health", b"ok"), ("/health?verbose=1", b"ok")):
        answer, content = ask(server, "GET", path, body=None, headers={})
        assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/plain")
        assert says in content and TOKEN.encode() not in content and __version__.encode() not in content
        head, nothing = ask(server, "HEAD", path, body=None, headers={})
        assert head.status == 200 and nothing == b"" and head.headers["Content-Length"] == str(len(content))
    assert ask(server, "GET", "/v1/hello", body=None, headers={})[0].status == 404


def test_each_request_has_a_line_that_tells_nothing_about_patients_and_idle_ones_have_none(server, caplog):
    def post(path, message, kind):
        answer, content = ask(server, path=f"/v1/{path}", body=b"".join(encode(message)))
        assert answer.status == 200
        return decode(content, kind)

    with caplog.at_level("INFO", "samfinetune.access"):
        key = post("sessions", OpenSession(), Opened).session
        add = Sent(1, None, AddSegment("Mustermann, Erika", 1))
        post(f"sessions/{key}/sync", Sync((add,)), Synced)
        while post(f"sessions/{key}/sync", Sync(after=10**6), Synced).told:
            pass
        before = len(caplog.messages)
        post(f"sessions/{key}/sync", Sync(after=10**6), Synced)
        assert len(caplog.messages) == before, "nothing was asked and nothing told"
        ask(server, headers={"Authorization": "Bearer wrong"})
        post(f"sessions/{key}/close", Close(), Received)
    text = "\n".join(caplog.messages)
    assert "127.0.0.1 POST /v1/sessions 200" in text and f"/v1/sessions/{key[:6]}/sync 200" in text
    assert "/v1/hello 401" in text
    for secret in (key, TOKEN, "Mustermann"):
        assert secret not in text


def test_clients_that_say_half_and_fall_silent_are_sent_away(server):
    """A slow head, and a body that never comes: both lines are closed, and others are answered meanwhile."""
    lines = [socket.create_connection(("127.0.0.1", server.server_port), timeout=15) for _ in range(2)]
    lines[0].sendall(b"POST /v1/hello HTTP/1.1\r\nAuthor")
    head = f"POST /v1/hello HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n\r\n"
    lines[1].sendall(head.encode())
    assert_alive(server)
    for line in lines:
        try:
            assert line.recv(100) == b""
        except ConnectionResetError:
            pass
        line.close()


def test_there_are_only_so_many_lines_at_a_time(server):
    lines = [socket.create_connection(("127.0.0.1", server.server_port), timeout=5) for _ in range(20)]
    closed, end = set(), time.monotonic() + 30
    while len(closed) < 8 and time.monotonic() < end:  # the server may be slow to look, but looks in the end
        for line in (line for line in lines if line not in closed):
            line.settimeout(0.01)
            try:
                if line.recv(1) == b"":
                    closed.add(line)
            except TimeoutError:
                pass
            except ConnectionResetError:
                closed.add(line)
    assert 8 <= len(closed) < 20
    for line in lines:
        line.close()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            return assert_alive(server)
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
    raise AssertionError("the server did not recover")


def test_many_at_once_are_all_answered(server):
    statuses = []
    threads = [threading.Thread(target=lambda: statuses.append(ask(server)[0].status)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 8


def test_tls_and_a_handshake_that_never_comes(tmp_path):
    authority = trustme.CA()
    cert = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "server.pem", tmp_path / "server.key"
    chain.write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
    key.write_bytes(cert.private_key_pem.bytes())
    with serving(ServerApp(TOKEN, engines=RegionEngines()), tls_context(chain, key)) as server:
        silent = socket.create_connection(("127.0.0.1", server.server_port))
        context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
        connection = http.client.HTTPSConnection("127.0.0.1", server.server_port, timeout=10, context=context)
        connection.request("POST", "/v1/hello", HELLO, HEADERS)
        assert connection.getresponse().status == 200
        connection.close()
        silent.close()
        answer, content = ask(server)
        assert answer.status == 400 and b"https://" in content
        link = HttpLink(Address("127.0.0.1", server.server_port), TOKEN)
        link.send("/v1/hello", [HELLO])
        with pytest.raises(LinkError, match="begin its address with https://") as refused:
            while link.step(0.02) is None:
                pass
        assert refused.value.permanent


def test_what_cannot_be_served_is_a_sentence(tmp_path, server):
    app = ServerApp(TOKEN, engines=RegionEngines())
    with pytest.raises(UserError, match="another host or port"):
        WorkerServer(app, port=server.server_port)
    with pytest.raises(UserError, match="Nothing can be served at 1.2.3.4"):
        WorkerServer(app, host="1.2.3.4")
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(UserError, match="PEM"):
        tls_context(tmp_path / "key.pem", tmp_path / "key.pem")
