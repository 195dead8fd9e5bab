// Keeps what the server told, and draws it. The charts are in charts.js.
import { bars, color, labelColor, lines, resize, ribbons } from "./charts.js";

const byId = (id) => document.getElementById(id);
const WINDOW_S = 30;
const WIDTHS = { causal: 2.5, lookahead: 2, offline: 1.5 };
const DASHES = { causal: [], lookahead: [8, 4], offline: [2, 3] };

let about = null;    // what the server says of the model and the recording
let state = null;    // the newest update, without samples and rows
let times = [];      // of every sample that came, in s
let signal = [];     // of each channel
let tracks = {};     // by name: {samples, labels, rows}
let charts = null;
let due = false;
let chosen = null;   // which output the reader asked to see
let socket = null;

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
  socket.onmessage = (event) => take(JSON.parse(event.data));
  socket.onclose = (event) => {
    if (byId("state").dataset.state === "nothing") return;
    show("lost", event.code === 1001 ? "the server stopped" : "connection lost");
    for (const id of ["start", "stop", "speed"]) byId(id).disabled = true;
    setTimeout(connect, 2000);
  };
}

function take(message) {
  if (message.type === "nothing") return nothing(message.reason);
  if (message.type === "error") return notice(message.message);
  state = message;
  if (message.type === "everything") begin(message);
  message.samples.forEach((sample, i) => {
    times.push((message.first + i) / about.rate_hz);
    sample.forEach((x, c) => signal[c].push(x));
  });
  for (const [name, { samples, rows }] of Object.entries(message.tracks)) {
    const track = tracks[name];
    // The offline model's row of a sample comes once; so does a stream's.
    samples.forEach((sample, i) => {
      track.samples.push(sample);
      track.rows.push(rows[i]);
      track.labels.push(rows[i].reduce((best, x, k) => (x > rows[i][best] ? k : best), 0));
    });
  }
  if (!due) { due = true; requestAnimationFrame(draw); }
}

function begin(message) {
  about = message;
  times = [];
  signal = about.channels.map(() => []);
  tracks = Object.fromEntries(Object.keys(about.tracks).map((name) => [name, { samples: [], labels: [], rows: [] }]));
  const seconds = (about.length / about.rate_hz).toFixed(1);
  const guess = about.rate_is_known ? "" : " (assumed: the file names no rate)";
  byId("model").textContent = about.model;
  byId("about").textContent = `Replay of ${about.recording}: ${seconds} s at ${about.rate_hz} Hz${guess}`;
  const names = outputs();
  byId("channel").replaceChildren(...names.map((name, i) => new Option(name, i)));
  byId("speed").replaceChildren(...about.speeds.map((x) => new Option(`${x}×`, x)));
  byId("labels").replaceChildren(...names.map((name, i) => {
    const item = document.createElement("li"), swatch = document.createElement("i");
    swatch.dataset.color = i;
    item.append(swatch, name);
    return item;
  }));
  byId("ribbons-section").hidden = names.length < 2;
  rebuild();
}

function outputs() {
  return about.labels ?? Array.from({ length: about.output_shape.reduce((a, b) => a * b, 1) }, (_, i) => `output ${i}`);
}

const view = {
  now: () => (state && state.state === "playing" ? state.position / about.rate_hz : null),
  range() {
    if (!about) return [0, WINDOW_S];
    const whole = about.length / about.rate_hz;
    if (whole <= WINDOW_S || (state && state.state === "ended")) return [0, whole];
    const end = Math.max(WINDOW_S, state.position / about.rate_hz);
    return [end - WINDOW_S, end];
  },
  runs(name) {
    const { samples, labels } = tracks[name], found = [];
    for (let i = 0; i < samples.length; i++) {
      const start = samples[i] / about.rate_hz;
      const next = i + 1 < samples.length ? samples[i + 1] : samples[i] + (i ? samples[i] - samples[i - 1] : 1);
      const last = found[found.length - 1];
      if (last && last.label === labels[i] && Math.abs(last.end - start) < 1e-9) last.end = next / about.rate_hz;
      else found.push({ start, end: next / about.rate_hz, label: labels[i] });
    }
    return found;
  },
};

function rebuild() {
  if (!about) return;
  if (charts) Object.values(charts).forEach((chart) => chart.destroy());
  const names = Object.keys(tracks);
  for (const swatch of byId("labels").querySelectorAll("i")) swatch.style.background = labelColor(swatch.dataset.color);
  charts = {
    signal: lines(byId("signal"), about.channels, (i) => ({ stroke: labelColor(i), width: 1.2 }), view),
    scores: lines(byId("scores"), names, (i) => ({
      stroke: color(names[i]), width: WIDTHS[names[i]], dash: DASHES[names[i]],
    }), view),
    histogram: bars(byId("histogram")),
  };
  if (!byId("ribbons-section").hidden) charts.ribbons = ribbons(byId("ribbons"), names, view);
  draw();
}

