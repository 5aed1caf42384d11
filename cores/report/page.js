"use strict";
// Texts reach the page by textContent alone: nothing here makes markup of a string.
const told = JSON.parse(document.getElementById("data").textContent);
const place = id => document.getElementById(id);

function add(parent, tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (name) made.className = name;
  parent.append(made);
  return made;
}

function number(x, digits = 3) {
  if (typeof x !== "number") return "–";
  const rounded = Number(x.toPrecision(digits));
  return x && Math.abs(x) < 1e-4 ? rounded.toExponential()
    : rounded.toLocaleString("en", {maximumFractionDigits: 6});
}

function duration(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${(seconds / 60).toFixed(1)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function pairsOf(parent, rows) {
  const list = add(parent, "dl");
  for (const [name, value] of rows) { add(list, "dt", name); add(list, "dd", value); }
}

function chain() {
  for (const stage of told.stages) {
    const box = add(place("chain"), "li", null, "box");
    add(box, "h3", stage.title);
    add(box, "p", stage.state + (stage.step ? `, step ${stage.step}` : ""), "soft");
    const rows = [["time", duration(stage.seconds)]];
    const each = stage.processes === 1 ? "1 process" : `${stage.processes} processes`;
    rows.push(["cost", `${duration(stage.seconds * stage.processes)} in ${each}`]);
    pairsOf(box, [...rows, ...stage.figures]);
    for (const [name, used, read, format] of stage.data) {
      add(box, "p", `${name}: ${used} of ${read} rows, ${format}`, "soft");
    }
  }
}

function findings() {
  const home = place("findings");
  if (!told.findings.length) add(add(home, "div", null, "box well"), "p", "Nothing was found.");
  for (const one of told.findings) {
    const box = add(home, "div", null, "box finding");
    add(box, "h3", `${one.rule} (${one.stage}${one.step === null ? "" : `, step ${one.step}`})`);
    add(box, "p", `${one.evidence}.`);
    add(box, "p", `${one.cause} ${one.change}`, "soft");
  }
}

const colour = name => () => getComputedStyle(document.documentElement).getPropertyValue(name);
const plots = [], waiting = new Map();
// A plot is drawn when it comes near the window: most of a page is never looked at.
addEventListener("beforeprint", () => {
  for (const draw of waiting.values()) draw();
  waiting.clear();
});
const near = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries) {
    if (!isIntersecting || !waiting.has(target)) continue;
    const draw = waiting.get(target);
    near.unobserve(target);
    waiting.delete(target);
    draw();
  }
}, {rootMargin: "200px"});

function plot(home, title, ...drawn) {
  const box = add(home, "div", null, "plot");
  add(box, "h3", title);
  waiting.set(box, () => draw(box, ...drawn));
  near.observe(box);
}

function draw(box, label, data, series, more = {}) {
  const axis = {stroke: colour("--soft"), grid: {stroke: colour("--line"), width: 1},
                ticks: {stroke: colour("--line"), width: 1}, font: "11px system-ui"};
  const options = {
    width: box.clientWidth || 270, height: 190, scales: {x: {time: false}},
    axes: [{...axis, size: 34}, {...axis, size: 58,
            values: (u, ticks, axis, space, step) => {  // as many digits as tell ticks apart
              const most = Math.max(...ticks.map(Math.abs));
              const digits = Math.max(3, Math.ceil(Math.log10(most / step)) + 2);
              return ticks.map(tick => number(tick, Math.min(digits, 9)));
            }}],
    series: [{label}, ...series], cursor: {points: {size: 5}}, ...more,
  };
  plots.push([new uPlot(options, data, box), box]);
}

const line = (label, name, more = {}) => ({
  label, stroke: colour(name), width: 1.8, spanGaps: true,
  value: (u, x) => number(x), points: {show: false}, ...more,
});

const edge = label => ({label, class: "edge", stroke: "transparent", points: {show: false}, spanGaps: true,
                        value: (u, x) => number(x)});

