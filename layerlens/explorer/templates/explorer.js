// The page of an explorer. It shows numbers that Python made: it sorts, colors and draws, adds up entries of the ledger,
// and subtracts what is compared.
// Checked by `tsc --checkJs --strict`; texts are set as text, never as HTML.
"use strict";

/**
 * @typedef {number[]} View  A part of the array of all numbers: the place of its first number, then its shape.
 * @typedef {{name: string, form: "image" | "series" | "tokens" | "vector", sizes: number[], block: number,
 *   axes: string[], picture: string | null, tokens: string[] | null, rows: string[] | null, values: View | null,
 *   maps: View}} Part  One input; maps are (method, target, ...cells).
 * @typedef {{sizes: number[], block: number, unitBlock: number, kept: number[], numbers: View, activation: View, active: View | null,
 *   relevance: View | null, map: View | null, maps: View | null}} LayerValues
 * @typedef {{inputs: number, constants: number, absorbed: number, score: number}} Rest
 * @typedef {{parts: number[], queries: number[], block: number, weights: View}} Attention
 * @typedef {{direct: View, total: View, sizes: number[], block: number, tokens: View | null, rest: Rest[],
 *   attention: Attention | null}} HeadValues
 * @typedef {{label: string, text: string | null, targets: string[], scores: number[], outputs: string[][],
 *   facts: string[][], parts: Part[], layers: (LayerValues | null)[], heads: HeadValues | null,
 *   ledger: {sums: number[][], amounts: View}}} Sample
 * @typedef {{name: string, path: string, tensor: string, call: number, type: string, units: number, known: number[] | null,
 *   places: string[]}} Layer
 * @typedef {{path: string, name: string, type: string, parent: string | null, output: string, parameters: number,
 *   calls: number | null, layers: number[]}} Row
 * @typedef {{title: string, targets: string[], methods: {name: string, units: string, signed: boolean, cost: string}[],
 *   samples: Sample[], layers: Layer[], tree: Row[], numbers: {name: string, about: string}[],
 *   entries: {kind: string, layer: string, source: string}[],
 *   heads: {parts: {name: string, layer: string, head: number | null}[], withTokens: number[]} | null,
 *   results: {title: string, html: string}[], facts: string[][], notes: string[], warnings: string[]}} Content
 * @typedef {{sample: number, target: number, method: number}} Side
 * @typedef {"relevance" | "active"} Kind
 * @typedef {{view: string, input: number, target: number, method: number, compared: {input: number, target: number,
 *   method: number} | null, layer: string | null, call: number, unit: number | null, token: number | null,
 *   head: {layer: string, head: number | null} | null}} Selected  As `selected` of the widget.
 */

/** @param {string} id @returns {HTMLElement} */
function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`no element ${id}`);
  return found;
}

/** @type {Content} */
const content = JSON.parse(byId("data").textContent ?? "");
const numbers = unpacked(byId("numbers").textContent ?? "");
byId("numbers").textContent = "";

/** The numbers of a text in base64. @param {string} text @returns {Float32Array} */
function unpacked(text) {
  const { fromBase64 } = /** @type {{fromBase64?: (text: string) => Uint8Array<ArrayBuffer>}} */ (Uint8Array);
  if (fromBase64) return new Float32Array(fromBase64.call(Uint8Array, text).buffer); // browsers from 2025 on
  const packed = atob(text.trim());
  const bytes = new Uint8Array(packed.length);
  for (let place = 0; place < packed.length; place++) bytes[place] = packed.charCodeAt(place);
  return new Float32Array(bytes.buffer);
}

/** The part of an array at the first axes. @param {View} view @param {number[]} index @returns {Float32Array} */
function part(view, ...index) {
  let at = view[0];
  let length = view.slice(1).reduce((product, size) => product * size, 1);
  index.forEach((place, axis) => {
    length /= view[axis + 1];
    at += place * length;
  });
  return numbers.subarray(at, at + length);
}

/** The number as read: six digits. @param {number} value @returns {string} */
function exact(value) {
  return Number.isFinite(value) ? String(Number(value.toPrecision(6))) : "unknown";
}

/** A short number for a list. @param {number} value @returns {string} */
function short(value) {
  const text = String(Number(value.toPrecision(3)));
  return !Number.isFinite(value) ? "" : Math.abs(value) < 0.001 && text.length > 6 ? String(Number(text).toExponential()) : text;
}

/** The difference of two numbers, to as many decimals as the six digits of the larger have. @param {number[]} values @returns {number} */
function difference([one, other]) {
  const digits = 5 - Math.floor(Math.log10(Math.max(Math.abs(one), Math.abs(other)) || 1));
  return digits > 100 ? one - other : digits < 0 ? Math.round(one - other) : Number((one - other).toFixed(digits));
}

/** The numbers of the sides as read: the number, or both and their difference. @param {number[]} values @returns {string} */
function exactly(values) {
  return values.length < 2 ? exact(values[0]) : `A ${exact(values[0])}, B ${exact(values[1])}, A − B ${exact(difference(values))}`;
}

/** What to sort by: the number of a side, or the difference of both, by size; what is unknown comes last. @param {number[]} values @param {number} by @param {boolean} sized @returns {number} */
function sortedBy(values, by, sized) {
  const value = values.length < 2 ? values[0] : by === 2 ? difference(values) : values[by];
  return Number.isNaN(value) ? -Infinity : sized || by === 2 && values.length > 1 ? Math.abs(value) : value;
}

/**
 * @param {string} tag
 * @param {Record<string, string | number | boolean | null | undefined | ((event: any) => void)>} [attributes]
 * @param {(Node | string | null)[]} children
 * @returns {HTMLElement}
 */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children) if (child !== null) element.append(child);
  return element;
}

/** @param {string} text */
function say(text) {
  byId("reading").textContent = text;
}

/** An element that says a text when it is pointed at or focused. @template {HTMLElement} T @param {T} element @param {string} text @returns {T} */
function saying(element, text) {
  for (const event of ["pointerenter", "focus"]) element.addEventListener(event, () => say(text));
  return element;
}

