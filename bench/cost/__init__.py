"""The cost of measuring: step time, memory, first call and record size. See `__main__.py`."""
