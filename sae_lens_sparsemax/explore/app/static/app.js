"use strict";
// Asks what is at a place of an image or a text, and shows the answer.
const { h, spelt, count, percent } = explorer;
const MOST_INPUTS = 20;
const at = (id) => document.getElementById(id);
// An input has a name, what is given, the address of its picture, and once it is answered its concepts, `peaks`.
const state = { kind: null, title: "", pages: null, inputs: [], input: null, position: null, changes: new Map(), shown: null, classes: null, turn: 0 };
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
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function say(sentence, isError = false) {
  at("message").textContent = sentence;
  at("message").className = isError ? "error" : "";
}

async function ask() {
  const { input } = state;
  if (input === null) return;
  const turn = ++state.turn;
  say("Computing …");
  try {
    // A concept that is looked at is shown even where it is not among the strongest.
    const looked = state.shown === null || state.changes.has(state.shown) ? [] : [[state.shown, 1, 0]];
    const answer = await post("/api/inspect", {
      given: input.given, position: state.position, changes: [...changes(), ...looked], classes: state.classes,
    });
    input.peaks = new Map(answer.peaks);
    if (turn !== state.turn) return;
    say("");
    show(answer);
  } catch (error) {
    if (turn !== state.turn) return;
    say(error.message, true);
    if (!input.peaks) {
      state.inputs = state.inputs.filter((other) => other !== input);
      state.input = null;
      drawInputs();
      for (const id of ["found", "effect", "whole", "photo", "shared"]) at(id).hidden = true;
      at("tokens").replaceChildren();
    }
  }
}

/** Inputs that nobody has looked at yet are asked about once, so that what all share is known. */
async function askOthers() {
  for (const input of [...state.inputs]) {
    if (input.peaks || input === state.input) continue;
    try {
      input.peaks = new Map((await post("/api/inspect", { given: input.given })).peaks);
    } catch {
      input.peaks = new Map(); // whoever looks at it is told
    }
  }
  drawShared();
  for (const place of document.querySelectorAll("#concepts .in")) place.textContent = shareOf(Number(place.dataset.concept));
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

function shareOf(concept) {
  const others = state.inputs.filter((input) => input.peaks);
  const n = others.filter((input) => input.peaks.has(concept)).length;
  return others.length > 1 ? `in ${n} of ${others.length}` : "";
}

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
  if (state.pages === null) {
    place.append(h("p", { class: "note" }, "What else it fires on: ", h("code", {}, `sparsemax-sae explore ${state.title}`),
      " writes its page; then start the app again", state.local ? "." : h("span", {}, " with ", h("code", {}, "--pages output/explore"), ".")));
    return;
  }
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

function drawInputs() {
  at("inputs").hidden = state.inputs.length < 2;
  at("inputs").replaceChildren(...state.inputs.map((input) => h("span", { class: "input" },
    h("button", {
      type: "button", "aria-pressed": String(input === state.input), title: input.name, "data-key": `input${state.inputs.indexOf(input)}`,
      onclick: () => choose(input),
    }, input.source ? h("img", { src: input.source, alt: input.name }) : input.name),
    h("button", { type: "button", class: "remove", "aria-label": `Remove ${input.name}`, onclick: () => remove(input) }, "×"))));
}

function drawShared() {
  const answered = state.inputs.filter((input) => input.peaks);
  const least = (concept) => Math.min(...answered.map((input) => Math.abs(input.peaks.get(concept))));
  const shared = answered.length < 2 ? [] : [...answered[0].peaks.keys()].filter((concept) => answered.every((input) => input.peaks.has(concept)));
  const best = shared.sort((a, b) => least(b) - least(a)).slice(0, 8);
  at("shared").hidden = answered.length < 2;
  at("shared").replaceChildren(shared.length ? `All ${answered.length} inputs share ${count(shared.length)} concepts: ` : `No concept is shared by all ${answered.length} inputs.`,
    ...best.flatMap((concept) => [h("button", { type: "button", onclick: () => look(state.position, concept) }, concept), " "]));
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

function choose(input) {
  state.input = input;
  if (input.source) at("picture").src = input.source;
  else at("text").value = input.given;
  forgetTexts();
  look(null);
}

function remove(input) {
  state.inputs = state.inputs.filter((other) => other !== input);
  if (input === state.input) choose(state.inputs[0]);
  else { drawInputs(); drawShared(); }
}

/** Add inputs to the list, and look at the first of them. */
function add(inputs) {
  const fresh = inputs.map((input) => state.inputs.find((other) => other.given === input.given) ?? input);
  state.inputs = [...new Set([...state.inputs, ...fresh])].slice(-MOST_INPUTS);
  choose(fresh[0]);
  askOthers();
}

const pictured = (name, given, type = "image/*") => ({ name, given, source: `data:${type};base64,${given}` });

const read = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(pictured(file.name, reader.result.slice(reader.result.indexOf(",") + 1), file.type || "image/*"));
  reader.onerror = () => reject(new Error(`The file ${file.name} could not be read.`));
  reader.readAsDataURL(file);
});

at("file").onchange = (event) => {
  const files = [...event.target.files].slice(0, MOST_INPUTS);
  if (files.length) Promise.all(files.map(read)).then(add).catch((error) => say(error.message, true));
};
at("image-form").onsubmit = (event) => event.preventDefault();
at("text-form").onsubmit = (event) => {
  event.preventDefault();
  add([{ name: at("text").value, given: at("text").value }]);
};
at("look-form").onsubmit = (event) => {
  event.preventDefault();
  look(state.position, Number(at("number").value));
};
at("classes-form").onsubmit = (event) => {
  event.preventDefault();
  state.classes = at("names").value.split("\n");
  ask();
};
at("whole").onclick = () => look(null);
at("reset").onclick = () => { state.changes.clear(); ask(); };

fetch("/api/session").then((response) => response.json()).then(({ kind, title, pages, local, examples, classes, n_classes, steers }) => {
  Object.assign(state, { kind, title, pages, local });
  at("title").textContent = title;
  at("pages").hidden = pages === null;
  at(`${kind}-form`).hidden = false;
  at("steer-form").hidden = !steers;
  at("classes").hidden = !n_classes;
  at("names").value = classes.join("\n");
  at("names-note").textContent = classes.length ? "One a line." : `One a line; without any, the ${count(n_classes)} names that came with the command.`;
  if (examples.length) add(examples.map(({ name, given }) => kind === "image" ? pictured(name, given) : { name, given }));
}).catch(() => say(GONE, true));
at("picture").onload = ({ target }) => target.classList.toggle("tiny", Math.max(target.naturalWidth, target.naturalHeight) <= 64);
