"use strict";
// The table of all concepts, to sort and to search.
{
  const { h, number, percent, count } = explorer;
  const ROWS = 50;

  const COLUMNS = [
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
    { key: "near", name: "Nearest", title: "concept of the most similar decoder row, and their cosine", minor: true },
  ];

  function rowOf(sae, table, id, columns) {
    const dead = table.active[id] === 0;
    const cells = columns.map(({ key, show, minor }) => {
      if (key === "id") return h("th", { scope: "row" }, explorer.conceptLink(sae, id));
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
        label || near || (show ? show(valueOf(table, key, id)) : ""),
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

  /** Ids of the concepts that match, in order; those without a value come last. */
  function select(table, query, sort, hideDead) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    const ids = [];
    for (let id = 0; id < table.label.length; id++) {
      if (hideDead && table.active[id] === 0) continue;
      const text = `#${id} ${table.label[id]}`.toLowerCase();
      if (
        words.every((word) =>
          /^\d+$/.test(word) ? String(id) === word || text.includes(` ${word}`) : text.includes(word),
        )
      )
        ids.push(id);
    }
    const sign = sort.descending ? -1 : 1;
    const value = (id) => valueOf(table, sort.key, id);
    return ids.sort((a, b) => {
      const x = value(a),
        y = value(b);
      if (x === null || y === null || x === undefined || y === undefined)
        return (x === null || x === undefined) - (y === null || y === undefined) || a - b;
      return (typeof x === "string" ? sign * x.localeCompare(y) : sign * (x - y)) || a - b;
    });
  }

  explorer.conceptTable = (sae, table) => {
    const columns = COLUMNS.filter(({ key }) => !(key in { later: 1, entropy: 1, mono: 1 }) || table[key]);
    const state = { query: "", sort: { key: "frequency", descending: true }, hideDead: true, page: 0 };
    const body = h("tbody");
    const status = h("p", { class: "note", role: "status", "aria-live": "polite" });
    const head = h(
      "tr",
      {},
      columns.map(({ key, name, title, minor }) =>
        h(
          "th",
          { scope: "col", class: minor ? "minor" : null, "data-key": key },
          h(
            "button",
            {
              title,
              onclick: () => {
                state.sort = {
                  key,
                  descending:
                    state.sort.key === key ? !state.sort.descending : !["id", "label", "entropy"].includes(key),
                };
                state.page = 0;
                draw();
              },
            },
            typeof name === "function" ? name() : name,
            h("span", { class: "arrow", "aria-hidden": "true" }),
          ),
        ),
      ),
    );
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

    const draw = () => {
      const ids = select(table, state.query, state.sort, state.hideDead);
      const first = state.page * ROWS,
        shown = ids.slice(first, first + ROWS);
      body.replaceChildren(...shown.map((id) => rowOf(sae, table, id, columns)));
      status.textContent =
        ids.length === 0
          ? "No concept matches."
          : `${count(first + 1)} to ${count(first + shown.length)} of ${count(ids.length)} concepts`;
      previous.disabled = state.page === 0;
      next.disabled = first + ROWS >= ids.length;
      for (const cell of head.children) {
        const mine = cell.dataset.key === state.sort.key;
        if (mine) cell.setAttribute("aria-sort", state.sort.descending ? "descending" : "ascending");
        else cell.removeAttribute("aria-sort");
        cell.querySelector(".arrow").textContent = mine ? (state.sort.descending ? " ↓" : " ↑") : "";
      }
    };
    draw();
    const again = (change) => (event) => {
      change(event.target);
      state.page = 0;
      draw();
    };
    return [
      h(
        "form",
        { class: "filter", role: "search", onsubmit: (event) => event.preventDefault() },
        h(
          "label",
          {},
          "Search",
          h("input", {
            type: "search",
            id: "search",
            placeholder: "number or words",
            autocomplete: "off",
            oninput: again((input) => {
              state.query = input.value;
            }),
          }),
        ),
        h(
          "label",
          { class: "check" },
          h("input", {
            type: "checkbox",
            id: "dead",
            onchange: again((input) => {
              state.hideDead = !input.checked;
            }),
          }),
          "Dead concepts too",
        ),
      ),
      status,
      h(
        "div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": "Concepts" },
        h("table", { class: "concepts" }, h("thead", {}, head), body),
      ),
      h("div", { class: "pager" }, previous, next),
    ];
  };
}
