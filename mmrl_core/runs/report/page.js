"use strict";
// The rest of the page: training groups chosen among, a phone's order, and a page that follows a run that goes on.

function setUpGroups() {
  const list = document.getElementById("groups"), tools = document.getElementById("group-tools");
  if (!list || !tools) return;
  const cards = [...list.querySelectorAll("details.rollout-card")];
  const [filter, sort, search] = ["group-filter", "group-sort", "group-search"].map((id) => document.getElementById(id));
  const number = (card, name) => (card.dataset[name] === "" ? NaN : Number(card.dataset[name]));
  const tests = {
    all: () => true,
    mixed: (card) => number(card, "spread") > 1e-6,
    flat: (card) => card.dataset.flat === "1",
    right: (card) => number(card, "judged") > 0 && number(card, "right") === number(card, "judged"),
    wrong: (card) => number(card, "judged") > 0 && number(card, "right") === 0,
  };
  for (const option of [...filter.options]) {
    const count = cards.filter(tests[option.value]).length;
    option.textContent += ` (${count})`;
    if (!count && option.value !== "all") option.remove();
  }
  const keys = {
    step: () => 0,
    last: (card) => -number(card, "step"),
    disagree: (card) => -number(card, "spread"),
    worst: (card) => number(card, "mean"),
    best: (card) => -number(card, "mean"),
  };
  const texts = new Map(cards.map((card) => [card, card.textContent.toLowerCase()]));
  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean), key = keys[sort.value];
    const place = (card) => (Number.isFinite(key(card)) ? key(card) : Infinity);
    const order = cards.map((card, at) => [place(card), at, card]).sort((one, two) => (one[0] === two[0] ? one[1] - two[1] : one[0] - two[0]));
    list.append(...order.map(([, , card]) => card));
    let count = 0;
    for (const card of cards) {
      card.hidden = !(tests[filter.value] ?? tests.all)(card) || !words.every((word) => texts.get(card).includes(word));
      count += !card.hidden;
    }
    document.getElementById("group-count").textContent = `${count} of ${cards.length} groups`;
  };
  for (const [control, event] of [[filter, "change"], [sort, "change"], [search, "input"]]) control.addEventListener(event, show);
  report.showGroups = show;
  show();
}

// A phone sees the newest evaluation first, and unfolds charts when asked.
function fitPhone() {
  for (const row of document.querySelectorAll(".held-out tr")) {
    const cells = [...row.children], newest = cells.find((cell) => cell.dataset.newest);
    if (!newest) continue;
    if (isPhone.matches) row.insertBefore(newest, cells[2]);
    else row.append(newest);
  }
  for (const fold of document.querySelectorAll("details.fold")) fold.open = !isPhone.matches && fold.dataset.open === "1";
}

const LEAST_SHOWN_MS = 10000;

// A server that follows the run says which version is there; a reload keeps what was chosen, opened and scrolled to.
function follow() {
  if (!report.live) return;
  const key = `mmrl ${location.pathname}`, told = document.getElementById("live");
  const controls = () => [...document.querySelectorAll(".tools select, .tools input")];
  const folds = () => [...document.querySelectorAll("details")];
  const kept = JSON.parse(sessionStorage.getItem(key) || "null");
  sessionStorage.removeItem(key);
  if (kept) {
    for (const control of controls()) if (control.id.startsWith("group-") && kept.controls[control.id] !== undefined) control.value = kept.controls[control.id];
    if (report.showGroups) report.showGroups();
    if (report.restoreAnswers) report.restoreAnswers({ ...kept.controls, page: kept.page });
    folds().forEach((fold) => {
      const was = kept.folds[nameOf(fold)];
      if (was !== undefined) fold.open = was;
    });
    scrollTo(0, kept.scroll);
  }
  function nameOf(fold) {
    return fold.querySelector("summary")?.textContent.trim().slice(0, 80) ?? "";
  }
  async function ask() {
    try {
      const version = await (await fetch("/version", { cache: "no-store" })).text();
      told.textContent = "● live";
      if (version !== report.live && !document.activeElement?.matches("input, select")) {
        const values = Object.fromEntries(controls().map((control) => [control.id, control.value]));
        const opened = Object.fromEntries(folds().map((fold) => [nameOf(fold), fold.open]));
        const page = report.answerPage ? report.answerPage() : 0;
        sessionStorage.setItem(key, JSON.stringify({ controls: values, folds: opened, scroll: scrollY, page }));
        location.reload();
        return;
      }
    } catch {
      told.textContent = "the server has ended";
    }
    setTimeout(ask, 2000);
  }
  told.textContent = "● live";
  setTimeout(ask, LEAST_SHOWN_MS);
}

setUpGroups();
fitPhone();
isPhone.addEventListener("change", fitPhone);
follow();
