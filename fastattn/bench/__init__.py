"""How fast fastattn is beside what it replaces, measured on the machine at hand.

    cases.py       what is measured, and what the project aims at
    kinds.py       the kinds of results, from the options of ``fastattn bench``
    selection.py   which cases make sense on the machine at hand
    lengths.py     lengths of sequences; texts.py: the reviews they are from
    problem.py     a case with its tensors; peers.py: what computes it, onnx_peer.py among them
    passes.py      what is timed of a function
    timing.py      interleaved timing; medians and quartiles
    peak.py        the machine's peaks; flops.py: what a training step must compute

    attention.py   the operation beside every attention that is installed
    layers.py      the rest of a layer, and whole layers
    memory.py      peak memory, each implementation in a process of its own
    growth.py      cost over length, sequences, threads and padding
    bert.py        whole training steps and inference beside stock Transformers
    profiling.py   what remains in a step
    epochs.py      whole epochs, eagerly and compiled
    install.py     build, installation, first import
    overhead.py    what our Python costs a call and a patch

    results.py     the result files: schema, machine, commit
    comparison.py  two of them beside each other
    tables.py      result files as tables, for the screen and for Markdown
    screen.py      what a measurement prints
    plot.py        result files as pictures
    support.py     what the backends say they serve
    render.py      tables and pictures into README.md and bench/README.md

``fastattn bench all`` is the way in; it needs no GPU. bench/README.md says what is measured how.
"""