function curve(home, stage, name, title) {
  const {x, series, half} = stage.curves, y = series[name];
  const data = [x, y], drawn = [line(name, "--main")], more = {};
  const at = name === "score" || name === "kl"
    ? told.frontier.filter(point => typeof point[name] === "number") : [];
  if (half[name]) {
    const off = sign => y.map((v, i) =>
      v === null || half[name][i] === null ? null : v + sign * half[name][i]);
    data.push(off(1), off(-1));
    drawn.push(edge("95% high"), edge("95% low"));
    more.bands = [{series: [2, 3], fill: () => colour("--main")() + "33"}];
  }
  if (at.length && stage.name === "ppo") {
    const xs = [...new Set([...x, ...at.map(point => point.update)])].sort((a, b) => a - b);
    for (let i = 1; i < data.length; i++) {
      const known = new Map(x.map((step, j) => [step, data[i][j]]));
      data[i] = xs.map(step => known.get(step) ?? null);
    }
    data[0] = xs;
    const held = sign => {
      const known = new Map(at.map(p => [p.update, p[name] + sign * (p[`${name}_interval`] ?? 0)]));
      return xs.map(step => known.get(step) ?? null);
    };
    const place = data.length;
    data.push(held(0), held(1), held(-1));
    drawn.push(line("held-out", "--other", {dash: [4, 4], width: 1, points: {show: true, size: 7,
      stroke: colour("--other"), fill: colour("--other")}}), edge("high"), edge("low"));
    more.bands = [...more.bands || [], {series: [place + 1, place + 2],
                  fill: () => colour("--other")() + "33"}];
  }
  plot(home, title, "step", data, drawn, more);
}

const FIRST = {
  sft: [["loss", "loss (nats a token)"], ["grad_norm", "gradient norm"],
        ["learning_rate", "learning rate"]],
  reward: [["loss", "loss (a coin: 0.693)"], ["accuracy", "accuracy of training pairs"],
           ["margin", "margin"]],
  ppo: [["score", "score (deviations of stage 1's)"], ["kl", "KL (nats a reply)"],
        ["entropy", "entropy (nats a token)"], ["response_length", "reply length (tokens)"],
        ["ended", "share that ended by themselves"], ["repetition", "share of words said before"],
        ["clip_fraction", "clip fraction"], ["explained_variance", "explained variance"],
        ["tokens_per_second", "reply tokens a second"]],
};

function curves() {
  for (const stage of [...told.stages].reverse()) {
    const names = Object.keys(stage.curves.series).filter(name => name !== "seconds");
    if (!names.length) continue;
    const size = stage.curves.rows;
    add(place("curves"), "h3", stage.title + (size > 1 ? ` (a point: ${size} rows)` : ""));
    const home = add(place("curves"), "div", null, "plots");
    const first = FIRST[stage.name].filter(([name]) => names.includes(name));
    for (const [name, title] of first) curve(home, stage, name, title);
    const rest = names.filter(name => !first.some(([other]) => other === name));
    if (!rest.length) continue;
    const more = add(place("curves"), "details"), inner = document.createElement("div");
    add(more, "summary", `${rest.length} more curves`);
    inner.className = "plots";
    more.append(inner);
    more.addEventListener("toggle", () => {
      if (more.open && !inner.childElementCount) {
        for (const name of rest) curve(inner, stage, name, name);
      }
    });
  }
  add(place("curves"), "p", "Bands are 95% intervals of a row's mean over its replies or pairs, "
    + "taken for independent; dots are held-out prompts.", "soft");
}

function points(found) {
  // KL and score with their intervals, of whatever has both.
  const value = (x, key) => typeof x === "number" ? x : x && typeof x[key] === "number" ? x[key] : null;
  return found.map(one => [value(one.kl, "mean"), value(one.score, "mean")])
    .filter(([kl, score]) => kl !== null && score !== null).sort((a, b) => a[0] - b[0]);
}

function path(home, title, sets) {
  const filled = sets.filter(([, found]) => found.length);
  if (!filled.some(([, found]) => found.length > 1)) return;
  const xs = [...new Set(filled.flatMap(([, found]) => found.map(p => p[0])))].sort((a, b) => a - b);
  const columns = filled.map(([, found]) => {
    const known = new Map(found);
    return xs.map(x => known.get(x) ?? null);
  });
  const drawn = filled.map(([label, , name]) => line(label, name, {points: {show: true, size: 6}}));
  plot(home, title, "KL", [xs, ...columns], drawn);
}

