/** Parts that the views share. */
import * as Plot from "@observablehq/plot";
import "img-comparison-slider";
import type { ComponentChildren, HTMLAttributes, TargetedKeyboardEvent } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { isThere, picture, short, study, table, text } from "./data";
import * as fragment from "./fragment";

declare module "preact" {
  namespace JSX {
    interface IntrinsicElements {
      "img-comparison-slider": HTMLAttributes<HTMLElement> & { value?: number; keyboard?: string };
    }
  }
}

export type Theme = "auto" | "light" | "dark";

/** Whether the page is dark now. */
export function useDark(): boolean {
  const query = matchMedia("(prefers-color-scheme: dark)");
  const [system, setSystem] = useState(query.matches);
  useEffect(() => {
    const tell = () => setSystem(query.matches);
    query.addEventListener("change", tell);
    return () => query.removeEventListener("change", tell);
  }, []);
  const theme = fragment.chosen("theme", ["auto", "light", "dark"]);
  return theme === "auto" ? system : theme === "dark";
}

/** The study's colours, black as the colour of text. */
export const colour = (i: number, dark: boolean): string => {
  const value = study.palette[i % study.palette.length] ?? "#0072B2";
  if (dark && value.toLowerCase() === "#000000") return "#e8e6e1";
  return dark && value.toLowerCase() === "#0072b2" ? "#4da3d9" : value;
};

export function Section({ title, note, children }: { title: string; note?: ComponentChildren; children: ComponentChildren }) {
  return (
    <section class="card">
      <h2>{title}</h2>
      {children}
      {note && <p class="caption">{note}</p>}
    </section>
  );
}

interface SelectProps {
  label: string;
  name: string;
  value: string;
  choices: string[] | [string, string][];
  also?: Record<string, string | undefined>; // other values to set with it
}

export function Select({ label, name, value, choices, also = {} }: SelectProps) {
  const pairs = choices.map((choice) => (typeof choice === "string" ? [choice, choice] : choice)) as [string, string][];
  if (pairs.length < 2) return null;
  return (
    <label class="field">
      <span>{label}</span>
      <select value={value} onChange={(event) => fragment.set({ [name]: event.currentTarget.value, ...also })}>
        {pairs.map(([key, title]) => (
          <option key={key} value={key} selected={key === value}>
            {short(title, 70)}
          </option>
        ))}
      </select>
    </label>
  );
}

interface RangeProps {
  label: string;
  name: string;
  value: number;
  max: number;
  min?: number;
  step?: number;
  told: string;
  onInput?: (value: number) => void;
}

export function Range({ label, name, value, min = 0, max, step = 1, told, onInput }: RangeProps) {
  return (
    <label class="field range">
      <span>
        {label} <b>{told}</b>
      </span>
      <input
        type="range"
        min={min}
        max={max}
        step={step}
        value={value}
        aria-valuetext={told}
        disabled={max <= min}
        onInput={(event) => {
          const chosen = Number(event.currentTarget.value);
          if (onInput) onInput(chosen);
          else fragment.set({ [name]: String(chosen) });
        }}
      />
    </label>
  );
}

/** Switches of which any number is on; `off` in the fragment lists those that are not. */
export function Chips({ label, name, choices, dots }: { label: string; name: string; choices: string[]; dots?: string[] }) {
  if (choices.length < 2) return null;
  const off = hidden(name);
  return (
    <fieldset class="chips">
      <legend>{label}</legend>
      {choices.map((choice, i) => (
        <label key={choice} class="chip">
          <input
            type="checkbox"
            checked={!off.has(choice)}
            onChange={() => {
              const next = new Set(off);
              if (!next.delete(choice)) next.add(choice);
              fragment.set({ [name]: [...next].map(encodeURIComponent).join(",") });
            }}
          />
          {dots && <i style={{ background: dots[i] }} />}
          <span>{choice}</span>
        </label>
      ))}
    </fieldset>
  );
}

export const hidden = (name: string): Set<string> =>
  new Set((fragment.get(name) ?? "").split(",").filter(Boolean).map(decodeURIComponent));

interface PictureProps {
  name: string;
  alt: string;
  caption?: ComponentChildren;
  class?: string;
  missing?: string;
}

