"use strict";
// One concept: what it fires on, how strongly, in which classes, and which others are near it.
{
  const { h, number, percent, count } = explorer;

  const activations = (concept) =>
    explorer.section(
      "Activations",
      "Tokens on which it is active, by activation.",
      explorer.histogram(
        { low: concept.h[0], width: concept.h[1], counts: concept.h[2] },
        { label: "Tokens by activation", x: "activation", unit: "tokens" },
      ),
    );

  /** The strongest examples; images by their mean over all patches or by their strongest one. */
  async function strongest(concept, highest) {
    if (!concept.m) {
      const note = "In which its activation is highest, strongest first. The stronger the shade, the higher the activation.";
      return explorer.section("Contexts", note, await explorer.examples(concept.e, concept.e.length, true, highest));
    }
    const kinds = [
      ["mean", concept.e, "highest mean", "On which its mean activation is highest."],
      ["highest", concept.m, "strongest patch", "On which its activation is highest at any one patch."],
    ];
    const strips = await Promise.all(kinds.map(([, examples]) => explorer.examples(examples, examples.length, true, highest)));
    const note = h("p", { class: "note" });
    const buttons = kinds.map(([name, , text], k) =>
      h("button", { type: "button", "data-kind": name, onclick: () => choose(k) }, text),
    );
    const choose = (chosen) => {
      note.textContent = `${kinds[chosen][3]} ${explorer.site.grid[0] ? "What the model does not see is darkest." : ""}`;
      kinds.forEach((_, k) => {
        strips[k].hidden = k !== chosen;
        buttons[k].setAttribute("aria-pressed", String(k === chosen));
      });
    };
    choose(0);
    return explorer.section(
      "Images",
      null,
      h("div", { class: "choice", role: "group", "aria-label": "Order" }, buttons),
      explorer.views(),
      note,
      strips,
    );
  }

  /** Examples drawn from all, in four parts from strong to weak. */
  async function bands(concept, n_samples, highest) {
    const drawn = concept.d ?? [];
    // All of them are among the strongest already.
    if (!drawn.length || n_samples <= concept.e.length) return null;
    const images = explorer.site.kind === "image";
    const n = Math.min(4, drawn.length);
    const share = drawn.length % 4 ? "part" : "quarter";
    const names = n === 4 ? ["strongest", "second", "third", "weakest"].map((name) => `${name} ${share} of those drawn`) : [];
    const parts = [];
    for (let k = 0; k < n; k++) {
      const part = drawn.slice(Math.floor((k * drawn.length) / n), Math.floor(((k + 1) * drawn.length) / n));
      const values = part.map(([, score]) => score);
      const range = values.length > 1 ? `${number(values.at(-1))} to ${number(values[0])}` : number(values[0]);
      parts.push(
        h(
          "div",
          { class: "band" },
          h("h3", {}, names[k] ?? "", h("span", { class: "quiet" }, ` ${images ? "mean " : ""}${range}`)),
          await explorer.examples(part, part.length, true, highest),
        ),
      );
    }
    return explorer.section(
      "From strong to weak",
      `${drawn.length < n_samples ? `${drawn.length} drawn at random from all` : "All"} ${count(n_samples)} ${images ? "images" : "contexts"} on which it is active, strongest first. All shades are relative to its largest activation.`,
      h("div", { class: images ? "columns" : null, "data-count": 2 }, parts),
    );
  }

  function classes(concept) {
    if (!concept.c) return null;
    const rows = concept.c.map(([label, share, images]) => [
      explorer.site.classes[label],
      share,
      `${count(images)} ${images === 1 ? "image" : "images"}`,
    ]);
    return explorer.section(
      "Classes",
      "Share of its activation that falls to images of each class.",
      explorer.shares(rows, "Classes"),
    );
  }

  function logits(concept) {
    if (!concept.p) return null;
    const list = (pairs) =>
      h(
        "ol",
        { class: "tokens" },
        pairs.map(([token, value]) =>
          h("li", {}, h("code", {}, token.replace(/\n/g, "↵")), h("span", { class: "quiet" }, ` ${number(value)}`)),
        ),
      );
    return explorer.section(
      "Next tokens",
      "What its decoder row adds to the logits through the unembedding.",
      h(
        "div",
        { class: "duo" },
        h("div", {}, h("h3", {}, "promoted"), list(concept.p)),
        h("div", {}, h("h3", {}, "suppressed"), list(concept.s)),
      ),
    );
  }

  function dead(table, sae, concept) {
    return [
      h(
        "p",
        { class: "dead-note", role: "note" },
        `This concept is dead: it was active on none of the ${count(table.n_tokens)} tokens that were read. It may still fire on other data.`,
      ),
      explorer.section(
        "Similar concepts",
        "By the cosine of their decoder rows.",
        explorer.neighbours(sae, table, concept.n, "cosine"),
      ),
      logits(concept),
    ];
  }

  explorer.start(async ({ sae, id }) => {
    const table = await explorer.table(sae);
    const site = explorer.site,
      one = site.saes[sae];
    if (id < 0 || id >= one.d_sae)
      throw new Error(`There is no concept ${id}; concepts are numbered from 0 to ${one.d_sae - 1}.`);
    const concept = await explorer.concept(sae, id);
    document.title = `Concept ${id} of ${one.name}`;
    const is_dead = table.active[id] === 0;
    const images = site.kind === "image";
    const step = (to, text) =>
      to >= 0 && to < one.d_sae
        ? h("a", { href: explorer.link("concept", sae, to), rel: to < id ? "prev" : "next" }, text)
        : null;
    const head = [
      h(
        "nav",
        { class: "steps", "aria-label": "Neighbouring concepts" },
        step(id - 1, "← previous"),
        step(id + 1, "next →"),
      ),
      h("h1", {}, `Concept ${id} `, h("span", { class: "label" }, table.label[id])),
      concept.name
        ? h(
            "p",
            { class: "note" },
            `Perhaps “${concept.name[0]}”: a guess, the nearest of a list of words by text embedding (cosine ${number(concept.name[1])}).`,
          )
        : null,
      explorer.facts([
        ["active on", `${percent(table.active[id] / table.n_tokens)} of tokens (${count(table.active[id])})`],
        [images ? "images" : "contexts", count(table.samples[id])],
        ["mean, where active", is_dead ? null : number(table.mean[id])],
        ["largest activation", is_dead ? null : number(table.max[id])],
        [
          "from later passes alone",
          table.later && !is_dead ? `${percent(table.later[id])} of its activations` : null,
        ],
        [
          "label entropy",
          table.entropy && !is_dead
            ? `${number(table.entropy[id])} of ${number(Math.log2(site.classes.length))} bits`
            : null,
        ],
        ["monosemanticity", table.mono && table.mono[id] !== null ? number(table.mono[id]) : null],
        ["decoder norm", number(table.norm[id])],
      ]),
      explorer.noteField(sae, id),
    ];
    const highest = Math.abs(table.max[id]) || null;
    if (is_dead) return [...head, ...dead(table, sae, concept)];
    return [
      ...head,
      await strongest(concept, highest),
      await bands(concept, table.samples[id], highest),
      h("div", { class: "pair" }, activations(concept), classes(concept), logits(concept)),
      h(
        "div",
        { class: "pair" },
        explorer.section(
          "Similar concepts",
          "By the cosine of their decoder rows.",
          explorer.neighbours(sae, table, concept.n, "cosine"),
        ),
        explorer.section(
          "Co-firing concepts",
          "By the tokens they share: those with both, over those with either.",
          explorer.neighbours(sae, table, concept.f, "overlap"),
        ),
      ),
    ];
  });
}
