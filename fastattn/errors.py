"""The exceptions fastattn raises.

    FastattnError
    ├── BackendError (RuntimeError)   no backend can run this call; the message lists why
    ├── PatchError   (ValueError)     a model has nothing to patch, or cannot be patched as asked
    ├── DataError    (ValueError)     a data set or file is not what the command needs
    └── VerificationError             a benchmark found a wrong result, and timed nothing

Wrong shapes and values of a single argument raise ``ValueError``, wrong types and dtypes
``TypeError``, both plain. Each message names the argument, the rule, the value and what to do.
"""


class FastattnError(Exception):
    """Base of the exceptions that are fastattn's own."""


class BackendError(FastattnError, RuntimeError):
    """No backend, or not the one asked for, can run the call."""


class PatchError(FastattnError, ValueError):
    """The model cannot be patched."""


class DataError(FastattnError, ValueError):
    """The data cannot be used."""


class VerificationError(FastattnError):
    """A result is further from the truth than it may be."""
