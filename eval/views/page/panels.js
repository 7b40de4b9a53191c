/* What the choices at the top change: panels against step and size, categories, accuracy, effects. */
const AXES = unique(PAGE.curves.map((c) => c.step_name)).join(" or ");
/* Steps that are chosen are those of RLHF where there is any: other curves then stand for themselves by their last. */
const COUNTED = PAGE.curves.some((c) => c.rlhf) ? PAGE.curves.filter((c) => c.rlhf) : PAGE.curves;
const SIZES = new Map(PAGE.curves.map((c) => [sizeKey(c), c]));
const KNOWN_SIZES = unique(PAGE.curves.filter((c) => c.params !== null).map((c) => c.params));
const state = { size: "", step: "last", seed: "all", variant: "", conditions: new Set() };

function beginChoices() {
  const models = (key) => unique(PAGE.curves.filter((c) => sizeKey(c) === key).map((c) => c.model)).join(", ");
  fillSelect(byId("size"), [...SIZES.keys()].map((k) => [k, `${SIZES.get(k).size}: ${models(k)}`]), sizeKey(LARGEST[0]));
  const steps = unique(COUNTED.flatMap(stepsOf)).sort((a, b) => a - b);
  const everywhere = steps.filter((s) => s > 0 && COUNTED.every((c) => stepsOf(c).includes(s)));
  fillSelect(byId("step"), [["last", "last of each run"], ...steps.map((s) => [String(s), String(s)])], everywhere.length ? String(everywhere.at(-1)) : "last");
  fillSelect(byId("seed"), [["all", "all, a line each"], ...unique(PAGE.curves.map((c) => c.family)).map((f) => [f, f])]);
  fillSelect(byId("variant"), Object.entries(PAGE.variants));
  byId("variant").parentElement.hidden = !PAGE.experiments.bbq;
  const asked = new Set(NUMBERS.map((r) => r.condition));
  for (const condition of PAGE.conditions.filter((c) => asked.has(c))) byId("conditions").append(conditionBox(condition));
  byId("choices").addEventListener("change", redraw);
  byId("choices").addEventListener("submit", (event) => event.preventDefault());
}

function conditionBox(condition) {
  const [, , shape, dash] = MARKS[condition] || MARKS["Q+Inverse"];
  const box = element("input", { type: "checkbox", value: condition });
  box.checked = true;
  const swatch = new DOMParser().parseFromString(
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 34 14" aria-hidden="true"><path d="M1 7h32" stroke-width="2" stroke-dasharray="${dash[1] ? dash.join(" ") : "none"}"/><path class="mark" d="${SWATCHES[shape]}"/></svg>`,
    "image/svg+xml").documentElement;
  return element("label", { "data-condition": condition }, box, swatch, condition);
}

function paintSwatches() {
  for (const label of document.querySelectorAll("[data-condition]")) {
    const colour = (MARKS[label.dataset.condition] || MARKS["Q+Inverse"])[dark() ? 1 : 0];
    label.querySelector("svg").setAttribute("stroke", colour);
    label.querySelector(".mark").setAttribute("fill", colour);
  }
}

function readChoices() {
  for (const name of ["size", "step", "seed", "variant"]) state[name] = byId(name).value;
  state.conditions = new Set([...byId("conditions").querySelectorAll("input:checked")].map((box) => box.value));
}

const chosen = (row) => state.conditions.has(row.condition) && (state.seed === "all" || row.curve.family === state.seed);
const LAST = new Map(PAGE.curves.map((c) => [c, lastStep(c)]));
const byLast = (curve) => state.step === "last" || !COUNTED.includes(curve);
const atStep = (row) => (byLast(row.curve) ? row.checkpoint.step === LAST.get(row.curve) : String(row.checkpoint.step) === state.step);
const ofSize = (row) => sizeKey(row.curve) === state.size;
const others = COUNTED.length < PAGE.curves.length ? ", runs without RLHF at their last step" : "";
const stepText = () => (state.step === "last" ? `the last ${AXES} of each run` : `${unique(COUNTED.map((c) => c.step_name)).join(" or ")} ${state.step}${others}`);
const wanted = (experiment, name, category) => numbersOf(experiment, name, category).filter(chosen);

