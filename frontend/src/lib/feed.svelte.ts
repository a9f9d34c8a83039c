// What a table shows: rows that are here, or pages of rows that a server has.
import { plain, rows } from "./format";
import { sorted } from "./source";
import { trouble } from "./state.svelte";
import type { Page, Row, Wanted } from "./types";

export interface Feed {
  readonly total: number;
  readonly sort: string | null;
  readonly descending: boolean;
  at(i: number): Row | undefined;
  order(key: string): void;
}

export class Local implements Feed {
  sort: string | null = $state(null);
  descending = $state(false);
  search = $state("");
  private found = $derived.by(() => {
    const search = this.search.trim().toLowerCase();
    const some = this.given().filter(
      (row) => !search || Object.values(row).some((value) => plain(value).toLowerCase().includes(search)),
    );
    if (this.sort) sorted(some, this.sort, this.descending);
    return some;
  });

  constructor(
    private given: () => Row[],
    sort: string | null = null,
    descending = false,
  ) {
    this.sort = sort;
    this.descending = descending;
  }
  get total() {
    return this.found.length;
  }
  at = (i: number): Row | undefined => this.found[i];
  order(key: string) {
    const first = this.found.find((row) => row[key] !== null && row[key] !== undefined)?.[key];
    // Numbers are asked for from the largest, texts from their first letter.
    this.descending = this.sort === key ? !this.descending : typeof first !== "string" && !Array.isArray(first);
    this.sort = key;
  }
}

const ROWS = 100;

export class Remote implements Feed {
  total = $state(0);
  sort: string | null = $state("id");
  descending = $state(false);
  private pages: (Row[] | "asked" | undefined)[] = $state.raw([]);
  private ask = 0;

  constructor(
    private page: (wanted: Wanted) => Promise<Page>,
    private wanted: Wanted = {},
  ) {}

  /** Ask anew: for other rows, or since they have changed. */
  async reset(wanted: Wanted = this.wanted) {
    this.wanted = wanted;
    this.ask++;
    const kept = this.pages;
    this.pages = [];
    await this.load(0, kept);
  }

  private async load(number: number, meanwhile?: (Row[] | "asked" | undefined)[]) {
    const ask = this.ask;
    const pages = [...this.pages];
    pages[number] = "asked";
    this.pages = meanwhile ?? pages;
    try {
      const found = await this.page({
        ...this.wanted,
        sort: this.sort ?? "id",
        descending: this.descending,
        offset: number * ROWS,
        limit: ROWS,
      });
      if (ask !== this.ask) return;
      this.total = found.total;
      const now = meanwhile ? [] : [...this.pages];
      now[number] = rows(found.rows);
      this.pages = now;
    } catch (problem) {
      trouble(problem);
    }
  }

  at = (i: number): Row | undefined => {
    const page = this.pages[Math.floor(i / ROWS)];
    if (page === undefined) queueMicrotask(() => this.need(Math.floor(i / ROWS)));
    return Array.isArray(page) ? page[i % ROWS] : undefined;
  };

  private need(number: number) {
    if (this.pages[number] === undefined && number * ROWS < this.total) this.load(number);
  }

  /** Change what is known of one row, such as its star. */
  change(id: number, what: Row) {
    this.pages = this.pages.map((page) =>
      Array.isArray(page) ? page.map((row) => (row.id === id ? { ...row, ...what } : row)) : page,
    );
  }

  order(key: string) {
    this.descending = this.sort === key ? !this.descending : !["id", "text", "arm", "phase"].includes(key);
    this.sort = key;
    this.reset();
  }
}
