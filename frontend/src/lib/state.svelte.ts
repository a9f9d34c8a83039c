// What all screens share: the source, the runs, where we are, and the colours.
import palette from "../../../src/educe/explore/palette.json";
import { Inlined, Live, type Source } from "./source";
import type { Run } from "./types";

const island = document.getElementById("document");
export const source: Source = island ? new Inlined(JSON.parse(island.textContent!)) : new Live();

/** A place in the page: #/RUN/SCREEN/ARGUMENT?options */
export interface Route {
  run: number;
  screen: string;
  argument: string;
  options: URLSearchParams;
}

function read(): Route {
  const [path, options] = location.hash.replace(/^#\/?/, "").split("?");
  const [run, screen, ...argument] = path.split("/");
  return {
    run: Number(run) || 0,
    screen: screen || "findings",
    argument: decodeURIComponent(argument.join("/")),
    options: new URLSearchParams(options),
  };
}

const DARK = matchMedia("(prefers-color-scheme: dark)");
type Theme = "system" | "light" | "dark";

class State {
  runs: Run[] = $state([]);
  states: string[] = $state([]);
  route: Route = $state(read());
  theme: Theme = $state("system");
  system = $state(DARK.matches);
  problem = $state("");
  dark = $derived(this.theme === "system" ? this.system : this.theme === "dark");
  run = $derived(this.runs[this.route.run]);

  /** What changes with the run that is shown. */
  version = $derived(this.states[this.route.run] ?? "");
}
export const app = new State();

addEventListener("hashchange", () => (app.route = read()));
DARK.addEventListener("change", () => (app.system = DARK.matches));

/** The address of a place of the run that is shown, or of another. */
export const href = (to: string, run = app.route.run) => `#/${run}/${to}`;
export const go = (to: string) => (location.hash = href(to));

export function dress(dark: boolean) {
  const style = document.documentElement.style;
  for (const [role, colours] of Object.entries(palette)) style.setProperty(`--${role}`, colours[Number(dark)]);
  style.setProperty("color-scheme", dark ? "dark" : "light");
}

const swap = new Map(Object.values(palette).map(([light, dark]) => [light, dark]));
/** A specification of a chart in the colours of a dark page. */
export function darkened(value: any, key = ""): any {
  if (typeof value === "string") return swap.get(value) ?? value;
  if (Array.isArray(value)) return key === "values" ? value : value.map((one) => darkened(one));
  if (value && typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, darkened(v, k)]));
  return value;
}

/** Tell a problem in one sentence, until something else is asked for. */
export const trouble = (problem: unknown) =>
  (app.problem = problem instanceof Error ? problem.message : String(problem));

export async function copied(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}
