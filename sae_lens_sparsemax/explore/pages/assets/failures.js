"use strict";
// Where to look for what went wrong: concepts that look alike, that have no clear pattern, that fire everywhere.
{
  const { h, number, percent } = explorer;

  async function pairs(sae, found) {
    if (!found.length) return h("p", { class: "quiet" }, "None.");
    return Promise.all(
      found.map(async ([a, b, cosine, shared, overlap]) =>
        h(
          "div",
          { class: "twins" },
          h(
            "p",
            {},
            `cosine ${number(cosine)}`,
            h(
              "span",
              { class: "quiet" },
              `, ${shared} examples in common${overlap === null ? "" : `, overlap of their tokens ${number(overlap)}`}`,
            ),
          ),
          h(
            "div",
            { class: "columns", "data-count": 2 },
            await Promise.all([a, b].map((id) => explorer.card(sae, id, "", explorer.site.kind === "image" ? 4 : 2))),
          ),
        ),
      ),
    );
  }

  async function cards(sae, table, found, value) {
    if (!found.length) return h("p", { class: "quiet" }, "None.");
    return h(
      "div",
      { class: "cards" },
      await Promise.all(found.map((id) => explorer.card(sae, id, value(id), explorer.site.kind === "image" ? 6 : 3))),
    );
  }

  explorer.start(async ({ sae }) => {
    const [table, found] = await Promise.all([explorer.table(sae), explorer.need(`${sae}/failures`)]);
    const one = explorer.site.saes[sae];
    document.title = `${one.name}: failure cases`;
    const everywhere = (id) => `active on ${percent(table.active[id] / table.n_tokens)} of tokens`;
    const contents = [
      ["alike", "Concepts that look alike"],
      ["unclear", "Concepts without a clear pattern"],
      ["frequent", "Concepts that fire often"],
      ["dead", "Dead concepts"],
    ];
    const part = (key, note, ...children) =>
      h(
        "section",
        { id: key, tabindex: -1 },
        h("h2", {}, contents.find(([name]) => name === key)[1]),
        h("p", { class: "note" }, note),
        ...children,
      );
    return [
      h("h1", {}, `Failure cases of ${one.name}`),
      h(
        "p",
        { class: "note" },
        "What these lists show may be the SAE's fault, the model's, or that of too few examples: they are where to look first.",
      ),
      h(
        "nav",
        { class: "sections", "aria-label": "On this page" },
        contents.map(([key, name]) => h("a", { href: `#${sae ? `${sae}/` : ""}`, onclick: explorer.jump(key) }, name)),
      ),
      part("alike", "Pairs of the most similar decoder rows, both active.", await pairs(sae, found.alike)),
      part(
        "unclear",
        found.unclear_note,
        await cards(sae, table, found.unclear, (id) =>
          table.entropy
            ? `label entropy ${number(table.entropy[id])} bits, ${everywhere(id)}`
            : `${found.distinct[id] ?? "many"} different tokens at the peaks of its examples, ${everywhere(id)}`,
        ),
      ),
      part(
        "frequent",
        "Active on more than a tenth of all tokens: seldom something that can be named.",
        await cards(sae, table, found.frequent, everywhere),
      ),
      part(
        "dead",
        `Active on none of the tokens read: ${explorer.count(one.n_dead)} of ${explorer.count(one.d_sae)}.`,
        h(
          "p",
          { class: "dead-list" },
          found.dead.map((id) => [explorer.conceptLink(sae, id), " "]),
          one.n_dead > found.dead.length ? "…" : "",
        ),
      ),
    ];
  });
}
