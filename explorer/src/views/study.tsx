/** Study: what was run, from which settings, and a search over its words. */
import MiniSearch from "minisearch";
import { useMemo, useState } from "preact/hooks";
import { number, picture, pictureNames, pictures, shown, study, table, text, unique, type Row } from "../data";
import * as fragment from "../fragment";
import { Command, Missing, Section, Words } from "../ui";

export function Study() {
  return (
    <>
      <Told />
      <Glance />
      <Search />
      <Stages />
      <Provenance />
      <Settings />
      <Beside />
    </>
  );
}

/** What could not be read of prompts and pictures: no other view says it. */
function Told() {
  const told = ["prompts", "generate"].flatMap((stage) => study.problems[stage] ?? []);
  return told.length ? (
    <div class="missing" role="note">
      {told.map((problem) => (
        <p key={problem} class="problem">
          {problem}
        </p>
      ))}
    </div>
  ) : null;
}

/** What each view has to show, in a line with its number. */
function Glance() {
  const states = table("trajectories")?.all() ?? [];
  const runs = unique(states.map((row) => row.run_id)).length;
  const layers = unique(table("sensitivity")?.column("layer") ?? []).length;
  const first = study.captures[0];
  const plan = study.plans[0];
  const schemes = (table("benchmark")?.all() ?? []).filter((row) => row.reason === "");
  const judged = (table("benchmark.quality")?.where({ metric: "quality_loss" }) ?? []).filter((row) => row.value !== null && row.scheme !== "base");
  const worst = judged.toSorted((a, b) => number(b.value) - number(a.value))[0];
  const triples = pictureNames("refine/").filter((name) => name.endsWith("/refined")).length;
  const cards = [
    { view: "blocks", count: study.captures.length, what: "captured generations", more: first ? `${first.blocks.length} blocks of ${first.model}, ${first.captured_steps.length} steps each` : "" },
    { view: "bits", count: layers, what: "layers scored", more: plan ? `plan “${plan.budget}”: ${shown(plan.mean_bits)} bits per weight${plan.uniform ? `, predicted error power ${shown(plan.predicted / plan.uniform.predicted, 2)} of uniform ${plan.uniform.bits} bit` : ""}` : "" },
    { view: "benchmark", count: schemes.length, what: "runs measured", more: worst ? `largest quality loss ${shown(worst.value, 2)}, ${worst.scheme} (n = ${worst.n_prompts} prompts)` : "" },
    { view: "trajectories", count: runs, what: "trajectories", more: states.length ? `${states.filter((row) => number(row.sequence_number) >= 0).length.toLocaleString("en")} states of ${unique(states.map((row) => row.network)).length} networks` : "" },
    { view: "refiner", count: triples, what: "refined samples", more: triples ? "beside what interpolation makes of the same parts, and the truth" : "" },
  ];
  return (
    <ul class="glance">
      {cards.map((card) => (
        <li key={card.view}>
          <a href={`#view=${card.view}`}>
            <b>{card.count.toLocaleString("en")}</b> {card.what}
            <small>{card.more || "nothing yet: this view says how to make it"}</small>
          </a>
        </li>
      ))}
    </ul>
  );
}

const STATES = { done: "finished", part: "unfinished", none: "not made yet", idle: "nothing to work on", off: "not asked for" } as const;

function stateOf(stage: (typeof study.stages)[number]): keyof typeof STATES {
  if (!stage.asked) return "off";
  if (!stage.files) return "idle";
  return stage.there === stage.files ? "done" : stage.there ? "part" : "none";
}

/** The command that makes the whole study. */
const again = (): string => ["snakemake --profile local", study.configfiles.length ? `--configfile ${study.configfiles.join(" ")}` : ""].filter(Boolean).join(" ");

function Undone({ stage }: { stage: (typeof study.stages)[number] }) {
  return (
    <>
      <p>
        {stage.name}: {stage.there} of {stage.files} outputs are there. To make the rest:
      </p>
      <Command text={stage.command} />
    </>
  );
}

