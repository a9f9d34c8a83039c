// Where data comes from: the server that this page is of, or the page itself.
import { plain, rows } from "./format";
import type { Asked, Doc, Frame, Frames, Listed, Page, Run, Text, Wanted } from "./types";

export interface Source {
  live: boolean;
  start(): Promise<Run[]>;
  changes(): Promise<{ states: string[] }>;
  document(run: number): Promise<Doc>;
  listed(run: number): Promise<Listed>;
  behaviours(run: number): Promise<Frame>;
  texts(run: number, wanted: Wanted): Promise<Page>;
  text(run: number, id: number): Promise<Text>;
  map(run: number): Promise<Frame & { of: number }>;
  mark(run: number, text: number, what: string, value: unknown): Promise<void>;
}

/** What is said while the server is gone. */
export const GONE = "educe explore does not answer: is it still running?";

/** What went wrong, in a sentence. */
export class Refused extends Error {}

async function got(answer: Response): Promise<any> {
  const said = await answer.json().catch(() => ({ error: `${answer.status}: no answer` }));
  if (!answer.ok) throw new Refused(said.error);
  return said;
}

async function fetched(path: string, how?: RequestInit): Promise<Response> {
  try {
    return await fetch(path, how);
  } catch (problem) {
    if (how?.signal?.aborted) throw problem;
    throw new Refused(GONE);
  }
}

const get = async (path: string) => got(await fetched(path));
const body = (value: unknown) => ({
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify(value),
});

export class Live implements Source {
  live = true;
  start = async () => (await get("/api/start")).runs;
  changes = () => get("/api/changes");
  document = (run: number) => get(`/api/runs/${run}/document`);
  listed = (run: number) => get(`/api/runs/${run}/frames`);
  behaviours = (run: number) => get(`/api/runs/${run}/behaviours`);
  map = (run: number) => get(`/api/runs/${run}/map`);
  text = async (run: number, id: number) => (await get(`/api/runs/${run}/texts/${id}`)).text;

  texts(run: number, wanted: Wanted): Promise<Page> {
    const known = Object.entries(wanted).filter(([, v]) => v !== undefined && v !== "" && v !== false);
    return get(`/api/runs/${run}/texts?${new URLSearchParams(known.map(([k, v]) => [k, `${v}`]))}`);
  }

  async mark(run: number, text: number, what: string, value: unknown) {
    await got(await fetched(`/api/runs/${run}/marks`, body({ text, what, value })));
  }
}

/** Ask for something that takes long, and be told of it; what it came to, or null once stopped. */
export async function told(
  path: string,
  asked: Asked,
  signal: AbortSignal,
  tell: (event: any) => void,
): Promise<any> {
  try {
    const answer = await fetched(path, { ...body(asked), signal });
    if (!answer.ok || !answer.body) return await got(answer);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let left = "";
    let came: any = undefined;
    for (;;) {
      const { value, done } = await reader.read();
      if (done && came !== undefined) return came;
      if (done) throw new Refused("educe explore ended before it was finished");
      const lines = (left + value).split("\n");
      left = lines.pop()!;
      for (const line of lines) {
        const event = JSON.parse(line);
        if (event.error) throw new Refused(event.error);
        if (event.stopped) came = null;
        else if (event.done) came = event.done;
        else tell(event);
      }
    }
  } catch (problem) {
    if (signal.aborted) return null;
    throw problem;
  }
}

/** A report: everything stands in the page. */
export class Inlined implements Source {
  live = false;
  private all: Record<string, any>[] | undefined;
  constructor(private doc: Doc) {}

  private get frames(): Frames {
    return this.doc.run!;
  }
  async start(): Promise<Run[]> {
    const run = this.doc.run;
    const count = (frame?: Frame) => frame?.id?.length ?? 0;
    return [
      {
        name: this.doc.title,
        folder: "",
        audit: this.doc.kind === "audit",
        texts: count(run?.completions),
        perturbations: count(run?.perturbations),
        waiting: 0,
        config: {},
        changed: {},
      },
    ];
  }
  changes = async () => ({ states: ["0"] });
  document = async () => this.doc;
  listed = async () => this.frames;
  behaviours = async () => this.frames.behaviours;
  map = async () => ({ of: 0 }) as never;
  mark = async () => {};

  async text(_run: number, id: number): Promise<Text> {
    const at = this.frames.completions.id.indexOf(id);
    return this.frames.completions.text[at];
  }

  async texts(_run: number, w: Wanted): Promise<Page> {
    this.all ??= rows(this.frames.completions);
    const search = w.search?.toLowerCase();
    const found = this.all.filter(
      (row) =>
        (["perturbation", "prompt", "sample", "behaviour", "arm", "phase"] as const).every(
          (key) => w[key] === undefined || row[key] === w[key],
        ) &&
        (!search || plain(row.text).toLowerCase().includes(search)) &&
        (!w.starred || row.star === 1) &&
        (!w.labelled || row.label !== null),
    );
    if (w.sort && w.sort !== "id") sorted(found, w.sort, !!w.descending);
    const some = found.slice(w.offset ?? 0, (w.offset ?? 0) + (w.limit ?? found.length));
    const columns = Object.keys(this.frames.completions);
    return {
      total: found.length,
      rows: Object.fromEntries(columns.map((key) => [key, some.map((row) => row[key])])),
    };
  }
}

/** Sort rows in place by what stands in a column; those where nothing stands come last. */
export function sorted(some: Record<string, any>[], key: string, descending: boolean): void {
  const sign = descending ? -1 : 1;
  const worth = (value: any): any => {
    if (value === null || value === undefined) return null;
    if (typeof value === "number") return value;
    if (typeof value === "object" && "trials" in value) return value.hits / value.trials;
    return plain(value).toLowerCase();
  };
  const worths = new Map(some.map((row) => [row, worth(row[key])]));
  some.sort((a, b) => {
    const [x, y] = [worths.get(a), worths.get(b)];
    if (x === null || y === null) return Number(x === null) - Number(y === null);
    return x < y ? -sign : x > y ? sign : 0;
  });
}
