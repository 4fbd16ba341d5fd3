"use strict";
// Lets the model go on with the text, without and with the changes, beside each other.
let steered = null;

function forgetTexts() {
  steered?.abort();
  steered = null;
  at("texts").hidden = at("stop").hidden = true;
  at("steer-message").textContent = "";
}

document.getElementById("steer-form").onsubmit = async (event) => {
  event.preventDefault();
  if (state.input === null) return;
  forgetTexts();
  const mine = (steered = new AbortController());
  at("steer-message").className = "";
  at("steer-message").textContent = "Writing …";
  at("stop").hidden = false;
  try {
    const { before, after } = await post("/api/steer", {
      given: state.input.given, changes: changes(),
      max_new_tokens: Number(at("n-tokens").value), temperature: Number(at("temperature").value),
    }, mine.signal);
    at("text-before").textContent = before;
    at("text-after").textContent = after;
    at("texts").hidden = false;
    at("steer-message").textContent = state.changes.size ? "" : "Nothing is changed: move a slider, and go on again.";
  } catch (error) {
    if (steered !== mine) return;
    at("steer-message").className = mine.signal.aborted ? "" : "error";
    at("steer-message").textContent = mine.signal.aborted ? "Stopped." : error.message;
  } finally {
    if (steered === mine) at("stop").hidden = true;
  }
};
document.getElementById("stop").onclick = () => steered?.abort();
