"""The parts of an encoder layer that can be fused beside attention, and the choice among them."""

from __future__ import annotations

from collections.abc import Iterable

QKV = "qkv"
LAYER_NORM = "layer_norm"
GELU = "gelu"
LINEAR = "linear"
FIRST_ROWS = "first_rows"

# Name -> what a report says of a layer that is served.
FUSIONS = {
    QKV: "query, key and value are projected together",
    LAYER_NORM: "bias, dropout, residual and LayerNorm in one operator",
    GELU: "bias and GELU in one operator",
    LINEAR: "its products on the faster of torch's kernel and ours, on the CPU",
    FIRST_ROWS: "computes the rows that the head reads: the first of each sequence",
}


def chosen(fuse: bool | Iterable[str]) -> frozenset[str]:
    """Returns the names that an argument ``fuse`` stands for.

    Raises:
        ValueError: one of them is unknown.
    """
    if isinstance(fuse, bool):
        return frozenset(FUSIONS) if fuse else frozenset()
    # A string is an iterable of letters.
    names = {fuse} if isinstance(fuse, str) else fuse if isinstance(fuse, Iterable) else {fuse}
    names = frozenset(names)
    if not names <= FUSIONS.keys():
        unknown = ", ".join(sorted(repr(name) for name in names - FUSIONS.keys()))
        raise ValueError(
            f"patch: fuse must be True, False or some of {', '.join(FUSIONS)}; got {unknown}. "
            "Name those to be fused."
        )
    return names
