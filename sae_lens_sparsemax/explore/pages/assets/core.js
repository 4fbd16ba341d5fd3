"use strict";
// What all pages share: loading data, and the head of the page.
// Data come as scripts, since a page opened from disk may not read other files in any other way.
Object.assign(explorer, {
  site: null,
  received: new Map(),
  waiting: new Map(),

  /** Called by every data file with its name and content. */
  receive(name, payload) {
    if (name === "explore") explorer.site = payload;
    explorer.received.set(name, payload);
    const waiting = explorer.waiting.get(name);
    if (waiting) waiting.resolve(payload);
  },

  /** The content of data/NAME.js, loaded once. */
  need(name) {
    if (explorer.received.has(name)) return Promise.resolve(explorer.received.get(name));
    if (!explorer.waiting.has(name)) {
      const waiting = {};
      waiting.promise = new Promise((resolve, reject) => {
        waiting.resolve = resolve;
        const script = document.createElement("script");
        script.src = `data/${name}.js`;
        script.onload = () => script.remove();
        script.onerror = () => reject(new Error(`The file data/${name}.js is missing.`));
        document.head.append(script);
      });
      explorer.waiting.set(name, waiting);
    }
    return explorer.waiting.get(name).promise;
  },

  /** Let go of the content of data/NAME.js; who needs it again loads it again. */
  forget(name) {
    explorer.received.delete(name);
    explorer.waiting.delete(name);
  },

  table: (sae) => explorer.need(`${sae}/table`),

  async concept(sae, id) {
    const size = explorer.site.shard;
    return (await explorer.need(`${sae}/concepts-${Math.floor(id / size)}`))[id % size];
  },

  /** The SAE and the number in the page's address: "#12" or "#1/12". */
  address() {
    const parts = decodeURIComponent(location.hash.slice(1)).split("/").map(Number);
    const [sae, id] = parts.length > 1 ? parts : [0, parts[0]];
    return { sae: explorer.site.saes[sae] ? sae : 0, id: Number.isInteger(id) ? id : 0 };
  },

  link: (page, sae, id) => `${page}.html#${sae ? `${sae}/` : ""}${id}`,

  conceptLink: (sae, id, text) =>
    explorer.h("a", { href: explorer.link("concept", sae, id), class: "concept-link" }, text ?? `#${id}`),

  /** A section with a heading and, if given, a line that says what is seen. */
  section(title, note, ...children) {
    const { h } = explorer;
    return h("section", {}, h("h2", {}, title), note ? h("p", { class: "note" }, note) : null, ...children);
  },

  /** What a link to a part of the same page does: its address is the concept's. */
  jump: (id) => (event) => {
    event.preventDefault();
    const target = document.getElementById(id);
    target.scrollIntoView();
    target.focus();
  },

  /** Name and value pairs, one below the other. */
  facts(pairs) {
    const { h } = explorer;
    const shown = pairs.filter(([, value]) => value !== null && value !== undefined);
    return h(
      "dl",
      { class: "facts" },
      shown.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    );
  },

  header() {
    const { h, site } = explorer;
    const page = document.body.dataset.page;
    const { sae } = explorer.address();
    const entries = [
      ["index", "Concepts"],
      ["map", "Map"],
      ["example", site.kind === "image" ? "Images" : "Texts"],
    ];
    if (site.saes.length > 1) entries.push(["compare", "Comparison"]);
    entries.push(["failures", "Failure cases"]);
    const target = (name, k) =>
      name === "example" || name === "compare" ? `${name}.html` : explorer.link(name, k, "");
    const nav = entries.map(([name, text]) =>
      h("a", { href: target(name, sae).replace(/#$/, ""), "aria-current": name === page ? "page" : null }, text),
    );
    // Where the app serves the pages.
    const local = ["127.0.0.1", "localhost"].includes(location.hostname);
    if (local && location.pathname.startsWith("/pages/")) nav.push(h("a", { href: "/" }, "App"));
    const many = site.saes.length > 1 && !["example", "compare"].includes(page);
    const saes = site.saes.map((one, k) =>
      h(
        "a",
        { href: explorer.link(page === "concept" ? "index" : page, k, ""), "aria-current": k === sae ? "true" : null },
        one.name,
      ),
    );
    document
      .getElementById("header")
      .replaceChildren(
        h("nav", { "aria-label": "Pages" }, nav),
        many
          ? h("nav", { class: "saes", "aria-label": "Sparse autoencoders" }, saes)
          : h("span", { class: "sae-name" }, site.saes.length > 1 ? "" : site.saes[0].name),
      );
  },

  /** Draw a page now and whenever its address changes. */
  start(draw) {
    let drawing = 0;
    const again = async () => {
      const mine = ++drawing;
      explorer.header();
      const main = document.getElementById("main");
      try {
        if (explorer.site.kind === "image") await explorer.need("samples");
        const content = await draw(explorer.address());
        if (mine !== drawing) return;
        main.replaceChildren(...content.filter(Boolean));
      } catch (error) {
        main.replaceChildren(explorer.h("p", { class: "error", role: "alert" }, error.message));
      }
      main.dataset.ready = String(mine);
    };
    window.addEventListener("hashchange", () => {
      if (location.hash !== "#main") {
        window.scrollTo(0, 0);
        again();
      }
    });
    again();
  },
});
