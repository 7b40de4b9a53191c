/* Occupations, profiles, the table of all numbers; and what happens on load, resize, a change of theme, and print. */
const BREAKDOWNS = new Map(PAGE.breakdowns.map((b) => [String(b.checkpoint), b]));
const shares = (v) => v / PAGE.unit;

function beginBreakdown(part, has) {
  const found = PAGE.breakdowns.filter(has).map((b) => b.checkpoint);
  byId(`${part}s`).hidden = !found.length;
  fillSelect(byId(`${part}-checkpoint`), found.map((k) => [String(k), checkpointName(k)]), String(opening(found)));
  return found.length > 0;
}

function beginPronouns() {
  if (!beginBreakdown("pronoun", (b) => Object.keys(b.occupations).length)) return;
  const sets = unique(PAGE.breakdowns.flatMap((b) => Object.keys(b.occupations)));
  fillSelect(byId("pronoun-experiment"), sets.map((s) => [s, PAGE.experiments[s].title]));
  byId("pronoun-experiment").parentElement.hidden = sets.length < 2;
  byId("pronouns").addEventListener("change", pronouns);
}

async function pronouns() {
  if (byId("pronouns").hidden) return;
  const found = BREAKDOWNS.get(byId("pronoun-checkpoint").value).occupations[byId("pronoun-experiment").value] || {};
  const conditions = PAGE.conditions.filter((c) => found[c]), select = byId("pronoun-condition");
  fillSelect(select, conditions.map((c) => [c, c]), select.value || conditions[0]);
  const condition = select.value;
  const rows = (found[condition] || []).map(([name, bls, f, m, n]) => ({ name, bls: shares(bls), shares: [shares(f), shares(n), shares(m)], condition }));
  rows.sort((a, b) => a.shares[1] - b.shares[1] || a.shares[0] - b.shares[0] || (a.name < b.name ? -1 : 1));
  byId("pronoun-state").textContent = `Shown: ${checkpointName(byId("pronoun-checkpoint").value)}; ${condition}; ${rows.length} occupations.`;
  const second = "Q+Match Stats", both = condition === second || !found[second] ? [condition] : [condition, second];
  await drawAll(byId("pronoun-charts"), [stacks(rows, condition), calibration(found, both)]);
}

const OCCUPATION_COLUMNS = [
  ["occupation", (r) => r.name], ["condition", (r) => r.condition], ["women, BLS", (r) => told(r.bls), true],
  ...PRONOUNS.map(([name], k) => [name, (r) => told(r.shares[k]), true]),
];

function stacks(rows, condition) {
  const values = rows.flatMap((r) => PRONOUNS.map(([pronoun], k) => ({ occupation: r.name, pronoun, k, p: r.shares[k], "women, BLS": told(r.bls), share: told(r.shares[k]) })));
  const order = rows.map((r) => r.name);
  const spec = (width) => {
    const upright = printing || width >= 800, labelled = order.length <= 80;
    const occupation = { field: "occupation", type: "nominal", sort: order, title: null, axis: { labels: labelled, ticks: labelled, labelAngle: upright ? -90 : 0, labelFontSize: 11, labelLimit: 150, labelOverlap: false } };
    const p = { field: "p", type: "quantitative", title: "share of the three pronouns", scale: { domain: [0, 1] } };
    return {
      title: { text: heading(`Pronouns by occupation, ${condition}`, width), subtitle: wrap("each occupation a bar, sorted by p(neutral)", width) },
      data: { values }, width, height: upright ? 330 : Math.max(200, order.length * (labelled ? 14 : 3)), autosize: { type: "fit", contains: "padding" },
      mark: { type: "bar", strokeWidth: 0 },
      encoding: {
        [upright ? "x" : "y"]: occupation, [upright ? "y" : "x"]: p, order: { field: "k" },
        color: { field: "pronoun", scale: { domain: PRONOUNS.map((s) => s[0]), range: PRONOUNS.map((s) => s[1]) }, title: null },
        tooltip: ["occupation", "pronoun", "share", "women, BLS"].map((field) => ({ field, type: "nominal" })),
      },
    };
  };
  const mean = (k) => told(rows.reduce((sum, r) => sum + r.shares[k], 0) / (rows.length || 1));
  const summary = `Shares of pronouns of ${rows.length} occupations under ${condition}, sorted by p(neutral). Means: ${PRONOUNS.map(([name], k) => `${name} ${mean(k)}`).join(", ")}. All values are in the table below.`;
  return { id: "stacks", spec, name: `Pronouns by occupation, ${condition}`, summary, columns: OCCUPATION_COLUMNS, rows };
}

