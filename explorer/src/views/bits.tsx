/** Bits: how much each layer minds fewer bits, and the plan that a budget buys. */
import * as Plot from "@observablehq/plot";
import { useMemo } from "preact/hooks";
import { groups, number, shown, size, study, table, text, unique, type Plan, type Row } from "../data";
import * as fragment from "../fragment";
import { choicesOf, inMetric, solve, type Choices, type Chosen, type Solved } from "../plan";
import { Chart, Chips, LEGEND, Missing, Problems, Range, Section, Select, colour, hidden, joined, pixels, useDark } from "../ui";

const NAMES: Record<string, string> = {
  image_rms: "change of the picture (RMS)",
  relative_l2: "relative L2 error of the velocity",
  psnr_db: "PSNR of the velocity, dB",
  sqnr_db: "SQNR of the velocity, dB",
};
const LEAST = 1e-5; // where a loss of 0 stands on a logarithmic axis
const BITS = ["#440154", "#3b528b", "#21918c", "#5ec962", "#b5de2b", "#fde725", "#bdbdbd"]; // few to many, viridis

interface PlanSettings {
  min_bits?: number;
  floors?: Record<string, number>;
}

export function Bits() {
  const all = table("sensitivity");
  const model = fragment.chosen("model", unique(all?.column("model").map(text) ?? []));
  const rows = useMemo(() => all?.where({ model }) ?? [], [all, model]);
  const metrics = unique(rows.map((row) => text(row.metric)));
  const plans = study.plans.filter((plan) => plan.model === model && !plan.formats);
  const usual = plans[0]?.metric ?? (metrics.includes("image_rms") ? "image_rms" : "relative_l2");
  const metric = fragment.chosen("metric", metrics, usual);
  const settings = (study.config.plan ?? {}) as PlanSettings;
  const choices = useMemo(() => choicesOf(rows, metric, settings.min_bits ?? 2, settings.floors ?? {}), [rows, metric]);
  const solved = useMemo(() => (choices.layers.length ? solve(choices) : undefined), [choices]);
  if (!all) return <Missing stages={["sensitivity", "plan"]} what="No layer has been scored at fewer bits yet." />;
  if (!solved)
    return (
      <Section title="Sensitivity">
        <Select label="Metric" name="metric" value={metric} choices={metrics} />
        <p class="problem">No linear layer of {model} can be stored at the measured bits: there is nothing to plan.</p>
      </Section>
    );
  const first = plans.find((plan) => plan.metric === metric);
  const start = first?.budget_bytes ?? (solved.least + solved.most) / 2;
  const budget = fragment.chosenNumber("budget", solved.least, solved.most, start);
  const chosen = solved.at(budget);
  return (
    <>
      <Problems stages={["sensitivity", "plan"]} />
      <Section
        title="The plan that a budget buys"
        note={
          <>
            Solved in this page for the slider's budget: {solved.unit === 1 ? "exactly" : `sizes rounded up to ${size(solved.unit)}`}, {choices.layers.length} layers
            {" × "}
            {choices.bits.length} bit widths, the sum of the layers' error powers least. Predicted: errors of single layers, added; their own spread is in the map below
            (n = {Math.max(...rows.map((row) => number(row.n_images)))} images). Diamonds are the plans that the study made with its own solver.
          </>
        }
      >
        <div class="controls">
          <Select label="Model" name="model" value={model} choices={unique(all.column("model").map(text))} also={{ budget: undefined, metric: undefined }} />
          <Select label="Least" name="metric" value={metric} choices={metrics.map((m) => [m, NAMES[m] ?? m] as [string, string])} />
          <Range
            label="Budget"
            name="budget"
            value={budget}
            min={solved.least}
            max={solved.most}
            step={(solved.most - solved.least) / 240}
            told={`${size(budget)}, ${shown((8 * budget) / total(choices))} mean bits`}
          />
        </div>
        <Readout choices={choices} chosen={chosen} metric={metric} plans={plans} budget={budget} />
        <div class="two">
          <Frontier solved={solved} chosen={chosen} plans={plans} metric={metric} choices={choices} />
          <Measured model={model} budget={budget} plans={plans} />
        </div>
      </Section>
      <OverFormats model={model} />
      <Kinds choices={choices} chosen={chosen} />
      <LayerMap rows={rows} choices={choices} chosen={chosen} />
    </>
  );
}