/** Make many buttons one stop of the tab key; arrow keys move among them. @template {HTMLElement} T @param {T} element @returns {T} */
function oneStop(element) {
  const buttons = [...element.querySelectorAll("button")];
  const first = buttons.find((one) => one.getAttribute("aria-pressed") === "true") ?? buttons[0];
  for (const one of buttons) if (one !== first) one.tabIndex = -1;
  /** The button of the next row, below or above, that is nearest. @param {number} place @param {number} step @returns {number} */
  const beyond = (place, step) => {
    const here = buttons[place].getBoundingClientRect();
    let [best, gap, row] = [place, Infinity, NaN];
    for (let other = place + step; buttons[other]; other += step) {
      const { top, left, height } = buttons[other].getBoundingClientRect();
      if (Math.abs(top - here.top) < height / 2) continue;
      if (Math.abs(top - row) > height / 2) break;
      row = top;
      if (Math.abs(left - here.left) < gap) [best, gap] = [other, Math.abs(left - here.left)];
    }
    return best;
  };
  element.addEventListener("keydown", (event) => {
    const place = buttons.findIndex((one) => one === event.target);
    /** @type {Record<string, () => number>} */
    const keys = { ArrowLeft: () => place - 1, ArrowRight: () => place + 1, ArrowUp: () => beyond(place, -1), ArrowDown: () => beyond(place, 1), Home: () => 0, End: () => buttons.length - 1 };
    if (place < 0 || !(event.key in keys)) return;
    event.preventDefault();
    const next = buttons[keys[event.key]()] ?? buttons[place];
    buttons[place].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  return element;
}

/** @param {string} label @param {string[]} options @param {number} chosen @param {(chosen: number) => void} change @param {string} [id] */
function choice(label, options, chosen, change, id) {
  const select = /** @type {HTMLSelectElement} */ (make("select", { id }));
  options.forEach((text, place) => select.append(make("option", { value: place, selected: place === chosen }, text)));
  select.addEventListener("change", () => change(Number(select.value)));
  return make("label", {}, label, select);
}

// -- what is shown ----------------------------------------------------------------------------------------------------

/** @type {{first: Side, second: Side | null, tab: string, layer: number, unit: number, token: number, head: number,
 *   number: number, order: number, sort: number, by: number, kind: Kind, share: number, query: number, every: boolean, closed: Set<string>}} */
const state = {
  first: { sample: 0, target: 0, method: 0 }, second: null, tab: "Input", layer: content.layers.length - 1, unit: -1,
  token: -1, head: -1, number: 0, order: 0, sort: 0, by: 0, kind: "relevance", share: 0, query: -1, every: false, closed: new Set(),
};
let shownTab = "";
const MOST_UNITS = 48;
const PRESENT = /** @type {Record<string, string>} */ ({ "\n": "↵", "\t": "⇥", " ": "␣" });

/** @param {string} text White space made visible. */
function visible(text) {
  return text === "" ? "∅" : text.replace(/[\n\t]|^ | $/g, (sign) => PRESENT[sign] ?? sign);
}

/** @returns {Side[]} */
function sides() {
  return state.second ? [state.first, state.second] : [state.first];
}

/** @param {Side} side */
function about(side) {
  const sample = content.samples[side.sample];
  return `${sample.label}, ${sample.targets[side.target]}`;
}

/** Each side next to the other. @param {(side: Side) => (Node | null)[]} draw */
function next(draw) {
  return make("div", { class: "sides" }, ...sides().map((side, place) => make("div", { class: "side", "data-side": place },
    make("p", { class: "note" }, `${state.second ? `${"AB"[place]}: ` : ""}${about(side)}`), ...draw(side))));
}

/** @param {Side} side @param {number} layer */
function valuesOf(side, layer) {
  return content.samples[side.sample].layers[layer] ?? null;
}

/** A number of a layer. @param {Side} side @param {number} layer @param {number} number */
function numberOf(side, layer, number) {
  const found = valuesOf(side, layer);
  if (!found) return NaN;
  return part(found.numbers, number)[Math.min(side.target, found.numbers[2] - 1)];
}

// -- maps -------------------------------------------------------------------------------------------------------------

/** @param {Iterable<number>} values */
function largest(values) {
  let most = 0;
  for (const value of values) if (Math.abs(value) > most) most = Math.abs(value);
  return most;
}

/** The color of a value. @param {number} share -1 to 1 @param {Kind} kind @returns {[number, number, number, number]} */
function color(share, kind) {
  const [red, green, blue] = kind === "active" ? (share >= 0 ? [201, 120, 0] : [110, 70, 190]) : share >= 0 ? [205, 30, 60] : [35, 95, 205];
  return [red, green, blue, Math.min(1, Math.abs(share)) ** 0.7];
}

/** @param {HTMLElement} element @param {number} share @param {Kind} kind */
function tint(element, share, kind) {
  const [red, green, blue, alpha] = color(share, kind);
  element.style.background = `rgb(${red} ${green} ${blue} / ${(0.55 * alpha).toFixed(3)})`;
}

/** The places of a cell as text. @param {string} axis @param {number} cell @param {number} block @param {number} size */
function places(axis, cell, block, size) {
  const [start, stop] = [cell * block, Math.min((cell + 1) * block, size) - 1];
  return start === stop ? `${axis} ${start}` : `${axis} ${start} to ${stop}`;
}

/**
 * Let a map be read by pointer and keyboard.
 * @param {HTMLElement} element @param {number} rows @param {number} columns @param {string} label
 * @param {(row: number, column: number) => string} read
 */
function readable(element, rows, columns, label, read) {
  const mark = make("div", { class: "mark" });
  let [row, column] = [0, 0];
  /** @param {number} y @param {number} x */
  function show(y, x) {
    [row, column] = [Math.max(0, Math.min(rows - 1, y)), Math.max(0, Math.min(columns - 1, x))];
    Object.assign(mark.style, { display: "block", top: `${(100 * row) / rows}%`, left: `${(100 * column) / columns}%`, width: `${100 / columns}%`, height: `${100 / rows}%` });
    say(read(row, column));
  }
  element.append(mark);
  for (const [name, value] of Object.entries({ tabindex: "0", role: "application", "aria-roledescription": "map", "aria-label": `${label}. Arrow keys read the numbers.` })) element.setAttribute(name, value);
  element.addEventListener("pointermove", (event) => {
    const box = element.getBoundingClientRect();
    show(Math.floor(((event.clientY - box.top) / box.height) * rows), Math.floor(((event.clientX - box.left) / box.width) * columns));
  });
  element.addEventListener("focus", () => show(row, column));
  element.addEventListener("blur", () => (mark.style.display = "none"));
  element.addEventListener("pointerleave", () => (mark.style.display = "none"));
  element.addEventListener("keydown", (event) => {
    const steps = /** @type {Record<string, [number, number]>} */ ({ ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] });
    if (!(event.key in steps)) return;
    event.preventDefault();
    show(row + steps[event.key][0], column + steps[event.key][1]);
  });
}

/**
 * A map over the places of a layer or an input.
 * @param {Float32Array} values @param {number[]} sizes Places along each axis. @param {number} block
 * @param {string[]} axes @param {{label: string, kind?: Kind, picture?: string | null, small?: boolean, rows?: string[] | null}} how
 */
function mapOf(values, sizes, block, axes, how) {
  const kind = how.kind ?? "relevance";
  const cells = sizes.map((size) => Math.ceil(size / block));
  if (sizes.length < 2) return seriesOf(values, sizes[0] ?? 1, block, axes[0] ?? "unit", how);
  const columns = cells[cells.length - 1];
  const rows = values.length / columns;
  const canvas = /** @type {HTMLCanvasElement} */ (make("canvas", { width: columns, height: rows, "aria-hidden": "true" }));
  const pen = canvas.getContext("2d");
  const most = largest(values) || 1;
  if (pen) {
    const image = pen.createImageData(columns, rows);
    values.forEach((value, place) => {
      const [red, green, blue, alpha] = color(value / most, kind);
      image.data.set([red, green, blue, Math.round((how.picture ? 200 : 255) * alpha)], 4 * place);
    });
    pen.putImageData(image, 0, 0);
  }
  const element = make("div", { class: `map${how.small ? " small" : ""}` }, how.picture ? make("img", { src: how.picture, alt: "" }) : null, canvas);
  element.style.aspectRatio = `${columns} / ${rows}`;
  if (!how.small) {
    const [height, width] = sizes.slice(-2);
    const [down, across] = axes.slice(-2);
    const perMap = cells[cells.length - 2];
    readable(element, rows, columns, how.label, (row, column) => {
      const before = sizes.length > 2 ? `${axes[0]} part ${Math.floor(row / perMap)}, ` : "";
      return `${how.label}: ${before}${places(down ?? "row", row % perMap, block, height)}, ${places(across ?? "column", column, block, width)}: ${exact(values[row * columns + column])}`;
    });
  }
  return element;
}

/**
 * Values along one axis, as a line.
 * @param {Float32Array} values @param {number} size @param {number} block @param {string} axis
 * @param {{label: string, kind?: Kind, small?: boolean, rows?: string[] | null, range?: Float32Array}} how Lines of one range have one scale.
 */
function seriesOf(values, size, block, axis, how) {
  const low = Math.min(0, ...(how.range ?? values));
  const high = Math.max(0, ...(how.range ?? values));
  const [count, span] = [values.length, high - low || 1];
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  drawing.setAttribute("viewBox", `0 0 ${count} 100`);
  drawing.setAttribute("preserveAspectRatio", "none");
  drawing.setAttribute("aria-hidden", "true");
  /** @param {number} value */
  const y = (value) => (96 - (92 * (value - low)) / span).toFixed(2);
  const steps = [...values].map((value, place) => `${place ? "L" : "M"}${place} ${y(value)}L${place + 1} ${y(value)}`);
  for (const [name, text] of [["zero", `M0 ${y(0)}L${count} ${y(0)}`], [how.kind === "active" ? "active" : "value", steps.join("")]]) {
    const line = document.createElementNS(space, "path");
    line.setAttribute("class", name);
    line.setAttribute("d", text);
    drawing.append(line);
  }
  const element = make("div", { class: `map series${how.small ? " small" : ""}` });
  element.append(drawing);
  if (!how.small) readable(element, 1, count, how.label, (_, place) => `${how.label}: ${how.rows?.[place] ?? places(axis, place, block, size)}: ${exact(values[place])}`);
  return element;
}

/**
 * A text whose tokens have values.
 * @param {Float32Array} values @param {string[]} tokens @param {number} block
 * @param {{label: string, kind?: Kind, chosen?: number, pick?: (token: number) => void}} how
 */
function wordsOf(values, tokens, block, how) {
  const most = largest(values) || 1;
  const chosen = Math.floor((how.chosen ?? -1) / block);
  const own = (/** @type {number} */ cell) => tokens.slice(cell * block, (cell + 1) * block);
  const list = make("ol", { class: "words", "aria-label": how.label }, ...Array.from(values, (value, cell) => {
    const button = make("button", { type: "button", "data-cell": cell, "aria-pressed": String(cell === chosen), "aria-label": `token ${cell * block}, ${own(cell).join("")}, ${exact(value)}` }, own(cell).map(visible).join(""));
    tint(button, value / most, how.kind ?? "relevance");
    return make("li", {}, button);
  }));
  /** One listener for thousands of tokens. @param {string} event @param {(cell: number) => void} call */
  const on = (event, call) => list.addEventListener(event, ({ target }) => {
    const cell = target instanceof HTMLElement ? target.closest("button")?.dataset.cell : undefined;
    if (cell !== undefined) call(Number(cell));
  });
  on("click", (cell) => how.pick?.(cell * block));
  for (const event of ["pointerover", "focusin"]) on(event, (cell) => say(`${how.label}: ${places("token", cell, block, tokens.length)} '${own(cell).join("")}': ${exact(values[cell])}`));
  return oneStop(list);
}

/** The tokens that the places of a layer are; null where they are something else. @param {Side} side @param {number[]} sizes @returns {string[] | null} */
function tokensAlong(side, sizes) {
  const found = content.samples[side.sample].parts.find((one) => one.tokens !== null && sizes.length === 1 && one.tokens.length === sizes[0]);
  return found?.tokens ?? null;
}

/** The picture under a map of a layer; null where its places are something else. @param {Side} side @param {number[]} sizes @returns {string | null} */
function pictureUnder(side, sizes) {
  return sizes.length === 2 ? content.samples[side.sample].parts.find((one) => one.picture !== null)?.picture ?? null : null;
}

/** Values over the places of a layer. @param {Side} side @param {Float32Array} values @param {number[]} sizes @param {number} block @param {string[]} axes @param {{label: string, kind?: Kind, small?: boolean}} how */
function overInput(side, values, sizes, block, axes, how) {
  const tokens = how.small ? null : tokensAlong(side, sizes);
  if (tokens) return wordsOf(values, tokens, block, { ...how, chosen: state.token, pick: pickToken });
  return mapOf(values, sizes, block, axes, { ...how, picture: pictureUnder(side, sizes) });
}

/** @param {Float32Array} values @param {string} units */
function scaleOf(values, units) {
  let sum = 0;
  for (const value of values) sum += value;
  return make("p", { class: "note" }, `Full color: ${short(largest(values))} ${units}.`);
}

/** Bars with their numbers; the first of them, and a button for all. @param {{text: string, value: number, pick?: () => void, label?: string}[]} every @param {number} [count] */
function barsOf(every, count = Infinity) {
  const most = largest(every.map((row) => row.value)) || 1;
  const rows = state.every ? every : every.slice(0, count);
  const more = rows.length < every.length ? make("li", {}, make("button", { type: "button", class: "more", click: () => { state.every = true; refresh("#panel"); } }, `Show all ${every.length}`)) : null;
  return make("ul", { class: "bars" }, ...rows.map((row) => {
    const inside = [make("span", {}, row.text), make("span", { class: "track" }, bar(row.value / most, "relevance")), make("span", { class: "value" }, short(row.value))];
    const text = `${row.label ?? row.text}: ${exact(row.value)}`;
    const button = make("button", { type: "button", "aria-label": text, click: () => row.pick?.() }, ...inside);
    return make("li", {}, saying(button, text));
  }), more);
}

/** @param {number} share @param {Kind} kind */
function bar(share, kind) {
  const element = make("span", { class: `bar${kind === "active" ? " active" : share < 0 ? " minus" : ""}` });
  element.style.width = `${Math.min(100, 100 * Math.abs(share || 0)).toFixed(2)}%`;
  return element;
}

/** @param {string[]} head @param {(string | Node)[][]} rows @param {string} caption */
function tableOf(head, rows, caption) {
  return make("div", { class: "scroll" }, make("table", {}, make("caption", {}, caption),
    make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((text, place) => make(place ? "td" : "th", place ? {} : { scope: "row" }, text)))))));
}

