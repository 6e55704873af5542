// Everyone's curves, and one's own before and after adapting.

import { base, element, get, showWords, wait } from "./api.js";
import { columnsOf, drawChart, follow, inWords, onThemeChange } from "./chart.js";
import { Plane, color } from "./plane.js";

const TRAIL_SECONDS = 5;
const LINES = [
  ["everyone", "everyone's", "dot"],
  ["before", "yours before", "dash"],
  ["after", "yours after", "solid"],
  ["drawn", "what you drew", "solid"],
];
const SHADES = { everyone: "everyone", before: "before", after: "mine", drawn: "drawn" };

const $ = (id) => document.getElementById(id);
const audio = $("audio");
const plane = new Plane($("plane"));
let curves = null;
let asked = 0;

// What adapting read may be longer or shorter than a curve, where a file's header is wrong.
const known = () => LINES.filter(([key]) => curves?.[key]);

async function redraw() {
  if (!curves) return;
  const lines = known().map(([key, name, dash]) => ({
    name, dash, color: color(SHADES[key]), curve: curves[key], width: key === "after" ? 3 : 2,
  }));
  const key = curves.after ? "after" : "everyone";
  const band = curves.band && { name: curves.after ? "you, probably" : "people", color: color(SHADES[key]), bounds: curves.band };
  await drawChart($("chart"), lines, curves.step, band);
  $("chart").dataset.lines = lines.map(({ name }) => name).join(", ");
  showAt(audio.currentTime);
}

function showAt(at) {
  if (!curves) return;
  const columns = plane.dimension === "both" ? [0, 1] : [plane.dimension === "arousal" ? 0 : 1];
  const isThere = (row) => row !== undefined && columns.every((column) => row[column] !== null);
  const dots = known().map(([key]) => {
    const curve = curves[key];
    const here = Math.min(curve.length - 1, Math.round(at / curves.step));
    const trail = curve.slice(Math.max(0, here - TRAIL_SECONDS / curves.step), here + 1).filter(isThere);
    const now = curve[here];
    return { values: isThere(now) ? now : null, trail, color: color(SHADES[key]) };
  });
  plane.draw(dots);
}

function difference() {
  if (!curves.after) return "";
  const mean = (key, column) => curves[key].reduce((sum, row) => sum + row[column], 0) / curves[key].length;
  const parts = columnsOf(curves.after).map((column) => {
    const name = ["arousal", "valence"][column];
    const difference = mean("after", column) - mean("everyone", column);
    return `${name} ${Math.abs(difference) < 0.005 ? "is the same" : `is ${Math.abs(difference).toFixed(2)} ${difference > 0 ? "higher" : "lower"}`}`;
  });
  return `In your curve ${parts.join(" and ")} than in everyone's, in the mean over the song.`.replace("the same than", "as high as");
}

async function show(song) {
  const mine = ++asked;
  curves = null;
  audio.src = `${base}/songs/${song}/audio`;
  for (;;) {
    const found = await get(`/songs/${song}/curves`);
    if (mine !== asked) return;
    curves = found;
    const waiting = !found.everyone || !found.before;
    if (!waiting) await redraw();
    $("words").textContent = waiting ? "" : difference();
    $("quarters").textContent = known().filter(([key]) => !waiting && key !== "drawn").map(([key, name]) => `${name}: ${inWords(found[key])}.`).join(" ");
    const { adaptation, about } = await get("/state");
    showWords($("about"), about);
    const adapting = adaptation !== null && !adaptation.finished && !adaptation.error;
    $("status").textContent = waiting ? "This song's curves are being computed …"
      : found.after ? "" : adapting ? "Your curve of this song is being computed …" : "Annotate a song and adapt to see your own curves.";
    if (!waiting && (found.after || !adapting)) return;
    await wait(700);
  }
}

async function start() {
  const { songs, adaptation, learned } = await get("/state");
  if (learned.length === 1) [plane.dimension] = learned;
  for (const song of songs) $("song").append(element("option", { value: song.number }, song.name));
  // First a song that was not adapted to: that is what one wants to know.
  const other = songs.find(({ number }) => number !== adaptation?.song) ?? songs[0];
  $("song").value = new URLSearchParams(location.search).get("song") ?? other.number;
  $("song").addEventListener("change", () => report(show($("song").value)));
  follow(audio, [$("chart")], showAt);
  onThemeChange(redraw);
  await show($("song").value);
}

function report(promise) {
  promise.catch((error) => { $("status").textContent = error.message; });
}

report(start());
