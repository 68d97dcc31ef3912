"use strict";
// Hides what the filters exclude, and keeps the filters in the hash of the address: a view is a link.
const form = document.getElementById("filters");
const selects = [...form.querySelectorAll("select")];
const items = [...document.querySelectorAll("[data-item]")];

function chosen() {
  return Object.fromEntries(selects.filter((s) => s.value).map((s) => [s.name, s.value]));
}

function apply() {
  const wanted = Object.entries(chosen());
  for (const item of items) item.toggleAttribute("hidden", wanted.some(([name, value]) => item.dataset[name] !== value));
  for (const board of document.querySelectorAll("[data-board]")) board.hidden = !board.querySelector("[data-item]:not([hidden])");
  for (const block of document.querySelectorAll("[data-published]")) block.hidden = Boolean(chosen().task) && block.dataset.published !== chosen().task;
  for (const section of document.querySelectorAll("main section.task, #speed-up, #sessions, #roofline")) section.hidden = !section.querySelector("article:not([hidden])");
  for (const select of selects) select.classList.toggle("set", Boolean(select.value));
  const rows = document.querySelectorAll("[data-row]");
  const shown = [...rows].filter((row) => !row.hasAttribute("hidden")).length;
  document.getElementById("shown").textContent = `${shown} of ${rows.length} rows shown`;
}

function fromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const select of selects) {
    const value = asked.get(select.name) ?? "";
    select.value = [...select.options].some((o) => o.value === value) ? value : "";
  }
  apply();
}

function toAddress() {
  const text = new URLSearchParams(chosen()).toString();
  history.replaceState(null, "", text ? `#${text}` : "#");
  apply();
}

form.hidden = false; // without this script there is nothing to filter with
form.addEventListener("change", toAddress);
form.addEventListener("reset", () => setTimeout(toAddress));
form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", fromAddress);
for (const link of document.querySelectorAll("[data-jump]")) {
  link.addEventListener("click", (event) => { // a jump must keep the filters in the address
    event.preventDefault();
    const target = document.getElementById(link.getAttribute("href").slice(1));
    target.scrollIntoView();
    target.tabIndex = -1;
    target.focus({ preventScroll: true });
  });
}
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
fromAddress();
