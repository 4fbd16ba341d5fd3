"use strict";
// Concepts for a text: those whose strongest examples peak on its words; for images, whose examples are of a class.
{
  const WORD = /[\p{L}\p{N}]/u;
  const AT_A_TIME = 4;
  const reading = new Map(); // what was read of each file of contexts

  /** How texts are compared: in lower case, with a run of spaces and line breaks as one space. */
  explorer.fold = (text) => text.toLowerCase().replaceAll("ς", "σ").replace(/\s+/g, " ");

  /** A context as it is searched: its text folded, and where each token begins in that. */
  const folded = (tokens) => {
    const starts = new Uint32Array(tokens.length);
    let text = "",
      spaced = false;
    tokens.forEach((token, k) => {
      starts[k] = text.length;
      const part = explorer.fold(token);
      text += spaced && part[0] === " " ? part.slice(1) : part;
      if (part) spaced = part.at(-1) === " ";
    });
    return { text, starts };
  };

  const read = (shard) => {
    const name = `contexts-${shard}`;
    if (!reading.has(shard))
      reading.set(
        shard,
        explorer.need(name).then((contexts) => {
          explorer.forget(name); // what is kept of it for the next search is smaller
          return Object.entries(contexts).map(([id, tokens]) => [Number(id), folded(tokens)]);
        }),
      );
    return reading.get(shard);
  };

  /** Contexts as they are searched, [[id, { text, starts }], ...], file by file of these shards as they come. */
  explorer.folded = async function* (shards) {
    for (let k = 0; k < shards.length; k++) {
      for (const soon of shards.slice(k + 1, k + AT_A_TIME)) read(soon).catch(() => {}); // said when its turn comes
      // So that a long search lets the page draw, and other typing end it.
      if (k % 16 === 15) await new Promise((resolve) => setTimeout(resolve));
      yield await read(shards[k]);
    }
  };

  /** Every text or class that examples show, as they are searched; null if the search was given up. */
  const documentsOf = async (samples, going) => {
    if (explorer.site.kind === "image")
      return new Map(samples.map((id) => [id, { text: explorer.fold(explorer.classOf(id) ?? ""), starts: null }]));
    const documents = new Map();
    const shards = new Set(samples.map((id) => Math.floor(id / explorer.site.contextShard)));
    for await (const contexts of explorer.folded([...shards])) {
      if (!going()) return null;
      for (const [id, document] of contexts) documents.set(id, document);
    }
    return documents;
  };

  /** Tokens of a document on which a piece of text lies that begins at these places, which grow. */
  explorer.tokensAt = ({ text, starts }, places, length) => {
    const found = new Set();
    let first = 0; // the last token that begins no later
    for (const at of places) {
      while (starts[first + 1] <= at) first++;
      for (let t = first; starts[t] < at + length; t++)
        if (text.slice(starts[t], starts[t + 1] ?? text.length).trim()) found.add(t);
    }
    return found;
  };

  /** Where a piece of text begins in another. */
  explorer.placesOf = (text, piece) => {
    const places = [];
    for (let at = text.indexOf(piece); at >= 0; at = text.indexOf(piece, at + 1)) places.push(at);
    return places;
  };

  /** Tokens of a document that a word lies on; all of an image's. Words begin where it says, and may go on. */
  const wordIn = (document, word) => {
    const isBegun = (at) => at > 0 && /^[a-z0-9]/.test(word) && WORD.test(document.text[at - 1]);
    const places = explorer.placesOf(document.text, word).filter((at) => !isBegun(at));
    if (!document.starts) return places.length ? { has: () => true } : null;
    const found = explorer.tokensAt(document, places, word.length);
    return found.size ? found : null;
  };

  /**
   * Concepts by the share of their examples that peak on the words of a text, rare words counting more.
   * @param going says whether anybody still waits for it
   * @returns a map from concept to { score, hits, of }: `hits` of its `of` examples peak on one of the words; or null
   */
  explorer.search = async (sae, query, going) => {
    const words = [...explorer.fold(query).matchAll(/"([^"]+)"|([^\s"]+)/g)].map((m) => m[1] ?? m[2]);
    const index = await explorer.need(`${sae}/found`);
    const samples = Object.keys(index).map(Number);
    const documents = await documentsOf(samples, going);
    if (!documents) return null;
    const found = new Map();
    const of = new Map();
    for (const pairs of Object.values(index))
      for (let i = 0; i < pairs.length; i += 2) of.set(pairs[i], (of.get(pairs[i]) ?? 0) + 1);
    const best = new Map(); // for each example the weight of the rarest word it peaks on
    for (const word of new Set(words)) {
      const hits = samples.map((id) => [id, wordIn(documents.get(id), word)]).filter(([, tokens]) => tokens);
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
