"use strict";
// The table of all concepts, to sort, to narrow down, to search and to take along.
{
  const { h, number, percent, count } = explorer;
  const ROWS = 50;
  // Of those found for a text, since the contexts with it stand below.
  const ROWS_FOUND = 15;

  const COLUMNS = [
    {
      key: "match",
      name: "Examples",
      title: "how many of its strongest examples peak on the words; ordered by that share, rare words counting more",
    },
    { key: "id", name: "Concept", title: "number of the concept" },
    {
      key: "label",
      name: () => (explorer.site.kind === "image" ? "Example and classes" : "Fires on"),
      title: "what its strongest examples have in common; no more than a hint",
    },
    { key: "frequency", name: "Frequency", title: "share of the tokens on which it is active", show: percent },
    { key: "mean", name: "Mean", title: "mean activation where it is active", show: number },
    { key: "max", name: "Max", title: "largest activation", show: number, minor: true },
    {
      key: "later",
      name: "Later",
      title: "share of its activations that only a later pass selected, for what the first left unexplained",
      show: percent,
      minor: true,
    },
    { key: "entropy", name: "Label entropy", title: "bits; 0 is one class", show: number },
    {
      key: "mono",
      name: "Mono­semanticity",
      title: "mean similarity of the images it fires on, to an independent encoder",
      show: number,
    },
    { key: "norm", name: "Decoder norm", title: "length of its decoder row", show: number, minor: true },
    {
      key: "interest",
      name: "Interest",
      title:
        "what to look at first, 0 to 1: not too frequent, seen on at least ten samples, strong in most of its examples, concentrated on few tokens of its examples and, with classes, on few of these",
      show: number,
    },
    { key: "near", name: "Nearest", title: "concept of the most similar decoder row, and their cosine", minor: true },
  ];

  function rowOf(sae, table, id, columns, match, notes) {
    const dead = table.active[id] === 0;
    const cells = columns.map(({ key, show, minor }) => {
      if (key === "id") return h("th", { scope: "row" }, explorer.star(sae, id), explorer.conceptLink(sae, id));
      if (key === "match") return h("td", { class: "figure" }, `${match.get(id).hits} of ${match.get(id).of}`);
      const label = key === "label" && (dead ? h("span", { class: "quiet" }, "dead: never active") : table.label[id]);
      const picture =
        key === "label" && table.thumb && table.thumb[id] >= 0
          ? h("img", { src: `images/${table.thumb[id]}.jpg`, alt: "", loading: "lazy", class: "thumb" })
          : null;
      const near =
        key === "near" && table.near[id]
          ? [
              explorer.conceptLink(sae, table.near[id][0]),
              " ",
              h("span", { class: "quiet" }, number(table.near[id][1])),
            ]
          : null;
      return h(
        "td",
        { class: [minor ? "minor" : "", show ? "figure" : key].join(" ") },
        picture,
        label && [label, notes[id]?.note ? h("span", { class: "own" }, notes[id].note) : null],
        label ? "" : near || (show ? show(valueOf(table, key, id)) : ""),
      );
    });
    return h("tr", { class: dead ? "dead" : null }, cells);
  }

  function valueOf(table, key, id) {
    if (key === "id") return id;
    if (key === "frequency") return table.active[id] / table.n_tokens;
    if (key === "near") return table.near[id] ? table.near[id][1] : null;
    return table.active[id] === 0 && key !== "norm" ? null : table[key][id];
  }

  /** All that the page holds of some concepts, as a file for spreadsheets. */
  function csv(sae, table, ids) {
    const notes = explorer.notes(sae);
    const columns = {
      concept: (id) => id,
      label: (id) => table.label[id],
      frequency: (id) => valueOf(table, "frequency", id),
      active_tokens: (id) => table.active[id],
      samples: (id) => table.samples[id],
    };
    for (const key of ["mean", "max", "later", "entropy", "mono", "norm", "interest"])
      if (table[key]) columns[key] = (id) => valueOf(table, key, id);
    columns.nearest = (id) => table.near[id]?.[0];
    columns.cosine = (id) => table.near[id]?.[1];
    columns.bookmark = (id) => (notes[id]?.star ? 1 : "");
    columns.note = (id) => notes[id]?.note;
    const cell = (value) => {
      if (value === null || value === undefined) return "";
      if (typeof value === "number") return String(value);
      // Spreadsheets would run a text that begins so as a formula.
      const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
      return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
    };
    const lines = [Object.keys(columns), ...ids.map((id) => Object.values(columns).map((value) => cell(value(id))))];
    return lines.map((line) => `${line.join(",")}\n`).join("");
  }

  /** Ids of the concepts that fit what is asked for, in order; those without a value come last. */
  function select(table, state, notes) {
    const { query, sort, match } = state;
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    const ids = [];
    for (let id = 0; id < table.label.length; id++) {
      const frequency = table.active[id] / table.n_tokens;
      if (!state.dead && frequency === 0) continue;
      if (frequency < state.from || frequency > state.to) continue;
      if (match && !match.has(id)) continue;
      if (state.own && !notes[id]) continue;
      if (state.passes === "first" && table.later[id] > 0) continue;
      if (state.passes === "later" && !(table.later[id] > 0.5)) continue;
      const text = `#${id} ${table.label[id]} ${notes[id]?.note ?? ""}`.toLowerCase();
      if (
        words.every((word) =>
          /^\d+$/.test(word) ? String(id) === word || text.includes(` ${word}`) : text.includes(word),
        )
      )
        ids.push(id);
    }
    const sign = sort.descending ? -1 : 1;
    const value = (id) => (sort.key === "match" ? match.get(id).score : valueOf(table, sort.key, id));
    return ids.sort((a, b) => {
      const x = value(a),
        y = value(b);
      if (x === null || y === null || x === undefined || y === undefined)
        return (x === null || x === undefined) - (y === null || y === undefined) || a - b;
      return (typeof x === "string" ? sign * x.localeCompare(y) : sign * (x - y)) || a - b;
    });
  }

  explorer.conceptTable = (sae, table) => {
    const known = COLUMNS.filter(({ key }) => !(key in { later: 1, entropy: 1, mono: 1 }) || table[key]);
    const INTEREST = { key: "interest", descending: true };
    const state = {
      query: "",
      sort: INTEREST,
      dead: false,
      own: false,
      from: 0,
      to: 1,
      passes: "all",
      match: null,
      page: 0,
    };
    const body = h("tbody");
    const status = h("p", { class: "note", role: "status", "aria-live": "polite" });
    const say = h("span", { class: "quiet", "aria-live": "polite" });
    const head = h("tr");
    const heading = ({ key, name, title, minor }) => {
      const mine = key === state.sort.key;
      const sort = () => {
        const descending = mine ? !state.sort.descending : !["id", "label", "entropy"].includes(key);
        Object.assign(state, { sort: { key, descending }, page: 0 });
        draw();
        head.querySelector(`[data-key="${key}"] button`).focus();
      };
      return h(
        "th",
        {
          scope: "col",
          class: minor ? "minor" : null,
          "data-key": key,
          "aria-sort": mine ? (state.sort.descending ? "descending" : "ascending") : null,
        },
        h(
          "button",
          { title, onclick: sort },
          typeof name === "function" ? name() : name,
          h("span", { class: "arrow", "aria-hidden": "true" }, mine ? (state.sort.descending ? " ↓" : " ↑") : ""),
        ),
      );
    };
    const previous = h(
      "button",
      {
        onclick: () => {
          state.page--;
          draw();
        },
      },
      "Previous",
    );
    const next = h(
      "button",
      {
        onclick: () => {
          state.page++;
          draw();
        },
      },
      "Next",
    );

    const contexts = explorer.contextSearch(sae, table);
    const peaks = h(
      "h3",
      { hidden: true },
      explorer.site.kind === "text"
        ? "Concepts whose strongest examples peak on these words"
        : "Concepts whose strongest examples are of such a class",
    );

    let chosen = [];
    const draw = () => {
      const notes = explorer.notes(sae);
      const columns = known.filter(({ key }) => key !== "match" || state.match);
      chosen = select(table, state, notes);
      const rows = state.match && contexts ? ROWS_FOUND : ROWS;
      const first = state.page * rows,
        shown = chosen.slice(first, first + rows);
      peaks.hidden = !state.match;
      head.replaceChildren(...columns.map(heading));
      body.replaceChildren(...shown.map((id) => rowOf(sae, table, id, columns, state.match, notes)));
      status.textContent =
        chosen.length === 0
          ? "No concept matches."
          : `${count(first + 1)} to ${count(first + shown.length)} of ${count(chosen.length)} concepts`;
      previous.disabled = state.page === 0;
      next.disabled = first + rows >= chosen.length;
    };
    draw();
    const again = (change) => (event) => {
      change(event.target);
      state.page = 0;
      draw();
    };
    let turn = 0;
    const find = async (input) => {
      const mine = ++turn;
      const going = () => mine === turn;
      await new Promise((resolve) => setTimeout(resolve, 250)); // until the typing rests
      if (!going()) return;
      const query = input.value.trim();
      contexts?.find(query, going);
      let match = null;
      if (query) {
        status.textContent = "Reading the examples …";
        try {
          match = await explorer.search(sae, query, going);
        } catch (error) {
          if (going()) status.textContent = error.message;
          return;
        }
        if (!going()) return;
      }
      const sort = match ? { key: "match", descending: true } : state.sort.key === "match" ? INTEREST : state.sort;
      Object.assign(state, { match, sort, page: 0 });
      draw();
    };
    const field = (text, title, attributes) => h("label", { title }, text, h("input", attributes));
    const share = (name, text, otherwise) =>
      field(text, "share of the tokens on which a concept is active, in per cent", {
        type: "number",
        id: name,
        min: 0,
        max: 100,
        step: "any",
        placeholder: String(100 * otherwise),
        oninput: again(({ value }) => {
          state[name] = value === "" ? otherwise : Number(value) / 100;
        }),
      });
    const check = (name, text, title) =>
      h(
        "label",
        { title },
        h("input", {
          type: "checkbox",
          id: name,
          onchange: again(({ checked }) => {
            state[name] = checked;
          }),
        }),
        text,
      );
    const texts = explorer.site.kind === "text";
    const passes = [
      ["all", "all"],
      ["first", "the first alone"],
      ["later", "later ones for the most part"],
    ];
    return [
      h(
        "form",
        { class: "filter", role: "search", onsubmit: (event) => event.preventDefault() },
        field("Search", "in numbers, labels and your notes", {
          type: "search",
          id: "search",
          placeholder: "number or words",
          autocomplete: "off",
          oninput: again(({ value }) => {
            state.query = value;
          }),
        }),
        texts || explorer.site.classes.length
          ? field(
              texts ? "Find concepts for a text" : "Find concepts for a class",
              texts
                ? 'words, or a "phrase" in quotes, on which examples peak; below, contexts that contain all of it as one piece'
                : "words in the class of the images that are examples",
              {
                type: "search",
                id: "find",
                placeholder: texts ? 'words or "a phrase"' : "name of a class",
                autocomplete: "off",
                oninput: (event) => find(event.target),
              },
            )
          : null,
        h("span", { class: "range" }, share("from", "Frequency from", 0), share("to", "to", 1), "%"),
        table.later
          ? h(
              "label",
              { title: "the pass that selects a concept's activations" },
              "Passes",
              h(
                "select",
                {
                  id: "passes",
                  onchange: again(({ value }) => {
                    state.passes = value;
                  }),
                },
                passes.map(([value, text]) => h("option", { value }, text)),
              ),
            )
          : null,
        check("own", "Bookmarks and notes alone", "of yours, kept in this browser"),
        check("dead", "Dead concepts too", "that were active on no token"),
      ),
      contexts?.link,
      peaks,
      status,
      h(
        "div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": "Concepts" },
        h("table", { class: "concepts" }, h("thead", {}, head), body),
      ),
      h(
        "div",
        { class: "pager" },
        previous,
        next,
        h(
          "button",
          {
            title: "of the concepts found above, in their order",
            onclick: () =>
              explorer.download(
                `${explorer.site.saes[sae].name.replace(/\W+/g, "_")}_concepts.csv`,
                csv(sae, table, chosen),
                "text/csv",
              ),
          },
          "Save table as CSV",
        ),
        explorer.notesAsFile(
          sae,
          (text) => {
            say.textContent = text;
          },
          draw,
        ),
        say,
      ),
      contexts?.section,
    ];
  };
}
