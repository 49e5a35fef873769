"""Lengths of sequences: all alike, those of IMDB's reviews, or like those of GLUE's sentences."""

from __future__ import annotations

import random

from fastattn.bench import texts
from fastattn.bench.cases import GLUE_LIKE, GlueLike, Lengths


def draw(kind: Lengths, count: int, longest: int) -> list[int]:
    """Returns ``count`` lengths in tokens, the same ones in every run, none above ``longest``."""
    if kind == "dense":
        return [longest] * count
    return texts.draw_lengths(count, longest) if kind == "imdb" else glue_like(count, longest)


def glue_like(count: int, longest: int, shape: GlueLike = GLUE_LIKE) -> list[int]:
    """Returns log-normal lengths with the parameters of ``shape``."""
    generator = random.Random(texts.SEED)
    longest = min(longest, shape.longest)
    drawn = (shape.median * generator.lognormvariate(0.0, shape.sigma) for _ in range(count))
    return [max(min(round(length), longest), min(shape.shortest, longest)) for length in drawn]
