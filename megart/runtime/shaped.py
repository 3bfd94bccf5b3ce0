"""An answer that is held to the shape of what is asked for: a telephone number is one, and no customer number."""

from __future__ import annotations

from dataclasses import replace

from ..gate import shapes
from .found import Candidate
from .job import Job
from .reader import Reading
from .recall import recall
from .recite import Recital

# The reader's log odds and its nats a token, where it doubts what has the shape that is asked for: as good as open.
ODDS, LOGPROB = 0.0, -0.5


def shaped(job: Job, candidate: Candidate, recital: Recital, question: str, reading: Reading) -> Reading:
    """*reading* of *recital*, but where *question* asks for something of a shape that stands there, that is the answer."""
    asked = shapes.asked(question)
    spans = asked.shape.spans(recital.text) if asked is not None else []
    if not spans or not job.runtime.reader.trained:
        return reading
    start, end = reading.span
    read = [span for span in spans if span[0] < end and start < span[1]] or spans
    if len(read) > 1:
        record = candidate.record
        read = [read[job.runtime.reader.choose(recall(job.runtime, job.bank, record), question, record.title, read)]]
    return replace(reading, span=read[0], odds=max(ODDS, reading.odds), logprob=max(LOGPROB, reading.logprob))
