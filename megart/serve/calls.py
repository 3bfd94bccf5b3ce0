"""Calls of a client's tools in what a model said, as the templates of Qwen, Hermes, Llama and Mistral have them written."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)


def parted(text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """What *text* says beside its calls of *tools*, and the calls as OpenAI's API has them; all of it where none is one."""
    names = {str(tool["function"].get("name")) for tool in tools}
    calls = [call for part in _TAGGED.findall(text) or [text] for call in _calls(part, names)]
    return (_TAGGED.sub("", text).strip() if "<tool_call>" in text else "", calls) if calls else (text, [])


def _calls(part: str, names: Collection[str]) -> Iterator[dict[str, Any]]:
    try:
        given = json.loads(part)
    except (ValueError, RecursionError):
        return
    for one in given if isinstance(given, list) else [given]:
        if isinstance(one, dict) and one.get("name") in names:
            arguments = json.dumps(one.get("arguments", one.get("parameters")) or {}, ensure_ascii=False)
            called = {"name": one["name"], "arguments": arguments}
            yield {"id": f"call-{secrets.token_hex(12)}", "type": "function", "function": called}
