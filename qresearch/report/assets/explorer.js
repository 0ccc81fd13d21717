"use strict";
// The page: controls change the state, and ``draw`` shows it. Texts of records enter the page as text only.

const data = JSON.parse(document.getElementById("data").textContent);
const known = quantities(data);
const state = {
  x: data.x, y: "test_score", selected: null, seed: null, sort: null,
  hidden: { run: new Set(), model: new Set(), series: new Set(), seed: new Set() },
};
// Okabe and Ito, 2008; on dark pages somewhat lighter.
const LIGHT = ["#0072B2", "#C04F00", "#00805D", "#B0558A", "#2B86BD", "#A86F00", "#333333"];
const DARK = ["#56B4E9", "#F08A45", "#2CC79B", "#E29CC4", "#9AD0F5", "#F0B840", "#D0D0D0"];
const SYMBOLS = [["circle", "●"], ["square", "■"], ["diamond", "◆"], ["triangle-up", "▲"], ["cross", "✚"], ["x", "✖"], ["star", "★"]];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const VIRIDIS = ["#440154", "#482878", "#3E4989", "#31688E", "#26828E", "#1F9E89", "#35B779", "#6DCD59", "#B4DE2C", "#FDE725"];
const names = [...new Set(data.points.map((point) => point.series))].filter((name) => name !== "float");
let views = [];

const $ = (id) => document.getElementById(id);
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (systemDark.matches ? "dark" : "light")) === "dark";

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== null && text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function colour(series) {
  const index = names.indexOf(series), palette = isDark() ? DARK : LIGHT;
  return index < 0 ? (isDark() ? "#BBBBBB" : "#555555") : palette[index % palette.length];
}

// Seven colours go with seven symbols first, then with others: 49 series differ.
function symbol(series) {
  const index = names.indexOf(series);
  return index < 0 ? ["hexagram", "✶"] : SYMBOLS[(index + Math.floor(index / LIGHT.length)) % SYMBOLS.length];
}