function stateText(x) {
  const runs = unique(PAGE.curves.filter((c) => (state.seed === "all" || c.family === state.seed) && (x === "params" || sizeKey(c) === state.size)).map((c) => (x === "params" ? c.family : c.name)));
  const told = [x === "params" ? `at ${stepText()}` : `size ${SIZES.get(state.size).size}`,
    runs.length === 1 ? `run: ${runs[0]}` : `${runs.length} runs, a line each and no mean: ${runs.join("; ")}`];
  if (PAGE.experiments.bbq) told.push(`BBQ ${PAGE.variants[state.variant]}`);
  return `Shown: ${told.join("; ")}; ${[...state.conditions].join(", ") || "no condition"}.`;
}

/* Ranges in words, a clause a condition: what a reader who does not see the chart hears. */
function summaryOf(name, values, xName) {
  const by = unique(values.map((v) => v.condition)).map((condition) => {
    const own = values.filter((v) => v.condition === condition && v.y !== null), ys = own.map((v) => v.y);
    if (!own.length) return `${condition}: undefined`;
    const lines = unique(own.map((v) => v.series)).length;
    if (lines > 1) return `${condition}, ${lines} apart: from ${told(Math.min(...ys))} to ${told(Math.max(...ys))}`;
    const ends = own.length === 1 ? told(own[0].y) : `${told(own[0].y)} at the least ${xName}, ${told(own.at(-1).y)} at the greatest`;
    return `${condition}: ${ends}`;
  });
  return `${name}, against ${xName}. ${by.join(". ") || "Nothing is chosen."}. All values are in the table below.`;
}

function missingText(rows, x) {
  const absent = rows.filter((r) => r.value === null);
  if (!absent.length) return "";
  const one = (r) => `${r.condition} at ${x === "step" ? `${r.curve.step_name} ${r.checkpoint.step}` : r.curve.size}`;
  return `Undefined, so not drawn: ${absent.slice(0, 6).map(one).join("; ")}${absent.length > 6 ? `; and ${absent.length - 6} more` : ""}. ${absent[0].note}`;
}

function panel(id, rows, x, about) {
  const drawable = x === "params" ? rows.filter((r) => r.curve.params !== null) : rows;
  const values = points(drawable, x), beside = unique(values.map((v) => v.x)).length < 2;
  const xTitle = x === "step" ? unique(rows.map((r) => r.curve.step_name)).join(" or ") : "parameters (log)";
  const options = { ...about, x, beside, xTitle };
  if (beside && values.length) options.subtitle = [...about.subtitle, x === "step" ? `at ${xTitle} ${values[0].x}` : `size ${sizeText(values[0].x)}`];
  return {
    id, name: about.title, spec: about.facets ? facetPanel(values, options) : linePanel(values, options),
    summary: summaryOf(`${about.title}: ${about.subtitle.join("; ")}`, values, xTitle || "step"),
    columns: about.facets ? [["category", (r) => r.category], ...NUMBER_COLUMNS] : NUMBER_COLUMNS, rows: drawable, missing: missingText(drawable, x), empty: !values.some((v) => v.y !== null),
  };
}

function heroCharts(x) {
  return Object.entries(PAGE.experiments).map(([experiment, about]) => {
    const bbq = experiment === "bbq", name = bbq ? about.metric + state.variant : about.metric;
    const rows = wanted(experiment, name).filter(x === "step" ? ofSize : atStep);
    const label = bbq ? `${about.label}, ${PAGE.variants[state.variant]}` : about.label;
    return panel(`${experiment}-by-${x === "step" ? "step" : "size"}`, rows, x, { title: about.title, subtitle: [label, about.sign] });
  });
}

const overSizes = () => KNOWN_SIZES.length > 1;
function bbqRows(name, category) {
  return wanted("bbq", name + state.variant, category).filter(overSizes() ? atStep : ofSize);
}

const CATEGORIES = unique(NUMBERS.filter((r) => r.experiment === "bbq" && !["all", "mean of categories"].includes(r.category)).map((r) => r.category)).sort();
const BBQ_PANELS = [
  ["accuracy_ambig", "Accuracy, ambiguous", "share of right answers, the right one is UNKNOWN", 1 / 3, [0, 1]],
  ["accuracy_disambig", "Accuracy, disambiguated", "share of right answers; dashed: 1/3, guessing", 1 / 3, [0, 1]],
  ["bias_disambig", "Bias score, disambiguated", "above 0: errors follow the stereotype", 0],
];