const total = (choices: Choices): number => choices.parameters.reduce((a, b) => a + b, 0);

/** The uniform bit widths: their sizes and predicted errors. */
function uniforms(choices: Choices): { bits: number; bytes: number; predicted: number }[] {
  const width = choices.bits.length;
  return choices.bits.map((bits, b) => ({
    bits,
    bytes: choices.layers.reduce((sum, _, l) => sum + choices.bytes[l * width + b]!, 0),
    predicted: choices.layers.reduce((sum, _, l) => sum + choices.cost[l * width + b]!, 0),
  }));
}

function Readout({ choices, chosen, metric, plans, budget }: { choices: Choices; chosen: Chosen; metric: string; plans: Plan[]; budget: number }) {
  const uniform = uniforms(choices).filter((u) => u.bytes <= budget).at(-1);
  const counts = [...groups(chosen.bits, String)].sort((a, b) => Number(a[0]) - Number(b[0]));
  const near = plans.find((plan) => Math.abs(plan.nominal_bytes - chosen.bytes) < 0.01 * chosen.bytes);
  const measured = near && qualityOf(near);
  return (
    <dl class="figures" aria-live="polite">
      <div>
        <dt>chosen size</dt>
        <dd id="chosen-size">{size(chosen.bytes)}</dd>
        <dd class="small">{shown(chosen.meanBits)} bits per weight, scales included</dd>
      </div>
      <div>
        <dt>predicted {NAMES[metric] ?? metric}</dt>
        <dd id="predicted">{shown(inMetric(metric, chosen.predicted))}</dd>
        <dd class="small">{uniform ? `uniform ${uniform.bits} bit: ${shown(inMetric(metric, uniform.predicted))}` : "no uniform width is so small"}</dd>
      </div>
      <div>
        <dt>measured quality loss</dt>
        <dd>{measured ? shown(measured.value) : "–"}</dd>
        <dd class="small">{measured ? interval(measured) : "only at the study's own plans (diamonds)"}</dd>
      </div>
      <div>
        <dt>layers</dt>
        <dd>{choices.layers.length}</dd>
        <dd class="small">{counts.map(([bits, group]) => `${group.length} × ${bits} bit`).join(", ")}</dd>
      </div>
    </dl>
  );
}

function interval(row: Row): string {
  const n = `n = ${row.n_prompts} prompts`;
  return row.low === null ? `${n}: too few for an interval` : `95 % interval ${shown(row.low)} to ${shown(row.high)}, ${n}`;
}

