/** What the page holds: tables by column, thumbnails, settings. `scripts/ditscope/publish/explorer.py` writes it. */

export type Value = string | number | boolean | null;
export type Row = Record<string, Value>;

interface Packed {
  k: "u1" | "u2" | "u4" | "b" | "f4" | "f8";
  d?: string[];
  v: string;
}

interface PackedTable {
  rows: number;
  columns: Record<string, Packed>;
}

export interface Stage {
  name: string;
  asked: boolean;
  files: number;
  there: number;
  reads: string[];
  command: string;
}

export interface Capture {
  generation: string;
  model: string;
  set: string;
  prompt_id: string;
  prompt: string;
  seed: number;
  steps: number;
  guidance: number;
  sigmas: number[];
  captured_steps: number[];
  blocks: string[];
  decode: string;
}

export interface Plan {
  model: string;
  budget: string;
  budget_bytes: number;
  metric: string;
  layers: Record<string, number>;
  full_precision: string[];
  nominal_bytes: number;
  mean_bits: number;
  predicted: number;
  uniform: { bits: number; nominal_bytes: number; predicted: number } | null;
  formats?: Record<string, unknown>; // of a plan over formats: the scheme of each
  steps?: string; // how such a plan divides the schedule
  assignment?: Record<string, string | Record<string, string>>; // the format of each layer, or of each part of the schedule
  random: { plans: number; best: number; median: number; worst: number };
  frontier: { nominal_bytes: number; mean_bits: number; predicted: number }[];
}

interface Data {
  experiment: string;
  version: string;
  palette: string[];
  config: Record<string, unknown>;
  configfiles: string[];
  stages: Stage[];
  captures: Capture[];
  plans: Plan[];
  tables: Record<string, PackedTable>;
  problems: Record<string, string[]>;
  sampled: string[];
  beside: string[];
}

interface Pictures {
  side: number;
  notes: string[];
  places: Record<string, number>;
  data: string[];
}

function parsed<T>(id: string, empty: T): T {
  const text = document.getElementById(id)?.textContent ?? "";
  return text ? { ...empty, ...(JSON.parse(text) as T) } : empty;
}

export const study: Data = parsed("study", {
  experiment: "no study",
  version: "",
  palette: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"],
  config: {},
  configfiles: [],
  stages: [],
  captures: [],
  plans: [],
  tables: {},
  problems: {},
  sampled: [],
  beside: [],
});
export const pictures: Pictures = parsed("pictures", { side: 0, notes: [], places: {}, data: [] });

/** The data URI of a picture by its name, if the page has it. */
export function picture(name: string): string | undefined {
  const place = pictures.places[name];
  return place === undefined ? undefined : `data:image/webp;base64,${pictures.data[place]}`;
}

export const pictureNames = (start: string): string[] =>
  Object.keys(pictures.places).filter((name) => name.startsWith(start));

function bytes(text: string): ArrayBuffer {
  const raw = atob(text);
  const out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out.buffer;
}

function unpack(column: Packed): Value[] {
  const buffer = bytes(column.v);
  switch (column.k) {
    case "f4":
      return Array.from(new Float32Array(buffer), (x) => (Number.isNaN(x) ? null : x));
    case "f8":
      return Array.from(new Float64Array(buffer), (x) => (Number.isNaN(x) ? null : x));
    case "b":
      return Array.from(new Uint8Array(buffer), (x) => (x === 2 ? null : x === 1));
    default: {
      const codes = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array }[column.k];
      const words = column.d ?? [];
      return Array.from(new codes(buffer), (x) => (x === 0 ? null : (words[x - 1] ?? null)));
    }
  }
}

export class Table {
  readonly rows: number;
  private readonly unpacked = new Map<string, Value[]>();
  private records: Row[] | undefined;

  constructor(private readonly packed: PackedTable) {
    this.rows = packed.rows;
  }

  column(name: string): Value[] {
    let values = this.unpacked.get(name);
    if (!values) {
      const column = this.packed.columns[name];
      values = column ? unpack(column) : new Array<Value>(this.rows).fill(null);
      this.unpacked.set(name, values);
    }
    return values;
  }

  /** All rows as records, made once. */
  all(): Row[] {
    if (!this.records) {
      const names = Object.keys(this.packed.columns);
      const columns = names.map((name) => this.column(name));
      this.records = Array.from({ length: this.rows }, (_, i) => {
        const row: Row = {};
        names.forEach((name, j) => (row[name] = columns[j]![i]!));
        return row;
      });
    }
    return this.records;
  }

  /** Rows with these values. */
  where(values: Row): Row[] {
    const wanted = Object.entries(values);
    return this.all().filter((row) => wanted.every(([name, value]) => row[name] === value));
  }
}

const tables = new Map<string, Table>();

/** A table by its name, if the study has it and it holds any row. */
export function table(name: string): Table | undefined {
  const packed = study.tables[name];
  if (!packed || packed.rows === 0) return undefined;
  let made = tables.get(name);
  if (!made) tables.set(name, (made = new Table(packed)));
  return made;
}

/** A study's whole table even where it is empty: to tell "nothing to say" from "not made". */
export const isThere = (name: string): boolean => name in study.tables;

export const unique = <T>(values: Iterable<T>): T[] => [...new Set(values)];

export function groups<T>(rows: Iterable<T>, key: (row: T) => string): Map<string, T[]> {
  const found = new Map<string, T[]>();
  for (const row of rows) {
    const name = key(row);
    const group = found.get(name);
    if (group) group.push(row);
    else found.set(name, [row]);
  }
  return found;
}

export const text = (value: Value | undefined): string => (value === null || value === undefined ? "" : String(value));
export const number = (value: Value | undefined): number => (typeof value === "number" ? value : NaN);

/** A number as people read it: three digits, thousands apart, powers only where it must. */
export function shown(value: Value | undefined, digits = 3): string {
  if (typeof value !== "number" || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(digits - 1).replace("e+", "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(digits)));
}

export function size(value: number): string {
  if (!Number.isFinite(value)) return "–";
  if (value >= 1e9) return `${(value / 1e9).toPrecision(3)} GB`;
  if (value >= 1e6) return `${(value / 1e6).toPrecision(3)} MB`;
  return `${(value / 1e3).toPrecision(3)} kB`;
}

/** A text on one line of at most `most` characters. */
export function short(value: string, most: number): string {
  const line = value.slice(0, 4 * most).replace(/\s+/g, " ").trim();
  return line.length <= most && value.length <= 4 * most ? line : `${line.slice(0, most - 1).trimEnd()}…`;
}
