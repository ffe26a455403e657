// Teach: hand in texts and files, and see what becomes of each.

import { call } from "./api.js";
import { badge, busily, byId, el, moment, say, show, sure, trouble, whence } from "./dom.js";
import { known, look, showsMore, titleOf } from "./known.js";
import { whenOpened } from "./views.js";

const domain = byId("teach-domain");
const importance = byId("teach-importance");
const drop = byId("teach-drop");
const files = byId("teach-files");

const shownImportance = () => (byId("teach-importance-value").textContent = Number(importance.value).toFixed(2));
importance.addEventListener("input", shownImportance);
shownImportance();

byId("teach-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!domain.reportValidity()) return;
  const title = byId("teach-name");
  const text = byId("teach-text");
  busily(byId("teach-send"), "Sending", async () => {
    const json = { text: text.value, title: title.value.trim(), domain: domain.value, importance: Number(importance.value) };
    const receipt = await call("/v1/documents", { method: "POST", json, scope: "learn" });
    told(json.title || "The text", receipt);
    title.value = text.value = "";
    look();
  });
});

function told(name, receipt) {
  say(receipt.status === "pending" ? `${name}: received, it will be learned.` : `${name}: known already (${receipt.status}).`);
}

async function send(chosen) {
  if (!domain.reportValidity()) return;
  const wrong = [];
  for (const [place, file] of chosen.entries()) {
    say(`Sending ${file.name} (${place + 1} of ${chosen.length})`);
    const form = new FormData();
    form.append("domain", domain.value);
    form.append("importance", importance.value);
    form.append("file", file, file.name);
    try {
      told(file.name, await call("/v1/documents", { method: "POST", form, scope: "learn" }));
    } catch (error) {
      wrong.push({ file, error });
      if (error.status === 401 || error.status === 403 || error.status === 429) break; // the next would fare no better
    }
  }
  if (wrong.length) {
    const text = wrong.map(({ file, error }) => `${file.name}: ${error.message}`).join("; ");
    trouble(Object.assign(new Error(text), { status: wrong[0].error.status }));
  }
  look();
}

files.addEventListener("change", async () => {
  const chosen = [...files.files];
  await send(chosen);
  files.value = "";
});
drop.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  send([...event.dataTransfer.files]);
});

/** An arrival with the reason that its document has, where it has none of its own. */
function whole(arrival) {
  const own = known.documents.find((item) => arrival.documents.includes(item.id) && item.status === arrival.status);
  const status = own?.reason === "reverted" ? "reverted" : arrival.status;
  return { ...arrival, status, reason: arrival.reason || (status === "reverted" ? "" : (own?.reason ?? "")) };
}

const nameOf = (item) => item.title || (item.documents.length ? titleOf(item.documents[0]) : "A text without a title");

function drawn(item) {
  const tries = item.attempts > 1 ? `, ${item.attempts} attempts` : "";
  const actions = [];
  if (item.status === "held" || item.status === "failed") {
    const words = item.status === "held" ? "Release" : "Try again";
    actions.push(button(words, `${words}: ${nameOf(item)}`, "release", (own) => release(own, item)));
  }
  if (["held", "failed", "pending"].includes(item.status)) {
    actions.push(button("Throw away", `Throw away ${nameOf(item)}`, "drop", (own) => throwAway(own, item)));
  }
  return el(
    "li", { class: "card item" },
    el("div", { class: "line" }, el("h3", {}, nameOf(item)), badge(item.status)),
    item.reason && el("p", { class: ["failed", "rejected", "held"].includes(item.status) ? "wrong" : "muted" }, item.reason),
    el(
      "div", { class: "line" },
      el("p", { class: "muted small" }, `${item.domain}, importance ${item.importance}${tries}${whence(item)}, received `, moment(item.received_at)),
      actions.length ? el("div", { class: "row tight" }, ...actions) : "",
    ),
  );
}

function button(words, label, key, run) {
  const made = el("button", { type: "button", class: "quiet", "aria-label": label, dataset: { key } }, words);
  made.addEventListener("click", () => run(made));
  return made;
}

function release(own, item) {
  busily(own, "Releasing", async () => {
    await call(`/v1/documents/${encodeURIComponent(item.id)}/release`, { method: "POST", scope: "admin" });
    say(`${nameOf(item)} will be learned.`);
    await look();
  });
}

async function throwAway(own, item) {
  if (!(await sure("Throw it away?", `${nameOf(item)} is not learned yet. Its text is deleted.`, "Throw away"))) return;
  busily(own, "Deleting", async () => {
    await call(`/v1/documents/${encodeURIComponent(item.id)}`, { method: "DELETE", scope: "admin" });
    say(`${nameOf(item)} was thrown away.`);
    await look();
  });
}

const before = new Map(); // id -> status, to tell what changed
let first = true;

known.addEventListener("change", () => {
  if (known.error) return;
  const items = known.arrivals.map(whole);
  show(byId("arrivals"), items, (item) => item.id, drawn);
  byId("arrivals-none").hidden = items.length > 0;
  const domains = [...new Set(known.documents.map((item) => item.domain))].sort();
  if (byId("teach-domains").children.length !== domains.length) {
    byId("teach-domains").replaceChildren(...domains.map((value) => el("option", { value })));
  }
  const changed = items.filter((item) => before.get(item.id) !== item.status);
  for (const item of changed) before.set(item.id, item.status);
  if (!first && changed.length) byId("teach-live").textContent = changed.slice(0, 3).map((item) => `${nameOf(item)}: ${item.status}`).join(". ");
  first = false;
});
showsMore(byId("arrivals-more"), "arrivals", byId("arrivals"));
whenOpened("teach", look);
