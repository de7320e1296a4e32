/** Refiner: from a few known parts to a picture. Given, interpolated, refined, and the truth. */
import * as Plot from "@observablehq/plot";
import { groups, number, pictureNames, shown, study, table, text, unique, type Row } from "../data";
import * as fragment from "../fragment";
import { Chart, Compare, Missing, Picture, Problems, Range, Section, Select, Words, colour, useDark } from "../ui";

const GIVEN = "keys"; // what the refiner is shown
const KINDS = [GIVEN, "interpolated", "refined", "truth"];
const MOST = 24; // samples that are shown at once
/** Colours and meanings of what is compared; the others are controls. */
const METHODS: Record<string, { tint: number; means: string }> = {
  refined: { tint: 0, means: "what the refiner makes, used as it was trained to be" },
  interpolated: { tint: 4, means: "the known parts, filled in without a network" },
  "one step": { tint: 5, means: "the same refiner, used once" },
  "coarse to fine": { tint: 5, means: "the same refiner, used level by level" },
  "no text": { tint: 2, means: "the refiner without the text: what the known parts carry" },
  "another text": { tint: 3, means: "the refiner with the text of another sample" },
  "generator, keys pasted in": { tint: 1, means: "what the generator makes of the text alone, the known parts pasted over it" },
};
const MEASURES: Record<string, string> = {
  missing_error: "error of missing parts (mean squared, in variances): lower is better",
  key_error: "error of known parts (mean squared, in variances): lower is better",
  psnr_db: "PSNR of the picture, dB: higher is better",
  feature_distance: "distance of image features to the truth: lower is better",
  oracle_all: "share with every attribute right: higher is better",
  oracle_frames: "share of inner frames with every attribute right: higher is better",
  kid: "KID, kernel distance of features: lower is better",
  fid: "FID, Fréchet distance of features: lower is better",
  warp_error: "warp error, grey levels: lower is better",
  flicker: "flicker, grey levels: lower is better",
  in_walls: "share of points in a wall: lower is better",
  off_walls: "share of paths without a point in a wall: higher is better",
};

export function Refiner() {
  const gallery = table("refine.gallery");
  const names = pictureNames("refine/");
  const tables = [gallery, table("refine.evaluation"), table("refine.training")];
  const models = unique([...tables.flatMap((t) => t?.column("model").map(text) ?? []), ...names.map((name) => name.split("/")[1]!)]);
  if (!models.length) return <Missing stages={["refine"]} what="No refiner has been trained yet." />;
  const model = fragment.chosen("model", models);
  const rows = (gallery?.where({ model }) ?? []).filter((row) => row.method !== "film");
  const sheets = names.filter((name) => name.startsWith(`refine/${model}/`) && name.endsWith("/whole") && !(rows.length && name.endsWith("/overview/whole")));
  return (
    <>
      <Problems stages={["refine"]} />
      <div class="controls">
        <Select label="Refiner" name="model" value={model} choices={models} also={{ level: undefined, sample: undefined }} />
      </div>
      {rows.length > 0 ? <Samples model={model} rows={rows} /> : <Missing stages={["refine"]} what={`The page has no samples of the refiner ${model}.`} />}
      <Evaluation model={model} />
      <Training model={model} />
      {sheets.map((name) => (
        <Sheet key={name} model={model} name={name} />
      ))}
    </>
  );
}

/** How much is known at a level, as `8 of 64 known`. */
function known(rows: Row[], level: number): string {
  const row = rows.find((r) => r.level === level && r.method === GIVEN) ?? rows.find((r) => r.level === level);
  const told = text(row?.label).match(/level \d+: (.+)$/)?.[1];
  return told ?? `${row?.keys} known`;
}

const named = (method: string): string => (method === GIVEN ? "given" : method);

