"use strict";
// Filters, sorts, shows one task and one board at a time, compares two rows, and makes a CSV file. The address keeps the view.
const { columns, phases, filters, rows: lines } = JSON.parse(document.getElementById("data").textContent);
const rows = lines.map((line) => Object.fromEntries(columns.map((name, i) => [name, line[i]])));
const byRun = new Map(rows.map((row) => [row.run.slice(0, 12), { ...filters[row.f], ...row }])); // elements name the first 12 digits
const form = document.getElementById("filters");
const metric = document.getElementById("metric");
const pair = document.getElementById("pair");
const picks = [...form.querySelectorAll("details.pick")];
const boxes = [...form.querySelectorAll("input[type=checkbox]")];
const items = [...document.querySelectorAll("[data-f]")];
const lists = [...document.querySelectorAll("[data-tabs]")];
const show = { board: "", row: "", pair: [] };

// ---- filters ----
function wanted() {
  const chosen = new Map();
  for (const box of boxes) if (box.checked) chosen.set(box.name, (chosen.get(box.name) ?? new Set()).add(box.value));
  return chosen;
}

const passes = (values, chosen) => [...chosen].every(([name, set]) => !(name in values) || set.has(values[name]));

function applyFilters() {
  const chosen = wanted();
  const seen = filters.map((values) => passes(values, chosen));
  for (const item of items) item.toggleAttribute("hidden", !seen[item.dataset.f]);
  for (const part of [...document.querySelectorAll("[data-board]")].reverse()) { // inner parts first
    part.dataset.empty = part.querySelector("[data-f]") && !part.querySelector("[data-f]:not([hidden])") ? "1" : "";
    if (!part.dataset.panel) part.hidden = Boolean(part.dataset.empty);
  }
  for (const pick of picks) {
    const number = chosen.get(pick.dataset.filter)?.size ?? 0;
    pick.querySelector("summary b").textContent = number ? ` ${number}` : "";
    pick.classList.toggle("set", number > 0);
  }
  const shown = rows.filter((row) => seen[row.f]).length;
  document.getElementById("shown").textContent = `${shown} of ${rows.length} rows`;
  document.getElementById("none").hidden = shown > 0;
  for (const chart of document.querySelectorAll(".marks")) { // one stop of the tab key per chart
    const marks = [...chart.querySelectorAll(".mark:not([hidden])")];
    marks.forEach((mark, i) => { mark.tabIndex = i ? -1 : 0; });
  }
}

// ---- tabs ----
const panelOf = (tab) => document.getElementById(tab.getAttribute("aria-controls"));

function hasRows(tab) {
  const panel = panelOf(tab);
  if (panel.hasAttribute("data-board")) return !panel.dataset.empty;
  const boards = [...panel.querySelectorAll("[data-board][data-panel]")];
  const chosen = wanted();
  return boards.length ? boards.some((board) => !board.dataset.empty) : !chosen.size || Boolean(chosen.get("task")?.has(tab.dataset.tab));
}

function select(list, name) {
  const tabs = [...list.querySelectorAll("[role=tab]")];
  for (const tab of tabs) tab.hidden = !hasRows(tab);
  const left = tabs.filter((tab) => !tab.hidden);
  const current = left.find((tab) => tab.dataset.tab === name) ?? left.find((tab) => tab.ariaSelected === "true") ?? left[0];
  for (const tab of tabs) {
    tab.ariaSelected = String(tab === current);
    tab.tabIndex = tab === current ? 0 : -1;
    panelOf(tab).hidden = tab !== current;
  }
}

function applyTabs() {
  const board = document.getElementById(show.board);
  const task = board?.closest(".task")?.dataset.panel ?? show.board;
  for (const list of lists) select(list, list.dataset.tabs === "task" ? task : show.board);
  for (const board of document.querySelectorAll("article[data-panel]")) { // the only board of a task has no tab
    if (!board.parentElement.querySelector("[data-tabs]")) board.hidden = Boolean(board.dataset.empty);
  }
}

for (const list of lists) {
  list.hidden = false;
  list.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) view({ board: tab.dataset.tab, row: "" });
  });
  list.addEventListener("keydown", (event) => step(event, [...list.querySelectorAll("[role=tab]:not([hidden])")], (tab) => tab.click()));
}
for (const chart of document.querySelectorAll(".marks")) {
  chart.addEventListener("keydown", (event) => step(event, [...chart.querySelectorAll(".mark:not([hidden])")], (mark, all) => {
    for (const other of all) other.tabIndex = other === mark ? 0 : -1;
  }));
}

function step(event, all, chosen) {
  const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const at = all.indexOf(document.activeElement);
  if (!move || at < 0) return;
  event.preventDefault();
  const next = all[(at + move + all.length) % all.length];
  next.focus();
  chosen(next, all);
}

// ---- tables: sorting, and a box to compare two rows ----
function number(cell) {
  const value = parseFloat(cell.textContent.replace(/[,\s]/g, ""));
  return Number.isNaN(value) ? null : value;
}

