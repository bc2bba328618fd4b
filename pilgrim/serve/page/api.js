// Talking with the server: plain requests, and replies that come in pieces.
//
// A streamed reply is a body of server-sent events: lines "data: {…}", an empty line between two events, and
// "data: [DONE]" as the last. Pieces of the network end anywhere, so what has come is cut at empty lines, and
// the rest waits for more.

const KEY = "pilgrim-key";

export class Refused extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code; // OpenAI's word for the kind of trouble, where it has one
  }
}

export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

// As fetch, but a server that can't be reached is told in a sentence.
async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, `The server does not answer (${error.message}); look whether it still runs.`);
  }
}

async function refusal(response) {
  try {
    const { message, code } = (await response.json()).error;
    return new Refused(response.status, message, code);
  } catch {
    // a body that is no error object: the status must do
    return new Refused(response.status, `${response.status} ${response.statusText}`);
  }
}

export async function ask(method, path, body) {
  const response = await reach(path, { method, headers: headers(), body: body && JSON.stringify(body) });
  if (!response.ok) throw await refusal(response);
  return response.status === 204 ? null : response.json();
}

export async function download(path, name) {
  const response = await reach(path, { headers: headers() });
  if (!response.ok) throw await refusal(response);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await response.blob());
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

// Yields each event's JSON. Ends with "[DONE]"; throws an AbortError where `signal` stopped it, and Refused for what
// went wrong, which a stream that just breaks off did, too.
export async function* events(path, body, signal) {
  const response = await reach(path, { method: "POST", headers: headers(), body: JSON.stringify(body), signal });
  if (!response.ok) throw await refusal(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read().catch(brokenOff);
    if (done) brokenOff();
    waiting += value.replaceAll("\r", "");
    const parts = waiting.split("\n\n");
    waiting = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data === "[DONE]") return;
      if (data === "") continue;
      const event = JSON.parse(data);
      if (event.error) throw new Refused(500, event.error.message, event.error.code);
      yield event;
    }
  }
}

function brokenOff(error) {
  if (error?.name === "AbortError") throw error;
  throw new Refused(0, "The connection broke off before the reply was complete; ask again.");
}
