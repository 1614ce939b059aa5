"""Downloads against a real server that drops connections, sends wrong bytes, and hides behind a proxy."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from http_fixtures import FileServer, Proxy, serving

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.download import download_file as download_module
from SAMFineTuneLib.models.download.download_file import discard_partial, download
from SAMFineTuneLib.wording import readable_size

BODY = random.Random(7).randbytes(3_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.fixture(autouse=True)
def no_proxy_from_outside(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def server():
    with serving(FileServer(BODY)) as running:
        yield running


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_arrives_verified_and_nothing_else_is_left(server, tmp_path):
    steps = []
    note = download(f"{server.url}/file", tmp_path / "model.pth", size=len(BODY), digests={"sha256": SHA256},
                    progress=lambda received, total: steps.append((received, total)))
    assert (tmp_path / "model.pth").read_bytes() == BODY
    assert names(tmp_path) == ["model.pth"]
    assert note == f"Its sha256 {SHA256} is the published one."
    assert steps[0] == (0, len(BODY)) and steps[-1] == (len(BODY), len(BODY))
    assert [received for received, _ in steps] == sorted(received for received, _ in steps)


def test_a_connection_dropped_in_mid_transfer_is_resumed_where_it_broke(server, tmp_path):
    server.cut_after = [1_000_000, 700_000]
    download(f"{server.url}/file", tmp_path / "model.pth", digests={"md5": MD5}, pause=0)
    assert (tmp_path / "model.pth").read_bytes() == BODY
    assert [asked for _, asked in server.requests] == [None, "bytes=1000000-", "bytes=1700000-"]


def test_a_server_that_ignores_range_is_read_from_the_start(server, tmp_path):
    server.cut_after, server.ranges = [1_000_000], False
    download(f"{server.url}/file", tmp_path / "model.pth", digests={"sha256": SHA256}, pause=0)
    assert (tmp_path / "model.pth").read_bytes() == BODY


def test_without_validator_and_digest_bytes_are_never_joined(server, tmp_path):
    server.cut_after, server.etag = [1_000_000], None
    note = download(f"{server.url}/file", tmp_path / "model.pth", pause=0)
    assert (tmp_path / "model.pth").read_bytes() == BODY
    assert [asked for _, asked in server.requests] == [None, None]
    assert note == "Its authors publish no digest; its sha256 is recorded from now on."


def test_a_download_that_keeps_breaking_gives_up_keeps_its_bytes_and_goes_on_later(server, tmp_path):
    server.cut_after = [500_000, 0, 0, 0, 0, 0]
    with pytest.raises(UserError, match="broke off 5 times in a row.*run the same command again"):
        download(f"{server.url}/file", tmp_path / "model.pth", digests={"sha256": SHA256}, pause=0)
    assert names(tmp_path) == ["model.pth.partial", "model.pth.partial.json"]
    server.cut_after, server.requests = [], []
    download(f"{server.url}/file", tmp_path / "model.pth", digests={"sha256": SHA256}, pause=0)
    assert server.requests == [("/file", "bytes=500000-")]
    assert names(tmp_path) == ["model.pth"] and (tmp_path / "model.pth").read_bytes() == BODY


def test_a_file_replaced_on_the_server_in_between_is_read_anew(server, tmp_path):
    server.cut_after = [500_000, 0, 0, 0, 0, 0]
    with pytest.raises(UserError):
        download(f"{server.url}/file", tmp_path / "model.pth", pause=0)
    server.cut_after, server.etag, server.body = [], '"v2"', bytes(reversed(BODY))
    download(f"{server.url}/file", tmp_path / "model.pth", pause=0)
    assert (tmp_path / "model.pth").read_bytes() == bytes(reversed(BODY))


def test_a_partial_of_another_address_or_of_unknown_origin_is_not_continued(server, tmp_path):
    (tmp_path / "model.pth.partial").write_bytes(b"something else")
    download(f"{server.url}/file", tmp_path / "model.pth", digests={"sha256": SHA256})
    assert server.requests == [("/file", None)]
    assert (tmp_path / "model.pth").read_bytes() == BODY


def test_a_complete_partial_needs_no_second_transfer(server, tmp_path):
    (tmp_path / "model.pth.partial").write_bytes(BODY)
    (tmp_path / "model.pth.partial.json").write_text(f'{{"url": "{server.url}/file", "validator": "\\"v1\\""}}')
    download(f"{server.url}/file", tmp_path / "model.pth", digests={"sha256": SHA256})
    assert server.requests == [("/file", f"bytes={len(BODY)}-")]
    assert names(tmp_path) == ["model.pth"]


def test_a_wrong_digest_names_both_and_leaves_nothing(server, tmp_path):
    wrong = "0" * 64
    with pytest.raises(UserError) as error:
        download(f"{server.url}/file", tmp_path / "model.pth", digests={"sha256": wrong})
    assert SHA256 in str(error.value) and wrong in str(error.value)
    assert names(tmp_path) == []


def test_a_wrong_size_names_both_before_anything_is_transferred(server, tmp_path):
    with pytest.raises(UserError, match="3,000,000 bytes where 3,000,001 are published"):
        download(f"{server.url}/file", tmp_path / "model.pth", size=3_000_001)
    assert names(tmp_path) == []


def test_a_digest_that_cannot_be_computed_is_said(server, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xxhash", None)
    note = download(f"{server.url}/file", tmp_path / "model.pth", size=len(BODY), digests={"xxh128": "ab" * 16})
    assert note == ("Its size is the published one, but its published xxh128 could not be checked here without the "
                    "package xxhash; its sha256 is recorded from now on.")


def test_xxh128_is_checked_where_xxhash_is_installed(server, tmp_path, monkeypatch):
    stand_in = SimpleNamespace(xxh128=lambda: hashlib.new("md5"))  # the wiring, not the algorithm
    monkeypatch.setitem(sys.modules, "xxhash", stand_in)
    with pytest.raises(UserError, match=f"xxh128 {MD5} where {'ab' * 16} is published"):
        download(f"{server.url}/file", tmp_path / "model.pth", digests={"xxh128": "ab" * 16})
    assert MD5 in download(f"{server.url}/file", tmp_path / "model.pth", digests={"xxh128": MD5})


@pytest.mark.parametrize("code, sentence", [
    (404, "has no file at http.*HTTP 404.*samfinetune models import"),
    (403, "refuses this computer the file.*HTTP 403"),
    (418, "refused the download with HTTP 418"),
])
def test_refusals_are_sentences_and_are_not_repeated(server, tmp_path, code, sentence):
    server.answers = [code]
    with pytest.raises(UserError, match=sentence):
        download(f"{server.url}/file", tmp_path / "model.pth")
    assert len(server.requests) == 1 and names(tmp_path) == []


def test_an_overloaded_server_is_asked_again(server, tmp_path):
    server.answers = [503, 429]
    download(f"{server.url}/file", tmp_path / "model.pth", digests={"sha256": SHA256}, pause=0)
    assert len(server.requests) == 3


def test_a_web_page_is_not_mistaken_for_the_file(server, tmp_path):
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(UserError, match="web page instead of the file"):
        download(f"{server.url}/file", tmp_path / "model.pth")
    assert names(tmp_path) == []


def test_redirects_are_followed(server, tmp_path):
    server.redirect = f"{server.url}/file"
    download(f"{server.url}/moved", tmp_path / "model.pth", digests={"sha256": SHA256})
    assert (tmp_path / "model.pth").read_bytes() == BODY


@pytest.mark.parametrize("target", ["file:///etc/hosts", "ftp://127.0.0.1/file"])
def test_redirects_away_from_http_are_not_followed(server, tmp_path, target):
    server.redirect = target
    with pytest.raises(UserError, match="not safe to follow"):
        download(f"{server.url}/moved", tmp_path / "other.pth")


@pytest.mark.parametrize("url", ["file:///etc/hosts", "ftp://127.0.0.1/file", "data:,hello"])
def test_only_http_addresses_are_opened(tmp_path, url):
    with pytest.raises(UserError, match="Only http and https"):
        download(url, tmp_path / "model.pth")


def test_no_server_is_one_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(UserError, match="127.0.0.1 cannot be reached .*check the network, or set HTTPS_PROXY"):
        download(f"http://127.0.0.1:{port}/file", tmp_path / "model.pth")


def test_an_unknown_address_is_one_sentence(tmp_path, monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UserError, match="address of nowhere.example cannot be found"):
        download("http://nowhere.example/file", tmp_path / "model.pth")


def test_a_silent_server_times_out(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(UserError, match="broke off 5 times in a row .no answer in time"):
            download(f"http://127.0.0.1:{silent.getsockname()[1]}/file", tmp_path / "model.pth",
                     timeout=0.05, pause=0)


def test_a_server_without_tls_is_one_sentence(server, tmp_path):
    with pytest.raises(UserError, match="No secure connection to 127.0.0.1"):
        download(server.url.replace("http:", "https:") + "/file", tmp_path / "model.pth")


@pytest.fixture
def tls_server(tmp_path_factory):
    """The file server behind TLS with a certificate of its own making; yields it and the certificate."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    try:
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", key,
                        "-out", certificate, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
                       check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("openssl is not on this machine")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(FileServer(BODY), context) as running:
        yield running, certificate


