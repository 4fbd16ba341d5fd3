"use strict";
// A concept in short: its label, and examples of it.
{
  const { h, number, percent } = explorer;

  /**
   * Up to `n` of a concept's examples, `all`: images with masks, or shaded contexts; the shade is relative to
   * `highest`, or to the largest activation of each example.
   */
  explorer.examples = async (all, n, values = true, highest = null) => {
    const examples = all.slice(0, n);
    const tokens = explorer.site.tokens;
    const levels = (peak, text) => explorer.levels(text, tokens).map((level) => level * (highest ? peak / highest : 1));
    if (explorer.site.kind === "image") {
      return h(
        "div",
        { class: "strip" },
        examples.map(([id, score, peak, text]) =>
          explorer.masked(id, levels(peak, text), { value: values ? score : undefined }),
        ),
      );
    }
    return h(
      "ol",
      { class: "examples" },
      await Promise.all(examples.map(([id, , peak, text]) => explorer.shaded(id, levels(peak, text), highest ?? peak))),
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
      h("div", { class: before ? "evidence" : null }, before, await explorer.examples(concept.e, n, false)),
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
