/** Blocks: what each block of the network has made of the picture, at every step. */
import * as Plot from "@observablehq/plot";
import { useState } from "preact/hooks";
import { groups, isThere, number, picture, short, shown, study, table, text, type Capture, type Row } from "../data";
import * as fragment from "../fragment";
import { Chart, LEGEND, Missing, Picture, Problems, Range, Section, Select, Words, colour, useDark, type Keys } from "../ui";

interface Statistic {
  key: string;
  table: string;
  column: string;
  title: string;
  unit: string;
  most?: number; // value that stands for "equal"; scales end at the largest one below it
}

const STATISTICS: Statistic[] = [
  { key: "psnr", table: "blocks.decodability", column: "psnr_db", title: "Decoded estimate to final picture", unit: "PSNR, dB", most: 100 },
  { key: "feature", table: "blocks.decodability", column: "feature_cosine_distance", title: "Decoded estimate to final picture", unit: "feature cosine distance" },
  { key: "update", table: "blocks.residual", column: "relative_update", title: "What the block adds", unit: "update / input" },
  { key: "direction", table: "blocks.residual", column: "update_cosine", title: "Direction of what it adds", unit: "cosine of update and input" },
  { key: "cosine", table: "blocks.similarity", column: "cosine", title: "Tokens to those of the block before", unit: "cosine" },
  { key: "cka", table: "blocks.similarity", column: "linear_cka", title: "Geometry kept from the block before", unit: "linear CKA" },
  { key: "text", table: "blocks.text_drift", column: "cosine_distance", title: "Text tokens to those that came in", unit: "cosine distance" },
  { key: "rms", table: "capture_statistics", column: "rms", title: "Size of the activations", unit: "RMS" },
  { key: "absmax", table: "capture_statistics", column: "absmax", title: "Largest activation", unit: "|max|" },
];

const label = (c: Capture): string => `${c.model} · ${c.prompt_id} · seed ${c.seed}${c.set === "all" ? "" : ` · ${c.set}`}`;

/** Rows of a statistic for one generation: conditional half, image tokens (text tokens of text drift). */
function rowsOf(statistic: Statistic, capture: Capture): Row[] {
  const rows = table(statistic.table)?.where({ generation_id: capture.generation, prompt_id: capture.prompt_id }) ?? [];
  return rows.filter(
    (row) => (row.half ?? "cond") === "cond" && (row.stream ?? "img") === "img" && number(row.depth) >= 0 && row[statistic.column] !== null,
  );
}

/** What a scale spans, where a value stands for "equal" and would press all others together. */
function span(statistic: Statistic, rows: Row[]): { domain?: [number, number]; clamp?: boolean } {
  const below = rows.map((row) => number(row[statistic.column])).filter((value) => value < (statistic.most ?? Infinity));
  return statistic.most === undefined || below.length < 2 ? {} : { domain: [Math.min(...below), Math.max(...below)], clamp: true };
}

