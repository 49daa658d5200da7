"""Calibration of the rules on networks with an injected fault and on healthy ones. See `__main__.py`."""
