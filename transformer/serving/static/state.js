// What one sees follows from these values, all of them texts; the link holds those that differ.

import { LABELS } from "./labels.js";

// `layer` "" is the last one, `pick` a hypothesis, counted from 1, `word` the one that is kept lit,
// counted from 0.
export const DEFAULTS = {
  text: "", bundle: "", to: "", beam: "4", pick: "1", kind: "cross", layer: "", head: "mean",
  word: "", ui: "",
};
export const state = { ...DEFAULTS };

export function readLink() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [key, value] of Object.entries(DEFAULTS)) state[key] = given.get(key) ?? value;
}

export function writeLink() {
  const changed = Object.entries(state).filter(([key, value]) => value !== DEFAULTS[key]);
  const link = `#${new URLSearchParams(changed)}`;
  history.replaceState(null, "", link);
  return link;
}

export function ui() {
  if (state.ui in LABELS) return state.ui;
  return navigator.language.startsWith("ko") ? "ko" : "en";
}

export function say(key, ...values) {
  const label = LABELS[ui()][key];
  return typeof label === "function" ? label(...values) : label;
}
