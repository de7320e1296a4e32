/** Refiner: from a few known parts to a picture. Given, interpolated, refined, and the truth. */
import * as Plot from "@observablehq/plot";
import { groups, number, pictureNames, shown, table, text, unique, type Row } from "../data";
import * as fragment from "../fragment";
import { Chart, Compare, Missing, Picture, Problems, Section, Select, Words, colour, useDark } from "../ui";

const KINDS = ["keys", "interpolated", "refined", "truth"];
const MOST = 24; // samples that are shown at once

export function Refiner() {
  const gallery = table("refine.gallery");
  const names = pictureNames("refine/");
  const tables = [gallery, table("refine.evaluation"), table("refine.training")];
  const models = unique([...tables.flatMap((t) => t?.column("model").map(text) ?? []), ...names.map((name) => name.split("/")[1]!)]);
  if (!models.length) return <Missing stages={["refine"]} what="No refiner has been trained yet." />;
  const model = fragment.chosen("model", models);
  const rows = gallery?.where({ model }) ?? [];
  const whole = names.filter((name) => name.startsWith(`refine/${model}/`) && name.endsWith("/whole"));
  return (
    <>
      <Problems stages={["refine"]} />
      <div class="controls">
        <Select label="Refiner" name="model" value={model} choices={models} also={{ level: undefined, sample: undefined }} />
      </div>
      {rows.length > 0 ? <Samples model={model} rows={rows} /> : <Missing stages={["refine"]} what={`The page has no samples of the refiner ${model}.`} />}
      <Evaluation model={model} />
      <Training model={model} />
      {whole.map((name) => (
        <Section key={name} title={name.split("/").at(-2)!} note="As the stage refine drew it.">
          <Picture name={name} class="whole" alt={name.split("/").at(-2)!} />
        </Section>
      ))}
    </>
  );
}

function Samples({ model, rows }: { model: string; rows: Row[] }) {
  const levels = unique(rows.map((row) => number(row.level))).sort((a, b) => a - b);
  const level = fragment.chosen("level", levels.map(String));
  const here = rows.filter((row) => String(row.level) === level);
  const keys = unique(here.map((row) => text(row.key)));
  const sample = fragment.chosen("sample", keys);
  const methods = unique(here.map((row) => text(row.method))).filter((method) => method !== "film");
  const others = methods.filter((method) => method !== "refined");
  const against = fragment.chosen("against", others, others.includes("interpolated") ? "interpolated" : others[0]);
  const at = (key: string, method: string) => `refine/${model}/${level}/${key}/${method}`;
  const told = here.find((row) => row.key === sample);
  const known = (l: number) => rows.find((row) => row.level === l)?.keys;
  return (
    <Section
      title="Interpolated, refined, truth"
      note={`The refiner is given some parts of a held-out sample (grey: what is missing) and its text. Then what plain interpolation makes of them, what the refiner does, and what they were taken from. ${keys.length} samples in this page; what holds for all is in the numbers below.`}
    >
      <div class="controls">
        <Select label="Known" name="level" value={level} choices={levels.map((l) => [String(l), `level ${l}: ${known(l)} parts known`] as [string, string])} />
        <Select label="Sample" name="sample" value={sample} choices={keys.map((key) => [key, text(here.find((row) => row.key === key)?.prompt) || key] as [string, string])} />
        <Select label="Compare with" name="against" value={against} choices={others} />
      </div>
      <div class="beside">
        <div>
          <Compare key={`${level}/${sample}/${against}`} first={at(sample, against)} second={at(sample, "refined")} names={[against, "refined"]} />
          <p class="caption">
            <Words text={text(told?.prompt)} most={160} />
          </p>
        </div>
        <div class="triples">
          {keys.slice(0, MOST).map((key) => (
            <button key={key} type="button" class={`triple ${key === sample ? "on" : ""}`} aria-pressed={key === sample} onClick={() => fragment.set({ sample: key })}>
              {KINDS.filter((kind) => methods.includes(kind)).map((kind) => (
                <Picture key={kind} name={at(key, kind)} alt={`${key}: ${kind}`} caption={kind} />
              ))}
            </button>
          ))}
        </div>
      </div>
    </Section>
  );
}