export function Blocks() {
  const captures = study.captures;
  const [hovered, setHovered] = useState("");
  const dark = useDark();
  const key = fragment.chosen("capture", captures.map((c) => c.generation));
  const capture = captures.find((c) => c.generation === key);
  if (!capture) return <Missing stages={["capture", "blocks"]} what="No generation has been captured yet." />;

  const { captured_steps: steps, blocks } = capture;
  const at = Math.round(fragment.chosenNumber("step", 0, steps.length - 1, Math.min(steps.length - 1, Math.floor(steps.length / 2))));
  const block = fragment.chosen("block", blocks, blocks.at(-1));
  const step = steps[at] ?? 0;
  const depth = blocks.indexOf(block);
  const go = (toStep: number, toBlock: number) =>
    fragment.set({
      step: String(Math.min(steps.length - 1, Math.max(0, toStep))),
      block: blocks[Math.min(blocks.length - 1, Math.max(0, toBlock))],
    });
  const onKeyDown = (event: Keys) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move || (event.target as HTMLElement).tagName === "INPUT") return;
    event.preventDefault();
    go(at + move[0]!, depth + move[1]!);
  };
  const sigma = capture.sigmas[step];
  const name = `capture/${capture.generation}`;
  return (
    <>
      <Problems stages={["capture", "blocks", "ablate"]} />
      <Section
        title="What each block has made of the picture"
        note={
          <>
            One generation of {captures.length} captured: “<Words text={capture.prompt} most={120} />”, {capture.steps} steps, seed {capture.seed}. Each
            small picture is the model's clean estimate read out after that block, as if it were the last
            {capture.decode === "x_prev" && " (decoded as the next noisy state)"}. One picture is no sample: the numbers below have no interval.
          </>
        }
      >
        <div class="controls">
          <Select label="Generation" name="capture" value={key} choices={captures.map((c) => [c.generation, label(c)] as [string, string])} also={{ block: undefined, step: undefined }} />
          <Range label="Step" name="step" value={at} max={steps.length - 1} told={`${step} of ${capture.steps}${sigma === undefined ? "" : `, noise σ ${shown(sigma)}`}`} />
          <Range label="Block" name="block" value={depth} max={blocks.length - 1} told={`${block}, ${depth + 1} of ${blocks.length}`} onInput={(value) => go(at, value)} />
        </div>
        <div class="stage">
          <Picture
            name={`${name}/${step}/${block}`}
            class="large"
            alt={`Estimate after ${block} at step ${step}`}
            caption={<>after <b>{block}</b>, step {step}</>}
            missing={capture.decode ? "not decoded" : "decoding was not asked for (should_decode_intermediates)"}
          />
          <Picture name={`${name}/final`} class="large" alt="Final picture" caption="final picture" />
          <Ablated capture={capture} block={hovered || block} />
        </div>
        <div class="strip" role="group" tabIndex={0} aria-label="Blocks at this step: arrow keys move between blocks and steps" onKeyDown={onKeyDown}>
          {blocks.map((other, i) => (
            <button
              key={other}
              type="button"
              tabIndex={-1}
              class={other === block ? "on" : ""}
              aria-pressed={other === block}
              title={other}
              onClick={() => go(at, i)}
              onMouseEnter={() => setHovered(other)}
              onMouseLeave={() => setHovered("")}
            >
              {picture(`${name}/${step}/${other}`) ? <img src={picture(`${name}/${step}/${other}`)} alt={`after ${other}`} loading="lazy" /> : <span class="none">–</span>}
              <span>{brief(other)}</span>
            </button>
          ))}
        </div>
      </Section>
      <StepMap capture={capture} step={step} block={block} go={go} />
      <Section
        title="In numbers, along the network"
        note={`Depth of the block to the right; the step above in colour, the other ${steps.length - 1} captured steps in grey. Image tokens under the prompt (not its negative half); n = 1 generation.`}
      >
        <div class="multiples">
          {STATISTICS.map((statistic, i) => (
            <Lines key={statistic.key} statistic={statistic} rows={rowsOf(statistic, capture)} step={step} depth={depth} tint={colour(i < 2 ? 2 : i < 4 ? 1 : i < 7 ? 0 : 3, dark)} onPick={(d) => go(at, d)} />
          ))}
        </div>
        {!isThere("blocks.residual") && <Missing stages={["blocks"]} what="Similarity, residual and decodability of the blocks are not there." />}
      </Section>
      <Ablations capture={capture} block={block} onHover={setHovered} go={(i) => go(at, i)} />
    </>
  );
}

/** `single_block_3` as `s3`. */
const brief = (block: string): string => block.replace(/^([a-z])[a-z]*_block_/, "$1").replace(/_/g, " ");