function draw() {
  due = false;
  if (!charts || !state) return;
  byId("channel").value = shown();
  charts.signal.setData([times, ...signal]);
  charts.scores.setData(scores());
  if (charts.ribbons) charts.ribbons.setData([[0, 1], [0, 0]]);
  charts.histogram.setData(histogram(state.latency.histogram ?? []));
  controls();
  table();
  figures(state.latency);
}

// The chosen output of every model, on the times of all samples; null where a model has said nothing yet.
function scores() {
  const k = shown(), first = times.length ? Math.round(times[0] * about.rate_hz) : 0;
  return [times, ...Object.values(tracks).map(({ samples, rows }) => {
    const line = new Array(times.length).fill(null);
    samples.forEach((sample, i) => { if (sample >= first && sample - first < line.length) line[sample - first] = rows[i][k]; });
    return line;
  })];
}

// Until the reader chooses, the output that was the largest most often.
function shown() {
  const n = outputs().length;
  if (chosen !== null && chosen < n) return chosen;
  const counts = new Array(n).fill(0);
  for (const label of tracks.causal.labels) counts[label] += 1;
  return counts.indexOf(Math.max(...counts));
}

// Sixteen buckets to a power of two, as they come, are too fine to see: four are drawn.
function histogram(buckets) {
  const counts = new Map();
  for (const [us, n] of buckets) {
    const bar = Math.ceil(Math.log2(us) * 4 - 1e-9);
    counts.set(bar, (counts.get(bar) ?? 0) + n);
  }
  const all = [...counts.keys()], low = Math.min(...all), high = Math.max(...all);
  const xs = all.length ? Array.from({ length: high - low + 1 }, (_, i) => low + i) : [];
  return [xs.map((bar) => 2 ** ((bar - 0.5) / 4)), xs.map((bar) => counts.get(bar) ?? 0)];
}

function controls() {
  const playing = state.state === "playing";
  byId("start").disabled = playing;
  byId("start").textContent = state.state === "ended" ? "Start again" : "Start";
  byId("stop").disabled = !playing;
  byId("speed").disabled = false;
  if (document.activeElement !== byId("speed")) byId("speed").value = state.speed;
  byId("clock").textContent = `${(state.position / about.rate_hz).toFixed(1)} s`;
  show(state.state, state.state);
}

function table() {
  const body = byId("models").tBodies[0];
  body.replaceChildren(...Object.entries(tracks).map(([name, { samples }]) => {
    const late = about.lookahead[name], row = document.createElement("tr");
    const when = late === undefined ? "once all samples are there"
      : late === 0 ? "with its sample" : `up to ${late} samples later (${(late / about.rate_hz).toFixed(2)} s)`;
    const at = samples.length ? `${((samples[samples.length - 1] + 1) / about.rate_hz).toFixed(2)} s` : "waits";
    const same = state.agreement[name];
    const agrees = same && outputs().length > 1 ? `${(same.same_label * 100).toFixed(1)} %` : "";
    const within = same ? `${same.largest_difference.toPrecision(2)}` : "";
    row.append(...[name, when, at, agrees, within].map((text) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      return cell;
    }));
    return row;
  }));
}

function figures(latency) {
  const told = latency.count
    ? { steps: latency.count, p50: us(latency.p50_us), p99: us(latency.p99_us), longest: us(latency.max_us) } : { steps: 0 };
  byId("figures").replaceChildren(...Object.entries(told).map(([name, value]) => {
    const pair = document.createElement("div"), term = document.createElement("dt"), what = document.createElement("dd");
    term.textContent = name;
    what.textContent = value;
    pair.append(term, what);
    return pair;
  }));
}

const us = (x) => (x >= 1000 ? `${(x / 1000).toFixed(1)} ms` : `${x.toFixed(0)} µs`);

function show(which, text) {
  byId("state").dataset.state = which;
  byId("state").textContent = text;
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = false;
}

function nothing(reason) {
  show("nothing", "no replay");
  notice(reason);
}

const send = (message) => socket.readyState === WebSocket.OPEN && socket.send(JSON.stringify(message));
byId("start").onclick = () => send({ type: "start" });
byId("stop").onclick = () => send({ type: "stop" });
byId("speed").onchange = () => send({ type: "speed", value: Number(byId("speed").value) });
byId("channel").onchange = () => { chosen = Number(byId("channel").value); draw(); };
addEventListener("resize", () => charts && Object.values(charts).forEach(resize));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", rebuild);
connect();
