"""Faults, load and corrupted input, and their effect on training and records. See `__main__.py`."""
