"""Makes ``import benchmarks`` find this checkout when one of its programs is run as a file.

``python benchmarks/compare.py`` puts ``benchmarks/`` at the front of the path, not the folder that holds it. Such a
program imports this module before anything of ours.
"""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent

# In its place, not beside it: otherwise every module here could be imported a second time, under a second name.
sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != _HERE]
sys.path.insert(0, str(_HERE.parent))
