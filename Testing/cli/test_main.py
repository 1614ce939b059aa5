"""The frame of the command line: finding sub-commands, sentences and exit codes, and starting fast."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from SAMFineTuneLib import __version__
from SAMFineTuneLib.cli import main as frame
from SAMFineTuneLib.errors import UserError

HEAVY = ("torch", "onnxruntime", "SimpleITK", "pydicom", "PIL", "tqdm")


@pytest.fixture
def command(monkeypatch):
    """Add a sub-command `trial` that runs the given function."""

    def add(function):
        def add_parser(subparsers):
            subparsers.add_parser("trial", help="a test")

        monkeypatch.setattr(frame, "COMMANDS", ("trial",))
        module = SimpleNamespace(add_parser=add_parser, run=function)
        monkeypatch.setitem(sys.modules, "SAMFineTuneLib.cli.trial", module)

    return add


def raising(error):
    def run(args):
        raise error

    return run


def started(root, *arguments, **options):
    return subprocess.run([sys.executable, "-m", "SAMFineTuneLib.cli", *arguments], cwd=root, text=True,
                          capture_output=True, timeout=60, **options)


def test_version(capsys):
    assert frame.main(["--version"]) == 0
    assert capsys.readouterr().out == f"samfinetune {__version__}\n"


def test_help_names_every_command_with_a_line_and_examples(capsys):
    assert frame.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in frame.COMMANDS:
        assert any(line.split()[:1] == [name] and len(line.split()) > 2 for line in out.splitlines()), name
    assert "examples:" in out


@pytest.mark.parametrize("name", frame.COMMANDS)
def test_every_command_has_help_with_examples(name, capsys):
    assert frame.main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: samfinetune {name}" in out and "example" in out and f"samfinetune {name}" in out.split("example")[1]


@pytest.mark.parametrize("arguments", [["nonsense"], ["models"], ["models", "list", "--nonsense"]])
def test_wrong_arguments_end_with_2_and_usage(arguments, capsys):
    assert frame.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("usage: samfinetune")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("segment", "scan.nrrd", "-o", "a.nrrd", "--label", ""), "The argument after --label is empty"),
        (("segment", "scan.nrrd", "-o", "a.nrrd", "--label="), "--label is empty"),
        (("train", "cases", "-o", "a", "--test", " "), "The argument after --test is empty"),
        (("info", ""), "The argument after info is empty"),
    ],
)
def test_an_empty_argument_is_not_an_option_s_default(arguments, named, capsys):
    assert frame.main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"samfinetune: {named}; give it a value, or leave it out.\n")


def test_the_result_of_a_command_is_the_exit_code(command):
    command(lambda args: 0)
    assert frame.main(["trial"]) == 0


def test_a_user_error_is_one_sentence_on_stderr_and_2(command, capsys):
    command(raising(UserError("The file\nis no volume.")))
    assert frame.main(["trial"]) == 2
    assert capsys.readouterr() == ("", "samfinetune: The file is no volume.\n")


def test_an_interruption_ends_with_130_and_a_sentence(command, capsys):
    command(raising(KeyboardInterrupt()))
    assert frame.main(["trial"]) == 130
    assert capsys.readouterr().err.startswith("samfinetune: interrupted;")
    command(raising(KeyboardInterrupt("what has arrived is kept.")))
    assert frame.main(["trial"]) == 130
    assert capsys.readouterr().err == "samfinetune: what has arrived is kept.\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("Caught _ArrayMemoryError in DataLoader worker process 0. Unable to allocate 728. TiB"),
        RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed. "),
    ],
)
def test_too_little_memory_is_a_sentence(command, capsys, error):
    command(raising(error))
    assert frame.main(["trial"]) == 2
    assert "too little free memory" in capsys.readouterr().err


def test_a_defect_is_not_hidden(command):
    command(raising(RuntimeError("defect")))
    with pytest.raises(RuntimeError):
        frame.main(["trial"])


def test_the_module_can_be_run_and_its_exit_code_reaches_the_shell(root, tmp_path):
    environment = os.environ | {"SAMFINETUNE_MODELS": str(tmp_path)}
    assert started(root, "--version").stdout == f"samfinetune {__version__}\n"
    wrong = started(root, "models", "show", "nonsense", env=environment)
    assert (wrong.returncode, wrong.stdout) == (2, "") and "Traceback" not in wrong.stderr


def test_help_and_one_command_load_nothing_heavy(root):
    code = (
        "import sys\n"
        "from SAMFineTuneLib.cli.main import main\n"
        "main(['--help'])\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, text=True, capture_output=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr


def test_a_command_does_not_load_the_others(root):
    code = (
        "import sys\n"
        "from SAMFineTuneLib.cli.main import COMMANDS, main\n"
        "main(['models', '--help'])\n"
        "print('loaded:', [name for name in COMMANDS if f'SAMFineTuneLib.cli.{name}' in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, text=True, capture_output=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "loaded: ['models']", done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_reader_that_goes_away_is_no_trace(root, tmp_path):
    environment = os.environ | {"SAMFINETUNE_MODELS": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-m", "SAMFineTuneLib.cli", "models", "list"], cwd=root, env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 141


@pytest.mark.skipif(os.name == "nt", reason="POSIX shells close streams")
@pytest.mark.parametrize(("closed", "said"), [("<&-", True), (">&-", False), ("2>&-", True), ("<&- >&- 2>&-", False)])
def test_streams_that_are_closed(root, tmp_path, closed, said):
    environment = os.environ | {"SAMFINETUNE_MODELS": str(tmp_path)}
    command = f"exec {sys.executable} -m SAMFineTuneLib.cli models list {closed}"
    done = subprocess.run(["/bin/sh", "-c", command], cwd=root, env=environment, capture_output=True, text=True,
                          timeout=60)  # fmt: skip
    assert done.returncode == 0 and ("compact" in done.stdout) == said and not done.stderr


@pytest.mark.skipif(os.name == "nt" or signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
                    reason="POSIX signals, which a job in the background of a script is started without")
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_in_one_sentence(root, tmp_path, sign):
    environment = os.environ | {"SAMFINETUNE_MODELS": str(tmp_path)}
    fifo = tmp_path / "never.pth"
    os.mkfifo(fifo)  # reading it waits for a writer
    with subprocess.Popen([sys.executable, "-m", "SAMFineTuneLib.cli", "models", "import", str(fifo)], cwd=root,
                          env=environment, stderr=subprocess.PIPE, text=True) as process:
        writer = os.open(fifo, os.O_WRONLY)  # returns once the command has opened it
        process.send_signal(sign)
        assert process.stderr.read() == "samfinetune: interrupted; nothing half-written was left behind.\n"
        assert process.wait(60) == 130
        os.close(writer)


def test_ctrl_c_while_modules_are_loaded_is_one_line(root):
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'SAMFineTuneLib.cli.console':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from SAMFineTuneLib.__main__ import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, text=True, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "samfinetune: interrupted.\n")
    declared = (root / "pyproject.toml").read_text()
    assert 'samfinetune = "SAMFineTuneLib.__main__:main"' in declared


def test_names_a_terminal_cannot_show_do_not_end_the_program(root, tmp_path):
    environment = os.environ | {"SAMFINETUNE_MODELS": str(tmp_path / "Größe"), "PYTHONIOENCODING": "ascii"}
    done = started(root, "models", "list", env=environment)
    assert done.returncode == 0 and "Gr??e" in done.stdout


@pytest.mark.parametrize(
    "command, given, found", [("info", None, "1"), ("info", "3", "3"), ("train", None, None), ("pretrain", None, None)]
)
def test_numpy_leaves_the_cores_to_the_model_unless_told_otherwise(command, given, found, monkeypatch, capsys):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", given or "")  # put back as it was afterwards
    if given is None:
        del os.environ["OPENBLAS_NUM_THREADS"]
    frame.main([command, "--help"])
    assert os.environ.get("OPENBLAS_NUM_THREADS") == found


def test_a_package_that_is_missing_is_a_sentence(command, capsys):
    def run(args):
        import samfinetune_needs_this.part  # noqa: F401

    command(run)
    assert frame.main(["trial"]) == 2
    err = capsys.readouterr().err
    assert "“samfinetune_needs_this”" in err and "not installed" in err and err.count("\n") == 1


def test_a_module_of_its_own_that_is_missing_is_a_defect(command):
    command(raising(ModuleNotFoundError("No module named 'SAMFineTuneLib.x'", name="SAMFineTuneLib.x")))
    with pytest.raises(ModuleNotFoundError):
        frame.main(["trial"])
