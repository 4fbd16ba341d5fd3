"use strict";
// Contexts that contain a text, wherever in them it stands, and the concepts that have each of them as an example.
{
  const { h, number, count } = explorer;
  const SHOWN = 20;
  const CONCEPTS_SHOWN = 5;

  /** Pieces of one token and whether each lies on the text that was found; `at` is where the token begins, folded. */
  const pieces = (token, at, { text }, places, length) => {
    const found = [];
    let place = at;
    for (const character of token) {
      const folded = explorer.fold(character);
      // Of a run of spaces only the first has a place in the folded text.
      const width = folded === " " && place > 0 && text[place - 1] === " " ? 0 : folded.length;
      const marked = places.some((from) => place < from + length && place + width > from && (width || place > from));
      if (found.at(-1)?.marked === marked) found.at(-1).text += character;
      else found.push({ text: character, marked });
      place += width;
    }
    return found;
  };

  /** A token as it is shown, with what was found marked. */
  const shown = (token, at, document, places, length) =>
    pieces(token, at, document, places, length).map(({ text, marked }) =>
      marked ? h("mark", { class: "found" }, explorer.spelt(text)) : explorer.spelt(text),
    );

  /** [concept, activation] of every concept that has a context as an example, strongest at these tokens first. */
  const conceptsOf = async (sae, id, tokens) => {
    const shard = Math.floor(id / explorer.site.contextShard);
    const line = (await explorer.need(`${sae}/active-${shard}`))[id] ?? [];
    const found = [];
    for (let i = 0; i < line.length; i += 3) {
      const levels = explorer.levels(line[i + 2], explorer.site.tokens);
      const there = [...tokens].map((token) => levels[token]).filter((level) => level !== 0);
      found.push([line[i], there.length ? line[i + 1] * there[explorer.strongest(there)] : null]);
    }
    return found.sort((a, b) => Math.abs(b[1] ?? 0) - Math.abs(a[1] ?? 0) || a[0] - b[0]);
  };

  /** A list of concepts, of which the first few are shown at once, if they are active at what was looked for. */
  const conceptList = (sae, table, concepts) => {
    if (!concepts.length) return h("p", { class: "quiet" }, "It is not among the examples of any concept.");
    const line = ([concept, value]) =>
      h(
        "li",
        {},
        explorer.conceptLink(sae, concept),
        h("span", { class: "quiet" }, value === null ? " not active there " : ` ${number(value)} `),
        h("span", { class: "label" }, table.label[concept]),
      );
    const first = concepts.slice(0, CONCEPTS_SHOWN).filter(([, value]) => value !== null);
    const list = h("ol", { class: "neighbours" }, first.map(line));
    const rest = concepts.slice(first.length);
    const button = h(
      "button",
      {
        class: "more",
        onclick: () => {
          list.append(...rest.map(line));
          list.children[first.length].querySelector("a").focus();
          button.remove();
        },
      },
      `${count(rest.length)} ${first.length ? "more concepts" : "concepts, not active there"}`,
    );
    return [list, rest.length ? button : null];
  };

  const row = async (sae, table, { id, document, places }, length) => {
    const tokens = await explorer.context(id);
    const on = explorer.tokensAt(document, places, length);
    const first = [...explorer.tokensAt(document, places.slice(0, 1), length)];
    const part = (from, to) =>
      tokens.slice(from, to).map((token, k) => shown(token, document.starts[from + k], document, places, length));
    const { text, button } = explorer.excerpt(tokens.length, first[0] ?? 0, first.at(-1) ?? 0, part);
    const page = explorer.site.showcase.includes(id);
    return h(
      "li",
      { class: "example" },
      h("span", { class: "value", title: "number of the context" }, String(id)),
      text,
      h("span", { class: "tools" }, button, page ? h("a", { href: explorer.link("example", 0, id) }, "open") : null),
      h("div", { class: "holders" }, conceptList(sae, table, await conceptsOf(sae, id, on))),
    );
  };

  /**
   * The search in contexts: its `section`, hidden while nothing is looked for, a `link` to that, and `find`, which looks
   * for a text for as long as it is `going`. Null where pages were written without what it reads.
   */
  explorer.contextSearch = (sae, table) => {
    const shards = explorer.site.contextShards;
    if (explorer.site.kind !== "text" || !shards) return null;
    const list = h("ol", { class: "examples" });
    const status = h("p", { class: "note", role: "status", "aria-live": "polite" });
    const more = h("button", { type: "button", hidden: true }, `Show ${SHOWN} more`);
    const section = h(
      "div",
      { id: "contexts", tabindex: -1, hidden: true },
      h("h3", {}, "Contexts that contain this text"),
      h(
        "p",
        { class: "note" },
        "Anywhere in them, as one piece, in capitals or not. Below each are the concepts that have it among their examples, with their largest activation at the marked words, strongest first.",
      ),
      status,
      list,
      h("div", { class: "pager" }, more),
    );
    const jump = h("a", { href: "#contexts", onclick: explorer.jump("contexts") });
    const link = h("p", { class: "note", hidden: true }, jump);

    const find = async (query, going) => {
      const piece = explorer.fold(query.replace(/^"([^"]+)"$/, "$1")).trim();
      section.hidden = link.hidden = !piece;
      more.hidden = true;
      list.replaceChildren();
      if (!piece) return;
      const hits = [];
      let read = 0,
        files = 0,
        wanted = SHOWN,
        drawing = null;
      const say = () => {
        const done = files === shards.length;
        const shown = list.children.length;
        const some = shown < hits.length ? `; the first ${count(shown)} are shown, in the order of the data` : "";
        const found = hits.length ? `${count(hits.length)} of ${count(read)}` : `None of ${count(read)}`;
        status.textContent = `${found} contexts that these pages keep contain it${some}.`;
        if (!done) status.textContent += ` Reading on: ${count(files)} of ${count(shards.length)} files …`;
        status.setAttribute("aria-busy", String(!done)); // read out once, at the end
        jump.textContent = `${count(hits.length)} ${hits.length === 1 ? "context contains" : "contexts contain"} this text ${done ? "" : "so far "}↓`;
        more.hidden = shown >= hits.length || shown < wanted;
      };
      // One after the other, however often it is asked for.
      const draw = async () => {
        while (going() && list.children.length < Math.min(wanted, hits.length)) {
          const next = await row(sae, table, hits[list.children.length], piece.length);
          if (going()) list.append(next);
        }
      };
      const drawn = () => (drawing = (drawing ?? Promise.resolve()).then(draw));
      const attempt = (work) =>
        work().catch((error) => {
          if (going()) status.textContent = error.message;
        });
      more.onclick = () =>
        attempt(async () => {
          const before = list.children.length;
          wanted += SHOWN;
          await drawn();
          if (!going()) return;
          say();
          list.children[before]?.querySelector("a, button")?.focus();
        });
      say();
      await attempt(async () => {
        for await (const contexts of explorer.folded(shards)) {
          if (!going()) return;
          for (const [id, document] of contexts) {
            const places = explorer.placesOf(document.text, piece);
            if (places.length) hits.push({ id, document, places });
          }
          read += contexts.length;
          files++;
          await drawn();
          if (!going()) return;
          say();
        }
      });
    };
    return { section, link, find };
  };
}