function Samples({ model, rows }: { model: string; rows: Row[] }) {
  const levels = unique(rows.map((row) => number(row.level))).sort((a, b) => a - b);
  const level = Number(fragment.chosen("level", levels.map(String), String(levels.at(-1))));
  const here = rows.filter((row) => row.level === level);
  const keys = unique(here.map((row) => text(row.key)));
  const sample = fragment.chosen("sample", keys);
  const methods = unique(rows.map((row) => text(row.method)));
  const others = methods.filter((method) => method !== "refined");
  const against = fragment.chosen("against", others, others.includes("interpolated") ? "interpolated" : others[0]);
  const at = (key: string, method: string, of = level) => `refine/${model}/${of}/${key}/${method}`;
  const prompt = (key: string) => text(here.find((row) => row.key === key)?.prompt);
  const columns = [...KINDS.slice(0, -1), ...methods.filter((method) => !KINDS.includes(method)), "truth"].filter((method) => methods.includes(method));
  return (
    <>
      <Section
        title="Interpolated, refined, truth"
        note={`The refiner is given some parts of a held-out sample (grey: what is missing) and its text. Then what plain interpolation makes of them, what the refiner does, and what they were taken from. ${keys.length} samples in this page; what holds for all is in the numbers below.`}
      >
        <div class="controls">
          <Range label="Known" name="level" value={levels.indexOf(level)} max={levels.length - 1} told={`level ${level}: ${known(rows, level)}`} onInput={(place) => fragment.set({ level: String(levels[place]) })} />
          <Select label="Sample" name="sample" value={sample} choices={keys.map((key) => [key, prompt(key) || key] as [string, string])} />
          <Select label="Compare with" name="against" value={against} choices={others.map((method) => [method, named(method)] as [string, string])} />
        </div>
        <div class="beside">
          <div>
            <Compare key={`${level}/${sample}/${against}`} first={at(sample, against)} second={at(sample, "refined")} names={[named(against), "refined"]} />
            <p class="caption">
              <Words text={prompt(sample)} most={160} />
            </p>
          </div>
          <div class="triples">
            {keys.slice(0, MOST).map((key) => (
              <button key={key} type="button" class={`triple ${key === sample ? "on" : ""}`} aria-pressed={key === sample} onClick={() => fragment.set({ sample: key })}>
                {KINDS.filter((kind) => methods.includes(kind)).map((kind) => (
                  <Picture key={kind} name={at(key, kind)} alt={`${prompt(key) || key}: ${named(kind)}`} caption={named(kind)} />
                ))}
              </button>
            ))}
          </div>
        </div>
      </Section>
      <Section title="This sample at every level" note={columns.filter((method) => method in METHODS).map((method) => `${method}: ${METHODS[method]!.means}`).join("; ") + ". Press a picture to compare it above."}>
        <div class="scroll" tabIndex={0} role="group" aria-label="The sample at every level">
          <table class="levels">
            <thead>
              <tr>
                <th>known</th>
                {columns.map((method) => (
                  <th key={method}>{named(method)}</th>
                ))}
              </tr>
            </thead>
            <tbody>
              {levels.map((l) => (
                <tr key={l} class={l === level ? "on" : ""}>
                  <th scope="row">
                    level {l}
                    <br />
                    {known(rows, l)}
                  </th>
                  {columns.map((method) => (
                    <td key={method}>
                      <button type="button" aria-pressed={l === level && method === against} aria-label={`Compare ${named(method)} at level ${l}`} onClick={() => fragment.set({ level: String(l), ...(method === "refined" ? {} : { against: method }) })}>
                        <Picture name={at(sample, method, l)} alt={`${named(method)}, level ${l}`} />
                      </button>
                    </td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </Section>
    </>
  );
}

function Evaluation({ model }: { model: string }) {
  const dark = useDark();
  const all = (table("refine.evaluation")?.where({ model }) ?? []).filter((row) => row.value !== null);
  if (!all.length) return null;
  const metrics = unique(all.map((row) => text(row.metric))).toSorted((a, b) => order(a) - order(b));
  const metric = fragment.chosen("error", metrics);
  const rows = all.filter((row) => row.metric === metric).toSorted((a, b) => number(a.level) - number(b.level));
  const methods = unique(rows.map((row) => text(row.method)));
  const tint = (method: string) => colour(METHODS[method]?.tint ?? 6, dark);
  const control = (method: string) => !["interpolated", "refined"].includes(method);
  const few = rows.some((row) => row.low === null);
  const gains = rows.filter((row) => row.method === "refined" && row.gain !== null);
  const counts = (name: string) => unique(rows.map((row) => number(row[name]))).join(" or ");
  const knownAt = (level: number) => number(rows.find((row) => row.level === level)?.keys);
  const bars = few ? "Where units are fewer than 8, or a measure is of sets, there is no interval." : "Bars: 95 % intervals over units.";
  return (
    <Section
      title="Quality by how much is known"
      note={`n = ${counts("samples")} held-out samples (${counts("units")} units that were drawn), by level: fewer parts are known to the right. ${bars} Dashed: controls. ${
        gains.length ? `Refined is better than the interpolation of the same samples by ${gains.map((row) => `${shown(row.gain)}${row.gain_low === null ? "" : ` (${shown(row.gain_low)} to ${shown(row.gain_high)})`}`).join(", ")} at levels ${gains.map((row) => row.level).join(", ")}; a gain below 0 is a loss.` : ""
      }`}
    >
      <div class="controls">
        <Select label="Measure" name="error" value={metric} choices={metrics.map((m) => [m, MEASURES[m] ?? m] as [string, string])} />
      </div>
      <Chart
        label={`${metric} by level and method`}
        deps={[rows]}
        plot={(width) => ({
          width: Math.min(width, 860),
          height: 270,
          marginLeft: 54,
          marginBottom: 36,
          x: { type: "point", domain: unique(rows.map((row) => number(row.level))), label: "level (parts known)", padding: 0.3, tickFormat: (level: number) => `${level} (${knownAt(level)})` },
          y: { label: metric, grid: true, nice: true, ticks: 5, tickFormat: (v: number) => shown(v, 2) },
          color: { domain: methods, range: methods.map(tint), legend: true },
          marks: methods.flatMap((method, i) => {
            const own = rows.filter((row) => row.method === method);
            const dx = (i - (methods.length - 1) / 2) * 5; // so that no interval hides another one
            return [
              Plot.ruleX(own.filter((row) => row.low !== null), { x: "level", y1: "low", y2: "high", stroke: tint(method), strokeWidth: 2, strokeOpacity: 0.5, dx }),
              Plot.lineY(own, { x: "level", y: "value", stroke: tint(method), strokeWidth: control(method) ? 1.25 : 2, strokeDasharray: control(method) ? "4,3" : "none", dx }),
              Plot.dot(own, { x: "level", y: "value", fill: tint(method), r: control(method) ? 3 : 4.5, dx }),
            ];
          }).concat(
            Plot.tip(rows, Plot.pointer({ x: "level", y: "value", title: (row: Row) => `${row.method}, level ${row.level}: ${row.keys} known\n${shown(row.value)}${row.low === null ? "" : ` (${shown(row.low)} to ${shown(row.high)})`}\nn = ${row.samples} samples` })) as never,
          ),
        })}
      />
    </Section>
  );
}

const order = (metric: string): number => (metric in MEASURES ? Object.keys(MEASURES).indexOf(metric) : 99);

/** The file of weights that a refiner goes on from, as the study's config says. */
function start(model: string): string {
  const entry = (study.config.refiners as Record<string, { start?: string }> | undefined)?.[model];
  return entry?.start ?? "";
}

function Training({ model }: { model: string }) {
  const dark = useDark();
  const rows = table("refine.training")?.where({ model }) ?? [];
  const wanted = rows.filter((row) => /^(loss|(interp|refined)\/mse_missing)$/.test(text(row.metric)));
  const panels = [...groups(wanted, (row) => text(row.network))];
  if (!panels.length) return null;
  const tints: Record<string, number> = { loss: 6, "interp/mse_missing": 4, "refined/mse_missing": 0 };
  const from = start(model);
  return (
    <Section
      title="Training"
      note={`One run of one seed: no interval.${from ? ` The refiner goes on from ${from}: its training before these steps is not in this study.` : ""}${wanted.some((row) => row.metric === "interp/mse_missing") ? " interp/mse_missing and refined/mse_missing: mean squared error of missing parts, interpolated and refined, of the batch." : ""}`}
    >
      <div class="multiples">
        {panels.map(([network, group]) => {
          const metrics = unique(group.map((row) => text(row.metric)));
          return (
            <figure key={network} class="multiple">
              <figcaption>
                <b>{network}</b>
                <span>{Math.max(...group.map((row) => number(row.step)))} steps</span>
              </figcaption>
              <Chart
                label={`Training of ${network}`}
                deps={[group]}
                plot={() => ({
                  height: 170,
                  marginLeft: 44,
                  x: { label: "step", tickFormat: (v: number) => (Number.isInteger(v) ? shown(v) : "") },
                  y: { label: null, grid: true, zero: true },
                  color: { legend: true, domain: metrics, range: metrics.map((m) => colour(tints[m] ?? 5, dark)) },
                  marks: [Plot.lineY(group.toSorted((a, b) => number(a.step) - number(b.step)), { x: "step", y: "value", stroke: "metric" })],
                })}
              />
            </figure>
          );
        })}
      </div>
    </Section>
  );
}

const SHEETS: Record<string, { title: string; note: string }> = {
  overview: { title: "Samples at every level", note: "As the stage refine drew it: given, interpolated, refined, and the truth." },
  exemplars: { title: "What the pseudo-classes hold", note: "Of each class the training samples nearest to its centroid, nearest first. The refiner is told the class of what it is given." },
};

/** A sheet of pictures that the stage drew, or what became of a storyboard. */
function Sheet({ model, name }: { model: string; name: string }) {
  const what = name.split("/").at(-2)!;
  const { title, note } = SHEETS[what] ?? { title: what, note: "A storyboard of the study, completed: interpolated, refined and, where it is known, true." };
  const file = `refine/${model}/${what}.png`;
  return (
    <Section title={title} note={what in SHEETS ? <>{note} <a href={file}>{file}</a></> : note}>
      <div class="sheet" tabIndex={0} role="group" aria-label={title}>
        <Picture name={name} class="whole" alt={title} />
      </div>
    </Section>
  );
}
