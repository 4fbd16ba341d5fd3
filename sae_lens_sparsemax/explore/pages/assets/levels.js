"use strict";
// Activations of an example, written as text: for each active token the gap to the one before and the activation.
{
  const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  const FULL = 61;

  /** Share of the peak at each of `n` tokens: 1 is the peak, 0 inactive, below 0 negative. */
  explorer.levels = (text, n) => {
    const levels = new Float32Array(n);
    let token = -1;
    for (let i = 0; i < text.length; i++) {
      if (text[i] === "+") {
        token += FULL;
        continue;
      }
      token += DIGITS.indexOf(text[i]) + 1;
      const negative = text[i + 1] === "-";
      if (negative) i++;
      levels[token] = ((negative ? -1 : 1) * DIGITS.indexOf(text[++i])) / FULL;
    }
    return levels;
  };

  /** Where the strongest of some activations is; those below zero count by their size. */
  explorer.strongest = (levels) =>
    levels.reduce((best, level, k) => (Math.abs(level) > Math.abs(levels[best]) ? k : best), 0);
}
