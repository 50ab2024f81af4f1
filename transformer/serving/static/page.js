// The page of `transformer serve`: what is asked when, and what is shown of the answers.

import { ask } from "./api.js";
import {
  KINDS, drawHeatmap, sideOf, thumbnail, weightsOf, written,
} from "./attention.js";
import { choices, element, fill, spelled } from "./elements.js";
import { languageName } from "./labels.js";
import { listenThrough, listenTo, looking, setView } from "./lights.js";
import { DEFAULTS, readLink, say, state, ui, writeLink } from "./state.js";

const PAUSE = 300; // milliseconds without a key, after which a text counts as typed
const MOST_HYPOTHESES = 5;

let bundles = [];
let hypotheses = []; // the API's answers: translations, best first,
let attention = null; // and the attention of the one that is chosen
let running = new AbortController();
let typing = 0;

const $ = (id) => document.getElementById(id);
const bundle = () => bundles.find(({ name }) => name === state.bundle) ?? bundles[0];
const into = () => (bundle().targets.includes(state.to) ? state.to : bundle().tgt);
const chosen = () => hypotheses[state.pick - 1] ?? hypotheses[0];
const text = () => state.text.normalize("NFC");
const line = () => text().replace(/\s+/g, " ").trim();

// --- what is asked

// Does one thing at a time: what ran before is given up.
async function run(task) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const answer = (path, body) => ask(
    path, { ...body, bundle: bundle().name, to: into() }, signal,
    (seconds) => { $("status").textContent = say("busy", seconds); },
  );
  $("page").ariaBusy = "true";
  try {
    await task(answer);
    $("status").textContent = "";
  } catch (error) {
    if (signal.aborted) return;
    $("status").textContent = error.message;
    showHypotheses();
    showTranslation();
  }
  showAttention();
  $("page").ariaBusy = "false";
}

async function translate(answer) {
  hypotheses = [];
  attention = null;
  if (line()) {
    const beam = Number(state.beam);
    const n_best = Math.min(beam, MOST_HYPOTHESES);
    ({ translations: [hypotheses] } = await answer("v1/translate", { text: line(), beam, n_best }));
  }
  showHypotheses();
  await look(answer);
}

async function look(answer) {
  attention = null;
  setView(null);
  showTranslation();
  if (!chosen()?.text) return;
  const pair = { source: line(), target: chosen().text };
  attention = await answer("v1/attention", pair).catch(({ message }) => {
    throw new Error(say("unseen", message));
  });
}

// --- what is shown

function showLabels() {
  document.documentElement.lang = ui();
  for (const labelled of document.querySelectorAll("[data-say]")) {
    labelled.textContent = say(labelled.dataset.say);
  }
  Object.assign($("language"), { textContent: say("other"), lang: ui() === "ko" ? "en" : "ko" });
  $("text").placeholder = say("write");
}

function showBundle() {
  const { name, src, targets, architecture } = bundle();
  const names = [src, into()].map((code) => languageName(code, ui()));
  $("about").textContent = `${name} · ${names.join(" → ")} · ${architecture}`;
  $("source-title").textContent = say("text", names[0]);
  $("target-title").textContent = say("translation", names[1]);
  $("text").lang = src;
  $("source").lang = src;
  $("target").lang = into();
  fill($("page").elements.bundle, bundles.map((one) => [one.name, one.name]), name);
  fill($("page").elements.to, targets.map((to) => [to, languageName(to, ui())]), into());
  if (!["1", "2", "4", "8"].includes(state.beam)) state.beam = DEFAULTS.beam;
  $("page").elements.beam.value = state.beam;
}

// The text once more, with its words as elements, behind the text area.
function showSource() {
  if ($("text").value !== state.text) $("text").value = state.text;
  // A line break at the end shows only when something follows it.
  $("source").replaceChildren(...spelled(sideOf(text(), bundle().src), "source"), "\u200b");
}

