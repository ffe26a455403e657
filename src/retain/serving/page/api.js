// Calls of the service. The token stays in this tab's session storage.

const TOKEN = "retain.token";
const HINTS = { read: "asking and looking", learn: "teaching", admin: "reverting, forgetting and releasing" };

/** A refusal: what to tell the user, and the status (0: the service did not answer). */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set(value) {
    if (value) sessionStorage.setItem(TOKEN, value);
    else sessionStorage.removeItem(TOKEN);
  },
};

/** One request; the response when it went well, an ApiError otherwise. `scope` is what it needs, for the message. */
export async function request(path, { method = "GET", json, form, signal, scope = "read" } = {}) {
  const headers = {};
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  if (json !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, cache: "no-store", body: json === undefined ? form : JSON.stringify(json) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The service does not answer. Is it still running?", 0);
  }
  if (!response.ok) throw new ApiError(await reason(response, scope), response.status);
  return response;
}

/** The JSON of an answer. */
export async function call(path, options) {
  return (await request(path, options)).json();
}

async function reason(response, scope) {
  let message = `The service answered ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // no JSON: the status has to do
  }
  if (response.status === 401) return `${HINTS[scope]} needs a token of scope ${scope}: enter one in Settings.`.replace(/^./, (c) => c.toUpperCase());
  if (response.status === 403) return `${message}. Another token can be entered in Settings.`;
  return message;
}

/** Server-sent events of a response, as {event, data} with data as text. */
export async function* sentEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const found = { event: "message", data: "" };
        for (const line of block.split("\n")) {
          const at = line.indexOf(":");
          if (line.slice(0, at) === "event") found.event = line.slice(at + 1).trim();
          if (line.slice(0, at) === "data") found.data += line.slice(at + 1).replace(/^ /, "");
        }
        yield found; // a comment comes through as an event without data: a sign of life
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