function sort(table, column) {
  const head = table.tHead.rows[0].cells[column];
  const down = head.ariaSort === "ascending";
  const words = (cell) => (cell.querySelector("a") ?? cell).textContent.replace(/^[✕–·]/, "").trim(); // without marks of rows
  const key = (row) => number(row.cells[column]) ?? words(row.cells[column]);
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // empty cells are last in both directions
    const order = typeof x === typeof y && typeof x === "number" ? x - y : String(x).localeCompare(String(y));
    return down ? -order : order;
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  for (const other of table.tHead.rows[0].cells) other.ariaSort = null;
  head.ariaSort = down ? "descending" : "ascending";
}

for (const table of document.querySelectorAll("main table:not(.heat)")) {
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(table, head.cellIndex));
    head.replaceChildren(button);
  }
}
for (const row of document.querySelectorAll("article[data-panel] tr[data-row]")) {
  const box = document.createElement("input");
  box.type = "checkbox";
  box.className = "two";
  box.setAttribute("aria-label", `compare ${row.querySelector("th").textContent.trim()}`);
  box.addEventListener("change", () => view({ pair: box.checked ? [...show.pair, row.dataset.run].slice(-2) : show.pair.filter((run) => run !== row.dataset.run) }));
  const rank = row.cells[0];
  const link = document.createElement("a");
  link.href = `#row=${row.dataset.run}`;
  link.dataset.view = "";
  link.title = "a link to this row";
  link.textContent = rank.textContent.trim() || "·";
  rank.replaceChildren(box, link);
}

const FIGURES = [
  ["task", "task"], ["data", "data"], ["scale", "scale"], ["rows", "rows"], ["engine", "engine"], ["backend", "backend"], ["precision", "precision"],
  ["device", "device"], ["budget", "budget"], ["machine", "machine"], ["outcome", "outcome"], ["rounds", "rounds"], ["wall s", "wall_s"], ["CPU s", "cpu_s"], ["peak bytes", "peak_bytes"], ["score", "score"],
];

const FACTS = ["scale", "rows", "rounds"]; // numbers without a ratio

function applyPair() {
  const two = show.pair.map((run) => byRun.get(run)).filter(Boolean);
  for (const box of document.querySelectorAll("input.two")) box.checked = show.pair.includes(box.closest("tr").dataset.run);
  pair.hidden = two.length < 2;
  document.body.classList.toggle("paired", two.length === 2);
  if (two.length < 2) return;
  const [a, b] = two;
  const lines = FIGURES.map(([name, key]) => [name, a[key], b[key]]);
  phases.forEach((name, i) => { if (a.phases[i] != null || b.phases[i] != null) lines.push([`${name} s`, a.phases[i], b.phases[i]]); });
  const table = document.createElement("table");
  for (const [name, x, y] of [["", "first", "second", "first / second"], ...lines]) {
    const comparable = a.board === b.board && !FACTS.includes(name) && typeof x === "number" && typeof y === "number" && y;
    const ratio = name === "" ? "first / second" : comparable ? (x / y).toFixed(2) : "";
    const line = table.insertRow();
    for (const text of [name, x ?? "", y ?? "", ratio]) line.insertCell().textContent = typeof text === "number" ? text.toLocaleString("en", { maximumSignificantDigits: 6 }) : text;
  }
  const close = document.createElement("button");
  close.type = "button";
  close.textContent = "close";
  close.addEventListener("click", () => view({ pair: [] }));
  const scroll = document.createElement("div");
  scroll.className = "scroll";
  scroll.append(table);
  const note = document.createElement("p");
  note.className = "soft";
  note.textContent = a.board === b.board ? "" : "Of different boards: no ratios, because the jobs or the machines differ.";
  pair.replaceChildren(close, note, scroll);
}

// ---- bars of another metric ----
const UNITS = { cpu_s: (v) => `${v.toPrecision(3)} s`, peak_bytes: (v) => `${Math.round(v / 1e6).toLocaleString("en")} MB`, score: (v) => v.toFixed(4) };

function applyMetric() {
  const name = metric?.value;
  for (const figure of document.querySelectorAll("[data-bars]")) {
    const bars = [...figure.querySelectorAll("li[data-run]")];
    const values = bars.map((bar) => (name ? byRun.get(bar.dataset.run)?.[name] : null));
    const most = Math.max(...values.map((v) => v ?? 0), 1e-9);
    bars.forEach((bar, i) => {
      bar.querySelector(".track.other")?.remove();
      const track = bar.querySelector(".track");
      track.hidden = Boolean(name);
      if (!name) return;
      const other = track.cloneNode(false);
      other.hidden = false;
      other.classList.add("other");
      const text = values[i] == null ? "" : UNITS[name](values[i]);
      other.setAttribute("aria-label", `${metric.selectedOptions[0].textContent}: ${text}`);
      const stem = document.createElement("i");
      stem.className = "stage p1";
      stem.style.width = `${(75 * Math.max(values[i] ?? 0, 0)) / most}%`;
      const total = document.createElement("i");
      total.className = "total";
      total.textContent = text;
      other.append(stem, total);
      track.after(other);
    });
    figure.querySelector(".phases").hidden = Boolean(name);
    figure.querySelector("figcaption strong").textContent = name ? metric.selectedOptions[0].textContent : "Wall time by phase";
    figure.querySelector("figcaption span").textContent = name ? "Linear axis." : "Seconds on a linear axis.";
  }
}