/** A table next to maps, which leave room at their right, else below. @param {Node[]} shown @param {HTMLElement | null} table @param {boolean} maps @returns {(Node | null)[]} */
function beside(shown, table, maps) {
  return maps && table ? [make("div", { class: "pair" }, make("div", {}, ...shown), table)] : [...shown, table];
}

// -- views ------------------------------------------------------------------------------------------------------------

/** @returns {Node[]} */
function inputView() {
  const view = next((side) => {
    const sample = content.samples[side.sample];
    const method = content.methods[side.method];
    const shown = sample.parts.flatMap((one) => inputPart(side, one, method));
    const outputs = sample.outputs.map((row) => (row[2] === "" ? row.slice(0, 2) : row));
    const table = outputs.length ? tableOf(outputs[0].length > 2 ? ["largest outputs", "value", "share"] : ["largest outputs", "value"], outputs, "Outputs of the model") : null;
    return [make("p", {}, `Score of ${sample.targets[side.target]}: ${exact(sample.scores[side.target])}`), ...beside(shown, table, sample.parts.every((one) => one.form === "image"))];
  });
  return [make("h2", {}, "The input, and what of it counted"), view, ...(content.samples.length > 1 ? [samplesList()] : [])];
}

/** @param {Side} side @param {Part} one @param {Content["methods"][0]} method @returns {Node[]} */
function inputPart(side, one, method) {
  const values = part(one.maps, side.method, side.target);
  const title = `${method.name}${one.name ? ` of ${one.name}` : ""}`;
  const found = [make("h3", {}, title)];
  if (one.form === "tokens") found.push(wordsOf(values, one.tokens ?? [], one.block, { label: title, chosen: state.token, pick: pickToken }));
  else if (one.form === "image") {
    found.push(mapOf(values, one.sizes, one.block, one.axes, { label: title, picture: one.picture }));
    if (one.picture) found.push(make("details", {}, make("summary", {}, "The picture alone"), make("div", { class: "map plain" }, make("img", { src: one.picture, alt: `The input ${about(side)}` }))));
  } else if (one.form === "vector") {
    const names = [...values].map((value, place) => ({ text: one.rows?.[place] ?? `feature ${place}`, value, label: `${title}: ${one.rows?.[place] ?? `feature ${place}`}${one.values ? ` = ${exact(part(one.values)[place])}` : ""}` }));
    names.sort((left, right) => Math.abs(right.value) - Math.abs(left.value));
    found.push(barsOf(names, MOST_UNITS));
  } else {
    const rows = one.sizes[0];
    for (let row = 0; row < Math.min(rows, 12); row++) {
      const own = one.rows?.[row] ?? `${one.axes[0]} ${row}`;
      if (one.values) found.push(make("p", { class: "note" }, own), seriesOf(part(one.values, row), one.sizes[1], 1, one.axes[1], { label: `Input, ${own}`, kind: "active" }));
      found.push(seriesOf(part(one.maps, side.method, side.target, row), one.sizes[1], one.block, one.axes[1], { label: `${title}, ${own}`, range: values }));
    }
    if (rows > 12) found.push(make("p", { class: "note" }, `The first 12 of ${rows}; all of them as rows of a map:`), mapOf(values, [rows * one.block, one.sizes[1]], one.block, one.axes, { label: title }));
  }
  const lines = one.form === "series" && one.sizes[0] <= 12;
  const colors = method.signed ? "Red speaks for the target, blue against it." : "The stronger the color, the larger.";
  const above = method.signed ? "Above the gray line speaks for the target, below against it." : "The higher, the larger.";
  found.push(lines ? make("p", { class: "note" }, `All lines of ${method.name} have one scale; the largest value is ${short(largest(values))} ${method.units}.`) : scaleOf(values, method.units), make("p", { class: "note" }, lines ? above : colors, one.block > 1 ? ` A cell is the sum over ${one.block} places along each axis.` : ""));
  return found;
}

