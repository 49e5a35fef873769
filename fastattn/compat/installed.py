"""Lets code that imports ``flash_attn`` run on fastattn, on a CPU too.

    import fastattn.compat

    fastattn.compat.install_as_flash_attn()
    from flash_attn import flash_attn_func            # third-party code may do this now
    from flash_attn.bert_padding import unpad_input

It holds for this process and from the call on. There are then the modules ``flash_attn``,
``flash_attn.flash_attn_interface``, ``flash_attn.bert_padding`` and ``flash_attn.layers.rotary``
with its ``apply_rotary_emb``, and the version and metadata of a package, for which importers ask.
Nothing is written to disk. Other parts of flash-attn, such as its modules and its losses, are not
there, and importing them fails as ever.

With ``transformers=True`` models of Transformers 5 run with "flash_attention_2" on a CPU, even in
float32. Tried with 5.23 (2026-11-24): BERT, ModernBERT, Llama with generation, GPT-2. GPT-2 in
float32 is the exception: Transformers learns the dtype of a layer from a Linear in it, and GPT-2
has none.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from fastattn.compat import bert_padding, flash_attn, rotary

NAME = "flash_attn"
_PUBLIC = (
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
)
_MARK = "_fastattn"  # an attribute of the modules made here


def install_as_flash_attn(*, transformers: bool = False) -> None:
    """Makes ``import flash_attn`` find fastattn, until :func:`uninstall_as_flash_attn`.

    Calling it again changes nothing. Code that looked for flash_attn before keeps what it found.

    Args:
        transformers: also let Transformers 5 run ``attn_implementation="flash_attention_2"`` on it,
            whose own checks would ask for a GPU. Without it, they do.

    Raises:
        RuntimeError: another flash_attn is imported already.
        ImportError: Transformers is missing, or has not the tables that say where flash-attn runs.
    """
    found = sys.modules.get(NAME)
    if found is not None and not hasattr(found, _MARK):
        raise RuntimeError(
            f"install_as_flash_attn: {NAME} must not be imported yet; got the module at "
            f"{getattr(found, '__file__', None)}. Call this first, in a fresh process."
        )
    if transformers:
        _Transformers.check()
    if found is None:
        for module in _modules():
            sys.modules[module.__name__] = module
        sys.meta_path.insert(0, _Metadata())
        importlib.invalidate_caches()
    if transformers:
        _Transformers.install()


def uninstall_as_flash_attn() -> None:
    """Takes back what :func:`install_as_flash_attn` did; without it, does nothing.

    Code that took functions from the modules keeps them.
    """
    _Transformers.uninstall()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == NAME and hasattr(module, _MARK):
            del sys.modules[name]
    sys.meta_path[:] = [x for x in sys.meta_path if not isinstance(x, _Metadata)]
    importlib.invalidate_caches()


def _modules() -> list[ModuleType]:
    """Makes the package and its modules."""
    package = _module(NAME, flash_attn, is_package=True)
    package.__dict__["__version__"] = flash_attn.VERSION
    interface = _module(f"{NAME}.flash_attn_interface", flash_attn)
    padding = _module(f"{NAME}.bert_padding", bert_padding)
    for name in _PUBLIC:
        package.__dict__[name] = interface.__dict__[name] = getattr(flash_attn, name)
    interface.__dict__["_get_block_size_n"] = flash_attn._get_block_size_n
    for name in bert_padding.__all__:
        padding.__dict__[name] = getattr(bert_padding, name)
    layers = _module(f"{NAME}.layers", rotary, is_package=True)
    layers_rotary = _module(f"{NAME}.layers.rotary", rotary)
    layers_rotary.__dict__["apply_rotary_emb"] = rotary.apply_rotary_emb
    layers.__dict__["rotary"] = layers_rotary
    package.__dict__.update(flash_attn_interface=interface, bert_padding=padding, layers=layers)
    return [package, interface, padding, layers, layers_rotary]


def _module(name: str, of: ModuleType, *, is_package: bool = False) -> ModuleType:
    module = ModuleType(name, of.__doc__)
    spec = importlib.machinery.ModuleSpec(name, None, origin=of.__file__, is_package=is_package)
    module.__spec__, module.__file__, module.__package__ = spec, of.__file__, spec.parent
    if is_package:
        module.__path__ = []
    setattr(module, _MARK, True)
    return module


class _Distribution(importlib.metadata.Distribution):
    """What ``importlib.metadata`` says of flash-attn."""

    def read_text(self, filename: str) -> str | None:
        texts = {
            "METADATA": (
                f"Metadata-Version: 2.1\nName: flash-attn\nVersion: {flash_attn.VERSION}\n"
                "Summary: fastattn under the name of flash-attn, in this process\n"
            ),
            "top_level.txt": f"{NAME}\n",
        }
        return texts.get(filename)

    def locate_file(self, path: Any) -> Path:
        return Path(__file__).parent / path


class _Metadata(importlib.metadata.DistributionFinder):
    """Finds the distribution, and no module."""

    def find_spec(self, *arguments: Any) -> None:
        return None

    def find_distributions(
        self,
        context: importlib.metadata.DistributionFinder.Context | None = None,
    ) -> Iterable[importlib.metadata.Distribution]:
        name = None if context is None else context.name
        if name is None or name.lower().replace("_", "-") == "flash-attn":
            return [_Distribution()]
        return []


def _always() -> bool:
    return True


class _Transformers:
    """The places where Transformers 5 decides whether flash-attn can run."""

    _before: dict[str, Any] | None = None

    @staticmethod
    def _module() -> Any:
        return importlib.import_module("transformers.modeling_flash_attention_utils")

    @classmethod
    def check(cls) -> None:
        """Raises ImportError if Transformers lacks them."""
        try:
            module = cls._module()
        except ImportError as error:
            raise ImportError(
                "install_as_flash_attn: transformers must be installed for transformers=True; got "
                f'{error}. Install it with pip install "fastattn[finetune]".'
            ) from error
        if 2 not in getattr(module, "FLASH_ATTENTION_COMPATIBILITY_MATRIX", {}):
            import transformers

            raise ImportError(
                "install_as_flash_attn: transformers must have a table of the devices of flash-attn"
                f"; got {transformers.__version__}, which has none. Install a newer 5.x, or use "
                'attn_implementation="fastattn".'
            )

    @classmethod
    def install(cls) -> None:
        if cls._before is not None:
            return
        module = cls._module()
        table = module.FLASH_ATTENTION_COMPATIBILITY_MATRIX
        cls._before = {
            "row": table[2],
            "is_flash_attn_2_available": module.is_flash_attn_2_available,
        }
        reason = (_always, "flash_attn is fastattn, which runs on this device.")
        table[2] = {
            **table[2],
            "general_availability_check": _always,
            "pkg_availability_check": _always,
            "supported_devices": (*table[2]["supported_devices"], (_always, "cpu")),
            "custom_supported_devices": (reason, *table[2].get("custom_supported_devices", ())),
        }
        module.is_flash_attn_2_available = _always
        module._loaded_implementation = None  # look again

    @classmethod
    def uninstall(cls) -> None:
        if cls._before is None:
            return
        module = cls._module()
        module.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2] = cls._before["row"]
        module.is_flash_attn_2_available = cls._before["is_flash_attn_2_available"]
        module._loaded_implementation = None
        cls._before = None
