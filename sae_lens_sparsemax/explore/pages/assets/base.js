"use strict";
// What the pages and the app share: making elements, numbers, tokens, and spikes over all concepts.
// All text from models, data and people goes in as text, never as markup.
const explorer = {
  /** An element. Texts become text nodes and never markup; null children are left out. */
  h(tag, attributes = {}, ...children) {
    return explorer.fill(document.createElement(tag), attributes, children);
  },

  svg(tag, attributes = {}, ...children) {
    return explorer.fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  },

  fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name === "style")
        for (const [property, setting] of Object.entries(value)) element.style.setProperty(property, setting);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  },

  /** A number with three significant digits. */
  number(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e6 || size < 1e-3) return value.toExponential(1).replace("e+", "e");
    return size >= 100 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
  },

  percent(share) {
    if (share === 0) return "0 %";
    const value = 100 * share;
    return value < 0.001 ? "< 0.001 %" : `${value >= 10 ? value.toFixed(1) : Number(value.toPrecision(2))} %`;
  },

  count: (value) => value.toLocaleString("en"),

  /** A token with its line breaks and tabs to be seen. */
  spelt: (token) => token.replace(/\n/g, "↵").replace(/\t/g, "⇥") || "·",
};
{
  const { h, svg, number } = explorer;

  /** A figure with one drawing of that size; `attributes` say what it is to those who do not see it. */
  explorer.chart = (W, H, attributes, content, caption = null) =>
    h("figure", { class: "chart" }, svg("svg", { viewBox: `0 0 ${W} ${H}`, ...attributes }, content), caption);

  /**
   * Activations over all concepts, the strongest marked.
   * @param n number of all concepts
   * @param concepts ids of the active concepts, strongest first
   * @param values their activations
   * @param options { label, marked, highest, link, width }: what it shows, how many are marked, the least height of the
   *   axis, what a concept's mark leads to, if anything, and the drawing's width
   */
  explorer.spikeChart = (n, concepts, values, options) => {
    const W = options.width ?? 640,
      H = 212,
      left = 8,
      bottom = 34,
      top = 34;
    // One far above all others would press them flat: it is cut, and its mark says so.
    const cut = values[1] > 0 && values[0] > 5 * values[1] ? [2 * values[1]] : values;
    const highest = Math.max(options.highest ?? 0, ...cut, 1e-12),
      lowest = Math.min(0, ...values);
    const x = (id) => left + ((id + 0.5) / n) * (W - 2 * left);
    const y = (value) => H - bottom - ((Math.min(value, highest) - lowest) / (highest - lowest)) * (H - bottom - top);
    const path = concepts.map((id, i) => `M${x(id).toFixed(1)} ${y(0).toFixed(1)}V${y(values[i]).toFixed(1)}`).join("");
    const marked = concepts.slice(0, options.marked ?? 3);
    // A label that would touch a stronger concept's goes beside that, and is left out where this is too far away.
    // Bold figures at the size of a phone are as wide and high as this.
    const letter = 10,
      line = 15,
      placed = [];
    const labels = marked.map((id, i) => {
      const text = values[i] > highest ? `#${id} ↑ ${number(values[i])}` : `#${id}`,
        half = (text.length * letter + 3) / 2,
        wanted = Math.min(Math.max(x(id), half), W - half),
        height = y(values[i]) - 6;
      const near = placed.filter(([, py]) => Math.abs(py - height) < line);
      const at = [wanted, ...near.flatMap(([px, , other]) => [px - other - half, px + other + half])]
        .filter((place) => place >= half && place <= W - half && Math.abs(place - wanted) <= 2 * half)
        .filter((place) => near.every(([px, , other]) => Math.abs(px - place) > half + other - 1e-6))
        .sort((a, b) => Math.abs(a - wanted) - Math.abs(b - wanted))[0];
      if (at !== undefined) placed.push([at, height, half]);
      return svg(
        options.link ? "a" : "g",
        { href: options.link?.(id) },
        svg("path", { class: "spike top", d: `M${x(id)} ${y(0)}V${y(values[i])}` }),
        at !== undefined ? svg("text", { class: "tick top", x: at, y: height, "text-anchor": "middle" }, text) : svg("title", {}, text),
      );
    });
    return explorer.chart(
      W,
      H,
      {
        role: "group",
        "aria-label": `${options.label}: ${concepts.length} of ${explorer.count(n)} concepts are active; the strongest are ${marked.map((id) => `#${id}`).join(", ") || "none"}.`,
      },
      [
        svg("path", { class: "spike", d: path }),
        svg("line", { class: "axis", x1: left, x2: W - left, y1: y(0), y2: y(0) }),
        labels,
        values.length ? svg("text", { class: "tick", x: left, y: 10 }, `up to ${number(highest)}`) : null,
        svg("text", { class: "tick", x: left, y: H - 18 }, "0"),
        svg("text", { class: "tick", x: W - left, y: H - 18, "text-anchor": "end" }, explorer.count(n - 1)),
        svg("text", { class: "tick", x: W / 2, y: H - 5, "text-anchor": "middle" }, "concept"),
      ],
    );
  };
}
