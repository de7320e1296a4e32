/** Benchmark: what each scheme costs and gives, with its pictures. */
import * as Plot from "@observablehq/plot";
import { number, pictureNames, shown, size, study, table, text, unique, type Row } from "../data";
import * as fragment from "../fragment";
import { Chart, Chips, Compare, Missing, Picture, Problems, Section, Select, colour, hidden, joined, pixels, useDark } from "../ui";

const SIZES: Record<string, string> = {
  nominal: "nominal size / MB",
  stored: "size in memory / MB",
  peak: "steady peak memory / MB",
  latency: "latency of the smallest batch / ms",
};
const SYMBOLS = ["circle", "square", "triangle", "diamond", "star", "wye", "cross"] as const;

export interface Point {
  model: string;
  hardware: string;
  scheme: string;
  compile: string;
  kind: string;
  run: string;
  x: number;
  y: number;
  low: number | null;
  high: number | null;
  n: number;
  simulated: boolean;
  noisy: string;
  front: boolean;
}

const key = (row: Row): string => [row.model, row.hardware, row.scheme, row.compile].join("\n");

/** Each run with a size or time and the value of a metric. */
function pointsOf(axis: string, metric: string): Point[] {
  const quality = new Map((table("benchmark.quality")?.where({ metric }) ?? []).map((row) => [key(row), row]));
  const timing = new Map<string, Row>();
  for (const row of table("benchmark.timing")?.all() ?? []) {
    const old = timing.get(key(row));
    if (!old || number(row.batch) < number(old.batch)) timing.set(key(row), row);
  }
  return (table("benchmark")?.all() ?? []).flatMap((row) => {
    const [judged, timed] = [quality.get(key(row)), timing.get(key(row))];
    const x = {
      nominal: number(row.nominal_bytes) / 1e6,
      stored: row.simulated ? NaN : number(row.stored_bytes) / 1e6,
      peak: row.simulated ? NaN : number(timed?.steady_peak_bytes) / 1e6,
      latency: number(timed?.latency_median_ms),
    }[axis]!;
    if (!judged || judged.value === null || !Number.isFinite(x)) return [];
    return [
      {
        model: text(row.model),
        hardware: text(row.hardware),
        scheme: text(row.scheme),
        compile: text(row.compile),
        kind: text(row.kind),
        run: `${row.scheme}-${row.compile}`,
        x,
        y: number(judged.value),
        low: judged.low === null ? null : number(judged.low),
        high: judged.high === null ? null : number(judged.high),
        n: number(judged.n_prompts),
        simulated: row.simulated === true,
        noisy: axis === "latency" && timed?.verdict === "noisy" ? text(timed.noisy_because) || "noisy" : "",
        front: false,
      },
    ];
  });
}

/** Mark the points that no quiet other one is left of and better than. */
function withFront(points: Point[], more: boolean): Point[] {
  let best = more ? -Infinity : Infinity;
  const sorted = points.toSorted((a, b) => a.x - b.x || (more ? b.y - a.y : a.y - b.y));
  return sorted.map((point) => {
    const front = !point.noisy && (more ? point.y > best : point.y < best);
    if (front) best = point.y;
    return { ...point, front };
  });
}

const HIGHER = new Set(["psnr_db", "ssim", "feature_cosine", "prompt_alignment", "inception_score", "precision", "recall"]);

export function Benchmark() {
  const runs = table("benchmark");
  const dark = useDark();
  if (!runs) return <Missing stages={["benchmark"]} what="No scheme has been measured yet." />;
  const rows = runs.all();
  const models = unique(rows.map((row) => text(row.model)));
  const hosts = unique(rows.map((row) => text(row.hardware)));
  const model = fragment.chosen("model", models);
  const host = fragment.chosen("host", hosts);
  const axis = fragment.chosen("axis", Object.keys(SIZES));
  const metrics = unique((table("benchmark.quality")?.all() ?? []).filter((row) => row.value !== null).map((row) => text(row.metric)));
  const metric = fragment.chosen("quality", metrics, metrics.includes("quality_loss") ? "quality_loss" : metrics[0]);
  const schemes = unique(rows.filter((row) => row.model === model).map((row) => text(row.scheme)));
  const states = unique(rows.map((row) => text(row.compile)));
  const [offSchemes, offStates] = [hidden("schemes"), hidden("compile")];
  const marks = ["simulated", "noisy"];
  const offMarks = hidden("marks");
  const tints = schemes.map((_, i) => colour(i, dark));
  const points = withFront(
    pointsOf(axis, metric).filter(
      (p) =>
        p.model === model &&
        p.hardware === host &&
        !offSchemes.has(p.scheme) &&
        !offStates.has(p.compile) &&
        !(p.simulated && offMarks.has("simulated")) &&
        !(p.noisy && offMarks.has("noisy")),
    ),
    HIGHER.has(metric),
  );
  const picked = fragment.chosen("scheme", unique(points.map((p) => p.run)), (points.find((p) => p.kind.startsWith("plan")) ?? points.findLast((p) => p.scheme !== "base"))?.run);
  return (
    <>
      <Problems stages={["benchmark"]} />
      <Section
        title="What a scheme costs and what it gives"
        note={<Note points={points} metric={metric} axis={axis} />}
      >
        <div class="controls">
          <Select label="Model" name="model" value={model} choices={models} also={{ scheme: undefined }} />
          <Select label="Machine" name="host" value={host} choices={hosts} />
          <Select label="Across" name="axis" value={axis} choices={Object.entries(SIZES)} />
          <Select label="Up" name="quality" value={metric} choices={metrics} />
        </div>
        <div class="controls">
          <Chips label="Schemes" name="schemes" choices={schemes} dots={tints} />
          <Chips label="Compiled" name="compile" choices={states} />
          <Chips label="Shown" name="marks" choices={marks} />
        </div>
        <Pareto points={points} metric={metric} axis={axis} picked={picked} schemes={schemes} tints={tints} states={states} />
      </Section>
      <Pictures model={model} host={host} run={picked} points={points} />
      <Runs rows={rows.filter((row) => row.model === model && row.hardware === host)} />
    </>
  );
}