function layoutOf(more) {
  const line = isDark() ? "#3a3d43" : "#dddddd";
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  const { xaxis, yaxis, ...rest } = more;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    font: { family: "system-ui, sans-serif", size: 13, color: isDark() ? "#e6e6e6" : "#1b1b1b" },
    hoverlabel: { align: "left", bgcolor: isDark() ? "#22252b" : "#ffffff", font: { color: isDark() ? "#e6e6e6" : "#1b1b1b" } },
    margin: { l: 10, r: 10, t: 10, b: 10 }, dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

function plot(id, traces, layout) {
  return Plotly.react(id, traces, layoutOf(layout), { displayModeBar: false, responsive: true });
}

// ---- the front

function seriesTraces() {
  const groups = Map.groupBy(views, (view) => JSON.stringify([view.point.run, view.point.series]));
  return [...groups.values()].flatMap((group) => {
    const { series, flow, run } = group[0].point, isFloat = flow === "float";
    const sorted = [...group].sort((a, b) => a.x - b.x);
    const many = data.runs.length > 1;
    const points = {
      meta: "points", uid: `points-${run}-${names.indexOf(series)}`, customdata: sorted.map((view) => view.index),
      x: isFloat ? sorted.map(() => "float") : sorted.map((view) => view.x), y: sorted.map((view) => view.y),
      xaxis: isFloat ? "x2" : "x", mode: isFloat || new Set(sorted.map((view) => view.point.model)).size > 1 ? "markers" : "lines+markers",
      error_y: { array: sorted.map((view) => view.error ?? 0), visible: sorted.some((view) => view.error), thickness: 1, width: 3 },
      marker: { symbol: symbol(series)[0] + (many && run % 2 ? "-open" : ""), size: 9, color: colour(series) },
      line: { color: colour(series), width: 1, dash: DASHES[run % 4] },
      text: sorted.map((view) => hoverText(view, data, state, known)), hovertemplate: "%{text}<extra></extra>",
    };
    return $("bands").checked && !isFloat ? [...seedBand(sorted, colour(series)), points] : [points];
  });
}

// One standard error around the means, where there are several seeds.
function seedBand(sorted, tint) {
  const own = sorted.filter((view) => view.error !== null);
  if (own.length < 2 || new Set(own.map((view) => view.point.model)).size > 1) return [];
  return [band(own.map((view) => view.x), own.map((view) => view.y - view.error), own.map((view) => view.y + view.error), tint, 0.15)];
}

function band(x, low, high, tint, opacity) {
  return {
    meta: "band", x: [...x, ...x.toReversed()], y: [...high, ...low.toReversed()], fill: "toself", mode: "lines",
    line: { width: 0 }, fillcolor: tint, opacity, hoverinfo: "skip",
  };
}

// What searches believe of the least validation loss within every budget: 50 % and 90 % of it.
function beliefBands() {
  if (state.y !== "validation_loss" || !$("bands").checked) return [];
  const groups = Map.groupBy(views.filter((view) => view.trials[0].front), (view) => JSON.stringify([view.point.run, view.point.series]));
  return [...groups.values()].flatMap((group) => {
    const sorted = [...group].sort((a, b) => a.x - b.x), x = sorted.map((view) => view.x), tint = colour(group[0].point.series);
    const level = (i) => sorted.map((view) => view.trials[0].front[i]);
    return [band(x, level(0), level(4), tint, 0.15), band(x, level(1), level(3), tint, 0.25)];
  });
}

function ring(meta, chosen, size, tint) {
  return {
    meta, x: chosen.map((view) => view.x), y: chosen.map((view) => view.y), mode: "markers", hoverinfo: "skip",
    marker: { symbol: "circle-open", size, color: tint, line: { width: 2 } },
  };
}

function drawFront() {
  const floats = views.filter((view) => view.point.flow === "float"), quantized = views.filter((view) => view.point.flow !== "float");
  const chosen = quantized.filter((view) => view.index === state.selected), ink = isDark() ? "#ffffff" : "#222222";
  const traces = [...beliefBands(), ...seriesTraces(), ring("front", quantized.filter((view) => view.onFront), 16, ink), ring("selected", chosen, 22, isDark() ? "#ffd24d" : "#d00000")];
  const split = floats.length ? 0.92 : 1;
  plot("front", traces, {
    xaxis: { title: { text: known[state.x].label }, type: $("log").checked ? "log" : "linear", domain: [0, split] },
    yaxis: { title: { text: known[state.y].label }, ...($("close").checked ? closeUp() : { autorange: true }) },
    ...(floats.length ? { xaxis2: { domain: [split + 0.01, 1], type: "category", anchor: "y", fixedrange: true, linecolor: "#888", showgrid: false } } : {}),
    shapes: floats.map((view) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: view.y, y1: view.y, line: { color: colour("float"), width: 1, dash: "dash" }, layer: "below" })),
  });
  const lower = [...new Set(views.filter((view) => !view.point.higher_is_better).map((view) => view.point.score_name))];
  const worse = lower.length ? ` Smaller is better: ${lower.join(", ")}.` : "";
  const wide = $("bands").checked && state.y === "validation_loss" && views.some((view) => view.trials[0].front)
    ? " Bands: 50 % and 90 % of what a posterior believes of the least loss within each budget; shaded: one standard error." : "";
  $("about").textContent = `${views.length} of ${data.points.length} points. Means over the chosen seeds, bars and shades: one standard error. `
    + `Rings: the front over ${known[state.x].label}, chosen on validation scores.${worse}${wide}`;
}

// The range of the float model and of the fronts, with a margin: one collapsed trial makes the others a line.
function closeUp() {
  const values = views.filter((view) => view.onFront || view.point.flow === "float").map((view) => view.y);
  if (!values.length) return { autorange: true };
  const [low, high] = [Math.min(...values), Math.max(...values)], margin = (high - low || Math.abs(high) || 1) * 0.1;
  return { range: [low - margin, high + margin], autorange: false };
}

// ---- what is selected

function select(index) {
  if (state.selected !== index) state.seed = null;
  state.selected = index;
  drawFront();
  drawDetails();
  drawCurves();
  for (const row of $("points").tBodies[0].rows) row.classList.toggle("chosen", Number(row.dataset.index) === index);
}

