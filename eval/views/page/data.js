"use strict";
/* The page's data, decoded once; small helpers for numbers, tables and elements. */
const PAGE = JSON.parse(document.getElementById("data").textContent);

const NUMBERS = (() => {
  const m = PAGE.metrics, scaled = (v) => (v === null ? null : v / PAGE.unit);
  return m.checkpoint.map((place, i) => {
    const [experiment, condition, name, category] = m.keys[m.key[i]];
    const [items, clusters, method, note] = m.hows[m.how[i]];
    const checkpoint = PAGE.checkpoints[place], curve = PAGE.curves[checkpoint.curve];
    return {
      place, checkpoint, curve, experiment, condition, name, category, items, clusters, method, note,
      value: scaled(m.value[i]), low: scaled(m.low[i]), high: scaled(m.high[i]), caution: PAGE.cautions[m.caution[i]] || "",
    };
  });
})();

const INDEX = new Map();
for (const row of NUMBERS) {
  const key = `${row.experiment}|${row.name}|${row.category}`;
  if (!INDEX.has(key)) INDEX.set(key, []);
  INDEX.get(key).push(row);
}
const numbersOf = (experiment, name, category = "all") => INDEX.get(`${experiment}|${name}|${category}`) || [];

const unique = (values) => [...new Set(values)];
const byId = (id) => document.getElementById(id);
const told = (v) => (v === null || v === undefined ? "undefined" : v.toFixed(4));
const interval = (row) => (row.low === null || row.high === null ? "" : `[${told(row.low)}, ${told(row.high)}]`);
const sizeKey = (curve) => (curve.params === null ? `? ${curve.model}` : String(curve.params));
const sizeText = (params) => (params >= 1e9 ? `${+(params / 1e9).toPrecision(3)}B` : params >= 1e6 ? `${+(params / 1e6).toPrecision(3)}M` : params >= 1e3 ? `${+(params / 1e3).toPrecision(3)}k` : String(params));
const checkpointName = (place) => {
  const { curve, step } = PAGE.checkpoints[place], c = PAGE.curves[curve];
  return `${c.name} (${c.size}), ${c.step_name} ${step}`;
};
const stepsOf = (curve) => PAGE.checkpoints.filter((c) => PAGE.curves[c.curve] === curve).map((c) => c.step);
const lastStep = (curve) => Math.max(...stepsOf(curve));

/* What the page opens with: the curves of the largest model with several checkpoints; of the largest, where none has. */
const LARGEST = (() => {
  const several = PAGE.curves.filter((c) => stepsOf(c).length > 1), all = several.length ? several : PAGE.curves;
  const top = Math.max(...all.map((c) => c.params ?? -1));
  return top < 0 ? all.slice(0, 1) : all.filter((c) => c.params === top);
})();
const opening = (places) => places.filter((k) => LARGEST.includes(PAGE.curves[PAGE.checkpoints[k].curve])).at(-1) ?? places.at(-1);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/* columns: [[head, row => text, is a number]] */
function table(columns, rows, caption) {
  const head = element("tr", {}, ...columns.map(([name, , number]) => element("th", { scope: "col", ...(number ? { class: "number" } : {}) }, name)));
  const body = rows.map((row) => element("tr", {}, ...columns.map(([, text, number], k) => {
    const cell = k === 0 ? element("th", { scope: "row" }) : element("td", number ? { class: "number" } : {});
    const said = String(text(row) ?? "");
    if (said.length > 60) cell.className = "wrap";
    cell.append(said);
    return cell;
  })));
  return element("table", {}, element("caption", {}, caption), element("thead", {}, head), element("tbody", {}, ...body));
}

function scrolling(made, label, tall = false) {
  return element("div", { class: tall ? "scroll tall" : "scroll", tabindex: "0", role: "region", "aria-label": label }, made);
}

const VALUE_COLUMNS = [
  ["value", (r) => told(r.value), true],
  ["95% interval", interval, true],
  ["items", (r) => r.items, true],
  ["clusters", (r) => r.clusters, true],
  ["method", (r) => r.method],
  ["note", (r) => [r.caution, r.note].filter(Boolean).join("; ")],
];
const NUMBER_COLUMNS = [
  ["condition", (r) => r.condition],
  ["run", (r) => r.curve.name],
  ["size", (r) => r.curve.size, true],
  ["step", (r) => r.checkpoint.step, true],
  ...VALUE_COLUMNS,
  ["results, weights, commit", (r) => [r.checkpoint.results, r.checkpoint.weights, r.checkpoint.commit].filter(Boolean).join(", ")],
];

function fillSelect(select, options, chosen) {
  select.replaceChildren(...options.map(([value, label]) => element("option", { value }, label)));
  if (chosen !== undefined && options.some(([value]) => value === chosen)) select.value = chosen;
}
