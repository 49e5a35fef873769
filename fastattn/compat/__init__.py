"""Entry points with the names, arguments and meaning of other libraries' attention.

- :mod:`fastattn.compat.sdpa`: ``torch.nn.functional.scaled_dot_product_attention``.
- :mod:`fastattn.compat.flash_attn`: the functions of flash-attn 2.8.
- :mod:`fastattn.compat.installed`: lets code that imports ``flash_attn`` run on fastattn.
"""

from fastattn.compat.installed import install_as_flash_attn, uninstall_as_flash_attn
from fastattn.compat.sdpa import routed_sdpa, scaled_dot_product_attention

__all__ = [
    "install_as_flash_attn",
    "routed_sdpa",
    "scaled_dot_product_attention",
    "uninstall_as_flash_attn",
]
