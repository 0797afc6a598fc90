// Draws snapshots. Texts come from the network: they only ever become text, never markup.

import { dots, fate, layout, MARKS, rate, size, span, spark, startsFolded, target, title, width } from "./model.js";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const SILENT = 8000, FIRST_WAIT = 500, LONGEST_WAIT = 5000; // milliseconds

const key = location.hash.slice(1) || sessionStorage.getItem("key") || "";
if (location.hash) {
  sessionStorage.setItem("key", key);
  history.replaceState(null, "", location.pathname);
}
const state = { find: "", failing: false, folded: new Map(), startFolded: false, order: [] };
let live = null, shown = null, ago = 0, paused = false, decided = false, heard = performance.now(), trouble = "";
let opener = null, open = null, said = "";

// ---- elements by key: what stays keeps its element, so the focus stays too

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function text(element, words) { if (element.textContent !== words) element.textContent = words; }
function attribute(element, name, value) { if (element.getAttribute(name) !== value) element.setAttribute(name, value); }

/** Makes the children of `parent` those of `items`, in their order. Returns whether an element came, went or moved. */
function keyed(parent, items, create, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let before = null, changed = false;
  for (const item of items) {
    let child = known.get(item.key);
    if (!child) {
      child = create(item);
      child.dataset.key = item.key;
    }
    known.delete(item.key);
    const next = before ? before.nextElementSibling : parent.firstElementChild;
    if (next !== child) {
      parent.insertBefore(child, next);
      changed = true;
    }
    update(child, item);
    before = child;
  }
  for (const gone of known.values()) { gone.remove(); changed = true; }
  return changed;
}

function mark(verdict) { return verdict ? `${MARKS[verdict]} ` : ""; }

// ---- drawing

function draw() {
  if (!shown) return;
  const plan = layout(shown, state);
  keyed($("nodes"), shown.nodes.map((one) => ({ key: one.name, ...one })), () => make("li"), drawNode);
  keyed($("problems"), plan.problems.map((one) => ({ ...one, key: one.id })), makeProblem, drawProblem);
  $("fine").hidden = plan.problems.length > 0;
  const notes = plan.more ? [...shown.notes, `${plan.more} problems more: search narrows them down`] : shown.notes;
  keyed($("notes"), notes.map((one) => ({ key: one })), (one) => make("li", {}, one.key), () => {});
  let moved = false;
  const came = keyed($("callers"), plan.callers, (one) => make("li", { title: one.key }, one.key), (child, one) => {
    if (child.classList.contains("gap") !== one.gap) { child.classList.toggle("gap", one.gap); moved = true; }
  });
  moved = drawRows(plan.rows) || came || moved;
  drawWires(plan.wires, moved);
  if (open) drawPanel();
  tell(plan.problems.length);
}

function drawNode(child, one) {
  child.classList.toggle("bad", Boolean(one.bad));
  const words = [one.bad ? `✕ ${one.bad}` : "", one.name, one.rate === null ? "" : `${rate(one.rate)} flows/s`].filter(Boolean).join(" ");
  const lost = one.lost ? `, ${one.lost} events lost` : "", hidden = one.unshown ? `, ${one.unshown} not shown` : "";
  text(child, words + lost + hidden);
}

function makeProblem(one) {
  const button = make("button", { type: "button" }, make("span", { "aria-hidden": "true" }), make("span"));
  button.addEventListener("click", () => openPanel({ pair: one.id }, button));
  return make("li", {}, button);
}

function drawProblem(child, one) {
  const [button] = child.children, [sign, words] = button.children;
  attribute(button, "class", `edge-${one.verdict}`);
  attribute(sign, "class", one.verdict);
  text(sign, mark(one.verdict));
  text(words, `${title(one)} ${fate(one)}`);
}

/** The rows of a namespace are a tbody each. */
function drawRows(rows) {
  const groups = [];
  for (const row of rows) {
    if (row.kind === "space") groups.push({ key: row.key, rows: [row] });
    else groups[groups.length - 1].rows.push(row);
  }
  const table = $("table"), bodies = [...table.tBodies];
  const known = new Map(bodies.map((one) => [one.dataset.key, one]));
  let before = table.tHead, moved = false;
  for (const group of groups) {
    let body = known.get(group.key);
    if (!body) {
      body = make("tbody");
      body.dataset.key = group.key;
    }
    known.delete(group.key);
    if (before.nextElementSibling !== body) { before.after(body); moved = true; }
    moved = keyed(body, group.rows, makeRow, drawRow) || moved;
    before = body;
  }
  for (const gone of known.values()) { gone.remove(); moved = true; }
  return moved;
}

