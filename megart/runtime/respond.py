"""From a request to its answer: by recall, then read, or by one of the ways in direct.py."""

from __future__ import annotations

from dataclasses import replace

from .answer import Answer
from .ask import ask
from .direct import direct, irag
from .job import Job
from .room import fitting


def respond(job: Job) -> Answer:
    """The answer to the job's request; its text goes to the stream as it is decoded. On the model's thread."""
    runtime, request = job.runtime, fitting(job.request, job.runtime.engine, job.runtime.base.size)
    job = replace(job, request=request)
    runtime.fit_threads()
    runtime.idle_prefill.expect(None)
    if request.mode != "bare":
        job.bank.refresh()
    if request.mode == "ask" and request.combine == "turns":
        answer = ask(job)
    else:
        answer = irag(job) if request.mode == "irag" else direct(job)
    job.bank.usage.note(answer)
    if answer.finish != "cancelled":
        runtime.idle_prefill.expect(lambda: _so_far(job, answer))
    return answer


def _so_far(job: Job, answer: Answer) -> tuple[int, ...]:
    """The conversation up to *answer* as tokens. Raises what the template raises."""
    messages = [*job.request.history, {"role": "user", "content": job.request.worded()[0]}]
    turns = [*messages, {"role": "assistant", "content": job.request.begun + answer.text}]
    return job.runtime.engine.prompt(turns, tools=job.request.tools).body
