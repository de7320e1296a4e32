/** Bit plans in the browser: the cheapest bit width of each layer for every budget at once. */
import { number, text, unique, type Row } from "./data";

export interface Choices {
  layers: string[];
  kinds: string[];
  depths: number[];
  bits: number[];
  cost: Float64Array; // layers x bits: an error power, summed over the chosen cells
  bytes: Float64Array; // layers x bits; Infinity: not permitted
  parameters: number[];
}

export interface Chosen {
  bits: number[];
  bytes: number;
  predicted: number;
  meanBits: number;
}

export interface Solved {
  least: number;
  most: number;
  unit: number; // bytes to which sizes of layers were rounded up; 1: exact
  at: (budget: number) => Chosen;
  frontier: { bytes: number; predicted: number }[];
}

const UNITS = 40_000; // of size between the smallest and the largest plan

/** Costs and sizes of a model's layers, as the stage `plan` takes them (`choices_of` in plan/stage.py). */
export function choicesOf(rows: Row[], metric: string, minBits: number, floors: Record<string, number>): Choices {
  const whole = metric === "image_rms";
  const usable = rows.filter(
    (row) =>
      row.metric === metric &&
      (row.bucket === "all") === whole &&
      row.module === "linear" &&
      row.packed_bytes !== null &&
      number(row.bits) >= minBits,
  );
  usable.sort((a, b) => number(a.depth) - number(b.depth) || (text(a.layer) < text(b.layer) ? -1 : 1));
  const layers = unique(usable.map((row) => text(row.layer)));
  const bits = unique(usable.map((row) => number(row.bits))).sort((a, b) => a - b);
  const place = new Map(layers.map((layer, i) => [layer, i]));
  const cells = layers.length * bits.length;
  const sum = new Float64Array(cells);
  const count = new Float64Array(cells);
  const bytes = new Float64Array(cells).fill(Infinity);
  const kinds = new Array<string>(layers.length).fill("");
  const depths = new Array<number>(layers.length).fill(0);
  const parameters = new Array<number>(layers.length).fill(0);
  for (const row of usable) {
    const layer = place.get(text(row.layer))!;
    const cell = layer * bits.length + bits.indexOf(number(row.bits));
    const value = number(row.value);
    sum[cell]! += metric.endsWith("_db") ? 10 ** (-value / 10) : value ** 2;
    count[cell]! += 1;
    if (number(row.bits) >= (floors[text(row.kind)] ?? 0)) bytes[cell] = number(row.packed_bytes);
    kinds[layer] = text(row.kind);
    depths[layer] = number(row.depth);
    parameters[layer] = number(row.parameters);
  }
  return { layers, kinds, depths, bits, cost: sum.map((x, i) => x / (count[i] || 1)), bytes, parameters };
}

const divisor = (a: number, b: number): number => (b ? divisor(b, a % b) : a);

/** The best plan within every budget, by dynamic programming over sizes (a multiple-choice knapsack). */
export function solve(choices: Choices): Solved {
  const { layers, bits, cost, bytes, parameters } = choices;
  const width = bits.length;
  const cells = (layer: number) => bits.map((_, b) => layer * width + b).filter((c) => Number.isFinite(bytes[c]!));
  const smallest = layers.map((_, l) => Math.min(...cells(l).map((c) => bytes[c]!)));
  const least = smallest.reduce((a, b) => a + b, 0);
  const most = layers.reduce((total, _, l) => total + Math.max(...cells(l).map((c) => bytes[c]!)), 0);
  const extra = (layer: number, cell: number) => bytes[cell]! - smallest[layer]!;
  let unit = 0;
  layers.forEach((_, l) => cells(l).forEach((c) => (unit = divisor(extra(l, c), unit))));
  const exact = Math.max(1, unit);
  const grain = (most - least) / exact > UNITS ? Math.ceil((most - least) / UNITS) : exact;
  const room = Math.max(0, Math.floor((most - least) / grain)) + layers.length; // each may be rounded up by one
  let best = new Float64Array(room + 1);
  const picks: Uint8Array[] = [];
  layers.forEach((_, l) => {
    const next = new Float64Array(room + 1).fill(Infinity);
    const pick = new Uint8Array(room + 1);
    for (const cell of cells(l)) {
      const more = Math.ceil(extra(l, cell) / grain - 1e-9);
      const price = cost[cell]!;
      for (let s = more; s <= room; s++) {
        const total = best[s - more]! + price;
        if (total < next[s]!) {
          next[s] = total;
          pick[s] = cell - l * width;
        }
      }
    }
    best = next;
    picks.push(pick);
  });
  const weights = parameters.reduce((a, b) => a + b, 0);

  function at(budget: number): Chosen {
    let place = Math.min(room, Math.max(0, Math.floor((budget - least) / grain + 1e-9)));
    const columns = new Array<number>(layers.length).fill(0);
    for (let l = layers.length - 1; l >= 0; l--) {
      columns[l] = picks[l]![place]!;
      place -= Math.ceil(extra(l, l * width + columns[l]!) / grain - 1e-9);
    }
    const total = columns.reduce((sum, b, l) => sum + bytes[l * width + b]!, 0);
    const predicted = columns.reduce((sum, b, l) => sum + cost[l * width + b]!, 0);
    return { bits: columns.map((b) => bits[b]!), bytes: total, predicted, meanBits: (8 * total) / weights };
  }

  const frontier = Array.from({ length: 121 }, (_, i) => {
    const place = Math.round((i * (room - layers.length)) / 120);
    return { bytes: least + place * grain, predicted: best[place]! };
  });
  return { least, most, unit: grain === exact ? 1 : grain, at, frontier };
}

/** An error power in the unit of its metric: decibels, or the root. */
export const inMetric = (metric: string, power: number): number =>
  metric.endsWith("_db") ? -10 * Math.log10(power) : Math.sqrt(power);
