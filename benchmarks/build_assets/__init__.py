"""Scripts that make the shipped assets from public data; nothing here is needed to use them."""
