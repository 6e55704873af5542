// The list of songs, and the state of one's model.

import { answer, base, clock, element, get, post, showWords, wait } from "./api.js";

const $ = (id) => document.getElementById(id);
const canLook = document.querySelector('#step-rate a[href$="/curves"]') !== null;

const isAdapting = (adaptation) => adaptation !== null && !adaptation.ready && !adaptation.error;

// What is to be drawn next: what the model knows, at once or one after the other.
function toDraw(drawn, learned) {
  if (learned.length === 1) return learned[0];
  if (!howToDraw()) return "both";
  return drawn.length === 1 && drawn[0] === "arousal" ? "valence" : "arousal";
}

function songRow(song, adaptation, learned, suggested) {
  const complete = learned.every((dimension) => song.drawn.includes(dimension));
  const row = element("li", {},
    element("span", { className: "name" }, song.name, " ", element("span", { className: "faint" }, clock(song.seconds))));
  const link = element("a", { className: "button", href: "#" }, complete ? "Annotate again" : "Annotate");
  link.addEventListener("click", (event) => {
    event.preventDefault();
    location.href = `${base}/annotate/${song.number}?draw=${toDraw(song.drawn, learned)}`;
  });
  link.id = `annotate-${song.number}`;
  const buttons = element("span", { className: "row" }, link);
  if (complete) {
    const button = element("button", { className: "primary" }, "Adapt");
    button.id = `adapt-${song.number}`;
    button.disabled = isAdapting(adaptation);
    button.addEventListener("click", () => adapt(song.number));
    buttons.append(button);
  } else if (song.drawn.length) {
    row.append(element("span", { className: "faint" }, `${song.drawn[0]} is drawn`));
  }
  if (song.number === suggested) {
    const why = "Of the songs that you have not drawn, the one that should tell most of how you hear the others: it is like many of them, and unlike those you drew.";
    row.append(element("span", { className: "suggested", title: why }, "suggested next"));
  }
  row.append(buttons);
  return row;
}

function showAdaptation(adaptation, about) {
  $("adaptation").hidden = adaptation === null;
  if (adaptation === null) return;
  const bar = $("adaptation-bar");
  bar.hidden = adaptation.finished || adaptation.error !== "";
  if (adaptation.ready) { bar.max = adaptation.of || 1; bar.value = adaptation.done; } else bar.removeAttribute("value");
  let text = adaptation.error || `${adaptation.stage} …`;
  if (adaptation.ready && !adaptation.error) {
    const error = (x) => x.toFixed(2);
    const songs = about?.songs ? `the ${about.songs === 1 ? "song" : `${about.songs} songs`} that you drew` : "what you drew";
    text = `Adapted to ${songs}: the error there was ${error(adaptation.before)} and is ${error(adaptation.after)}.`;
    if (!adaptation.finished) text += ` Curves of other songs: ${adaptation.done} of ${adaptation.of}.`;
  }
  if ($("adaptation-text").textContent !== text) $("adaptation-text").textContent = text;
  showWords($("adaptation-words"), about);
  const next = $("adaptation-next");
  next.hidden = !adaptation.ready;
  next.href = `${base}/${canLook ? "curves" : "rate"}`;
  next.textContent = canLook ? "See your curves" : "Rate";
  $("adaptation-export").hidden = !adaptation.ready || adaptation.hidden;
}

async function adapt(song) {
  $("error").textContent = "";
  try {
    await post(`/songs/${song}/adapt`);
    await refresh();
  } catch (error) {
    $("error").textContent = error.message;
  }
}

// Rows are made again only when they change, and keep the focus.
let shown = "";
function showSongs(songs, adaptation, learned, suggested) {
  const now = JSON.stringify([songs, suggested, isAdapting(adaptation)]);
  if (now === shown) return;
  shown = now;
  const focused = document.activeElement?.id;
  $("songs").replaceChildren(...songs.map((song) => songRow(song, adaptation, learned, suggested)));
  if (focused && document.activeElement === document.body) $(focused)?.focus();
}

let running = 0;
async function refresh() {
  const me = ++running; // the latest call goes on, earlier ones end
  for (;;) {
    const state = await get("/state").catch((error) => { $("error").textContent = error.message; });
    if (me !== running) return;
    if (state) {
      const { songs, adaptation, learned, practised } = state;
      $("how").hidden = learned.length === 1;
      showSongs(songs, adaptation, learned, state.suggested);
      showAdaptation(adaptation && { ...adaptation, hidden: state.hidden }, state.about);
      const annotated = songs.some(({ drawn }) => learned.every((dimension) => drawn.includes(dimension)));
      const done = {
        "step-practice": practised,
        "step-annotate": annotated,
        "step-adapt": adaptation?.ready === true,
        "step-rate": state.to_rate > 0 && state.rated === state.to_rate,
      };
      for (const [id, isDone] of Object.entries(done)) $(id).classList.toggle("done", isDone);
      $("practice").hidden = practised || annotated || skipped;
      $("begun").hidden = !$("practice").hidden;
      if (!adaptation || adaptation.finished || adaptation.error) return;
    }
    await wait(state ? 250 : 2000);
  }
}

let skipped = false;
$("skip").addEventListener("click", () => { skipped = true; refresh(); });
$("practise").addEventListener("click", async () => {
  const { songs, learned } = await get("/state");
  location.href = `${base}/annotate/${songs[0].number}?practice=1&draw=${toDraw([], learned)}`;
});
const howToDraw = () => document.querySelector('input[name="draw"]:checked').value === "one";

$("upload")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const [file] = $("file").files;
  $("upload-status").textContent = "Listening to it …";
  try {
    await answer(await fetch(`${base}/uploads?name=${encodeURIComponent(file.name)}`, {
      method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file,
    }));
    $("upload-status").textContent = "It is in the list.";
    await refresh();
  } catch (error) {
    $("upload-status").textContent = error.message;
  }
});

refresh().catch((error) => { $("error").textContent = error.message; });