def test_an_unknown_certificate_is_one_sentence_and_ssl_cert_file_helps(tls_server, tmp_path, monkeypatch):
    server, certificate = tls_server
    with pytest.raises(UserError, match="certificate of 127.0.0.1 could not be verified .*set SSL_CERT_FILE"):
        download(f"{server.url}/file", tmp_path / "model.pth")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    download(f"{server.url}/file", tmp_path / "model.pth", digests={"sha256": SHA256})
    assert (tmp_path / "model.pth").read_bytes() == BODY


def test_https_is_never_redirected_to_http(tls_server, server, tmp_path, monkeypatch):
    secure, certificate = tls_server
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    secure.redirect = f"{server.url}/file"
    with pytest.raises(UserError, match="not safe to follow"):
        download(f"{secure.url}/moved", tmp_path / "model.pth")
    assert server.requests == []


def test_the_proxy_of_the_environment_is_used_and_no_proxy_honoured(server, tmp_path, monkeypatch):
    with serving(Proxy()) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        download(f"{server.url}/file", tmp_path / "a.pth", digests={"sha256": SHA256})
        assert proxy.seen == [f"{server.url}/file"]
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        download(f"{server.url}/file", tmp_path / "b.pth", digests={"sha256": SHA256})
        assert len(proxy.seen) == 1 and len(server.requests) == 2


