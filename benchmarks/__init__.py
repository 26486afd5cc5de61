"""Programs that compare agents, and measure them against published figures; part of a checkout, never installed.

Each runs as a file and as a module: ``python benchmarks/compare.py``, ``python -m benchmarks.compare``.
"""