function Note({ points, metric, axis }: { points: Point[]; metric: string; axis: string }) {
  const n = unique(points.map((p) => p.n));
  const few = points.some((p) => p.low === null);
  const noisy = points.filter((p) => p.noisy).length;
  return (
    <>
      {points.length} runs; {metric} is a mean over n = {n.join(" or ")} prompts, {few ? "too few (below 8) or a metric of sets: no interval" : "bars are 95 % intervals over prompts"}. Hollow: the bits are only
      simulated{axis === "stored" || axis === "peak" ? ", so they are not on this axis" : ""}. {noisy > 0 && `Crossed out: ${noisy} timings were noisy; no verdict, and not on the front. `}The line is the front: nothing smaller is better. {metric === "quality_loss" && "A loss of 0 stands at 1e-5; the dashed line is the bound of the study. "} Press a point for its pictures.
    </>
  );
}

function Pareto({ points, metric, axis, picked, schemes, tints, states }: { points: Point[]; metric: string; axis: string; picked: string; schemes: string[]; tints: string[]; states: string[] }) {
  if (!points.length) return <p class="problem">No run has both {SIZES[axis]} and {metric} under these filters.</p>;
  const loss = metric === "quality_loss";
  const drawn = points.map((p) => ({ ...p, y: loss ? Math.max(p.y, 1e-5) : p.y, low: p.low === null ? null : loss ? Math.max(p.low, 1e-5) : p.low }));
  const bound = number((study.config.benchmark as { quality_bound?: number } | undefined)?.quality_bound ?? table("benchmark")?.all()[0]?.quality_bound);
  const named = drawn.filter((p) => p.front || p.run === picked || drawn.length < 12);
  const names = (width: number) => {
    const [across, up] = [pixels(drawn.map((p) => p.x), width - 150, axis !== "latency"), pixels(drawn.map((p) => p.y), Math.min(400, width * 0.45), loss)];
    return joined(named.map((p) => ({ x: p.x, y: p.y, text: p.scheme })), (l) => [across(l.x), up(l.y)]);
  };
  const tint = (p: Point) => tints[schemes.indexOf(p.scheme)] ?? "gray";
  return (
    <Chart
      label={`${metric} against ${SIZES[axis]}`}
      deps={[JSON.stringify(drawn), picked]}
      onPick={(p) => fragment.set({ scheme: (p as Point).run })}
      plot={(width) => ({
        height: Math.min(440, Math.max(300, width * 0.5)),
        marginLeft: 60,
        marginRight: 90,
        marginBottom: 40,
        inset: 12,
        x: { label: SIZES[axis], grid: true, type: axis === "latency" ? "linear" : "log", ticks: 6, tickFormat: (v: number) => shown(v, 2) },
        y: { label: metric, grid: true, type: loss ? "log" : "linear", ticks: 6, tickFormat: (v: number) => shown(v, 2) },
        symbol: { domain: states, range: states.map((_, i) => SYMBOLS[i % SYMBOLS.length]!), legend: states.length > 1 },
        marks: [
          ...(loss && Number.isFinite(bound) ? [Plot.ruleY([bound], { stroke: "currentColor", strokeOpacity: 0.55, strokeDasharray: "5,4" })] : []),
          Plot.line(drawn.filter((p) => p.front), { x: "x", y: "y", stroke: "currentColor", strokeOpacity: 0.35, curve: "linear" }),
          Plot.ruleX(drawn.filter((p) => p.low !== null), { x: "x", y1: "low", y2: "high", stroke: tint, strokeOpacity: 0.55, strokeWidth: 2 }),
          Plot.dot(drawn.filter((p) => p.run === picked), { x: "x", y: "y", r: 11, stroke: "currentColor", strokeWidth: 1.5 }),
          Plot.dot(drawn, { x: "x", y: "y", r: 6, symbol: "compile", stroke: tint, strokeWidth: 2, fill: (p: Point) => (p.simulated ? "var(--card)" : tint(p)), fillOpacity: (p: Point) => (p.noisy ? 0.25 : 1) }),
          Plot.text(drawn.filter((p) => p.noisy), { x: "x", y: "y", text: () => "✕", fill: "currentColor", fontSize: 13 }),
          Plot.text(names(width), { x: "x", y: "y", text: "text", textAnchor: "start", dx: 11, fill: "currentColor" }),
          Plot.tip(drawn, Plot.pointer({ x: "x", y: "y", title: tip(metric, axis) })),
        ],
      })}
    />
  );
}