/** Plans over formats: no slider solves these, since they stand on measurements of their own. */
function OverFormats({ model }: { model: string }) {
  const plans = study.plans.filter((plan) => plan.model === model && plan.formats);
  if (!plans.length) return null;
  return (
    <Section title="Plans over formats" note="A format for each layer, or for each part of the schedule, by the study's own solver. Predicted: error power, added over layers; the benchmark measures it.">
      <div class="scroll" tabIndex={0} role="group" aria-label="Plans over formats">
        <table>
          <thead>
            <tr>
              <th>plan</th>
              <th class="num">size</th>
              <th class="num">bits per weight</th>
              <th class="num">predicted</th>
              <th>best single format</th>
              <th>layers by format</th>
            </tr>
          </thead>
          <tbody>
            {plans.map((plan) => {
              const assigned = Object.values(plan.assignment ?? {}).map((format) => (typeof format === "string" ? format : unique(Object.values(format)).join(" → ")));
              return (
                <tr key={plan.budget}>
                  <td>{plan.budget}</td>
                  <td class="num">{size(plan.nominal_bytes)}</td>
                  <td class="num">{shown(plan.mean_bits)}</td>
                  <td class="num">{shown(plan.predicted)}</td>
                  <td>{plan.uniform ? `${(plan.uniform as { format?: string }).format ?? `${plan.uniform.bits} bit`}: ${shown(plan.uniform.predicted)}` : "none fits"}</td>
                  <td>{[...groups(assigned, (format) => format)].map(([format, of]) => `${of.length} × ${format}`).join(", ")}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
    </Section>
  );
}

/** The schemes that apply a plan. */
function schemesOf(plan: Plan): string[] {
  const schemes = (study.config.schemes ?? {}) as Record<string, { kind?: string; plan?: string }>;
  return Object.keys(schemes).filter((name) => schemes[name]!.kind === "plan" && schemes[name]!.plan === plan.budget);
}

/** The measured quality loss of a plan. */
const qualityOf = (plan: Plan): Row | undefined =>
  table("benchmark.quality")
    ?.where({ model: plan.model, metric: "quality_loss", compile: "eager" })
    .find((row) => row.value !== null && schemesOf(plan).includes(text(row.scheme)));

function Frontier({ solved, chosen, plans, metric, choices }: { solved: Solved; chosen: Chosen; plans: Plan[]; metric: string; choices: Choices }) {
  const dark = useDark();
  const of = (power: number) => inMetric(metric, power);
  const line = solved.frontier.map((p) => ({ mb: p.bytes / 1e6, value: of(p.predicted) }));
  const flat = uniforms(choices).filter((u) => Number.isFinite(u.bytes)).map((u) => ({ mb: u.bytes / 1e6, value: of(u.predicted), bits: u.bits }));
  const own = plans.filter((plan) => plan.metric === metric && Number.isFinite(plan.predicted)).map((plan) => ({ mb: plan.nominal_bytes / 1e6, value: of(plan.predicted), name: plan.budget }));
  return (
    <Chart
      label="Predicted error against size"
      deps={[solved, chosen.bytes, metric]}
      plot={() => ({
        height: 280,
        marginLeft: 56,
        marginRight: 40,
        marginBottom: 36,
        inset: 8,
        x: { label: "size of the quantized layers / MB", grid: true },
        y: { label: `predicted ${NAMES[metric] ?? metric}`, type: metric.endsWith("_db") ? "linear" : "log", grid: true, ticks: 5, tickFormat: (v: number) => shown(v, 2) },
        marks: [
          Plot.lineY(line, { x: "mb", y: "value", stroke: colour(0, dark), strokeWidth: 2 }),
          Plot.dot(flat, { x: "mb", y: "value", fill: colour(4, dark), r: 4, symbol: "square" }),
          Plot.text(flat, { x: "mb", y: "value", text: (u: { bits: number }) => `${u.bits} bit`, dx: 6, textAnchor: "start", dy: -8, fill: "currentColor" }),
          Plot.dot(own, { x: "mb", y: "value", stroke: "currentColor", fill: colour(1, dark), r: 6, symbol: "diamond" }),
          Plot.ruleX([chosen.bytes / 1e6], { stroke: colour(1, dark), strokeWidth: 1.5 }),
          Plot.dot([{ mb: chosen.bytes / 1e6, value: of(chosen.predicted) }], { x: "mb", y: "value", fill: colour(1, dark), r: 4.5 }),
          Plot.tip([...flat, ...own], Plot.pointer({ x: "mb", y: "value", title: (d: { bits?: number; name?: string; mb: number; value: number }) => `${d.name ? `plan ${d.name}` : `uniform ${d.bits} bit`}\n${shown(d.mb)} MB, ${shown(d.value)}` })),
        ],
      })}
    />
  );
}

function Measured({ model, budget, plans }: { model: string; budget: number; plans: Plan[] }) {
  const dark = useDark();
  const quality = table("benchmark.quality")?.where({ model, metric: "quality_loss", compile: "eager" }) ?? [];
  const runs = table("benchmark")?.where({ model, compile: "eager" }) ?? [];
  const points = quality.flatMap((row) => {
    const run = runs.find((r) => r.scheme === row.scheme && r.hardware === row.hardware);
    if (!run || row.value === null) return [];
    return [{ scheme: text(row.scheme), mb: number(run.nominal_bytes) / 1e6, value: Math.max(LEAST, number(row.value)), low: row.low, high: row.high, n: row.n_prompts, plan: text(run.kind).startsWith("plan") }];
  });
  if (!points.length) return <Missing stages={["benchmark"]} what={`No scheme of ${model} has been measured: there is a prediction, and nothing beside it.`} />;
  // What a scheme's size has beside the plan's layers: those that stay in full precision.
  const known = plans.flatMap((plan) => points.filter((p) => schemesOf(plan).includes(p.scheme)).map((p) => p.mb - plan.nominal_bytes / 1e6));
  const rest = known[0] ?? 0;
  const bound = number(runs[0]?.quality_bound);
  const few = points.some((p) => p.low === null);
  const [across, up] = [pixels(points.map((p) => p.mb), 400, true), pixels(points.map((p) => p.value), 220, true)];
  const names = joined(points.map((p) => ({ x: p.mb, y: p.value, text: p.scheme })), (l) => [across(l.x), up(l.y)]);
  return (
    <figure class="plain">
      <Chart
        label="Measured quality loss against size"
        deps={[points.length, budget, model]}
        plot={() => ({
          height: 280,
          marginLeft: 56,
          marginRight: 60,
          marginBottom: 36,
          inset: 8,
          x: { label: "size of the transformer / MB", grid: true, type: "log", ticks: 5, tickFormat: (v: number) => shown(v, 2) },
          y: { label: "measured quality loss", type: "log", grid: true, ticks: 5, tickFormat: (v: number) => shown(v, 2) },
          marks: [
            Plot.ruleY([bound], { stroke: "currentColor", strokeDasharray: "4,3", strokeOpacity: 0.6 }),
            Plot.ruleX([budget / 1e6 + rest], { stroke: colour(1, dark), strokeWidth: 1.5 }),
            Plot.ruleX(points.filter((p) => p.low !== null), { x: "mb", y1: (p: (typeof points)[number]) => Math.max(LEAST, Number(p.low)), y2: (p: (typeof points)[number]) => Number(p.high), stroke: "currentColor", strokeOpacity: 0.4 }),
            Plot.dot(points, { x: "mb", y: "value", fill: (p: (typeof points)[number]) => colour(p.plan ? 1 : 4, dark), symbol: (p: (typeof points)[number]) => (p.plan ? "diamond" : "square"), r: 5 }),
            Plot.text(names, { x: "x", y: "y", text: "text", textAnchor: "start", dx: 9, fill: "currentColor" }),
            Plot.tip(points, Plot.pointer({ x: "mb", y: "value", title: (p: (typeof points)[number]) => `${p.scheme}\nloss ${shown(p.value)}, n = ${p.n} prompts` })),
          ],
        })}
      />
      <figcaption class="caption">
        Measured, eager; a loss of 0 stands at {shown(LEAST)}. Squares are uniform schemes, diamonds plans, dashes the bound of {shown(bound)}. {few ? "Below 8 prompts there is no interval." : "Bars: 95 % intervals over prompts."}
        {known.length > 0 && " The line is the slider's budget with what stays in full precision added."}
      </figcaption>
    </figure>
  );
}

function Kinds({ choices, chosen }: { choices: Choices; chosen: Chosen }) {
  const rows = choices.layers.map((layer, l) => ({ layer, kind: choices.kinds[l]!, bits: chosen.bits[l]!, weights: choices.parameters[l]! / 1e6 }));
  return (
    <Section title="Where the bits go" note="Weights of each kind of layer by the bit width that they get; a bar is as long as the kind has weights. Few bits are dark.">
      <Chart
        label="Weights by kind of layer and chosen bits"
        deps={[chosen, choices]}
        plot={() => ({
          height: 40 + 26 * unique(choices.kinds).length + 40,
          marginLeft: 100,
          x: { label: "million weights", grid: true },
          y: { label: null },
          color: { type: "ordinal", domain: choices.bits, range: choices.bits.map((b) => BITS[Math.min(BITS.length - 1, b - 2)] ?? "#bdbdbd"), legend: true, tickFormat: (b: number) => `${b} bit` },
          marks: [
            Plot.barX(rows, Plot.groupY({ x: "sum" }, { y: "kind", x: "weights", fill: "bits", sort: { y: "-x" }, order: "bits", insetRight: 1, stroke: "currentColor", strokeOpacity: 0.25 } as Plot.BarXOptions)),
            Plot.ruleX([0]),
          ],
        })}
      />
    </Section>
  );
}

function LayerMap({ rows, choices, chosen }: { rows: Row[]; choices: Choices; chosen: Chosen }) {
  const dark = useDark();
  const kinds = unique(rows.map((row) => text(row.kind))).sort();
  const off = hidden("kinds");
  const metrics = unique(rows.map((row) => text(row.metric)));
  const metric = fragment.chosen("map", metrics, metrics.includes("relative_l2") ? "relative_l2" : metrics[0]);
  const buckets = unique(rows.filter((row) => row.metric === metric).map((row) => text(row.bucket)));
  const bucket = fragment.chosen("bucket", buckets);
  const cells = rows.filter((row) => row.metric === metric && row.bucket === bucket && !off.has(text(row.kind)) && row.value !== null);
  cells.sort((a, b) => number(a.depth) - number(b.depth) || (text(a.layer) < text(b.layer) ? -1 : 1));
  const layers = unique(cells.map((row) => text(row.layer)));
  const picked = choices.layers.map((layer, l) => ({ layer, bits: chosen.bits[l]! })).filter((cell) => layers.includes(cell.layer));
  const many = layers.length > 140;
  const by = fragment.chosen("layers", many ? ["block and kind", "every layer"] : ["every layer"]);
  const db = metric.endsWith("_db");
  const few = cells.some((row) => row.value_low === null);
  return (
    <Section
      title="Sensitivity map"
      note={`${NAMES[metric] ?? metric} where one layer alone has fewer bits, ${bucket === "all" ? "all steps" : `steps “${bucket}”`}: n = ${Math.max(0, ...cells.map((row) => number(row.n_images)))} images, ${Math.max(0, ...cells.map((row) => number(row.n_samples)))} samples, ${unique(cells.map((row) => text(row.mode))).join(", ")}. ${few ? "Below 8 images there is no interval." : "Hover for the 95 % interval over images."} Orange frames: the plan at the slider's budget.${by === "every layer" ? "" : ` ${layers.length} layers: a cell is the mean over those of a kind in a block, a frame the width next to the mean of their bits.`}`}
    >
      <div class="controls">
        <Select label="Metric" name="map" value={metric} choices={metrics.map((m) => [m, NAMES[m] ?? m] as [string, string])} />
        <Select label="Steps" name="bucket" value={bucket} choices={buckets} />
        <Select label="A row for" name="layers" value={by} choices={many ? ["block and kind", "every layer"] : []} />
        <Chips label="Kinds of layers" name="kinds" choices={kinds} />
      </div>
      {by === "every layer" ? <Chart
        label="Sensitivity of each layer at each bit width"
        deps={[cells, picked]}
        least={520}
        plot={(width) => ({
          width: Math.min(width, 980),
          height: 60 + layers.length * (many ? 5 : 14),
          marginLeft: many ? 60 : margin(width),
          marginTop: 34,
          x: { domain: unique(cells.map((row) => number(row.bits))).sort((a, b) => a - b), label: "bits", axis: "top", tickSize: 0 },
          y: { domain: layers, label: null, tickSize: 0, tickFormat: (layer: string) => tail(layer, margin(width) / 6.7), ...(many ? { axis: null } : {}) },
          color: { scheme: "viridis", type: db ? "linear" : "log", label: NAMES[metric] ?? metric, ...LEGEND, tickFormat: (v: number) => (db || Math.abs(Math.log10(v) - Math.round(Math.log10(v))) < 1e-9 ? shown(v, 2) : "") },
          marks: [
            Plot.cell(cells.filter((row) => db || number(row.value) > 0), { x: "bits", y: "layer", fill: "value", inset: many ? 0 : 0.5 }),
            Plot.cell(picked, { x: "bits", y: "layer", stroke: colour(1, dark), strokeWidth: many ? 1 : 2, fill: "none" }),
            Plot.tip(cells, Plot.pointer({ x: "bits", y: "layer", title: tip })),
          ],
        })}
      /> : <Grouped cells={cells} picked={picked} db={db} name={NAMES[metric] ?? metric} />}
    </Section>
  );
}

const margin = (width: number): number => Math.min(300, width * 0.4); // pixels for the names of layers

/** The end of a name, which tells layers apart, of at most so many letters. */
const tail = (name: string, letters: number): string => (name.length <= letters ? name : `…${name.slice(1 - Math.floor(letters))}`);

/** The map of a network of many layers: a row per block, a panel per kind. */
function Grouped({ cells, picked, db, name }: { cells: Row[]; picked: { layer: string; bits: number }[]; db: boolean; name: string }) {
  const dark = useDark();
  const mean = (values: number[]) => values.reduce((a, b) => a + b, 0) / values.length;
  const grouped = [...groups(cells, (row) => `${row.kind}\n${row.depth}\n${row.bits}`).values()].map((group) => ({
    kind: text(group[0]!.kind),
    depth: number(group[0]!.depth),
    bits: number(group[0]!.bits),
    value: mean(group.map((row) => number(row.value))),
    layers: group.length,
  }));
  const widths = unique(grouped.map((g) => g.bits)).sort((a, b) => a - b);
  const chosen = new Map(picked.map((p) => [p.layer, p.bits]));
  const frames = [...groups(cells.filter((row) => row.bits === widths[0] && chosen.has(text(row.layer))), (row) => `${row.kind}\n${row.depth}`).values()].map((group) => {
    const bits = mean(group.map((row) => chosen.get(text(row.layer))!));
    return { kind: text(group[0]!.kind), depth: number(group[0]!.depth), bits: widths.toSorted((a, b) => Math.abs(a - bits) - Math.abs(b - bits))[0]! };
  });
  const blocks = unique(grouped.map((g) => g.depth)).sort((a, b) => a - b);
  return (
    <Chart
      label="Sensitivity by block, kind of layer and bit width"
      deps={[cells, picked]}
      least={640}
      plot={() => ({
        height: 90 + blocks.length * 10,
        marginTop: 46,
        marginLeft: 44,
        fx: { label: null, padding: 0.06 },
        x: { domain: widths, label: "bits", axis: "top", tickSize: 0 },
        y: { domain: blocks, label: "block, in network order", tickSize: 0, tickFormat: (d: number) => (d % 5 ? "" : String(d)) },
        color: { scheme: "viridis", type: db ? "linear" : "log", label: name, ...LEGEND, tickFormat: (v: number) => (db || Math.abs(Math.log10(v) - Math.round(Math.log10(v))) < 1e-9 ? shown(v, 2) : "") },
        marks: [
          Plot.cell(grouped.filter((g) => db || g.value > 0), { fx: "kind", x: "bits", y: "depth", fill: "value" }),
          Plot.cell(frames, { fx: "kind", x: "bits", y: "depth", stroke: colour(1, dark), strokeWidth: 1.5, fill: "none" }),
          Plot.tip(grouped, Plot.pointer({ fx: "kind", x: "bits", y: "depth", title: (g: (typeof grouped)[number]) => `${g.kind} of block ${g.depth}\n${g.bits} bit: ${shown(g.value)}\nmean of ${g.layers} layers` })),
        ],
      })}
    />
  );
}

const tip = (row: Row): string =>
  `${row.layer}\n${row.kind}, ${row.bits} bit: ${shown(row.value)}${row.value_low === null ? "" : ` (${shown(row.value_low)} to ${shown(row.value_high)})`}\n${shown(row.parameters)} weights`;
