"""Which models are served, and how exactly: a table made by patching small models of each.

``python -m fastattn.coverage`` prints it for the installed version of Transformers. Every head of a
model is built with random weights and run forward and backward, in float64, stock and patched, on
batches padded right, left and inside; models that generate do so with a cache. ``docs/coverage.md``
holds the table for the version that the tests run with.
"""

from fastattn.coverage.measure import measure
from fastattn.coverage.table import page

__all__ = ["measure", "page"]
