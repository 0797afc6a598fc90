// What to draw of a snapshot. Pure: no document, no clock.

export const MARKS = { refused: "✕", reset: "↯", dropped: "⊘", unanswered: "…" };
const WORST = ["refused", "dropped", "reset", "unanswered"];
const MOST_WIRES = 120, FOLDS = 40, MOST_PROBLEMS = 30;
const LAST = ["outside the cluster", "nodes", "not known"];

/** A rate for people: "0", "0.3", "41", "3.2k". null: nobody knows. */
export function rate(value) {
  if (value === null || value === undefined) return "-";
  if (value === 0) return "0";
  if (value < 0.1) return "<0.1";
  if (value < 10) return String(Math.round(value * 10) / 10);
  return value < 1000 ? String(Math.round(value)) : `${(value / 1000).toFixed(1)}k`;
}

/** Bytes a second for people. */
export function size(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; value >= 1000 && unit < 4; unit++) value /= 1000;
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** "3 min 20 s" */
export function span(seconds) {
  const minutes = Math.floor(seconds / 60), rest = seconds % 60;
  return [minutes ? `${minutes} min` : "", rest || !minutes ? `${rest} s` : ""].filter(Boolean).join(" ");
}

/** Whom a pair dials, in words. */
export function target(pair) {
  const [kind, ...rest] = pair.to.split(" "), own = rest.join(" ");
  const words = kind === "service" || kind === "gone" || kind === "pod" ? own : kind === "node" ? `node ${own}`
    : kind === "outside" ? "outside" : "an unknown pod";
  const udp = pair.protocol && pair.protocol !== "tcp" ? `/${pair.protocol}` : "";
  return `${words}${pair.port ? `:${pair.port}` : ""}${udp}`;
}

export function title(pair) { return `${pair.from} → ${target(pair)}`; }

/** What became of a pair's connections: "refused, CLOSED_PORT" */
export function fate(pair) {
  return pair.verdict ? pair.verdict + (pair.reason ? `, ${pair.reason}` : "") : "forwarded";
}

/** Whether the snapshot has so many Services that namespaces start folded. */
export function startsFolded(snapshot) {
  return snapshot.spaces.reduce((sum, one) => sum + one.rows.filter((row) => row.pods).length, 0) > FOLDS;
}

function worst(verdicts) { return WORST.find((one) => verdicts.has(one)) || ""; }

function nothing() { return { rate: 0, failing: 0, failed: 0, out: 0, back: 0, bars: [0, 0, 0, 0, 0, 0], verdicts: new Set() }; }

function add(sum, pair) {
  sum.rate += pair.rate; sum.failing += pair.failing; sum.failed += pair.failed; sum.out += pair.out; sum.back += pair.back;
  pair.bars.forEach((count, at) => { sum.bars[at] += count; });
  if (pair.verdict && pair.failed) sum.verdicts.add(pair.verdict);
}

function has(words, text) { return words.every((word) => text.includes(word)); }

/** The pairs that the search and "failing only" leave. */
function chosen(snapshot, state) {
  const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
  return snapshot.pairs.filter((pair) => (!state.failing || pair.failed)
    && has(words, `${title(pair)} ${fate(pair)}`.toLowerCase()));
}

/**
 * state: { find: text, failing: boolean, folded: Map of namespace -> boolean, startFolded: boolean }.
 * Returns { rows, callers, wires, problems, more }. Keys are stable: the same thing has the same key in every snapshot.
 */
