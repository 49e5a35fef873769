"""ONNX Runtime as a peer for inference: its attention operator, and whole models."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastattn.bench.problem import Attend, Problem

# Of the format and of the operators; old enough for every ONNX Runtime of the last years.
_IR_VERSION = 9
_OPSET = 17


def session(model: bytes) -> Any:
    """Returns a session on the CPU with torch's number of threads, which sleep between calls.

    By default they spin, on the cores that the next candidate of a round is timed on.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def attention_session(problem: Problem) -> Attend:
    """Returns com.microsoft.MultiHeadAttention as a function of (batch, seqlen, heads, head_dim).

    Tensors are shared with it, not copied, inputs and result alike.
    """
    from onnx import TensorProto, helper

    batch_size, seqlen, num_heads, head_dim = problem.padded[0].shape
    flat = (batch_size, seqlen, num_heads * head_dim)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, flat) for name in "qkv"]
    inputs = ["q", "k", "v"]
    more = {}
    if problem.is_token is not None:
        values.append(
            helper.make_tensor_value_info("mask", TensorProto.INT32, (batch_size, seqlen))
        )
        inputs += ["", "mask"]
        more["mask"] = problem.is_token.int().numpy()
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, flat)
    operator = ("MultiHeadAttention", inputs, ["out"])
    node = helper.make_node(*operator, domain="com.microsoft", num_heads=num_heads)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "attention", values, [out]), opset_imports=opsets
    )
    model.ir_version = _IR_VERSION
    run = session(model.SerializeToString()).run

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        feeds = {name: x.reshape(flat).numpy() for name, x in zip("qkv", (q, k, v), strict=True)}
        (result,) = run(None, feeds | more)
        return torch.from_numpy(result).view(batch_size, seqlen, num_heads, head_dim)

    return attend


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's warnings that torchvision, which no model here needs, is missing."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def model_session(model: Any, example: dict[str, Tensor]) -> Callable[..., Tensor]:
    """Exports a model in evaluation and returns it as a function of a batch, giving its logits.

    Args:
        example: input_ids and attention_mask of more than one text, with padding among them.
    """
    names = ["input_ids", "attention_mask"]
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seqlen", max=512)}
    with warnings.catch_warnings(), _quiet_exporter():
        warnings.simplefilter("ignore")  # torch's own, about itself
        program: Any = torch.onnx.export(
            model,
            tuple(example[name] for name in names),
            dynamo=True,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=(sizes, sizes),
            verbose=False,
        )
    run = session(program.model_proto.SerializeToString()).run

    def logits(**batch: Tensor) -> Tensor:
        (result,) = run(["logits"], {name: batch[name].numpy() for name in names})
        return torch.from_numpy(result)

    return logits