function samplesList() {
  return make("div", {}, make("h3", {}, "All inputs"), make("ul", { class: "units" }, ...content.samples.map((sample, place) => {
    const picture = sample.parts.find((one) => one.picture !== null)?.picture;
    return make("li", {}, make("button", { type: "button", class: "unit", "aria-pressed": String(place === state.first.sample), click: () => { state.first.sample = place; refresh(); } },
      picture ? make("span", { class: "map small plain" }, make("img", { src: picture, alt: "" })) : null, make("span", { class: "name" }, sample.label), make("span", {}, sample.outputs[0] ? sample.outputs[0].slice(0, 2).join(" ") : (sample.text ?? "").slice(0, 40))));
  })));
}

/** @param {number} layer */
function layerName(layer) {
  return content.layers[layer].name;
}

/** The units of a layer whose numbers are here. @param {Layer} layer @returns {number[]} */
function known(layer) {
  return layer.known ?? Array.from({ length: layer.units }, (_, unit) => unit);
}

/** The units of a layer in the chosen order, with their place among the known and their numbers on each side. @param {number} layer */
function unitsOf(layer) {
  const one = content.layers[layer];
  const found = sides().map((side) => valuesOf(side, layer));
  const active = found.map((values) => values && part(values.activation));
  const relevant = found.map((values, place) => (values?.relevance ? part(values.relevance, sides()[place].target) : null));
  const by = state.sort === 0 && relevant.some((values) => values) ? "relevance" : "activation";
  const rows = known(one).map((unit, place) => {
    const numbers = { relevance: relevant.map((values) => values?.[place] ?? NaN), activation: active.map((values) => values?.[place] ?? NaN) };
    return { unit, ...numbers, first: sortedBy(numbers[by], state.by, by === "relevance") };
  });
  return state.sort === 2 ? rows : rows.sort((left, right) => right.first - left.first);
}

/** The map of a unit; null where it is not in this file. @param {LayerValues | null} values @param {number} unit @param {number} target @param {Kind} kind @returns {Float32Array | null} */
function unitMap(values, unit, target, kind) {
  const [place, view] = [values?.kept.indexOf(unit) ?? -1, kind === "active" ? values?.active : values?.maps];
  return !view || place < 0 ? null : kind === "active" ? part(view, place) : part(view, target, place);
}

/** @returns {Node[]} */
function layersView() {
  if (!content.layers.length) return [make("p", {}, "No layer of this model can be shown; the tab About says why.")];
  const layer = state.layer;
  const one = content.layers[layer];
  const row = content.tree.find((each) => each.path === one.path);
  /** @type {Node[]} */
  const found = [make("h2", { id: "layer-name" }, `${layerName(layer)} (${one.type})`),
    make("p", { class: "note" }, `${one.units} units${one.places.length ? `, each over ${one.places.join(", ")}` : ""}; output ${row?.output ?? ""}.`)];
  if (row && row.layers.length > 1) found.push(choice("Tensor or call", row.layers.map(layerName), row.layers.indexOf(layer), (chosen) => { state.layer = row.layers[chosen]; state.unit = -1; refresh(); }));
  found.push(next((side) => {
    const values = valuesOf(side, layer);
    if (!values) return [make("p", {}, "This layer has no values for this input.")];
    const rows = content.numbers.map((number, place) => [number.name, exact(numberOf(side, layer, place))]);
    const shown = values.map ? [make("h3", {}, "Relevance, all units together"), overInput(side, part(values.map, side.target), values.sizes, values.block, one.places, { label: `Relevance of ${layerName(layer)}` }), scaleOf(part(values.map, side.target), "score")] : [];
    if (!values.relevance) shown.push(make("p", { class: "note" }, "No relevance of this layer is shown; the tab About says why."));
    return beside(shown, tableOf(["number", "value"], rows, "Numbers of this layer"), values.sizes.length > 1);
  }));
  found.push(make("h3", { id: "units-head" }, "Units"), make("div", { class: "tools" },
    choice("Sort by", ["relevance", "activation", "index"], state.sort, (chosen) => { state.sort = chosen; refresh(); }, "sort"),
    state.second && state.sort < 2 ? choice("of", ["A", "B", "A − B"], state.by, (chosen) => { state.by = chosen; refresh(); }, "by") : null,
    choice("Show", ["relevance", "activation"], state.kind === "active" ? 1 : 0, (chosen) => { state.kind = chosen ? "active" : "relevance"; refresh(); }, "kind")));
  found.push(unitsList(layer));
  if (state.unit >= 0) found.push(...unitView(layer, state.unit));
  return found;
}

