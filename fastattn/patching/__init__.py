"""Making an existing Transformers model run on fastattn, and taking that back."""

from fastattn.patching.patch import patch, patched, unpatch
from fastattn.patching.report import LayerReport, PatchReport

__all__ = ["LayerReport", "PatchReport", "patch", "patched", "unpatch"]
