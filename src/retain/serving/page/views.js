// Views do their work while they are seen.

const heard = new Map();
let current = "";

/** Run this whenever a view is opened. */
export const whenOpened = (view, run) => heard.set(view, run);

export const isOpen = (view) => current === view;

/** A view was opened. */
export function opened(view) {
  current = view;
  heard.get(view)?.();
}