function selectedTrial() {
  const trials = data.points[state.selected].trials;
  return trials.find((trial) => trial.seed === state.seed) ?? trials.find((trial) => !state.hidden.seed.has(trial.seed)) ?? trials[0];
}

function drawDetails() {
  if (state.selected === null) return;
  const point = data.points[state.selected], trial = selectedTrial(), box = $("details");
  const facts = [
    ["test", `score ${trial.test.score.toFixed(4)}, loss ${shown(trial.test.loss)}`],
    ["validation", `score ${trial.validation.score.toFixed(4)}, loss ${shown(trial.validation.loss)}`],
    ...data.costs.map((cost) => [cost.label, shown(trial.costs[cost.name])]),
    ["layers", point.treatment], ["trial", `${trial.key}, ${shown(trial.seconds)} s, run ${data.runs[point.run].name}`],
    ...Object.entries(trial.settings).filter(([name]) => name !== "seed").map(([name, value]) => [name, JSON.stringify(value)]),
  ];
  const list = element("dl");
  for (const [name, value] of facts) {
    const pair = element("div");
    pair.append(element("dt", name), element("dd", value));
    list.append(pair);
  }
  box.replaceChildren(element("h3", point.label), seedChoice(point, trial), list);
  $("bits-box").hidden = false;
  choose("table", trial.tables.map((i) => data.tables[i].name), "heat-box");
  choose("operand", Object.keys(trial.probabilities).map((name) => name || "weight and input"), "shares-box");
  // After all boxes are there: a chart takes the width that its box has when it is drawn.
  drawBits(trial);
  drawHeat();
  drawShares();
}

function seedChoice(point, trial) {
  const label = element("label", "Seed "), choice = element("select", null, { id: "seed" });
  for (const one of point.trials) choice.append(element("option", String(one.seed), one === trial ? { selected: "" } : {}));
  choice.addEventListener("change", () => { state.seed = Number(choice.value); drawDetails(); $("seed").focus(); });
  label.append(choice);
  return label;
}

function choose(id, texts, box) {
  $(box).hidden = !texts.length;
  $(id).replaceChildren(...texts.map((text, i) => element("option", text, { value: String(i) })));
  $(id).hidden = texts.length < 2 && id === "operand";
}

const tall = (count, each) => count * each + 90;
const rows = (layers) => ({ tickvals: layers.map((_, i) => i), ticktext: shortNames(layers).map(plain), autorange: "reversed", showgrid: false, tickfont: { size: 11 } });

function drawBits(trial) {
  const at = trial.layers.map((_, i) => i), palette = isDark() ? DARK : LIGHT;
  const bars = ["weight", "input"].map((name, j) => ({
    type: "bar", orientation: "h", name, y: at, x: trial.bits.map((pair) => Math.min(pair[j], 32)), marker: { color: palette[j] },
    text: trial.bits.map((pair) => width(pair[j])), textposition: "inside", insidetextanchor: "end", textangle: 0, constraintext: "none", textfont: { size: 10, color: isDark() ? "#000000" : "#ffffff" }, hovertemplate: `%{text} bits of the ${name}<extra></extra>`,
  }));
  plot("bits", bars, {
    height: tall(trial.layers.length, 30), bargap: 0.2, showlegend: true, legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0, traceorder: "normal" },
    xaxis: { title: { text: "bits" } }, yaxis: rows(trial.layers), margin: { l: 10, r: 10, t: 30, b: 10 },
  });
  const table = element("table"), head = table.createTHead().insertRow(), body = table.createTBody();
  for (const name of ["layer", "weight bits", "input bits"]) head.append(element("th", name, { scope: "col" }));
  trial.layers.forEach((layer, i) => body.insertRow().append(element("td", layer), ...trial.bits[i].map((bits) => element("td", width(bits)))));
  $("bits-table").replaceChildren(table);
}

