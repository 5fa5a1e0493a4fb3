"use strict";
const ROWS_PER_PAGE = 25;
const dark = matchMedia("(prefers-color-scheme: dark)");
const byId = (id) => document.getElementById(id);
let content = { figures: {}, dark: {}, trials: {} };

// ---- packed parts of the page

async function unpacked(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

async function loadPlotly() {
  const script = document.createElement("script");
  script.textContent = await unpacked("plotly");
  document.head.append(script);
}

// ---- plots: drawn when they come near the window, and anew when the colour scheme changes

const themed = (value) =>
  JSON.parse(JSON.stringify(value).replace(/#[0-9a-f]{6}\b/g, (c) => (dark.matches && content.dark[c]) || c));

const near = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
  { rootMargin: "600px" },
);

function draw(place) {
  near.unobserve(place);
  const figure = themed(content.figures[place.id]);
  const shown = place.data && place.data.length === figure.data.length ? place.data.map((trace) => trace.visible) : [];
  figure.data.forEach((trace, i) => shown[i] !== undefined && (trace.visible = shown[i]));
  const layout = { ...figure.layout, showlegend: false, autosize: true, dragmode: false };
  if (place.clientWidth < 560) layout.font = { ...layout.font, size: 11 };
  return Plotly.react(place, figure.data, layout, { displayModeBar: false, responsive: true }).then(() =>
    drawLegend(place),
  );
}

function watchPlots() {
  document.querySelectorAll(".chart").forEach((place) => content.figures[place.id] && near.observe(place));
}

function redraw() {
  document.querySelectorAll(".chart").forEach((place) => place.data && draw(place));
}

function drawAll() {
  const places = [...document.querySelectorAll(".chart")].filter((place) => content.figures[place.id] && !place.data);
  return Promise.all(places.map(draw));
}

// One button per name in the plot; it hides and shows what has that name.
function drawLegend(place) {
  const traces = new Map();
  place.data.forEach((trace, i) => {
    if (!trace.name) return;
    const named = traces.get(trace.legendgroup || trace.name) || { trace, indices: [] };
    named.indices.push(i);
    traces.set(trace.legendgroup || trace.name, named);
  });
  const legend = byId(place.id + "-legend");
  if (!legend) return;
  legend.replaceChildren();
  if (traces.size < 2) return;
  for (const { trace, indices } of traces.values()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(symbolOf(trace), plain(trace.name));
    button.setAttribute("aria-pressed", trace.visible !== "legendonly");
    button.addEventListener("click", async () => {
      const hide = place.data[indices[0]].visible !== "legendonly";
      button.setAttribute("aria-pressed", !hide);
      await Plotly.restyle(place, { visible: hide ? "legendonly" : true }, indices);
    });
    legend.append(button);
  }
}

const plain = (text) => new DOMParser().parseFromString(text, "text/html").documentElement.textContent;
const first = (value) => (Array.isArray(value) ? value[value.length - 1] : value);

function symbolOf(trace) {
  const marker = trace.marker || {};
  const line = trace.line || {};
  const colour = first(marker.color) || line.color || "currentColor";
  const parts = [];
  if (trace.type === "bar") {
    parts.push(`<rect x="3" y="1" width="16" height="10" fill="${colour}"/>`);
    const lines = { "/": "M3 11 13 1M9 11 19 1", x: "M3 11 13 1M9 11 19 1M3 1 13 11M9 1 19 11" }[marker.pattern?.shape];
    if (lines) parts.push(`<path d="${lines}" stroke="var(--page)" stroke-width="1.6"/>`);
  } else {
    const dash = { dash: "5 3", dot: "2 2", dashdot: "5 2 2 2", longdash: "9 3" }[line.dash] || "";
    if ((trace.mode || "").includes("lines"))
      parts.push(`<path d="M0 6H22" stroke="${line.color || colour}" stroke-width="2" stroke-dasharray="${dash}"/>`);
    if ((trace.mode || "").includes("markers")) parts.push(markerShape(first(marker.symbol) || "circle", colour));
  }
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  picture.setAttribute("viewBox", "0 0 22 12");
  picture.setAttribute("aria-hidden", "true");
  picture.innerHTML = parts.join("");
  return picture;
}

function markerShape(symbol, colour) {
  const open = symbol.endsWith("-open") && !symbol.startsWith("x");
  const style = open ? `fill="none" stroke="${colour}" stroke-width="1.5"` : `fill="${colour}"`;
  const shape = symbol.replace("-open", "").replace("-thin", "");
  return {
    circle: `<circle cx="11" cy="6" r="4" ${style}/>`,
    square: `<rect x="7" y="2" width="8" height="8" ${style}/>`,
    diamond: `<path d="M11 1 16 6 11 11 6 6Z" ${style}/>`,
    "triangle-up": `<path d="M11 1 16 10H6Z" ${style}/>`,
    cross: `<path d="M9 1h4v3h3v4h-3v3H9V8H6V4h3Z" ${style}/>`,
    star: `<path d="M11 0 12.5 4.5H17L13.3 7.2 14.7 12 11 9 7.3 12 8.7 7.2 5 4.5H9.5Z" ${style}/>`,
    x: `<path d="M7 2 15 10M15 2 7 10" stroke="${colour}" stroke-width="1.6"/>`,
  }[shape] || `<circle cx="11" cy="6" r="4" ${style}/>`;
}

// ---- the table of trials

const percent = (value) => (100 * value).toFixed(1) + "%";
const seconds = (value) => (value < 100 ? value.toFixed(0) + " s" : (value / 60).toFixed(0) + " min");
const COLUMNS = [
  ["key", "key"], ["end", "end"], ["mode", "mode"], ["size", "of dense", percent], ["retention", "retention", percent],
  ["preliminary", "preliminary", percent], ["questions", "questions", (n) => n.toLocaleString("en")],
  ["samples", "samples seen", (n) => n.toLocaleString("en")], ["seconds", "time", seconds],
  ["recipe", "recipe"],
];
const table = { sortedBy: "retention", descending: true, page: 0, rows: [] };

function drawHead() {
  const row = byId("trial-table").tHead.rows[0];
  row.replaceChildren(
    ...COLUMNS.map(([name, label]) => {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.setAttribute("aria-sort", name !== table.sortedBy ? "none" : table.descending ? "descending" : "ascending");
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = label;
      button.addEventListener("click", () => {
        table.descending = table.sortedBy === name ? !table.descending : typeof content.trials[name][0] === "number";
        table.sortedBy = name;
        table.page = 0;
        [...row.cells].forEach((other) => other.setAttribute("aria-sort", "none"));
        cell.setAttribute("aria-sort", table.descending ? "descending" : "ascending");
        drawTable();
      });
      cell.append(button);
      return cell;
    }),
  );
}

function filtered() {
  const trials = content.trials;
  const words = byId("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
  const end = byId("filter-end").value;
  const mode = byId("filter-mode").value;
  const size = byId("filter-size").value;
  const retention = byId("filter-retention").value;
  return trials.key.map((_, row) => row).filter(
    (row) =>
      (!end || trials.end[row] === end || (end === "finished" && trials.end[row] === "on the front")) &&
      (!mode || trials.mode[row] === mode) &&
      (size === "" || (trials.size[row] !== null && 100 * trials.size[row] <= Number(size))) &&
      (retention === "" || (trials.retention[row] !== null && 100 * trials.retention[row] >= Number(retention))) &&
      words.every((word) =>
        `${trials.key[row]} ${trials.recipe[row]} ${trials.reason[row]}`.toLowerCase().includes(word),
      ),
  );
}

function drawTable() {
  const values = content.trials[table.sortedBy];
  const sign = table.descending ? -1 : 1;
  table.rows = filtered().sort((one, other) => {
    const [a, b] = [values[one], values[other]];
    if (a === null || b === null) return (a === null) - (b === null); // without a value: last, either way
    return sign * (typeof a === "number" ? a - b : a.localeCompare(b)) || one - other;
  });
  const last = Math.max(0, Math.ceil(table.rows.length / ROWS_PER_PAGE) - 1);
  table.page = Math.min(table.page, last);
  const from = table.page * ROWS_PER_PAGE;
  const shown = table.rows.slice(from, from + ROWS_PER_PAGE);
  byId("trial-table").tBodies[0].replaceChildren(
    ...shown.map((row) => {
      const line = document.createElement("tr");
      line.append(
        ...COLUMNS.map(([name, , text]) => {
          const cell = document.createElement("td");
          const value = content.trials[name][row];
          cell.textContent = value === null ? "" : text ? text(value) : value;
          if (name === "recipe" && content.trials.reason[row]) cell.textContent += `: ${content.trials.reason[row]}`;
          return cell;
        }),
      );
      return line;
    }),
  );
  const count = table.rows.length.toLocaleString("en");
  byId("page-text").textContent = shown.length
    ? `${(from + 1).toLocaleString("en")} to ${(from + shown.length).toLocaleString("en")} of ${count} trials`
    : "no trial is like that";
  byId("page-back").disabled = table.page === 0;
  byId("page-on").disabled = table.page === last;
}

function startTable() {
  drawHead();
  drawTable();
  byId("filters").addEventListener("input", () => {
    table.page = 0;
    drawTable();
  });
  for (const [id, step] of [["page-back", -1], ["page-on", 1]])
    byId(id).addEventListener("click", () => {
      table.page += step;
      drawTable();
    });
}

// ---- commands that can be copied

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  const text = button.previousElementSibling;
  try {
    await navigator.clipboard.writeText(text.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(text);
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
});

// ---- a page that follows a running search: the server names each new state, and the parts that differ are replaced

function follow() {
  const events = new EventSource("events");
  events.addEventListener("status", (event) => (byId("status").textContent = JSON.parse(event.data)));
  events.addEventListener("changed", async () => {
    const answer = await fetch("content").catch(() => null); // null: the search has just ended
    if (answer?.ok) await replaceParts(new DOMParser().parseFromString(await answer.text(), "text/html"));
  });
  events.addEventListener("ended", (event) => {
    events.close();
    byId("status").textContent = JSON.parse(event.data);
  });
  events.addEventListener("error", () => {
    byId("status").textContent = "The search can't be reached; this is its last state.";
  });
}

async function replaceParts(fresh) {
  byId("data").textContent = fresh.getElementById("data").textContent;
  content = JSON.parse(await unpacked("data"));
  const focused = document.activeElement;
  for (const section of fresh.querySelectorAll("main > section")) {
    const old = byId(section.id);
    if (section.id === "trials") continue;
    if (old && old.contains(focused)) continue; // someone is reading or typing there
    if (old) keepOpen(old, section);
    if (old) old.replaceWith(section);
    else byId("trials").before(section);
  }
  drawTable();
  watchPlots();
}

function keepOpen(old, fresh) {
  const before = old.querySelectorAll("details");
  fresh.querySelectorAll("details").forEach((part, i) => before[i] && (part.open = before[i].open));
}

async function start() {
  content = JSON.parse(await unpacked("data"));
  startTable();
  await loadPlotly();
  watchPlots();
  dark.addEventListener("change", redraw);
  addEventListener("beforeprint", drawAll);
  if ("live" in document.body.dataset) follow();
  document.body.dataset.ready = "";
}

start();
