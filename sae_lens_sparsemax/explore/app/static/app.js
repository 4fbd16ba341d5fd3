"use strict";
// Asks what is at a place of an image or a text, and shows the answer.
const { h, spelt, count, percent } = explorer;
const at = (id) => document.getElementById(id);
const state = { kind: null, given: null, position: null, changes: new Map(), shown: null, turn: 0 };

function say(sentence, isError = false) {
  at("message").textContent = sentence;
  at("message").className = isError ? "error" : "";
}

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
  at("where").textContent = `${where}: ${answer.n_active} of ${count(answer.d_sae)} concepts`;
  const why = answer.left_out?.[answer.position];
  at("left-out").textContent = why ? `No concept is active here: the SAE was trained without ${why}.` : "";
  at("number").max = answer.d_sae - 1;
  if (isImage) drawPatches(answer, shown); else drawTokens(answer, shown);
  drawSpikes(answer);
  const hasPasses = answer.concepts.some((c) => c.pass !== null);
  at("pass").hidden = !hasPasses;
  at("concepts").replaceChildren(...answer.concepts.map((c) => row(c, hasPasses)));
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
  const seen = h("div", { class: "seen" });
  place(seen, left, top, right - left, bottom - top, width, height);
  at("patches").replaceChildren(seen, ...Array.from({ length: rows * columns }, (_, i) => {
    const act = shown ? shown.places[i] : 0;
    const patch = h("button", {
      type: "button", "aria-pressed": String(i === answer.position), "data-key": `patch${i}`,
      "aria-label": `Patch ${i}` + (shown ? `, activation ${act.toFixed(2)} of concept ${shown.concept}` : ""),
      onclick: () => look(i),
    });
    const w = (right - left) / columns, tall = (bottom - top) / rows;
    place(patch, left + (i % columns) * w, top + Math.floor(i / columns) * tall, w, tall, width, height);
    // Dark where the concept is not, as in the other pictures.
    patch.style.backgroundColor = `rgb(0 0 0 / ${most > 0 ? 0.65 * (1 - Math.abs(act) / most) : 0})`;
    return patch;
  }));
}

function drawTokens(answer, shown) {
  const most = (shown && Math.max(...shown.places.map(Math.abs))) || 1;
  at("tokens").replaceChildren(...answer.tokens.map((token, i) => {
    const act = shown ? shown.places[i] : 0, why = answer.left_out[i];
    return h("button", {
      type: "button", "aria-pressed": String(i === answer.position), "data-key": `token${i}`, "data-token": i,
      class: why ? "token left-out" : act < 0 ? "token negative" : "token", style: { "--level": Math.abs(act) / most },
      title: why ? `the SAE was trained without ${why}` : shown ? `concept ${shown.concept}: ${act.toFixed(2)}` : null,
      onclick: () => look(i),
    }, spelt(token));
  }));
}

function drawSpikes(answer) {
  const ranked = [...answer.spikes].sort((a, b) => b[1] - a[1]);
  at("spikes").replaceChildren(explorer.spikeChart(
    answer.d_sae, ranked.map(([concept]) => concept), ranked.map(([, act]) => act), { label: "Activations", marked: 5, width: 400 },
  ));
}

function row({ concept, label, act, pass }, hasPasses) {
  const change = state.changes.get(concept) ?? { factor: 1, add: 0 };
  const choices = [["off", 0], ["×1", 1], ["×2", 2], ["×5", 5]].map(([label, factor]) => h("button", {
    type: "button", "aria-pressed": String(change.factor === factor), "data-key": `change${concept}:${factor}`,
    "aria-label": `Concept ${concept} ${label}`,
    onclick: () => {
      if (factor === 1) state.changes.delete(concept); else state.changes.set(concept, { factor, add: change.add });
      ask();
    },
  }, label));
  const number = h("button", {
    type: "button", "aria-pressed": String(concept === state.shown), "data-key": `show${concept}`,
    title: "show where it is", onclick: () => { state.shown = concept; ask(); },
  }, concept);
  const added = change.add ? h("span", {}, `${change.add > 0 ? "+" : "−"}${Math.abs(change.add)} everywhere`) : null;
  return h("tr", {}, h("td", {}, number, " ", label), h("td", {}, act.toFixed(2)), hasPasses ? h("td", {}, pass) : null, h("td", {}, choices, added));
}

function drawOutcomes(answer) {
  at("effect").hidden = answer.outcomes === null;
  if (!answer.outcomes) return;
  at("effect-title").textContent = state.kind === "image" ? "Classes" : "Next token";
  const likeliest = Math.max(...answer.outcomes.map(({ before, after }) => Math.max(before, after)));
  at("outcomes").replaceChildren(...answer.outcomes.map(({ label, before, after }) => {
    const bars = [["before", before], ["after", after]].map(([name, p]) =>
      h("div", { class: `bar ${name}`, style: { width: `${100 * p / likeliest}%` } }));
    return h("div", { class: "outcome" },
      h("div", {}, state.kind === "image" ? label : `‹${spelt(label)}›`),
      h("div", { "aria-hidden": "true" }, bars),
      h("div", {}, state.changes.size ? `${percent(before)} → ${percent(after)}` : percent(before)));
  }));
}

function look(position) {
  Object.assign(state, { position, shown: null });
  ask();
}

function begin(given) {
  state.given = given;
  look(null);
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
at("whole").onclick = () => look(null);
at("reset").onclick = () => { state.changes.clear(); ask(); };

fetch("api/session").then((response) => response.json()).then(({ kind, title }) => {
  state.kind = kind;
  at("title").textContent = title;
  at(`${kind}-form`).hidden = false;
}).catch(() => say("There is no answer: has the command sparsemax-sae app ended?", true));