function drawHeat() {
  const table = data.tables[selectedTrial().tables[Number($("table").value)]];
  if (!table) return;
  const trial = selectedTrial(), options = table.options.map(([weight, input]) => `W${width(weight)}A${width(input)}`);
  // Losses span orders of magnitude; what is below the least positive one has its colour, and hovering shows the number.
  const positive = table.loss.flat().filter((loss) => loss !== null && loss > 0), least = Math.min(...positive);
  const at = table.layers.map((_, i) => i);
  const heat = {
    type: "heatmap", x: options, y: at, z: table.loss.map((row) => row.map((loss) => (loss === null ? null : Math.log10(Math.max(loss, least))))),
    text: table.loss.map((row, i) => row.map((loss, j) => plain(`${table.layers[i]} ${options[j]}: ${shown(loss)} ± ${shown(table.standard_error[i][j])}`))),
    hovertemplate: "%{text}<extra></extra>", colorscale: VIRIDIS.map((tint, i) => [i / 9, tint]), hoverongaps: false, xgap: 1, ygap: 1,
    colorbar: { thickness: 10, tickprefix: "10<sup>", ticksuffix: "</sup>", tickformat: ".1~f" },
  };
  const cells = table.layers.flatMap((layer, i) => {
    const bits = trial.bits[trial.layers.indexOf(layer)];
    const j = bits ? table.options.findIndex(([weight, input]) => weight === bits[0] && input === bits[1]) : -1;
    return j < 0 ? [] : [[options[j], i]];
  });
  const marks = { x: cells.map((cell) => cell[0]), y: cells.map((cell) => cell[1]), mode: "markers", hoverinfo: "skip", marker: { symbol: "circle", size: 8, color: "#ffffff", line: { color: "#000000", width: 1.5 } } };
  plot("heat", [heat, marks], { height: tall(table.layers.length, 22), xaxis: { type: "category", title: { text: "dots: chosen" } }, yaxis: rows(table.layers) });
}

function drawShares() {
  const own = Object.values(selectedTrial().probabilities)[Number($("operand").value)];
  if (!own) return;
  const layers = selectedTrial().layers.filter((layer) => layer in own), value = (option) => option.replace("W", "").split("A").map(Number);
  const options = [...new Set(layers.flatMap((layer) => Object.keys(own[layer])))].sort((a, b) => value(a)[0] - value(b)[0] || (value(a)[1] ?? 0) - (value(b)[1] ?? 0));
  const bars = options.map((option, i) => ({
    type: "bar", orientation: "h", name: plain(option), y: layers.map((_, j) => j), x: layers.map((layer) => own[layer][option] ?? 0),
    marker: { color: VIRIDIS[options.length > 1 ? Math.round((i * 9) / (options.length - 1)) : 4] }, hovertemplate: `${plain(option)}: %{x:.3f}<extra></extra>`,
  }));
  plot("shares", bars, {
    height: tall(layers.length, 22), barmode: "stack", bargap: 0.15, showlegend: true, legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0, traceorder: "normal" },
    xaxis: { title: { text: "probability" }, range: [0, 1] }, yaxis: rows(layers), margin: { l: 10, r: 10, t: 40, b: 10 },
  });
}

function drawCurves() {
  const name = $("curve").value, most = 150;
  const trained = views.flatMap((view) => view.trials.filter((trial) => trial.epochs.epoch).map((trial) => ({ view, trial })));
  const own = trained.filter(({ view }, i) => i < most || view.index === state.selected);
  const traces = own.map(({ view: { point, index }, trial }) => ({
    meta: "curve", x: trial.epochs.epoch, y: trial.epochs[name], mode: trial.epochs.epoch.length > 1 ? "lines" : "markers", line: { color: colour(point.series), width: index === state.selected ? 4 : 1 },
    opacity: state.selected === null || index === state.selected ? 1 : 0.45, hovertemplate: `${plain(point.label)}, seed ${trial.seed}<br>epoch %{x}: %{y:.4g}<extra></extra>`,
  }));
  $("curves").hidden = !traces.length;
  if (traces.length) plot("curves", traces, { xaxis: { title: { text: "epoch" } }, yaxis: { title: { text: $("curve").selectedOptions[0].text } } });
  $("curves-about").textContent = traces.length
    ? `${own.length} of ${trained.length} trainings, in the colours of the filter${state.selected === null ? "" : "; the selected one is thick"}.`
    : "No training among the points that are shown.";
}

