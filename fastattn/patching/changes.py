"""Changes to one module, recorded so that they can be taken back.

A module is changed in four ways, each chosen for what it survives:

- ``__class__`` becomes a subclass without new state. An instance attribute ``forward`` would be
  shorter, but it stays bound to the first copy: ``nn.DataParallel`` copies ``__dict__``, so its
  replicas would run on the first device's weights, and a bound method cannot be unpickled. A class
  survives copies, pickles and replicas, and hooks and wrappers of others keep working around it.
- ``config`` becomes a copy of its own. Models made from one config object share it, and switching
  the attention of one must not switch the others.
- Hooks, where a whole Transformers model is concerned: Transformers finds by class which outputs it
  can record, so the class of a model must stay.
- Plain attributes.

The record lies in the module's ``__dict__``: it is no part of the state_dict, goes into copies and
pickles with the module, and is found again when the module has been put into another model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from fastattn.errors import PatchError

_RECORD = "_fastattn_changes"
_ABSENT = "absent"
_IMPLEMENTATION = "_attn_implementation_internal"


@dataclass
class _Changes:
    """What a module was, for each thing that was changed."""

    stock_class: type[nn.Module] | None = None
    patched_class: type[nn.Module] | None = None
    stock_config: Any = None
    patched_config: Any = None
    attributes: dict[str, tuple[str, Any]] = field(default_factory=dict)  # name -> (state, value)
    hooks: dict[str, RemovableHandle] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)  # arguments of patch


def is_changed(module: nn.Module) -> bool:
    """Whether this very module, not one inside it, is changed."""
    return _RECORD in module.__dict__


def stock_class(module: nn.Module) -> type[nn.Module]:
    """Returns the class the module had before it was patched."""
    changed = module.__dict__.get(_RECORD)
    return changed.stock_class if changed and changed.stock_class else type(module)


def change_class(module: nn.Module, patched_class: type[nn.Module]) -> None:
    """Makes the module an instance of a subclass of its class."""
    if type(module) is patched_class:
        return
    changes = _changes(module)
    _drop_bound_forward(module)
    if type(module) is not changes.patched_class:
        changes.stock_class = type(module)
    changes.patched_class = patched_class
    module.__class__ = patched_class


def _drop_bound_forward(module: nn.Module) -> None:
    """Removes an instance's ``forward`` if it is its class's own, which another class hides.

    Transformers 5.0 leaves such a one behind when it has recorded hidden states.
    """
    bound = module.__dict__.get("forward")
    if getattr(bound, "__func__", None) is type(module).forward:
        del module.forward


def change_attribute(module: nn.Module, name: str, value: Any) -> None:
    """Sets an attribute of the module."""
    before = ("present", module.__dict__[name]) if name in module.__dict__ else (_ABSENT, None)
    _changes(module).attributes.setdefault(name, before)
    setattr(module, name, value)


def change_config(body: Any, holders: Iterable[nn.Module], implementation: str) -> None:
    """Gives a model, and those around and in it that share its config, a copy of the config.

    Args:
        body: the model; its config says which attention implementation runs.
        holders: modules that may have the same config object.
        implementation: what the copy says.
    """
    stock = patched = body.config
    if is_changed(body) and _changes(body).patched_config is patched:
        stock = _changes(body).stock_config
    elif patched._attn_implementation != implementation:
        patched = copy.copy(stock)
        # As a dict, so that the configs inside this one, which it shares, stay as they are.
        patched._attn_implementation = {"": implementation}
    if patched is stock:
        return
    for module in holders:
        if module.__dict__.get("config") is stock:
            changes = _changes(module)
            changes.stock_config, changes.patched_config = stock, patched
            module.config = patched


def has_hook(module: nn.Module, name: str) -> bool:
    """Whether a hook is recorded under this name."""
    return is_changed(module) and name in _changes(module).hooks


def keep_hook(module: nn.Module, name: str, handle: RemovableHandle) -> None:
    """Records a hook under a name; removes the one that was there."""
    hooks = _changes(module).hooks
    if name in hooks:
        hooks[name].remove()
    hooks[name] = handle


def settle(body: nn.Module, choices: dict[str, Any]) -> None:
    """Records the choices a body is patched with; raises PatchError if they were others before."""
    changes = _changes(body)
    for name, value in choices.items():
        before = changes.choices.setdefault(name, value)
        if before != value:
            raise PatchError(
                f"patch: {name} must be {_shown(before)}, with which this model is patched "
                f"already; got {_shown(value)}. Call fastattn.unpatch(model) first."
            )


def _shown(choice: Any) -> str:
    return str(sorted(choice)) if isinstance(choice, frozenset) else str(choice)


def check_restorable(name: str, module: nn.Module) -> None:
    """Raises PatchError if the class was changed by somebody else after the patch."""
    if not is_changed(module):
        return
    changes = _changes(module)
    if changes.patched_class is not None and type(module) is not changes.patched_class:
        raise PatchError(
            f"unpatch: {name or 'the model'} must still be a {changes.patched_class.__name__}; got "
            f"a {type(module).__name__}. Undo first what changed its class after the patch."
        )


def restore(module: nn.Module) -> None:
    """Takes back every change of this very module."""
    if not is_changed(module):
        return
    changes: _Changes = module.__dict__.pop(_RECORD)
    for handle in changes.hooks.values():
        handle.remove()
    for name, (state, value) in changes.attributes.items():
        if state == _ABSENT:
            delattr(module, name)
        else:
            setattr(module, name, value)
    if changes.stock_config is not None:
        _restore_config(module, changes)
    if changes.stock_class is not None:
        _drop_bound_forward(module)
        module.__class__ = changes.stock_class


def _restore_config(module: nn.Module, changes: _Changes) -> None:
    """Puts the module's own config back, with what the user has set on it in the meantime."""
    if module.__dict__.get("config") is not changes.patched_config:
        return  # the user has given the module a new config
    stock, patched = changes.stock_config, changes.patched_config
    for name, value in patched.__dict__.items():
        if name != _IMPLEMENTATION:
            stock.__dict__[name] = value
    module.config = stock


def _changes(module: nn.Module) -> _Changes:
    """Returns the module's record, a new one if it has none."""
    return module.__dict__.setdefault(_RECORD, _Changes())
