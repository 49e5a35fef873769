"""``import fastattn`` makes "fastattn" known to Transformers, without importing it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import fastattn
from fastattn.integrations import autoregister

REGISTERED = """
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
assert "fastattn" in AttentionInterface().valid_keys()
assert "fastattn" in AttentionMaskInterface().valid_keys()
"""
SCRIPTS = {
    "fastattn first": f"""
import sys
from fastattn.integrations import autoregister
autoregister.install()
autoregister.install()
waiting = [x for x in sys.meta_path if type(x).__module__ == autoregister.__name__]
assert len(waiting) == 1 and "transformers" not in sys.modules

sys.modules["transformers.generation"] = None  # modeling_utils needs it: its import fails
try:
    import transformers.modeling_utils
except ImportError:
    del sys.modules["transformers.generation"]
else:
    raise AssertionError
assert waiting[0] in sys.meta_path

import transformers.modeling_utils
assert waiting[0] not in sys.meta_path
loader = transformers.modeling_utils.__loader__
assert "exec_module" not in vars(loader)
assert loader.get_source("transformers.modeling_utils")
{REGISTERED}
""",
    "a version that is too old": """
import warnings
import transformers
transformers.__version__ = "4.56.2"
from fastattn.integrations import autoregister
autoregister.install()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import transformers.modeling_utils
messages = [str(x.message) for x in caught if x.category is RuntimeWarning]
assert any(
    "transformers must be 4.57 or newer; got 4.56.2. Install it with pip" in x for x in messages
), messages
try:
    import fastattn.integrations.transformers
except ImportError as error:
    assert "4.57" in str(error)
else:
    raise AssertionError
""",
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=list(SCRIPTS))
def test_registration(script):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=Path(fastattn.__file__).parents[1],  # importable from there, installed or not
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr


def test_transformers_first():
    importlib.import_module("transformers.modeling_utils")
    before = list(sys.meta_path)
    autoregister.install()
    assert sys.meta_path == before
    exec(REGISTERED)
