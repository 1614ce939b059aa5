from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from SAMFineTuneLib.cli.main import main

PATIENCE = 60.0  # s: ending takes a fifth of a second of processor time, of which a starved process gets 2 %


@pytest.fixture
def serve(root, tmp_path):
    """Starts `samfinetune serve`; gives the process and its first lines by their first word."""
    processes = []

    def start(*arguments: str):
        command = [sys.executable, "-m", "SAMFineTuneLib.cli", "serve", "--port", "0", *arguments]
        environment = os.environ | {"SAMFINETUNE_HOME": str(tmp_path / "home")}
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        lines = {}
        while "stop" not in lines and (line := process.stdout.readline()):
            word, _, rest = line.partition(" ")
            lines[word] = rest.strip()
        return process, lines

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_it_says_address_and_token_and_stops_when_told(serve):
    process, lines = serve()
    assert lines["address"].startswith("http://127.0.0.1:") and len(lines["token"]) > 30
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0


@pytest.mark.skipif(os.name != "posix", reason="file modes and signals of POSIX")
def test_for_others_it_makes_a_token_file_and_warns_without_tls(serve, tmp_path):
    token = tmp_path / "token.txt"
    process, lines = serve("--host", "0.0.0.0", "--token-file", str(token))
    assert "0.0.0.0" not in lines["address"] and lines["address"].startswith("http://")
    assert lines["token"] == f"in {token}" and len(token.read_text().strip()) > 30
    assert token.stat().st_mode & 0o077 == 0
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    assert "without --tls-cert" in process.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--tls-cert", "cert.pem"], "needs both"),
        (["--cohort", "nowhere"], "holds no cohort"),
        (["--tls-cert", "cert.pem", "--tls-key", "key.pem"], "PEM files"),
        (["--sessions", "0"], "above 0"),
        (["--token-file", "/"], "cannot be read"),
        (["--port", "99999999"], "another host or port"),
        (["--host", "no-such-host.invalid", "--token-file", "token.txt"], "another host or port"),
    ],
)
def test_what_cannot_be_served_is_a_sentence(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_a_weak_token_is_refused(tmp_path, capsys):
    (tmp_path / "token.txt").write_text("secret")
    assert main(["serve", "--token-file", str(tmp_path / "token.txt")]) == 2
    assert "16 letters" in capsys.readouterr().err


def test_a_worker_starts_without_what_only_cohorts_and_trainings_need(root):
    code = (
        "import sys, SAMFineTuneLib.service.server, SAMFineTuneLib.service.server_app\n"
        "print(sorted({'pydicom', 'SimpleITK', 'onnxruntime', 'torch'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=PATIENCE)
    assert result.stdout.strip() == "[]", result.stderr
