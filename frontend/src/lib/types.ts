/** A text that a model wrote: every second piece stands for a sign that nobody would see. */
export type Text = string | string[];

export interface Mark {
  text: Text;
  mark: "match" | "sign" | "nats" | "strong" | "muted" | "code" | "model" | "link";
  value?: number | null;
  title?: string | null;
  to?: string | null;
}
export type Span = string | Mark;

export interface Rate {
  hits: number;
  trials: number;
  low: number;
  high: number;
}

export interface Column {
  key: string;
  title: string;
  type: "text" | "number" | "texts" | "rate" | "id";
  format?: string | null;
  help?: string | null;
}
export type Row = Record<string, any>;

export interface Side {
  title: string;
  spans: Span[];
}
export type Block =
  | { type: "text"; spans: Span[]; style: "lead" | "plain" | "note" }
  | { type: "heading"; text: string }
  | { type: "table"; columns: Column[]; rows: Row[]; caption?: string | null; sort?: string | null }
  | { type: "chart"; name: string; spec: object; title: string; caption?: string | null }
  | { type: "pair"; left: Side; right: Side }
  | { type: "card"; title: Span[]; badges: string[]; blocks: Block[]; open: boolean }
  | { type: "fold"; title: string; blocks: Block[]; open: boolean }
  | { type: "facts"; items: Side[] }
  | { type: "code"; text: string };

export interface Part {
  id: string;
  title: string;
  blocks: Block[];
}
export interface Doc {
  title: string;
  subtitle: string;
  kind: string;
  date: string | null;
  command: string | null;
  parts: Part[];
  run?: Frames | null;
}

export type Frame = Record<string, any[]>;
export interface Listed {
  perturbations: Frame;
  scores: Frame;
  prompts: Frame;
  facts: Record<string, any>;
}
export interface Frames extends Listed {
  behaviours: Frame;
  completions: Frame;
}

export interface Wanted {
  search?: string;
  sort?: string;
  descending?: boolean;
  offset?: number;
  limit?: number;
  starred?: boolean;
  labelled?: boolean;
  perturbation?: number;
  prompt?: number;
  sample?: number;
  behaviour?: number;
  arm?: string;
  phase?: string;
}
export interface Page {
  total: number;
  rows: Frame;
}
export interface Run {
  name: string;
  folder: string;
  audit: boolean;
  texts: number;
  perturbations: number;
  waiting: number;
  config: Record<string, any>;
  /** How the model is loaded otherwise than the run had it. */
  changed: Record<string, string | boolean>;
}
export interface Asked {
  prompt: number | string;
  pieces: { id: number; radius: number }[];
  positions?: string | null;
  temperature?: number;
  sample?: number;
  tokens?: number | null;
  text?: number[];
}
