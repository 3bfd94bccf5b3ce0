"""The gate: which memories a question opens, how far, and when none does.

``policy`` turns scores into gates, ``words`` reads questions and memories as words, ``slips`` finds what a slip of the
keyboard was meant to be, ``evidence`` weighs what speaks for a memory, ``rerank`` tells memories apart that are near each
other, ``known`` says whether a memory that was read answers, ``versions`` whether two say the same at another time,
``dates`` when a question says that something was. None of them knows files or models.
"""

from . import dates, known, rerank, versions
from .evidence import Candidates, Evidence, Index
from .meaning import Vectors
from .policy import Gated, GatePolicy, by_product, decide, unit
from .words import QuestionWords, read_question, sequence

__all__ = [
    "Candidates",
    "Evidence",
    "GatePolicy",
    "Index",
    "Gated",
    "QuestionWords",
    "Vectors",
    "by_product",
    "dates",
    "decide",
    "known",
    "read_question",
    "rerank",
    "sequence",
    "unit",
    "versions",
]
