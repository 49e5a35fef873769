"""How fast fastattn is beside what it replaces, measured on the machine at hand.

    cases.py      what is measured, and what the project aims at
    timing.py     interleaved timing; medians and quartiles
    attention.py  the operation beside torch's own; verified before it is timed
    memory.py     peak memory, each implementation in a process of its own
    bert.py       whole training steps and inference beside stock Transformers
    profiling.py  what remains in a step
    results.py    the result files: schema, machine, commit
    tables.py     result files as tables, for the screen and for Markdown
    screen.py     what a measurement prints
    plot.py       result files as a picture
    render.py     tables and picture into README.md and bench/README.md

``fastattn bench attention`` and ``fastattn bench bert`` are the way in; they need no GPU.
"""
