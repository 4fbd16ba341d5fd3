"use strict";
// The inputs of the page: chosen, added, removed, and what they share.
const MOST_INPUTS = 20;

const pictured = (name, given, type = "image/*") => ({ name, given, source: `data:${type};base64,${given}` });

const read = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(pictured(file.name, reader.result.slice(reader.result.indexOf(",") + 1), file.type || "image/*"));
  reader.onerror = () => reject(new Error(`The file ${file.name} could not be read.`));
  reader.readAsDataURL(file);
});

function choose(input) {
  state.input = input;
  if (input.source) at("picture").src = input.source;
  else at("text").value = input.given;
  forgetTexts();
  drawInputs(); // before the answer, which may take a while
  look(null);
}

function remove(input) {
  state.inputs = state.inputs.filter((other) => other !== input);
  at("notice").textContent = "";
  if (input === state.input && state.inputs.length) choose(state.inputs[0]);
  else {
    if (input === state.input) { // a broken one that was alone
      state.input = null;
      say("");
    }
    drawInputs();
    drawShared();
  }
}

/** Add inputs to the list, at most as many as it holds, and look at the first of them; `notices` say what was left out. */
function add(inputs, notices = []) {
  const fresh = inputs.map((input) => state.inputs.find((other) => other.given === input.given) ?? input);
  const all = [...new Set([...state.inputs, ...fresh])], n = all.length - MOST_INPUTS;
  const gone = all.filter((input) => !fresh.includes(input)).slice(0, Math.max(0, n));
  state.inputs = all.filter((input) => !gone.includes(input));
  if (gone.length) notices.push(`${MOST_INPUTS} inputs are kept; the earliest made room: ${gone.map(({ name }) => name).join(", ")}.`);
  at("notice").textContent = notices.join(" ");
  choose(fresh[0]);
  askOthers();
}

async function addFiles(files) {
  const taken = files.slice(0, MOST_INPUTS);
  const notices = taken.length < files.length ? [`The first ${MOST_INPUTS} of ${files.length} files were taken.`] : [];
  const results = await Promise.allSettled(taken.map(read));
  notices.push(...results.filter(({ reason }) => reason).map(({ reason }) => reason.message));
  const inputs = results.filter(({ value }) => value).map(({ value }) => value);
  if (inputs.length) add(inputs, notices);
  else at("notice").textContent = notices.join(" ");
}

/** Inputs that nobody has looked at yet are asked about once, so that what all share is known. */
async function askOthers() {
  for (const input of [...state.inputs]) {
    if (input.peaks || input.error || input === state.input) continue;
    try {
      input.peaks = new Map((await post("/api/inspect", { given: input.given })).peaks);
    } catch (error) {
      if (error.isRefused) input.error = error.message;
    }
  }
  drawInputs();
  drawShared();
  for (const place of document.querySelectorAll("#concepts .in")) place.textContent = shareOf(Number(place.dataset.concept));
}

function drawInputs() {
  const wasOn = document.activeElement?.dataset?.key;
  at("inputs").hidden = state.inputs.length < 2 && !state.inputs.some(({ error }) => error);
  at("inputs").replaceChildren(...state.inputs.map((input, k) => h("span", { class: input.error ? "input broken" : "input" },
    h("button", {
      type: "button", "aria-pressed": String(input === state.input), "data-key": `input${k}`,
      title: input.error ? `${input.name}: ${input.error}` : input.name, onclick: () => choose(input),
    }, input.source && !input.error ? h("img", { src: input.source, alt: input.name }) : input.name),
    h("button", { type: "button", class: "remove", "aria-label": `Remove ${input.name}`, onclick: () => remove(input) }, "×"))));
  if (wasOn) at("inputs").querySelector(`[data-key="${wasOn}"]`)?.focus();
}

const answered = () => state.inputs.filter((input) => input.peaks);

function shareOf(concept) {
  const n = answered().filter((input) => input.peaks.has(concept)).length;
  return answered().length > 1 ? `in ${n} of ${answered().length}` : "";
}

function drawShared() {
  const inputs = answered();
  const least = (concept) => Math.min(...inputs.map((input) => Math.abs(input.peaks.get(concept))));
  const shared = inputs.length < 2 ? [] : [...inputs[0].peaks.keys()].filter((concept) => inputs.every((input) => input.peaks.has(concept)));
  const best = shared.sort((a, b) => least(b) - least(a)).slice(0, 8);
  at("shared").hidden = inputs.length < 2 || !state.input?.peaks;
  at("shared").replaceChildren(shared.length ? `All ${inputs.length} inputs share ${count(shared.length)} concepts: ` : `No concept is shared by all ${inputs.length} inputs.`,
    ...best.flatMap((concept) => [h("button", { type: "button", onclick: () => look(state.position, concept) }, concept), " "]));
}

document.getElementById("file").onchange = ({ target }) => {
  const files = [...target.files];
  target.value = ""; // or the same file could not be chosen again
  if (files.length) addFiles(files);
};
document.getElementById("image-form").onsubmit = (event) => event.preventDefault();
document.getElementById("text-form").onsubmit = (event) => {
  event.preventDefault();
  add([{ name: at("text").value, given: at("text").value }]);
};