function Lines({ statistic, rows, step, depth, tint, onPick }: { statistic: Statistic; rows: Row[]; step: number; depth: number; tint: string; onPick: (depth: number) => void }) {
  if (!rows.length) return null;
  const here = rows.filter((row) => row.step === step);
  const now = here.find((row) => row.depth === depth);
  return (
    <figure class="multiple">
      <figcaption>
        <b>{statistic.title}</b>
        <span>
          {statistic.unit}: {shown(now?.[statistic.column])}
        </span>
      </figcaption>
      <Chart
        label={`${statistic.title} by depth, step ${step}`}
        deps={[rows, step, depth]}
        onPick={(row) => onPick(number((row as Row).depth))}
        plot={() => ({
          height: 130,
          marginLeft: 38,
          marginBottom: 22,
          x: { label: null, ticks: 5, tickFormat: "d" },
          y: { label: null, ticks: 4, grid: true, nice: true, ...span(statistic, rows) },
          marks: [
            Plot.ruleX([depth], { stroke: "currentColor", strokeOpacity: 0.35, strokeDasharray: "2,2" }),
            Plot.lineY(rows, { x: "depth", y: statistic.column, z: "step", stroke: "currentColor", strokeOpacity: 0.16 }),
            Plot.lineY(here, { x: "depth", y: statistic.column, stroke: tint, strokeWidth: 2 }),
            Plot.dot(here, { x: "depth", y: statistic.column, fill: tint, r: here.length > 40 ? 1.5 : 2.5 }),
            Plot.tip(here, Plot.pointerX({ x: "depth", y: statistic.column, title: (row: Row) => `${row.block}\n${shown(row[statistic.column])}` })),
          ],
        })}
      />
    </figure>
  );
}

function StepMap({ capture, step, block, go }: { capture: Capture; step: number; block: string; go: (step: number, block: number) => void }) {
  const there = STATISTICS.filter((statistic) => rowsOf(statistic, capture).length);
  if (!there.length) return null;
  const key = fragment.chosen("stat", there.map((s) => s.key));
  const statistic = there.find((s) => s.key === key)!;
  const rows = rowsOf(statistic, capture);
  const { captured_steps: steps, blocks } = capture;
  return (
    <Section title="Step by block" note={`${statistic.title} (${statistic.unit}) of this generation; press a cell to go there.${statistic.most === undefined ? "" : ` ${statistic.most} means equal; the colours end at the largest value below it.`}`}>
      <div class="controls">
        <Select label="Colour" name="stat" value={key} choices={there.map((s) => [s.key, `${s.title}: ${s.unit}`] as [string, string])} />
      </div>
      <Chart
        label={`${statistic.title} by step and block`}
        deps={[rows, step, block]}
        least={Math.min(1400, 90 + blocks.length * 16)}
        onPick={(row) => go(steps.indexOf(number((row as Row).step)), blocks.indexOf(text((row as Row).block)))}
        plot={(width) => ({
          width: Math.min(width, 160 + blocks.length * 110),
          height: 70 + Math.max(110, Math.min(420, steps.length * 22)),
          marginLeft: 40,
          marginBottom: 34,
          x: { domain: blocks, tickFormat: (b: string) => (blocks.length > 30 && blocks.indexOf(b) % 3 ? "" : brief(b)), label: null, tickSize: 0 },
          y: { domain: steps, label: "step", tickSize: 0 },
          color: { scheme: "viridis", label: statistic.unit, ...LEGEND, ...span(statistic, rows) },
          marks: [
            Plot.cell(rows, { x: "block", y: "step", fill: statistic.column, inset: 0.5 }),
            Plot.cell([{ block, step }], { x: "block", y: "step", stroke: "#D55E00", strokeWidth: 2.5, fill: "none" }),
            Plot.tip(rows, Plot.pointer({ x: "block", y: "step", title: (row: Row) => `step ${row.step}, ${row.block}\n${statistic.unit} ${shown(row[statistic.column])}` })),
          ],
        })}
      />
    </Section>
  );
}

function ablationsOf(capture: Capture): Row[] {
  return table("ablation")?.where({ model: capture.model }) ?? [];
}

