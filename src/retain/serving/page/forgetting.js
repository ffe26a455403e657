// Forgetting: how much of what was taught earlier was still known at each update.

import { call } from "./api.js";
import { chart } from "./chart.js";
import { byId, el, percent, trouble } from "./dom.js";
import { feed } from "./feed.js";
import { fetchTitles, known, titlesOf } from "./known.js";
import { isOpen, whenOpened } from "./views.js";

let head = null;

async function load() {
  head = feed.state?.head;
  let updates;
  try {
    updates = (await call("/v1/updates?limit=1000")).updates.reverse();
  } catch (error) {
    return trouble(error);
  }
  const asked = updates.filter((update) => typeof update.certificate.kept?.old_recall_after === "number");
  const learned = updates.filter((update) => typeof update.certificate.learned?.recall_after === "number");
  await fetchTitles([...asked, ...learned].slice(-50).flatMap((update) => update.documents.slice(0, 3)));
  tiles(updates, asked);
  curve(asked, learned);
  table([...new Set([...asked, ...learned])].sort((one, other) => other.sequence - one.sequence));
}

function tiles(updates, asked) {
  const committed = asked.filter((update) => update.status !== "rejected");
  const kept = committed.at(-1)?.certificate.kept;
  const worst = Math.max(...committed.map((update) => update.certificate.kept.forgetting ?? 0));
  byId("forgetting-now").textContent = percent(kept?.old_recall_after);
  byId("forgetting-asked").textContent = kept ? kept.old_probes.toLocaleString() : "–";
  byId("forgetting-worst").textContent = committed.length ? percent(worst) : "–";
  byId("forgetting-refused").textContent = updates.filter((update) => update.status === "rejected").length.toLocaleString();
}

function curve(asked, learned) {
  const after = ({ certificate }) => certificate.kept.old_recall_after;
  const series = [
    { name: "Earlier documents", points: asked.map((update) => [update.sequence, after(update)]), tips: asked.map((update) => tip(update, after(update))) },
    {
      name: "The document that was learned", points: learned.map((update) => [update.sequence, update.certificate.learned.recall_after]),
      tips: learned.map((update) => tip(update, update.certificate.learned.recall_after)),
    },
    {
      name: "The same before it was learned", points: learned.map((update) => [update.sequence, update.certificate.learned.recall_before]),
      tips: learned.map((update) => tip(update, update.certificate.learned.recall_before)),
    },
  ].filter((one) => one.points.length);
  const known_ = asked.length ? `Of earlier documents ${percent(after(asked[0]))} were known at first and ${percent(after(asked.at(-1)))} at last` : "Answered rightly";
  chart(byId("forgetting-chart"), {
    label: `${known_}, over ${asked.length} updates. The table below has the same numbers.`,
    empty: "The first points appear when the second document is learned: only then is there something to forget.",
    series,
    x: { name: "update" },
    y: { name: "answered rightly", from: 0, to: 1, format: percent },
  });
}

const tip = (update, share) => `Update ${update.sequence}, ${titlesOf(update.documents)}: ${percent(share)}`;

function table(updates) {
  const head_ = ["Update", "About", "Result", "Earlier documents", "Questions", "Forgetting", "Learned"];
  const rows = updates.map((update) => {
    const { kept = {}, learned = {} } = update.certificate;
    const cells = [
      titlesOf(update.documents), update.status, `${percent(kept.old_recall_before)} → ${percent(kept.old_recall_after)}`,
      String(kept.old_probes ?? "–"), percent(kept.forgetting), `${percent(learned.recall_before)} → ${percent(learned.recall_after)}`,
    ];
    return el("tr", {}, el("th", { scope: "row" }, String(update.sequence)), ...cells.map((cell) => el("td", {}, cell)));
  });
  byId("forgetting-rows").hidden = !updates.length;
  byId("forgetting-table").replaceChildren(
    el("thead", {}, el("tr", {}, ...head_.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, ...rows),
  );
}

known.addEventListener("change", () => {
  if (isOpen("forgetting") && feed.state?.head !== head) load();
});
whenOpened("forgetting", load);
