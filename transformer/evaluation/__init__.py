"""How good a translation is, and pictures of how it came about."""
