"""The kinds of results: for each the function that measures it, from the options of a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fastattn.bench import cases
from fastattn.bench.selection import for_this_cpu

Say = Callable[[str], None]


class Options(NamedTuple):
    """What is asked for, whatever the kind."""

    device: str = "cpu"
    quick: bool = False
    rounds: int | None = None
    names: tuple[str, ...] = ()  # of cases; none: all


def _attention(options: Options, say: Say) -> dict[str, Any]:
    from fastattn.bench import attention

    known = cases.GPU_CASES if options.device == "cuda" else cases.ATTENTION_CASES
    chosen, skipped = _chosen(known, options)
    rounds = options.rounds or (attention.QUICK_ROUNDS if options.quick else attention.ROUNDS)
    found = attention.run(chosen, rounds, say, device=options.device, quick=options.quick)
    return found | {"skipped": skipped}


def _layers(options: Options, say: Say) -> dict[str, Any]:
    from fastattn.bench import layers

    chosen, skipped = _chosen(cases.LAYER_CASES, options)
    rounds = options.rounds or (layers.QUICK_ROUNDS if options.quick else layers.ROUNDS)
    found = layers.run(chosen, rounds, say, device=options.device, quick=options.quick)
    return found | {"skipped": skipped | found["skipped"]}


def _memory(options: Options, say: Say) -> dict[str, Any]:
    from fastattn.bench import memory

    chosen = cases.choose(cases.MEMORY_CASES, options.names, quick=options.quick)
    return memory.run(chosen, say, device=options.device)


def _growth(options: Options, say: Say) -> dict[str, Any]:
    from fastattn.bench import growth

    chosen = cases.choose(cases.GROWTH_CASES, options.names, quick=options.quick)
    rounds = options.rounds or (growth.QUICK_ROUNDS if options.quick else growth.ROUNDS)
    return growth.run(chosen, rounds, say, device=options.device)


def _bert(options: Options, say: Say) -> dict[str, Any]:
    from fastattn.bench import texts

    chosen, skipped = _chosen(cases.BERT_CASES, options)
    texts.require_packages()
    from fastattn.bench import bert

    _quieten_transformers()
    found = bert.run(
        chosen, quick=options.quick, rounds=options.rounds, say=say, device=options.device
    )
    return found | {"skipped": skipped}


def _epochs(options: Options, say: Say) -> dict[str, Any]:
    from fastattn.bench import texts

    known = cases.GPU_EPOCHS_CASES if options.device == "cuda" else cases.EPOCHS_CASES
    chosen, skipped = _chosen(known, options)
    texts.require_packages()
    from fastattn.bench import epochs

    _quieten_transformers()
    found = epochs.run(
        chosen, quick=options.quick, epochs=options.rounds, say=say, device=options.device
    )
    return found | {"skipped": skipped | found["skipped"]}


def _quieten_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()  # a new head on the model is what is wanted here
    logging.disable_progress_bar()


def _install(options: Options, say: Say) -> dict[str, Any]:
    from fastattn.bench import install

    usual = install.QUICK_ROUNDS if options.quick else install.ROUNDS
    return install.run(options.rounds or usual, say)


def _chosen(known: Any, options: Options) -> tuple[Any, dict[str, str]]:
    chosen = cases.choose(known, options.names, quick=options.quick)
    if options.names or options.device == "cuda":
        return chosen, {}
    return for_this_cpu(chosen)


# In the order of `fastattn bench all`.
KINDS: dict[str, Callable[[Options, Say], dict[str, Any]]] = {
    "attention": _attention,
    "layers": _layers,
    "memory": _memory,
    "growth": _growth,
    "bert": _bert,
    "epochs": _epochs,
    "install": _install,
}


def kinds_of(device: str) -> list[str]:
    """Returns the kinds that there are for a device: an installation is of no device's."""
    return [name for name in KINDS if name != "install" or device == "cpu"]