function calibration(found, conditions) {
  const rows = conditions.flatMap((condition) => found[condition].map(([name, bls, f, m, n]) => ({ name, condition, bls: shares(bls), shares: [shares(f), shares(n), shares(m)] })));
  const values = rows.map((r) => ({ occupation: r.name, condition: r.condition, bls: r.bls, p: r.shares[0], "women, BLS": told(r.bls), "p(female)": told(r.shares[0]) }));
  const domain = conditions, range = (k) => conditions.map((c) => (MARKS[c] || MARKS["Q+Inverse"])[k]);
  const colour = { field: "condition", type: "nominal", title: null, scale: { domain, range: range(dark() ? 1 : 0) } };
  const spec = (width) => ({
    title: { text: heading("Calibration: p(female) against the statistics", width), subtitle: wrap("dashed: p(female) equals the share of women", width) },
    width: Math.min(width, 520), height: 380, autosize: { type: "fit", contains: "padding" },
    layer: [
      { data: { values: [{ bls: 0, p: 0 }, { bls: 1, p: 1 }] }, mark: { type: "line", strokeDash: [5, 4], strokeWidth: 1, color: dark() ? "#b0b5be" : "#55585f" }, encoding: { x: { field: "bls", type: "quantitative" }, y: { field: "p", type: "quantitative" } } },
      { data: { values }, mark: { type: "point", size: 48, filled: true, opacity: 0.85 }, encoding: {
        x: { field: "bls", type: "quantitative", title: "women in the occupation (BLS)", axis: { format: "%" }, scale: { domain: [0, 1] } },
        y: { field: "p", type: "quantitative", title: "p(female)", scale: { domain: [0, 1] } }, color: colour,
        shape: { field: "condition", type: "nominal", title: null, scale: { domain, range: range(2) } },
        tooltip: ["occupation", "condition", "p(female)", "women, BLS"].map((field) => ({ field, type: "nominal" })) } },
    ],
  });
  const summary = `p(female) against the share of women, ${rows.length / conditions.length} occupations, under ${conditions.join(" and ")}. All values are in the table below.`;
  return { id: "calibration", spec, name: `Calibration, ${conditions.join(" and ")}`, summary, columns: OCCUPATION_COLUMNS, rows };
}

async function profiles() {
  if (byId("profiles").hidden) return;
  const found = BREAKDOWNS.get(byId("profile-checkpoint").value).profiles, select = byId("profile-condition");
  const conditions = PAGE.conditions.filter((c) => found[c]);
  fillSelect(select, conditions.map((c) => [c, c]), select.value || conditions[0]);
  const rows = (found[select.value] || []).map(([lsat, ugpa, students, gap, admit]) => ({
    lsat, ugpa, lsatEnd: lsat + 3, ugpaEnd: ugpa + 0.3, students, gap: shares(gap), admit: shares(admit),
    LSAT: `${lsat} to ${lsat + 2}`, GPA: `${ugpa.toFixed(1)} to ${(ugpa + 0.2).toFixed(1)}`, "gap ": told(shares(gap)), "p(admit)": told(shares(admit)) }));
  byId("profile-state").textContent = `Shown: ${checkpointName(byId("profile-checkpoint").value)}; ${select.value}; cells of 3 LSAT points and 0.3 GPA, each the mean of its students.`;
  const most = Math.max(...rows.map((r) => Math.abs(r.gap)), 0.0001), about = PAGE.experiments.admissions;
  await drawAll(byId("profile-charts"), [
    heat(rows, "gap", `Gap: ${about.label}`, about.sign, { scheme: "redblue", domainMid: 0, domain: [-most, most] }),
    heat(rows, "admit", "p(admit), mean of those compared", "over all students of a cell", { scheme: "viridis" })]);
}