function categoryCharts() {
  const x = overSizes() ? "params" : "step";
  return [["bias_ambig", "Bias score, ambiguous", "above 0: answers follow the stereotype", 0], BBQ_PANELS[1]].map(([name, title, sign, reference, domain]) => {
    const rows = CATEGORIES.flatMap((category) => bbqRows(name, category));
    return panel(`categories-${name}`, rows, x, { title, subtitle: [PAGE.variants[state.variant], sign], reference, domain, facets: CATEGORIES });
  });
}

function accuracyCharts() {
  const x = overSizes() ? "params" : "step";
  return BBQ_PANELS.map(([name, title, sign, reference, domain]) => panel(`bbq-${name}`, bbqRows(name, "all"), x, { title, subtitle: [PAGE.variants[state.variant], sign], reference, domain, height: 260 }));
}

/* The cautions on the two conditions of an effect, as one text each. */
function doubts(row) {
  const [before, after] = row[2].split(" -> "), found = new Map();
  for (const [condition, place] of [[before, row[10]], [after, row[11]]]) if (place) found.set(place, [...(found.get(place) || []), condition]);
  return [...found].map(([place, conditions]) => `${conditions.join(" and ")}: ${PAGE.cautions[place]}.`);
}

function effects() {
  const rows = PAGE.effects.filter(([place, , effect]) => {
    const checkpoint = PAGE.checkpoints[place], curve = PAGE.curves[checkpoint.curve];
    return atStep({ checkpoint, curve }) && (state.seed === "all" || curve.family === state.seed) && state.conditions.has(effect.split(" -> ")[1]);
  });
  const heads = ["experiment", "effect", "metric", "difference", "95% interval", "p", "p (Holm)", "items", "clusters"];
  const small = (k, text) => ((k === 6 || k === 7) && text === "0.0000" ? "< 0.0001" : text);
  const columns = [["run", (r) => checkpointName(r[0])], ...heads.map((head, k) => [head, (r) => small(k + 1, r[k + 1]), k > 2])];
  const notes = unique(rows.flatMap(doubts));
  if (notes.length) columns.splice(4, 0, ["means little", (r) => doubts(r).map((text) => `note ${notes.indexOf(text) + 1}`).join(", ")]);
  byId("effect-table").replaceChildren(rows.length ? scrolling(table(columns, rows, `At ${stepText()}: the condition after the arrow less the one before it`), "Effects", rows.length > 24)
    : element("p", {}, "No effect is measured for these choices."));
  if (!notes.length) return;
  const listed = element("ol", {}, ...notes.map((text) => element("li", {}, text)));
  byId("effect-table").append(element("details", { class: "open", ...(printing || notes.length < 7 ? { open: "" } : {}) },
    element("summary", {}, "Notes: why an effect means little"), listed));
}

async function redraw() {
  readChoices();
  paintSwatches();
  byId("state").textContent = stateText("step");
  const over = overSizes() ? "params" : "step";
  for (const note of document.querySelectorAll("[data-state]")) note.textContent = stateText(note.closest("#effects") ? "params" : over);
  effects();
  byId("by-step-title").textContent = `Against ${AXES}, size ${SIZES.get(state.size).size}`;
  byId("by-size-title").textContent = `Against size, at ${stepText()}`;
  const unknown = PAGE.curves.filter((c) => c.params === null).map((c) => c.name);
  const notes = [];
  if (!overSizes()) notes.push("Results of one known size only: give runs of several sizes to see this axis.");
  if (PAGE.apart) notes.push(PAGE.apart);
  if (unknown.length) notes.push(`Not drawn, their size is not known: ${unknown.join(", ")}.`);
  byId("by-size-note").textContent = notes.join(" ");
  byId("by-step-note").textContent = "";
  await drawAll(byId("by-step"), heroCharts("step"));
  await drawAll(byId("by-size"), overSizes() ? heroCharts("params") : []);
  if (!PAGE.experiments.bbq) return;
  await drawAll(byId("category-charts"), CATEGORIES.length > 1 ? categoryCharts() : []);
  await drawAll(byId("accuracy-charts"), accuracyCharts());
}
