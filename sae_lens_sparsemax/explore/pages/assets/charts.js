"use strict";
// Charts as SVG: bars over numbers, and shares.
{
  const { h, svg, number, chart } = explorer;

  /** Round numbers between two ends, at most six of them or so. */
  function ticks(low, high) {
    const rough = (high - low) / 6 || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => (high - low) / s <= 6) ?? rough;
    const found = [];
    for (let k = Math.ceil(low / step); k * step <= high + step * 1e-9; k++)
      found.push(Number((k * step).toPrecision(12)));
    return found;
  }

  /** Leave out the few largest, one in 200 at most, if the axis then has half its length or less. */
  function clipped(counts) {
    const total = counts.reduce((a, b) => a + b, 0);
    let end = 0;
    for (let seen = 0; seen < 0.995 * total; end++) seen += counts[end];
    return 2 * end <= counts.length ? end : counts.length;
  }

  /**
   * Bars of equal width with heights on a log scale, small enough for each concept's page to draw at once.
   * @param bars { low, width, counts }: lower edge of the first bar, width of each, heights
   * @param options { label, x, unit }: what it shows, name of the axis, what is counted
   */
  explorer.histogram = (bars, options) => {
    const { low, width } = bars;
    const W = 480,
      H = 180,
      left = 8,
      bottom = 38,
      top = 16;
    const counts = bars.counts.slice(0, clipped(bars.counts));
    const sum = (some) => some.reduce((a, b) => a + b, 0);
    const beyond = sum(bars.counts) - sum(counts);
    const high = low + width * counts.length;
    const x = (value) => left + ((value - low) / (high - low || 1)) * (W - 2 * left);
    const most = Math.max(1, ...counts);
    const y = (n) => H - bottom - (Math.log1p(n) / Math.log1p(most)) * (H - bottom - top);
    const gap = counts.length > 80 ? 0 : 1;
    return chart(
      W,
      H,
      {
        role: "img",
        "aria-label": `${options.label}: ${explorer.count(sum(counts))} in total, from ${number(low)} to ${number(high)}.`,
      },
      [
        counts.map((n, i) =>
          n === 0
            ? null
            : svg(
                "rect",
                {
                  class: "bar",
                  x: x(low + i * width),
                  y: Math.min(y(n), H - bottom - 1),
                  width: Math.max(0.8, (W - 2 * left) / counts.length - gap),
                  height: Math.max(1, H - bottom - y(n)),
                },
                svg("title", {}, `${number(low + i * width)} to ${number(low + (i + 1) * width)}: ${explorer.count(n)}`),
              ),
        ),
        svg("line", { class: "axis", x1: left, x2: W - left, y1: H - bottom, y2: H - bottom }),
        ticks(low, high).map((value) =>
          svg(
            "text",
            { class: "tick", x: Math.min(Math.max(x(value), 14), W - 14), y: H - bottom + 15, "text-anchor": "middle" },
            number(value),
          ),
        ),
        svg("text", { class: "tick", x: W / 2, y: H - 5, "text-anchor": "middle" }, options.x),
        svg("text", { class: "tick", x: left, y: 11 }, `${explorer.count(most)} (heights logarithmic)`),
      ],
      beyond
        ? h(
            "figcaption",
            {},
            `${explorer.count(beyond)} ${options.unit} more lie beyond the axis, up to ${number(low + width * bars.counts.length)}.`,
          )
        : null,
    );
  };

  /** `explorer.spikeChart` of an SAE, its concepts linked. */
  explorer.spikes = (sae, concepts, values, options) =>
    explorer.spikeChart(explorer.site.saes[sae].d_sae, concepts, values, {
      ...options,
      link: (id) => explorer.link("concept", sae, id),
    });

  /** Shares as bars beside their names, the largest as wide as there is room. */
  explorer.shares = (rows, label) => {
    const most = Math.max(...rows.map(([, share]) => share));
    return h(
      "table",
      { class: "shares", "aria-label": label },
      h(
        "tbody",
        {},
        rows.map(([name, share, note]) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, name),
            h(
              "td",
              { class: "bar-cell" },
              h("span", { class: "share", style: { width: `${Math.max(0.5, (100 * share) / most)}%` } }),
            ),
            h("td", {}, explorer.percent(share)),
            note ? h("td", { class: "quiet" }, note) : null,
          ),
        ),
      ),
    );
  };
}
explorer.power = (exponent) =>
  Number.isInteger(exponent)
    ? `10${[...String(exponent)].map((c) => ({ "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" })[c]).join("")}`
    : explorer.number(10 ** exponent);
