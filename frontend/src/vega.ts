// Vega without eval: expressions are interpreted, as the page's policy asks for.
import { View, parse } from "vega";
import { expressionInterpreter } from "vega-interpreter";
import { compile } from "vega-lite";

export interface Drawn {
  finalize(): void;
}

function draw(
  place: HTMLElement,
  spec: object,
  tooltip: (item: unknown, event: MouseEvent, value: unknown) => void,
  chosen: (datum: Record<string, unknown>) => void,
): Promise<Drawn> {
  const made = compile(spec as never).spec;
  const view = new View(parse(made, undefined, { ast: true }), {
    expr: expressionInterpreter,
    renderer: "svg",
    container: place,
    hover: true,
  });
  view.tooltip((_handler: unknown, event: MouseEvent, item: unknown, value: unknown) =>
    tooltip(item, event, value),
  );
  view.addEventListener("click", (_event, item) => {
    if (item?.datum) chosen(item.datum as Record<string, unknown>);
  });
  return view.runAsync();
}

(globalThis as Record<string, unknown>).educeDraw = draw;
export type Draw = typeof draw;
