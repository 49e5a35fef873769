"""Modules that take the place of a model's own, with the same parameters and state_dict keys.

One file per model family. :mod:`fastattn.patching` puts them in place and takes them out again.
"""
