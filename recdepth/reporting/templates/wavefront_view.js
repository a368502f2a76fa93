// The page: controls, the two texts, the statistics so far.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const state = { run: null, clock: "t", colour: "depth", time: 0, playing: false, drawn: null };
const runs = new Map();
const map = new WavefrontMap(byId("map"), (time) => { pause(); seek(time); }, showTip);

function span(text, kind) {
  const found = document.createElement("span");
  found.textContent = text;
  if (kind) found.className = kind;
  return found;
}

const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : word.endsWith("s") ? "es" : "s"}`;
const end = () => (byId("tail").checked ? state.run.endOfAll(state.clock) : state.run.end(state.clock));
const entryOf = (piece) => data.pieces[piece];

// ------------------------------------------------------------------------------------------------------------- a prompt

function chooseRow(index) {
  if (!runs.has(index)) runs.set(index, new Run(data.rows[index], data.pieces));
  const run = runs.get(index);
  state.run = run;
  byId("prompt").textContent = run.row.prompt;
  byId("verdict").textContent = run.row.verdict ? `· answer: ${run.row.verdict}` : "";
  byId("summary").textContent = summaryOf(run);
  const residual = byId("colour").querySelector("[value=residual]");
  residual.disabled = !run.hasResiduals;
  residual.textContent = run.hasResiduals ? "residual" : "residual (not computed)";
  if (!run.hasResiduals) byId("colour").value = state.colour = "depth";
  const ghosts = document.querySelectorAll(".ghost");
  ghosts[0].replaceChildren(...finalText(run.row.final, run.row.final.length), " ".repeat(4 * Math.min(run.lanesMost, 12)));
  ghosts[1].replaceChildren(...(run.baseline ? finalText(run.baseline.final, run.baseline.final.length) : []), "     ");
  layOut();
  seek(run.begin(state.clock));
}

function summaryOf(run) {
  const tokens = run.row.final.length;
  const passes = run.last.p;
  let text = `${plural(tokens, "token")} in ${plural(passes, "core pass")} and ${shortSeconds(run.last.t)}`;
  if (run.baseline) {
    const [t, p] = [run.baseline.t.at(-1), run.baseline.p.at(-1)];
    const other = run.baseline.final.length;
    text += `. One token at a time: ${other === tokens ? "" : `${plural(other, "token")} in `}${plural(p, "core pass")}`;
    text += ` (${(p / passes).toFixed(1)} ×) and ${shortSeconds(t)} (${(t / run.last.t).toFixed(1)} ×)`;
    text += run.row.same === null ? "; the texts are the same" : `; the texts part at new token ${run.row.same + 1}`;
  }
  return `${text}. ${run.row.batch > 1 ? `Sampled in a batch of ${run.row.batch}, which shares the clock. ` : ""}`;
}

function layOut() {
  const ramp = Array.from({ length: 11 }, (_, i) => colourOf(i / 10).css);
  byId("ramp").style.background = `linear-gradient(to right, ${ramp.join(", ")})`;
  const [low, high] = state.run.residualRange.map((v) => v.toPrecision(2));
  byId("low").textContent = state.colour === "depth" ? "depth 1" : `residual ${high}`;
  byId("high").textContent = state.colour === "depth" ? state.run.depthMost : low;
  byId("map-clock").textContent = state.clock === "t" ? "seconds" : "core passes";
  const real = byId("speed").querySelector("[value='0']");
  real.disabled = state.clock !== "t";
  if (real.disabled && byId("speed").value === "0") byId("speed").value = "15";
  map.show(state.run, state.clock, state.colour);
  state.drawn = null;
}

// ------------------------------------------------------------------------------------------------------------ a moment

function seek(time) {
  const { run, clock } = state;
  state.time = Math.max(run.begin(clock), Math.min(end(), time));
  const k = run.at(clock, state.time);
  const other = run.baseline ? run.baselineAt(clock, state.time) : null;
  const range = byId("time");
  range.min = run.begin(clock);
  range.max = end();
  range.value = state.time;
  const moment = clock === "t" ? shortSeconds(state.time) : plural(Math.round(state.time), "core pass");
  byId("now").textContent = `step ${k} of ${run.frames.length - 1} · ${moment}`;
  range.setAttribute("aria-valuetext", byId("now").textContent);
  map.draw(state.time);
  const drawn = `${k} ${other?.count}`;
  if (state.drawn !== drawn) {
    showText(run.frames[k]);
    if (other) showBaseline(other.count);
    showStats(run.frames[k], other);
    state.drawn = drawn;
  }
  if (other) byId("plain").querySelector(".cursor")?.style.setProperty("--share", `${100 * other.share}%`);
}

// final tokens as text; one of `count` is marked where something is to be said of it
function finalText(pieces, count, kindOf) {
  const nodes = [];
  let plain = "";
  for (let i = 0; i < count; i++) {
    const [text, , ends] = entryOf(pieces[i]);
    const kind = ends ? "ends" : kindOf?.(i);
    if (!kind) { plain += text; continue; }
    if (plain) nodes.push(plain);
    plain = "";
    nodes.push(span(ends ? " ■" : text, kind));
    if (ends) nodes.at(-1).title = "end of text";
  }
  if (plain) nodes.push(plain);
  return nodes;
}

function showText(frame) {
  const { run, colour } = state;
  const fresh = frame.committed ? frame.count - frame.committed : frame.count;
  const nodes = finalText(run.row.final, frame.count, (i) => (i >= fresh ? "fresh" : ""));
  const done = frame === run.last;
  for (let i = 0; i < frame.width && !done; i++) {
    const position = frame.first + i;
    if (position > frame.front && position >= run.row.prompt_tokens) nodes.push(chip(frame, i, colour));
  }
  if (frame.next >= 0 && frame.first + frame.width > frame.front && !done) {
    const next = span(boxed(entryOf(frame.next)), "chip next");
    next.title = "proposed for the next position, not refined yet";
    nodes.push(next);
  }
  byId("wave").replaceChildren(...nodes);
  follow(byId("wave"));
}

function chip(frame, lane, colour) {
  const [text, id] = entryOf(frame.pieces[lane]);
  const found = span(boxed(entryOf(frame.pieces[lane])), "chip");
  const { css, ink } = colourOf(state.run.heat(frame, lane, colour));
  const residual = Number.isFinite(frame.residual[lane]) ? `, residual ${frame.residual[lane].toPrecision(2)}` : "";
  found.title = `position ${frame.first + lane}: ${JSON.stringify(text)} (token ${id}), depth ${frame.depth[lane]}${residual}`;
  if (frame.flipped.has(lane)) {
    found.classList.add("flip");
    const old = document.createElement("del");
    old.textContent = boxed(entryOf(frame.flipped.get(lane)));
    found.append(old);
  } else {
    found.style.background = css;
    found.style.color = ink;
  }
  return found;
}

function showBaseline(count) {
  const { baseline, row } = state.run;
  const nodes = finalText(baseline.final, count, (i) => (row.same !== null && i >= row.same ? "differs" : ""));
  if (count < baseline.final.length) nodes.push(span("", "cursor"));
  byId("plain").replaceChildren(...nodes);
  follow(byId("plain"));
}

function follow(text) {
  const box = text.parentElement;
  if (box.scrollHeight <= box.clientHeight) return;
  const last = text.lastElementChild || text;
  box.scrollTop = last.offsetTop + last.offsetHeight - box.offsetTop - box.clientHeight + 24;
}

function showStats(frame, other) {
  const { run } = state;
  const start = run.frames[0].p;
  const rate = (count, passes) => (passes > start ? (count / (passes - start)).toFixed(2) : "–");
  const perSecond = (count) => (state.clock === "t" ? (count / state.time).toFixed(count / state.time < 10 ? 1 : 0) : null);
  const rows = [
    ["new tokens", frame.count, other?.count],
    ["core passes", frame.p, other?.passes],
    ["of them prefill", start, run.baseline?.prefill],
    ["tokens per core pass, decoding", rate(frame.count, frame.p),
      other && (other.passes > run.baseline.prefill ? (other.count / (other.passes - run.baseline.prefill)).toFixed(2) : "–")],
    ["tokens per second", perSecond(frame.count), other && perSecond(other.count)],
    ["seconds", frame.t.toFixed(3), other && (other.count ? run.baseline.t[other.count - 1].toFixed(3) : "–")],
    ["flips", frame.flips, other && 0],
    ["lanes in this step", frame.width, other && (other.count < run.baseline.final.length ? 1 : 0)],
  ];
  byId("stats").tBodies[0].replaceChildren(...rows.filter((row) => row[1] !== null).map(([name, one, two]) => {
    const line = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = name;
    line.append(head);
    for (const value of run.baseline ? [one, two] : [one]) {
      const cell = document.createElement("td");
      cell.textContent = typeof value === "number" ? value.toLocaleString("en") : value;
      line.append(cell);
    }
    return line;
  }));
}

function showTip(found) {
  if (!found) { byId("tip").textContent = ""; return; }
  const { step, frame, lane, position } = found;
  const [text, id] = entryOf(frame.pieces[lane]);
  const words = [`step ${step}, position ${position}: ${JSON.stringify(text)} (token ${id})`, `depth ${frame.depth[lane]}`];
  if (Number.isFinite(frame.residual[lane])) words.push(`residual ${frame.residual[lane].toPrecision(2)}`);
  if (frame.flipped.has(lane)) words.push(`flipped from ${JSON.stringify(entryOf(frame.flipped.get(lane))[0])}`);
  if (lane < frame.committed) words.push("committed");
  byId("tip").textContent = words.join(" · ");
}

// ------------------------------------------------------------------------------------------------------------- playing

function play() {
  if (state.time >= end() - 1e-9) seek(state.run.begin(state.clock));
  state.playing = true;
  let before = performance.now();
  const tick = (now) => {
    if (!state.playing) return;
    const { run, clock } = state;
    const whole = Number(byId("speed").value);
    const rate = whole ? (run.end(clock) - run.begin(clock)) / whole : 1; // per second of watching
    seek(state.time + (rate * (now - before)) / 1000);
    before = now;
    if (state.time >= end() - 1e-9) pause(); else requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
  showPlaying();
}

function pause() {
  state.playing = false;
  showPlaying();
}

function showPlaying() {
  byId("play").textContent = state.playing ? "❚❚ Pause" : "▶\uFE0E Play";
  byId("play").setAttribute("aria-label", state.playing ? "Pause" : "Play");
  document.body.classList.toggle("playing", state.playing);
}

function step(direction) {
  pause();
  const to = state.run.neighbour(state.clock, state.time, direction, byId("tail").checked);
  if (to !== null) seek(to);
}

function switchClock(clock) {
  const { run } = state;
  const k = run.at(state.clock, state.time); // stay at the step
  state.clock = clock;
  layOut();
  seek(run.frames[k][clock]);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const kind = event.target.closest?.("select, button, summary, input");
  const range = kind?.id === "time";
  const acts = {
    " ": () => (state.playing ? pause() : play()),
    ArrowLeft: () => step(-1), ArrowRight: () => step(1),
    Home: () => { pause(); seek(-Infinity); }, End: () => { pause(); seek(Infinity); },
  };
  const free = !kind || range || (event.key !== " " && kind.tagName !== "SELECT");
  if (!acts[event.key] || !free) return;
  event.preventDefault();
  acts[event.key]();
}

// ------------------------------------------------------------------------------------------------------------- the start

function describe() {
  const { sampler, baseline } = data;
  const rival = baseline && `autoregressive, r = ${baseline.settings.num_steps}`;
  byId("sampler-name").textContent = sampler.name.replaceAll("_", " ");
  byId("versus").textContent = rival ? `against ${rival}` : `r = ${sampler.settings.num_steps}`;
  byId("wave-title").textContent = sampler.name.replaceAll("_", " ");
  byId("stats-name").textContent = sampler.name.replaceAll("_", " ");
  byId("baseline-title").textContent = rival ? `${rival}, at the same time` : "";
  for (const node of document.querySelectorAll("#baseline-panel, #baseline-key, #tail-field, .of-baseline")) node.hidden = !rival;
  byId("panels").classList.toggle("alone", !rival);
  const notes = [];
  if (data.left_out) notes.push(`${plural(data.left_out, "further prompt")} left out, to keep the page small.`);
  if (data.empty) notes.push(`${plural(data.empty, "prompt")} not shown: the first token ended the text.`);
  byId("left-out").textContent = notes.join(" ");
  byId("left-out").hidden = !notes.length;
  const lists = [["Sampler", { name: sampler.name, ...sampler.settings }]];
  if (baseline) lists.push(["One token at a time", { name: baseline.name, ...baseline.settings }]);
  lists.push(["Run", data.facts]);
  for (const [title, facts] of lists) {
    const list = document.createElement("dl");
    for (const [key, value] of Object.entries(facts)) {
      const [name, text] = [document.createElement("dt"), document.createElement("dd")];
      name.textContent = key.replaceAll("_", " ");
      text.textContent = String(value);
      list.append(name, text);
    }
    const head = document.createElement("b");
    head.textContent = title;
    byId("facts").append(head, list);
  }
  byId("row").append(...data.rows.map((row, i) => new Option(`${i + 1}. ${row.prompt.trim().replace(/\s+/g, " ").slice(0, 80)}`, i)));
  byId("chooser").hidden = data.rows.length < 2;
}

describe();
chooseRow(0);
byId("play").addEventListener("click", () => (state.playing ? pause() : play()));
byId("forward").addEventListener("click", () => step(1));
byId("back").addEventListener("click", () => step(-1));
byId("first").addEventListener("click", () => { pause(); seek(-Infinity); });
byId("end").addEventListener("click", () => { pause(); seek(Infinity); });
byId("time").addEventListener("input", (event) => { pause(); seek(Number(event.target.value)); });
byId("tail").addEventListener("change", () => seek(state.time));
byId("row").addEventListener("change", (event) => { pause(); chooseRow(Number(event.target.value)); });
byId("clock").addEventListener("change", (event) => switchClock(event.target.value));
byId("colour").addEventListener("change", (event) => { state.colour = event.target.value; layOut(); seek(state.time); });
document.addEventListener("keydown", onKey);
const again = () => { layOut(); seek(state.time); };
new ResizeObserver(again).observe(byId("map"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