function estimate(x) {
  if (typeof x === "number") return number(x);
  if (!x || typeof x.mean !== "number") return null;
  return typeof x.low === "number" ? `${number(x.mean)} (${number(x.low)} to ${number(x.high)})`
    : number(x.mean);
}

function table(home, head, rows) {
  const made = add(home, "table"), top = add(made, "tr");
  for (const cell of head) add(top, "th", cell);
  for (const row of rows) {
    const line = add(made, "tr");
    for (const cell of row) add(line, "td", cell);
  }
  return made;
}

const HEAD = "mean, 95% interval";

function policies(home, found) {
  // A column each, the figures below one another.
  const names = ["base", "sft", "ppo"], language = found.language || {};
  const each = names.map(name => ({...(language[name] && {perplexity: language[name].perplexity}),
                                   ...(found.policies || {})[name]}));
  const keys = [...new Set(each.flatMap(Object.keys))];
  const rows = keys.map(key => [key, ...each.map(one => estimate(one[key]) ?? "–")]);
  if (rows.length) {
    const rest = language.rows ? ` (perplexity: of ${language.rows} rows)` : "";
    table(home, [HEAD + rest, ...names], rows).className = "wide";
  }
}

function evaluation(home, found) {
  const bench = found.benchmark, model = found.reward_model || {};
  home.className = "tables";
  policies(home, found);
  const named = [["evaluation", found], ["reward model", model]];
  for (const one of found.comparisons || []) {
    named.push([`${one.of} over ${one.over}, by the ${one.by}`, one]);
  }
  for (const [name, figures] of named) {
    const rows = Object.entries(figures).map(([key, x]) => [key, estimate(x)]);
    const told = rows.filter(row => row[1] !== null);
    if (told.length) table(home, [name, HEAD], told);
  }
  for (const key of ["by_source", "by_difference", "by_length"]) {
    const rows = (model[key] || []).map(one => [one.name, one.pairs, estimate(one.accuracy)]);
    if (rows.length) table(home, [`accuracy ${key.replace("_", " ")}`, "pairs", HEAD], rows);
  }
  if (model.calibration) {
    table(home, ["probability of the preferred reply", "pairs", "right"], [
      ...model.calibration.bins.map(one => [number(one.probability), one.pairs, number(one.right)]),
      ["expected calibration error", "", number(model.calibration.expected_error)]]);
  }
  if (bench) {
    table(home, ["RewardBench 2", "rows", HEAD], [
      ...Object.entries(bench.subsets).map(([name, one]) => [name, one.rows, estimate(one)]),
      ["mean of the subsets", bench.rows, number(bench.mean)],
      ...bench.cut ? [["replies that are cut, without their end", bench.cut, ""]] : []]);
  }
  for (const [name, why] of Object.entries(found.left_out || {})) {
    add(place("worth"), "p", `Left out: ${name}: ${why}`, "soft");
  }
}

function worth() {
  const home = add(place("worth"), "div", null, "plots"), found = told.evaluation;
  path(home, "score over KL, held-out prompts", [
    ["this run", points(told.frontier), "--main"],
    ["kept weights", points(found.frontier || []), "--other"],
    ["best of n", points(found.best_of_n || []), "--good"],
  ]);
  if (told.scores) {
    const {x, before, after} = told.scores, paths = uPlot.paths.stepped({align: 0});
    plot(home, "held-out replies by score", "score", [x, before, after], [
      line("before", "--other", {paths}), line("after", "--main", {paths}),
    ]);
  }
  evaluation(add(place("worth"), "div"), found);
  if (!home.childElementCount && !Object.keys(found).length) {
    add(place("worth"), "p", "Nothing is measured on held-out prompts: PPO has not ended, or "
      + "no prompt is held out. scripts/evaluate.py --prompts FILE measures it.", "soft");
  }
}

