// Two curves without names, and questions.

import { base, get, post, wait } from "./api.js";
import { drawChart, follow, inWords, onThemeChange } from "./chart.js";
import { color } from "./plane.js";

const $ = (id) => document.getElementById(id);
const audio = $("audio");
const form = $("trial");
let trial = null;
let listened = 0;
let last = null;

audio.addEventListener("timeupdate", () => {
  if (!audio.paused && last !== null && audio.currentTime > last) listened += Math.min(1, audio.currentTime - last);
  last = audio.currentTime;
});

async function redraw() {
  if (!trial) return;
  for (const side of ["left", "right"]) {
    await drawChart($(`chart-${side}`), [{ name: side, color: color("mine"), curve: trial[side] }], trial.step);
    $(`words-${side}`).textContent = `${inWords(trial[side])}.`;
  }
}

async function next() {
  for (;;) {
    const found = await get("/trial");
    if (found.done) {
      form.hidden = true;
      $("status").textContent = found.of ? "That was all. Thank you! You can see your curves now." : "There is no other song to rate.";
      return;
    }
    if (found.alike) {
      form.hidden = true;
      $("status").textContent = `There is nothing to compare yet: your curves and those of most people are at most ${found.most.toFixed(2)} apart, and less than ${found.needed.toFixed(2)} cannot be seen. Annotate another song, and adapt again.`;
      return;
    }
    if (!found.waiting) { trial = found; break; }
    $("status").textContent = "The next curves are being computed …";
    await wait(500);
  }
  $("status").textContent = "";
  form.reset();
  form.hidden = false;
  listened = 0;
  last = null;
  $("position").textContent = `${trial.position} of ${trial.of}`;
  audio.src = `${base}/songs/${trial.song}/audio`;
  form.dataset.trial = trial.trial;
  await redraw();
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  $("error").textContent = "";
  $("next").disabled = true;
  audio.pause();
  const chosen = new FormData(form);
  try {
    await post(`/trials/${trial.trial}`, {
      chosen: chosen.get("chosen"),
      fit_left: Number(chosen.get("fit_left")),
      fit_right: Number(chosen.get("fit_right")),
      comment: $("comment").value,
      listened,
    }).catch((error) => { if (error.status !== 409) throw error; }); // it was kept, and the answer lost
    scrollTo(0, 0);
    await next();
  } catch (error) {
    $("error").textContent = error.message;
  }
  $("next").disabled = false;
});

follow(audio, [$("chart-left"), $("chart-right")]);
onThemeChange(redraw);
next().catch((error) => { $("status").textContent = error.message; });
