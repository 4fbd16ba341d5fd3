"use strict";
// The concepts in two dimensions, near each other where their decoder rows point the same way.
{
  const { h, count, percent } = explorer;

  explorer.start(async ({ sae }) => {
    const [table, map] = await Promise.all([explorer.table(sae), explorer.need(`${sae}/map`)]);
    const one = explorer.site.saes[sae];
    document.title = `${one.name}: map`;
    const left = one.d_sae - map.concept.length;
    const text = map.concept.map((id) => {
      const label = table.label[id].length > 60 ? `${table.label[id].slice(0, 60)}…` : table.label[id];
      return `#${id} ${explorer.asPlotlyText(label)}<br>on ${explorer.asPlotlyText(percent(table.active[id] / table.n_tokens))} of tokens`;
    });
    const search = h("input", { type: "search", id: "search", placeholder: "number or words", autocomplete: "off" });
    const status = h("span", { class: "quiet", role: "status" });
    const hit = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const found = map.concept.map((id) => {
        const label = `#${id} ${table.label[id]}`.toLowerCase();
        return words.length > 0 && words.every((word) => label.includes(word));
      });
      status.textContent = words.length ? `${count(found.filter(Boolean).length)} marked` : "";
      return found;
    };
    const traces = (colour) => {
      const found = hit();
      const frequency = map.concept.map((id) => Math.log10(table.active[id] / table.n_tokens));
      return [
        {
          type: "scatter",
          mode: "markers",
          x: map.x,
          y: map.y,
          text,
          hovertemplate: "%{text}<extra></extra>",
          marker: {
            size: found.map((mine) => (mine ? 13 : 7)),
            color: frequency,
            colorscale: "Viridis",
            line: { color: colour("--top"), width: found.map((mine) => (mine ? 3 : 0)) },
            colorbar: {
              title: { text: "frequency", side: "top" },
              orientation: "h",
              thickness: 10,
              len: 0.5,
              tickvals: [-5, -4, -3, -2, -1],
              ticktext: [-5, -4, -3, -2, -1].map(explorer.power),
            },
          },
        },
      ];
    };
    const bare = { showticklabels: false, showgrid: false, zeroline: false, showline: false };
    const figure = explorer.plot(
      `Map of ${count(map.concept.length)} concepts`,
      traces,
      { xaxis: bare, yaxis: { ...bare, scaleanchor: "x" }, hovermode: "closest" },
      {
        height: Math.max(360, Math.min(720, window.innerHeight - 240)),
        click: ({ pointIndex }) => {
          location.href = explorer.link("concept", sae, map.concept[pointIndex]);
        },
      },
    );
    figure.classList.add("wide");
    search.addEventListener("input", () => figure.redraw());
    return [
      h("h1", {}, `Map of ${one.name}`),
      h(
        "p",
        { class: "note" },
        `Placed by ${map.method}. A click opens a concept; the table of concepts has the same links.`,
        left ? ` The ${count(map.concept.length)} most interesting of ${count(one.d_sae)} concepts are shown.` : "",
      ),
      h("form", { class: "filter", role: "search", onsubmit: (event) => event.preventDefault() }, h("label", {}, "Mark", search), status),
      map.concept.length ? figure : h("p", { class: "quiet" }, "No concept of interest was active on these data."),
    ];
  });
}
