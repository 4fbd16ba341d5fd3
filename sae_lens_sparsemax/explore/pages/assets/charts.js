"use strict";
// Charts as SVG: bars over numbers, and spikes over all concepts.
{
  const { h, svg, number } = explorer;

  /** Round numbers between two ends, at most `most` of them; `whole` for whole numbers alone. */
  function ticks(low, high, most, whole = false) {
    const rough = Math.max((high - low) / most || 1, whole ? 1 : 0);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => (high - low) / s <= most) ?? rough;
    const found = [];
    for (let k = Math.ceil(low / step); k * step <= high + step * 1e-9; k++)
      found.push(Number((k * step).toPrecision(12)));
    return found;
  }

  /** A figure with one drawing of that size; `attributes` say what it is to those who do not see it. */
  const chart = (W, H, attributes, content, caption = null) =>
    h("figure", { class: "chart" }, svg("svg", { viewBox: `0 0 ${W} ${H}`, ...attributes }, content), caption);

  /**
   * Bars of equal width.
   * @param bars { low, width, counts }: lower edge of the first bar, width of each, heights
   * @param options { label, x, tick, log, whole }: what it shows, name of the axis, how ticks are written, heights on a log scale,
   *   ticks at whole numbers alone
   */
  explorer.histogram = (bars, options) => {
    const { low, width, counts } = bars;
    const W = 480,
      H = 180,
      left = 8,
      bottom = 38,
      top = 16;
    const high = low + width * counts.length;
    const x = (value) => left + ((value - low) / (high - low || 1)) * (W - 2 * left);
    const size = options.log ? (n) => Math.log1p(n) : (n) => n;
    const most = Math.max(1, ...counts);
    const y = (n) => H - bottom - (size(n) / size(most)) * (H - bottom - top);
    const total = counts.reduce((a, b) => a + b, 0);
    const tick = options.tick ?? number;
    const gap = counts.length > 80 ? 0 : 1;
    return chart(
      W,
      H,
      {
        role: "img",
        "aria-label": `${options.label}: ${explorer.count(total)} in total, from ${tick(low)} to ${tick(high)}.`,
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
                svg("title", {}, `${tick(low + i * width)} to ${tick(low + (i + 1) * width)}: ${explorer.count(n)}`),
              ),
        ),
        svg("line", { class: "axis", x1: left, x2: W - left, y1: H - bottom, y2: H - bottom }),
        ticks(low, high, 6, options.whole).map((value) =>
          svg(
            "text",
            { class: "tick", x: Math.min(Math.max(x(value), 14), W - 14), y: H - bottom + 15, "text-anchor": "middle" },
            tick(value),
          ),
        ),
        svg("text", { class: "tick", x: W / 2, y: H - 5, "text-anchor": "middle" }, options.x),
        svg(
          "text",
          { class: "tick", x: left, y: 11 },
          explorer.count(most) + (options.log ? " (heights logarithmic)" : ""),
        ),
      ],
      options.caption ? h("figcaption", {}, options.caption) : null,
    );
  };

  /**
   * Activations over all concepts, the strongest marked.
   * @param concepts ids of the active concepts, strongest first
   * @param values their activations
   */
  explorer.spikes = (sae, concepts, values, options) => {
    const W = 640,
      H = 212,
      left = 8,
      bottom = 34,
      top = 34;
    const n = explorer.site.saes[sae].d_sae;
    const highest = Math.max(options.highest ?? 0, ...values, 1e-12),
      lowest = Math.min(0, ...values);
    const x = (id) => left + ((id + 0.5) / n) * (W - 2 * left);
    const y = (value) => H - bottom - ((value - lowest) / (highest - lowest)) * (H - bottom - top);
    const path = concepts.map((id, i) => `M${x(id).toFixed(1)} ${y(0).toFixed(1)}V${y(values[i]).toFixed(1)}`).join("");
    const marked = concepts.slice(0, options.marked ?? 3);
    const placed = [];
    const labels = marked.map((id, i) => {
      let at = Math.min(Math.max(x(id), 24), W - 24),
        height = y(values[i]) - 6;
      while (placed.some(([px, py]) => Math.abs(px - at) < 44 && Math.abs(py - height) < 12)) height += 12;
      placed.push([at, height]);
      return svg(
        "a",
        { href: explorer.link("concept", sae, id) },
        svg("path", { class: "spike top", d: `M${x(id)} ${y(0)}V${y(values[i])}` }),
        svg("text", { class: "tick top", x: at, y: height, "text-anchor": "middle" }, `#${id}`),
      );
    });
    return chart(
      W,
      H,
      {
        role: "group",
        "aria-label": `${options.label}: ${concepts.length} of ${explorer.count(n)} concepts are active; the strongest are ${marked.map((id) => `#${id}`).join(", ")}.`,
      },
      [
        svg("path", { class: "spike", d: path }),
        svg("line", { class: "axis", x1: left, x2: W - left, y1: y(0), y2: y(0) }),
        labels,
        svg("text", { class: "tick", x: left, y: 10 }, `up to ${number(highest)}`),
        svg("text", { class: "tick", x: left, y: H - 18 }, "0"),
        svg("text", { class: "tick", x: W - left, y: H - 18, "text-anchor": "end" }, explorer.count(n - 1)),
        svg("text", { class: "tick", x: W / 2, y: H - 5, "text-anchor": "middle" }, "concept"),
      ],
    );
  };

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