function showHypotheses() {
  const digits = { minimumFractionDigits: 2, maximumFractionDigits: 2 };
  const number = new Intl.NumberFormat(ui(), digits);
  const options = hypotheses.map((one, index) => [
    String(index + 1),
    element("bdi", { textContent: `${one.flaw ? "⚠ " : ""}${one.text || "∅"}` }),
    element("small", { textContent: `${say("score")} ${number.format(one.score)}` }),
    element("small", { textContent: `${say("logProb")} ${number.format(one.log_prob)}` }),
  ]);
  state.pick = choices($("hypotheses"), "pick", options, state.pick, "1");
  $("hypotheses").hidden = !hypotheses.length;
}

function showTranslation() {
  const { text: translation = "", flaw = null } = chosen() ?? {};
  const word = { role: "button", tabIndex: -1 };
  $("target").replaceChildren(...spelled(sideOf(translation, into()), "target", word));
  $("spoken").textContent = translation;
  $("flaw").textContent = flaw ? `⚠ ${say(flaw)}` : "";
}

function showAttention() {
  const kinds = Object.keys(KINDS).filter((kind) => attention?.[kind]?.length);
  $("attention").hidden = !attention;
  $("blind").hidden = kinds.length > 0;
  $("seen").hidden = !kinds.length;
  if (kinds.length) drawAttention(kinds);
  remember();
}

function drawAttention(kinds) {
  const names = kinds.map((kind) => [kind, say(kind)]);
  state.kind = choices($("kinds"), "kind", names, state.kind, kinds[0]);
  const layers = attention[state.kind];
  const numbers = layers.map((_, index) => [String(index + 1), index + 1]);
  const layer = choices($("layers"), "layer", numbers, state.layer, String(layers.length));
  const heads = layers[layer - 1];
  const pictures = ["mean", ...heads.keys()].map((head) => {
    const name = head === "mean" ? head : String(head + 1);
    return [name, thumbnail(weightsOf(heads, name)), head === "mean" ? say(head) : name];
  });
  state.head = choices($("heads"), "head", pictures, state.head, "mean");

  const source = sideOf(text(), bundle().src, attention.source);
  const target = sideOf(chosen().text, into(), attention.target);
  const sides = { source, target, written: written(target) };
  const { rows: side, columns } = KINDS[state.kind];
  const lights = columns === "source" ? columns : "target";
  const weights = weightsOf(heads, state.head);
  const view = { side, lights, rows: sides[side], columns: sides[columns], weights };
  const drawn = drawHeatmap($("heatmap"), view);
  $("axes").textContent = say(`${state.kind}Axes`);
  setView({ ...view, hint: say(drawn ? "hint" : "large") });
}

function remember() {
  $("link").href = writeLink();
  $("link").textContent = say("link");
}

// --- what the reader does

function typed() {
  Object.assign(state, { text: $("text").value, pick: "1", word: "" });
  running.abort();
  $("page").ariaBusy = "true";
  setView(null);
  showSource();
  remember();
  clearTimeout(typing);
  typing = setTimeout(run, PAUSE, translate);
}

function changed({ target: { name, value } }) {
  if (!(name in DEFAULTS) || name === "text") return;
  state[name] = value;
  if (name === "pick" || KINDS[state.kind].rows !== looking()) state.word = "";
  if (name === "pick") run(look);
  else if (["bundle", "to", "beam"].includes(name)) begin();
  else {
    showAttention();
    document.querySelector(`[name=${name}]:checked`).focus();
  }
}

function begin() {
  showLabels();
  showBundle();
  showSource();
  run(translate);
}

function listen() {
  $("text").addEventListener("input", typed);
  $("page").addEventListener("change", changed);
  $("page").addEventListener("submit", (event) => event.preventDefault());
  $("language").addEventListener("click", () => {
    state.ui = ui() === "ko" ? "en" : "ko";
    begin();
  });
  $("link").addEventListener("click", (event) => {
    event.preventDefault();
    navigator.clipboard?.writeText($("link").href).then(() => {
      $("link").textContent = say("copied");
    });
  });
  document.querySelectorAll(".words").forEach((group) => listenTo(group, remember));
  listenThrough($("text"));
  window.addEventListener("hashchange", () => {
    readLink();
    begin();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showAttention);
}

readLink();
showLabels();
try {
  ({ bundles } = await ask("v1/bundles"));
  listen();
  begin();
} catch (error) {
  $("status").textContent = error.message;
}
