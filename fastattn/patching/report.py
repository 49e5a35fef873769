"""What :func:`fastattn.patch` did to each layer, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass

REPLACED = "replaced"
LEFT = "left"

NUMBER = re.compile(r"\.\d+(?=\.|$)")


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
        """A table; layers that differ in their number alone share a line."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for x in self.layers:
            numbers = NUMBER.findall(x.name)
            key = (NUMBER.sub(".*", x.name) or "(model)", x.layer, x.what, x.reason)
            groups.setdefault(key, []).extend(numbers[:1])
        rows = [
            (name if len(numbers) < 2 else f"{name} ({len(numbers)})", *rest)
            if len(numbers) != 1
            else (name.replace(".*", numbers[0]), *rest)
            for (name, *rest), numbers in groups.items()
        ]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
        lines = [f"fastattn: {len(self.replaced)} replaced, {len(self.left)} left"]
        for *cells, reason in rows:
            padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
            lines.append("  ".join([*padded, reason]))
        return "\n".join(lines)
