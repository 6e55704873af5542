// Recording while the song plays. Samples carry the position of the sound, not the time of day.

import { base, clock, get } from "./api.js";
import { Plane, color, context } from "./plane.js";
import { Recorder, begin } from "./recorder.js";

const SAMPLE_EVERY = 0.045; // seconds of the song; the timer below is faster
const TRAIL_SECONDS = 3;
const KEY_STEP = 0.04;
const RUN_GAP = 1.0;
const UNDO_SECONDS = 5;
const ENOUGH_SECONDS = 5;

const $ = (id) => document.getElementById(id);
const { song, seconds, dimension, practice } = document.querySelector(".annotator").dataset;
const length = () => (Number.isFinite(audio.duration) ? audio.duration : Number(seconds)); // a file's header may be wrong
const audio = $("audio");
const plane = new Plane($("plane"), dimension);
const values = [0, 0]; // arousal, valence
let recorder = null;
let drawn = []; // [seconds, arousal, valence], by time
let lastSample = -Infinity;
let busy = false; // while a take begins or ends

// ---- What is drawn.

function set(arousal, valence) {
  if (dimension !== "valence") values[0] = arousal;
  if (dimension !== "arousal") values[1] = valence;
  $("arousal").value = values[0];
  $("valence").value = values[1];
  for (const [i, id] of ["arousal", "valence"].entries()) $(id).setAttribute("aria-valuetext", values[i].toFixed(2));
}

function tell(error) {
  $("error").textContent = error?.message ?? "";
}

function sample() {
  if (!recorder || busy || audio.paused || audio.seeking || audio.ended) return;
  const at = audio.currentTime;
  if (at >= lastSample && at - lastSample < SAMPLE_EVERY) return;
  const goesOn = at > lastSample && at - lastSample <= RUN_GAP;
  const from = goesOn ? lastSample : at;
  drawn = drawn.filter(([time]) => time <= from - (goesOn ? 0 : 1e-9) || time > at);
  const entry = [at, dimension === "valence" ? null : values[0], dimension === "arousal" ? null : values[1]];
  drawn.splice(drawn.findLastIndex(([time]) => time < at) + 1, 0, entry);
  recorder.add([Math.round(at * 1000), ...entry.slice(1).map((x) => (x === null ? null : Math.round(x * 1e4) / 1e4)), null]);
  lastSample = at;
}

// Without an end: all that follows. Erasing nothing ends a run of samples.
function erase(from, end = null) {
  drawn = drawn.filter(([time]) => time < from || (end !== null && time >= end));
  recorder.add([Math.round(from * 1000), null, null, end === null ? null : Math.round(end * 1000)]);
  lastSample = -Infinity;
  recorder.flush();
}

function coveredSeconds() {
  let sum = 0;
  for (let i = 1; i < drawn.length; i++) {
    const gap = drawn[i][0] - drawn[i - 1][0];
    if (gap <= RUN_GAP) sum += gap;
  }
  return sum;
}

// ---- Drawing.

function draw() {
  const at = audio.currentTime;
  const trail = drawn.filter(([time]) => time > at - TRAIL_SECONDS && time <= at).map(([, a, v]) => [a ?? 0, v ?? 0]);
  plane.draw([{ values, trail: [...trail, [...values]], color: color("mine") }]);
  drawStrip(at);
  $("clock").textContent = clock(at);
  if (document.activeElement !== $("seek")) $("seek").value = at;
  const covered = coveredSeconds();
  $("covered").textContent = `${Math.round(covered)} s drawn`;
  $("done").disabled = !recorder || busy || recorder.over || (!Number(practice) && covered < ENOUGH_SECONDS);
  requestAnimationFrame(draw);
}

function drawStrip(at) {
  const { pen, width, height } = context($("strip"));
  pen.fillStyle = color("card");
  pen.fillRect(0, 0, width, height);
  const x = (time) => (time / length()) * width;
  const y = (value) => 4 + ((1 - value) / 2) * (height - 8);
  for (const [column, shade] of [[1, "mine"], [2, "before"]]) {
    pen.strokeStyle = color(shade);
    pen.lineWidth = 2;
    pen.beginPath();
    let last = -Infinity;
    for (const point of drawn) {
      if (point[column] === null) continue;
      if (point[0] - last > RUN_GAP) pen.moveTo(x(point[0]), y(point[column]));
      else pen.lineTo(x(point[0]), y(point[column]));
      last = point[0];
    }
    pen.stroke();
  }
  pen.font = "12px system-ui, sans-serif";
  pen.textBaseline = "top";
  if (dimension !== "valence") { pen.fillStyle = color("mine"); pen.fillText("arousal", 4, 3); }
  if (dimension !== "arousal") { pen.fillStyle = color("before"); pen.fillText("valence", dimension === "both" ? 54 : 4, 3); }
  pen.fillStyle = color("ink");
  pen.fillRect(x(at) - 1, 0, 2, height);
}

