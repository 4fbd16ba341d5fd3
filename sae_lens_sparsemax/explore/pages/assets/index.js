"use strict";
// All concepts of an SAE: the table and two histograms.
{
  const { h, number, percent, count } = explorer;

  /** How many tokens are set apart for their huge activations, and which. */
  const outliers = (found) => {
    if (!found) return "there are none";
    const tokens = found.tokens.map(([token, n]) => `“${explorer.spelt(token)}” ${count(n)}`).join(", ");
    return `${count(found.n)}, most often ${tokens}`;
  };

  explorer.start(async ({ sae }) => {
    const table = await explorer.table(sae);
    const one = explorer.site.saes[sae];
    document.title = `${one.name}: concepts`;
    const samples = explorer.site.kind === "image" ? "images" : "contexts";
    return [
      h("h1", {}, one.name),
      explorer.facts([
        ["model", one.model],
        ["hook", one.hook],
        ["architecture", one.architecture],
        ["data", `${one.dataset} (${one.split}): ${count(one.n_tokens)} tokens of ${count(one.n_samples)} ${samples}`],
        [
          "left out",
          one.max_norm
            ? `tokens whose activation has a norm above ${number(one.max_norm)}${one.max_norm_over_median ? `, ${number(one.max_norm_over_median)} times the median` : ""}: ${outliers(one.outliers)}`
            : null,
        ],
        ["concepts", `${count(one.d_sae)}, ${count(one.n_dead)} of them dead on these data`],
        ["L0", `${number(one.l0)} on average; ${number(one.l0_p5)} to ${number(one.l0_p95)} on nine tokens of ten`],
        [
          "explained variance (1 − FVU)",
          `${number(one.explained_variance)}; ${number(1 - one.fvu_per_sample)} per sample, mean over tokens`,
        ],
        [
          "later passes",
          one.later === null
            ? null
            : `${percent(one.later)} of the activations come from these alone: of concepts for what the first pass left unexplained; each concept's page has its own share`,
        ],
        ["monosemanticity", one.mono === null ? null : `${number(one.mono)} on average, by ${one.encoder}`],
      ]),
      h(
        "nav",
        { class: "sections", "aria-label": "On this page" },
        h("a", { href: "#charts", onclick: explorer.jump("charts") }, "Charts of density and L0 ↓"),
      ),
      explorer.section("Concepts", null, explorer.conceptTable(sae, table)),
      h(
        "div",
        { class: "pair", id: "charts", tabindex: -1 },
        explorer.section(
          "Density",
          "How many concepts are active on which share of the tokens.",
          explorer.densityBars([one]),
        ),
        explorer.section(
          "L0",
          "How many tokens have how many active concepts.",
          explorer.l0Bars([one]),
        ),
      ),
    ];
  });
}
