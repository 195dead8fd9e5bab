// The four charts. Each takes plain arrays; none knows of the socket.

export const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
export const labelColor = (i) => color(`c${i % 8}`);

const sync = { key: "time" };

function sized(box) {
  return { width: box.clientWidth, height: Number(box.dataset.height) };
}

// The charts over time stand above each other, so all have the same room on the left.
function axes() {
  const base = { stroke: color("soft"), grid: { stroke: color("grid"), width: 1 }, ticks: { stroke: color("grid") } };
  return [{ ...base, size: 34, values: (_, at) => at.map((v) => `${v} s`) }, { ...base, size: 76 }];
}

function now(u, at) {
  if (at === null) return;
  const x = u.valToPos(at, "x", true);
  u.ctx.save();
  u.ctx.strokeStyle = color("bad");
  u.ctx.lineWidth = devicePixelRatio;
  u.ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
  u.ctx.beginPath();
  u.ctx.moveTo(x, u.bbox.top);
  u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
  u.ctx.stroke();
  u.ctx.restore();
}

function make(box, options, data) {
  box.replaceChildren();
  const chart = new uPlot({ ...sized(box), ...options }, data, box);
  chart.box = box;
  return chart;
}

export function resize(chart) {
  chart.setSize(sized(chart.box));
}

export function lines(box, names, stroke, view) {
  const series = names.map((name, i) => ({ label: name, spanGaps: true, points: { show: false }, ...stroke(i) }));
  return make(box, {
    cursor: { sync, drag: { x: false, y: false } },
    scales: { x: { time: false, range: () => view.range() } },
    axes: axes(),
    series: [{ label: "s" }, ...series],
    legend: { live: false },
    hooks: { draw: [(u) => now(u, view.now())] },
  }, [[], ...names.map(() => [])]);
}

// One row for each model: the label of its largest output, from each row's sample to the next.
export function ribbons(box, tracks, view) {
  const [first, second] = axes();
  return make(box, {
    cursor: { sync, drag: { x: false, y: false }, y: false },
    scales: { x: { time: false, range: () => view.range() }, y: { range: [0, tracks.length] } },
    axes: [first, { ...second, grid: { show: false }, ticks: { show: false },
      splits: () => tracks.map((_, i) => tracks.length - i - 0.5), values: () => tracks }],
    series: [{ label: "s" }, { label: "", paths: () => null, points: { show: false } }],
    legend: { show: false },
    hooks: { draw: [(u) => { drawRibbons(u, tracks, view); now(u, view.now()); }] },
  }, [[0, 1], [0, 0]]);
}

function drawRibbons(u, tracks, view) {
  const height = u.bbox.height / tracks.length;
  const [from, to] = view.range();
  u.ctx.save();
  u.ctx.beginPath();
  u.ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
  u.ctx.clip();
  tracks.forEach((name, i) => {
    for (const { start, end, label } of view.runs(name)) {
      if (end < from || start > to) continue;
      const left = u.valToPos(start, "x", true), right = u.valToPos(end, "x", true);
      u.ctx.fillStyle = labelColor(label);
      u.ctx.fillRect(left, u.bbox.top + height * (i + 0.14), Math.max(right - left, 1), height * 0.72);
    }
  });
  u.ctx.restore();
}

export function bars(box) {
  const [x, y] = axes();
  return make(box, {
    cursor: { show: false },
    scales: { x: { time: false, distr: 3, log: 2 }, y: { range: (_, __, max) => [0, Math.max(max, 1) * 1.1] } },
    axes: [{ ...x, values: (_, at) => at.map((v) => (v === null ? "" : v >= 1000 ? `${+(v / 1000).toPrecision(3)} ms` : `${+v.toPrecision(3)} µs`)), space: 56 }, { ...y, size: 52 }],
    series: [{ label: "µs" }, { label: "steps", fill: color("causal"), stroke: color("causal"), points: { show: false },
      paths: uPlot.paths.bars({ size: [0.9, 40], align: 0 }) }],
    legend: { show: false },
  }, [[], []]);
}
