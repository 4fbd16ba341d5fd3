"use strict";
// Images with the patches on which a concept fires left bright, and images whose patches can be chosen.
{
  const { h, svg, number } = explorer;

  const geometry = (id) => {
    const [width, height, left, top, right, bottom, label] = explorer.received.get("samples")[id];
    return { width, height, left, top, right, bottom, label };
  };

  explorer.classOf = (id) => explorer.site.classes[geometry(id).label] ?? null;

  const describe = (id) => {
    const name = explorer.classOf(id);
    return name === null ? `image ${id}` : `image ${id}, class ${name}`;
  };

  function frame(id, overlay, options) {
    const { width, height } = geometry(id);
    const page = explorer.site.showcase.includes(id) && !options.plain;
    const image = h("img", {
      src: `images/${id}.jpg`,
      alt: options.alt,
      loading: "lazy",
      decoding: "async",
      width,
      height,
      class: Math.max(width, height) <= 64 ? "tiny" : null,
    });
    const inner = h("span", { class: "picture", style: { "aspect-ratio": `${width} / ${height}` } }, image, overlay);
    const caption =
      options.caption === false
        ? null
        : h(
            "span",
            { class: "caption" },
            h("span", { class: "named" }, explorer.classOf(id) ?? `image ${id}`),
            options.value === undefined ? null : h("span", { class: "quiet" }, ` ${number(options.value)}`),
            options.note ? h("span", { class: "quiet aside" }, options.note) : null,
          );
    return page
      ? h(
          "a",
          { class: "frame", href: explorer.link("example", 0, id), style: { "--aspect": width / height } },
          inner,
          caption,
        )
      : h("span", { class: "frame", style: { "--aspect": width / height } }, inner, caption);
  }

  // Thin lines around active patches: darkening alone does not show on a dark image.
  const outline = (x, y, w, hgt, level) =>
    svg("rect", { class: "active", x, y, width: w, height: hgt, "stroke-opacity": (0.15 + 0.85 * level).toFixed(2) });

  const patches = (id, draw) => {
    const { width, height, left, top, right, bottom } = geometry(id);
    const [rows, columns] = explorer.site.grid;
    const w = (right - left) / columns,
      hgt = (bottom - top) / rows;
    const cells = [];
    for (let k = 0; k < rows * columns; k++)
      cells.push(draw(k, left + (k % columns) * w, top + Math.floor(k / columns) * hgt, w, hgt));
    return { width, height, cells, left, top, right, bottom };
  };

  const VIEWS = [
    ["dark", "dark elsewhere"],
    ["heat", "heat"],
    ["plain", "plain images"],
  ];
  const kept = () => {
    try {
      return localStorage.getItem("sparsemax-sae view");
    } catch {
      return null;
    }
  };
  document.body.dataset.view = VIEWS.some(([name]) => name === kept()) ? kept() : "dark";

  /** Buttons that choose how all images of the page show where concepts fire. */
  explorer.views = () => {
    const buttons = VIEWS.map(([name, text]) =>
      h("button", { type: "button", "data-view": name, onclick: () => choose(name) }, text),
    );
    const show = () => {
      for (const button of buttons)
        button.setAttribute("aria-pressed", String(button.dataset.view === document.body.dataset.view));
    };
    const choose = (name) => {
      document.body.dataset.view = name;
      try {
        localStorage.setItem("sparsemax-sae view", name);
      } catch {
        // a browser that keeps nothing shows it all the same
      }
      show();
    };
    show();
    return explorer.site.grid[0] ? h("div", { class: "choice", role: "group", "aria-label": "Images" }, buttons) : null;
  };

  /** An image; where a concept is not active it is darkened, or hot where it is. `levels` are shares of the peak at every token. */
  explorer.masked = (id, levels, options = {}) => {
    const [rows] = explorer.site.grid;
    const alt = options.alt ?? describe(id);
    if (!rows || !levels) return frame(id, null, { ...options, alt });
    const values = levels.slice(explorer.site.prefix).map(Math.abs);
    const active = values.reduce((n, value) => n + (value !== 0), 0);
    const { width, height, cells, left, top, right, bottom } = patches(id, (k, x, y, w, hgt) => [
      svg("rect", {
        class: "shade",
        x,
        y,
        width: w,
        height: hgt,
        style: {
          "--dark": (0.72 * (1 - values[k] ** 0.7)).toFixed(3),
          "--heat": values[k].toFixed(3),
        },
      }),
      values[k] > 0 ? outline(x, y, w, hgt, values[k]) : null,
    ]);
    const [shades, outlines] = [0, 1].map((which) => cells.map((cell) => cell[which]));
    // What the model does not see at all, because the crop cut it off.
    const beyond = `M0 0H${width}V${height}H0ZM${left} ${top}V${bottom}H${right}V${top}Z`;
    const overlay = svg(
      "svg",
      { class: "mask", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("path", { class: "beyond", d: beyond, "fill-rule": "evenodd" }),
      shades,
      outlines,
    );
    return frame(id, overlay, {
      ...options,
      note: active ? null : "class token alone",
      alt: `${alt}; the concept is active on ${active} of ${values.length} patches`,
    });
  };

  /**
   * An image whose patches can be chosen with a click, or with arrow keys and Enter.
   * @param chosen index of the chosen patch, or null
   * @param choose called with the index of a patch
   */
  explorer.choosable = (id, chosen, choose) => {
    const [rows, columns] = explorer.site.grid;
    let at = chosen ?? 0;
    const { width, height, cells, left, top, right, bottom } = patches(id, (k, x, y, w, hgt) =>
      svg(
        "rect",
        {
          class: "patch",
          x,
          y,
          width: w,
          height: hgt,
          "data-patch": k,
          "aria-selected": k === chosen ? "true" : null,
          onclick: () => choose(k),
        },
        svg("title", {}, `patch ${k}`),
      ),
    );
    const move = (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
      if (step !== undefined && at + step >= 0 && at + step < rows * columns) {
        cells[at].classList.remove("at");
        cells[(at += step)].classList.add("at");
        event.preventDefault();
      } else if (event.key === "Enter" || event.key === " ") {
        choose(at);
        event.preventDefault();
      }
    };
    const beyond = `M0 0H${width}V${height}H0ZM${left} ${top}V${bottom}H${right}V${top}Z`;
    const overlay = svg(
      "svg",
      {
        class: "mask choosable",
        viewBox: `0 0 ${width} ${height}`,
        preserveAspectRatio: "none",
        tabindex: 0,
        role: "application",
        "aria-label": "Patches: arrow keys move, Enter chooses one",
        onkeydown: move,
      },
      svg("path", { class: "beyond", d: beyond, "fill-rule": "evenodd" }),
      cells,
    );
    return frame(id, overlay, { plain: true, alt: describe(id) });
  };
}
