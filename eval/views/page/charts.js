/* Vega-Lite specs, and drawing one with its title, its summary for screen readers and its table of values. */
const MARKS = {
  "Q": ["#0072B2", "#5AB4F0", "circle", [1, 0]],
  "Q+IF": ["#E69F00", "#F0B13C", "square", [1, 0]],
  "Q+IF+CoT": ["#009E73", "#2FC998", "triangle-up", [1, 0]],
  "Q+Match Stats": ["#A50026", "#FF7F8F", "diamond", [6, 3]],
  "Q+Inverse": ["#555555", "#B5B5B5", "triangle-down", [2, 2]],
};
const SWATCHES = {
  "circle": "M17 3a4 4 0 1 0 .01 0z", "square": "M13 3h8v8h-8z", "triangle-up": "M17 2l5 9h-10z",
  "diamond": "M17 1.5l5 5.5l-5 5.5l-5 -5.5z", "triangle-down": "M17 12l5 -9h-10z",
};
const PRONOUNS = [["p(female)", "#9970AB"], ["p(neutral)", "#A9ADB5"], ["p(male)", "#4D9A5B"]];
let printing = false;
const darkMode = matchMedia("(prefers-color-scheme: dark)");
const dark = () => darkMode.matches && !printing;

function theme() {
  const ink = dark() ? "#e8eaee" : "#1b1d21", quiet = dark() ? "#b0b5be" : "#55585f", line = dark() ? "#33373f" : "#e3e5ea";
  const text = { labelColor: quiet, titleColor: quiet, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" };
  return {
    background: "transparent", font: "system-ui, -apple-system, 'Segoe UI', sans-serif", aria: false,
    view: { stroke: null },
    axis: { ...text, gridColor: line, domainColor: quiet, tickColor: quiet },
    legend: { ...text, orient: "top", symbolSize: 120, direction: "horizontal" },
    header: { labelColor: ink, labelFontSize: 12, titleColor: quiet, labelFontWeight: 600 },
    title: { color: ink, subtitleColor: quiet, fontSize: 14, subtitleFontSize: 12, anchor: "start", frame: "bounds", offset: 10, subtitlePadding: 4 },
  };
}

function wrap(text, width) {
  const most = Math.max(24, Math.floor(width / 6.3)), lines = [""];
  for (const word of text.split(" ")) {
    const last = lines.length - 1;
    if (lines[last] && lines[last].length + word.length + 1 > most) lines.push(word);
    else lines[last] += (lines[last] ? " " : "") + word;
  }
  return lines;
}

/* A title in bold leaves room for the button at its right. */
const heading = (text, width) => wrap(text, (width - 50) * 0.8);

const scaleOf = (k) => ({ domain: PAGE.conditions, range: PAGE.conditions.map((c) => (MARKS[c] || MARKS["Q+Inverse"])[k]) });

/* What a mark tells; fields that are empty throughout are left out. */
const TOLD = ["condition", "value", "95% interval", "items", "clusters", "method", "caution", "note", "run", "size", "step", "results", "weights", "commit"];
function tellable(row) {
  const c = row.checkpoint;
  return {
    "value": told(row.value), "95% interval": interval(row) || "none", "items": row.items, "clusters": row.clusters, "method": row.method,
    "caution": row.caution, "note": row.note, "run": row.curve.name, "size": row.curve.size, "step": `${row.curve.step_name} ${c.step}`,
    "results": c.results, "weights": c.weights, "commit": c.commit, "condition": row.condition,
  };
}
function tooltip(values) {
  return TOLD.filter((f) => values.some((v) => v[f] !== "")).map((field) => ({ field, type: "nominal" }));
}

/* vega-tooltip leaves a tall one partly outside the window: it is put beside the pointer, inside. */
document.addEventListener("mousemove", (event) => requestAnimationFrame(() => {
  const tip = document.getElementById("vg-tooltip-element");
  if (!tip || !tip.classList.contains("visible")) return;
  const { width, height } = tip.getBoundingClientRect(), room = 4, away = 14;
  const right = event.clientX + away;
  const left = right + width + room <= innerWidth ? right : event.clientX - away - width;
  tip.style.left = `${Math.max(room, Math.min(left, innerWidth - width - room))}px`;
  tip.style.top = `${Math.max(room, Math.min(event.clientY - height / 2, innerHeight - height - room))}px`;
}));

/* rows -> what the line panel's layers draw. x: 'step' or 'params'; where all have one x, conditions stand side by side. */
function points(rows, x) {
  const at = (r) => (x === "step" ? r.checkpoint.step : r.curve.params);
  const count = new Map();
  const joined = (r) => (x === "step" ? r.curve.name : `${r.curve.family}|${PAGE.experiments[r.experiment].asked[r.place]}`);
  const series = (r) => `${joined(r)}|${r.condition}|${r.category}`;
  for (const r of rows) if (r.value !== null) count.set(series(r), (count.get(series(r)) || 0) + 1);
  return rows.map((r) => ({
    ...tellable(r), x: at(r), y: r.value, low: r.low, high: r.high, category: r.category, series: series(r),
    alone: (count.get(series(r)) || 0) < 2, hollow: r.caution !== "",
  })).sort((a, b) => a.x - b.x);
}

/* The layers of a panel; `beside`: conditions on the x axis. reference: a dashed line at that value. */
function layers(values, { x, beside, xTitle, reference = 0, domain }) {
  const sizes = unique(values.map((v) => v.x));
  const xs = beside
    ? { field: "condition", type: "nominal", sort: PAGE.conditions, title: null, axis: { labelAngle: -30, labelLimit: 110 } }
    : x === "step"
      ? { field: "x", type: "quantitative", title: xTitle, scale: { zero: false, nice: false, padding: 8 }, axis: { grid: false, tickCount: 5, format: "d", tickMinStep: 1 } }
      : { field: "x", type: "quantitative", title: xTitle, scale: { type: "log", nice: false, padding: 12 },
          axis: { grid: false, values: sizes, labelExpr: "replace(format(datum.value, '.3~s'), 'G', 'B')", labelOverlap: "greedy" } };
  const colour = { field: "condition", type: "nominal", scale: scaleOf(dark() ? 1 : 0), legend: null };
  const scale = domain ? { domain } : { padding: 7 };
  const detail = { field: "series" };
  const y = { field: "y", type: "quantitative", title: null, axis: { tickCount: 5, minExtent: 46 }, scale };
  const shape = { field: "condition", type: "nominal", scale: scaleOf(2), legend: null };
  const drawn = "isValid(datum.y)", banded = "isValid(datum.low) && isValid(datum.high)";
  const hint = tooltip(values), anyBand = values.some((v) => v.low !== null && !v.alone), anyBar = values.some((v) => v.low !== null && (beside || v.alone));
  return [
    { transform: [{ filter: "datum.x !== null" }, { aggregate: [{ op: "count", as: "n" }] }, { calculate: String(reference), as: "reference" }],
      mark: { type: "rule", strokeDash: [5, 4], color: dark() ? "#b0b5be" : "#55585f" }, encoding: { y: { field: "reference", type: "quantitative", title: null, scale } } },
    ...(beside || !anyBand ? [] : [
      { transform: [{ filter: `${banded} && !datum.alone` }], mark: { type: "area", opacity: unique(values.map((v) => `${v.series}`)).length > 6 * unique(values.map((v) => v.category)).length ? 0.08 : 0.16 }, encoding: { x: xs, y: { ...y, field: "low" }, y2: { field: "high" }, color: colour, detail } }]),
    ...(beside ? [] : [
      { mark: { type: "line", strokeWidth: 2 }, encoding: { x: xs, y, color: colour, detail, strokeDash: { field: "condition", type: "nominal", scale: scaleOf(3), legend: null } } }]),
    ...(anyBar ? [{ transform: [{ filter: beside ? banded : `${banded} && datum.alone` }], mark: { type: "rule", strokeWidth: 2.5, opacity: 0.6 },
      encoding: { x: xs, y: { ...y, field: "low" }, y2: { field: "high" }, color: colour } }] : []),
    { transform: [{ filter: drawn }], mark: { type: "point", size: 62, opacity: 1, strokeWidth: 1.6 },
      encoding: { x: xs, y, shape, stroke: colour, fill: { condition: { test: "datum.hollow", value: dark() ? "#16181c" : "#ffffff" }, ...colour } } },
    { transform: [{ filter: drawn }], mark: { type: "point", shape: "circle", filled: true, size: 420, opacity: 0 }, encoding: { x: xs, y, tooltip: hint } },
  ];
}

function linePanel(values, options) {
  return (width) => ({
    title: { text: heading(options.title, width), subtitle: options.subtitle.flatMap((line) => wrap(line, width)) },
    data: { values }, width, height: options.height || 300, autosize: { type: "fit", contains: "padding" }, layer: layers(values, options),
  });
}

function facetPanel(values, options) {
  return (width) => {
    const axis = 58, gap = 18, columns = Math.max(1, Math.min(options.facets.length, Math.floor((width - axis + gap) / (190 + gap))));
    return {
      title: { text: heading(options.title, width), subtitle: options.subtitle.flatMap((line) => wrap(line, width)) },
      data: { values }, columns, spacing: gap,
      facet: { field: "category", type: "nominal", title: null, sort: options.facets, header: { labelExpr: "replace(replace(datum.value, /_x_/, ' × '), /_/g, ' ')" } },
      spec: { width: Math.floor((width - axis - gap * (columns - 1)) / columns) - 6, height: 120, layer: layers(values, options) },
      resolve: { axis: { x: "independent" } },
    };
  };
}

function figureFor(container, id) {
  let made = byId(id);
  if (made === null) {
    made = element("figure", { class: "chart", id }, element("div", { class: "drawing" }), element("p", { class: "missing", hidden: "" }),
      element("details", { class: "values" }, element("summary", {}), element("div")));
    container.append(made);
  }
  return made;
}

/* chart: {id, spec: width => Vega-Lite, name, summary, columns, rows, missing, empty: nothing can be drawn} */
async function draw(container, chart) {
  const made = figureFor(container, chart.id), [drawing, missing, values] = made.children;
  missing.hidden = !chart.missing;
  missing.textContent = chart.missing || "";
  values.firstChild.textContent = `Values: ${chart.name}`;
  values.lastChild.replaceChildren(scrolling(table(chart.columns, chart.rows, chart.name), `Values: ${chart.name}`, true));
  const width = printing ? (container.classList.contains("grid") ? 335 : 690) : Math.floor(drawing.clientWidth || container.clientWidth);
  if (made.view) made.view.finalize();
  made.view = null;
  if (chart.empty) {
    drawing.replaceChildren(element("p", { class: "quiet" }, `${chart.name}: there is nothing to draw for these choices.`));
    return;
  }
  drawing.replaceChildren(element("div"));
  made.view = await vegaEmbed(drawing.firstChild, { $schema: "https://vega.github.io/schema/vega-lite/v6.json", ...chart.spec(width) }, {
    renderer: "svg", config: theme(), downloadFileName: chart.id, tooltip: { theme: dark() ? "dark" : "light" },
    actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
    i18n: { SVG_ACTION: "Save as SVG", PNG_ACTION: "Save as PNG", CLICK_TO_VIEW_ACTIONS: `Save this chart: ${chart.name}` },
  });
  const svg = drawing.querySelector("svg.marks");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", chart.summary);
  svg.removeAttribute("aria-roledescription");
  for (const outer of drawing.querySelectorAll("[role='graphics-document']")) outer.removeAttribute("role");
  const save = drawing.querySelector("summary");
  if (save) save.setAttribute("aria-label", `Save this chart: ${chart.name}`);
}

/* One drawing after another; a newer choice ends an older one's. data-drawn on the root tells whether all is drawn. */
const rounds = new Map();
let underWay = 0;
async function drawAll(container, charts) {
  const round = (rounds.get(container) || 0) + 1;
  rounds.set(container, round);
  underWay += 1;
  document.documentElement.dataset.drawn = "no";
  try {
    const wanted = new Set(charts.map((c) => c.id));
    for (const old of [...container.querySelectorAll("figure.chart")]) if (!wanted.has(old.id)) old.remove();
    for (const chart of charts) figureFor(container, chart.id);
    for (const chart of charts) {
      if (rounds.get(container) !== round) return;
      await draw(container, chart);
    }
  } finally {
    underWay -= 1;
    if (!underWay) document.documentElement.dataset.drawn = "yes";
  }
}