/** The stages in columns: each one right of all that it reads. */
function Stages() {
  const column = new Map<string, number>();
  for (const stage of study.stages) column.set(stage.name, Math.max(0, ...stage.reads.map((name) => (column.get(name) ?? 0) + 1)));
  const rows = new Map<string, number>();
  const used: number[] = [];
  for (const stage of study.stages) {
    const c = column.get(stage.name)!;
    rows.set(stage.name, (used[c] = (used[c] ?? -1) + 1));
  }
  const [wide, high] = [132, 52];
  const at = (name: string) => ({ x: 10 + column.get(name)! * (wide + 34), y: 8 + rows.get(name)! * high });
  const columns = Math.max(0, ...column.values()) + 1;
  const [width, height] = [20 + columns * wide + (columns - 1) * 34, 16 + Math.max(1, ...used.map((n) => n + 1)) * high];
  const undone = study.stages.filter((stage) => ["part", "none"].includes(stateOf(stage)));
  if (!study.stages.length) return <Section title="Stages"><p class="problem">This page has no study in it.</p></Section>;
  return (
    <Section title="What was run, and what reads what" note={`Arrows go from a stage to those that read it; numbers are outputs that were there when this page was made, of those that the study asks for. ${study.stages.filter((s) => stateOf(s) === "done").length} of ${study.stages.filter((s) => s.asked).length} stages asked for have finished.`}>
      <div class="scroll" tabIndex={0} role="group" aria-label="Graph of stages">
        <svg class="graph" viewBox={`0 0 ${width} ${height}`} style={{ minWidth: `${Math.round(width * 0.68)}px` }} role="img" aria-label={`Stages and what they read: ${study.stages.map((s) => `${s.name} ${STATES[stateOf(s)]}`).join(", ")}`}>
          {study.stages.flatMap((stage) =>
            stage.reads.map((name) => {
              const [a, b] = [at(name), at(stage.name)];
              const [x1, y1, x2, y2] = [a.x + wide, a.y + 19, b.x, b.y + 19];
              return <path key={`${name} ${stage.name}`} d={`M${x1},${y1} C${x1 + 22},${y1} ${x2 - 22},${y2} ${x2 - 3},${y2}`} />;
            }),
          )}
          {study.stages.map((stage) => {
            const { x, y } = at(stage.name);
            return (
              <g key={stage.name} class={stateOf(stage)} transform={`translate(${x},${y})`}>
                <rect width={wide} height="38" rx="7" />
                <text x="10" y="16">{stage.name}</text>
                <text x="10" y="30" class="small">{stateOf(stage) === "off" || stateOf(stage) === "idle" ? STATES[stateOf(stage)] : `${stage.there} of ${stage.files}`}</text>
              </g>
            );
          })}
        </svg>
      </div>
      {undone.length > 3 ? (
        <div class="missing">
          <p>{undone.length} stages are unfinished. To make the rest of all of them:</p>
          <Command text={again()} />
          <details>
            <summary>Or stage by stage</summary>
            {undone.map((stage) => (
              <Undone key={stage.name} stage={stage} />
            ))}
          </details>
        </div>
      ) : (
        undone.map((stage) => (
          <div key={stage.name} class="missing">
            <Undone stage={stage} />
          </div>
        ))
      )}
    </Section>
  );
}

interface Found {
  id: number;
  words: string;
  what: string;
  where: string;
  count: number;
  go: Record<string, string>;
  picture?: string;
}