// ---- the table

const COLUMNS = [
  { name: "trial", of: (view) => view.point.label },
  ...(data.runs.length > 1 ? [{ name: "run", of: (view) => data.runs[view.point.run].name }] : []),
  { name: "front", of: (view) => (view.onFront ? 1 : 0), text: (view) => (view.onFront ? "on it" : "") },
  { name: "test score", of: (view) => view.values.test_score, text: (view) => withError(view.values.test_score, view.testError) },
  { name: "validation score", of: (view) => view.values.validation_score, text: (view) => view.values.validation_score.toFixed(4) },
  ...data.costs.map((cost) => ({ name: cost.label, of: (view) => view.values[cost.name] })),
  { name: "seeds", of: (view) => view.trials.length },
  { name: "seconds", of: (view) => view.seconds },
  { name: "model", of: (view) => view.point.model },
];

function compareBy(column) {
  return (a, b) => {
    const [first, second] = [column.of(a), column.of(b)];
    return typeof first === "string" ? first.localeCompare(second, undefined, { numeric: true }) : first - second;
  };
}

function drawTable() {
  const sorted = [...views];
  if (state.sort) sorted.sort((a, b) => state.sort.sign * compareBy(COLUMNS[state.sort.column])(a, b));
  [...$("points").tHead.rows[0].cells].forEach((cell, i) => {
    const sign = state.sort?.column === i ? state.sort.sign : 0;
    cell.setAttribute("aria-sort", ["descending", "none", "ascending"][sign + 1]);
    cell.firstChild.textContent = COLUMNS[i].name + ["▾", "", "▴"][sign + 1].replace(/^/, sign ? " " : "");
  });
  $("points").tBodies[0].replaceChildren(...sorted.map((view) => {
    const row = element("tr", null, { "data-index": view.index });
    row.classList.toggle("chosen", view.index === state.selected);
    COLUMNS.forEach((column, i) => {
      const text = column.text ? column.text(view) : typeof column.of(view) === "number" ? shown(column.of(view)) : column.of(view);
      const cell = element("td", i ? text : null);
      if (!i) cell.append(element("button", text, { type: "button" }));
      row.append(cell);
    });
    row.addEventListener("click", () => select(view.index));
    return row;
  }));
}

// ---- controls

function draw() {
  views = viewsOf(data, state, known);
  drawFront();
  drawTable();
  drawCurves();
}

function filter(kind, title, values, text = String) {
  const box = element("fieldset"), list = element("div");
  box.dataset.kind = kind;
  box.append(element("legend", title));
  if (values.length > 3) {
    for (const [name, hide] of [["all", false], ["none", true]]) {
      const button = element("button", name, { type: "button", "aria-label": `${title}: ${name}` });
      button.addEventListener("click", () => {
        state.hidden[kind] = new Set(hide ? values : []);
        for (const input of list.querySelectorAll("input")) input.checked = !hide;
        draw();
      });
      box.append(button);
    }
  }
  for (const value of values) {
    const label = element("label"), input = element("input", null, { type: "checkbox", checked: "" });
    input.addEventListener("change", () => { state.hidden[kind][input.checked ? "delete" : "add"](value); draw(); });
    label.append(input, " ");
    if (kind === "series") {
      const mark = element("span", `${symbol(value)[1]} `, { "aria-hidden": "true", "data-series": value });
      mark.style.color = colour(value);
      label.append(mark);
    }
    label.append(text(value));
    list.append(label);
  }
  box.append(list);
  $("filters").append(box);
}

function distinct(of) { return [...new Set(data.points.flatMap(of))]; }

