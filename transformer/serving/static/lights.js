// The words that light up: those at which the word under the pointer, or with the focus, looks.

import { looksAt } from "./attention.js";
import { say, state } from "./state.js";

const SHOWN = 4; // words that are named with their weights
const SMALLEST = 0.01; // weight that is worth naming

// What is drawn, for drawAttention to set: {side, lights, rows, columns, weights, hint}. Words of
// `side` look at words of `lights`.
let view = null;

export function setView(drawn) {
  view = drawn;
  for (const group of document.querySelectorAll(".words")) {
    const first = group.querySelector("[role=button]");
    if (first) first.tabIndex = 0;
  }
  light(state.word);
}

export const looking = () => view?.side;

// Lights up what a word looks at, by weight; nothing for "".
function light(word) {
  for (const lit of document.querySelectorAll(".lit, .looking")) {
    lit.classList.remove("lit", "looking");
    lit.style.removeProperty("--weight");
  }
  if (!view) return;
  const found = word === "" ? [] : looksAt(Number(word), view);
  for (const { place, weight } of found) {
    for (const lit of document.querySelectorAll(`span${at(view.lights, place)}`)) {
      lit.classList.add("lit");
      lit.style.setProperty("--weight", weight.toFixed(3));
    }
  }
  const itself = word === "" ? [] : document.querySelectorAll(at(view.side, Number(word)));
  itself.forEach((one) => one.classList.add("looking"));
  document.querySelectorAll("[role=button]").forEach((button) => {
    button.ariaPressed = String(state.word !== "" && wordOf(button) === state.word);
  });
  const named = found.slice(0, SHOWN).filter(({ weight }) => weight >= SMALLEST)
    .map(({ label, weight }) => `${isolated(label.trim())} ${Math.round(100 * weight)} %`);
  document.getElementById("readout").textContent = named.length
    ? say("looks", isolated(view.rows.words[word].text), named.join(", ")) : view.hint;
}

// Keeps a word of a right-to-left language from turning around what stands beside it.
const isolated = (word) => `\u2068${word}\u2069`;

const at = (side, word) => `[data-side="${side}"][data-word="${word}"]`;

// The number of the word to which an element belongs, if words of its side look; else "".
function wordOf(target) {
  const { side, word } = target.closest("[data-word]")?.dataset ?? {};
  return side === looking() && word >= 0 ? word : "";
}

// Lets a group of words answer to the pointer, and to the keys of a toolbar. `kept` is called when
// a word is kept lit, or no longer.
export function listenTo(group, kept) {
  const keep = (word) => {
    if (word === "") return;
    state.word = word === state.word ? "" : word;
    light(state.word);
    kept();
  };
  for (const enter of ["pointerover", "focusin"]) {
    group.addEventListener(enter, ({ target }) => light(wordOf(target) || state.word));
  }
  for (const leave of ["pointerleave", "focusout"]) {
    group.addEventListener(leave, () => light(state.word));
  }
  group.addEventListener("click", ({ target }) => keep(wordOf(target)));
  group.addEventListener("keydown", (event) => {
    const next = ["Enter", " "].includes(event.key) ? event.target : neighbour(event, group);
    if (!next || event.target.role !== "button") return;
    event.preventDefault();
    if (next === event.target) keep(wordOf(next));
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

// The words behind the text area answer to a pointer in front of it.
export function listenThrough(area) {
  area.addEventListener("pointermove", ({ clientX, clientY }) => {
    const behind = document.elementsFromPoint(clientX, clientY);
    light(behind.map(wordOf).find((word) => word !== "") ?? state.word);
  });
  area.addEventListener("pointerleave", () => light(state.word));
}

function neighbour({ key, target }, group) {
  const words = [...group.querySelectorAll("[role=button]")];
  const onward = getComputedStyle(group).direction === "rtl" ? -1 : 1;
  const step = { ArrowRight: onward, ArrowLeft: -onward, ArrowDown: 1, ArrowUp: -1 }[key];
  if (step) return words[words.indexOf(target) + step];
  return { Home: words[0], End: words.at(-1) }[key];
}
