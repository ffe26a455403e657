// Elements and words. Everything that came from elsewhere becomes a text node, never markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element with attributes (`on`: listeners, `class`, `dataset` ...) and children (nodes, strings, or nothing). */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for drawings. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [event, heard] of Object.entries(value)) element.addEventListener(event, heard);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

/**
 * Makes a list show these items. An item that looks as before keeps its element, so focus, selection and what was unfolded stay;
 * one that changed is drawn anew, and what was focused or unfolded in it (by its data-key) is so again.
 */
export function show(list, items, key, draw) {
  const before = new Map([...list.children].map((child) => [child.dataset.item, child]));
  items.forEach((item, place) => {
    const name = key(item);
    const look = JSON.stringify(item);
    let element = before.get(name);
    before.delete(name);
    if (!element || element.look !== look) {
      const fresh = draw(item);
      fresh.dataset.item = name;
      fresh.look = look;
      if (element) carried(element, fresh);
      element?.replaceWith(fresh);
      if (element) refocused(element, fresh);
      element = fresh;
    }
    if (list.children[place] !== element) list.insertBefore(element, list.children[place] ?? null);
  });
  for (const gone of before.values()) gone.remove();
}

function carried(old, fresh) {
  for (const open of old.querySelectorAll("details[open][data-key]")) {
    const same = fresh.querySelector(`details[data-key="${CSS.escape(open.dataset.key)}"]`);
    if (same) same.open = true;
  }
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  old.focusedKey = focused && (focused.dataset.key ?? "");
}

function refocused(old, fresh) {
  if (old.focusedKey === null || old.focusedKey === undefined) return;
  const same = old.focusedKey && fresh.querySelector(`[data-key="${CSS.escape(old.focusedKey)}"]`);
  if (same) return same.focus();
  fresh.tabIndex = -1; // the button is gone: stay where it was
  fresh.focus();
}

/** A small coloured word. */
export const badge = (status) => el("span", { class: "badge", dataset: { status } }, status);

/** Where something came from, as a part of a line; nothing where its title says it. */
export const whence = ({ source, title }) => (source && source !== title && source !== "sent" ? `, from ${source}` : "");

/** A pair of a description list. */
export const fact = (name, ...value) => el("div", {}, el("dt", {}, name), el("dd", {}, ...value));

export const percent = (share) => (typeof share === "number" ? `${Math.round(share * 1000) / 10}%` : "–");

export const rounded = (value, digits = 3) => (typeof value === "number" ? String(Number(value.toPrecision(digits))) : "–");

export function seconds(value) {
  if (typeof value !== "number") return "–";
  if (value < 90) return `${rounded(value)} s`;
  return value < 5400 ? `${Math.round(value / 60)} min` : `${rounded(value / 3600, 2)} h`;
}

export function bytes(value) {
  if (typeof value !== "number") return "–";
  const step = value < 1e6 ? [1e3, "kB"] : [1e6, "MB"];
  return `${rounded(value / step[0])} ${step[1]}`;
}

/** A moment as the reader's clock has it. */
export function moment(iso) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return el("span", {}, String(iso));
  const today = date.toDateString() === new Date().toDateString();
  const shown = today ? date.toLocaleTimeString() : date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  return el("time", { datetime: date.toISOString(), title: date.toLocaleString() }, shown);
}

/** A message for everybody: `said` goes away by itself, `trouble` stays until it is closed or something works again. */
export function say(text) {
  const place = byId("said");
  place.textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => place.replaceChildren(), 8000);
}

export function trouble(error) {
  const place = byId("trouble");
  place.hidden = false;
  place.replaceChildren(
    el("span", {}, error.message),
    error.status === 401 || error.status === 403 ? el("a", { href: "#settings" }, "Open Settings") : "",
    el("button", { type: "button", class: "quiet", on: { click: clearTrouble } }, "Close"),
  );
}

export function clearTrouble() {
  const place = byId("trouble");
  place.hidden = true;
  place.replaceChildren();
}

/** Ask before something that cannot be undone easily; resolves to true or false. */
export function sure(title, text, action) {
  const dialog = byId("sure");
  byId("sure-title").textContent = title;
  byId("sure-text").textContent = text;
  byId("sure-yes").textContent = action;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Runs what a button does, once at a time, and tells what went wrong. */
export async function busily(button, words, run) {
  if (button.getAttribute("aria-disabled") === "true") return;
  const before = button.textContent;
  button.setAttribute("aria-disabled", "true");
  button.textContent = words;
  try {
    await run();
    clearTrouble();
  } catch (error) {
    trouble(error);
  } finally {
    button.removeAttribute("aria-disabled");
    button.textContent = before;
  }
}
