// History: what was changed when, with its certificate; reverting and forgetting.

import { call } from "./api.js";
import { badge, busily, byId, el, fact, moment, percent, rounded, say, seconds, show, sure, trouble, whence } from "./dom.js";
import { feed } from "./feed.js";
import { fetchTitles, known, look, showsMore, titlesOf } from "./known.js";
import { isOpen, whenOpened } from "./views.js";

const MORE = 50;
const KINDS = {
  learn: "Learned", consolidate: "Joined adapters of", revert: "Went back", forget: "Forgot", merge: "Merged adapters of",
  import: "Imported", enable: "Switched",
};
let limit = MORE;
let updates = [];

async function load() {
  let found;
  try {
    found = (await call(`/v1/updates?limit=${limit}`)).updates;
  } catch (error) {
    return trouble(error);
  }
  updates = found;
  draw();
  if (await fetchTitles(updates.flatMap((update) => update.documents.slice(0, 3)))) draw();
}

function draw() {
  const shown = updates.map((update) => ({ ...update, about: titlesOf(update.documents) }));
  show(byId("updates"), shown, (update) => update.id, drawn);
  byId("updates-none").hidden = updates.length > 0;
  byId("updates-more").hidden = updates.length < limit || limit >= 1000;
  const documents = known.documents.filter((item) => item.status !== "forgotten");
  show(byId("documents"), documents, (item) => item.id, drawnDocument);
  byId("documents-none").hidden = documents.length > 0;
}

function drawn(update) {
  const { learned = {}, kept = {}, cost = {} } = update.certificate;
  const facts = [];
  if (typeof learned.recall_after === "number") {
    facts.push(fact("Recall", `${percent(learned.recall_before)} → ${percent(learned.recall_after)}`));
  }
  if (typeof kept.forgetting === "number") facts.push(fact("Forgetting", percent(kept.forgetting)));
  if (typeof kept.perplexity_rise === "number") facts.push(fact("Perplexity", change(kept.perplexity_rise)));
  if (typeof cost.seconds === "number") facts.push(fact("Took", seconds(cost.seconds)));
  const title = `${KINDS[update.kind] ?? update.kind} ${update.about}`.trim();
  const revertible = update.status === "committed" && update.kind !== "forget";
  return el(
    "li", { class: "card item" },
    el("div", { class: "line" }, el("h3", {}, title), badge(update.status)),
    update.reason && el("p", { class: update.status === "rejected" ? "wrong" : "muted" }, update.reason),
    facts.length ? el("dl", { class: "facts" }, ...facts) : "",
    el(
      "div", { class: "line" },
      el("p", { class: "muted small" }, `Update ${update.sequence} (${update.id}), `, moment(update.created_at)),
      revertible && action("Revert", `Revert update ${update.sequence}: ${title}`, (own) => revert(own, update, title)),
    ),
    certificate(update),
  );
}

const change = (rise) => (Math.abs(rise) < 5e-5 ? "unchanged" : `${rise > 0 ? "+" : "−"}${percent(Math.abs(rise))}`);

function action(words, label, run) {
  const made = el("button", { type: "button", class: "quiet", "aria-label": label, dataset: { key: "act" } }, words);
  made.addEventListener("click", () => run(made));
  return made;
}

/** Unfolds to the whole certificate, which is fetched then. */
function certificate(update) {
  const body = el("div", { class: "below" });
  const details = el("details", { dataset: { key: "certificate" } }, el("summary", {}, "Certificate"), body);
  details.addEventListener("toggle", async () => {
    if (!details.open || body.firstChild) return;
    body.replaceChildren(el("p", { class: "muted" }, "Reading it"));
    try {
      const whole = await call(`/v1/updates/${encodeURIComponent(update.id)}`);
      body.replaceChildren(...parts(whole.certificate));
    } catch (error) {
      body.replaceChildren(el("p", { class: "wrong" }, error.message));
    }
  });
  return details;
}

function parts(whole) {
  const plain = Object.entries(whole).filter(([, value]) => typeof value !== "object" || value === null);
  const sections = Object.entries(whole).filter(([name, value]) => value && typeof value === "object" && name !== "documents");
  return [
    el("dl", { class: "facts" }, ...plain.map(([name, value]) => fact(words(name), plainly(value)))),
    ...sections.flatMap(([name, value]) => [
      el("h4", {}, words(name)),
      el("dl", { class: "facts" }, ...flat(value).map(([key, inner]) => fact(words(key), plainly(inner)))),
    ]),
  ];
}

/** {a: {b: 1}} as [["a b", 1]]. */
function flat(value, before = "") {
  return Object.entries(value).flatMap(([name, inner]) => {
    const path = before ? `${before} ${name}` : name;
    return inner && typeof inner === "object" && !Array.isArray(inner) ? flat(inner, path) : [[path, inner]];
  });
}

const words = (name) => name.replaceAll("_", " ");

function plainly(value) {
  if (value === null || value === "") return "–";
  if (Array.isArray(value)) return value.map((item) => (typeof item === "object" ? JSON.stringify(item) : String(item))).join(", ") || "–";
  if (typeof value === "number") return Number.isInteger(value) ? value.toLocaleString() : rounded(value, 4);
  return typeof value === "boolean" ? (value ? "yes" : "no") : String(value);
}

async function revert(own, update, title) {
  const text = `${title} (update ${update.sequence}) is undone; later updates stay. Its documents can be learned again.`;
  if (!(await sure("Revert this update?", text, "Revert"))) return;
  await busily(own, "Reverting", async () => {
    await call(`/v1/updates/${encodeURIComponent(update.id)}/revert`, { method: "POST", scope: "admin" });
    say(`Update ${update.sequence} is reverted.`);
    await Promise.all([load(), look()]);
  });
}

function drawnDocument(item) {
  return el(
    "li", { class: "card item" },
    el("div", { class: "line" }, el("h3", {}, item.title || item.id), badge(item.reason === "reverted" ? "reverted" : item.status)),
    el(
      "div", { class: "line" },
      el("p", { class: "muted small" }, `${item.domain}, ${item.chars.toLocaleString()} characters${whence(item)}, ${item.id}, `, moment(item.added_at)),
      action("Forget", `Forget ${item.title || item.id}`, (own) => forget(own, item)),
    ),
  );
}

async function forget(own, item) {
  const text = `${item.title || item.id} is forgotten for good: its text, its questions and what was learned from it are deleted. This cannot be undone.`;
  if (!(await sure("Forget this document?", text, "Forget it"))) return;
  await busily(own, "Forgetting", async () => {
    await call(`/v1/documents/${encodeURIComponent(item.id)}`, { method: "DELETE", scope: "admin" });
    say(`${item.title || item.id} is forgotten.`);
    await Promise.all([load(), look()]);
  });
}

byId("updates-more").addEventListener("click", () => {
  limit = Math.min(limit + 4 * MORE, 1000);
  load();
});

showsMore(byId("documents-more"), "documents", byId("documents"));

let seen = ""; // what the history was when it was read
known.addEventListener("change", () => {
  if (!isOpen("history") || known.error) return;
  const now = JSON.stringify([feed.state?.head, feed.state?.documents]);
  if (now === seen) return draw();
  seen = now;
  load();
});
whenOpened("history", () => {
  look();
  load();
});
