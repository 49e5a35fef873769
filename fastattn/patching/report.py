"""What :func:`fastattn.patch` did to each layer, and why."""

from __future__ import annotations

from dataclasses import dataclass

REPLACED = "replaced"
LEFT = "left"


@dataclass(frozen=True)
class LayerReport:
    """One layer of a patched model."""

    name: str  # path inside the model, as in model.named_modules()
    layer: str  # the layer's own class
    what: str  # "replaced" or "left"
    reason: str


@dataclass(frozen=True)
class PatchReport:
    """Every layer that fastattn looked at. Print it for a table."""

    layers: tuple[LayerReport, ...]

    @property
    def replaced(self) -> tuple[LayerReport, ...]:
        """The layers that now run on fastattn."""
        return tuple(layer for layer in self.layers if layer.what == REPLACED)

    @property
    def left(self) -> tuple[LayerReport, ...]:
        """The layers that run as before."""
        return tuple(layer for layer in self.layers if layer.what == LEFT)

    @property
    def ok(self) -> bool:
        """Whether nothing was left as it was."""
        return not self.left

    def __str__(self) -> str:
        rows = [(x.name or "(model)", x.layer, x.what, x.reason) for x in self.layers]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
        lines = [f"fastattn: {len(self.replaced)} replaced, {len(self.left)} left"]
        for *cells, reason in rows:
            padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
            lines.append("  ".join([*padded, reason]))
        return "\n".join(lines)
