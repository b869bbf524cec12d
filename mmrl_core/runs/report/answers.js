"use strict";
// All held-out answers: two sets side by side, filtered, sorted, searched and paged. Texts are set as text, never as HTML.
const PAGE_SIZE = isPhone.matches ? 8 : 20;
const SVG = "http://www.w3.org/2000/svg";

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null && child !== ""));
  return made;
}

function svgElement(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function counted(prompts) {
  return prompts === 1 ? "1 prompt" : `${prompts.toLocaleString("en")} prompts`;
}

function percent(share) {
  return `${(100 * share).toLocaleString("en", { maximumFractionDigits: 1 })} %`;
}

// What a prompt got in a set: its answers, the share that is right (null: unknown), and the mean total.
function resultOf(answers) {
  if (!answers) return null;
  const judged = answers.filter((answer) => answer.ok !== undefined);
  const totals = answers.map((answer) => answer.total).filter((total) => total !== undefined);
  const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);
  return {
    answers,
    right: mean(judged.map((answer) => Number(answer.ok))),
    judged: judged.length,
    total: mean(totals),
    spread: totals.length > 1 ? Math.max(...totals) - Math.min(...totals) : 0,
  };
}

function answersByPrompt(set) {
  const found = new Map();
  if (set) for (const row of set.rows) found.has(row.p) ? found.get(row.p).push(row) : found.set(row.p, [row]);
  return found;
}

const FILTERS = [
  ["all", "all", () => true],
  ["right", "right after", ({ b }) => b && b.right === 1],
  ["wrong", "wrong after", ({ b }) => b && b.right !== null && b.right < 1],
  ["became-right", "wrong before, right after", ({ a, b }) => a && b && a.right !== null && a.right < 1 && b.right === 1],
  ["became-wrong", "right before, wrong after", ({ a, b }) => a && b && a.right === 1 && b.right !== null && b.right < 1],
  ["better", "higher total after", ({ a, b }) => a && b && b.total - a.total > 1e-6],
  ["worse", "lower total after", ({ a, b }) => a && b && a.total - b.total > 1e-6],
  ["changed", "answered otherwise", ({ a, b }) => a && b && a.answers[0].text !== b.answers[0].text],
  ["disagree", "samples disagree", ({ b }) => b && b.spread > 1e-6],
  ["cut", "truncated after", ({ b }) => b && b.answers.some((answer) => answer.cut)],
  ["unscored", "unscored after", ({ b }) => b && b.answers.some((answer) => answer.total === undefined)],
];
const level = (result) => (result && result.total !== null ? result.total : result && result.right !== null ? result.right : NaN);
const change = ({ a, b }) => level(b) - level(a);
const tokens = ({ b }) => (b ? Math.max(...b.answers.map((answer) => answer.tokens ?? 0)) : NaN);
const SORTS = [
  ["data", "as in the data", null],
  ["worst", "worst first", ({ b }) => level(b)],
  ["best", "best first", ({ b }) => -level(b)],
  ["lost", "lost most", change],
  ["gained", "gained most", (item) => -change(item)],
  ["disagree", "most disagreeing", ({ a, b }) => -Math.max(b ? b.spread : 0, b && b.answers.length < 2 && a ? Math.abs(change({ a, b })) : 0)],
  ["longest", "longest first", (item) => -tokens(item)],
];

function markOf(result) {
  if (!result || result.right === null) return null;
  const { right, judged } = result;
  if (judged > 1) {
    const style = right === 1 ? "right" : right === 0 ? "wrong" : "partly";
    return element("span", `mark ${style}`, `${style === "right" ? "✓" : style === "wrong" ? "✗" : "◐"} ${Math.round(right * judged)} of ${judged} right`);
  }
  return right === 1 ? element("span", "mark right", "✓ right") : element("span", "mark wrong", "✗ wrong");
}

function drawnShapes(svg, shapes, style) {
  for (const [x, y, ...rest] of shapes) {
    const isPoint = rest.length < 3;
    const place = isPoint
      ? { cx: `${x}%`, cy: `${y}%`, r: 14 }
      : { x: `${x}%`, y: `${y}%`, width: `${rest[0]}%`, height: `${rest[1]}%` };
    for (const layer of ["halo", `shape ${style}`]) svg.append(svgElement(isPoint ? "circle" : "rect", { class: layer, ...place }));
  }
}