// ---- What people do.

function toggle() {
  if (audio.paused) audio.play().catch(tell);
  else audio.pause();
}

function onState(state, message) {
  const words = {
    saved: "Everything is saved.",
    saving: "Saving …",
    offline: "The server does not answer. What you draw is kept here and sent when it does.",
    refused: "Nothing is recorded here any more.",
  };
  if ($("saved").textContent !== words[state]) $("saved").textContent = words[state]; // a screen reader reads every change
  if (state === "refused") {
    audio.pause();
    $("play").disabled = true;
    tell({ message });
  }
}

async function start(fresh) {
  busy = true;
  try {
    const take = await begin(Number(song), dimension, practice === "1", fresh); // before the old one is let go
    recorder?.stop();
    recorder = new Recorder(take, onState);
    drawn = take.curve;
    for (const [milliseconds, ...rest] of recorder.pending) drawn.push([milliseconds / 1000, ...rest]); // kept here by a reload
    drawn = drawn.filter((point) => point[1] !== null || point[2] !== null).sort((a, b) => a[0] - b[0]);
    lastSample = -Infinity;
    const last = drawn.at(-1);
    audio.currentTime = Math.min(last?.[0] ?? 0, length());
    set(last?.[1] ?? 0, last?.[2] ?? 0);
    $("saved").textContent = drawn.length ? `You were at ${clock(last[0])}. Play goes on from there.` : "Nothing to save yet.";
    $("play").disabled = false;
    tell();
  } finally {
    busy = false;
  }
}

const canvas = $("plane");
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  canvas.focus();
  set(...plane.at(event.clientX, event.clientY));
});
canvas.addEventListener("pointermove", (event) => {
  // A mouse draws as it moves over the plane; a finger only while it touches.
  if (!audio.paused || event.buttons) {
    set(...plane.at(event.clientX, event.clientY));
    sample();
  }
});
canvas.addEventListener("keydown", (event) => {
  const step = event.shiftKey ? 4 * KEY_STEP : KEY_STEP;
  const moves = { ArrowUp: [step, 0], ArrowDown: [-step, 0], ArrowRight: [0, step], ArrowLeft: [0, -step] };
  const move = moves[event.key];
  if (move) set(...values.map((value, i) => Math.max(-1, Math.min(1, value + move[i]))));
  else if (event.key === " ") toggle();
  else return;
  event.preventDefault();
});
for (const id of ["arousal", "valence"]) {
  $(id).addEventListener("input", () => set(Number($("arousal").value), Number($("valence").value)));
}
$("play").addEventListener("click", () => { toggle(); canvas.focus(); });
$("back").addEventListener("click", () => {
  const at = audio.currentTime;
  const to = Math.max(0, at - UNDO_SECONDS);
  erase(to, at + 0.001);
  audio.currentTime = to;
});
$("erase").addEventListener("click", () => erase(audio.currentTime));
$("again").addEventListener("click", async () => {
  audio.pause();
  if (drawn.length && !confirm("Start over? What you have drawn for this song will not be used.")) return;
  await start(true).catch(tell);
});
$("seek").addEventListener("change", () => { audio.currentTime = Number($("seek").value); });
$("done").addEventListener("click", async () => {
  audio.pause();
  busy = true;
  tell();
  try {
    if (!(await recorder.finish())) throw new Error("Not everything could be saved. Keep this page open and try again.");
    location.href = await whatFollows();
  } catch (error) {
    tell(error);
  }
  busy = false;
});

async function whatFollows() {
  if (dimension === "arousal") {
    const { songs, learned } = await get("/state");
    const here = songs.find(({ number }) => number === Number(song));
    if (learned.includes("valence") && !here.drawn.includes("valence")) return `${base}/annotate/${song}?draw=valence${practice === "1" ? "&practice=1" : ""}`;
  }
  return base;
}

for (const name of ["play", "pause", "ended"]) {
  audio.addEventListener(name, () => {
    $("play").textContent = audio.paused ? "Play" : "Pause";
    if (audio.paused) recorder?.flush();
  });
}
audio.addEventListener("seeking", () => {
  if (Number.isFinite(lastSample) && recorder && !busy) erase(audio.currentTime, audio.currentTime); // a jump, however short
  lastSample = -Infinity;
});
audio.addEventListener("error", () => tell({ message: "Your browser cannot play this song. Choose another." }));
// A hidden page gets no time to sample: the song waits.
document.addEventListener("visibilitychange", () => { if (document.hidden) audio.pause(); });

audio.addEventListener("loadedmetadata", () => {
  $("length").textContent = clock(length());
  $("seek").max = length();
});
$("length").textContent = clock(length());
setInterval(sample, 20); // not with the frames: drawing may be slow
start(false).catch(tell);
requestAnimationFrame(draw);
