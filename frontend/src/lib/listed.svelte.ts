// The perturbations and prompts of a run, read once for all screens and again when it changes.
import { rows } from "./format";
import { app, source, trouble } from "./state.svelte";
import type { Column, Listed, Row } from "./types";

class Known {
  private by: Record<number, { version: string; listed: Listed }> = $state.raw({});

  /** What is listed of a run, as far as it is known; asks for it where it is not. */
  of(run: number): Listed | undefined {
    const [known, version] = [this.by[run], app.states[run]];
    if (version !== undefined && known?.version !== version) this.read(run, version);
    return known?.listed;
  }

  private asked = new Map<number, string>();
  private read(run: number, version: string) {
    if (this.asked.get(run) === version) return;
    this.asked.set(run, version);
    source
      .listed(run)
      .then((listed) => (this.by = { ...this.by, [run]: { version, listed } }))
      .catch(trouble);
  }
}
export const known = new Known();

/** A row for each perturbation, with a column for each score of it as a whole. */
export function perturbations(listed: Listed): Row[] {
  const found = rows(listed.perturbations);
  const by = new Map(found.map((row) => [row.id, row]));
  const { perturbation, judge, value } = listed.scores;
  perturbation.forEach((id, i) => {
    const row = by.get(id);
    if (row) row[`score ${judge[i]}`] = value[i];
  });
  return found;
}

/** Scores that a person knows by another name, and what they say. */
const NAMES: Record<string, [string, string]> = {
  side_effect: ["KL", "KL(unperturbed ‖ perturbed) on benign prompts, in nats"],
  kl_p95: ["KL p95", "95th percentile of the KL on benign prompts over the first tokens, in nats"],
  prompt_invariance: ["invariance", "how alike its answers to different prompts are"],
  read: ["read", "share of its energy in what later layers read"],
  energy_top: ["present", "share of its energy in the directions in which natural activations vary"],
  reachable: ["reachable", "share of its effect that a text has"],
};

export function columns(listed: Listed): Column[] {
  const number = (key: string, title: string, help: string, format = ".2f"): Column => ({
    key,
    title,
    type: "number",
    format,
    help,
  });
  const text = (key: string, title: string, help: string): Column => ({ key, title, type: "text", help });
  const judges = [...new Set(listed.scores.judge)];
  const first = Object.keys(NAMES).filter((judge) => judges.includes(judge));
  const others = judges.filter((judge) => !(judge in NAMES)).sort();
  const unit = (judge: string) => listed.scores.unit[listed.scores.judge.indexOf(judge)];
  return [
    { key: "id", title: "id", type: "id", help: "its number in the run" },
    text("arm", "arm", "found, control, or another"),
    number("dose", "dose", "its radius, as a share of the norm of the activations there"),
    number("effect", "effect", "norm of its effect at the target", ".3~g"),
    number("interestingness", "interest", "mean of coherence times novelty over its answers"),
    number("coherence", "coherence", "mean over its answers"),
    number("novelty", "novelty", "mean over its answers: unlike the unperturbed model's"),
    ...first.map((judge) => number(`score ${judge}`, ...NAMES[judge], ".3~g")),
    number("texts", "texts", "first answers", ",d"),
    text("method", "method", "how it was found"),
    { key: "parent", title: "parent", type: "id", help: "the one it was derived from" },
    text("how", "how", "how it was derived"),
    ...others.map((judge) => number(`score ${judge}`, judge.replaceAll("_", " "), unit(judge), ".3~g")),
  ];
}
