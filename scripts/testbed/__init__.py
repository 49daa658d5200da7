"""Networks, runs, requests and processes that tests and benchmarks share; not part of the wheel.

The packages `tests` and `bench` both import from here and never from each other.
"""
