// Sends what is drawn, in order, until the server has it. Entries have numbers, so sending them again does no harm;
// what the server has not acknowledged is also kept in the browser, and a reload sends it.

import { base, post } from "./api.js";

const EVERY = 400; // milliseconds between sendings

export class Recorder {
  constructor({ take, session, next }, onState) {
    this.take = take;
    this.session = session; // of this page: another that opens the take later ends it
    this.first = next; // number of the first entry that is not acknowledged
    this.pending = [];
    this.onState = onState;
    this.key = `dsaml-take-${location.pathname.split("/")[2]}-${take}`;
    this.#restore();
    this.timer = setInterval(() => this.flush(), EVERY);
    this.leaving = () => this.#leave();
    addEventListener("pagehide", this.leaving);
  }

  #restore() {
    const kept = JSON.parse(localStorage.getItem(this.key) ?? "null");
    if (kept && kept.first <= this.first) this.pending = kept.entries.slice(this.first - kept.first);
    localStorage.removeItem(this.key);
  }

  #keep() {
    if (this.pending.length) localStorage.setItem(this.key, JSON.stringify({ first: this.first, entries: this.pending }));
    else localStorage.removeItem(this.key);
  }

  #leave() {
    if (!this.pending.length) return;
    this.#keep();
    const body = JSON.stringify({ session: this.session, first: this.first, entries: this.pending });
    navigator.sendBeacon(`${base}/takes/${this.take}/log`, new Blob([body], { type: "application/json" }));
  }

  add(entry) {
    this.pending.push(entry);
  }

  // Resolves to whether everything is saved.
  async flush() {
    if (this.sending) return this.sending;
    if (!this.pending.length) return true;
    this.sending = this.#send().finally(() => { this.sending = null; });
    return this.sending;
  }

  async #send() {
    const entries = this.pending.slice(0, 5000);
    try {
      const { next } = await post(`/takes/${this.take}/log`, { session: this.session, first: this.first, entries });
      this.pending.splice(0, next - this.first);
      this.first = next;
      this.#keep();
      this.onState(this.pending.length ? "saving" : "saved");
      return !this.pending.length;
    } catch (error) {
      this.#keep();
      this.onState(error.status ? "refused" : "offline", error.message);
      return false;
    }
  }

  async finish() {
    for (let tries = 0; this.pending.length || this.sending; tries++) {
      if (!(await this.flush()) && tries > 5) return false;
    }
    await post(`/takes/${this.take}/finish`);
    this.stop();
    return true;
  }

  stop() {
    clearInterval(this.timer);
    removeEventListener("pagehide", this.leaving);
  }
}

export async function begin(song, dimension, practice, fresh = false) {
  return post(`/songs/${song}/takes`, { dimension, practice, fresh });
}