function makeRow(row) {
  const button = make("button", { type: "button" }), space = row.kind === "space";
  button.addEventListener("click", () => {
    if (!space) return openPanel({ row: row.key }, button);
    state.folded.set(row.space, button.getAttribute("aria-expanded") === "true");
    return draw();
  });
  const graph = document.createElementNS(SVG, "svg");
  graph.setAttribute("viewBox", "0 0 60 14");
  graph.setAttribute("aria-hidden", "true");
  graph.append(document.createElementNS(SVG, "path"));
  const failed = make("td", { class: "num failed" }, make("b", {}, make("span", { "aria-hidden": "true" }), make("span"), make("span", { class: "unseen" })));
  return make("tr", space ? { class: "space" } : {}, make("th", { scope: space ? "rowgroup" : "row", class: "name" }, button),
    make("td", { class: "pods" }), make("td", { class: "num rate" }), make("td", { class: "bars" }, graph), failed,
    make("td", { class: "num out" }), make("td", { class: "num in" }));
}

function drawRow(child, row) {
  const [head, pods, rates, bars, failed, out, back] = child.children, button = head.firstElementChild;
  if (row.kind === "space") {
    attribute(button, "aria-expanded", String(!row.folded));
    text(button, `${row.folded ? "▸" : "▾"} ${row.name} (${row.count})`);
  } else {
    text(button, row.name);
    attribute(button, "title", row.name);
  }
  drawPods(pods, row);
  text(rates, rate(row.rate));
  attribute(bars.firstElementChild.firstElementChild, "d", spark(row.bars));
  const [bold] = failed.children, [sign, figure, word] = bold.children;
  attribute(bold, "class", row.verdict);
  text(sign, mark(row.verdict));
  text(figure, row.failing || !row.failed ? rate(row.failing) : "<0.1");
  text(word, row.verdict ? ` ${row.verdict}` : "");
  text(out, size(row.out));
  text(back, size(row.back));
}

function drawPods(cell, row) {
  const cells = row.pods || [];
  while (cell.childElementCount > cells.length) cell.lastElementChild.remove();
  while (cell.childElementCount < cells.length) cell.append(make("span", { role: "img" }));
  cells.forEach((one, at) => {
    const child = cell.children[at], node = shown.nodes[at] ? shown.nodes[at].name : "";
    const words = row.kind === "space" ? (one[1] ? String(one[1]) : "·") : dots(one);
    text(child, words);
    attribute(child, "aria-label", `${node}: ${one[0]} of ${one[1]} ready`);
    attribute(child, "title", `${node}: ${one[0]} of ${one[1]} ready`);
  });
}

// ---- wires: measured only when something has moved

let places = { from: new Map(), to: new Map(), width: 0, height: 0 };

function measure() {
  const picture = $("picture"), top = picture.getBoundingClientRect().top, box = $("wires").getBoundingClientRect();
  const middle = (child) => { const own = child.getBoundingClientRect(); return own.top - top + own.height / 2; };
  const from = new Map([...$("callers").children].map((one) => [one.dataset.key, middle(one)]));
  const to = new Map([...$("table").querySelectorAll("tbody tr")].map((one) => [one.dataset.key, middle(one)]));
  places = { from, to, width: box.width, height: picture.getBoundingClientRect().height };
}

function drawWires(wires, moved) {
  const svg = $("wires");
  if (moved) {
    measure();
    attribute(svg, "height", String(Math.max(0, Math.round(places.height) - 1)));
  }
  if (!places.width) return void svg.replaceChildren();
  const drawn = wires.filter((one) => places.from.has(one.from) && places.to.has(one.to)).reverse(); // failing ones on top
  keyed(svg, drawn, makeWire, drawWire);
}