/** @param {number} layer */
function unitsList(layer) {
  const one = content.layers[layer];
  if (!sides().some((side) => valuesOf(side, layer))) return make("p", {}, "No units.");
  const rows = unitsOf(layer);
  const shown = rows.slice(0, state.every ? rows.length : MOST_UNITS);
  const two = state.second !== null;
  const list = oneStop(make("ul", { class: state.unit < 0 ? "units" : "units picked", "aria-label": `Units of ${layerName(layer)}` }, ...shown.map((row) => {
    const text = `unit ${row.unit}: relevance ${exactly(row.relevance)}, activation ${exactly(row.activation)}`;
    const columns = sides().map((side, place) => {
      const values = valuesOf(side, layer);
      const own = unitMap(values, row.unit, side.target, state.kind);
      return make("span", { class: "column" }, own && values ? overInput(side, own, values.sizes, values.unitBlock, one.places, { label: "", kind: state.kind, small: true }) : null,
        two ? make("span", { class: "note" }, "AB"[place]) : null, make("span", {}, `R ${short(row.relevance[place])}`), make("span", {}, `a ${short(row.activation[place])}`));
    });
    const apart = two && state.sort < 2 ? make("span", {}, `${state.sort ? "a" : "R"} A − B ${short(difference(state.sort ? row.activation : row.relevance))}`) : null;
    const button = make("button", { type: "button", class: two ? "unit both" : "unit", "data-unit": row.unit, "aria-pressed": String(row.unit === state.unit), "aria-label": text, click: () => { state.unit = row.unit; refresh(`[data-unit="${row.unit}"]`, "#units-head"); } },
      make("span", { class: "name" }, `unit ${row.unit}`), make("span", { class: "columns" }, ...columns), apart);
    return make("li", {}, saying(button, text));
  })));
  const more = rows.length > shown.length ? make("button", { type: "button", click: () => { state.every = true; refresh(); } }, `Show all ${rows.length} units`) : null;
  const rest = one.known !== null ? make("p", { class: "note" }, `${one.units - one.known.length} further units have less relevance and activation, and are not in this file.`) : null;
  return make("div", {}, make("p", { class: "note" }, `R: sum of relevance over all places. a: largest activation. Maps are kept of the strongest units of each input.`), list, more, rest);
}

/** @param {number} layer @param {number} unit @returns {Node[]} */
function unitView(layer, unit) {
  const one = content.layers[layer];
  const place = known(one).indexOf(unit);
  if (place < 0) return [];
  const title = `unit ${unit} of ${layerName(layer)}`;
  /** @type {Node[]} */
  const found = [make("h3", { id: "unit-name" }, title[0].toUpperCase() + title.slice(1)), next((side) => {
    const values = valuesOf(side, layer);
    if (!values) return [make("p", {}, "No values for this input.")];
    const maps = make("div", { class: "pair" });
    const shown = [maps];
    for (const [name, kind] of /** @type {[string, Kind][]} */ ([["Relevance", "relevance"], ["Activation", "active"]])) {
      const own = unitMap(values, unit, side.target, kind);
      if (own) maps.append(make("div", {}, make("h4", {}, name), overInput(side, own, values.sizes, values.unitBlock, one.places, { label: `${name} of ${title}`, kind })));
    }
    if (!values.kept.includes(unit) && one.places.length) shown.push(make("p", { class: "note" }, "The map of this unit for this input is not in this file; explore(units=...) keeps more."));
    const relevance = values.relevance;
    const rows = content.samples[side.sample].targets.map((text, target) => [text, relevance ? exact(part(relevance, target)[place]) : "unknown"]);
    shown.push(tableOf(["target", "relevance"], [...rows, ["largest activation", exact(part(values.activation)[place])]], "This unit"));
    return shown;
  })];
  if (content.samples.length > 1) found.push(...topInputs(layer, unit, place));
  return found;
}

/** @param {number} layer @param {number} unit @param {number} place @returns {Node[]} */
function topInputs(layer, unit, place) {
  const one = content.layers[layer];
  const by = state.kind;
  const rows = content.samples.map((sample, number) => {
    const values = sample.layers[layer];
    const relevance = values?.relevance;
    const value = !values ? NaN : by === "active" ? part(values.activation)[place] : relevance ? part(relevance, Math.min(state.first.target, relevance[1] - 1))[place] : NaN;
    return { sample, number, values, value };
  }).filter((row) => Number.isFinite(row.value)).sort((left, right) => right.value - left.value);
  return [make("h3", {}, `Top inputs of unit ${unit}, by ${by === "active" ? "activation" : `relevance for ${content.targets[state.first.target]}`}`),
    ...(rows.length > 16 ? [make("p", { class: "note" }, `The first 16 of ${rows.length} inputs.`)] : []),
    make("ul", { class: "units", id: "top-inputs" }, ...rows.slice(0, 16).map((row) => {
      const side = { ...state.first, sample: row.number };
      const own = unitMap(row.values, unit, side.target, by);
      const picture = row.sample.parts.find((each) => each.picture !== null)?.picture ?? null;
      const text = `${row.sample.label}: ${exact(row.value)}`;
      return make("li", {}, saying(make("button", { type: "button", class: "unit", "aria-label": text, click: () => { state.first.sample = row.number; refresh(); } },
        own && row.values ? overInput(side, own, row.values.sizes, row.values.unitBlock, one.places, { label: "", kind: by, small: true }) : picture ? make("span", { class: "map small plain" }, make("img", { src: picture, alt: "" })) : null,
        make("span", { class: "name" }, row.sample.label), make("span", {}, short(row.value))), text));
    }))];
}

/** @param {number} token */
function pickToken(token) {
  state.token = token;
  state.query = -1;
  if (state.tab === "Input" || state.tab === "Layers") state.tab = "Tokens";
  refresh(`#panel [aria-pressed="true"]`, "#token-name");
}

/** @returns {Node[]} */
function tokensView() {
  const found = [make("h2", {}, "Tokens"), make("p", { class: "note" }, "Choose a token to see its relevance layer by layer, and head by head.")];
  found.push(next((side) => content.samples[side.sample].parts.filter((one) => one.tokens !== null).flatMap((one) => inputPart(side, one, content.methods[side.method]))));
  const token = state.token;
  if (token < 0) return found;
  found.push(next((side) => {
    const own = content.samples[side.sample].parts.find((one) => one.tokens !== null);
    const tokens = own?.tokens ?? [];
    if (token >= tokens.length) return [make("p", {}, `This text has no token ${token}.`)];
    const rows = content.layers.flatMap((layer, number) => {
      const values = valuesOf(side, number);
      if (!values?.map || values.sizes.length !== 1 || values.sizes[0] !== tokens.length) return [];
      const value = part(values.map, side.target)[Math.floor(token / values.block)];
      const label = `Relevance at ${places("token", Math.floor(token / values.block), values.block, tokens.length)} of ${layer.name}`;
      return [{ text: layer.name, value, label, pick: () => { state.layer = number; state.unit = -1; state.tab = "Layers"; refresh("#panel"); } }];
    });
    const heads = content.samples[side.sample].heads;
    const shown = [make("h3", { id: side === state.first ? "token-name" : null }, `Token ${token} '${visible(tokens[token])}', layer by layer`), rows.length ? barsOf(rows) : make("p", {}, "No layer that is shown has its relevance by token.")];
    if (content.heads && heads?.tokens) {
      const cut = content.heads.withTokens;
      const view = heads.tokens;
      const cell = Math.floor(token / heads.block);
      const value = (/** @type {number} */ number) => cut.includes(number) ? part(view, side.target, cut.indexOf(number))[cell] : NaN;
      shown.push(make("h3", {}, "Head by head"), gridOf(value, `Relevance at ${places("token", cell, heads.block, tokens.length)}`));
    }
    return shown;
  }));
  return found;
}