function heat(rows, field, title, sign, scale) {
  const spec = (width) => ({
    title: { text: heading(title, width), subtitle: wrap(sign, width) }, data: { values: rows }, width, height: 330, autosize: { type: "fit", contains: "padding" },
    mark: { type: "rect" },
    encoding: {
      x: { field: "lsat", type: "quantitative", title: "LSAT", scale: { zero: false, nice: false }, axis: { grid: false } }, x2: { field: "lsatEnd" },
      y: { field: "ugpa", type: "quantitative", title: "undergraduate GPA", scale: { zero: false, nice: false }, axis: { grid: false } }, y2: { field: "ugpaEnd" },
      color: { field, type: "quantitative", title: null, scale, legend: { gradientLength: Math.min(240, width - 40), format: ".4~g", tickCount: 4, labelOverlap: "greedy" } },
      tooltip: ["LSAT", "GPA", "students", "gap ", "p(admit)"].map((f) => ({ field: f, type: "nominal" })),
    },
  });
  const ends = rows.length ? `from ${told(Math.min(...rows.map((r) => r[field])))} to ${told(Math.max(...rows.map((r) => r[field])))}` : "no values";
  const columns = [["LSAT", (r) => r.LSAT], ["GPA", (r) => r.GPA], ["students", (r) => r.students, true], ["gap", (r) => told(r.gap), true], ["p(admit)", (r) => told(r.admit), true]];
  return { id: `profiles-${field}`, spec, name: title, summary: `${title} (${sign}), over LSAT and GPA, ${ends} in ${rows.length} cells. All values are in the table below.`, columns, rows };
}

function allNumbers() {
  if (!byId("all-numbers").open) return;
  const place = Number(byId("numbers-checkpoint").value), rows = NUMBERS.filter((r) => r.place === place);
  const columns = [["experiment", (r) => r.experiment], ["metric", (r) => (r.category === "all" ? r.name : `${r.name} (${r.category})`)], ["condition", (r) => r.condition], ...VALUE_COLUMNS];
  byId("number-table").replaceChildren(scrolling(table(columns, rows, `${rows.length} metrics of ${checkpointName(place)}`), "All numbers", true));
}

function beginNumbers() {
  const places = PAGE.checkpoints.map((_, k) => k);
  fillSelect(byId("numbers-checkpoint"), places.map((k) => [String(k), checkpointName(k)]), String(opening(places)));
  byId("numbers-checkpoint").addEventListener("change", allNumbers);
  byId("all-numbers").addEventListener("toggle", allNumbers);
}

async function drawPage() {
  await redraw();
  await pronouns();
  await profiles();
}

function openForPrint(open) {
  const matter = [...document.querySelectorAll(".note details, details.open")];
  for (const section of document.querySelectorAll("#examples h3 + details")) matter.push(section);
  for (const part of matter) part.open = open;
}

async function begin() {
  beginChoices();
  beginPronouns();
  if (beginBreakdown("profile", (b) => Object.keys(b.profiles).length)) byId("profiles").addEventListener("change", profiles);
  beginNumbers();
  for (const form of document.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());
  if (!PAGE.experiments.bbq) byId("categories").hidden = byId("accuracy").hidden = true;
  if (CATEGORIES.length < 2) byId("categories").hidden = true;
  byId("contents").append(...[...document.querySelectorAll("main > section:not([hidden])")].map((s) => element("li", {}, element("a", { href: `#${s.id}` }, s.querySelector("h2").textContent))));
  await drawPage();
  let width = byId("main").clientWidth, waiting = 0;
  new ResizeObserver(() => {
    if (printing || byId("main").clientWidth === width) return;
    width = byId("main").clientWidth;
    document.documentElement.dataset.drawn = "no";
    clearTimeout(waiting);
    waiting = setTimeout(drawPage, 150);
  }).observe(byId("main"));
  darkMode.addEventListener("change", drawPage);
  addEventListener("beforeprint", () => { printing = true; openForPrint(true); drawPage(); });
  addEventListener("afterprint", () => { printing = false; openForPrint(false); drawPage(); });
}
begin();