function makeWire(wire) {
  const group = document.createElementNS(SVG, "g");
  const line = document.createElementNS(SVG, "path"), hit = document.createElementNS(SVG, "path");
  hit.setAttribute("class", "hit");
  const sign = document.createElementNS(SVG, "text");
  group.append(line, sign, hit);
  group.addEventListener("click", () => {
    const now = layout(shown, { ...state, order: [...state.order] }).wires.find((one) => one.key === wire.key) || wire;
    openPanel(now.pairs.length === 1 ? { pair: now.pairs[0] } : { wire: now.key }, null);
  });
  return group;
}

function drawWire(group, wire) {
  const [line, sign, hit] = group.children, wide = places.width;
  const a = places.from.get(wire.from), b = places.to.get(wire.to), half = wide / 2;
  const way = `M0 ${a}C${half} ${a} ${half} ${b} ${wide} ${b}`;
  attribute(line, "d", way);
  attribute(hit, "d", way);
  attribute(line, "class", wire.verdict);
  attribute(line, "stroke-width", String(width(wire.rate)));
  attribute(sign, "class", wire.verdict);
  attribute(sign, "x", String(half));
  attribute(sign, "y", String((a + b) / 2));
  text(sign, wire.verdict ? MARKS[wire.verdict] : "");
}

new ResizeObserver(() => { if (shown) { const plan = layout(shown, state); drawWires(plan.wires, true); } }).observe($("picture"));

// ---- the panel

function openPanel(what, from) {
  opener = from;
  open = what;
  $("panel").hidden = false;
  $("why").hidden = true;
  drawPanel();
  if (what.pair) explain(what.pair);
  $("close").focus();
}

function closePanel() {
  open = null;
  $("panel").hidden = true;
  if (opener && opener.isConnected) opener.focus();
}

function figures(rows) {
  keyed($("figures"), rows.flatMap(([name, value]) => [{ key: `dt ${name}`, words: name, tag: "dt" }, { key: `dd ${name}`, words: value, tag: "dd" }]),
    (one) => make(one.tag), (child, one) => text(child, one.words));
}

function drawPanel() {
  if (open.pair) return drawPair(open.pair);
  const plan = layout(shown, { ...state, order: [...state.order] });
  const wire = open.wire ? plan.wires.find((one) => one.key === open.wire) : null;
  const pairs = shown.pairs.filter((pair) => open.row ? pair.to === open.row : wire && wire.pairs.includes(pair.id));
  const row = open.row ? plan.rows.find((one) => one.key === open.row) : null;
  const name = open.row ? target({ to: open.row }) : open.wire.split("\n").slice(0, 2).join(" → ").replace(/service |space /, "");
  text($("panel-title"), name);
  const sum = { rate: 0, failing: 0 };
  pairs.forEach((pair) => { sum.rate += pair.rate; sum.failing += pair.failing; });
  const rows = [["connections", `${rate(sum.rate)}/s, ${rate(sum.failing)}/s failed`]];
  if (row && row.pods) rows.push(...row.pods.map((cell, at) => [shown.nodes[at] ? shown.nodes[at].name : "", `${cell[0]} of ${cell[1]} endpoints ready`]).filter((_, at) => row.pods[at][1]));
  figures(rows);
  $("pairs").hidden = false;
  const list = pairs.map((pair) => ({ ...pair, key: pair.id })).sort((a, b) => title(a) < title(b) ? -1 : 1);
  keyed($("pair-list"), list, (one) => {
    const button = make("button", { type: "button" }, make("span", { "aria-hidden": "true" }), make("span"));
    button.addEventListener("click", () => openPanel({ pair: one.id }, opener));
    return make("li", {}, button);
  }, (child, one) => {
    const [sign, words] = child.firstElementChild.children;
    attribute(sign, "class", one.verdict);
    text(sign, mark(one.verdict));
    text(words, `${title(one)} ${fate(one)}, ${rate(one.verdict ? one.failing : one.rate)}/s`);
  });
}