/** Layers by heads. @param {(part: number) => number} value @param {string} label */
function gridOf(value, label) {
  const parts = content.heads?.parts ?? [];
  const layers = [...new Set(parts.filter((one) => one.head !== null).map((one) => one.layer))];
  const width = Math.max(...parts.map((one) => one.head ?? 0)) + 1;
  const values = parts.map((_, number) => value(number));
  const most = values.reduce((found, each, number) => (parts[number].head !== null && Math.abs(each) > found ? Math.abs(each) : found), 0) || 1;
  const head = make("tr", {}, make("th", { scope: "col" }, "layer"), ...Array.from({ length: width }, (_, place) => make("th", { scope: "col" }, String(place))));
  return make("div", { class: "scroll" }, oneStop(make("table", { class: "cells" }, make("caption", {}, `${label}: layers by heads`), make("thead", {}, head), make("tbody", {}, ...layers.map((layer) => make("tr", {}, make("th", { scope: "row" }, layer),
    ...Array.from({ length: width }, (_, place) => {
      const number = parts.findIndex((one) => one.layer === layer && one.head === place);
      if (number < 0) return make("td", {});
      const text = `${label}, ${parts[number].name}: ${exact(values[number])}`;
      const button = make("button", { type: "button", "data-head": number, "aria-label": text, "aria-pressed": String(number === state.head), click: () => { state.head = number; state.tab = "Heads"; refresh(`[data-head="${number}"]`, "#head-name"); } });
      tint(button, values[number] / most, "relevance");
      return make("td", {}, saying(button, text));
    })))))));
}

/** @returns {Node[]} */
function headsView() {
  const parts = content.heads?.parts ?? [];
  const names = ["direct contribution", "total contribution"];
  /** @type {Node[]} */
  const found = [make("h2", {}, "Heads, and the layers next to them"), make("div", { class: "tools" }, choice("Show", names, state.share, (chosen) => { state.share = chosen; refresh(); }, "share")),
    make("p", { class: "note" }, state.share ? "All relevance that passes a head, what it says by way of later layers included. These do not add up." : "What a head adds to the score without passing another part of this table. These add up, with the rest below, to the score.")];
  found.push(next((side) => {
    const heads = content.samples[side.sample].heads;
    if (!heads) return [make("p", {}, "The heads of this input are not known.")];
    const values = part(state.share ? heads.total : heads.direct, side.target);
    const rest = heads.rest[side.target];
    const rows = parts.map((one, number) => ({ text: one.name, value: values[number], label: `${names[state.share]} of ${one.name}`, pick: () => { state.head = number; refresh("#panel", "#head-name"); } }));
    rows.sort((left, right) => Math.abs(right.value) - Math.abs(left.value));
    const shown = [make("h3", {}, "Largest"), barsOf(rows, 12), gridOf((number) => values[number], names[state.share])];
    if (!state.share) shown.push(tableOf(["", "score"], Object.entries({ "past all parts, from the inputs": rest.inputs, "constants": rest.constants, "absorbed by rules": rest.absorbed, "score": rest.score }).map(([name, value]) => [name, exact(value)]), "The rest of the score"));
    return shown;
  }));
  if (state.head >= 0) found.push(...headView(state.head));
  return found;
}

/** @param {number} head @returns {Node[]} */
function headView(head) {
  const one = content.heads?.parts[head];
  if (!one || one.head === null) return one ? [make("p", { id: "head-name" }, `${one.name} is a whole layer, without heads.`)] : [];
  return [make("h3", { id: "head-name" }, one.name), next((side) => {
    const heads = content.samples[side.sample].heads;
    if (!heads) return [];
    const shown = [];
    const place = content.heads?.withTokens.indexOf(head) ?? -1;
    const tokens = tokensAlong(side, heads.sizes) ?? Array.from({ length: heads.sizes[0] ?? 0 }, (_, number) => String(number));
    if (heads.tokens && place >= 0) {
      const values = part(heads.tokens, side.target, place);
      shown.push(make("h4", {}, "Relevance of what it returns, place by place"), wordsOf(values, tokens, heads.block, { label: `Relevance of ${one.name}`, pick: pickToken }), scaleOf(values, "score"));
    }
    const looks = heads.attention;
    const number = looks?.parts.indexOf(head) ?? -1;
    if (looks && number >= 0) {
      const wanted = looks.queries.indexOf(state.query >= 0 ? state.query : tokens.length - 1);
      const query = wanted >= 0 ? wanted : looks.queries.length - 1;
      shown.push(make("h4", {}, "Where it looks"), choice("From", looks.queries.map((token) => `${token} ${visible(tokens[token] ?? "")}`), query, (chosen) => { state.query = looks.queries[chosen]; refresh(); }),
        wordsOf(part(looks.weights, number, query), tokens, looks.block, { label: `Attention of ${one.name} from token ${looks.queries[query]}`, kind: "active", pick: pickToken }));
    }
    return shown;
  })];
}

/** @returns {Node[]} */
function ledgerView() {
  return [make("h2", {}, "Where the score went"), make("p", { class: "note" }, "Score = inputs + constants + absorbed by rules + residual. Open a part to see it by layer, and a layer to see it by source."), next((side) => {
    const ledger = content.samples[side.sample].ledger;
    const [score, inputs, additive, absorbed, residual] = ledger.sums[side.target];
    const amounts = part(ledger.amounts, side.target);
    const most = Math.max(...[score, inputs, additive, absorbed, residual].map(Math.abs)) || 1;
    /** @param {string} text @param {number} value @param {number} largest @param {Node[]} inside */
    const group = (text, value, largest, inside) => {
      const line = [make("span", { class: "title" }, text), make("span", { class: "track" }, bar(value / largest, "relevance")), make("span", { class: "value" }, short(value))];
      return make("details", {}, saying(make("summary", {}, ...line), `${text}: ${exact(value)}`), ...inside);
    };
    /** @param {string} kind */
    const byLayer = (kind) => {
      /** @type {Map<string, {text: string, value: number}[]>} */
      const layers = new Map();
      content.entries.forEach((entry, place) => {
        if (entry.kind !== kind || amounts[place] === 0) return;
        const layer = kind === "input" ? entry.source || "input" : entry.layer || "(model)";
        layers.set(layer, [...(layers.get(layer) ?? []), { text: entry.source || layer, value: amounts[place] }]);
      });
      const rows = [...layers].map(([layer, entries]) => ({ layer, entries, value: entries.reduce((sum, entry) => sum + entry.value, 0) }));
      const top = rows.reduce((found, row) => Math.max(found, Math.abs(row.value)), 0) || 1;
      return rows.length ? rows.map((row) => (row.entries.length === 1 ? barsOf1(row.layer, row.entries[0].text, row.value, top) : group(row.layer, row.value, top, [barsOf(row.entries)]))) : [make("p", { class: "note" }, "Nothing.")];
    };
    return [make("p", {}, `Score of ${content.samples[side.sample].targets[side.target]}: `, make("strong", {}, exact(score))), make("div", { class: "flow" },
      group("inputs", inputs, most, byLayer("input")), group("constants", additive, most, byLayer("additive")), group("absorbed by rules", absorbed, most, byLayer("absorbed"))),
    make("p", {}, `residual (rounding): ${exact(residual)}`)];
  })];
}