function side(home, title, one, name) {
  const box = add(home, "div");
  const kl = typeof one.kl === "number" ? `, KL ${number(one.kl)}` : "";
  add(box, "p", `${title}: score ${number(one.score)}${kl}`, "soft");
  const text = add(box, "p", null, "text");
  for (const [piece, changed] of one.pieces) add(text, "span", piece, changed ? name : "");
}

function card(row) {
  const box = document.createElement("div");
  box.className = "box reply";
  add(box, "p", row.prompt, "text");
  const sides = add(box, "div", null, row.before ? "sides" : "");
  if (row.before) {
    side(sides, "before", row.before, "gone");
    side(sides, "after", row.after, "come");
  } else {
    add(sides, "p", `update ${row.update}: score ${number(row.score)}`, "soft");
    add(sides, "p", row.reply, "text");
  }
  return box;
}

const SHOWN = 20;
const whole = row => row.before
  ? [row.prompt, ...[row.before, row.after].flatMap(one => one.pieces.map(piece => piece[0]))].join("\n")
  : `${row.prompt}\n${row.reply}`;
const gain = row => row.before ? row.after.score - row.before.score : row.score;
const ORDERS = {
  "as they come": null, "most gained first": (a, b) => gain(b) - gain(a),
  "most lost first": (a, b) => gain(a) - gain(b),
};

function replies() {
  const rows = told.pairs.length ? told.pairs : told.rollouts, home = place("replies");
  if (!rows.length) {
    add(home, "p", told.private ? "Prompts and replies are kept out (logging.samples: false)."
      : "None is kept: PPO has not come so far, or no prompt is held out and the run is shorter "
        + "than ppo.sample_every.", "soft");
    return;
  }
  const kind = told.pairs.length ? `Replies to ${rows.length} held-out prompts, changed words marked`
    : `${rows.length} replies of the rollouts, the newest first`;
  const cut = told.pairs.length && told.pairs.length < told.replies
    ? ` (the first ${told.pairs.length} of ${told.replies})` : "";
  add(home, "p", `${kind}${cut}.`, "soft");
  const tools = add(home, "div", null, "tools"), search = add(tools, "input");
  search.type = "search";
  search.placeholder = "Search prompts and replies";
  search.setAttribute("aria-label", search.placeholder);
  const order = add(tools, "select");
  order.setAttribute("aria-label", "Order");
  for (const name of Object.keys(ORDERS)) add(order, "option", name);
  const list = add(home, "div"), count = add(home, "p", null, "soft");
  const more = add(home, "button", "Show more");
  let shown = SHOWN;
  function draw() {
    const wanted = search.value.toLowerCase();
    const found = rows.filter(row => whole(row).toLowerCase().includes(wanted));
    if (ORDERS[order.value]) found.sort(ORDERS[order.value]);
    list.replaceChildren(...found.slice(0, shown).map(card));
    count.textContent = `${Math.min(shown, found.length)} of ${found.length} shown`;
    more.hidden = shown >= found.length;
  }
  search.addEventListener("input", () => { shown = SHOWN; draw(); });
  order.addEventListener("change", draw);
  more.addEventListener("click", () => { shown += SHOWN; draw(); });
  draw();
}

function details() {
  const home = place("details");
  const commands = told.stages.map(stage => stage.command).filter(Boolean);
  add(home, "p", "Commands, in the folder of the repository:");
  add(home, "pre", commands.join("\n"));
  for (const stage of told.stages) {
    const more = add(home, "details");
    add(more, "summary", `${stage.title}: configuration and versions`);
    const versions = Object.entries(stage.versions).map(([name, x]) => `${name} ${x}`);
    add(more, "p", versions.join(", "), "soft");
    add(more, "pre", JSON.stringify(stage.config, null, 2));
  }
}

document.title = `Report: ${told.name}`;
place("name").textContent = told.name;
place("written").textContent = `written ${told.written}`;
for (const part of [chain, findings, curves, worth, replies, details]) part();

addEventListener("resize", () => {
  for (const [made, box] of plots) made.setSize({width: box.clientWidth, height: 190});
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const [made] of plots) made.redraw(false, true);
});
