"use strict";
const parse = id => JSON.parse(document.getElementById(id).textContent);
const specs = parse("charts-specs"), palette = parse("palette");

// Charts, in the colours of the page.
const dark = matchMedia("(prefers-color-scheme: dark)");
const swap = new Map(Object.values(palette));
const themed = value =>
  typeof value === "string" ? (swap.get(value) ?? value)
    : Array.isArray(value) ? value.map(themed)
      : value && typeof value === "object"
        ? Object.fromEntries(Object.entries(value).map(([k, v]) => [k, k === "values" ? v : themed(v)]))
        : value;
const drawn = {};
async function draw() {
  for (const [name, spec] of Object.entries(specs)) {
    const place = document.getElementById(`chart-${name}`);
    const many = (spec.data?.values?.length ?? 0) > 3000;
    drawn[name]?.finalize();
    try {
      drawn[name] = await vegaEmbed(place, dark.matches ? themed(spec) : structuredClone(spec), {
        actions: false, ast: true, mode: "vega-lite", renderer: many ? "canvas" : "svg",
        tooltip: { theme: dark.matches ? "dark" : "light" },
      });
      dispatchEvent(new CustomEvent("drawn", { detail: { name, view: drawn[name].view } }));
      place.dataset.drawn = "yes";
    } catch (problem) {
      place.textContent = `This chart could not be drawn: ${problem.message}`;
    }
  }
}
draw();
dark.addEventListener("change", draw);
