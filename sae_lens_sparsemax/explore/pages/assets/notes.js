"use strict";
// Bookmarks and notes of the reader, kept in this browser for each SAE, whichever folder its pages are in.
{
  const { h } = explorer;

  /** Hand a text to the reader as a file. */
  explorer.download = (name, text, type) => {
    const address = URL.createObjectURL(new Blob([text], { type }));
    h("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  };

  const key = (sae) => `sparsemax-sae notes of ${explorer.site.saes[sae].id}`;

  /** What was kept of an SAE's concepts: { number: { star, note } }. */
  explorer.notes = (sae) => {
    try {
      return JSON.parse(localStorage.getItem(key(sae))) ?? {};
    } catch {
      return {}; // a browser that keeps nothing, or not what was written here
    }
  };

  /** Keep notes on concepts beside the earlier ones; false if the browser refuses to. */
  const keep = (sae, changes) => {
    const all = { ...explorer.notes(sae), ...changes };
    for (const [id, { star, note }] of Object.entries(all)) if (!star && !note) delete all[id];
    try {
      localStorage.setItem(key(sae), JSON.stringify(all));
      return true;
    } catch {
      return false;
    }
  };

  const of = (sae, id) => explorer.notes(sae)[id] ?? { star: false, note: "" };
  const NOT_KEPT = "This browser does not keep notes of these pages.";

  /** A star that bookmarks a concept. */
  explorer.star = (sae, id, say = () => {}) => {
    const button = h("button", {
      class: "star",
      "aria-label": `Bookmark concept ${id}`,
      title: "bookmark, kept in this browser",
      onclick: () => {
        const mine = of(sae, id);
        say(keep(sae, { [id]: { ...mine, star: !mine.star } }) ? "" : NOT_KEPT);
        show();
      },
    });
    const show = () => {
      const { star } = of(sae, id);
      button.textContent = star ? "★" : "☆";
      button.setAttribute("aria-pressed", String(Boolean(star)));
    };
    show();
    return button;
  };

  /** A field for a note on a concept, kept as it is written. */
  explorer.noteField = (sae, id) => {
    const status = h("span", { class: "quiet", role: "status" });
    const say = (text) => {
      status.textContent = text;
    };
    const field = h("textarea", {
      id: "note",
      rows: 1,
      placeholder: "kept in this browser",
      oninput: () => say(keep(sae, { [id]: { ...of(sae, id), note: field.value } }) ? "kept" : NOT_KEPT),
    });
    field.value = of(sae, id).note;
    return h("p", { class: "own-note" }, explorer.star(sae, id, say), h("label", { for: "note" }, "Note"), field, status);
  };

  /** What an exported file says, or a sentence on what is wrong with it. */
  const imported = (text, d_sae) => {
    const found = JSON.parse(text);
    const entries = Object.entries(found?.concepts ?? {});
    const whole = entries.every(
      ([id, mine]) => /^\d+$/.test(id) && Number(id) < d_sae && mine && typeof (mine.note ?? "") === "string",
    );
    if (!entries.length || !whole) throw new Error("it holds no notes on concepts of this SAE");
    return Object.fromEntries(entries.map(([id, mine]) => [id, { star: Boolean(mine.star), note: mine.note ?? "" }]));
  };

  /** Buttons that save all notes as a file and read such a file; `changed` is called after that. */
  explorer.notesAsFile = (sae, say, changed) => {
    const one = explorer.site.saes[sae];
    const input = h("input", {
      type: "file",
      accept: ".json",
      hidden: true,
      id: "notes-file",
      onchange: async () => {
        try {
          const found = imported(await input.files[0].text(), one.d_sae);
          say(keep(sae, found) ? `${Object.keys(found).length} notes were read.` : NOT_KEPT);
          changed();
        } catch (error) {
          say(`The file was not read: ${error.message}.`);
        }
        input.value = "";
      },
    });
    const save = () => {
      const notes = { sae: one.name, concepts: explorer.notes(sae) };
      explorer.download(`${one.name.replace(/\W+/g, "_")}_notes.json`, JSON.stringify(notes, null, 1), "application/json");
    };
    return [
      h("button", { type: "button", onclick: save }, "Save notes"),
      h("button", { type: "button", onclick: () => input.click() }, "Read notes"),
      input,
    ];
  };
}
