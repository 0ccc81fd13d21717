"use strict";
// What is shown of the records: no drawing here. Numbers are means over the trials whose seeds are chosen.

function mean(values) { return values.reduce((sum, value) => sum + value, 0) / values.length; }

// Standard error of a mean over seeds; null for one seed.
function standardError(values) {
  if (values.length < 2) return null;
  const middle = mean(values);
  const squares = values.reduce((sum, value) => sum + (value - middle) ** 2, 0);
  return Math.sqrt(squares / (values.length - 1) / values.length);
}

// What can be on an axis: costs, and scores and losses, each with how a trial has it.
function quantities(data) {
  const split = (name, part) => (trial) => trial[name][part];
  const scores = [...new Set(data.points.map((point) => point.score_name))].join(", ");
  return {
    ...Object.fromEntries(data.costs.map((cost) => [cost.name, { label: cost.label, of: (trial) => trial.costs[cost.name] }])),
    test_score: { label: `test score (${scores})`, of: split("test", "score") },
    validation_score: { label: `validation score (${scores})`, of: split("validation", "score") },
    test_loss: { label: "test loss", of: split("test", "loss") },
    validation_loss: { label: "validation loss", of: split("validation", "loss") },
  };
}

// The points that pass the filters, with their trials that do, and what is drawn of them.
function viewsOf(data, state, known) {
  const views = [];
  data.points.forEach((point, index) => {
    const hidden = state.hidden;
    if (hidden.run.has(point.run) || hidden.model.has(point.model) || hidden.series.has(point.series)) return;
    const trials = point.trials.filter((trial) => !hidden.seed.has(trial.seed));
    if (!trials.length) return;
    const values = (name) => trials.map(known[name].of);
    views.push({
      point, index, trials,
      x: mean(values(state.x)), y: mean(values(state.y)), error: standardError(values(state.y)),
      validation: mean(values("validation_score")),
      values: Object.fromEntries(Object.keys(known).map((name) => [name, mean(values(name))])),
      testError: standardError(values("test_score")),
      seconds: mean(trials.map((trial) => trial.seconds)),
      onFront: false,
    });
  });
  markFronts(views);
  return views;
}

// Lower cost, better validation score, within one run and one model and data set; the float model is on no front.
function markFronts(views) {
  const groups = new Map();
  for (const view of views.filter((view) => view.point.flow !== "float")) {
    const key = JSON.stringify([view.point.run, view.point.model, view.point.score_name]);
    groups.set(key, [...(groups.get(key) ?? []), view]);
  }
  for (const group of groups.values()) {
    const score = (view) => (view.point.higher_is_better ? view.validation : -view.validation);
    let best = -Infinity;
    for (const view of [...group].sort((a, b) => a.x - b.x || score(b) - score(a))) {
      view.onFront = score(view) > best;
      best = Math.max(best, score(view));
    }
  }
}

// A number as people read it: five digits, no exponent where none is needed.
function shown(value) {
  if (value === null || value === undefined) return "-";
  const rounded = Number(value.toPrecision(5));
  return Math.abs(rounded) >= 1e7 || (rounded !== 0 && Math.abs(rounded) < 1e-4) ? rounded.toExponential(3) : String(rounded);
}

function withError(value, error) {
  return value.toFixed(4) + (error === null ? " (1 seed)" : ` ± ${error.toFixed(4)}`);
}

// Plotly reads tags in texts; names come from records, and are never tags.
function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function width(value) { return value >= 32 ? "float" : String(Number(value.toFixed(2))); }

// Names of layers without an ending that all of them have, such as "/kernel".
function shortNames(layers) {
  const ending = layers[0]?.match(/\/[^/]*$/)?.[0];
  return ending && layers.every((layer) => layer.endsWith(ending)) ? layers.map((layer) => layer.slice(0, -ending.length)) : layers;
}

// The bits of every layer, in lines; equal neighbours share one.
function allocationLines(trial, most) {
  const lines = [];
  shortNames(trial.layers).forEach((layer, i) => {
    const [weight, input] = trial.bits[i].map(width);
    const bits = `W${weight} A${input}`;
    const last = lines.at(-1);
    if (last && last.bits === bits) last.to = layer;
    else lines.push({ from: layer, to: layer, bits });
  });
  const text = lines.map(({ from, to, bits }) => `${from === to ? from : `${from} … ${to}`}: ${bits}`);
  return text.length <= most ? text : [...text.slice(0, most - 1), `and ${text.length - most + 1} more`];
}

function hoverText(view, data, state, known) {
  const { point, trials } = view;
  const lines = [point.label, `${known[state.y].label} ${withError(view.y, view.error)}`, `${known[state.x].label} ${shown(view.x)}`];
  const seeds = trials.map((trial) => trial.seed).join(", ");
  if (data.runs.length > 1) lines.push(`run ${data.runs[point.run].name}`);
  lines.push(`seed ${seeds}${view.onFront ? ", on the front" : ""}`);
  const same = trials.every((trial) => JSON.stringify(trial.bits) === JSON.stringify(trials[0].bits));
  if (!same) lines.push(`bits of seed ${trials[0].seed} (others differ):`);
  return [`<b>${plain(lines[0])}</b>`, ...[...lines.slice(1), ...allocationLines(trials[0], 16)].map(plain)].join("<br>");
}
