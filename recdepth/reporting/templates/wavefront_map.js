// The map: positions from left to right, the clock from top to bottom, one box per lane and step.

class WavefrontMap {
  constructor(canvas, seek, tell) {
    this.canvas = canvas;
    this.picture = document.createElement("canvas"); // the whole run, drawn once
    canvas.addEventListener("pointermove", (event) => tell(this.under(event)));
    canvas.addEventListener("pointerleave", () => tell(null));
    canvas.addEventListener("click", (event) => seek(this.timeAt(event)));
  }

  // lay out and draw a run; again when the size, the theme, the clock or the colour changes
  show(run, clock, colour) {
    Object.assign(this, { run, clock });
    const box = this.canvas.getBoundingClientRect();
    const scale = window.devicePixelRatio || 1;
    for (const canvas of [this.canvas, this.picture]) {
      canvas.width = Math.round(box.width * scale);
      canvas.height = Math.round(box.height * scale);
    }
    const style = getComputedStyle(document.documentElement);
    this.css = (name) => style.getPropertyValue(name).trim();
    this.left = 46 * scale;
    this.top = 6 * scale;
    this.bottom = this.canvas.height - 24 * scale;
    this.first = run.frames[0].front;
    this.places = Math.max(run.last.front, ...run.frames.map((f) => f.first + f.width - 1)) - this.first + 1;
    this.cell = (this.canvas.width - this.left - 2 * scale) / this.places;
    this.scale = scale;
    const begin = run.begin(clock);
    const span = run.end(clock) - begin || 1;
    this.y = (time) => this.top + ((time - begin) / span) * (this.bottom - this.top);
    this.x = (position) => this.left + (position - this.first) * this.cell;
    this.drawRun(this.picture.getContext("2d"), colour);
  }

  drawRun(ink, colour) {
    const { run, clock } = this;
    const gap = this.cell > 4 * this.scale ? this.scale * 0.6 : 0;
    ink.clearRect(0, 0, this.canvas.width, this.canvas.height);
    ink.fillStyle = this.css("--done"); // what was final before a step
    for (let k = 1; k < run.frames.length; k++) {
      const [y, height] = this.band(k);
      ink.fillRect(this.left, y, this.x(run.frames[k].first) - this.left, height + 0.5);
    }
    for (let k = 1; k < run.frames.length; k++) {
      const frame = run.frames[k];
      const [y, height] = this.band(k);
      const thin = height > 3 * this.scale ? gap : 0;
      for (let i = 0; i < frame.width; i++) {
        const heat = run.heat(frame, i, colour);
        ink.fillStyle = Number.isFinite(heat) ? colourOf(heat).css : this.css("--line");
        ink.fillRect(this.x(frame.first + i), y, this.cell - gap, Math.max(height - thin, 1));
      }
      ink.fillStyle = this.css("--ink"); // commits: a bar under the box
      const bar = Math.max(1.2 * this.scale, Math.min(2 * this.scale, height / 4));
      if (frame.committed) ink.fillRect(this.x(frame.first), y + height - bar, this.cell * frame.committed - gap, bar);
    }
    this.drawFlips(ink);
    this.drawBaseline(ink);
    this.drawAxes(ink);
  }

  band(k) {
    const y = this.y(this.run.frames[k - 1][this.clock]);
    return [y, this.y(this.run.frames[k][this.clock]) - y];
  }

  drawFlips(ink) {
    ink.beginPath();
    for (let k = 1; k < this.run.frames.length; k++) {
      const [y, height] = this.band(k);
      const arm = Math.max(1.5 * this.scale, Math.min(this.cell, height, 9 * this.scale) * 0.32);
      for (const lane of this.run.frames[k].flipped.keys()) {
        const x = this.x(this.run.frames[k].first + lane + 0.5);
        const middle = y + height / 2;
        ink.moveTo(x - arm, middle - arm);
        ink.lineTo(x + arm, middle + arm);
        ink.moveTo(x + arm, middle - arm);
        ink.lineTo(x - arm, middle + arm);
      }
    }
    for (const [colour, width] of [["rgb(255 255 255 / .75)", 3], ["#c8102e", 1.6]]) { // seen on every colour
      ink.strokeStyle = colour;
      ink.lineWidth = width * this.scale;
      ink.stroke();
    }
  }

