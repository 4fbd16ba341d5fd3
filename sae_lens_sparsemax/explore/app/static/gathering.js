"use strict";
// Lets the server gather examples of all concepts where there are none, and shows them once they are there.
const SECONDS_BETWEEN_LOOKS = 1;
let gathering = null; // what the server says of it; null where it offers none

/** What stands on a concept's card in place of examples. */
function offer() {
  const place = h("div", { class: "gather" });
  if (gathering) drawGathering(place);
  else place.append(h("p", { class: "note" }, "What else it fires on: ", h("code", {}, `sparsemax-sae explore ${state.title}`),
    " writes its page; then start the app again."));
  return place;
}

function drawGathering(place) {
  const { state: how, what, seconds, progress, error } = gathering;
  if (how === "running") {
    place.replaceChildren(h("p", { class: "note" }, `Gathering examples from ${what} … ${[progress, `${seconds} s`].filter(Boolean).join(", ")}`));
    return;
  }
  place.replaceChildren(
    error ? h("p", { class: "error" }, error) : "",
    h("p", { class: "note" },
      h("button", { type: "button", onclick: gather }, error ? "Try again" : "Gather examples"),
      ` reads ${what}, for labels, best examples and a page of each concept.`),
  );
}

/** Show how far the server says that it is, and look again while it runs. */
function gathered(told) {
  gathering = told;
  if (told === null || told.state === "done") {
    at("gather").hidden = true;
    return told && state.pages === null ? showPages() : null;
  }
  at("gather").hidden = false;
  document.querySelectorAll(".gather").forEach(drawGathering);
  if (told.state === "running") setTimeout(() => hear(fetch("/api/gather").then((response) => response.json())), 1000 * SECONDS_BETWEEN_LOOKS);
}

const hear = (told) => told.then(gathered).catch((error) => {
  gathered({ ...gathering, state: "failed", error: error instanceof TypeError ? GONE : error.message });
});

const gather = () => hear(post("/api/gather", {}));

/** The concepts with their labels, examples and pages, as if these had been there from the start. */
async function showPages() {
  state.pages = (await (await fetch("/api/session")).json()).pages;
  at("pages").hidden = false;
  delete at("chosen").dataset.concept; // its card is drawn anew
  ask();
}
