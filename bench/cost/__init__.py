"""What measuring costs. See `__main__.py`."""