function begin() {
  const failed = data.runs.reduce((sum, run) => sum + run.failed.length, 0), invalid = data.runs.reduce((sum, run) => sum + run.invalid.length, 0);
  const done = data.runs.reduce((sum, run) => sum + run.done, 0);
  $("counts").textContent = `${data.runs.length > 1 ? `${data.runs.length} runs: ` : ""}${done} trials done, ${failed} failed, ${invalid} invalid.`;
  for (const cost of data.costs) $("x").append(element("option", cost.label, { value: cost.name }));
  for (const [name, { label }] of Object.entries(known)) $("y").append(element("option", label, { value: name }));
  [$("x").value, $("y").value] = [state.x, state.y];
  if (data.runs.length > 1) filter("run", "Run", data.runs.map((_, i) => i), (i) => `${data.runs[i].name} (${DASHES[i % 4]}, ${i % 2 ? "open" : "filled"})`);
  filter("series", "Method", distinct((point) => [point.series]));
  filter("seed", "Seed", distinct((point) => point.trials.map((trial) => trial.seed)).sort((a, b) => a - b));
  filter("model", "Model", distinct((point) => [point.model]));
  COLUMNS.forEach((column, i) => {
    const head = element("th", null, { scope: "col" }), button = element("button", column.name, { type: "button" });
    button.addEventListener("click", () => { state.sort = { column: i, sign: state.sort?.column === i ? -state.sort.sign : 1 }; drawTable(); });
    head.append(button);
    $("points").tHead.rows[0].append(head);
  });
  data.runs.forEach(describeRun);
  draw();
  listen();
}

function describeRun(run) {
  const box = $("runs"), block = (title, text) => {
    const details = element("details");
    details.append(element("summary", title), element("pre", text, { tabindex: "0" }));
    box.append(details);
  };
  box.append(element("h3", run.name), element("p", `Begun ${run.created}.`, { class: "note" }));
  block("config", run.config);
  run.environments.forEach((text, i) => block(`environment${run.environments.length > 1 ? ` ${i + 1}` : ""}`, text));
  if (run.failed.length) block(`failed trials (${run.failed.length})`, run.failed.map(([label, seed, reason]) => `${label} (seed ${seed}): ${reason}`).join("\n"));
  if (run.invalid.length) block(`invalid records, left out (${run.invalid.length})`, run.invalid.map(([file, reason]) => `${file}: ${reason}`).join("\n"));
}

function listen() {
  for (const id of ["x", "y"]) $(id).addEventListener("change", () => { state[id] = $(id).value; draw(); });
  for (const id of ["log", "close", "bands"]) $(id).addEventListener("change", drawFront);
  $("curve").addEventListener("change", drawCurves);
  $("table").addEventListener("change", drawHeat);
  $("operand").addEventListener("change", drawShares);
  $("front").on("plotly_click", (event) => { const index = event.points[0].customdata; if (index !== undefined) select(index); });
  $("front").addEventListener("keydown", walk);
  $("theme").addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; recolour(); });
  systemDark.addEventListener("change", recolour);
  recolour();
  for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());
}

function recolour() {
  $("theme").textContent = isDark() ? "Light" : "Dark";
  for (const mark of document.querySelectorAll("[data-series]")) mark.style.color = colour(mark.dataset.series);
  drawFront();
  drawCurves();
  drawDetails();
}

// From point to point by the keyboard: in the order of costs, float last.
function walk(event) {
  const order = [...views].sort((a, b) => (a.point.flow === "float") - (b.point.flow === "float") || a.x - b.x || a.y - b.y);
  const at = order.findIndex((view) => view.index === state.selected), last = order.length - 1;
  const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at < 0 ? last : at - 1, ArrowUp: at < 0 ? last : at - 1, Home: 0, End: last }[event.key];
  if (to === undefined || last < 0) return;
  event.preventDefault();
  const view = order[Math.min(Math.max(to, 0), last)];
  select(view.index);
  const traces = $("front").data, curve = traces.findIndex((trace) => trace.meta === "points" && trace.customdata.includes(view.index));
  Plotly.Fx.hover("front", [{ curveNumber: curve, pointNumber: traces[curve].customdata.indexOf(view.index) }], view.point.flow === "float" ? "x2y" : "xy");
}

begin();