/** The picture of the study's first ablated run without a block. */
function Ablated({ capture, block }: { capture: Capture; block: string }) {
  const rows = ablationsOf(capture).filter((row) => row.block === block);
  const kinds = [...new Set(rows.map((row) => text(row.kind)))];
  const kind = kinds.includes("skip") ? "skip" : (kinds[0] ?? "skip");
  const first = rows.find((row) => row.kind === kind);
  if (!ablationsOf(capture).length) {
    const stage = study.stages.find((s) => s.name === "ablate");
    return (
      <figure class="picture large">
        <div class="none">no ablation of {capture.model}</div>
        <figcaption>{stage?.asked ? stage.command : "the study does not ask for the stage ablate"}</figcaption>
      </figure>
    );
  }
  return (
    <Picture
      name={`ablation/${capture.model}/${block}/${kind}`}
      class="large"
      alt={`Picture with ${block} left out`}
      missing="not ablated"
      caption={
        <>
          {kind === "skip" ? "without" : kind === "mean" ? "the mean in place of" : kind} <b>{block}</b>: “{short(text(first?.prompt_id), 34)}”, SSIM {shown(first?.ssim)} to the unchanged one
        </>
      }
    />
  );
}

function Ablations({ capture, block, onHover, go }: { capture: Capture; block: string; onHover: (block: string) => void; go: (block: number) => void }) {
  const rows = ablationsOf(capture);
  const dark = useDark();
  if (!rows.length) return <Section title="What the picture loses without a block"><Missing stages={["ablate"]} what={`No block of ${capture.model} has been left out yet.`} /></Section>;
  const means = [...groups(rows, (row) => `${row.block}\n${row.kind}`).values()].map((group) => {
    const values = group.map((row) => number(row.latent_relative_l2));
    return { block: text(group[0]!.block), kind: text(group[0]!.kind), depth: number(group[0]!.depth), mean: values.reduce((a, b) => a + b, 0) / values.length, low: Math.min(...values), high: Math.max(...values), n: values.length };
  });
  const kinds = [...new Set(means.map((m) => m.kind))];
  const blocks = [...new Set(means.toSorted((a, b) => a.depth - b.depth).map((m) => m.block))];
  const runs = Math.max(...means.map((m) => m.n));
  return (
    <Section
      title="What the picture loses without a block"
      note={`Relative change of the final latents; skip: the block is left out, mean: what it adds is blurred to its mean. Dots: mean over n = ${runs} runs${runs < 2 ? ", so no spread" : "; the bar through a dot spans the least and the most of them (too few for an interval)"}. Hover a block to see its picture above.`}
    >
      <div onMouseLeave={() => onHover("")}>
        <Chart
          label="Effect of leaving out each block"
          deps={[rows, block]}
          least={Math.min(1200, 80 + blocks.length * 16)}
          onPick={(m) => go(capture.blocks.indexOf((m as { block: string }).block))}
          plot={(width) => ({
            width: Math.min(width, 160 + blocks.length * 110),
            height: 190,
            marginLeft: 44,
            marginBottom: 34,
            x: { domain: blocks, tickFormat: (b: string) => (blocks.length > 30 && blocks.indexOf(b) % 3 ? "" : brief(b)), label: null, tickSize: 0 },
            y: { label: "relative change of the latents", grid: true, zero: true },
            color: { domain: kinds, range: kinds.map((_, i) => colour(i, dark)), legend: kinds.length > 1 },
            marks: [
              Plot.ruleX(means, { x: "block", y1: "low", y2: "high", stroke: "kind", strokeWidth: 3, strokeOpacity: 0.35 }),
              Plot.dot(means, { x: "block", y: "mean", fill: "kind", r: 4 }),
              Plot.dot(means.filter((m) => m.block === block), { x: "block", y: "mean", stroke: "currentColor", r: 7 }),
              Plot.tip(means, Plot.pointerX({ x: "block", y: "mean", title: (m: (typeof means)[number]) => `${m.block}, ${m.kind}\n${shown(m.mean)} (n = ${m.n})` })),
              Plot.ruleY([0]),
            ],
          })}
          onHover={(m) => onHover(m ? (m as { block: string }).block : "")}
        />
      </div>
    </Section>
  );
}
