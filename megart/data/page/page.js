"use strict";
const $ = (id) => document.getElementById(id);
const history = [];
let running = null;

// Text from elsewhere only ever becomes a text node.
function made(tag, text, kind) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
}

async function call(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) {
    const given = prompt("This server wants an API key:");
    if (given) {
      sessionStorage.setItem("key", given);
      return call(path, options);
    }
  }
  if (!response.ok) {
    const body = await response.json().catch(() => ({}));
    throw new Error(body.error?.message || `the server answered ${response.status}`);
  }
  return response;
}

function tell(error) {
  $("problem").textContent = error ? error.message || String(error) : "";
}

function marked(source) {
  const node = made("details");
  node.append(made("summary", `from ${source.title}${source.created ? `, ${source.created.slice(0, 10)}` : ""}`));
  const [start, end] = source.span;
  // Offsets count characters, not UTF-16 units.
  const text = Array.from(source.text);
  node.append(text.slice(0, start).join(""), made("mark", text.slice(start, end).join("")), text.slice(end).join(""));
  return node;
}

function about(item, megart) {
  if (megart.known === false) item.append(made("p", "Not in memory: the model itself answers.", "about unknown"));
  for (const source of megart.sources || []) item.append(marked(source));
  for (const source of megart.older || []) {
    const old = marked(source);
    old.firstChild.textContent = `an older note, ${source.created.slice(0, 10)}`;
    item.append(old);
  }
  const line = made("p", undefined, "about");
  for (const memory of megart.memories || []) {
    const bar = made("meter");
    bar.value = memory.gate;
    bar.title = `gate ${memory.gate.toFixed(2)}`;
    line.append(bar, ` ${memory.title} `);
  }
  const times = megart.timings;
  line.append(`first word ${Math.round(times.first_token_ms)} ms, whole ${Math.round(times.total_ms)} ms`);
  item.append(line);
}

async function ask(question) {
  const list = $("talk");
  list.append(made("li", question, "question"));
  const item = made("li");
  const words = made("span", "…");
  item.append(words);
  list.append(item);
  item.scrollIntoView({ block: "end" });
  history.push({ role: "user", content: question });
  running = new AbortController();
  $("send").textContent = "Stop";
  let text = "";
  let megart = null;
  try {
    const response = await call("v1/chat/completions", {
      method: "POST",
      signal: running.signal,
      body: JSON.stringify({
        model: $("model").value,
        messages: history,
        stream: true,
        megart: { style: $("style").value, strict: $("strict").checked },
      }),
    });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      rest += value;
      const lines = rest.split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
        const event = JSON.parse(line.slice(6));
        if (event.error) throw new Error(event.error.message);
        text += event.choices[0]?.delta?.content || "";
        if (event.megart) megart = event.megart;
        words.textContent = text || "…";
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") tell(error);
  }
  running = null;
  $("send").textContent = "Ask";
  words.textContent = text || "(no answer)";
  if (text) history.push({ role: "assistant", content: text });
  else history.pop();
  if (megart) about(item, megart);
  item.scrollIntoView({ block: "end" });
  if (/^\s*(please[, ]+)?remember/i.test(question)) list_memories();
}

async function list_memories() {
  const query = new URLSearchParams({ model: $("model").value, q: $("search").value });
  try {
    const found = await (await call(`v1/memories?${query}`)).json();
    $("count").textContent = `${found.total} ${found.total === 1 ? "memory" : "memories"}`;
    $("memories").replaceChildren(...found.data.map(shown));
    tell();
  } catch (error) {
    $("memories").replaceChildren();
    tell(error);
  }
}

function shown(memory) {
  const item = made("li");
  const forget = made("button", "Forget");
  forget.setAttribute("aria-label", `Forget ${memory.title || memory.text.slice(0, 40)}`);
  forget.addEventListener("click", async () => {
    if (!confirm(`Forget this for good?\n\n${memory.text.slice(0, 200)}`)) return;
    const query = new URLSearchParams({ model: $("model").value });
    try {
      await call(`v1/memories/${encodeURIComponent(memory.id)}?${query}`, { method: "DELETE" });
    } catch (error) {
      tell(error);
    }
    list_memories();
  });
  item.append(forget);
  if (memory.title) item.append(made("strong", memory.title));
  item.append(made("span", memory.text));
  const tags = memory.tags.length ? `, ${memory.tags.join(", ")}` : "";
  item.append(made("p", `${memory.created.slice(0, 10)}, ${memory.state}${tags}`, "about"));
  return item;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const question = $("question").value.trim();
  if (!question) return;
  $("question").value = "";
  tell();
  ask(question);
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("new").addEventListener("click", () => {
  history.length = 0;
  $("talk").replaceChildren();
  $("question").focus();
});
$("add").addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = { model: $("model").value, text: $("text").value };
  if ($("title").value.trim()) body.title = $("title").value;
  try {
    await call("v1/memories", { method: "POST", body: JSON.stringify(body) });
    $("add").reset();
    await list_memories();
  } catch (error) {
    tell(error);
  }
});
let wait;
$("search").addEventListener("input", () => {
  clearTimeout(wait);
  wait = setTimeout(list_memories, 150);
});
$("model").addEventListener("change", list_memories);

(async () => {
  try {
    const models = await (await call("v1/models")).json();
    for (const model of models.data) $("model").append(new Option(model.id, model.id));
    await list_memories();
    $("question").focus();
  } catch (error) {
    tell(error);
  }
})();
