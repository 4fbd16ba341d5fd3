"use strict";
// A concept in short: its label, and examples of it.
{
  const { h, number, percent } = explorer;

  /** Up to `n` examples of a concept: images with masks, or shaded contexts. */
  explorer.examples = async (concept, n, values = true) => {
    const examples = concept.e.slice(0, n);
    const tokens = explorer.site.tokens;
    if (explorer.site.kind === "image") {
      return h(
        "div",
        { class: "strip" },
        examples.map(([id, score, , text]) =>
          explorer.masked(id, explorer.levels(text, tokens), { value: values ? score : undefined }),
        ),
      );
    }
    return h(
      "ol",
      { class: "examples" },
      await Promise.all(examples.map(([id, , peak, text]) => explorer.shaded(id, explorer.levels(text, tokens), peak))),
    );
  };

  /** A box with a concept's number, label, a line of facts and a few examples. */
  explorer.card = async (sae, id, facts, n, before = null) => {
    const [table, concept] = await Promise.all([explorer.table(sae), explorer.concept(sae, id)]);
    const later = table.later && table.active[id] ? `${percent(table.later[id])} from later passes alone` : "";
    return h(
      "article",
      { class: "card" },
      h("h3", {}, explorer.conceptLink(sae, id), " ", h("span", { class: "label" }, table.label[id])),
      h("p", { class: "quiet" }, [facts, later].filter(Boolean).join(" · ")),
      h("div", { class: before ? "evidence" : null }, before, await explorer.examples(concept, n, false)),
    );
  };

  /** Other concepts with how near they are, as a list of links. */
  explorer.neighbours = (sae, table, pairs, unit) =>
    pairs.length === 0
      ? h("p", { class: "quiet" }, "None.")
      : h(
          "ol",
          { class: "neighbours" },
          pairs.map(([id, value]) =>
            h(
              "li",
              {},
              explorer.conceptLink(sae, id),
              " ",
              h("span", { class: "label" }, table.label[id]),
              h("span", { class: "quiet" }, ` ${unit} ${number(value)}`),
            ),
          ),
        );
}
