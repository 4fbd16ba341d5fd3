"use strict";
// Contexts of text with the tokens on which a concept fires shaded.
{
  const { h, number, spelt } = explorer;
  const BEFORE = 14,
    AFTER = 8;

  /** The tokens of a context: a list of texts. */
  explorer.context = async (id) => (await explorer.need(`contexts-${Math.floor(id / explorer.site.contextShard)}`))[id];

  const span = (token, level, unit) =>
    level === 0
      ? document.createTextNode(spelt(token))
      : h(
          "mark",
          {
            style: { "--level": Math.min(1, Math.abs(level)) },
            class: level < 0 ? "negative" : null,
            title: number(level * unit),
          },
          spelt(token),
        );

  /**
   * A context of `n` tokens around some of them, from `start` to `end`, and a button for the whole of it;
   * `part(from, to)` are tokens as they are shown.
   */
  explorer.excerpt = (n, start, end, part) => {
    const first = Math.max(0, start - BEFORE),
      last = Math.min(n, end + AFTER + 1);
    const text = h("p", { class: "context", dir: "auto" });
    const button = h("button", {
      class: "more",
      "aria-expanded": "false",
      onclick: () => show(button.getAttribute("aria-expanded") !== "true"),
    });
    const show = (whole) => {
      text.replaceChildren(
        ...(whole
          ? part(0, n).flat()
          : [first > 0 ? "… " : "", ...part(first, last).flat(), last < n ? " …" : ""]),
      );
      button.textContent = whole ? "less" : "more";
      button.setAttribute("aria-expanded", String(whole));
    };
    show(false);
    return { text, button };
  };

  /** A context around its strongest token, and the whole of it on demand; `levels` are activations in that unit. */
  explorer.shaded = async (id, levels, unit) => {
    const tokens = await explorer.context(id);
    const part = (from, to) => tokens.slice(from, to).map((token, k) => span(token, levels[from + k], unit));
    const strongest = explorer.strongest(levels);
    const { text, button } = explorer.excerpt(tokens.length, strongest, strongest, part);
    const page = explorer.site.showcase.includes(id);
    return h(
      "li",
      { class: "example" },
      h("span", { class: "value", title: "largest activation" }, number(levels[strongest] * unit)),
      text,
      h("span", { class: "tools" }, button, page ? h("a", { href: explorer.link("example", 0, id) }, "open") : null),
    );
  };

  /** A context whose tokens can be chosen; `levels` shade them. */
  explorer.choosableText = (tokens, levels, chosen, choose) =>
    h(
      "p",
      { class: "context whole", dir: "auto" },
      tokens.map((token, k) =>
        h(
          "button",
          {
            class: "token",
            "aria-pressed": k === chosen ? "true" : "false",
            "data-token": k,
            style: { "--level": Math.max(0, levels[k]) },
            onclick: () => choose(k),
          },
          spelt(token),
        ),
      ),
    );
}
