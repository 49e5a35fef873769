"""The cases: sizes, peers and targets. Nothing here runs anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

Peer = Literal["sdpa", "eager"]
Lengths = Literal["dense", "imdb"]

DTYPES = {"float32": "fp32", "bfloat16": "bf16"}  # torch's names and the short ones
GPU_DTYPES = {"float16": "fp16", "bfloat16": "bf16"}

# What the project aims at as shares of the machine's measured peak, whatever the case.
PEAK_SHARE_TARGETS = {"forward": 0.70, "backward": 0.60}

# From 1 to 2 threads.
THREAD_SCALING_TARGET = 1.9
THREAD_SCALING_CASE = "dense-fp32"


@dataclass(frozen=True)
class AttentionCase:
    """One shape of the operation, timed forward and forward + backward.

    Targets are how many times as fast as the best peer: "forward", "forward_backward".
    """

    name: str
    batch_size: int
    num_heads: int
    seqlen: int  # the longest sequence; with lengths "imdb", what texts are cut to
    head_dim: int
    dtype: str = "float32"
    dropout_p: float = 0.0
    masked: bool = False  # whether a padding mask is given; "imdb" lengths always come with one
    lengths: Lengths = "dense"
    peers: tuple[Peer, ...] = ("sdpa",)
    times_rounds: int = 1  # more where a call takes a millisecond: its median is as sharp then
    targets: dict[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class MemoryCase:
    """One shape whose peak memory over forward and backward is compared with eager attention's.

    The target is the largest share of eager's.
    """

    name: str
    batch_size: int
    num_heads: int
    seqlen: int
    head_dim: int
    target: float


@dataclass(frozen=True)
class BertCase:
    """A model and what is done with it. The target is how many times as fast as stock."""

    name: str
    model: Literal["minilm-l6", "bert-base", "tiny"]
    mode: Literal["train", "inference"]
    batch_size: int
    dtype: str = "float32"  # bfloat16: autocast
    max_length: int = 512  # of a text, in tokens
    rounds: int = 5
    quick_rounds: int = 2
    # Batches of texts of like length, and no dropout anywhere: stock Transformers at its best.
    grouped_without_dropout: bool = False
    target: float | None = None


@dataclass(frozen=True)
class GpuCase:
    """One shape of the operation on a GPU, timed forward and forward + backward."""

    batch_size: int
    num_heads: int
    seqlen: int  # the longest sequence; with lengths "imdb", what texts are cut to
    head_dim: int
    dropout_p: float = 0.0
    lengths: Lengths = "dense"
    dtype: str = "float16"

    @property
    def name(self) -> str:
        """Such as "512-d64-dropout-imdb-fp16"."""
        words = [str(self.seqlen), f"d{self.head_dim}"]
        words += ["dropout"] if self.dropout_p > 0.0 else []
        words += [self.lengths, GPU_DTYPES[self.dtype]]
        return "-".join(words)

    def described(self) -> dict[str, Any]:
        """Returns what a result file says of the case."""
        return {"name": self.name, **asdict(self)}


def _targets(forward: float, forward_backward: float) -> dict[str, float]:
    return {"forward": forward, "forward_backward": forward_backward}


ATTENTION_CASES = (
    AttentionCase("dense-fp32", 8, 12, 512, 64, targets=_targets(2.0, 2.0)),
    AttentionCase("dense-bf16", 8, 12, 512, 64, "bfloat16", targets=_targets(3.5, 3.0)),
    AttentionCase(
        *("dropout-dense-lengths", 8, 12, 512, 64),
        dropout_p=0.1,
        masked=True,
        targets=_targets(9.0, 5.0),
    ),
    AttentionCase(
        *("dropout-imdb-lengths", 8, 12, 512, 64),
        dropout_p=0.1,
        masked=True,
        lengths="imdb",
        targets=_targets(22.0, 13.0),
    ),
    AttentionCase(
        *("short-fp32", 8, 12, 128, 64),
        peers=("sdpa", "eager"),
        times_rounds=16,
        targets=_targets(1.8, 1.8),
    ),
    AttentionCase(
        *("short-bf16", 8, 12, 128, 64, "bfloat16"),
        peers=("sdpa", "eager"),
        times_rounds=16,
        targets=_targets(1.8, 1.8),
    ),
    AttentionCase("minilm-fp32", 8, 12, 512, 32, targets=_targets(2.2, 2.2)),
    AttentionCase("minilm-bf16", 8, 12, 512, 32, "bfloat16", targets=_targets(2.2, 2.2)),
)

MEMORY_CASES = (MemoryCase("memory", 1, 12, 8192, 64, target=0.02),)

# A stock step of bert-base takes up to half a minute on two cores, hence fewer rounds.
BERT_CASES = (
    BertCase("minilm-train-fp32", "minilm-l6", "train", 16, target=6.0),
    BertCase("minilm-train-bf16", "minilm-l6", "train", 16, "bfloat16", target=10.0),
    BertCase("minilm-inference-fp32", "minilm-l6", "inference", 16, target=2.5),
    BertCase("minilm-inference-bf16", "minilm-l6", "inference", 16, "bfloat16", target=2.5),
    BertCase(*("base-train-fp32", "bert-base", "train", 8), rounds=3, quick_rounds=1, target=2.7),
    BertCase(
        *("base-train-bf16", "bert-base", "train", 8, "bfloat16"),
        rounds=3,
        quick_rounds=1,
        target=4.0,
    ),
    BertCase(
        "minilm-grouped-no-dropout-fp32", "minilm-l6", "train", 16, grouped_without_dropout=True
    ),
    BertCase(
        *("minilm-grouped-no-dropout-bf16", "minilm-l6", "train", 16, "bfloat16"),
        grouped_without_dropout=True,
    ),
)

_GPU_TOKENS = 16384  # of a batch
_GPU_WIDTH = 768  # num_heads * head_dim


def _gpu_cases() -> tuple[GpuCase, ...]:
    """Every length for head_dim 64, some for 32 and 128; real lengths where BERT's texts end."""
    shapes = [(seqlen, 64) for seqlen in (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)]
    shapes += [(seqlen, head_dim) for head_dim in (32, 128) for seqlen in (128, 512, 2048, 8192)]
    cases = [
        GpuCase(_GPU_TOKENS // seqlen, _GPU_WIDTH // head_dim, seqlen, head_dim, dropout_p)
        for seqlen, head_dim in shapes
        for dropout_p in (0.0, 0.1)
    ]
    for head_dim in (32, 64):
        for dropout_p in (0.0, 0.1):
            heads = _GPU_WIDTH // head_dim
            cases.append(GpuCase(32, heads, 512, head_dim, dropout_p, "imdb"))
    cases.append(GpuCase(32, 12, 512, 64, 0.1, "imdb", "bfloat16"))
    return tuple(cases)


GPU_CASES = _gpu_cases()
# At seqlen 512, head_dim 64, on an H200, forward and backward each: how many times as fast as the
# best of torch's without dropout, and with dropout and the lengths of real texts. Not measured yet.
GPU_TARGETS = {"512-d64-dense-fp16": 1.15, "512-d64-dropout-imdb-fp16": 1.3}

Case = TypeVar("Case", bound=AttentionCase | MemoryCase | BertCase | GpuCase)


def choose(cases: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """Returns the cases of these names, or all of them if there are none.

    Raises:
        ValueError: there is no case of a name.
    """
    known = [case.name for case in cases]
    for name in names:
        if name not in known:
            raise ValueError(
                f"bench: case must be one of {', '.join(known)}; got {name!r}. "
                "Leave --case out to run them all."
            )
    return [case for case in cases if not names or case.name in names]
