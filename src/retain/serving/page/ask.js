// Ask: a conversation, whose answers are written as they come, with what they came from.

import { request, sentEvents } from "./api.js";
import { byId, clearTrouble, el, trouble } from "./dom.js";
import { adapterTitle, fetchTitles, known, titleOf } from "./known.js";
import { whenOpened } from "./views.js";

const KEPT = "retain.conversation";
const CHOSEN = "retain.asking";
const NEAR = 60; // pixels from the end within which the log follows what is written
const text = byId("ask-text");
const log = byId("ask-log");
const model = byId("ask-model");
const retrieval = byId("ask-retrieval");

// {question, answer, state: writing | done | stopped | failed, error, sources, adapters}
let turns = (kept(KEPT) ?? []).map((turn) => ({ ...turn, state: turn.state === "writing" ? "stopped" : turn.state }));
let asking = null; // AbortController of the answer that is being written
let wanted = kept(CHOSEN)?.model ?? "retain";
retrieval.checked = kept(CHOSEN)?.retrieval ?? true;
const places = new WeakMap(); // turn -> its elements

function kept(name) {
  try {
    return JSON.parse(sessionStorage.getItem(name));
  } catch {
    return null;
  }
}

function keep() {
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(turns));
  } catch {
    sessionStorage.removeItem(KEPT); // it has become too long to be kept
  }
}

function drawn(turn) {
  const answer = el("p", { class: "said" }, turn.answer);
  const notes = el("div", { class: "notes" });
  places.set(turn, { answer, notes });
  annotate(turn);
  return el(
    "div", { class: "turn" },
    el("article", { class: "you", "aria-label": "You" }, el("p", { class: "said" }, turn.question)),
    el("article", { class: "it", "aria-label": "Answer" }, answer, notes),
  );
}

/** What stands below an answer. */
function annotate(turn) {
  const { answer, notes } = places.get(turn);
  answer.textContent = turn.answer;
  answer.hidden = !turn.answer && turn.state !== "writing";
  answer.classList.toggle("writing", turn.state === "writing");
  const parts = [];
  if (turn.state === "failed") parts.push(el("p", { class: "wrong" }, turn.error));
  if (turn.state === "stopped") parts.push(el("p", { class: "muted small" }, "Stopped before its end."));
  if (turn.state === "done") parts.push(el("p", { class: "muted small from" }, ...whence(turn)), ...(turn.sources ?? []).map(passage));
  notes.replaceChildren(...parts);
}

function whence({ adapters = [], sources = [] }) {
  if (!adapters.length) {
    return [sources.length ? "The base model, with what it read in" : "The base model alone: nothing that was taught fits the question."];
  }
  const chips = adapters.map((name) => el("span", { class: "chip", title: name }, adapterTitle(name)));
  return [adapters.length === 1 ? "Adapter" : "Adapters", ...chips];
}

function passage(source) {
  return el(
    "details", { class: "source" },
    el("summary", {}, "Passage of ", el("b", {}, source.title || titleOf(source.document))),
    el("blockquote", {}, source.text),
    el("p", { class: "muted small" }, `Document ${source.document}`),
  );
}

function empty() {
  byId("ask-empty").hidden = turns.length > 0;
  log.hidden = byId("ask-new").hidden = turns.length === 0;
}

const toEnd = () => (log.scrollTop = log.scrollHeight);

function messages(question) {
  const past = turns.filter((turn) => turn.state !== "failed" && turn.answer);
  const said = past.flatMap((turn) => [{ role: "user", content: turn.question }, { role: "assistant", content: turn.answer }]);
  return [...said, { role: "user", content: question }];
}

async function ask(question) {
  const json = { model: model.value, messages: messages(question), retrieval: retrieval.checked, stream: true };
  const turn = { question, answer: "", state: "writing" };
  turns.push(turn);
  log.append(drawn(turn));
  empty();
  toEnd();
  const own = (asking = new AbortController());
  switched(true);
  try {
    await read(turn, await request("/v1/chat/completions", { method: "POST", json, signal: own.signal }));
    turn.state = "done";
    clearTrouble();
  } catch (error) {
    turn.state = error.name === "AbortError" ? "stopped" : "failed";
    turn.error = error.message;
    if (turn.state === "failed") trouble(error);
    if (turn.state === "failed" && !text.value) text.value = question;
  }
  turn.answer = turn.answer.trim();
  await fetchTitles((turn.adapters ?? []).filter((name) => /^d[0-9a-f]{12}$/.test(name)));
  annotate(turn);
  if (asking === own) asking = null;
  if (asking === null) switched(false);
  toEnd();
  keep();
  byId("ask-live").textContent = { done: `Answer: ${turn.answer || "nothing"}`, stopped: "Stopped", failed: "" }[turn.state];
}

async function read(turn, response) {
  const place = places.get(turn).answer;
  for await (const { data } of sentEvents(response)) {
    if (!data) continue;
    if (data === "[DONE]") return;
    const piece = JSON.parse(data);
    if (piece.error) throw new Error(piece.error.message);
    turn.answer += piece.choices[0]?.delta.content ?? "";
    if (piece.retain) Object.assign(turn, { sources: piece.retain.sources, adapters: piece.retain.adapters });
    const follows = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR;
    place.textContent = turn.answer.trimStart();
    if (follows) toEnd();
  }
  throw new Error("The answer broke off before its end.");
}

/** Stop takes the place of Ask, and the keyboard stays in the form. */
function switched(writing) {
  const lost = document.activeElement === byId(writing ? "ask-send" : "ask-stop");
  byId("ask-send").hidden = writing;
  byId("ask-stop").hidden = !writing;
  log.setAttribute("aria-busy", String(writing));
  if (lost) text.focus();
}

byId("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = text.value.trim();
  if (!question || asking) return;
  text.value = "";
  ask(question);
});
text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("ask-form").requestSubmit();
});
byId("ask-stop").addEventListener("click", () => asking?.abort());
byId("ask-new").addEventListener("click", () => {
  asking?.abort();
  turns = [];
  log.replaceChildren();
  keep();
  empty();
  text.focus();
});
window.addEventListener("pagehide", keep);

/** Choose a model for the next question, and go there. */
export function askWith(name) {
  wanted = model.value = name;
  remember();
  location.hash = "#ask";
}

function remember() {
  wanted = model.value;
  sessionStorage.setItem(CHOSEN, JSON.stringify({ model: wanted, retrieval: retrieval.checked }));
}
model.addEventListener("change", remember);
retrieval.addEventListener("change", remember);

function models() {
  for (const chip of log.querySelectorAll(".chip")) chip.textContent = adapterTitle(chip.title);
  if (!known.models.length) return;
  const named = known.models.map(({ id, parent }) => {
    if (id === "retain") return { id, label: "retain: what fits the question" };
    if (!parent) return { id, label: `${id}: the base alone` };
    return { id, label: adapterTitle(id) === id ? id : `${adapterTitle(id)} (${id})`, learned: true };
  });
  const look = JSON.stringify(named);
  if (model.look === look) return;
  model.look = look;
  const option = ({ id, label }) => el("option", { value: id }, label);
  const learned = named.filter((item) => item.learned);
  model.replaceChildren(...named.filter((item) => !item.learned).map(option));
  if (learned.length) model.append(el("optgroup", { label: "One adapter alone" }, ...learned.map(option)));
  model.value = named.some((item) => item.id === wanted) ? wanted : "retain";
}

known.addEventListener("change", models);
whenOpened("ask", toEnd);
log.append(...turns.map(drawn));
empty();
