"""The CUDA backend: kernels of our own for NVIDIA GPUs, and the same kernels on a CPU for tests.

==================  ================================================================================
``kernels.py``      from tensors to launches: all that the two backends share
``gpu.py``          whether this machine's driver and GPU run what was compiled
``hopper.py``       the same for attention on the H100 and H200
``order.py``        which GPU backend goes first on which architecture; ``order.json``: as measured
==================  ================================================================================

``CUDA`` serves tensors on a GPU with the kernels that nvcc compiled into ``fastattn._C``.
``EMULATED`` serves tensors on the CPU with the same kernels, compiled for it into
``fastattn._emulated``, which checks how they use memory. It is for tests: slow, and only with
``backend="cuda-emulated"``. ``HOPPER`` and ``EMULATED_HOPPER`` are the same for the kernels of
attention that are written for Hopper alone; both must be asked for by name.
"""

from __future__ import annotations

from fastattn.backends.cuda.emulated import EMULATED
from fastattn.backends.cuda.gpu import CUDA
from fastattn.backends.cuda.hopper import EMULATED_HOPPER, HOPPER

__all__ = ["CUDA", "EMULATED", "EMULATED_HOPPER", "HOPPER"]
