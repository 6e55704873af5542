// The study's owner: links, who has done what, and what it adds up to.

import { answer, element, post, wait } from "./api.js";

const $ = (id) => document.getElementById(id);

function row(person) {
  const link = `${location.origin}/p/${person.token}`;
  const cells = [person.id, person.name, element("a", { href: link }, link), person.annotated, person.adapted ? "yes" : "no", `${person.rated} of ${person.trials}`];
  const button = element("button", { ariaLabel: `Delete ${person.id}` }, "Delete");
  button.addEventListener("click", () => forget(person).catch((error) => { $("add-error").textContent = error.message; }));
  cells.push(button);
  return element("tr", {}, ...cells.map((cell, i) => element("td", { className: i === 2 ? "link" : "" }, cell)));
}

async function forget(person) {
  if (!confirm(`Delete ${person.id} (${person.name}) and everything of theirs? This cannot be undone.`)) return;
  await post(`/owner/participants/${person.number}/forget`);
  await refresh();
}

const percent = (x) => `${Math.round(100 * x)} %`;
const signed = (x) => `${x >= 0 ? "+" : "−"}${Math.abs(x).toFixed(2)}`;

function inWords(summary, needed = 0) {
  if (!summary.rated) return "nothing rated yet";
  let text = `the adapted curve was chosen in ${summary.chose_adapted} of ${summary.rated} (${percent(summary.share)}, 95 % interval ${percent(summary.share_low)} to ${percent(summary.share_high)}; p = ${summary.p.toFixed(3)})`;
  if (summary.rated < needed) text += `, ${needed - summary.rated} trials fewer than are needed`;
  if (summary.controls) text += `; of curves that look alike in ${summary.controls_chose_adapted} of ${summary.controls}`;
  text += `; its fit was rated ${signed(summary.fit_difference)}`;
  if (summary.fit_low !== undefined) text += ` (${signed(summary.fit_low)} to ${signed(summary.fit_high)})`;
  return text;
}

let shown = "";
async function refresh() {
  const state = await answer(await fetch("/owner/state"));
  if (JSON.stringify(state) === shown) return; // selected text and the focus stay
  shown = JSON.stringify(state);
  const { people, summary } = state;
  document.querySelector("#people tbody").replaceChildren(...people.map(row));
  const lines = [element("p", {}, element("strong", {}, "Overall: "), inWords(summary.overall, summary.needed), ".")];
  const each = Object.entries(summary.participants).filter(([, one]) => one.rated);
  if (each.length > 1) {
    lines.push(element("ul", {}, ...each.map(([id, one]) => element("li", {}, `${id}: ${inWords(one)}`))));
  }
  $("summary").replaceChildren(...lines);
}

$("add").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("add-error").textContent = "";
  try {
    await post("/owner/participants", { name: $("name").value });
    $("name").value = "";
    await refresh();
  } catch (error) {
    $("add-error").textContent = error.message;
  }
});

for (;;) {
  await refresh().catch((error) => { $("summary").textContent = error.message; });
  await wait(5000);
}
