"""The cases: sizes, lengths and targets, as data. Nothing here runs anything.

Every kind of result has its cases in this one file: the operation (on a CPU and on a GPU), layers,
memory, models, epochs, and the growth of cost with work. ``quick=True`` marks those of a quick run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

Lengths = Literal["dense", "imdb", "glue"]
Batching = Literal["padded", "grouped", "packed"]

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # torch's names, short ones

# What the project aims at as shares of the machine's measured peak, whatever the case.
PEAK_SHARE_TARGETS = {"forward": 0.70, "backward": 0.60}

# From 1 to 2 threads.
THREAD_SCALING_TARGET = 1.9
THREAD_SCALING_CASE = "dense-fp32"


class GlueLike(NamedTuple):
    """Lengths like those of GLUE's sentence pairs: log-normal, rounded, and cut.

    The parameters are ours: of the shape of such tasks, not measured on one of them.
    """

    median: float = 32.0  # tokens
    sigma: float = 0.5  # of the logarithm
    shortest: int = 8
    longest: int = 128


GLUE_LIKE = GlueLike()


@dataclass(frozen=True)
class AttentionCase:
    """One shape of the operation, timed forward, backward, and both.

    Targets are how many times as fast as the best peer: "forward", "forward_backward".
    """

    name: str
    batch_size: int
    num_heads: int
    seqlen: int  # the longest sequence; with other lengths than "dense", what texts are cut to
    head_dim: int
    dtype: str = "float32"
    dropout_p: float = 0.0
    masked: bool = False  # whether dense lengths come with a padding mask; ragged ones always do
    lengths: Lengths = "dense"
    times_rounds: int = 1  # more where a call takes a millisecond: its median is as sharp then
    # Whether peers that are compiled anew for each shape are timed: half a minute on two cores.
    compiled: bool = False
    quick: bool = False
    targets: dict[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class LayerCase:
    """One part of a layer beside torch's own: "layer-norm", "gelu", "dropout", "linear", "bert"."""

    name: str
    op: Literal["layer-norm", "gelu", "dropout", "linear", "bert"]
    tokens: int  # for "bert" the sequences of a batch, of IMDB's lengths
    hidden_size: int
    dtype: str = "float32"
    dropout_p: float = 0.0
    quick: bool = False


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
    target: float | None = None
    quick: bool = False


@dataclass(frozen=True)
class StepMemoryCase:
    """A training step of a model, ours and stock's, whose peak memory is compared."""

    name: str
    bert: str  # the name of a case of BERT_CASES
    quick: bool = False


@dataclass(frozen=True)
class BertCase:
    """A model and what is done with it. The target is how many times as fast as stock.

    Batching: "padded" to the longest text of the batch; "grouped": texts of like length together,
    as by the Trainer's length-grouped sampler, and padded; "packed": stock gets the padded batch,
    fastattn the same texts from :class:`fastattn.data.packing.PackedCollator`.
    """

    name: str
    model: Literal["minilm-l6", "bert-base", "bert-large", "tiny"]
    mode: Literal["train", "inference"]
    batch_size: int
    dtype: str = "float32"  # bfloat16: autocast
    max_length: int = 512  # of a text, in tokens
    lengths: Literal["imdb", "glue"] = "imdb"
    batching: Batching = "padded"
    pad_to_multiple_of: int | None = None  # of packed batches
    rounds: int = 5
    quick_rounds: int = 2
    quick: bool = False
    # Batches of texts of like length, and no dropout anywhere: stock Transformers at its best.
    grouped_without_dropout: bool = False
    target: float | None = None

    @property
    def is_grouped(self) -> bool:
        """Whether texts of like length share a batch."""
        return self.grouped_without_dropout or self.batching == "grouped"


@dataclass(frozen=True)
class EpochsCase:
    """Epochs of packed IMDB reviews on a patched model. The target is the seconds of training."""

    name: str
    model: Literal["minilm-l6", "bert-base", "bert-large", "tiny"]
    batch_size: int
    dtype: str = "float32"  # bfloat16: autocast
    compile_mode: Literal["default", "reduce-overhead"] | None = None  # of torch.compile
    pad_to_multiple_of: int = 512
    epochs: int = 3
    num_texts: int | None = None  # all of them
    max_length: int = 512  # of a text, in tokens
    quick: bool = False
    target_s: float | None = None

    @property
    def bert(self) -> BertCase:
        """The model, and one step of it."""
        return BertCase(
            *(self.name, self.model, "train", self.batch_size, self.dtype, self.max_length),
            batching="packed",
            pad_to_multiple_of=self.pad_to_multiple_of,
        )


@dataclass(frozen=True)
class GrowthCase:
    """One dimension along which work grows, and the sizes it takes, forward + backward."""

    name: Literal["seqlen", "batch_size", "threads", "padding"]
    values: tuple[float, ...]  # padding: the share of a padded batch; threads: up to torch's number
    batch_size: int
    num_heads: int
    seqlen: int
    head_dim: int = 64
    quick: bool = False


