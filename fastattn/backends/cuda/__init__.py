"""The CUDA backend: kernels of our own for NVIDIA GPUs, and the same kernels on a CPU for tests.

==================  ================================================================================
``kernels.py``      from tensors to launches: all that the two backends share
``gpu.py``          whether this machine's driver and GPU run what was compiled
``order.py``        which GPU backend goes first on which architecture; ``order.json``: as measured
==================  ================================================================================

``CUDA`` serves tensors on a GPU with the kernels that nvcc compiled into ``fastattn._C``.
``EMULATED`` serves tensors on the CPU with the same kernels, compiled for it into
``fastattn._emulated``, which checks how they use memory. It is for tests: slow, and only with
``backend="cuda-emulated"``.
"""

from __future__ import annotations

from fastattn.backends.cuda.emulated import EMULATED
from fastattn.backends.cuda.gpu import CUDA

__all__ = ["CUDA", "EMULATED"]
