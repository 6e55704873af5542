// Sends what is drawn, in order, until the server has it. Entries have numbers, so sending them again does no harm;
// what the server has not acknowledged is also kept in the browser, and a reload sends it.

import { base, post } from "./api.js";

const EVERY = 400; // milliseconds between sendings
const AT_ONCE = 5000;
const TRIES = 5;

// A browser may forbid keeping things; then closing the tab loses what was drawn in the last half second.
const shelf = {
  get(key) { try { return JSON.parse(localStorage.getItem(key)); } catch { return null; } },
  set(key, value) { try { localStorage.setItem(key, JSON.stringify(value)); } catch { /* see above */ } },
  remove(key) { try { localStorage.removeItem(key); } catch { /* see above */ } },
};

export class Recorder {
  // onState is told: saved, saving, offline, or refused with the reason; after that nothing is recorded any more.
  constructor({ take, session, next }, onState) {
    this.take = take;
    this.session = session; // of this page: another that opens the take later ends it
    this.first = next; // number of the first entry that is not acknowledged
    this.pending = [];
    this.over = false;
    this.onState = onState;
    this.#restore();
    this.timer = setInterval(() => this.flush(), EVERY);
    this.leaving = () => this.#leave();
    addEventListener("pagehide", this.leaving);
  }

  #key(session = this.session) {
    return `dsaml-${base}-${this.take}-${session}`;
  }

  // What the page before this one could not send: it alone numbered its entries as we go on to.
  #restore() {
    const kept = shelf.get(this.#key(this.session - 1));
    if (kept && kept.first <= this.first) this.pending = kept.entries.slice(this.first - kept.first);
    shelf.remove(this.#key(this.session - 1));
  }

  #keep() {
    if (this.pending.length) shelf.set(this.#key(), { first: this.first, entries: this.pending });
    else shelf.remove(this.#key());
  }

  #leave() {
    if (this.over || !this.pending.length) return;
    this.#keep();
    const body = JSON.stringify({ session: this.session, first: this.first, entries: this.pending });
    navigator.sendBeacon(`${base}/takes/${this.take}/log`, new Blob([body], { type: "application/json" }));
  }

  add(entry) {
    if (!this.over) this.pending.push(entry);
  }

  // Resolves to whether everything is saved.
  async flush() {
    if (this.sending) return this.sending;
    if (this.over || !this.pending.length) return !this.pending.length;
    this.sending = this.#send().finally(() => { this.sending = null; });
    return this.sending;
  }

  async #send() {
    const body = { session: this.session, first: this.first, entries: this.pending.slice(0, AT_ONCE) };
    try {
      const { next } = await post(`/takes/${this.take}/log`, body);
      this.pending.splice(0, next - this.first);
      this.first = next;
      this.#keep();
      this.onState(this.pending.length ? "saving" : "saved");
      return !this.pending.length;
    } catch (error) {
      if (error.status === 422) { // another page records into this take, or it is finished
        this.stop();
        this.onState("refused", error.message);
      } else {
        this.#keep();
        this.onState("offline");
      }
      return false;
    }
  }

  // Closes the take; resolves to whether the server has all of it.
  async finish() {
    for (let tries = 0; !(await this.flush()) || this.pending.length;) {
      if (this.over || ++tries > TRIES) return false;
    }
    await post(`/takes/${this.take}/finish`, { session: this.session, count: this.first });
    this.stop();
    return true;
  }

  stop() {
    this.over = true;
    clearInterval(this.timer);
    removeEventListener("pagehide", this.leaving);
  }
}

export async function begin(song, dimension, practice, fresh = false) {
  return post(`/songs/${song}/takes`, { dimension, practice, fresh });
}
