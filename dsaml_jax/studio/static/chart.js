// Arousal above valence over time, with a line that moves with the sound.

import { color } from "./plane.js";

const RANGE = [-1.05, 1.05];
const NAMES = ["arousal", "valence"];

// Columns that curves have values in: a model may know one dimension alone.
export const columnsOf = (...curves) => [0, 1].filter((column) => curves.some((curve) => curve.some((row) => row[column] !== null)));

// lines: { name, color, curve: [[arousal, valence], ...], dash?, width? }
// band: { name, color, bounds: [lower curve, upper curve] }, drawn below the lines
export async function drawChart(place, lines, step, band = null) {
  const traces = [];
  const columns = columnsOf(...lines.map(({ curve }) => curve));
  for (const [place, column] of band ? columns.entries() : []) {
    for (const [bound, curve] of band.bounds.entries()) {
      traces.push({
        name: band.name, legendgroup: band.name, showlegend: place === 0 && bound === 1,
        x: curve.map((_, i) => i * step), y: curve.map((values) => values[column]),
        xaxis: "x", yaxis: `y${place ? "2" : ""}`, mode: "lines", line: { width: 0, color: band.color },
        ...(bound && { fill: "tonexty", fillcolor: `${band.color}3a` }), hoverinfo: "skip",
      });
    }
  }
  for (const { name, color: shade, curve, dash = "solid", width = 2 } of lines) {
    for (const [place, column] of columns.entries()) {
      const axis = place ? "2" : "";
      traces.push({
        name, legendgroup: name, showlegend: place === 0 && lines.length > 1,
        x: curve.map((_, i) => i * step), y: curve.map((values) => values[column]),
        xaxis: "x", yaxis: `y${axis}`, mode: "lines", connectgaps: false,
        line: { color: shade, dash, width }, hovertemplate: "%{x:.1f} s: %{y:.2f}",
      });
    }
  }
  const axis = { gridcolor: color("line"), zerolinecolor: color("faint"), color: color("ink"), fixedrange: true };
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: color("ink"), size: 12 },
    margin: { l: 48, r: 8, t: 8, b: 36 }, legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
    xaxis: { ...axis, title: { text: "time [s]" }, anchor: columns.length > 1 ? "y2" : "y" },
    yaxis: { ...axis, title: { text: NAMES[columns[0]] }, range: RANGE, domain: columns.length > 1 ? [0.54, 1] : [0, 1] },
    ...(columns.length > 1 && { yaxis2: { ...axis, title: { text: NAMES[1] }, range: RANGE, domain: [0, 0.46] } }),
    shapes: [{ type: "line", x0: 0, x1: 0, y0: 0, y1: 1, yref: "paper", line: { color: color("ink"), width: 1 } }],
  };
  await Plotly.react(place, traces, layout, { displayModeBar: false, responsive: true });
}

// A curve in words, for those who cannot see the chart: its mean in each quarter of the song.
export function inWords(curve) {
  return columnsOf(curve).map((column) => {
    const quarters = [0, 1, 2, 3].map((part) => {
      const rows = curve.slice(Math.floor((part * curve.length) / 4), Math.floor(((part + 1) * curve.length) / 4));
      return (rows.reduce((sum, row) => sum + row[column], 0) / rows.length).toFixed(2);
    });
    return `${NAMES[column]} in the four quarters of the song: ${quarters.join(", ")}`;
  }).join("; ");
}

// Moves the line along with an audio element; calls `also` with its position.
export function follow(audio, places, also = () => {}) {
  let shown = -1;
  const move = () => {
    const at = audio.currentTime;
    if (Math.abs(at - shown) > 0.06) {
      shown = at;
      for (const place of places) {
        if (place.layout) Plotly.relayout(place, { "shapes[0].x0": at, "shapes[0].x1": at });
      }
      also(at);
    }
    requestAnimationFrame(move);
  };
  requestAnimationFrame(move);
}

export function onThemeChange(redraw) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}