// ---- CSV ----
const COLUMNS = [
  "job", "task", "board", "data", "scale", "rows", "machine", "engine", "backend", "precision", "device", "budget", "cores", "outcome", "rank", "rounds",
  "metric", "score", "wall_s", "cpu_s", "peak_bytes", "limit_s", "times_plain", "noise", "run_s", "rows_per_s", "run", "record",
];
const recordOf = (row) => document.querySelector(`tr[data-run="${row.run.slice(0, 12)}"] th a`)?.getAttribute("href") ?? "";

function csv() {
  const chosen = wanted();
  const quoted = (value) => (/[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const lines = [...byRun.values()].filter((row) => passes(filters[row.f], chosen)).map((row) => COLUMNS.map((name) => quoted(String((name === "record" ? recordOf(row) : row[name]) ?? ""))).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([[COLUMNS.join(","), ...lines, ""].join("\n")], { type: "text/csv" }));
  link.download = "buzzer.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

// ---- the address ----
function apply() {
  applyFilters();
  applyTabs();
  applyMetric();
  applyPair();
  for (const row of document.querySelectorAll("tr[data-row]")) row.classList.toggle("marked", row.dataset.run === show.row);
}

function fromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const box of boxes) box.checked = asked.getAll(box.name).includes(box.value);
  if (metric) metric.value = [...metric.options].some((o) => o.value === asked.get("metric")) ? asked.get("metric") : "";
  show.row = byRun.has(asked.get("row")) ? asked.get("row") : "";
  show.pair = (asked.get("pair") ?? "").split(",").filter((run) => byRun.has(run));
  const row = byRun.get(show.row);
  show.board = row ? row.board : asked.get("board") ?? "";
  apply();
  const part = document.getElementById(location.hash.slice(1)); // `#sessions` is a place in the page
  if (part) jump(part.id);
  else if (show.row) document.querySelector("tr.marked")?.scrollIntoView({ block: "center" });
  else if (show.board) document.getElementById("tasks")?.scrollIntoView();
}

function address() {
  const text = new URLSearchParams(boxes.filter((box) => box.checked).map((box) => [box.name, box.value]));
  if (show.row) text.set("row", show.row);
  else if (show.board) text.set("board", show.board);
  if (metric?.value) text.set("metric", metric.value);
  if (show.pair.length) text.set("pair", show.pair.join(","));
  return text.toString();
}

function toAddress() {
  history.replaceState(null, "", address() ? `#${address()}` : location.pathname + location.search);
  apply();
}

function view(change) {
  Object.assign(show, change);
  toAddress();
}

form.hidden = false; // without this script there is nothing to filter with
document.querySelector(".metric")?.removeAttribute("hidden");
form.addEventListener("change", toAddress);
metric?.addEventListener("change", toAddress);
form.addEventListener("reset", () => setTimeout(() => {
  if (metric) metric.value = "";
  view({ board: "", row: "", pair: [] });
}));
form.addEventListener("submit", (event) => event.preventDefault());
document.getElementById("csv").addEventListener("click", csv);
addEventListener("hashchange", fromAddress);
addEventListener("click", (event) => {
  for (const pick of picks) if (!pick.contains(event.target)) pick.open = false;
  const link = event.target.closest?.("a[href^='#']");
  if (!link) return;
  event.preventDefault();
  if (link.hasAttribute("data-view")) { // a link to a task, a board or a row keeps the filters
    const asked = new URLSearchParams(link.getAttribute("href").slice(1));
    view({ board: asked.get("board") ?? asked.get("task") ?? show.board, row: asked.get("row") ?? "" });
    if (asked.has("task")) jump("tasks");
  } else jump(link.getAttribute("href").slice(1));
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const pick of picks) if (pick.open) { pick.open = false; pick.querySelector("summary").focus(); }
});

function jump(id) {
  const target = document.getElementById(id);
  if (target.tagName === "DETAILS") target.open = true;
  target.tabIndex = -1;
  target.focus({ preventScroll: true });
  target.scrollIntoView();
}

// ---- theme ----
const root = document.documentElement;
function remembered(value) { // storage may be forbidden
  try { return value === undefined ? localStorage.getItem("buzzer-theme") : localStorage.setItem("buzzer-theme", value); } catch { return null; }
}
if (["light", "dark"].includes(remembered())) root.dataset.theme = remembered();
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  remembered(root.dataset.theme);
});
function measure() { // headings stay clear of the sticky filters
  root.style.setProperty("--bar", getComputedStyle(form).position === "sticky" ? `${form.offsetHeight}px` : "0px");
}
new ResizeObserver(measure).observe(form);
measure();
fromAddress();
