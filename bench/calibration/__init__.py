"""Calibration of the rules on networks with a fault put there on purpose, and on healthy ones. See `__main__.py`."""
