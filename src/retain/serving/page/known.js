// What was handed in and what is learned, read once for all views and again when the service says that it changed.

import { call } from "./api.js";
import { busily } from "./dom.js";
import { feed } from "./feed.js";

const STEP = 200; // items that a list shows at first, and more of with each wish
const MOST = 1000; // items that the service gives at once
const APART = 700; // milliseconds between two looks

/** Tells "change" when arrivals, documents or the head of the history changed. */
export const known = Object.assign(new EventTarget(), {
  arrivals: [], documents: [], adapters: [], models: [], error: null, more: { arrivals: false, documents: false },
});

const titles = new Map();
const wanted = { arrivals: STEP, documents: STEP };
let running = null;
let again = false;

/** Look again, soon; many wishes at a time are one look. */
export function look() {
  again = true;
  running ??= looking().finally(() => (running = null));
  return running;
}

async function looking() {
  while (again) {
    again = false;
    try {
      const [lists, adapters, models] = await Promise.all([listed(), call("/v1/adapters"), call("/v1/models")]);
      Object.assign(known, lists, { adapters: adapters.adapters, models: models.data, error: null });
      for (const item of known.documents) titles.set(item.id, item.title);
    } catch (error) {
      known.error = error;
    }
    known.dispatchEvent(new Event("change"));
    await new Promise((resolve) => setTimeout(resolve, APART));
  }
}

/** Arrivals and documents, of each as many as are wanted, page by page. */
async function listed() {
  const { arrivals, documents, has_more: more } = await call(`/v1/documents?limit=${STEP}`);
  const lists = { arrivals, documents, more };
  for (const kind of ["arrivals", "documents"]) {
    while (more[kind] && lists[kind].length < wanted[kind]) {
      const limit = Math.min(MOST, wanted[kind] - lists[kind].length);
      const page = await call(`/v1/documents?limit=${limit}&after=${encodeURIComponent(lists[kind].at(-1).id)}`);
      lists[kind] = [...lists[kind], ...page[kind]];
      more[kind] = page.has_more[kind];
    }
  }
  return lists;
}

/** A button that shows more of a list ("arrivals" or "documents"), and puts the keyboard on the first of what came. */
export function showsMore(button, kind, list) {
  button.addEventListener("click", () => busily(button, "Reading", async () => {
    const before = new Set([...list.children].map((item) => item.dataset.item));
    wanted[kind] += STEP;
    await look();
    const first = [...list.children].find((item) => !before.has(item.dataset.item));
    if (!first) return;
    first.tabIndex = -1;
    first.focus();
  }));
  known.addEventListener("change", () => (button.hidden = !known.more[kind]));
}

/** A document's title, or its id where there is none. */
export const titleOf = (id) => titles.get(id) || id;

/** A line about documents: all titles of a few, the first of many. */
export function titlesOf(ids) {
  const named = ids.slice(0, 3).map(titleOf);
  return ids.length > 3 ? `${named.join(", ")} and ${ids.length - 3} more` : named.join(", ");
}

/** An adapter by name: the title of its document, or its own name when it has several. */
export function adapterTitle(name) {
  const adapter = known.adapters.find((item) => item.name === name);
  const own = adapter?.documents.length === 1 ? titleOf(adapter.documents[0]) : "";
  return own && own !== name ? own : name;
}

/** Learn the titles of documents that are older than what is listed. */
export async function fetchTitles(ids) {
  const missing = [...new Set(ids)].filter((id) => !titles.has(id)).slice(0, 30);
  for (const id of missing) {
    titles.set(id, "");
    try {
      titles.set(id, (await call(`/v1/documents/${encodeURIComponent(id)}`)).title);
    } catch {
      // its id has to do
    }
  }
  return missing.length > 0;
}

feed.addEventListener("state", look);