function drawPair(id) {
  const pair = shown.pairs.find((one) => one.id === id);
  $("pairs").hidden = true;
  if (!pair) return void figures([["connections", "none in this minute"]]);
  text($("panel-title"), title(pair));
  figures([
    ["verdict", mark(pair.verdict) + (pair.verdict || "forwarded")],
    ["reason", pair.reason || "-"],
    ["connections", `${rate(pair.rate)}/s, ${pair.opened} in this minute, ${pair.failed} failed`],
    ["bytes", `${size(pair.out)}/s out, ${size(pair.back)}/s back`],
    ...(pair.targets ? [["targets", `${pair.targets} at least, folded into this row`]] : []),
  ]);
}

async function explain(id) {
  $("why").hidden = false;
  text($("lines"), "asking the nodes …");
  text($("commands"), "");
  let found = {};
  try {
    const answer = await ask(`/api/explain?pair=${encodeURIComponent(id)}`);
    found = await answer.json();
  } catch (error) {
    found = { error: String(error.message || error) };
  }
  if (!open || open.pair !== id) return;
  text($("lines"), found.error ? `No answer: ${found.error}` : found.lines.join("\n"));
  text($("commands"), (found.commands || []).join("\n"));
}

// ---- what is told in words

function tell(problems) {
  const words = problems === 1 ? "1 problem" : `${problems} problems`;
  if (words !== said) text($("said"), words);
  said = words;
}

function clock() {
  const silent = performance.now() - heard;
  let words = "connecting", stale = false;
  if (trouble) { words = trouble; stale = true; }
  else if (silent > SILENT) { words = `no answer from podwire ui for ${Math.round(silent / 1000)} s`; stale = true; }
  else if (ago) words = `${span(ago)} ago, ${shown ? time(shown.at) : ""}`;
  else if (shown) words = `${paused ? "paused" : "live"}, ${time(shown.at)}`;
  text($("state"), words);
  $("state").classList.toggle("stale", stale);
}

function time(at) { return new Date(at * 1000).toLocaleTimeString(); }

// ---- the server

function ask(path) {
  return fetch(path, { headers: { Authorization: `Bearer ${key}` }, cache: "no-store" });
}

function take(snapshot) {
  live = snapshot;
  if (!decided && snapshot.spaces.length) {
    decided = true;
    state.startFolded = startsFolded(snapshot);
  }
  if (!paused && !ago) {
    shown = live;
    draw();
  }
}

async function stream() {
  let wait = FIRST_WAIT;
  for (;;) {
    try {
      const answer = await ask("/api/stream");
      if (answer.status === 401) {
        trouble = "the key is missing or old: open the address that podwire ui printed";
        clock();
        return;
      }
      if (!answer.ok) throw new Error(String(answer.status));
      wait = FIRST_WAIT;
      await read(answer.body.getReader());
    } catch { /* told by the clock */ }
    await new Promise((done) => { setTimeout(done, wait); });
    wait = Math.min(LONGEST_WAIT, wait * 2);
  }
}

async function read(reader) {
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard = performance.now();
    const parts = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue;
      try { take(JSON.parse(part.slice(6))); } catch (error) { console.error(error); } // a fault of ours ends no stream
    }
    clock();
  }
}

async function lookBack() {
  const wanted = ago;
  try {
    const answer = await ask(`/api/at?ago=${wanted}`);
    if (!answer.ok) throw new Error(String(answer.status));
    const found = await answer.json();
    if (wanted !== ago) return;
    shown = found;
    draw();
  } catch { text($("said"), "this moment cannot be shown: the server does not answer"); }
  clock();
}

// ---- tools

$("find").addEventListener("input", () => { state.find = $("find").value; draw(); });
$("failing").addEventListener("change", () => { state.failing = $("failing").checked; draw(); });
$("tools").addEventListener("submit", (event) => event.preventDefault());
$("pause").addEventListener("click", () => {
  paused = !paused;
  attribute($("pause"), "aria-pressed", String(paused));
  if (!paused && !ago) { shown = live; draw(); }
  clock();
});
let soon = 0;
$("ago").addEventListener("input", () => {
  ago = -10 * Number($("ago").value);
  attribute($("ago"), "aria-valuetext", ago ? `${span(ago)} ago` : "now");
  clearTimeout(soon);
  if (ago) soon = setTimeout(lookBack, 150);
  else { shown = live; draw(); }
  clock();
});
$("close").addEventListener("click", closePanel);
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && open) closePanel(); });
setInterval(clock, 1000);
stream();