function Evaluation({ model }: { model: string }) {
  const dark = useDark();
  const all = (table("refine.evaluation")?.where({ model }) ?? []).filter((row) => row.value !== null);
  if (!all.length) return null;
  const metrics = unique(all.map((row) => text(row.metric)));
  const metric = fragment.chosen("error", metrics);
  const rows = all.filter((row) => row.metric === metric).toSorted((a, b) => number(a.level) - number(b.level));
  const methods = unique(rows.map((row) => text(row.method)));
  const few = rows.some((row) => row.low === null);
  const gains = rows.filter((row) => row.method === "refined" && row.gain !== null);
  const counts = (name: string) => unique(rows.map((row) => number(row[name]))).join(" or ");
  return (
    <Section
      title="Quality by how much is known"
      note={`${metric} on n = ${counts("samples")} held-out samples (${counts("units")} units that were drawn), by level: fewer parts are known to the right. ${few ? "Below 8 units there is no interval." : "Bars: 95 % intervals over units."} ${
        gains.length ? `Refined is better than the interpolation of the same samples by ${gains.map((row) => `${shown(row.gain)}${row.gain_low === null ? "" : ` (${shown(row.gain_low)} to ${shown(row.gain_high)})`}`).join(", ")} at levels ${gains.map((row) => row.level).join(", ")}; a gain below 0 is a loss.` : ""
      }`}
    >
      <div class="controls">
        <Select label="Measure" name="error" value={metric} choices={metrics} />
      </div>
      <Chart
        label={`${metric} by level and method`}
        deps={[rows]}
        plot={(width) => ({
          width: Math.min(width, 860),
          height: 260,
          marginLeft: 54,
          marginBottom: 36,
          x: { type: "point", domain: unique(rows.map((row) => number(row.level))), label: "level", padding: 0.3 },
          y: { label: metric, grid: true, nice: true, ticks: 5, tickFormat: (v: number) => shown(v, 2) },
          color: { domain: methods, range: methods.map((_, i) => colour([4, 0, 2, 3, 1][i] ?? i, dark)), legend: true },
          marks: [
            Plot.ruleX(rows.filter((row) => row.low !== null), { x: "level", y1: "low", y2: "high", stroke: "method", strokeWidth: 2, strokeOpacity: 0.5 }),
            Plot.lineY(rows, { x: "level", y: "value", stroke: "method", strokeWidth: 1.75 }),
            Plot.dot(rows, { x: "level", y: "value", fill: "method", r: 4 }),
            Plot.tip(rows, Plot.pointer({ x: "level", y: "value", title: (row: Row) => `${row.method}, level ${row.level}\n${shown(row.value)}${row.low === null ? "" : ` (${shown(row.low)} to ${shown(row.high)})`}\nn = ${row.samples} samples` })),
          ],
        })}
      />
    </Section>
  );
}

function Training({ model }: { model: string }) {
  const dark = useDark();
  const rows = table("refine.training")?.where({ model }) ?? [];
  const wanted = rows.filter((row) => /^(loss|(interp|refined)\/mse_missing)$/.test(text(row.metric)));
  const panels = [...groups(wanted, (row) => text(row.network))];
  if (!panels.length) return null;
  return (
    <Section title="Training" note="One run of one seed: no interval.">
      <div class="multiples">
        {panels.map(([network, group]) => (
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
                x: { label: "step" },
                y: { label: null, grid: true, zero: true },
                color: { legend: true, domain: unique(group.map((r) => text(r.metric))), range: [colour(0, dark), colour(4, dark), colour(1, dark)] },
                marks: [Plot.lineY(group.toSorted((a, b) => number(a.step) - number(b.step)), { x: "step", y: "value", stroke: "metric" })],
              })}
            />
          </figure>
        ))}
      </div>
    </Section>
  );
}
