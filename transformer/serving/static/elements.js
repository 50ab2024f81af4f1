// Elements of the page that are made anew for each answer. Texts go in as text, never as HTML.

export function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Fills a chooser, and hides it where there is nothing to choose.
export function fill(select, options, value) {
  select.replaceChildren(...options.map(([given, label]) => new Option(label, given)));
  select.value = value;
  select.parentElement.hidden = options.length < 2;
}

// Shows radio buttons; returns the value that is chosen, the fallback where there is none such.
export function choices(place, name, options, value, fallback) {
  const known = options.some(([one]) => one === value) ? value : fallback;
  place.querySelector(".choices").replaceChildren(...options.map(([one, ...shown]) => {
    const input = element("input", { type: "radio", name, value: one });
    input.checked = one === known;
    return element("label", {}, input, element("span", {}, ...shown));
  }));
  return known;
}

// The text of a side, its words as elements.
export function* spelled(side, name, properties) {
  let at = 0;
  for (const [word, { start, end, text: label }] of side.words.entries()) {
    yield side.text.slice(at, start);
    const shown = element("span", { textContent: label, ...properties });
    Object.assign(shown.dataset, { side: name, word });
    yield shown;
    at = end;
  }
  yield side.text.slice(at);
}
