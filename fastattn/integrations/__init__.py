"""Views of :func:`fastattn.attention` for other libraries. Importing this imports none of them."""
