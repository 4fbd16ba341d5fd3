"use strict";
// Asks what is at a place of an image or a text, and shows the answer.
const { h, spelt, count, percent } = explorer;
const at = (id) => document.getElementById(id);
// An input has a name, what is given, the address of its picture, and once it is answered its concepts, `peaks`, or why
// it was refused, `error`. Classes are null for those that came with the command, `own`; `wanted` are those that a person
// has listed, until the server has taken or refused them.
const state = {
  kind: null, title: "", pages: null, inputs: [], input: null, position: null, changes: new Map(), shown: null,
  classes: null, wanted: undefined, own: [], turn: 0,
};
const PLAIN = { factor: 1, add: 0 };
const changeOf = (concept) => state.changes.get(concept) ?? PLAIN;
const changes = () => [...state.changes].map(([concept, { factor, add }]) => [concept, factor, add]);
const GONE = "There is no answer: has the command sparsemax-sae app ended?";

/** The answer to a question: its values, or an error with a sentence. */
async function post(path, question, signal) {
  let response, answer;
  try {
    response = await fetch(path, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question), signal,
    });
    answer = await response.json();
  } catch {
    throw new Error(GONE);
  }
  if (!response.ok) throw Object.assign(new Error(answer.error), { isRefused: [400, 413].includes(response.status) });
  return answer;
}

function say(sentence, isError = false) {
  at("message").textContent = sentence;
  at("message").className = isError ? "error" : "";
}

async function ask() {
  const { input, wanted } = state;
  if (input === null) return;
  const turn = ++state.turn;
  say("Computing …");
  try {
    // A concept that is looked at is shown even where it is not among the strongest.
    const looked = state.shown === null || state.changes.has(state.shown) ? [] : [[state.shown, 1, 0]];
    const answer = await post("/api/inspect", {
      given: input.given, position: state.position, changes: [...changes(), ...looked],
      classes: wanted === undefined ? state.classes : wanted,
    });
    input.peaks = new Map(answer.peaks);
    input.error = null;
    if (wanted !== undefined && wanted === state.wanted) Object.assign(state, { classes: wanted, wanted: undefined });
    if (turn !== state.turn) return;
    say("");
    show(answer);
  } catch (error) {
    if (wanted !== undefined && wanted === state.wanted) {
      // What was listed may be what is wrong: the earlier classes stay, and are asked with.
      state.wanted = undefined;
      at("classes-message").textContent = error.message;
      return ask();
    }
    if (error.isRefused && wanted === undefined && !input.peaks) input.error = error.message;
    if (turn !== state.turn) return;
    say(error.message, true);
    if (!input.peaks) showNothing();
  }
}

/** Nothing of an earlier input stays beside one that has no answer. */
function showNothing() {
  for (const id of ["found", "effect", "whole", "photo", "nowhere"]) at(id).hidden = true;
  at("tokens").replaceChildren();
  if (state.kind === "text") { // its field still holds it
    state.inputs = state.inputs.filter((other) => other !== state.input);
    state.input = null;
  }
  drawInputs();
  drawShared();
}