def _targets(forward: float, forward_backward: float) -> dict[str, float]:
    return {"forward": forward, "forward_backward": forward_backward}


# What README.md shows: shapes of BERT's training, and what there is a target for.
NAMED_CASES = (
    AttentionCase("dense-fp32", 8, 12, 512, 64, compiled=True, targets=_targets(2.0, 2.0)),
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
        lengths="imdb",
        targets=_targets(22.0, 13.0),
    ),
    AttentionCase(
        *("short-fp32", 8, 12, 128, 64),
        times_rounds=8,
        compiled=True,
        quick=True,
        targets=_targets(1.8, 1.8),
    ),
    AttentionCase(
        *("short-bf16", 8, 12, 128, 64, "bfloat16"),
        times_rounds=8,
        targets=_targets(1.8, 1.8),
    ),
    AttentionCase("minilm-fp32", 8, 12, 512, 32, targets=_targets(2.2, 2.2)),
    AttentionCase("minilm-bf16", 8, 12, 512, 32, "bfloat16", targets=_targets(2.2, 2.2)),
    AttentionCase(
        *("dropout-glue-lengths", 32, 12, GLUE_LIKE.longest, 64),
        dropout_p=0.1,
        lengths="glue",
        times_rounds=2,
        quick=True,
    ),
)


