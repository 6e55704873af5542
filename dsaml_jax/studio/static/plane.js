// The valence-arousal plane on a canvas: valence to the right, arousal upwards, both from -1 to 1.

const CORNERS = [["tense", -1, 1], ["happy", 1, 1], ["sad", -1, -1], ["calm", 1, -1]];
const MARGIN = 0.06; // of the width, so that a dot at the edge is whole

export function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// Sizes a canvas to its place in the page; returns a context in CSS pixels.
export function context(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const ratio = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

export class Plane {
  constructor(canvas, dimension = "both") {
    this.canvas = canvas;
    this.dimension = dimension;
  }

  // Page coordinates to [arousal, valence].
  at(x, y) {
    const box = this.canvas.getBoundingClientRect();
    const inner = box.width * (1 - 2 * MARGIN);
    const clip = (value) => Math.max(-1, Math.min(1, value));
    return [
      clip(1 - (2 * (y - box.top - box.height * MARGIN)) / inner),
      clip((2 * (x - box.left - box.width * MARGIN)) / inner - 1),
    ];
  }

  // dots: { values: [arousal, valence], trail: [[arousal, valence], ...] oldest first, color }
  draw(dots) {
    const { pen, width, height } = context(this.canvas);
    const place = ([arousal, valence]) => [
      width * (MARGIN + (1 - 2 * MARGIN) * (this.dimension === "arousal" ? 0.5 : (valence + 1) / 2)),
      height * (MARGIN + (1 - 2 * MARGIN) * (this.dimension === "valence" ? 0.5 : (1 - arousal) / 2)),
    ];
    pen.fillStyle = color("card");
    pen.fillRect(0, 0, width, height);
    pen.strokeStyle = color("line");
    pen.lineWidth = 1;
    pen.strokeRect(0.5, 0.5, width - 1, height - 1);
    pen.beginPath();
    if (this.dimension !== "valence") { pen.moveTo(width / 2, 0); pen.lineTo(width / 2, height); }
    if (this.dimension !== "arousal") { pen.moveTo(0, height / 2); pen.lineTo(width, height / 2); }
    pen.stroke();
    this.#words(pen, width, height);
    for (const { values, trail = [], color: shade } of dots) {
      pen.strokeStyle = pen.fillStyle = shade;
      pen.lineWidth = 3;
      pen.lineCap = "round";
      for (let i = 1; i < trail.length; i++) { // older parts fade
        pen.globalAlpha = i / trail.length;
        pen.beginPath();
        pen.moveTo(...place(trail[i - 1]));
        pen.lineTo(...place(trail[i]));
        pen.stroke();
      }
      pen.globalAlpha = 1;
      if (!values) continue;
      pen.beginPath();
      pen.arc(...place(values), Math.max(6, width * 0.018), 0, 2 * Math.PI);
      pen.fill();
    }
  }

  #words(pen, width, height) {
    pen.fillStyle = color("faint");
    pen.font = `${Math.max(12, width * 0.035)}px system-ui, sans-serif`;
    const pad = width * 0.03;
    if (this.dimension === "both") {
      for (const [word, valence, arousal] of CORNERS) {
        pen.textAlign = valence < 0 ? "left" : "right";
        pen.textBaseline = arousal > 0 ? "top" : "bottom";
        pen.fillText(word, valence < 0 ? pad : width - pad, arousal > 0 ? pad : height - pad);
      }
    }
    const ends = [];
    if (this.dimension !== "valence") ends.push(["excited", 0.5, 0.03, "center", "top"], ["calm", 0.5, 0.97, "center", "bottom"]);
    if (this.dimension !== "arousal") ends.push(["unpleasant", 0.03, 0.48, "left", "bottom"], ["pleasant", 0.97, 0.48, "right", "bottom"]);
    if (this.dimension === "both") {
      ends.length = 0;
      ends.push(["arousal", 0.52, 0.03, "left", "top"], ["valence", 0.97, 0.49, "right", "bottom"]);
    }
    for (const [word, x, y, align, baseline] of ends) {
      pen.textAlign = align;
      pen.textBaseline = baseline;
      pen.fillText(word, x * width, y * height);
    }
  }
}

addEventListener("contextmenu", (event) => { if (event.target instanceof HTMLCanvasElement) event.preventDefault(); });
