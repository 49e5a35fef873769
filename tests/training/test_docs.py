"""The Python of docs/training.md runs, block by block, in its order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.mark.skipif(not HAS_ATTENTION_INTERFACE, reason="4.x takes no packed batches")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor that is not a leaf")
def test_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    AcceleratorState._reset_state()
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    assert len(blocks) >= 6
    names: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"block {number} of {PAGE.name}", "exec"), names)
    torch._dynamo.reset()
