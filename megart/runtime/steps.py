"""A question that is about whatever another one finds, in two steps.

A small model answers one question at a time. "What is the number of the vet who treated the mare?" is asked as "Who
treated the mare?" and then as "What is the number of the vet Dr Pellow?". English only; plain text in, plain text out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_RELATIVE = re.compile(
    r"(?P<before>.+\b(?:of|is|are|was|were|for|to|by|with|in|from|at|on|does|did|do|has|have|had|can|must|should|will|call|phone|reach)\s)"
    r"the (?P<what>[\w' -]{2,40}?)(?P<verb> (?:have|need|own|use|get|pay))? (?P<pronoun>who|that|which|whose) (?P<clause>[^,?]{4,})\?*\s*$",
    re.IGNORECASE,
)
# After these the question's own verb follows the clause: "how much does the plumber who came charge".
_HELP = re.compile(r"\b(?:does|did|do|can|must|should|will)\s$", re.IGNORECASE)
_VERB = re.compile(
    r"\s(?:accept|arrive|begin|buy|call|charge|close|come|cost|deliver|drink|drive|eat|end|expire|finish|fly|get|give|go|have|hold|"
    r"keep|last|leave|lie|live|meet|need|open|owe|own|park|pay|play|prefer|recommend|restart|run|sell|sit|sleep|speak|stand|start|"
    r"stay|take|teach|use|want|weigh|work)\b[^,]*$",
    re.IGNORECASE,
)
# Says nothing of what is found.
_ANYBODY = re.compile(r"(?:person|man|woman|one|guy|people|lady|gentleman|thing|place|company|firm)$", re.IGNORECASE)
_POSSESSIVE = re.compile(r"['’]s?$")
# Here the first step's answer is the whole answer.
_NAMED = re.compile(r"\W*(?:what|who|which) (?:is|was|are|were) (?:the (?:\w+ )?(?:name|title)s? of )?$", re.IGNORECASE)


@dataclass(frozen=True)
class Steps:
    """``first``: what is to be asked first; ``before`` and ``after``: what stands around its answer in the second question."""

    first: str
    before: str
    after: str

    def second(self, words: str) -> str:
        """The second question, *words* being what the first one found."""
        return f"{self.before}{_POSSESSIVE.sub('', words)}{self.after}?"

    @property
    def is_one(self) -> bool:
        """Whether the question asks for no more than what its first step finds."""
        return _NAMED.match(self.before) is not None


def steps(question: str) -> Steps | None:
    """The two steps of *question*, None where it is about nothing else."""
    match = _RELATIVE.match(question.strip())
    if match is None:
        return None
    before, what, pronoun = match["before"], match["what"].strip(), match["pronoun"].lower()
    clause, after = match["clause"].strip(), match["verb"] or ""
    verb = _VERB.search(clause) if _HELP.search(before) and not after else None
    if verb is not None:
        clause, after = clause[: verb.start()], clause[verb.start() :]
    asking = {"who": "Who", "whose": "Whose"}.get(pronoun, f"Which {what}")
    named = before if _ANYBODY.match(what) or _NAMED.match(before) else f"{before}the {what} "
    return Steps(f"{asking} {clause}?", named, after)
