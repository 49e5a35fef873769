"""``fastattn info``, ``fastattn check`` and what every command shares."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import fastattn
from fastattn import environment, selfcheck
from fastattn.cli.app import app
from fastattn.cli.errors import clear_errors

COMMAND = [sys.executable, "-c", "from fastattn.cli import main; main()"]


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environ}
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=env)


def test_help_names_the_commands_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from fastattn.cli.app import app\n"
        "result = CliRunner().invoke(app, ['finetune', '--help'])\n"
        "print(result.exit_code, {'transformers', 'datasets', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["0", "set()"], done.stderr
    shown = CliRunner().invoke(app, ["--help"]).output
    assert all(name in shown for name in ("info", "check", "explain", "finetune"))


QUICK = [
    *("", "--version", "explain --help", "finetune --help", "search --help"),
    *("data build --help", "bench attention --help"),
    # What is wrong with an option is said as quickly.
    *("finetune --batch-size 0", "search --sampler best", "bench attention --rounds 0"),
    "data build a.csv --output out --task ner",
]


@pytest.mark.parametrize("words", QUICK)
def test_help_and_messages_do_not_wait_for_torch(words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fastattn", *words.split()],
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 2)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "fastattn.cli.app" in imported and "Traceback" not in done.stderr
    assert not imported & {"torch", "numpy", "pandas", "transformers", "datasets"}


def test_the_script_does_not_wait_for_torch_and_has_every_name(tmp_path: Path) -> None:
    """As pip installs it: a file of this name."""
    script = tmp_path / "fastattn"
    script.write_text(
        "import sys\nfrom fastattn.cli import main\nassert 'torch' not in sys.modules\n"
        "import fastattn\nassert dir(fastattn) == sorted(fastattn.__all__)\n"
        "from fastattn import attention, patch\n"
        "from fastattn.ops.attention import attention as own\n"
        "assert attention is own is fastattn.attention\n"
        "assert all(getattr(fastattn, name) is not None for name in dir(fastattn))\n"
        "print('all there')\n",
        encoding="utf-8",
    )
    # A script's own folder comes first on the path.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=env)
    assert done.stdout == "all there\n", done.stderr


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"fastattn {fastattn.__version__}\n"


def test_an_unknown_command_is_bad_input() -> None:
    assert CliRunner().invoke(app, ["tune"]).exit_code == 2


def test_info_as_json() -> None:
    done = run("info", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["versions"]["torch"] == torch.__version__
    assert found["cpu"]["threads"] >= 1
    assert found["cpu"]["model"]
    assert found["backends"]["reference"] == {"ready": True, "reason": None}
    assert found["gpus"]["devices"] == [] or found["gpus"]["driver"]


def test_info_for_people() -> None:
    result = CliRunner().invoke(app, ["info"])
    assert result.exit_code == 0
    for words in (f"fastattn: {fastattn.__version__}", "instruction set:", "reference: ready"):
        assert words in result.output


def test_info_says_what_was_compiled_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"nvcc": "13.0.88", "architectures": [80, 90], "skipped": None}
    monkeypatch.setattr(environment, "cuda_kernels", lambda: info)
    result = CliRunner().invoke(app, ["info"])
    assert "CUDA kernels: sm_80 sm_90, compiled by nvcc 13.0.88" in result.output
    monkeypatch.setattr(environment, "cuda_kernels", lambda: {**info, "skipped": "no nvcc"})
    result = CliRunner().invoke(app, ["info"])
    assert "CUDA kernels: none: no nvcc" in result.output


def test_info_without_the_native_module_says_so() -> None:
    done = run("info", FASTATTN_DISABLE_NATIVE="1")
    assert done.returncode == 0, done.stderr
    assert "cpu: not ready: the native module is switched off" in done.stdout
    assert "reference: ready" in done.stdout


def test_a_section_that_fails_does_not_take_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, object]:
        raise RuntimeError("driver mismatch")

    monkeypatch.setattr(environment, "gpus", broken)
    monkeypatch.setattr(environment, "backends", broken)
    found = environment.collect()
    assert found["gpus"] == {"error": "RuntimeError: driver mismatch"}
    assert found["versions"]["fastattn"] == fastattn.__version__
    result = CliRunner().invoke(app, ["info"])
    assert result.exit_code == 0
    assert result.output.count("RuntimeError: driver mismatch") == 2


def test_check_passes() -> None:
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 0, result.output
    assert " 0 failed" in result.output
    assert "dropout bits: all 16,384 bits as in the reference" in result.output


def test_check_without_the_native_module_passes_and_says_what_it_skipped() -> None:
    done = run("check", FASTATTN_DISABLE_NATIVE="1")
    assert done.returncode == 0, done.stderr
    assert "skip cpu backend: the native module is switched off" in done.stdout


def test_check_finds_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fastattn.attention

    def wrong(*args: object, **options: object) -> object:
        out, lse = right(*args, **{**options, "return_lse": True})  # type: ignore[arg-type]
        return (out * 1.01, lse) if options.get("return_lse") else out * 1.01

    monkeypatch.setattr(fastattn, "attention", wrong)
    results = list(selfcheck.run())
    attention = [result for result in results if ", float32" in result.name]
    assert attention and all(result.passed is False for result in attention)
    assert all("allowed" in result.detail for result in attention)
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 1
    assert "FAIL" in result.output


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (fastattn.DataError("data: rows must be rows"), 2, "error: data: rows must be rows\n"),
        (ImportError("finetune: x must be installed"), 2, "error: finetune: x must be"),
        (RuntimeError("boom"), 1, "error: RuntimeError: boom\nNobody foresaw this."),
        (KeyboardInterrupt(), 130, "Stopped."),
    ],
)
def test_errors(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught, clear_errors(debug=False):
        raise error
    assert caught.value.exit_code == code
    assert message in capsys.readouterr().err


def test_debug_lets_errors_through() -> None:
    with pytest.raises(RuntimeError, match="boom"), clear_errors(debug=True):
        raise RuntimeError("boom")


def test_git_commit_is_that_of_the_source_tree() -> None:
    commit = environment.git_commit()
    assert commit is None or len(commit.removesuffix("-dirty")) == 40


def test_a_reader_that_stops_reading_is_no_error() -> None:
    process = subprocess.Popen(
        [*COMMAND, "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    process.wait()
    assert "Nobody foresaw" not in errors and "Traceback" not in errors