/** One layer with one entry. @param {string} layer @param {string} source @param {number} value @param {number} top */
function barsOf1(layer, source, value, top) {
  const text = layer === source ? layer : `${layer}: ${source}`;
  const button = make("button", { type: "button", "aria-label": `${text}: ${exact(value)}` }, make("span", {}, text), make("span", { class: "track" }, bar(value / top, "relevance")), make("span", { class: "value" }, short(value)));
  return make("ul", { class: "bars" }, make("li", {}, saying(button, `${text}: ${exact(value)}`)));
}

/** @returns {Node[]} */
function aboutView() {
  const list = (/** @type {string[]} */ texts) => make("ul", {}, ...texts.map((text) => make("li", {}, text)));
  return [make("h2", {}, "What was run"), tableOf(["", ""], content.facts, "Model and versions"),
    make("h3", {}, "Methods"), list(content.methods.map((one) => `${one.name}, in units of ${one.units}${one.cost ? `: ${one.cost}` : ""}`)),
    ...content.samples.flatMap((sample) => [make("h3", {}, sample.label), tableOf(["", ""], sample.facts, "Input")]),
    make("h3", {}, "How it is shown"), make("p", {}, "Maps of relevance are sums over blocks of places, so that their cells add up to what all places do; maps of activations are means. Arrow keys and the pointer read exact numbers, to six digits, at the bottom of the page."),
    ...(content.warnings.length ? [make("h3", {}, "Warnings"), list(content.warnings)] : []),
    ...(content.notes.length ? [make("h3", {}, "Left out"), list(content.notes)] : [])];
}

// -- tree, tabs and controls ------------------------------------------------------------------------------------------

/** @type {Map<string, Row[]>} */
const children = new Map();
for (const row of content.tree) if (row.parent !== null) children.set(row.parent, [...(children.get(row.parent) ?? []), row]);
const byPath = new Map(content.tree.map((row) => [row.path, row]));

function drawTree() {
  const number = content.numbers[state.number];
  const two = state.second !== null;
  const order = Math.min(state.order, two ? 3 : 1);
  byId("tree-tools").replaceChildren(
    choice("Number by layer", content.numbers.map((one) => one.name), state.number, (chosen) => { state.number = chosen; refresh(); }, "number"),
    choice("Order", two ? ["as in the model", "largest A", "largest B", "largest difference"] : ["as in the model", "largest first"], order, (chosen) => { state.order = chosen; refresh(); }, "order"));
  byId("about-number").textContent = `${number.name}: ${number.about}.`;
  byId("columns").classList.toggle("two", two);
  byId("tree-head").replaceChildren(...(two ? ["", "", "", "A", "B", "A − B"].map((text) => make("span", { class: "value" }, text)) : []));
  const values = new Map(content.tree.map((row) => [row.path, sides().map((side) => (row.layers.length ? numberOf(side, row.layers[0], state.number) : NaN))]));
  const most = largest([...values.values()].flat()) || 1;
  const chosen = content.layers[state.layer]?.path;
  /** @param {Row} row @param {number} level @returns {HTMLElement} */
  const item = (row, level) => {
    const own = order ? [] : children.get(row.path) ?? [];
    const numbers = values.get(row.path) ?? [];
    const there = numbers.some(Number.isFinite);
    const open = !state.closed.has(row.path);
    const several = row.layers.length > 1 ? `, the first of ${row.layers.length} tensors or calls` : "";
    const text = `${row.path || row.name}, ${row.type}${several}${there ? `, ${number.name} ${exactly(numbers)}` : ""}`;
    const line = make("div", { class: "row" }, make("span", { "aria-hidden": "true", click: (/** @type {Event} */ event) => { event.stopPropagation(); if (own.length) toggle(row.path); } }, own.length ? (open ? "▾" : "▸") : ""),
      make("span", {}, order ? row.path : row.name, " ", make("span", { class: "kind" }, `${row.name === row.type ? "" : row.type}${several ? ` ×${row.layers.length}` : ""}`)),
      make("span", { class: "track" }, ...numbers.map((value) => (Number.isFinite(value) ? bar(value / most, state.number > 1 ? "active" : "relevance") : null))),
      ...(two ? [...numbers, difference(numbers)] : numbers).map((value) => make("span", { class: "value" }, short(value))));
    line.addEventListener("click", () => chooseLayer(row));
    line.addEventListener("pointerenter", () => say(text));
    const element = make("li", { role: "treeitem", "aria-level": level, "aria-selected": String(row.path === chosen), "aria-expanded": own.length ? String(open) : null, "aria-label": text, tabindex: row.path === (chosen ?? "") ? 0 : -1, "data-path": row.path }, line,
      own.length && open ? make("ul", { role: "group" }, ...own.map((child) => item(child, level + 1))) : null);
    element.addEventListener("focus", () => say(text));
    return element;
  };
  /** @param {Row} row */
  const first = (row) => sortedBy(values.get(row.path) ?? [], order - 1, true);
  const rows = order ? content.tree.filter((row) => first(row) >= 0).sort((left, right) => first(right) - first(left)) : content.tree.filter((row) => row.parent === null);
  const tree = byId("tree");
  tree.replaceChildren(...rows.map((row) => item(row, 1)));
  const items = [...tree.querySelectorAll('[role="treeitem"]')];
  if (!items.some((one) => one.getAttribute("tabindex") === "0")) items[0]?.setAttribute("tabindex", "0");
}

/** @param {string} path */
function toggle(path) {
  if (!state.closed.delete(path)) state.closed.add(path);
  const tree = byId("tree");
  const top = tree.scrollTop;
  drawTree();
  tree.scrollTop = top;
}

/** @param {Row} row */
function chooseLayer(row) {
  if (!row.layers.length) {
    say(`${row.path || row.name}: ${row.calls ? "its values are not in this file; the tab About says why" : "it did not run by itself"}.`);
    return;
  }
  state.layer = row.layers[0];
  state.unit = -1;
  state.every = false;
  state.tab = "Layers";
  refresh();
  focusTree(row.path);
  if (matchMedia("(max-width: 46rem)").matches) byId("tabs").scrollIntoView();
}

/** @param {string} path */
function focusTree(path) {
  for (const one of byId("tree").querySelectorAll('[role="treeitem"]')) if (one instanceof HTMLElement && one.dataset.path === path) {
    byId("tree").querySelectorAll('[tabindex="0"]').forEach((other) => other.setAttribute("tabindex", "-1"));
    one.setAttribute("tabindex", "0");
    one.focus({ preventScroll: false });
  }
}