def test_https_goes_through_the_proxy_and_a_407_asks_for_the_password_without_telling_it(tmp_path, monkeypatch):
    with serving(Proxy(password="Basic " + base64.b64encode(b"ann:right").decode())) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//ann:wrong@"))
        with pytest.raises(UserError, match="asks for a user name and password") as error:
            download("https://example.org/file", tmp_path / "model.pth")
        assert proxy.seen == ["example.org:443"]
        assert "wrong" not in str(error.value) and proxy.url.removeprefix("http://") in str(error.value)


def test_credentials_in_the_proxy_address_reach_it(server, tmp_path, monkeypatch):
    with serving(Proxy(password="Basic " + base64.b64encode(b"ann:right").decode())) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//ann:right@"))
        download(f"{server.url}/file", tmp_path / "model.pth", digests={"sha256": SHA256})
        assert (tmp_path / "model.pth").read_bytes() == BODY


def test_a_dead_proxy_is_named(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
    with pytest.raises(UserError, match=f"example.org cannot be reached through the proxy 127.0.0.1:{port}"):
        download("http://example.org/file", tmp_path / "model.pth")


def test_too_little_disk_is_said_before_the_transfer(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000_000))
    with pytest.raises(UserError, match="needs 3 MB but only 10 MB are free"):
        download(f"{server.url}/file", tmp_path / "model.pth")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written to"):
        download(f"{server.url}/file", tmp_path / "file" / "model.pth")


def test_a_second_process_does_not_write_into_the_same_download(server, tmp_path):
    def second(received, total):
        with pytest.raises(UserError, match="Another process is downloading model.pth already"):
            download(f"{server.url}/file", tmp_path / "model.pth")

    download(f"{server.url}/file", tmp_path / "model.pth", digests={"sha256": SHA256}, progress=second)
    assert (tmp_path / "model.pth").read_bytes() == BODY


def test_a_killed_process_leaves_a_partial_file_that_the_next_one_continues(server, tmp_path, root):
    code = (
        "import sys, time\n"
        "from SAMFineTuneLib.models.download.download_file import download\n"
        "def slow(received, total):\n"
        "    print(received, flush=True)\n"
        "    if received > 1_000_000: time.sleep(60)\n"
        f"download({server.url + '/file'!r}, {str(tmp_path / 'model.pth')!r}, progress=slow)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) > 1_000_000:
                break
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
    assert not (tmp_path / "model.pth").exists()
    download(f"{server.url}/file", tmp_path / "model.pth", digests={"sha256": SHA256})
    assert server.requests[-1][1] is not None, "the bytes that had arrived were fetched again"
    assert names(tmp_path) == ["model.pth"] and (tmp_path / "model.pth").read_bytes() == BODY


def test_what_was_left_of_a_download_can_be_discarded(server, tmp_path):
    server.cut_after = [500_000, 0, 0, 0, 0, 0]
    with pytest.raises(UserError):
        download(f"{server.url}/file", tmp_path / "model.pth", pause=0)
    assert discard_partial(tmp_path / "model.pth") is True
    assert names(tmp_path) == []
    assert discard_partial(tmp_path / "model.pth") is False


@pytest.mark.parametrize("count, text", [(375_042_383, "375 MB"), (2_564_550_879, "2.56 GB"), (512, "0.512 kB")])
def test_sizes_for_people(count, text):
    assert readable_size(count) == text