/** Pictures that are tiny themselves are enlarged pixel by pixel; thumbnails of larger ones smoothly. */
const sharpen = (event: { currentTarget: HTMLImageElement }) => event.currentTarget.classList.toggle("tiny", event.currentTarget.naturalWidth <= 64);

/** A thumbnail by its name, or the word that the page has none. */
export function Picture({ name, alt, caption, class: kind = "", missing = "no picture" }: PictureProps) {
  const source = picture(name);
  return (
    <figure class={`picture ${kind}`}>
      {source ? (
        <img src={source} alt={alt} data-name={name} onLoad={sharpen} />
      ) : (
        <div class="none" role="img" aria-label={`${alt}: ${missing}`}>
          {missing}
        </div>
      )}
      {caption && <figcaption>{caption}</figcaption>}
    </figure>
  );
}

/** Two pictures of one size, one over the other, with a bar to drag between them. */
export function Compare({ first, second, names }: { first: string; second: string; names: [string, string] }) {
  const [a, b] = [picture(first), picture(second)];
  if (!a || !b) {
    return (
      <div class="pair">
        <Picture name={first} alt={names[0]} caption={names[0]} />
        <Picture name={second} alt={names[1]} caption={names[1]} />
      </div>
    );
  }
  return (
    <figure class="picture compare">
      <img-comparison-slider aria-label={`${names[0]} to the left of the bar, ${names[1]} to the right`}>
        <img slot="first" src={a} alt={names[0]} data-name={first} onLoad={sharpen} />
        <img slot="second" src={b} alt={names[1]} data-name={second} onLoad={sharpen} />
      </img-comparison-slider>
      <figcaption>
        <b>{names[0]}</b> ◂ ▸ <b>{names[1]}</b>
      </figcaption>
    </figure>
  );
}

interface ChartProps {
  label: string;
  plot: (width: number) => Plot.PlotOptions;
  deps: unknown[];
  onPick?: (datum: unknown) => void;
  onHover?: (datum: unknown) => void;
  least?: number; // width below which the chart scrolls
}

/** A chart of Observable Plot as wide as its place. */
export function Chart({ label, plot, deps, onPick, onHover, least = 0 }: ChartProps) {
  const place = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(0);
  const dark = useDark();
  useLayoutEffect(() => {
    const watcher = new ResizeObserver(([entry]) => setWidth(Math.floor(entry!.contentRect.width)));
    watcher.observe(place.current!);
    return () => watcher.disconnect();
  }, []);
  useEffect(() => {
    if (!width) return;
    const options = plot(Math.max(width, least));
    const drawn = Plot.plot({ width: Math.max(width, least), style: { background: "none", fontSize: "11px" }, ...options });
    const svg = drawn.tagName.toLowerCase() === "svg" ? drawn : drawn.querySelector("svg:last-of-type")!;
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", label);
    drawn.querySelectorAll("g[aria-label]").forEach((mark) => mark.removeAttribute("aria-label")); // groups have no role
    place.current!.replaceChildren(drawn);
    const datum = () => (drawn as unknown as { value?: unknown }).value;
    if (onPick) {
      drawn.addEventListener("click", () => datum() && onPick(datum()));
      (drawn as unknown as HTMLElement).style.cursor = "pointer";
    }
    if (onHover) drawn.addEventListener("input", () => onHover(datum()));
  }, [width, dark, ...deps]);
  return <div ref={place} class={`chart ${least ? "wide" : ""}`} {...(least ? { tabIndex: 0, role: "group", "aria-label": label } : {})} />;
}

interface Label {
  x: number;
  y: number;
  text: string;
}

/** Names of points, those of points that would overlap joined: `near` in pixels, `place` from values to pixels. */
export function joined(labels: Label[], place: (label: Label) => [number, number], near = 14): Label[] {
  const made: (Label & { at: [number, number] })[] = [];
  for (const label of labels.toSorted((a, b) => place(a)[1] - place(b)[1])) {
    const at = place(label);
    const old = made.find((m) => Math.abs(m.at[1] - at[1]) < near && Math.abs(m.at[0] - at[0]) < 60);
    if (!old) made.push({ ...label, at });
    else if (!old.text.split(", ").includes(label.text)) old.text += `, ${label.text}`;
  }
  return made;
}