byId("tree").addEventListener("keydown", (event) => {
  const items = [...byId("tree").querySelectorAll('[role="treeitem"]')].filter((one) => one instanceof HTMLElement);
  const place = items.indexOf(/** @type {HTMLElement} */ (document.activeElement));
  const path = items[place]?.dataset.path;
  const row = path === undefined ? undefined : byPath.get(path);
  if (!row) return;
  const own = state.order ? [] : children.get(row.path) ?? [];
  const closed = state.closed.has(row.path);
  /** @type {Record<string, () => void>} */
  const keys = {
    ArrowDown: () => focusTree(items[Math.min(place + 1, items.length - 1)].dataset.path ?? ""),
    ArrowUp: () => focusTree(items[Math.max(place - 1, 0)].dataset.path ?? ""),
    Home: () => focusTree(items[0].dataset.path ?? ""),
    End: () => focusTree(items[items.length - 1].dataset.path ?? ""),
    ArrowRight: () => { if (own.length && closed) toggle(row.path); else if (own.length) { focusTree(own[0].path); return; } focusTree(row.path); },
    ArrowLeft: () => { if (own.length && !closed) toggle(row.path); else if (row.parent !== null && !state.order) { focusTree(row.parent); return; } focusTree(row.path); },
    Enter: () => chooseLayer(row),
    " ": () => chooseLayer(row),
  };
  if (!(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
});

/** @type {Map<string, () => Node[]>} */
const views = new Map();
views.set("Input", inputView);
if (content.layers.length) views.set("Layers", layersView);
if (content.samples.some((sample) => sample.parts.some((one) => one.tokens !== null))) views.set("Tokens", tokensView);
if (content.heads) views.set("Heads", headsView);
views.set("Ledger", ledgerView);
for (const one of content.results) views.set(one.title, () => [make("h2", {}, one.title), make("iframe", { sandbox: "", title: one.title, srcdoc: one.html })]);
views.set("About", aboutView);

function drawTabs() {
  const names = [...views.keys()];
  byId("tabs").replaceChildren(...names.map((name, place) => make("button", {
    type: "button", role: "tab", id: `tab-${place}`, "aria-controls": "panel", "aria-selected": String(name === state.tab), tabindex: name === state.tab ? 0 : -1,
    click: () => { state.tab = name; refresh(`#tab-${place}`); },
    keydown: (/** @type {KeyboardEvent} */ event) => {
      const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
      if (!step) return;
      event.preventDefault();
      const other = (place + step + names.length) % names.length;
      state.tab = names[other];
      refresh(`#tab-${other}`);
    },
  }, name)));
  byId("panel").setAttribute("aria-labelledby", `tab-${names.indexOf(state.tab)}`);
}

function drawControls() {
  const labels = content.samples.map((sample) => sample.label);
  /** @param {Side} side @param {string} title @param {string} id */
  const group = (side, title, id) => make("fieldset", {}, make("legend", {}, title),
    choice("Input", labels, side.sample, (chosen) => { side.sample = chosen; refresh(); }, `input-${id}`),
    choice("Target", content.targets.map((name, place) => content.samples[side.sample].targets[place] ?? name), side.target, (chosen) => { side.target = chosen; refresh(); }, `target-${id}`),
    choice("Method", content.methods.map((one) => one.name), side.method, (chosen) => { side.method = chosen; refresh(); }, `method-${id}`));
  const compare = make("button", { type: "button", id: "compare", "aria-pressed": String(state.second !== null), click: () => {
    const side = state.first;
    const other = labels.length > 1 ? { sample: (side.sample + 1) % labels.length } : content.targets.length > 1 ? { target: (side.target + 1) % content.targets.length } : { method: (side.method + 1) % content.methods.length };
    state.second = state.second ? null : { ...side, ...other };
    refresh("#compare");
  } }, state.second ? "Show one" : "Compare two");
  byId("controls").replaceChildren(group(state.first, state.second ? "A" : "Shown", "a"), ...(state.second ? [group(state.second, "B", "b")] : []), compare);
}

/** Draw everything again; the focus stays where it was, or goes to what is named, and what is new is scrolled into sight. @param {string} [focus] @param {string} [sight] */
function refresh(focus, sight) {
  const before = document.activeElement?.id;
  const boxes = () => [byId("tree"), ...byId("panel").querySelectorAll(".words, .units")];
  const tops = boxes().map((box) => box.scrollTop); // before anything is written, so that nothing is laid out twice
  const kept = shownTab === state.tab ? tops : tops.slice(0, 1);
  shownTab = state.tab;
  drawControls();
  drawTabs();
  drawTree();
  byId("panel").replaceChildren(...(views.get(state.tab) ?? inputView)());
  const wanted = focus ?? (before ? `#${before}` : "");
  const element = wanted ? document.querySelector(wanted) : null;
  boxes().forEach((box, place) => { if (kept[place]) box.scrollTop = kept[place]; });
  if (element instanceof HTMLElement) element.focus({ preventScroll: true });
  if (sight) document.querySelector(sight)?.scrollIntoView();
  follow();
}

// -- a notebook that follows what is chosen ---------------------------------------------------------------------------

/** @type {MessagePort | null} */
let port = null;
let sent = "";

/** @returns {Selected} */
function selected() {
  /** @param {Side} side */
  const shown = ({ sample, target, method }) => ({ input: sample, target, method });
  const [layer, head] = [content.layers[state.layer], content.heads?.parts[state.head]];
  return {
    view: state.tab, ...shown(state.first), compared: state.second ? shown(state.second) : null,
    layer: layer ? layer.path + (layer.tensor ? `/${layer.tensor}` : "") : null, call: layer?.call ?? 0,
    unit: state.unit < 0 ? null : state.unit, token: state.token < 0 ? null : state.token, head: head ? { layer: head.layer, head: head.head } : null,
  };
}

function follow() {
  const text = JSON.stringify(selected());
  if (port && text !== sent) port.postMessage(JSON.parse(text));
  sent = text;
}

/** Show what Python chose, which it has checked. @param {Selected} chosen */
function show(chosen) {
  /** @param {{input: number, target: number, method: number}} one @returns {Side} */
  const side = ({ input, target, method }) => ({ sample: input, target, method });
  const named = (/** @type {Layer} */ one) => one.path + (one.tensor ? `/${one.tensor}` : "") === chosen.layer && one.call === chosen.call;
  Object.assign(state, {
    tab: chosen.view, first: side(chosen), second: chosen.compared && side(chosen.compared), layer: content.layers.findIndex(named),
    unit: chosen.unit ?? -1, token: chosen.token ?? -1,
    head: content.heads?.parts.findIndex((one) => one.layer === chosen.head?.layer && one.head === chosen.head.head) ?? -1,
  });
  refresh();
}

addEventListener("message", (event) => {
  if (event.source !== parent || event.data !== "follow" || !event.ports[0]) return;
  port = event.ports[0];
  port.onmessage = (message) => show(message.data);
});

const paths = content.layers.map((one) => one.path);
for (const { path } of content.tree) if (children.has(path) && !paths.some((one) => path === "" || one.startsWith(`${path}.`))) state.closed.add(path);
refresh();