/** Every prompt and, where they are wanted, every distinct caption. */
function documents(captioned: boolean): Found[] {
  const found: Found[] = [];
  const images = pictureNames("image/");
  const byPrompt = new Map<string, string>();
  for (const name of images) {
    const id = name.split("/").slice(2, -1).join("/");
    if (!byPrompt.has(id)) byPrompt.set(id, name);
  }
  const seen = new Set<string>();
  const runs = table("trajectories")?.all() ?? [];
  const started = new Map(runs.filter((row) => row.sequence_number === -1).map((row) => [text(row.prompt_id), row]));
  const add = (id: string, words: string) => {
    if (!id || seen.has(id)) return;
    seen.add(id);
    const capture = study.captures.find((c) => c.prompt_id === id);
    const run = started.get(id);
    const go: Record<string, string> = capture ? { view: "blocks", capture: capture.generation } : run ? { view: "trajectories", run: text(run.run_id) } : { view: "study" };
    found.push({ id: found.length, words, what: "prompt", where: id, count: 1, go, picture: byPrompt.get(id) });
  };
  for (const row of table("prompts")?.all() ?? []) add(text(row.prompt_id), text(row.prompt));
  for (const row of started.values()) add(text(row.prompt_id), text(row.prompt));
  for (const capture of study.captures) add(capture.prompt_id, capture.prompt);
  const captions = new Map<string, Found>();
  for (const row of runs) {
    if (!captioned || row.type !== "TEXT" || row.sequence_number === -1) continue;
    const words = text(row.output_text);
    const old = captions.get(words);
    if (old) old.count++;
    else captions.set(words, { id: 0, words, what: "caption", where: `${row.network}, state ${row.sequence_number}`, count: 1, go: { view: "trajectories", run: text(row.run_id), at: text(row.sequence_number) } });
  }
  for (const caption of captions.values()) found.push({ ...caption, id: found.length });
  return found;
}

function Search() {
  const query = fragment.get("q") ?? "";
  const [ready, setReady] = useState(query !== "");
  const all = useMemo(() => documents(ready), [ready]);
  const most = query ? 60 : 12;
  const index = useMemo(() => {
    const made = new MiniSearch<Found>({ fields: ["words", "where"], tokenize: (words) => words.split(/[^\p{L}\p{N}]+/u).filter(Boolean), searchOptions: { prefix: true, fuzzy: 0.15, combineWith: "AND" } });
    made.addAll(all.map((doc) => (doc.words.length > 20_000 ? { ...doc, words: doc.words.slice(0, 20_000) } : doc)));
    return made;
  }, [all]);
  const hits = query ? index.search(query).map((hit) => all[hit.id as number]!) : all.filter((doc) => doc.what === "prompt");
  return (
    <Section
      title="Prompts and captions"
      note={ready ? `${hits.length.toLocaleString("en")} found among ${all.filter((d) => d.what === "prompt").length} prompts and ${all.filter((d) => d.what === "caption").length} distinct captions${hits.length > most ? `; the first ${most} are shown` : ""}.` : `The first ${Math.min(most, hits.length)} of ${hits.length} prompts, with a picture of each. Search finds captions too: words, or beginnings of words; press / to come here.`}
    >
      <label class="field search">
        <span>Search</span>
        <input id="search" type="search" value={query} placeholder="red ring" onFocus={() => setReady(true)} onInput={(event) => fragment.set({ q: event.currentTarget.value })} />
      </label>
      {!all.length && <Missing stages={["prompts", "trajectories"]} what="There are no prompts and captions yet." />}
      <ul class="hits">
        {hits.slice(0, most).map((doc) => (
          <li key={doc.id}>
            {doc.picture && <img src={picture(doc.picture)} alt="" />}
            <div>
              <Words text={doc.words} />
              <p class="caption">
                {doc.what} {doc.where}
                {doc.count > 1 && `, ${doc.count} times`}
                {doc.go.view !== "study" && (
                  <>
                    {" · "}
                    <a href={`#${new URLSearchParams(doc.go).toString()}`}>{doc.go.view}</a>
                  </>
                )}
              </p>
            </div>
          </li>
        ))}
      </ul>
    </Section>
  );
}

const HOST = ["cpu", "gpu", "platform", "python"] as const;

