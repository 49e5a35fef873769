"""Entry points with the names, arguments and meaning of other libraries' attention.

- :mod:`fastattn.compat.sdpa`: ``torch.nn.functional.scaled_dot_product_attention``.
- :mod:`fastattn.compat.flash_attn`: the functions of flash-attn 2.8.
- :mod:`fastattn.compat.installed`: lets code that imports ``flash_attn`` run on fastattn.
"""

from fastattn.compat.sdpa import routed_sdpa, scaled_dot_product_attention

__all__ = ["routed_sdpa", "scaled_dot_product_attention"]
