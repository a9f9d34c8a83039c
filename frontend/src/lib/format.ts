import { format } from "d3-format";
import type { Frame, Rate, Row, Span, Text } from "./types";

const known = new Map<string, (value: number) => string>();

/** Write a number by a d3 format; three digits where none is given. */
export function number(value: unknown, how?: string | null): string {
  if (typeof value !== "number") return value === null || value === undefined ? "" : plain(value);
  const form = how ?? (Number.isInteger(value) ? ",d" : ".3~g");
  if (!known.has(form)) known.set(form, format(form));
  return known.get(form)!(value);
}

const percent = format(".0%");
export const rate = (r: Rate) =>
  `${r.hits} of ${r.trials} (${percent(r.low)} to ${percent(r.high)})`;

/** Write how many there are. */
export const many = (n: number, what: string) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;

/** Everything that says something, as one text. */
export function plain(value: unknown): string {
  if (typeof value === "string") return value;
  if (Array.isArray(value)) return value.map(plain).join("");
  if (value && typeof value === "object" && "text" in value) return plain(value.text);
  return value === null || value === undefined ? "" : String(value);
}

/** Turn columns into rows. */
export function rows(frame: Frame): Row[] {
  const columns = Object.entries(frame);
  return (columns[0]?.[1] ?? []).map((_, i) =>
    Object.fromEntries(columns.map(([key, values]) => [key, values[i]])),
  );
}

/** Cut a text off, between two signs. */
export function cut(text: Text, length: number): Text {
  if (typeof text === "string") return text.length > length ? text.slice(0, length) : text;
  const kept: string[] = [];
  let left = length;
  for (const piece of text) {
    if (left <= 0) break;
    kept.push(piece.slice(0, left));
    left -= piece.length;
  }
  return kept;
}

export const length = (text: Text) =>
  typeof text === "string" ? text.length : text.reduce((sum, piece) => sum + piece.length, 0);

/** Whether a span is a model's text, whose neighbours of the same kind stand with it. */
export const said = (span: Span) =>
  typeof span !== "string" && ["model", "match", "sign", "nats"].includes(span.mark);
