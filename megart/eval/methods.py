"""The contestants that answer through llama.cpp: bare base, MEGa, iRAG and RAG, on the same questions.

Every one of them decodes greedily from the same model file. RAG retrieves with the bank's own gate and
puts the passage into the prompt that iRAG uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import prompts
from ..runtime import score
from ..runtime.answer import OpenedMemory
from ..runtime.scope import Scope
from .data import Question
from .ledger import Row
from .metrics import answer_scores, recall_scores
from .run import PartitionBank

LABELS = {
    "base": "bare base model",
    "mega": "MEGa (megart ask)",
    "mega-right": "MEGa, right gate given",
    "irag": "MEGa + iRAG",
    "rag": "RAG, same embedding",
    "rag-right": "RAG, right passage",
}
KINDS = {"irag": "irag", "rag": "rag", "rag-right": "rag"}


def kind(method: str) -> str:
    """The unit kind of a question under *method*."""
    return KINDS.get(method, "ask")


def ask(
    taught: PartitionBank, method: str, question: Question, memories: Sequence[str], limit: int, *, judge: Any = None
) -> Row:
    """One question answered by *method*: text, scores, what opened, log-probability of the right answer."""
    assistant, engine = taught.assistant, taught.assistant.engine
    prompt = score.turn(engine, prompts.ask(question.q))
    row: Row = {}
    limit *= max(1, len(memories))  # several memories have more to say
    if method == "base":
        reply = assistant.bare(question.q, max_tokens=limit)
        text = reply.text
    elif method == "mega":
        reply = assistant.ask(question.q, max_tokens=limit)
        text, row = reply.text, _opened(reply.memories, memories)
    elif method == "mega-right":
        there = [id for id in memories if taught.bank.find(id)]
        each = [assistant.ask(question.q, max_tokens=limit, scope=Scope(gates={id: 1.0})).text for id in there]
        text = "\n".join(each) or assistant.bare(question.q, max_tokens=limit).text
    elif method == "irag":
        # Where nothing opens iRAG is the plain answer, after a long recall of nothing: not waited for.
        answer = assistant.irag if score.rank(assistant, question.q).opened else assistant.ask
        reply = answer(question.q, max_tokens=limit)
        text, row = reply.text, {"recalled": reply.recalled, **_opened(reply.memories, memories)}
        if reply.recalled is not None:
            prompt = score.turn(engine, prompts.with_text(question.q, [reply.recalled]))
    else:
        ids = list(memories)
        if method == "rag":
            ids = score.rank(assistant, question.q).ids[: max(1, len(memories))]
            row = {"retrieved": ids, "right": set(ids) >= set(memories)}
        texts = {item.id: item.memory.text for item in taught.part.items}
        content = prompts.with_text(question.q, [texts[id] for id in ids if id in texts])
        prompt = score.turn(engine, content)
        text = assistant.bare(content, max_tokens=limit).text
    row = {"q": question.q, "answers": list(question.answers), "text": text, "memory": question.memory, **row}
    if question.kind:
        row["sort"] = question.kind
    if question.answers:
        row |= answer_scores(text, question.answers, question.parts, question.wrong)
        if not method.startswith("mega"):  # whose answers are spans that were read, not decoded after this prompt
            gold = engine.tokenize(question.answers[0], special=False)
            gold_score = score.score(assistant, prompt, [gold], memories=None).scores[0]
            row |= {"logprob": round(gold_score.mean, 5), "logprob_sum": round(gold_score.logprob, 5)}
        if judge is not None:
            row["judge"] = judge(question.q, question.answers, text)
    return row


def recall(taught: PartitionBank, method: str, memory_id: str, cue: str, text: str) -> Row:
    """The whole memory called up by *cue* under *method*."""
    assistant = taught.assistant
    limit = 2 * len(assistant.engine.tokenize(text, special=False)) + 16
    row: Row = {}
    if method == "base":
        heard = assistant.bare(prompts.recall(cue), max_tokens=limit).text
    elif method == "mega":
        answer = assistant.recall(cue, max_tokens=limit)
        heard, row = answer.text, _opened(answer.memories, [memory_id])
    elif method == "mega-right":
        there = Scope(gates={memory_id: 1.0}) if taught.bank.find(memory_id) else None
        heard = assistant.recall(cue, max_tokens=limit, scope=there).text if there else ""
    else:
        # What RAG "recalls" is the passage it finds.
        ids = [memory_id] if method == "rag-right" else score.rank(assistant, cue).ids[:1]
        texts = {item.id: item.memory.text for item in taught.part.items}
        heard, row = texts.get(ids[0], "") if ids else "", {"retrieved": ids}
    return {"cue": cue, "text": heard, "meant": text, "memory": memory_id, **row, **recall_scores(heard, text)}


def gate(taught: PartitionBank, question: Question, memories: Sequence[str]) -> Row:
    """Where the right memory stands in the gate's order, and what opens."""
    order = score.rank(taught.assistant, question.q)
    ranks = [order.ids.index(id) + 1 if id in order.ids else len(order.ids) + 1 for id in memories]
    row: Row = {"q": question.q, "opened": order.opened, "opens": float(bool(order.opened)), "memory": question.memory}
    if memories:
        row |= {
            "rank": max(ranks),
            "top1": float(max(ranks) <= len(memories)),
            "top5": float(max(ranks) <= 5),
            "right_open": float(set(memories) <= set(order.opened)),
            "wrong_open": float(bool(set(order.opened) - set(memories))),
        }
    if order.scores:
        row["best"] = round(order.scores[0], 5)
    return row


def _opened(opened: Sequence[OpenedMemory], meant: Sequence[str]) -> Row:
    ids = [memory.id for memory in opened]
    return {"opened": ids, "gates": [round(m.gate, 4) for m in opened], "right": bool(ids) and ids[0] in meant}
