"use strict";
// Charts to zoom into, by plotly, which comes when a chart is seen: nothing else waits for its five megabytes.
{
  const { h } = explorer;
  let loading = null;
  const plotly = () =>
    (loading ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = "assets/plotly.min.js";
      script.onload = () => resolve(window.Plotly);
      script.onerror = () => reject(new Error("The file assets/plotly.min.js is missing."));
      document.head.append(script);
    }));

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // Okabe and Ito's, told apart with any colour vision and on dark as on light.
  const SERIES = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"];

  /** Plotly reads texts as markup of its own. */
  explorer.asPlotlyText = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  /**
   * A chart; its buttons zoom and save it as a picture.
   * @param label what it shows, for those who do not see it
   * @param traces a function from a function that gives the pages' colours to plotly's traces
   * @param layout of plotly
   * @param options { height, click, caption }
   */
  explorer.plot = (label, traces, layout, options = {}) => {
    // The label is what a screen reader gets; what plotly draws would be read as loose numbers.
    const inner = h("div", { "aria-hidden": "true" });
    const style = { height: `${options.height ?? 260}px` };
    const place = h("div", { class: "plot", role: "group", "aria-label": label, style }, inner);
    const draw = async () => {
      const library = await plotly();
      if (!place.isConnected) return;
      const axis = {
        color: colour("--quiet"),
        gridcolor: colour("--line"),
        linecolor: colour("--quiet"),
        zerolinecolor: colour("--line"),
        automargin: true,
      };
      await library.react(
        inner,
        traces(colour),
        {
          margin: { l: 8, r: 8, t: 28, b: 8 },
          paper_bgcolor: "rgba(0,0,0,0)",
          plot_bgcolor: "rgba(0,0,0,0)",
          font: { color: colour("--ink"), family: getComputedStyle(document.body).fontFamily, size: 12 },
          hoverlabel: { bgcolor: colour("--soft"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
          bargap: 0.06,
          colorway: SERIES,
          // A finger that scrolls the page is not to zoom.
          dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
          ...layout,
          xaxis: { ...axis, ...layout.xaxis },
          yaxis: { ...axis, ...layout.yaxis },
        },
        {
          responsive: true,
          displaylogo: false,
          modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
          toImageButtonOptions: { format: "svg", filename: label },
        },
      );
      // Where plotly measures texts, outside of the chart.
      document.getElementById("js-plotly-tester")?.setAttribute("aria-hidden", "true");
      if (options.click && !place.dataset.drawn) inner.on("plotly_click", ({ points }) => options.click(points[0]));
      place.dataset.drawn = "true";
    };
    const shown = () =>
      draw().catch((error) => place.replaceChildren(h("p", { class: "error", role: "alert" }, error.message)));
    // Once it is seen, or nearly.
    const watcher = new IntersectionObserver(
      (entries) => {
        if (!entries.some((entry) => entry.isIntersecting)) return;
        watcher.disconnect();
        shown();
      },
      { rootMargin: "200px" },
    );
    watcher.observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => place.dataset.drawn && shown());
    const figure = h(
      "figure",
      { class: "chart" },
      place,
      options.caption ? h("figcaption", {}, options.caption) : null,
    );
    figure.redraw = () => place.dataset.drawn && shown();
    return figure;
  };

  /** Tick marks at whole powers of ten, for bars over decimal logarithms. */
  const powers = ({ low, width, counts }) => {
    const ticks = [];
    for (let k = Math.ceil(low); k <= low + width * counts.length + 1e-9; k++) ticks.push(k);
    return { tickvals: ticks, ticktext: ticks.map(explorer.power) };
  };
  const ranges = ({ low, width, counts }, log) => {
    const edge = (i) => (log ? explorer.number(10 ** (low + i * width)) : explorer.number(low + i * width));
    const whole = !log && Number.isInteger(low) && Number.isInteger(width);
    return counts.map((_, i) =>
      whole && width === 1
        ? edge(i)
        : whole
          ? `${edge(i)} to ${explorer.number(low + (i + 1) * width - 1)}`
          : `${edge(i)} to ${edge(i + 1)}`,
    );
  };
  const beyond = ({ beyond: n, highest }) =>
    n ? `${explorer.count(n)} ${n === 1 ? "lies" : "lie"} beyond the axis, up to ${explorer.number(highest)}.` : "";

  /**
   * Bars of equal width, of one SAE or, as outlines of equal areas, of several.
   * @param all for each SAE { name, bars: { low, width, counts, beyond, highest } }
   * @param options { label, x, y, log }: `log` if bars lie over decimal logarithms
   */
  explorer.bars = (all, options) => {
    const { label, x, y, log } = options;
    const one = all.length === 1;
    const first = all.reduce((a, b) => (b.bars.low < a.bars.low ? b : a)).bars;
    const note = all.map(({ name, bars }) => beyond(bars) && (one ? beyond(bars) : `${name}: ${beyond(bars)}`));
    const traces = (colour) =>
      all.map(({ name, bars }) => {
        const { low, width, counts } = bars;
        const total = counts.reduce((a, b) => a + b, 0) || 1;
        // A bar of whole numbers lies around them.
        const middle = (i) => low + i * width + (log ? width : width - 1) / 2;
        const common = { customdata: ranges(bars, log), name: explorer.asPlotlyText(name), hovertemplate: `%{customdata}: %{y}<extra></extra>` };
        return one
          ? { ...common, type: "bar", x: counts.map((_, i) => middle(i)), y: counts, width, marker: { color: colour("--bar") } }
          : {
              ...common,
              type: "scatter",
              mode: "lines",
              line: { shape: "hvh", width: 2 },
              // An empty bar at each end, without which a single one would be a point.
              x: [-1, ...counts.keys(), counts.length].map(middle),
              y: [0, ...counts, 0].map((n) => n / total / (log ? 1 : width)),
              customdata: ["", ...common.customdata, ""],
              hovertemplate: "%{customdata}: %{y:.2%}<extra>%{fullData.name}</extra>",
            };
      });
    return explorer.plot(
      label,
      traces,
      {
        xaxis: { title: { text: x }, ...(log ? powers(first) : {}) },
        yaxis: { title: { text: one ? y : `share of ${y}` }, rangemode: "tozero", tickformat: one ? null : ".0%" },
        legend: { orientation: "h", y: -0.3 },
        showlegend: !one,
        barmode: "overlay",
      },
      { caption: note.filter(Boolean).join(" ") || null, height: one ? 240 : 320 },
    );
  };

  const barsOf = (key, options) => (saes) =>
    explorer.bars(
      saes.map((one) => ({ name: one.name, bars: one[key] })),
      options,
    );
  explorer.densityBars = barsOf("density", {
    label: "Concepts by frequency",
    x: "share of the tokens",
    y: "concepts",
    log: true,
  });
  explorer.l0Bars = barsOf("l0_histogram", {
    label: "Tokens by number of active concepts",
    x: "active concepts on a token",
    y: "tokens",
  });
}
