"use strict";
// All text from models and people goes in as text, never as markup.
const at = (id) => document.getElementById(id);
const state = { kind: null, given: null, position: null, changes: new Map(), shown: null, turn: 0 };
const SIGNS = { "\n": "↵", "\t": "→" };

function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== null) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function say(sentence, isError = false) {
  at("message").textContent = sentence;
  at("message").className = isError ? "error" : "";
}

const spelt = (token) => [...token].map((c) => SIGNS[c] ?? c).join("") || "∅";
const shade = (act, most) => `rgb(${act < 0 ? "86 180 233" : "230 159 0"} / ${most > 0 ? 0.1 + 0.7 * Math.abs(act) / most : 0})`;

async function ask() {
  if (state.given === null) return;
  const turn = ++state.turn;
  say("Computing …");
  let answer, response;
  try {
    const changes = [...state.changes].map(([concept, { factor, add }]) => [concept, factor, add]);
    response = await fetch("api/inspect", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ given: state.given, position: state.position, changes }),
    });
    answer = await response.json();
  } catch {
    if (turn === state.turn) say("There is no answer: has the command sparsemax-sae app ended?", true);
    return;
  }
  if (turn !== state.turn) return;
  if (!response.ok) {
    say(answer.error, true);
    for (const id of ["found", "effect", "whole", "photo"]) at(id).hidden = true;
    at("tokens").replaceChildren();
    return;
  }
  say("");
  show(answer);
}

function show(answer) {
  const isImage = state.kind === "image";
  const wasOn = document.activeElement?.dataset?.key;
  const shown = answer.concepts.find((c) => c.concept === state.shown) ?? answer.concepts[0] ?? null;
  state.shown = shown ? shown.concept : null;
  const where = isImage
    ? answer.position === null ? "Image as a whole" : `Patch ${answer.position}`
    : `Token ${answer.position} “${spelt(answer.tokens[answer.position])}”`;
  at("where").textContent = `${where}: ${answer.n_active} of ${answer.d_sae.toLocaleString("en")} concepts`;
  at("number").max = answer.d_sae - 1;
  if (isImage) drawPatches(answer, shown); else drawTokens(answer, shown);
  drawSpikes(answer);
  at("concepts").replaceChildren(...answer.concepts.map(row));
  drawOutcomes(answer);
  at("found").hidden = false;
  if (wasOn) document.querySelector(`[data-key="${wasOn}"]`)?.focus();
}

function place(element, left, top, w, h, width, height) {
  element.style.left = `${100 * left / width}%`;
  element.style.top = `${100 * top / height}%`;
  element.style.width = `${100 * w / width}%`;
  element.style.height = `${100 * h / height}%`;
}

function drawPatches(answer, shown) {
  at("photo").hidden = false;
  at("whole").hidden = answer.grid === null;
  at("whole").setAttribute("aria-pressed", String(answer.position === null));
  if (!answer.grid) return;
  const [width, height] = answer.size, [rows, columns] = answer.grid, [left, top, right, bottom] = answer.box;
  const most = shown ? Math.max(...shown.places.map(Math.abs)) : 0;
  // What the model does not see is dark too.
  const seen = make("div", null, { class: "seen" });
  place(seen, left, top, right - left, bottom - top, width, height);
  at("patches").replaceChildren(seen, ...Array.from({ length: rows * columns }, (_, i) => {
    const act = shown ? shown.places[i] : 0;
    const patch = make("button", null, {
      type: "button", "aria-pressed": String(i === answer.position), "data-key": `patch${i}`,
      "aria-label": `Patch ${i}` + (shown ? `, activation ${act.toFixed(2)} of concept ${shown.concept}` : ""),
    });
    const w = (right - left) / columns, h = (bottom - top) / rows;
    place(patch, left + (i % columns) * w, top + Math.floor(i / columns) * h, w, h, width, height);
    // Dark where the concept is not, as in the other pictures.
    patch.style.backgroundColor = `rgb(0 0 0 / ${most > 0 ? 0.65 * (1 - Math.abs(act) / most) : 0})`;
    patch.onclick = () => { state.position = i; state.shown = null; ask(); };
    return patch;
  }));
}

function drawTokens(answer, shown) {
  const most = shown ? Math.max(...shown.places.map(Math.abs)) : 0;
  at("tokens").replaceChildren(...answer.tokens.map((token, i) => {
    const act = shown ? shown.places[i] : 0;
    const button = make("button", spelt(token), {
      type: "button", "aria-pressed": String(i === answer.position), "data-key": `token${i}`,
      title: shown ? `concept ${shown.concept}: ${act.toFixed(2)}` : "",
    });
    button.style.backgroundColor = act ? shade(act, most) : "transparent";
    button.onclick = () => { state.position = i; state.shown = null; ask(); };
    return button;
  }));
}

