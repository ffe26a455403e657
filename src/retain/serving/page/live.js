// Live: what the learner does right now.

import { chart } from "./chart.js";
import { byId, el, moment, rounded } from "./dom.js";
import { feed } from "./feed.js";
import { whenOpened, isOpen } from "./views.js";

const LINES = 30;
let run = null; // {title, total, points: [[step, loss]], rate, at}: the curve that is drawn
let last = null; // the latest event
let lines = []; // what happened, newest first
let drawing = 0;

const PHASES = {
  read: (event) => `Reading ${event.message}`,
  study: (event) => `Preparing: ${event.message}`,
  train: (event) => `Learning ${event.message}`,
  check: (event) => `Checking: ${event.message}`,
  commit: (event) => event.message,
  note: (event) => event.message,
};

feed.addEventListener("begin", () => {
  run = last = null; // the past is told again
  lines = [];
  later();
});

feed.addEventListener("learning", ({ detail: event }) => {
  last = event;
  if (event.kind === "train" && typeof event.loss === "number") {
    const step = run?.points.at(-1)?.[0] ?? 0;
    if (!run || run.title !== event.message || event.done < step) run = { title: event.message, points: [] };
    run.points.push([event.done, event.loss]);
    run.total = event.total;
    run.rate = event.tokens_per_second;
  }
  if (["read", "commit", "note"].includes(event.kind)) lines = [event, ...lines].slice(0, LINES);
  later();
});
feed.addEventListener("state", later);

/** Draw soon, once for many events. */
function later() {
  drawing ||= setTimeout(() => {
    drawing = 0;
    if (isOpen("live")) draw();
  }, 60);
}

const works = () => last && !["commit", "note"].includes(last.kind) && (feed.state?.waiting > 0 || Date.now() / 1000 - last.at < 60);

function phase() {
  if (works()) return (PHASES[last.kind] ?? PHASES.note)(last);
  return feed.state?.waiting ? "Waiting for the learner." : "Nothing to learn right now.";
}

function draw() {
  const working = works();
  write("live-phase", phase());
  const progress = byId("live-progress");
  const steps = working && last.total > 0;
  progress.hidden = !steps;
  if (steps) Object.assign(progress, { max: last.total, value: last.done });
  write("live-steps", steps ? `Step ${last.done} of ${last.total}` : working ? "" : run ? `The latest took ${run.total} steps` : "");
  write("live-loss", run ? rounded(run.points.at(-1)[1]) : "–");
  write("live-rate", run && typeof run.rate === "number" ? Math.round(run.rate).toLocaleString() : "–");
  write("live-queue", feed.state ? feed.state.waiting.toLocaleString() : "–");
  write("live-documents", feed.state ? (feed.state.documents.committed ?? 0).toLocaleString() : "–");
  chart(byId("live-chart"), {
    label: run ? `Loss while learning ${run.title}: ${rounded(run.points[0][1])} at first, ${rounded(run.points.at(-1)[1])} now` : "",
    empty: "The curve appears when something is learned.",
    series: run ? [{ name: run.title, points: run.points, dots: false }] : [],
    x: { name: "step", from: 1, to: run?.total },
    y: { name: "loss", from: 0 },
  });
  const list = byId("live-log");
  list.replaceChildren(...lines.map((event) => el("li", {}, moment(event.at * 1000), " ", event.kind === "read" ? `Began with ${event.message}` : event.message)));
  if (!lines.length) list.append(el("li", { class: "muted" }, "Nothing yet."));
}

/** Only what changed: a reader of the screen hears no repetition. */
function write(id, text) {
  if (byId(id).textContent !== text) byId(id).textContent = text;
}

whenOpened("live", draw);
