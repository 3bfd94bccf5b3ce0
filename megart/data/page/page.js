"use strict";
const $ = (id) => document.getElementById(id);
let talk = []; // the messages so far
const banks = new Map(); // model id -> what the server says of its bank
let running = null;
let watching = false;

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
    if (body.error?.code === "loading") {
      tell("The model is still loading ...");
      await new Promise((go) => setTimeout(go, 1000));
      return call(path, options);
    }
    throw new Error(body.error?.message || `the server answered ${response.status}`);
  }
  return response;
}

function tell(error) {
  $("problem").textContent = error ? error.message || String(error) : "";
}

function marked(source, answer) {
  const node = made("details");
  node.open = source.text.trim() !== answer.trim();
  node.append(made("summary", `from ${source.title}${source.created ? `, ${source.created.slice(0, 10)}` : ""}`));
  const [start, end] = source.span;
  // Offsets count characters, not UTF-16 units.
  const text = Array.from(source.text);
  node.append(text.slice(0, start).join(""), made("mark", text.slice(start, end).join("")), text.slice(end).join(""));
  return node;
}

function about(item, megart, answer) {
  if (megart.known === false) {
    const near = megart.nearest?.length ? ` The nearest notes: ${megart.nearest.join(", ")}.` : "";
    const who = $("strict").checked ? "" : "Not in memory: the model itself answered.";
    item.append(made("p", who + near, "about unknown"));
  }
  for (const source of megart.sources || []) item.append(marked(source, answer));
  for (const source of megart.older || []) {
    const old = marked(source, answer);
    old.firstChild.textContent = `an older note, ${source.created.slice(0, 10)}`;
    item.append(old);
  }
  const line = made("p", undefined, "about");
  for (const memory of megart.memories || []) {
    const bar = made("meter");
    bar.value = memory.gate;
    bar.setAttribute("aria-label", `${memory.title} opened`);
    const opened = made("span", undefined, "opened");
    opened.append(bar, `${memory.title} ${memory.gate.toFixed(2)}${memory.pending ? " (not learnt yet)" : ""}`);
    line.append(opened);
  }
  const times = megart.timings;
  if (times.total_ms) line.append(made("span", `first word ${Math.round(times.first_token_ms)} ms, whole ${Math.round(times.total_ms)} ms`, "times"));
  item.append(line);
}

async function ask(question) {
  const list = $("talk");
  list.append(made("li", question, "question"));
  const item = made("li");
  const words = made("span", "…");
  item.append(words);
  list.append(item);
  $("hello").hidden = true;
  item.scrollIntoView({ block: "end" });
  const mine = talk; // a new talk may begin before this answer ends
  mine.push({ role: "user", content: question });
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
        messages: mine,
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
  if (text) mine.push({ role: "assistant", content: text });
  else mine.pop();
  if (megart) about(item, megart, text);
  item.scrollIntoView({ block: "end" });
  if (/^\s*(please[, ]+)?remember/i.test(question)) show_bank();
}

// Which parts of the page a bank has: the model alone none, a pack no way to change it.
async function show_bank() {
  const bank = banks.get($("model").value);
  $("bank").hidden = bank.memories === null;
  $("pack").hidden = !bank.read_only;
  $("add").hidden = bank.read_only;
  if (bank.memories === null) return;
  await list_memories();
  await show_lessons();
}

// How far teaching is; looks again each second while it goes on.
async function show_lessons() {
  const model = $("model").value;
  if (banks.get(model).read_only) return void ($("lessons").hidden = true);
  let state;
  try {
    state = await (await call(`v1/learn?${new URLSearchParams({ model })}`)).json();
  } catch (error) {
    return tell(error);
  }
  $("lessons").hidden = !(state.running || state.error || (state.pending && state.can_teach));
  $("learn").hidden = state.running;
  $("progress").hidden = !state.running;
  $("progress").max = state.total || 1;
  $("progress").value = state.done;
  $("lesson").textContent = state.running
    ? `learning, ${state.done} of ${state.total} done`
    : state.error || `${state.pending} not learnt yet; they answer from their text`;
  if (!state.running || watching) return;
  watching = true;
  setTimeout(async () => {
    watching = false;
    await list_memories();
    await show_lessons();
  }, 1000);
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
    await show_bank();
    $("search").focus();
  });
  if (!banks.get($("model").value).read_only) item.append(forget);
  if (memory.title) item.append(made("strong", memory.title));
  item.append(made("span", memory.text));
  const tags = memory.tags.length ? `, ${memory.tags.join(", ")}` : "";
  const state = memory.state === "pending" ? "not learnt yet" : memory.state;
  item.append(made("p", `${memory.created.slice(0, 10)}, ${state}${tags}`, "about"));
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
function start_anew() {
  running?.abort();
  talk = [];
  $("talk").replaceChildren();
  $("hello").hidden = false;
}
$("new").addEventListener("click", () => {
  start_anew();
  $("question").focus();
});
$("add").addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = { model: $("model").value, text: $("text").value };
  if ($("title").value.trim()) body.title = $("title").value;
  try {
    await call("v1/memories", { method: "POST", body: JSON.stringify(body) });
    $("add").reset();
    await show_bank();
    $("text").focus();
  } catch (error) {
    tell(error);
  }
});
let wait;
$("search").addEventListener("input", () => {
  clearTimeout(wait);
  wait = setTimeout(list_memories, 150);
});
$("model").addEventListener("change", () => {
  start_anew();
  show_bank();
});
$("learn").addEventListener("click", async () => {
  try {
    await call("v1/learn", { method: "POST", body: JSON.stringify({ model: $("model").value }) });
  } catch (error) {
    tell(error);
  }
  show_lessons();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
});

(async () => {
  try {
    const models = await (await call("v1/models")).json();
    for (const model of models.data) {
      banks.set(model.id, model.megart);
      const alone = model.megart.memories === null;
      $("model").append(new Option(alone ? `${model.id}, no memory` : model.id, model.id));
    }
    await show_bank();
    $("question").focus();
  } catch (error) {
    tell(error);
  }
})();
