"use strict";
// Concepts for a text: those whose strongest examples peak on its words; for images, whose examples are of a class.
{
  const WORD = /[\p{L}\p{N}]/u;
  let documents = null;

  /** Every text or class that examples show, with the place where each token of a text begins. */
  const read = async (samples) => {
    if (explorer.site.kind === "image")
      return new Map(samples.map((id) => [id, { text: (explorer.classOf(id) ?? "").toLowerCase(), starts: null }]));
    const tokens = await Promise.all(samples.map((id) => explorer.context(id)));
    return new Map(
      samples.map((id, k) => {
        let at = 0;
        const parts = tokens[k].map((token) => token.toLowerCase());
        const starts = parts.map((part) => (at += part.length) - part.length);
        return [id, { text: parts.join(""), starts }];
      }),
    );
  };

  /** Tokens of a document that a word lies on; all of an image's. Words begin where it says, and may go on. */
  const places = ({ text, starts }, word) => {
    const found = new Set();
    for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + 1)) {
      if (at > 0 && /^[a-z0-9]/.test(word) && WORD.test(text[at - 1])) continue;
      if (!starts) return { has: () => true };
      for (let t = 0; t < starts.length; t++) {
        const end = starts[t + 1] ?? text.length;
        if (starts[t] < at + word.length && end > at && text.slice(starts[t], end).trim()) found.add(t);
      }
    }
    return found.size ? found : null;
  };

  /**
   * Concepts by the share of their examples that peak on the words of a text, rare words counting more.
   * @returns a map from concept to { score, hits, of }: `hits` of its `of` examples peak on one of the words
   */
  explorer.search = async (sae, query) => {
    const words = [...query.toLowerCase().matchAll(/"([^"]+)"|([^\s"]+)/g)].map((m) => m[1] ?? m[2]);
    const index = await explorer.need(`${sae}/found`);
    const samples = Object.keys(index).map(Number);
    documents ??= new Map();
    const missing = samples.filter((id) => !documents.has(id));
    for (const [id, document] of await read(missing)) documents.set(id, document);
    const found = new Map();
    const of = new Map();
    for (const pairs of Object.values(index))
      for (let i = 0; i < pairs.length; i += 2) of.set(pairs[i], (of.get(pairs[i]) ?? 0) + 1);
    const best = new Map(); // for each example the weight of the rarest word it peaks on
    for (const word of new Set(words)) {
      const hits = samples.map((id) => [id, places(documents.get(id), word)]).filter(([, tokens]) => tokens);
      const weight = Math.log(1 + samples.length / Math.max(1, hits.length));
      for (const [id, tokens] of hits)
        for (let i = 0; i < index[id].length; i += 2)
          if (tokens.has(index[id][i + 1])) {
            const example = `${index[id][i]} ${id}`;
            best.set(example, Math.max(best.get(example) ?? 0, weight));
          }
    }
    for (const [example, weight] of best) {
      const concept = Number(example.split(" ")[0]);
      const mine = found.get(concept) ?? { score: 0, hits: 0, of: of.get(concept) };
      found.set(concept, { ...mine, score: mine.score + weight / mine.of, hits: mine.hits + 1 });
    }
    return found;
  };
}
