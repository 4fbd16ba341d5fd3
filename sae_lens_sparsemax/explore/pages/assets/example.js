"use strict";
// One image or text through every SAE: which concepts are active on it, as a whole and at a chosen patch or token.
{
  const { h, number, count } = explorer;
  const TOP = 3;

  /** Activations of a sample: per concept for all tokens together, or at one token. */
  function profile(example, token) {
    const images = explorer.site.kind === "image",
      sums = new Map();
    example.tokens.forEach((t, i) => {
      if (token !== null && t !== token) return;
      const concept = example.concepts[i],
        value = example.values[i],
        before = sums.get(concept);
      // An image is ranked by the mean size over its tokens, a text by its strongest token.
      sums.set(
        concept,
        token !== null
          ? value
          : images
            ? (before ?? 0) + Math.abs(value) / explorer.site.tokens
            : Math.abs(value) > Math.abs(before ?? 0)
              ? value
              : before,
      );
    });
    const ranked = [...sums].sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]) || a[0] - b[0]);
    return { concepts: ranked.map((pair) => pair[0]), values: ranked.map((pair) => pair[1]) };
  }

  /** Levels of a concept at every token of the sample. */
  function levelsOf(example, concept) {
    const values = new Float32Array(explorer.site.tokens);
    example.tokens.forEach((t, i) => {
      if (example.concepts[i] === concept) values[t] = example.values[i];
    });
    const peak = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
    return { levels: values.map((value) => value / peak), peak };
  }

  async function column(sae, id, token) {
    const images = explorer.site.kind === "image";
    const example = await explorer.need(`${sae}/example-${id}`);
    const one = explorer.site.saes[sae];
    const { concepts, values } = profile(example, token);
    const what =
      token === null
        ? images
          ? "this image"
          : "this text"
        : images
          ? `patch ${token - explorer.site.prefix}`
          : `token ${token}`;
    const cards = await Promise.all(
      concepts.slice(0, TOP).map(async (concept, k) => {
        const { levels, peak } = levelsOf(example, concept);
        const here = images
          ? h(
              "div",
              { class: "here" },
              explorer.masked(id, levels, { caption: false, plain: true, alt: `Concept ${concept} on this image` }),
            )
          : h("ol", { class: "examples here" }, await explorer.shaded(id, levels, peak));
        return explorer.card(sae, concept, `${number(values[k])} on ${what}`, images ? 6 : 3, here);
      }),
    );
    return h(
      "section",
      { class: "column", "data-sae": sae },
      h("h2", {}, explorer.site.saes.length > 1 ? one.name : `Concepts of ${what}`),
      h("p", { class: "note" }, `${count(concepts.length)} of ${count(one.d_sae)} concepts are active on ${what}.`),
      explorer.spikes(sae, concepts, values, { label: `Activations on ${what}`, marked: TOP }),
      cards.length ? cards : h("p", { class: "quiet" }, "No concept is active here."),
    );
  }

  const sheet = (ids, current) =>
    h(
      "nav",
      { class: "sheet", "aria-label": "Examples" },
      ids.map((id, k) =>
        explorer.site.kind === "image"
          ? h(
              "a",
              { href: explorer.link("example", 0, id), "aria-current": id === current ? "page" : null },
              h("img", { src: `images/${id}.jpg`, alt: `image ${id}`, loading: "lazy" }),
            )
          : h(
              "a",
              {
                href: explorer.link("example", 0, id),
                title: explorer.site.titles[k],
                "aria-current": id === current ? "page" : null,
              },
              `text ${id}`,
            ),
      ),
    );

  explorer.exampleColumns = async (id) => {
    const images = explorer.site.kind === "image";
    const saes = explorer.site.saes.map((_, k) => k);
    let chosen = null;
    const columns = h("div", { class: "columns", "data-count": saes.length });
    const side = h("div", { class: "chooser" });
    const tokens = images ? null : await explorer.context(id);
    const strengths = images ? null : await Promise.all(saes.map((k) => explorer.need(`${k}/example-${id}`)));
    const shade = () => {
      const sums = new Float32Array(tokens.length);
      strengths[0].tokens.forEach((t) => {
        sums[t] += 1;
      });
      const most = Math.max(...sums);
      return sums.map((value) => value / most);
    };
    const draw = async () => {
      const token = chosen === null ? null : images ? chosen + explorer.site.prefix : chosen;
      const whole = h(
        "button",
        { class: "whole-button", disabled: chosen === null, onclick: () => choose(null) },
        images ? "Whole image" : "Whole text",
      );
      const had = side.contains(document.activeElement) && document.activeElement.closest(".choosable");
      side.replaceChildren(
        ...[
          images ? explorer.choosable(id, chosen, choose) : explorer.choosableText(tokens, shade(), chosen, choose),
          h(
            "p",
            { class: "note" },
            images
              ? explorer.site.grid[0]
                ? "Choose a patch to see its concepts."
                : ""
              : "The shade is the number of active concepts. Choose a token to see its concepts.",
          ),
          explorer.site.grid[0] || !images ? whole : null,
        ].filter(Boolean),
      );
      if (had) side.querySelector(".choosable").focus();
      columns.replaceChildren(...(await Promise.all(saes.map((k) => column(k, id, token)))));
      columns.dataset.token = token === null ? "" : String(token);
    };
    const choose = (k) => {
      chosen = k === chosen ? null : k;
      return draw();
    };
    await draw();
    return h("div", { class: "stage", "data-count": saes.length }, side, columns);
  };

  explorer.sheet = sheet;
  if (document.body.dataset.page === "example") {
    explorer.start(async ({ id }) => {
      const ids = explorer.site.showcase;
      if (!ids.length) throw new Error("This folder was made without example pages.");
      const current = location.hash.length > 1 ? id : ids[0];
      if (!ids.includes(current)) throw new Error(`There is no page for example ${current}.`);
      const images = explorer.site.kind === "image";
      const name = images ? explorer.classOf(current) : null;
      document.title = `${images ? "Image" : "Text"} ${current}`;
      return [
        h("h1", {}, `${images ? "Image" : "Text"} ${current} `, h("span", { class: "label" }, name ?? "")),
        sheet(ids, current),
        images ? explorer.views() : null,
        await explorer.exampleColumns(current),
      ];
    });
  }
}