function drawSpikes(answer) {
  const svg = at("spikes"), top = new Set(answer.concepts.slice(0, 5).map((c) => c.concept));
  const most = Math.max(0, ...answer.spikes.map(([, act]) => Math.abs(act)));
  svg.setAttribute("viewBox", `0 0 ${answer.d_sae} 100`);
  svg.setAttribute("aria-label", `Activations over all concepts; the largest: ${[...top].join(", ") || "none"}`);
  svg.replaceChildren(...answer.spikes.map(([concept, act]) => {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const place = { x1: concept + 0.5, x2: concept + 0.5, y1: 100, y2: 100 - 95 * Math.abs(act) / most };
    for (const [name, value] of Object.entries(place)) line.setAttribute(name, value);
    if (top.has(concept)) line.setAttribute("class", "top");
    return line;
  }));
}

function row({ concept, act }) {
  const line = make("tr", null);
  const number = make("button", String(concept), {
    type: "button", "aria-pressed": String(concept === state.shown), "data-key": `show${concept}`,
    title: "show where it is",
  });
  number.onclick = () => { state.shown = concept; ask(); };
  const change = state.changes.get(concept) ?? { factor: 1, add: 0 };
  const choices = make("td", null);
  for (const [label, factor] of [["off", 0], ["×1", 1], ["×2", 2], ["×5", 5]]) {
    const choice = make("button", label, {
      type: "button", "aria-pressed": String(change.factor === factor), "data-key": `change${concept}:${factor}`,
      "aria-label": `Concept ${concept} ${label}`,
    });
    choice.onclick = () => {
      if (factor === 1) state.changes.delete(concept); else state.changes.set(concept, { factor, add: change.add });
      ask();
    };
    choices.append(choice);
  }
  if (change.add) choices.append(make("span", `${change.add > 0 ? "+" : "−"}${Math.abs(change.add)} everywhere`));
  const first = make("td", null);
  first.append(number);
  line.append(first, make("td", act.toFixed(2)), choices);
  return line;
}

function drawOutcomes(answer) {
  at("effect").hidden = answer.outcomes === null;
  if (!answer.outcomes) return;
  at("effect-title").textContent = state.kind === "image" ? "Classes" : "Next token";
  const likeliest = Math.max(...answer.outcomes.map(({ before, after }) => Math.max(before, after)));
  const percent = (p) => `${(100 * p).toFixed(1)} %`;
  at("outcomes").replaceChildren(...answer.outcomes.map(({ label, before, after }) => {
    const line = make("div", null, { class: "outcome" }), bars = make("div", null, { "aria-hidden": "true" });
    for (const [name, p] of [["before", before], ["after", after]]) {
      const bar = make("div", null, { class: `bar ${name}` });
      bar.style.width = `${100 * p / likeliest}%`;
      bars.append(bar);
    }
    const text = state.kind === "image" ? label : `‹${spelt(label)}›`;
    line.append(make("div", text), bars, make("div", state.changes.size ? `${percent(before)} → ${percent(after)}` : percent(before)));
    return line;
  }));
}

function begin(given) {
  Object.assign(state, { given, position: null, shown: null });
  ask();
}

at("file").onchange = (event) => {
  const file = event.target.files[0];
  if (!file) return;
  const reader = new FileReader();
  reader.onload = () => {
    URL.revokeObjectURL(at("picture").src);
    at("picture").src = URL.createObjectURL(file);
    begin(reader.result.slice(reader.result.indexOf(",") + 1));
  };
  reader.onerror = () => say("This file could not be read.", true);
  reader.readAsDataURL(file);
};
at("image-form").onsubmit = (event) => event.preventDefault();
at("text-form").onsubmit = (event) => { event.preventDefault(); begin(at("text").value); };
at("add-form").onsubmit = (event) => {
  event.preventDefault();
  const concept = Number(at("number").value), change = state.changes.get(concept) ?? { factor: 1, add: 0 };
  state.changes.set(concept, { ...change, add: Number(at("amount").value) });
  state.shown = concept;
  ask();
};
at("whole").onclick = () => { Object.assign(state, { position: null, shown: null }); ask(); };
at("reset").onclick = () => { state.changes.clear(); ask(); };

fetch("api/session").then((response) => response.json()).then(({ kind, title }) => {
  state.kind = kind;
  at("title").textContent = title;
  at(`${kind}-form`).hidden = false;
}).catch(() => say("There is no answer: has the command sparsemax-sae app ended?", true));