/** Pixels on an axis, logarithmic or not. */
export function pixels(values: number[], long: number, log: boolean): (value: number) => number {
  const of = (v: number) => (log ? Math.log(v) : v);
  const [low, high] = [Math.min(...values.map(of)), Math.max(...values.map(of))];
  return (value) => (long * (of(value) - low)) / (high - low || 1);
}

/** A legend of colours that has room for its numbers. */
export const LEGEND = { legend: true, width: 280, marginLeft: 14, marginRight: 24, ticks: 4 };

/** What a view lacks, why, and the command that makes it. */
export function Missing({ stages, what, tables = [] }: { stages: string[]; what: string; tables?: string[] }) {
  return (
    <div class="missing">
      <p>
        <b>{what}</b>
      </p>
      {stages.map((name) => {
        const stage = study.stages.find((s) => s.name === name);
        const problems = study.problems[name] ?? [];
        return (
          <div key={name}>
            {problems.map((problem) => (
              <p key={problem} class="problem">
                {problem}
              </p>
            ))}
            <p>{reason(name, stage?.asked ?? false, stage?.files ?? 0, stage?.there ?? 0, tables)}</p>
            {stage && <Command text={stage.asked ? stage.command : stage.command.replace(/ -- \S+$/, ` --config 'stages=[${name}]'`)} />}
          </div>
        );
      })}
    </div>
  );
}

function reason(name: string, asked: boolean, files: number, there: number, tables: string[]): string {
  if (!asked) return `This study does not ask for the stage ${name}: add it to \`stages\` of its config, or run it alone:`;
  if (!files) return `The config gives the stage ${name} nothing to work on (its models or networks are empty). With some:`;
  if (there < files) return `Of the stage ${name} ${there} of ${files} outputs are there. To make the rest:`;
  if (tables.length && tables.every(isThere)) return `The stage ${name} ran, and its tables are empty: too little data. After more prompts:`;
  return `The stage ${name} ran, but left nothing to show here. To run it again:`;
}

export function Command({ text }: { text: string }) {
  const [copied, setCopied] = useState(false);
  return (
    <div class="command">
      <code>{text}</code>
      <button
        type="button"
        onClick={() => {
          void navigator.clipboard?.writeText(text).then(() => setCopied(true));
        }}
      >
        {copied ? "copied" : "copy"}
      </button>
    </div>
  );
}

/** What stages answer, as the study's table `answers` says it: question, sentence, caveats, and the figure beside. */
export function Answers({ stages }: { stages: string[] }) {
  const rows = table("answers")?.all().filter((row) => stages.includes(text(row.stage))) ?? [];
  if (!rows.length) return null;
  return (
    <ul class="answers">
      {rows.map((row) => {
        const file = `figures/${row.figure}.svg`;
        return (
          <li key={row.stage}>
            <h2>{row.question}</h2>
            <p dir="auto">{row.answer}</p>
            <p class="caption">
              {row.stage}
              {row.caveats !== null && `: ${row.caveats}`}
              {study.beside.includes(file) && (
                <>
                  {" · "}
                  <a href={file}>figure {row.figure}</a>
                </>
              )}
            </p>
          </li>
        );
      })}
    </ul>
  );
}

/** Problems of a stage's files, above a view that has something to show all the same. */
export function Problems({ stages }: { stages: string[] }) {
  const told = stages.flatMap((stage) => study.problems[stage] ?? []);
  const partly = study.stages.filter((s) => stages.includes(s.name) && s.asked && s.there < s.files);
  if (!told.length && !partly.length) return null;
  return (
    <div class="missing" role="note">
      {told.map((problem) => (
        <p key={problem} class="problem">
          {problem}
        </p>
      ))}
      {partly.map((stage) => (
        <div key={stage.name}>
          <p>
            Unfinished: {stage.there} of {stage.files} outputs of the stage {stage.name} are there. To make the rest:
          </p>
          <Command text={stage.command} />
        </div>
      ))}
    </div>
  );
}

/** A prompt or caption: its own direction, long ones folded. */
export function Words({ text, most = 240 }: { text: string; most?: number }) {
  if (text.length <= most)
    return (
      <span class="words" dir="auto">
        {text}
      </span>
    );
  return (
    <details class="words">
      <summary dir="auto">{short(text, most)}</summary>
      <span dir="auto">{text}</span>
    </details>
  );
}

export type Keys = TargetedKeyboardEvent<HTMLElement>;
