"use strict";
// From the embedded JSON (see wavefront_data in wavefront_page.py) to frames: what stands there after each step.

const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";

function residualsOf(text, width) {
  const values = new Float64Array(width).fill(NaN);
  for (let i = 0; text && i < width; i++) {
    const level = 64 * DIGITS.indexOf(text[2 * i]) + DIGITS.indexOf(text[2 * i + 1]);
    if (level > 0) values[i] = 10 ** ((12 * (level - 1)) / 4094 - 8);
  }
  return values;
}

// A frame: t, p (seconds and core passes since the prompt was given), front and count (position and number of the final
// tokens), and the lanes of the step that led to it, from position `first` on: pieces, depth, residual, flipped (lane →
// the piece it had), committed (how many of them, from the first one on), next (piece behind the last lane, or -1).
function framesOf(row) {
  const start = row.start;
  const frame = { t: start.t, p: start.p, front: start.front, count: start.count, flips: 0, first: start.front };
  const frames = [{ ...frame, width: 0, pieces: [], depth: [], residual: [], flipped: new Map(), committed: 0, next: -1 }];
  const shown = new Map();
  const depths = new Map();
  let { front, count } = start;
  let flips = 0;
  for (const step of row.steps) {
    const first = front;
    for (const [lane, piece] of step.s || []) shown.set(first + lane, piece);
    const anew = step.r ?? step.w;
    const pieces = new Array(step.w);
    const depth = new Array(step.w);
    for (let i = 0; i < step.w; i++) {
      pieces[i] = shown.get(first + i);
      depth[i] = step.d ? step.d[i] : step.g + (i < anew ? depths.get(first + i) || 0 : 0);
      depths.set(first + i, depth[i]);
    }
    front += step.c;
    count = Math.max(0, front - row.prompt_tokens + 1);
    flips += (step.f || []).length;
    frames.push({
      t: step.t, p: step.p, front, count, flips, first, width: step.w, pieces, depth,
      residual: residualsOf(step.e, step.w),
      flipped: new Map(step.f || []),
      committed: step.c,
      next: step.x ? shown.get(first + step.w) : -1,
    });
  }
  return frames;
}

// Everything a view needs of one row; `clock` is "t" or "p".
class Run {
  constructor(row, pieces) {
    Object.assign(this, { row, pieces, frames: framesOf(row), baseline: row.baseline });
    this.last = this.frames[this.frames.length - 1];
    this.hasResiduals = row.steps.some((step) => step.e);
    this.lanesMost = Math.max(...this.frames.map((f) => f.width));
    let depth = 1, low = Infinity, high = 0;
    for (const f of this.frames) {
      for (const d of f.depth) depth = Math.max(depth, d);
      for (const e of f.residual) if (e > 0) { low = Math.min(low, e); high = Math.max(high, e); }
    }
    this.depthMost = depth;
    this.residualRange = [low, Math.max(high, low * 1.01)];
  }

  begin(clock) { return this.frames[0][clock]; }

  end(clock) { return this.last[clock]; }

  // when the sampler and the baseline are both done
  endOfAll(clock) { return Math.max(this.end(clock), this.baseline ? this.baseline[clock].at(-1) : 0); }

  // index of the frame that stands at this time
  at(clock, time) {
    let low = 0, high = this.frames.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.frames[middle][clock] <= time + 1e-9) low = middle; else high = middle - 1;
    }
    return low;
  }

  // how many tokens the baseline has at this time, and which share of the next one is done
  baselineAt(clock, time) {
    const times = this.baseline[clock];
    let count = 0;
    while (count < times.length && times[count] <= time + 1e-9) count++;
    const before = count ? times[count - 1] : 0;
    const share = count < times.length ? (time - before) / (times[count] - before) : 0;
    return { count, share: Math.max(0, Math.min(1, share)), passes: count ? this.baseline.p[count - 1] : 0 };
  }

  // the next moment at which something changes, in this direction; null at the end
  neighbour(clock, time, direction, withTail) {
    const stops = this.frames.map((f) => f[clock]);
    if (withTail && this.baseline) stops.push(...this.baseline[clock].filter((t) => t > this.end(clock)));
    if (direction > 0) return stops.find((t) => t > time + 1e-9) ?? null;
    return stops.findLast((t) => t < time - 1e-9) ?? null;
  }

  // 0 (nothing settled) … 1 (settled) of a lane, for its colour; NaN where there is nothing to show
  heat(frame, lane, colour) {
    if (colour === "depth") return this.depthMost > 1 ? (frame.depth[lane] - 1) / (this.depthMost - 1) : 1;
    const [low, high] = this.residualRange;
    return 1 - Math.log(frame.residual[lane] / low) / Math.log(high / low);
  }
}

// viridis (van der Walt and Smith, public domain), from unsettled (yellow) to settled (violet)
const RAMP = ["#fde725", "#b5de2b", "#6ece58", "#35b779", "#1f9e89", "#26828e", "#31688e", "#3e4989", "#482878", "#440154"]
  .map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));

function colourOf(heat) {
  if (!Number.isFinite(heat)) return { css: "var(--line)", ink: "var(--ink)" };
  const at = Math.max(0, Math.min(1, heat)) * (RAMP.length - 1);
  const low = Math.min(Math.floor(at), RAMP.length - 2);
  const [r, g, b] = RAMP[low].map((c, i) => Math.round(c + (RAMP[low + 1][i] - c) * (at - low)));
  return { css: `rgb(${r} ${g} ${b})`, ink: 0.299 * r + 0.587 * g + 0.114 * b > 130 ? "#111" : "#fff" };
}

// a piece as one sees it in a box: white space and nothing at all are written out
function boxed(entry) {
  const [text, id, ends] = entry;
  if (ends) return "■";
  if (text === "") return `⟨${id}⟩`;
  return text.trim() || (/\n/.test(text) ? "⏎" : "␣");
}
