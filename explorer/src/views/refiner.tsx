/** Refiner: from keys to a picture. Interpolated, refined, and the truth. */
import * as Plot from "@observablehq/plot";
import { groups, number, pictureNames, shown, table, text, unique } from "../data";
import * as fragment from "../fragment";
import { Chart, Compare, Missing, Picture, Problems, Section, Select, colour, useDark } from "../ui";

const KINDS = ["interpolated", "refined", "truth"];

export function Refiner() {
  const names = pictureNames("refine/");
  const curves = table("refine.training");
  const models = unique([...names.map((name) => name.split("/")[1]!), ...(curves?.column("model").map(text) ?? [])]);
  if (!models.length) return <Missing stages={["refine"]} what="No refiner has been trained yet." />;
  const model = fragment.chosen("model", models);
  const own = names.filter((name) => name.startsWith(`refine/${model}/`));
  const samples = [...groups(own.filter((name) => KINDS.includes(name.split("/").at(-1)!)), (name) => name.split("/").slice(2, -1).join("/")).keys()];
  const whole = own.filter((name) => name.endsWith("/whole"));
  return (
    <>
      <Problems stages={["refine"]} />
      {models.length > 1 && (
        <div class="controls">
          <Select label="Model" name="model" value={model} choices={models} />
        </div>
      )}
      {samples.length > 0 ? <Samples model={model} samples={samples} /> : <Missing stages={["refine"]} what="The page has no samples of this refiner." />}
      <Errors model={model} />
      <Training model={model} />
      {whole.map((name) => (
        <Section key={name} title={name.split("/").slice(2, -1).join(" ")} note="As the stage refine drew it; the file beside the study has it in full size.">
          <Picture name={name} class="whole" alt={name} />
        </Section>
      ))}
    </>
  );
}

function Samples({ model, samples }: { model: string; samples: string[] }) {
  // "level 2, sample 3" are two choices; other names are one.
  const levels = unique(samples.map((name) => (name.includes(",") ? name.split(",")[0]!.trim() : "")));
  const level = fragment.chosen("level", levels);
  const here = samples.filter((name) => (name.includes(",") ? name.split(",")[0]!.trim() : "") === level);
  const sample = fragment.chosen("sample", here);
  const against = fragment.chosen("against", ["interpolated", "truth"]);
  const at = (name: string, kind: string) => `refine/${model}/${name}/${kind}`;
  return (
    <Section
      title="Interpolated, refined, truth"
      note={`The refiner is given some parts of a picture and its text. Left: what a plain interpolation makes of the parts; middle: what the refiner makes of them in one step; right: the picture that they were taken from. ${samples.length} samples in this page; how far they stand for others is in the errors below.`}
    >
      <div class="controls">
        <Select label="Corruption" name="level" value={level} choices={levels} also={{ sample: undefined }} />
        <Select label="Sample" name="sample" value={sample} choices={here.map((name) => [name, name.split(",").at(-1)!.trim()] as [string, string])} />
        <Select label="Compare with" name="against" value={against} choices={["interpolated", "truth"]} />
      </div>
      <div class="beside">
        <Compare key={`${sample}/${against}`} first={at(sample, against)} second={at(sample, "refined")} names={[against, "refined"]} />
        <div class="triples">
          {here.slice(0, 24).map((name) => (
            <button key={name} type="button" class={`triple ${name === sample ? "on" : ""}`} aria-pressed={name === sample} onClick={() => fragment.set({ sample: name })}>
              {KINDS.map((kind) => (
                <Picture key={kind} name={at(name, kind)} alt={`${name}: ${kind}`} caption={kind} />
              ))}
            </button>
          ))}
        </div>
      </div>
    </Section>
  );
}

function Errors({ model }: { model: string }) {
  const dark = useDark();
  const rows = (table("refine.diagnostics")?.where({ model }) ?? []).filter((row) => /^(mse|error|psnr)/.test(text(row.metric)) && row.value !== null);
  const metrics = [...groups(rows, (row) => text(row.metric))].filter(([, group]) => group.length > 1);
  const drawn = metrics.flatMap(([, group]) => group).filter((row) => /mse_(corrupted|refined|interpolated)$/.test(text(row.metric)));
  if (!drawn.length) return null;
  const names = unique(drawn.map((row) => text(row.metric)));
  return (
    <Section title="Error by how much is missing" note="Mean squared error of the latents to the truth, by level of corruption (more to the right); the table refine.diagnostics says on how many samples. Lower is better; where refined is above, plain interpolation is nearer.">
      <Chart
        label="Error by corruption level"
        deps={[drawn]}
        plot={() => ({
          height: 240,
          marginLeft: 50,
          x: { type: "point", domain: unique(drawn.map((row) => text(row.group))), label: null },
          y: { label: "mean squared error", grid: true, zero: true },
          color: { domain: names, range: names.map((_, i) => colour(i === 0 ? 4 : i === 1 ? 0 : i, dark)), legend: true, tickFormat: (name: string) => name.replace("mse_", "") },
          marks: [
            Plot.lineY(drawn, { x: "group", y: "value", stroke: "metric", strokeWidth: 2 }),
            Plot.dot(drawn, { x: "group", y: "value", fill: "metric", r: 4 }),
            Plot.tip(drawn, Plot.pointer({ x: "group", y: "value", title: (row) => `${row.metric}\n${shown(row.value)}` })),
          ],
        })}
      />
    </Section>
  );
}

function Training({ model }: { model: string }) {
  const dark = useDark();
  const rows = table("refine.training")?.where({ model }) ?? [];
  const wanted = rows.filter((row) => /^(loss|mse_refined|interp\/mse_all)$/.test(text(row.metric)));
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