const tip = (metric: string, axis: string) => (p: Point): string =>
  [
    `${p.scheme}, ${p.compile}`,
    `${metric} ${shown(p.y)}${p.low === null ? "" : ` (${shown(p.low)} to ${shown(p.high)})`}, n = ${p.n} prompts`,
    `${SIZES[axis]} ${shown(p.x)}`,
    p.simulated ? "simulated: stored in bytes" : "",
    p.noisy && `noisy: ${p.noisy}`,
  ]
    .filter(Boolean)
    .join("\n");

function Pictures({ model, host, run, points }: { model: string; host: string; run: string; points: Point[] }) {
  const start = `benchmark/${model}/${host}/`;
  const base = `${start}base-eager/`;
  const names = pictureNames(base).map((name) => name.slice(base.length));
  const prompt = fragment.chosen("prompt", names);
  const runs = unique(["base-eager", ...points.map((p) => p.run)]).filter((r) => pictureNames(`${start}${r}/`).length);
  if (!names.length)
    return (
      <Section title="The same picture under each scheme">
        <Missing stages={["benchmark"]} what="The page has no pictures of the benchmark: none was made, or they did not fit." />
      </Section>
    );
  const title = (name: string) => {
    const [seed, ...id] = name.split("/").toReversed();
    return `${id.toReversed().join("/")}, seed ${seed}`;
  };
  return (
    <Section title="The same picture under each scheme" note={`Same prompt, same seed, ${names.length} pictures of each scheme in this page. Drag the bar, or use the arrow keys on it.`}>
      <div class="controls">
        <Select label="Prompt" name="prompt" value={prompt} choices={names.map((name) => [name, title(name)] as [string, string])} />
      </div>
      <div class="beside">
        <Compare key={`${run}/${prompt}`} first={`${base}${prompt}`} second={`${start}${run}/${prompt}`} names={["base", run]} />
        <div class="tiles">
          {runs.map((other) => (
            <button key={other} type="button" class={other === run ? "on" : ""} aria-pressed={other === run} onClick={() => fragment.set({ scheme: other })}>
              <Picture name={`${start}${other}/${prompt}`} alt={`${title(prompt)} under ${other}`} caption={other.replace(/-eager$/, "")} />
            </button>
          ))}
        </div>
      </div>
    </Section>
  );
}

function Runs({ rows }: { rows: Row[] }) {
  const timing = table("benchmark.timing")?.all() ?? [];
  const bound = number(rows[0]?.quality_bound);
  const note = `Speed-up: of the base in the same compile state and batch, smallest batch. Quality: whether the loss stays within ${shown(100 * bound)} %, by its whole 95 % interval; undecided: the interval has the bound in it, or there are fewer than 8 prompts and none. What could not run says why.`;
  return (
    <Section title="Every run" note={note}>
      <div class="scroll" tabIndex={0} role="group" aria-label="Table of runs">
        <table>
          <thead>
            <tr>
              <th>scheme</th>
              <th>compiled</th>
              <th class="num">bits</th>
              <th class="num">nominal</th>
              <th class="num">in memory</th>
              <th class="num">latency</th>
              <th class="num">speed-up</th>
              <th>quality</th>
              <th>remarks</th>
            </tr>
          </thead>
          <tbody>
            {rows.map((row) => {
              const timed = timing.filter((t) => key(t) === key(row)).toSorted((a, b) => number(a.batch) - number(b.batch))[0];
              const noisy = timed?.verdict === "noisy";
              return (
                <tr key={key(row)} class={noisy ? "noisy" : ""}>
                  <td>{row.scheme}</td>
                  <td>{row.compile}</td>
                  <td class="num">{shown(row.mean_bits)}</td>
                  <td class="num">{size(number(row.nominal_bytes))}</td>
                  <td class="num">{row.simulated ? "simulated" : size(number(row.stored_bytes))}</td>
                  <td class="num">{timed?.latency_median_ms == null ? "–" : `${shown(timed.latency_median_ms)} ms`}</td>
                  <td class="num">
                    {shown(timed?.speedup)}
                    {timed?.speedup_low != null && <small> ({shown(timed.speedup_low, 2)}–{shown(timed.speedup_high, 2)})</small>}
                  </td>
                  <td>{text(row.quality_verdict)}</td>
                  <td>{[text(row.reason), noisy ? `noisy: ${text(timed?.noisy_because)}` : ""].filter(Boolean).join("; ")}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
    </Section>
  );
}
