"use strict";
// Several SAEs beside each other: their figures, their histograms, and the same example through each.
{
  const { h, number, percent, count } = explorer;

  function figures(saes) {
    const rows = [
      ["architecture", (s) => s.architecture],
      ["concepts", (s) => count(s.d_sae)],
      ["L0, mean", (s) => number(s.l0)],
      ["L0, 5th to 95th percentile", (s) => `${number(s.l0_p5)} to ${number(s.l0_p95)}`],
      ["explained variance (1 − FVU)", (s) => number(s.explained_variance)],
      ["1 − FVU per sample, mean over tokens", (s) => number(1 - s.fvu_per_sample)],
      ["dead concepts", (s) => percent(s.n_dead / s.d_sae)],
      ["label entropy in bits, median over concepts on at least ten images", (s) => number(s.entropy)],
      ["activations from later passes alone", (s) => (s.later === null ? "–" : percent(s.later))],
      ["monosemanticity, mean", (s) => number(s.mono)],
    ].filter(([, value]) => saes.some((one) => value(one) !== "–"));
    return h(
      "div",
      { class: "scroll" },
      h(
        "table",
        { class: "figures" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("td"),
            saes.map((one, k) => h("th", { scope: "col" }, h("a", { href: explorer.link("index", k, "") }, one.name))),
          ),
        ),
        h(
          "tbody",
          {},
          rows.map(([name, value]) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, name),
              saes.map((one) => h("td", {}, value(one))),
            ),
          ),
        ),
      ),
    );
  }

  const histograms = (saes) => {
    const density = "Concepts by the share of tokens on which they are active.";
    return h(
      "div",
      { class: "pair" },
      explorer.section("Density", density, explorer.densityBars(saes)),
      explorer.section("L0", "Tokens by their number of active concepts.", explorer.l0Bars(saes)),
    );
  };

  explorer.start(async () => {
    const { saes, showcase } = explorer.site;
    document.title = "Comparison";
    const hash = Number(location.hash.slice(1));
    const current = showcase.includes(hash) ? hash : showcase[0];
    const sheet = explorer.sheet(showcase, current);
    for (const link of sheet.querySelectorAll("a")) link.href = link.href.replace("example.html", "compare.html");
    return [
      h("h1", {}, "Comparison"),
      figures(saes),
      showcase.length
        ? explorer.section(
            explorer.site.kind === "image" ? "The same image" : "The same text",
            null,
            sheet,
            await explorer.exampleColumns(current),
          )
        : null,
      histograms(saes),
    ];
  });
}