def _case(
    tokens: int,
    width: int,
    seqlen: int,
    head_dim: int,
    dropout_p: float,
    dtype: str,
    lengths: Lengths = "dense",
    compiled: bool = False,
) -> AttentionCase:
    """A case named after its sizes, such as "512-d64-dropout-imdb-fp16"."""
    words = [str(seqlen), f"d{head_dim}", *(["dropout"] if dropout_p > 0.0 else [])]
    return AttentionCase(
        "-".join([*words, lengths, DTYPES[dtype]]),
        max(1, tokens // seqlen),
        width // head_dim,
        seqlen,
        head_dim,
        dtype,
        dropout_p,
        lengths=lengths,
        compiled=compiled,
    )


def _cpu_sizes() -> tuple[AttentionCase, ...]:
    """Every length for head_dim 64, some for 32 and 128, some with dropout."""
    cases = []
    for seqlen in (64, 256, 1024, 2048, 4096, 8192, 16384):
        # 2 heads where a dozen would take a minute on two cores.
        width = 768 if seqlen <= 2048 else 128
        cases.append(_case(4096, width, seqlen, 64, 0.0, "float32"))
    cases += [_case(4096, 768, seqlen, 64, 0.1, "float32") for seqlen in (128, 2048)]
    for head_dim in (32, 128):
        cases += [_case(4096, 768, seqlen, head_dim, 0.0, "float32") for seqlen in (128, 2048)]
    cases.append(_case(4096, 768, 512, 128, 0.1, "float32"))
    return tuple(cases)


ATTENTION_CASES = (*NAMED_CASES, *_cpu_sizes())

_GPU_TOKENS = 16384  # of a batch
_GPU_WIDTH = 768  # num_heads * head_dim


def _gpu_cases() -> tuple[AttentionCase, ...]:
    """Every length for head_dim 64, some for 32 and 128; real lengths where BERT's texts end."""
    shapes = [(seqlen, 64) for seqlen in (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)]
    shapes += [(seqlen, head_dim) for head_dim in (32, 128) for seqlen in (128, 512, 2048, 8192)]
    wanted: list[tuple[int, int, float, str, Lengths]] = [
        (seqlen, head_dim, dropout_p, "float16", "dense")
        for seqlen, head_dim in shapes
        for dropout_p in (0.0, 0.1)
    ]
    for dropout_p in (0.0, 0.1):
        wanted += [(512, head_dim, dropout_p, "float16", "imdb") for head_dim in (32, 64)]
        wanted.append((GLUE_LIKE.longest, 64, dropout_p, "float16", "glue"))
    wanted.append((512, 64, 0.1, "bfloat16", "imdb"))
    return tuple(_case(_GPU_TOKENS, _GPU_WIDTH, *sizes, compiled=True) for sizes in wanted)


# At seqlen 512, head_dim 64, on an H200, forward and backward each: how many times as fast as the
# best of torch's without dropout, and with dropout and the lengths of real texts. Not measured yet.
GPU_TARGETS = {"512-d64-dense-fp16": 1.15, "512-d64-dropout-imdb-fp16": 1.3}
GPU_CASES = _gpu_cases()

# Tokens and widths of MiniLM-L6 (384) and bert-base (768; its feed-forward part 3072).
LAYER_CASES = (
    LayerCase("layer-norm-384", "layer-norm", 4096, 384, dropout_p=0.1),
    LayerCase("layer-norm-768", "layer-norm", 4096, 768, dropout_p=0.1, quick=True),
    LayerCase("layer-norm-768-no-dropout", "layer-norm", 4096, 768),
    LayerCase("gelu-1536", "gelu", 4096, 1536),
    LayerCase("gelu-3072", "gelu", 4096, 3072, quick=True),
    LayerCase("dropout-768", "dropout", 4096, 768, dropout_p=0.1),
    LayerCase("linear-768-3072", "linear", 4096, 768),
    LayerCase("bert-layer-384", "bert", 16, 384, dropout_p=0.1),
    LayerCase("bert-layer-768", "bert", 8, 768, dropout_p=0.1),
)

MEMORY_CASES: tuple[MemoryCase | StepMemoryCase, ...] = (
    MemoryCase("512", 8, 12, 512, 64, quick=True),
    MemoryCase("2048", 1, 12, 2048, 64),
    MemoryCase("8192", 1, 12, 8192, 64, target=0.02),
    StepMemoryCase("minilm-train-fp32", "minilm-train-fp32"),
    StepMemoryCase("base-glue-train-fp32", "base-glue-train-fp32"),
)


def _glue(name: str, model: Any, batch_size: int, batching: Batching, **more: Any) -> BertCase:
    sizes = {"max_length": GLUE_LIKE.longest, "lengths": "glue", "quick_rounds": 1}
    return BertCase(name, model, "train", batch_size, batching=batching, **{**sizes, **more})


# A stock step of a large model takes up to half a minute on two cores, hence fewer rounds.
BERT_CASES = (
    BertCase("minilm-train-fp32", "minilm-l6", "train", 16, quick=True, target=6.0),
    BertCase("minilm-train-bf16", "minilm-l6", "train", 16, "bfloat16", target=10.0),
    BertCase("minilm-grouped-train-fp32", "minilm-l6", "train", 16, batching="grouped"),
    BertCase("minilm-packed-train-fp32", "minilm-l6", "train", 16, batching="packed"),
    BertCase("minilm-inference-fp32", "minilm-l6", "inference", 16, target=2.5),
    BertCase("minilm-inference-bf16", "minilm-l6", "inference", 16, "bfloat16", target=2.5),
    BertCase(*("base-train-fp32", "bert-base", "train", 8), rounds=3, quick_rounds=1, target=2.7),
    BertCase(
        *("base-train-bf16", "bert-base", "train", 8, "bfloat16"),
        rounds=3,
        quick_rounds=1,
        target=4.0,
    ),
    _glue("base-glue-train-fp32", "bert-base", 32, "padded"),
    _glue("base-glue-grouped-train-fp32", "bert-base", 32, "grouped"),
    _glue("base-glue-packed-train-fp32", "bert-base", 32, "packed"),
    _glue("large-glue-train-fp32", "bert-large", 8, "padded", rounds=3),
    _glue("large-glue-grouped-train-fp32", "bert-large", 8, "grouped", rounds=3),
    _glue("large-glue-packed-train-fp32", "bert-large", 8, "packed", rounds=3),
    BertCase(
        "minilm-grouped-no-dropout-fp32", "minilm-l6", "train", 16, grouped_without_dropout=True
    ),
    BertCase(
        *("minilm-grouped-no-dropout-bf16", "minilm-l6", "train", 16, "bfloat16"),
        grouped_without_dropout=True,
    ),
)

# Few steps of a model of no size: an epoch of a real one takes hours on two cores.
EPOCHS_CASES = (
    EpochsCase("tiny-16-eager-fp32", "tiny", 16, num_texts=160, quick=True),
    EpochsCase("tiny-16-compiled-fp32", "tiny", 16, compile_mode="default", num_texts=160),
)


def _gpu_epochs(batch_size: int, compile_mode: Any) -> EpochsCase:
    return EpochsCase(
        f"base-{batch_size}-{compile_mode or 'eager'}-bf16",
        *("bert-base", batch_size, "bfloat16", compile_mode),
        pad_to_multiple_of=512 if batch_size < 64 else 1024,  # about ten sizes, few rows to fill
        quick=batch_size == 32,
        target_s=45.0,  # on an H200; not measured yet
    )


GPU_EPOCHS_CASES = tuple(
    _gpu_epochs(batch_size, compile_mode)
    for batch_size in (16, 32, 64, 128)
    for compile_mode in (None, "reduce-overhead")
)

GROWTH_CASES = (
    GrowthCase("seqlen", tuple(2.0**i for i in range(6, 15)), 1, 2, 64),
    GrowthCase("batch_size", (1, 2, 4, 8, 16, 32), 1, 12, 128, quick=True),
    GrowthCase("threads", (1, 2, 4, 8, 16, 32, 64), 8, 12, 512),
    GrowthCase("padding", (0.0, 0.25, 0.5, 0.75, 0.875), 8, 12, 512),
)


class _Named(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def quick(self) -> bool: ...


Case = TypeVar("Case", bound=_Named)


def choose(cases: Sequence[Case], names: Sequence[str], *, quick: bool = False) -> list[Case]:
    """Returns the cases of these names, or all of them if there are none; of a quick run the
    quick ones, if any is.

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
    if names:
        return [case for case in cases if case.name in names]
    return [case for case in cases if case.quick or not quick] or list(cases)