function show(answer) {
  const isImage = state.kind === "image";
  const wasOn = document.activeElement?.dataset?.key;
  const shown = answer.concepts.find((c) => c.concept === state.shown) ?? answer.concepts[0] ?? null;
  state.shown = shown ? shown.concept : null;
  const whole = answer.class_token ? "Class token" : "Image as a whole";
  const where = isImage
    ? answer.position === null ? whole : `Patch ${answer.position}`
    : `Token ${answer.position} “${spelt(answer.tokens[answer.position])}”`;
  at("where").textContent = `${where}: ${answer.n_active} of ${count(answer.d_sae)} concepts`;
  const why = answer.left_out?.[answer.position];
  at("left-out").textContent = why ? `No concept is active here: the SAE was trained without ${why}.` : "";
  at("number").max = answer.d_sae - 1;
  at("whole").textContent = answer.class_token ? whole : "Whole image";
  if (isImage) drawPatches(answer, shown); else drawTokens(answer, shown);
  at("nowhere").hidden = !shown?.places.length || shown.places.some((act) => act !== 0);
  at("nowhere").textContent = shown ? `Concept ${shown.concept} is active on no ${isImage ? "patch" : "token"}.` : "";
  drawSpikes(answer);
  const hasPasses = answer.concepts.some((c) => c.pass !== null);
  at("pass").hidden = !hasPasses;
  at("concepts").replaceChildren(...answer.concepts.flatMap((c) => row(c, hasPasses)));
  drawOutcomes(answer);
  drawChosen(answer, shown);
  drawInputs();
  drawShared();
  at("found").hidden = at("effect").hidden = false;
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

function setChange(concept, change) {
  if (change.factor === 1 && change.add === 0) state.changes.delete(concept);
  else state.changes.set(concept, change);
  state.shown = concept;
  forgetTexts(); // they are of other changes
  ask();
}

/** A slider that says what it is at while it moves, and changes a concept when it is let go. */
function slider(concept, key, label, range, spell) {
  const output = h("output", {}, spell(changeOf(concept)[key]));
  const input = h("input", {
    type: "range", ...range, "aria-label": label, "data-key": `${key}${concept}`, class: key,
    oninput: () => { output.textContent = spell(Number(input.value)); },
    onchange: () => setChange(concept, { ...changeOf(concept), [key]: Number(input.value) }),
  });
  input.value = changeOf(concept)[key];
  return [input, output];
}

const signed = (value) => `${value < 0 ? "−" : "+"}${explorer.number(Math.abs(value))}`;

function row({ concept, label, act, pass }, hasPasses) {
  const { factor, add } = changeOf(concept);
  const off = h("button", {
    type: "button", "aria-pressed": String(factor === 0), "data-key": `off${concept}`, "aria-label": `Concept ${concept} off`,
    onclick: () => setChange(concept, { factor: factor === 0 ? 1 : 0, add }),
  }, "off");
  const times = slider(concept, "factor", `Concept ${concept} times`, { min: 0, max: 5, step: 0.1 }, (value) => `×${value}`);
  const number = h("button", {
    type: "button", "aria-pressed": String(concept === state.shown), "data-key": `show${concept}`,
    title: "show where it is", onclick: () => look(state.position, concept),
  }, concept);
  const strength = h("td", {}, h("span", { class: "strength" }, off, times), add ? h("span", { class: "added" }, `${signed(add)} everywhere`) : null);
  return [
    h("tr", {}, h("td", {}, number), h("td", {}, act.toFixed(2)), hasPasses ? h("td", {}, pass) : null, strength),
    h("tr", { class: "about" }, h("td", { colspan: 4 }, label, " ", h("span", { class: "in quiet", "data-concept": concept }, shareOf(concept)))),
  ];
}

/** The concept that is looked at: what to add of it, and what its page shows. */
function drawChosen({ spikes }, shown) {
  if (!shown) return at("chosen").replaceChildren();
  const { concept, label, places } = shown;
  const known = at("chosen").dataset.concept === String(concept) ? at("chosen").querySelector(".card") : null;
  const most = Number(Math.max(4 * Math.max(0, ...places.map(Math.abs), ...spikes.map(([, act]) => Math.abs(act))), 1).toPrecision(2));
  at("chosen").dataset.concept = concept;
  at("chosen").replaceChildren(
    h("h2", {}, `Concept ${concept} `, h("span", { class: "label" }, label)),
    h("p", { class: "strength" }, h("span", {}, "Add everywhere"),
      slider(concept, "add", `Concept ${concept} everywhere`, { min: -most, max: most, step: most / 50 }, signed)),
    known ?? h("article", { class: "card" }),
  );
  if (!known) drawCard(concept, at("chosen").querySelector(".card"));
}

async function drawCard(concept, place) {
  if (state.pages === null) return place.append(offer());
  try {
    await explorer.need("explore");
    if (state.kind === "image") await explorer.need("samples");
    const table = await explorer.table(state.pages);
    const facts = table.active[concept] ? `active on ${percent(table.active[concept] / table.n_tokens)} of tokens` : "active on nothing that was read";
    place.replaceChildren(...(await explorer.card(state.pages, concept, facts, 4)).childNodes);
    place.querySelector(".concept-link").textContent = "Its page";
  } catch (error) {
    place.replaceChildren(h("p", { class: "error" }, error.message));
  }
}

const chance = (p) => (p < 0.001 ? "< 0.1 %" : percent(p));

function drawOutcomes(answer) {
  for (const id of ["effect-title", "outcomes"]) at(id).hidden = answer.outcomes === null;
  document.querySelector(".key").hidden = answer.outcomes === null;
  if (!answer.outcomes) return;
  at("effect-title").textContent = state.kind === "image" ? "Classes" : "Next token";
  const likeliest = Math.max(...answer.outcomes.map(({ before, after }) => Math.max(before, after)));
  at("outcomes").replaceChildren(...answer.outcomes.map(({ label, before, after }) => {
    const bars = [["before", before], ["after", after]].map(([name, p]) =>
      h("div", { class: `bar ${name}`, style: { width: `${100 * p / likeliest}%` } }));
    return h("div", { class: "outcome" },
      h("div", {}, state.kind === "image" ? label : `‹${spelt(label)}›`),
      h("div", { "aria-hidden": "true" }, bars),
      h("div", {}, state.changes.size ? `${chance(before)} → ${chance(after)}` : chance(before)));
  }));
}

function look(position, concept = null) {
  Object.assign(state, { position, shown: concept });
  ask();
}

at("look-form").onsubmit = (event) => {
  event.preventDefault();
  look(state.position, Number(at("number").value));
};
at("classes-form").onsubmit = (event) => {
  event.preventDefault();
  const names = at("names").value.split("\n").filter((name) => name.trim());
  if (!names.length) at("names").value = state.own.join("\n");
  state.wanted = names.length ? names : null;
  at("classes-message").textContent = "";
  ask();
};
at("whole").onclick = () => look(null);
at("reset").onclick = () => {
  state.changes.clear();
  forgetTexts();
  ask();
};

fetch("/api/session").then((response) => response.json()).then(({ kind, title, pages, gathering, examples, classes, n_classes, classifies, steers }) => {
  Object.assign(state, { kind, title, pages, own: classes });
  at("title").textContent = title;
  at("pages").hidden = pages === null;
  gathered(gathering);
  at(`${kind}-form`).hidden = false;
  at("steer-form").hidden = !steers;
  at("classes").hidden = !classifies;
  at("classes").open = classifies && !n_classes;
  at("names").value = classes.join("\n");
  at("names-note").textContent = n_classes
    ? `One a line; without any, the ${count(n_classes)} names that came with the command.`
    : "One a line. What this SAE's images show is not known, so name what there is to choose from.";
  if (examples.length) add(examples.map(({ name, given }) => kind === "image" ? pictured(name, given) : { name, given }));
}).catch(() => say(GONE, true));
at("picture").onload = ({ target }) => target.classList.toggle("tiny", Math.max(target.naturalWidth, target.naturalHeight) <= 64);
