// Settings: token, colours, the service, and the adapters.

import { call, token } from "./api.js";
import { askWith } from "./ask.js";
import { badge, bytes, byId, el, fact, say, show, trouble } from "./dom.js";
import { connect, feed } from "./feed.js";
import { adapterTitle, fetchTitles, known, look, titlesOf } from "./known.js";
import { isOpen, whenOpened } from "./views.js";

const THEME = "retain.theme";
let version = "";

byId("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  await use(byId("token").value.trim());
});
byId("token-clear").addEventListener("click", () => use(""));

async function use(value) {
  token.set(value);
  byId("token").value = "";
  described();
  connect();
  try {
    await call("/v1/models");
    say(value ? "The service takes this token." : "The token was removed.");
  } catch (error) {
    trouble(error);
  }
  look();
}

function described() {
  byId("token-state").textContent = token.get() ? "A token is in use." : "No token is in use.";
}

let theme = "auto";
try {
  theme = localStorage.getItem(THEME) ?? "auto";
} catch {
  // no storage: for this page only
}
for (const radio of document.querySelectorAll("input[name=theme]")) {
  radio.checked = radio.value === theme;
  radio.addEventListener("change", () => {
    if (radio.value === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = radio.value;
    localStorage.setItem(THEME, radio.value);
  });
}

/** Adapters of the workspace, and those that were loaded for as long as the service runs. */
function adapters() {
  const own = new Set(known.adapters.map((item) => item.name));
  const loaded = known.models.filter((item) => item.parent && item.id !== "retain" && !own.has(item.id));
  return [
    ...known.adapters.map((item) => ({ ...item, title: adapterTitle(item.name), about: titlesOf(item.documents) })),
    ...loaded.map((item) => ({ name: item.id, title: item.id, about: "", learner: "loaded", documents: [], enabled: true })),
  ];
}

function drawn(item) {
  const facts = [item.name !== item.title && item.name, item.learner, typeof item.bytes === "number" && bytes(item.bytes)];
  const ask = el("button", { type: "button", class: "quiet", "aria-label": `Ask ${item.title} alone`, dataset: { key: "ask" } }, "Ask it alone");
  ask.addEventListener("click", () => askWith(item.name));
  return el(
    "li", { class: "card item" },
    el("div", { class: "line" }, el("h3", {}, item.title), badge(item.enabled ? "on" : "off")),
    item.documents.length > 1 && el("p", {}, `${item.documents.length} documents: ${item.about}`),
    el("div", { class: "line" }, el("p", { class: "muted small" }, facts.filter(Boolean).join(", ")), item.enabled && ask),
  );
}

function draw() {
  const base = known.models.find((item) => !item.parent);
  const counts = feed.state?.documents ?? {};
  byId("facts").replaceChildren(
    fact("Version", version || "–"), fact("Base model", base?.id ?? "–"), fact("Documents known", String(counts.committed ?? "–")),
    fact("Waiting", String(feed.state?.waiting ?? "–")), fact("Adapters", String(known.adapters.length)),
  );
  const items = adapters();
  show(byId("adapters"), items, (item) => item.name, drawn);
  byId("adapters-none").hidden = items.length > 0;
}

known.addEventListener("change", async () => {
  if (!isOpen("settings")) return;
  draw();
  if (await fetchTitles(known.adapters.flatMap((item) => item.documents.slice(0, 3)))) draw();
});
whenOpened("settings", async () => {
  described();
  draw();
  look();
  version ||= (await call("/healthz").catch(() => ({}))).version ?? "";
  draw();
});