function Provenance() {
  const hosts = unique((table("benchmark.timing")?.all() ?? []).map((row: Row) => HOST.map((name) => text(row[name])).filter(Boolean).join(", ")));
  const packages = unique((table("benchmark.timing")?.column("packages") ?? []).map(text).filter(Boolean));
  const models = unique(study.captures.map((c) => c.model));
  const notes = [...study.sampled, ...pictures.notes];
  return (
    <Section title="Where this comes from">
      <dl class="facts">
        <dt>experiment</dt>
        <dd>{study.experiment}</dd>
        <dt>made by</dt>
        <dd>ditscope {study.version}</dd>
        <dt>settings</dt>
        <dd>config.yaml{study.configfiles.map((file) => `, ${file}`).join("")}</dd>
        <dt>to make it again</dt>
        <dd>
          <Command text={again()} />
        </dd>
        {hosts.length > 0 && (
          <>
            <dt>measured on</dt>
            <dd>{hosts.map((host) => <div key={host}>{host}</div>)}</dd>
          </>
        )}
        {packages.length > 0 && (
          <>
            <dt>packages</dt>
            <dd>{packages.map((list) => <Words key={list} text={list} most={120} />)}</dd>
          </>
        )}
        {models.length > 0 && (
          <>
            <dt>captured models</dt>
            <dd>{models.join(", ")}</dd>
          </>
        )}
        <dt>in this page</dt>
        <dd>
          {Object.values(study.tables).reduce((sum, t) => sum + t.rows, 0).toLocaleString("en")} rows of {Object.keys(study.tables).length} tables,{" "}
          {Object.keys(pictures.places).length.toLocaleString("en")} pictures ({pictures.data.length.toLocaleString("en")} different), at most {pictures.side} pixels wide. It asks the network for nothing.
        </dd>
        {notes.length > 0 && (
          <>
            <dt>left out</dt>
            <dd>{notes.map((note) => <div key={note} class="sampled">{note}</div>)}</dd>
          </>
        )}
      </dl>
    </Section>
  );
}

type Tree = unknown;

function Settings() {
  const filter = (fragment.get("settings") ?? "").toLowerCase();
  const lines = useMemo(() => flat(study.config), []);
  const shownLines = filter ? lines.filter(([path, value]) => `${path} ${value}`.toLowerCase().includes(filter)) : lines;
  const sections = unique(shownLines.map(([path]) => path.split(".")[0]!));
  return (
    <Section title="Settings" note={`${lines.length} values, defaults included, as this study was run.`}>
      <label class="field search">
        <span>Filter</span>
        <input type="search" value={fragment.get("settings") ?? ""} placeholder="sensitivity" onInput={(event) => fragment.set({ settings: event.currentTarget.value })} />
      </label>
      <div class="columns">
      {sections.map((name) => (
        <details key={name} open={filter !== ""}>
          <summary>
            {name} <small>{shownLines.filter(([path]) => path.split(".")[0] === name).length}</small>
          </summary>
          <dl class="facts settings">
            {shownLines
              .filter(([path]) => path.split(".")[0] === name)
              .map(([path, value]) => [<dt key={path}>{path}</dt>, <dd key={`${path}=`}><Words text={value} /></dd>])}
          </dl>
        </details>
      ))}
      </div>
    </Section>
  );
}

function flat(value: Tree, path = ""): [string, string][] {
  if (value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length)
    return Object.entries(value).flatMap(([key, inner]) => flat(inner, path ? `${path}.${key}` : key));
  return path ? [[path, Array.isArray(value) ? value.map((v) => (typeof v === "object" ? JSON.stringify(v) : String(v))).join(", ") || "[]" : typeof value === "object" && value ? "{}" : String(value)]] : [];
}

function Beside() {
  if (!study.beside.length) return null;
  const kinds = unique(study.beside.map((path) => (path.includes("/") ? path.split("/")[0]! : "files")));
  return (
    <Section title="Beside this page" note="Larger media are files of the study: the links work where this page lies among its results.">
      {kinds.map((kind) => (
        <details key={kind}>
          <summary>
            {kind} <small>{study.beside.filter((path) => (path.includes("/") ? path.split("/")[0] : "files") === kind).length}</small>
          </summary>
          <ul class="files">
            {study.beside
              .filter((path) => (path.includes("/") ? path.split("/")[0] : "files") === kind)
              .map((path) => (
                <li key={path}>
                  <a href={path.split("/").map(encodeURIComponent).join("/")}>{path}</a>
                </li>
              ))}
          </ul>
        </details>
      ))}
    </Section>
  );
}
