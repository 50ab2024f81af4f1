// The attention of a sentence pair: the words that its pieces spell, and the heatmap of one head.
// A side is {text, words, pieces, places}: words are {text, start, end}, places the word of each
// piece, or -1 for pieces that spell none. Weights are rows of columns.

// Which side looks (the rows of a heatmap), and at which it looks (the columns).
export const KINDS = {
  cross: { rows: "target", columns: "source" },
  encoder: { rows: "source", columns: "source" },
  decoder: { rows: "target", columns: "written" },
};
const MOST_CELLS = 6400;

export function sideOf(text, language, pieces = []) {
  const words = wordsOf(text, language);
  return { text, words, pieces, places: placesOf(pieces, text, words) };
}

// The decoder reads what was written one step before, behind a symbol of its own.
export function written(target) {
  return {
    ...target,
    pieces: ["<s>", ...target.pieces.slice(0, -1)],
    places: [-1, ...target.places.slice(0, -1)],
  };
}

// Also of languages that put no spaces between words.
function wordsOf(text, language) {
  const segments = [...segmenter(language).segment(text)].filter(({ segment }) => segment.trim());
  return segments.map(({ segment, index }) => (
    { text: segment, start: index, end: index + segment.length }
  ));
}

function segmenter(language) {
  try {
    return new Intl.Segmenter(language, { granularity: "word" });
  } catch {
    return new Intl.Segmenter([], { granularity: "word" });
  }
}

// Pieces are looked for in the text one after the other, since their tokenizer may have lowercased
// them, or may not say where spaces were. One without a character belongs to the piece after it.
function placesOf(pieces, text, words) {
  const lower = text.toLowerCase();
  let at = 0;
  const places = pieces.map((piece) => {
    const part = piece.trim().toLowerCase();
    if (!part) return null;
    const unknown = part === "<unk>" && words.find(({ start }) => start >= at);
    const start = unknown ? unknown.start : lower.indexOf(part, at);
    if (start < 0) return -1;
    at = unknown ? unknown.end : start + part.length;
    return words.filter((word) => word.start < at).length - 1;
  });
  for (let i = places.length - 1; i >= 0; i -= 1) places[i] ??= places[i + 1] ?? -1;
  return places;
}

// One head of a layer, or the mean of all.
export function weightsOf(heads, head) {
  if (head !== "mean") return heads[head - 1];
  const mean = (r, c) => heads.reduce((sum, weights) => sum + weights[r][c], 0) / heads.length;
  return heads[0].map((row, r) => row.map((_, c) => mean(r, c)));
}

// How much a word looks at others: [{place, label, weight}], the most first; place is -1 where a
// piece spells no word. The pieces of the word that looks are averaged, the others' summed.
export function looksAt(word, { rows, columns, weights }) {
  const looking = weights.filter((_, r) => rows.places[r] === word);
  const found = new Map();
  columns.pieces.forEach((piece, c) => {
    const place = columns.places[c];
    const label = place < 0 ? piece : columns.words[place].text;
    const weight = looking.reduce((sum, row) => sum + row[c], 0) / Math.max(looking.length, 1);
    const before = found.get(place < 0 ? piece : place)?.weight ?? 0;
    found.set(place < 0 ? piece : place, { place, label, weight: before + weight });
  });
  return [...found.values()].sort((one, other) => other.weight - one.weight);
}

// A canvas with a pixel for each weight.
export function thumbnail(weights) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [weights[0].length, weights.length];
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(document.body).getPropertyValue("--hot");
  weights.forEach((row, r) => row.forEach((weight, c) => {
    context.globalAlpha = weight;
    context.fillRect(c, r, 1, 1);
  }));
  return canvas;
}

// Fills the table; false where it would be too large.
export function drawHeatmap(table, { side, rows, columns, weights }) {
  table.replaceChildren();
  if (weights.length * columns.pieces.length > MOST_CELLS) return false;
  const longest = Math.max(...columns.pieces.map((piece) => width(readable(piece))));
  table.style.setProperty("--columns", columns.pieces.length);
  table.style.setProperty("--longest", Math.min(longest, 16));
  const heading = table.createTHead().insertRow();
  heading.append(document.createElement("td"));
  columns.pieces.forEach((piece) => heading.append(header("col", piece)));
  const body = table.createTBody();
  weights.forEach((row, r) => {
    const line = body.insertRow();
    Object.assign(line.dataset, { side, word: rows.places[r] });
    line.append(header("row", rows.pieces[r], rows.places[r]));
    row.forEach((weight) => {
      const cell = line.insertCell();
      cell.style.setProperty("--weight", weight);
      cell.className = weight > 0.5 ? "hot" : "";
      cell.textContent = Math.round(100 * weight) || "";
    });
  });
  return true;
}

function header(scope, piece, word = -1) {
  const cell = document.createElement("th");
  const label = document.createElement("span");
  cell.scope = scope;
  label.dir = "auto";
  label.textContent = readable(piece);
  if (word >= 0) Object.assign(label, { tabIndex: -1, role: "button" });
  cell.append(label);
  return cell;
}

// What cannot be seen gets a sign; bytes of a character that a later piece completes, a dot.
function readable(piece) {
  if (!piece) return "·";
  return piece.trim().replace(/[\p{C}\p{Z}]/gu, "␣") || "␣";
}

// In characters of Latin, of which one of Chinese, Japanese or Korean takes two.
function width(label) {
  return [...label].reduce((sum, character) => sum + (character > "\u10ff" ? 2 : 1), 0);
}
