"""The comparison behind ``benchmarks/compare.py``: agents x seeds on one task at matched cost.

`suite` says what is run, `runs` gives each run its folder, `scheduler` hands runs to processes, `worker` does one of
them; `tables`, `statistics`, `figures` and `report` say what came out.
"""