export function layout(snapshot, state) {
  const pairs = chosen(snapshot, state);
  const narrowed = Boolean(state.find.trim()) || state.failing;
  const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
  const isFolded = (space) => state.folded.has(space) ? state.folded.get(space) : state.startFolded && !LAST.includes(space);
  const sums = new Map(), wanted = new Set();
  for (const pair of pairs) {
    if (!sums.has(pair.to)) sums.set(pair.to, nothing());
    add(sums.get(pair.to), pair);
    wanted.add(pair.to);
  }
  const rows = [], place = new Map();
  for (const space of snapshot.spaces) {
    const own = space.rows.filter((row) => !narrowed || wanted.has(row.id)
      || (!state.failing && words.length && has(words, `${space.name}/${row.name}`.toLowerCase())));
    if (!own.length) continue;
    const folded = isFolded(space.name), whole = nothing(), pods = snapshot.nodes.map(() => [0, 0]);
    const below = [];
    for (const row of own) {
      const sum = sums.get(row.id) || nothing();
      whole.rate += sum.rate; whole.failing += sum.failing; whole.failed += sum.failed; whole.out += sum.out; whole.back += sum.back;
      sum.bars.forEach((count, at) => { whole.bars[at] += count; });
      sum.verdicts.forEach((one) => whole.verdicts.add(one));
      (row.pods || []).forEach((cell, at) => { pods[at][0] += cell[0]; pods[at][1] += cell[1]; });
      below.push({ key: row.id, kind: "row", name: row.name, pods: row.pods, verdict: worst(sum.verdicts), ...sum });
      place.set(row.id, folded ? `space ${space.name}` : row.id);
    }
    rows.push({ key: `space ${space.name}`, kind: "space", space: space.name, name: space.name || "cluster", count: own.length,
      folded, pods, verdict: worst(whole.verdicts), ...whole });
    if (!folded) rows.push(...below);
  }
  const lane = (caller) => {
    const slash = caller.indexOf("/");
    return slash > 0 && isFolded(caller.slice(0, slash)) ? `${caller.slice(0, slash)}/*` : caller;
  };
  const here = narrowed ? new Set(pairs.map((pair) => pair.from)) : null;
  const callers = [];
  let before = null;
  for (const caller of snapshot.callers) {
    if (here && !here.has(caller)) continue;
    const own = lane(caller), slash = own.indexOf("/"), space = slash > 0 ? own.slice(0, slash) : own.split(" ")[0];
    const last = callers.length ? callers[callers.length - 1].key : "";
    if (last === own) continue;
    callers.push({ key: own, gap: before !== null && space !== before && !(own.endsWith("/*") && last.endsWith("/*")) });
    before = space;
  }
  return { rows, callers, wires: wires(pairs, place, lane), ...problems(pairs, state) };
}

function wires(pairs, place, lane) {
  const found = new Map();
  for (const pair of pairs) {
    const to = place.get(pair.to);
    if (!to || !(pair.opened || pair.failed)) continue;
    const from = lane(pair.from), verdict = pair.failed ? pair.verdict : "", key = `${from}\n${to}\n${verdict}`;
    const one = found.get(key) || { key, from, to, verdict, rate: 0, pairs: [] };
    one.rate += pair.verdict ? Math.max(pair.failing, pair.failed / 60) : pair.rate;
    one.pairs.push(pair.id);
    found.set(key, one);
  }
  return [...found.values()].sort((a, b) => Number(!a.verdict) - Number(!b.verdict) || b.rate - a.rate).slice(0, MOST_WIRES);
}

/** Pairs that failed in the last minute, in the order in which they were first seen: none moves. */
function problems(pairs, state) {
  const now = pairs.filter((pair) => pair.failed);
  const known = new Set(now.map((pair) => pair.id));
  state.order = (state.order || []).filter((id) => known.has(id));
  const before = new Set(state.order);
  state.order.push(...now.filter((pair) => !before.has(pair.id)).sort((a, b) => b.failed - a.failed).map((pair) => pair.id));
  const by = new Map(now.map((pair) => [pair.id, pair]));
  const all = state.order.map((id) => by.get(id));
  return { problems: all.slice(0, MOST_PROBLEMS), more: Math.max(0, all.length - MOST_PROBLEMS) };
}

/** The width of a wire in pixels: one for each tenfold. */
export function width(value) { return Math.max(1, Math.min(5, Math.round(1.6 + 1.3 * Math.log10(value + 0.1)))); }

/** A line through six counts, in a box of 60 x 14. */
export function spark(bars) {
  const most = Math.max(1, ...bars);
  return bars.map((count, at) => `${at ? "L" : "M"}${at * 11 + 2} ${(12 - 10 * count / most).toFixed(1)}`).join("");
}

/** The endpoints of a Service on one node: "●●○", a number if there are many, "·" for none. */
export function dots([ready, all]) {
  if (!all) return "·";
  return all > 3 ? (ready === all ? String(all) : `${ready}/${all}`) : "●".repeat(ready) + "○".repeat(all - ready);
}
