"""What remains in a step: the self time of operators on the CPU, by kind of work."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

OTHER = "other"

# The first group whose pattern is found in an operator's name takes its time. The forward pass of
# our operators is run, and named, by "GeneratedBackwardFor_fastattn_<operator>_default".
_GROUPS = {
    "attention": r"fastattn(::|_)attention|scaled_dot_product|softmax",
    "layer norm + dropout": r"layer_norm|dropout|bernoulli",
    "gelu": r"gelu",
    "optimizer": r"adam|Optimizer|_foreach|linalg_vector_norm",
    "matrix products": r"fastattn(::|_)(linears|matmul)|aten::(mm|addmm|bmm|baddbmm|linear|matmul)",
}

GROUPS = (*_GROUPS, OTHER)


def group_of(operator: str) -> str:
    """Returns the kind of work of an operator, by its name in a profile."""
    return next((name for name, pattern in _GROUPS.items() if re.search(pattern, operator)), OTHER)


def profile_ms(step: Callable[[], object]) -> dict[str, float]:
    """Runs a step under the profiler and returns the milliseconds of each group.

    Times are the calling threads' own, children not counted, so the groups add up to the step.
    """
    # The profiler's library greets on stderr at each start and stop.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    totals = dict.fromkeys(GROUPS, 0.0)
    for event in recorded.key_averages():
        totals[group_of(event.key)] += event.self_cpu_time_total / 1e3
    return totals
