// Which words of two texts differ: what the longest common subsequence leaves out.
import type { Text } from "./types";

export interface Word {
  text: string;
  sign: boolean;
  differs: boolean;
}
/** Words of a text on each side that are compared, after what both begin and end with. */
const MOST = 1500;

export function words(text: Text): Word[] {
  const pieces = typeof text === "string" ? [text] : text;
  return pieces.flatMap((piece, i) =>
    (i % 2 ? [piece] : (piece.match(/\s+|[\p{L}\p{N}_]+(?:['’][\p{L}]+)*|[^\s\p{L}\p{N}_]/gu) ?? [])).map((text) => ({
      text,
      sign: i % 2 === 1,
      differs: false,
    })),
  );
}

/** Mark the words of both that the other lacks; of very long texts none is marked. */
export function compared(left: Text, right: Text): [Word[], Word[]] {
  const [a, b] = [words(left), words(right)];
  let first = 0;
  while (first < a.length && first < b.length && a[first].text === b[first].text) first++;
  let last = 0;
  while (
    last < a.length - first &&
    last < b.length - first &&
    a[a.length - 1 - last].text === b[b.length - 1 - last].text
  )
    last++;
  const [x, y] = [a.slice(first, a.length - last), b.slice(first, b.length - last)];
  if (x.length > MOST || y.length > MOST) return [a, b];
  const width = y.length + 1;
  const longest = new Uint16Array((x.length + 1) * width);
  for (let i = x.length - 1; i >= 0; i--)
    for (let j = y.length - 1; j >= 0; j--)
      longest[i * width + j] =
        x[i].text === y[j].text
          ? longest[(i + 1) * width + j + 1] + 1
          : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
  let [i, j] = [0, 0];
  while (i < x.length || j < y.length) {
    if (i < x.length && j < y.length && x[i].text === y[j].text) [i, j] = [i + 1, j + 1];
    else if (j >= y.length || (i < x.length && longest[(i + 1) * width + j] >= longest[i * width + j + 1]))
      x[i++].differs = true;
    else y[j++].differs = true;
  }
  // A space differs where the words beside it do, so that what differs together is marked together.
  for (const all of [a, b])
    all.forEach((word, k) => {
      if (/^\s+$/.test(word.text)) word.differs = !!all[k - 1]?.differs && !!all[k + 1]?.differs;
    });
  return [joined(a), joined(b)];
}

/** Words that differ, or do not, as one piece. */
function joined(all: Word[]): Word[] {
  const found: Word[] = [];
  for (const word of all) {
    const last = found.at(-1);
    if (last && !last.sign && !word.sign && last.differs === word.differs) last.text += word.text;
    else found.push({ ...word });
  }
  return found;
}