function embedded({ picture, size: [width, height] }, told) {
  const svg = svgElement("svg", { class: "picture", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": told });
  svg.append(svgElement("use", { href: `#${picture}` }));
  return svg;
}

// With the gold, and what both sets predict; the answers after are on top.
function pictureOf(prompt, before, answer) {
  const svg = embedded(prompt, "prompt picture");
  drawnShapes(svg, prompt.shapes || [], "gold");
  drawnShapes(svg, (before && before.shapes) || [], "before");
  drawnShapes(svg, (answer && answer.shapes) || [], "predicted");
  return svg;
}

function answerCell(result, set, isLast) {
  const cell = element("div", isLast ? "a last" : "a");
  if (!result) {
    cell.append(element("span", "soft", "not answered then"));
    return cell;
  }
  const first = result.answers[0], facts = [];
  if (result.total !== null) facts.push(`total ${shownNumber(result.total)}`);
  if (first.rewards) facts.push(...first.rewards.map((value, place) => `${set.rewards[place]} ${value === null ? "unscored" : shownNumber(value)}`));
  if (first.tokens !== undefined) facts.push(`${shownNumber(first.tokens)} tokens`);
  if (result.answers.some((answer) => answer.cut)) facts.push("truncated");
  cell.append(markOf(result) ?? "", element("span", "facts", facts.join(" · ")), element("span", "what-set", set.label));
  for (const answer of result.answers.slice(0, 8)) {
    if (answer.said !== undefined && answer.said !== answer.text) cell.append(element("div", "said", element("i", "", "answer"), answer.said));
    if (answer.made) {
      cell.append(embedded(answer.made, "picture made by the policy"));
      continue;
    }
    const text = element("div", answer.text ? "completion" : "completion empty", answer.text || "no text");
    text.dir = "auto";
    if (result.answers.length > 1 && answer.ok !== undefined) text.prepend(answer.ok ? "✓ " : "✗ ");
    cell.append(text);
  }
  if (result.answers.length > 8) cell.append(element("p", "note", `${result.answers.length - 8} more samples`));
  return cell;
}

function answerCard(item, sets, hasPictures) {
  const { prompt, a, b } = item;
  const card = element("div", `answer${hasPictures ? "" : " bare"}${sets[0] ? "" : " single"}`);
  if (hasPictures) card.append(element("div", "", prompt.picture ? pictureOf(prompt, a && a.answers[0], b && b.answers[0]) : ""));
  const text = element("div", "prompt-text", prompt.prompt);
  text.dir = "auto";
  const question = element("div", "", element("div", "prompt-id", prompt.id), text);
  if (prompt.gold) {
    const gold = element("div", "gold-text", element("i", "", "gold"), prompt.gold);
    gold.dir = "auto";
    question.append(gold);
  }
  card.append(question);
  if (sets[0]) card.append(answerCell(a, sets[0], false));
  card.append(answerCell(b, sets[1], true));
  return card;
}

function setUpAnswers() {
  const { prompts, sets } = report.answers;
  const get = (id) => document.getElementById(id);
  if (!sets.length || !get("answer-list")) return;
  const [before, after, filter, sort, search] = ["set-a", "set-b", "answer-filter", "answer-sort", "answer-search"].map(get);
  const options = (select, entries) => select.append(...entries.map(([value, text]) => new Option(text, value)));
  const labels = sets.map((set, place) => [String(place), set.label]);
  options(before, [["", "nothing"], ...labels]);
  options(after, labels);
  const isCool = (set) => set.label.endsWith("greedy") || !sets.some((one) => one.label.endsWith("greedy"));
  const cool = sets.map((_, place) => place).filter((place) => isCool(sets[place]));
  const newest = cool[cool.length - 1];
  const twoRuns = sets.some((set) => set.run);
  const ofStages = cool.filter((place) => place !== newest && /^(after |untrained)/.test(sets[place].label));
  const other = twoRuns ? cool.filter((place) => sets[place].run === 0).pop() : (ofStages.pop() ?? cool[0]);
  before.value = other === undefined || other === newest ? "" : String(other);
  after.value = String(newest);
  options(sort, SORTS);
  let page = 0, items = [];

  function chosenSets() {
    return [before.value === "" ? null : sets[Number(before.value)], sets[Number(after.value)]];
  }

  function collect() {
    const [a, b] = chosenSets().map(answersByPrompt);
    items = prompts
      .map((prompt, place) => ({ prompt, place, a: resultOf(a.get(place)), b: resultOf(b.get(place)) }))
      .filter((item) => item.a || item.b);
    const kept = filter.value || "all";
    filter.replaceChildren();
    for (const [value, text, test] of FILTERS) {
      const count = items.filter(test).length;
      if (count || value === "all") filter.append(new Option(`${text} (${count.toLocaleString("en")})`, value));
    }
    filter.value = [...filter.options].some((option) => option.value === kept) ? kept : "all";
    tell();
  }

  // The share of right answers in both sets, with its interval, and how many changed sides.
  function tell() {
    const tallies = chosenSets().filter(Boolean).map((set) => {
      const rows = new Set(set.rows.map((row) => row.p)).size;
      const text = element("span", "", `${set.label}: `);
      if (set.right === null) text.append(counted(rows));
      else {
        text.append(element("b", "", `${percent(set.right)} right`));
        if (set.interval) text.append(` (95 %: ${percent(set.interval[0])} to ${percent(set.interval[1])}, ${counted(rows)})`);
      }
      return text;
    });
    for (const [value, text] of [["became-right", "became right"], ["became-wrong", "became wrong"]]) {
      const count = items.filter(FILTERS.find(([name]) => name === value)[2]).length;
      if (before.value !== "" && items.some(({ b }) => b && b.right !== null)) tallies.push(element("span", "", element("b", "", count.toLocaleString("en")), ` ${text}`));
    }
    get("answer-tallies").replaceChildren(...tallies);
  }

  function show() {
    const test = FILTERS.find(([value]) => value === filter.value)[2], key = SORTS.find(([value]) => value === sort.value)[2];
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const texts = ({ prompt, a, b }) => [prompt.id, prompt.prompt, prompt.gold, ...[a, b].flatMap((one) => (one ? one.answers.map((answer) => answer.text) : []))].join("\n").toLowerCase();
    let found = items.filter(test);
    if (words.length) found = found.filter((item) => { const text = texts(item); return words.every((word) => text.includes(word)); });
    if (key) {
      const keyed = found.map((item) => [key(item), item]);
      const place = ([value]) => (Number.isFinite(value) ? value : Infinity); // what has no number comes last
      found = keyed.sort((one, two) => (place(one) === place(two) ? one[1].place - two[1].place : place(one) - place(two))).map(([, item]) => item);
    }
    const pages = Math.max(1, Math.ceil(found.length / PAGE_SIZE));
    page = Math.min(page, pages - 1);
    const shown = found.slice(page * PAGE_SIZE, (page + 1) * PAGE_SIZE), chosen = chosenSets();
    const hasPictures = prompts.some((prompt) => prompt.picture);
    get("answer-list").replaceChildren(...(shown.length ? shown.map((item) => answerCard(item, chosen, hasPictures)) : [element("div", "none", "No answer is like that.")]));
    const first = page * PAGE_SIZE + 1;
    get("answer-place").textContent = shown.length ? `${first.toLocaleString("en")} to ${(first + shown.length - 1).toLocaleString("en")} of ${found.length.toLocaleString("en")}` : "";
    get("answer-back").disabled = !page;
    get("answer-on").disabled = page >= pages - 1;
  }

  const again = (collects) => () => { page = 0; if (collects) collect(); show(); };
  for (const select of [before, after]) select.addEventListener("change", again(true));
  for (const [control, event] of [[filter, "change"], [sort, "change"], [search, "input"]]) control.addEventListener(event, again(false));
  const turn = (by) => () => { page += by; show(); get("all-answers").scrollIntoView(); };
  get("answer-back").addEventListener("click", turn(-1));
  get("answer-on").addEventListener("click", turn(1));
  report.restoreAnswers = (kept) => {
    for (const [id, control] of [["set-a", before], ["set-b", after]]) if (kept[id] !== undefined && [...control.options].some((option) => option.value === kept[id])) control.value = kept[id];
    collect();
    for (const [id, control] of [["answer-filter", filter], ["answer-sort", sort], ["answer-search", search]]) if (kept[id] !== undefined) control.value = kept[id];
    if (filter.selectedIndex < 0) filter.value = "all";
    page = kept.page ?? 0;
    show();
  };
  report.answerPage = () => page;
  collect();
  show();
}
setUpAnswers();
