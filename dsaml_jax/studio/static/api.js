// Talking to the server. A participant's addresses all begin with their token.

export const base = location.pathname.match(/^\/p\/[^/]+/)?.[0] ?? "";

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export async function get(path) {
  return answer(await fetch(base + path, { headers: { Accept: "application/json" } }));
}

export async function post(path, body = {}) {
  return answer(await fetch(base + path, {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "application/json" },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(15000),
  }));
}

export async function answer(response) {
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(body.error ?? `the server answered ${response.status}`, response.status);
  return body;
}

export const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

export const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// What people call files and themselves is text, never markup.
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// What is known of somebody, sentence by sentence.
export function showWords(place, about) {
  const words = (about?.words ?? []).join(" ");
  if (place.textContent !== words) place.textContent = words;
}
