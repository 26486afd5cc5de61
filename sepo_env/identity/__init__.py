"""What rewards, tasks and networks are, told in JSON, so that a run can be known again in another process.

>>> def score(sequences, letter="A"):
...     return [sequence.count(letter) for sequence in sequences]
>>> [*describe_callable(score)]
['function', 'code', 'defaults']
"""

from sepo_env.identity.code import is_library
from sepo_env.identity.describe import Identified, describe, describe_callable, describe_object
from sepo_env.identity.differences import Difference, differences
from sepo_env.identity.values import CANNOT_BE_TOLD, cannot_be_told, class_name, tensors_digest

__all__ = [
    "CANNOT_BE_TOLD",
    "Difference",
    "Identified",
    "cannot_be_told",
    "class_name",
    "describe",
    "describe_callable",
    "describe_object",
    "differences",
    "is_library",
    "tensors_digest",
]
