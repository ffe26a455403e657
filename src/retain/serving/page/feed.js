// The connection on which the service tells what happens. It is made anew by itself when it breaks.

import { request, sentEvents } from "./api.js";

const RECENT = 300; // lines of the past that are told at the beginning
const SILENCE = 45_000; // the service says something every 15 s

/** Tells "state" (detail: what changes when something is learned), "learning" (what the learner does), "begin", and "connection". */
export const feed = Object.assign(new EventTarget(), { state: null, connection: "waiting" });

let current = null; // the connection's AbortController
let wait = 500;
let timer = 0;

/** Connect, or connect anew: with another token, or because somebody looks again. */
export function connect() {
  clearTimeout(timer);
  current?.abort();
  current = new AbortController();
  listen(current);
}

async function listen(own) {
  let silence = 0;
  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(() => own.abort(), SILENCE);
  };
  let refused = false;
  try {
    heard();
    const response = await request(`/v1/events?recent=${RECENT}`, { signal: own.signal });
    tell("begin");
    for await (const { event, data } of sentEvents(response)) {
      heard();
      wait = 500;
      become("live");
      if (data) take(event, JSON.parse(data));
    }
  } catch (error) {
    refused = error.status === 401 || error.status === 403;
  } finally {
    clearTimeout(silence);
  }
  if (own !== current) return; // another one has taken its place
  become(refused ? "refused" : "lost");
  if (refused) return;
  wait = Math.min(wait * 2, 10_000);
  timer = setTimeout(connect, wait);
}

function take(event, value) {
  if (event === "state") feed.state = value;
  tell(event, value);
}

function become(connection) {
  if (feed.connection === connection) return;
  feed.connection = connection;
  tell("connection", connection);
}

function tell(type, detail) {
  feed.dispatchEvent(new CustomEvent(type, { detail }));
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) return connect();
  clearTimeout(timer); // a page that nobody sees holds no connection
  const own = current;
  current = null;
  own?.abort();
});