  // where one token at a time is, by the same clock
  drawBaseline(ink) {
    if (!this.run.baseline) return;
    ink.save();
    ink.beginPath();
    ink.rect(this.left, 0, this.canvas.width, this.bottom);
    ink.clip();
    ink.strokeStyle = this.css("--baseline");
    ink.lineWidth = 2 * this.scale;
    ink.setLineDash([5 * this.scale, 3 * this.scale]);
    ink.beginPath();
    const times = this.run.baseline[this.clock];
    ink.moveTo(this.x(this.run.row.prompt_tokens), this.y(times[0]));
    for (let i = 1; i < times.length; i++) {
      const x = this.x(this.run.row.prompt_tokens + i);
      ink.lineTo(x - this.cell, this.y(times[i]));
      ink.lineTo(x, this.y(times[i]));
    }
    if (times.length === 1) ink.lineTo(this.x(this.run.row.prompt_tokens), this.bottom);
    ink.stroke();
    ink.restore();
  }

  drawAxes(ink) {
    const { scale, run, clock } = this;
    ink.fillStyle = this.css("--faint");
    ink.font = `${11 * scale}px ${this.css("--sans")}`;
    ink.textAlign = "right";
    ink.textBaseline = "middle";
    const begin = run.begin(clock);
    for (const time of ticks(begin, run.end(clock), 6)) {
      ink.fillText(clock === "t" ? shortSeconds(time) : String(Math.round(time)), this.left - 6 * scale, this.y(time));
      ink.fillRect(this.left - 4 * scale, this.y(time) - 0.5 * scale, 4 * scale, scale);
    }
    ink.textAlign = "center";
    ink.textBaseline = "top";
    const every = Math.max(1, Math.ceil((34 * scale) / this.cell / 5) * 5);
    for (let i = 0; i < this.places; i += every) {
      ink.fillText(String(this.first + i), this.x(this.first + i + 0.5), this.bottom + 7 * scale);
    }
  }

  // the run up to this time; what is to come is faint
  draw(time) {
    if (!this.picture.width || !this.picture.height) return; // hidden just now
    const ink = this.canvas.getContext("2d");
    const { width } = this.canvas;
    ink.clearRect(0, 0, width, this.canvas.height);
    ink.drawImage(this.picture, 0, 0);
    const y = Math.min(this.y(time), this.bottom);
    ink.globalAlpha = 0.82;
    ink.fillStyle = this.css("--paper");
    ink.fillRect(this.left, y, width - this.left, this.bottom - y);
    ink.globalAlpha = 1;
    ink.fillStyle = this.css("--accent");
    ink.fillRect(this.left, y - this.scale, width - this.left, 2 * this.scale);
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * this.scale, (event.clientY - box.top) * this.scale];
  }

  timeAt(event) {
    const [, y] = this.place(event);
    const { run, clock } = this;
    const share = Math.max(0, Math.min(1, (y - this.top) / (this.bottom - this.top)));
    return run.begin(clock) + share * (run.end(clock) - run.begin(clock));
  }

  // the frame and lane under the pointer
  under(event) {
    const [x] = this.place(event);
    const time = this.timeAt(event);
    const step = this.run.at(this.clock, time) + 1;
    const position = this.first + Math.floor((x - this.left) / this.cell);
    const frame = this.run.frames[Math.min(step, this.run.frames.length - 1)];
    const lane = position - frame.first;
    return lane >= 0 && lane < frame.width ? { step, frame, lane, position } : null;
  }
}

function ticks(begin, end, wanted) {
  const raw = (end - begin) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const size = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let t = Math.ceil(begin / size) * size; t <= end + size * 1e-6; t += size) found.push(t);
  return found;
}

function shortSeconds(t) {
  if (t === 0) return "0";
  return t < 1 ? `${parseFloat((1000 * t).toPrecision(3))} ms` : `${parseFloat(t.toPrecision(3))} s`;
}
