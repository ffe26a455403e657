// The frame of the page: which view is seen, whether the service is there.

import "./ask.js";
import "./teach.js";
import "./live.js";
import "./history.js";
import "./forgetting.js";
import "./settings.js";
import { byId, clearTrouble, trouble } from "./dom.js";
import { connect, feed } from "./feed.js";
import { known, look } from "./known.js";
import { opened } from "./views.js";

const VIEWS = [...document.querySelectorAll("section.view")].map((section) => section.id.replace("view-", ""));
const SAID = { waiting: "Connecting", live: "Connected", lost: "No connection, trying again", refused: "A token is needed" };

function route(moved) {
  const name = location.hash.slice(1);
  const view = VIEWS.includes(name) ? name : VIEWS[0];
  for (const other of VIEWS) byId(`view-${other}`).hidden = other !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const title = byId(`${view}-title`);
  document.title = `${title.textContent} · retain`;
  clearTrouble();
  if (moved) {
    byId("said").replaceChildren();
    window.scrollTo(0, 0);
    title.focus({ preventScroll: true });
  }
  opened(view);
}

window.addEventListener("hashchange", () => route(true));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});

function connection() {
  const waiting = feed.state?.waiting ?? 0;
  const queue = feed.connection === "live" && waiting ? `, ${waiting} waiting` : "";
  byId("connection").dataset.state = feed.connection;
  byId("connection-text").textContent = SAID[feed.connection] + queue;
}
feed.addEventListener("connection", connection);
feed.addEventListener("state", connection);

// a token that is missing is told once; a service that is away is told beside the views
let told = 0;
known.addEventListener("change", () => {
  const status = known.error?.status ?? 0;
  if (status !== told && (status === 401 || status === 403)) trouble(known.error);
  told = status;
});

route(false);
connect();
look();
