/** Trajectories: text and pictures in turn, how far they drift, and where the states lie. */
import * as Plot from "@observablehq/plot";
import { useMemo } from "preact/hooks";
import { groups, isThere, number, picture, short, shown, study, table, text, unique, type Row } from "../data";
import * as fragment from "../fragment";
import { Scatter, type Dots } from "../scatter";
import { Chart, Chips, Missing, Problems, Section, Select, Words, colour, hidden, useDark, type Keys } from "../ui";

const LARGEST = 7; // clusters with a colour of their own
const TIMES = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"];
const MOST = 6; // runs that are shown at once
const COLOURINGS = ["cluster", "network", "time"];

export function Trajectories() {
  const states = table("trajectories");
  const dark = useDark();
  const byRun = useMemo(() => {
    const found = groups(states?.all() ?? [], (row) => text(row.run_id));
    for (const rows of found.values()) rows.sort((a, b) => number(a.sequence_number) - number(b.sequence_number));
    return found;
  }, [states]);
  const map = table("clusters.map");
  const embedders = unique([...(map?.column("embedder") ?? []), ...(table("drift.summary")?.column("embedder") ?? [])].map(text));
  const embedder = fragment.chosen("embedder", embedders);
  // Analyses tell fixed and derived seeds of a network apart; a run has the name that they give it.
  const networkOf = useMemo(() => {
    const found = new Map([...byRun].map(([run, rows]) => [run, text(rows[0]!.network)]));
    for (const name of ["drift", "clusters.map"]) {
      const [run, network] = [table(name)?.column("run_id") ?? [], table(name)?.column("network") ?? []];
      run.forEach((id, i) => found.set(text(id), text(network[i])));
    }
    return found;
  }, [byRun, map]);
  const networks = unique(networkOf.values()).sort();
  const off = hidden("networks");
  if (!states && !map) return <Missing stages={["trajectories", "embed", "drift", "cluster"]} what="No trajectory has been walked yet." />;

  const asked = (fragment.get("run") ?? "").split(",").filter(Boolean);
  const known = asked.filter((run) => networkOf.has(run));
  const distinct = (run: string) => new Set(byRun.get(run)!.map((row) => row.output_key)).size;
  const some = [...byRun.keys()].filter((run) => !off.has(networkOf.get(run)!)).slice(0, 200);
  const first = some.toSorted((a, b) => distinct(b) - distinct(a))[0]; // the most to see
  const runs = known.length ? known : first ? [first] : [];
  const walked = runs.filter((run) => byRun.has(run)); // a map may be there without its trajectories
  const at = fragment.get("at") === undefined ? undefined : Number(fragment.get("at"));
  const tints = networks.map((_, i) => colour(i, dark));
  const strips = (
    <Section
        title={runs.length > 1 ? `${asked.length} selected runs` : "The run"}
        note={`States in order, from the prompt (−1) on: what the generator painted and what the captioner said of it. ${asked.length > MOST ? `The first ${MOST} of ${asked.length} selected runs. ` : ""}Press a state, or use the arrow keys: it is marked on the map and on the drift curve.`}
      >
        {walked.slice(0, MOST).map((run) => (
          <Strip key={run} rows={byRun.get(run)!} at={run === runs[0] ? at : undefined} others={runs} run={run} />
        ))}
        {!walked.length && <Missing stages={["trajectories"]} what="The states of the runs are not in this page." />}
      </Section>
  );
  return (
    <>
      <Problems stages={["trajectories", "embed", "drift", "cluster"]} />
      <div class="controls top">
        <Select label="Embedder" name="embedder" value={embedder} choices={embedders} />
        <Chips label="Networks" name="networks" choices={networks} dots={tints} />
        <Select
          label="Run"
          name="run"
          value={walked[0] ?? ""}
          also={{ at: undefined }}
          choices={unique([...walked, ...[...byRun.keys()].filter((run) => !off.has(networkOf.get(run)!)).slice(0, 1000)]).map((run) => {
            const row = byRun.get(run)![0]!;
            return [run, `${row.prompt_id} · ${networkOf.get(run)} · seed ${row.seed}`] as [string, string];
          })}
        />
      </div>
      <div class="halves">
        <div>
          <StateMap embedder={embedder} networks={networks} tints={tints} off={off} runs={runs} at={at} byRun={byRun} />
          {strips}
        </div>
        <Drift embedder={embedder} networks={networks.filter((network) => !off.has(network))} tints={tints} all={networks} runs={runs} at={at} />
      </div>
    </>
  );
}

interface MapProps {
  embedder: string;
  networks: string[];
  tints: string[];
  off: Set<string>;
  runs: string[];
  at: number | undefined;
  byRun: Map<string, Row[]>;
}

function StateMap({ embedder, networks, tints, off, runs, at, byRun }: MapProps) {
  const dark = useDark();
  const map = table("clusters.map");
  const by = fragment.chosen("colour", COLOURINGS);
  const cluster = fragment.get("cluster");
  const places = useMemo(() => {
    if (!map) return [];
    const [e, n, x] = [map.column("embedder"), map.column("network"), map.column("x")];
    return x.flatMap((value, i) => (value !== null && e[i] === embedder && !off.has(text(n[i])) ? [i] : []));
  }, [map, embedder, [...off].join()]);
  const labels = useMemo(() => {
    const found = new Map<string, number>();
    const clusters = table("clusters");
    if (!clusters) return found;
    const [e, r, s, l] = ["embedder", "run_id", "sequence_number", "label"].map((name) => clusters.column(name)) as [Row[string][], Row[string][], Row[string][], Row[string][]];
    for (let i = 0; i < e.length; i++) if (e[i] === embedder && l[i] !== null) found.set(`${r[i]} ${s[i]}`, number(l[i]));
    return found;
  }, [embedder]);
  const medoids = table("clusters.medoids")?.where({ embedder }) ?? [];
  const named = new Map(medoids.map((row) => [number(row.label), row]));
  const largest = medoids.length ? medoids.toSorted((a, b) => number(a.label) - number(b.label)).map((row) => number(row.label)).slice(0, LARGEST) : unique(labels.values()).filter((l) => l >= 0).sort((a, b) => a - b).slice(0, LARGEST);

  const { dots, colours, legend } = useMemo(() => {
    const runIds = map?.column("run_id") ?? [];
    const numbers = map?.column("sequence_number") ?? [];
    const nets = map?.column("network") ?? [];
    const position = map?.column("position") ?? [];
    const [x, y] = [map?.column("x") ?? [], map?.column("y") ?? []];
    const label = (i: number) => labels.get(`${runIds[i]} ${numbers[i]}`);
    const last = places.reduce((most, i) => Math.max(most, number(position[i])), 1);
    const grey = dark ? "#5a5f66" : "#c4c4c4";
    const kinds: { name: string; colour: string; key: string }[] =
      by === "network"
        ? networks.map((name, i) => ({ name, colour: tints[i]!, key: "" }))
        : by === "time"
          ? TIMES.map((c, i) => ({ name: i === 0 ? "first states" : i === TIMES.length - 1 ? `state ${last}` : "", colour: c, key: "" }))
          : [...largest.map((l, i) => ({ name: `${l}: ${short(text(named.get(l)?.medoid_text) || "no caption", 34)}`, colour: colour(i, dark), key: String(l) })), { name: "smaller clusters", colour: dark ? "#9a8fb0" : "#882255", key: "" }, { name: "outliers", colour: grey, key: "-1" }];
    const category = (i: number): number => {
      if (by === "network") return networks.indexOf(text(nets[i]));
      if (by === "time") return Math.min(TIMES.length - 1, Math.floor((number(position[i]) / last) * TIMES.length));
      const l = label(i);
      if (l === undefined || l < 0) return kinds.length - 1;
      const place = largest.indexOf(l);
      return place < 0 ? kinds.length - 2 : place;
    };
    const made: Dots = { x: places.map((i) => number(x[i])), y: places.map((i) => number(y[i])), category: places.map(category) };
    return { dots: made, colours: kinds.map((k) => k.colour), legend: kinds };
  }, [places, by, dark, labels, tints.join()]);

  const selected = useMemo(() => {
    const runIds = map?.column("run_id") ?? [];
    const numbers = map?.column("sequence_number") ?? [];
    const wanted = new Set(runs);
    return places.flatMap((i, dot) => {
      if (cluster !== undefined) return String(labels.get(`${runIds[i]} ${numbers[i]}`)) === cluster ? [dot] : [];
      if (!wanted.has(text(runIds[i]))) return [];
      return at === undefined || runs.length > 1 || numbers[i] === at ? [dot] : [];
    });
  }, [places, runs.join(), at, cluster, labels]);

  const reason = map?.all().find((row) => row.embedder === embedder && row.reason !== null)?.reason;
  if (!map || !places.length)
    return (
      <Section title="Where the states lie">
        {reason ? <p class="problem">There is no map under {embedder}: {text(reason)}.</p> : <Missing stages={["embed", "cluster"]} what="There is no map of states." tables={["clusters.map"]} />}
      </Section>
    );
  const told = (dot: number): string => {
    const i = places[dot]!;
    const [run, n] = [text(map.column("run_id")[i]), number(map.column("sequence_number")[i])];
    const state = byRun.get(run)?.find((row) => row.sequence_number === n);
    return `${map.column("network")[i]}, ${state?.prompt_id ?? run}, state ${n}${state?.output_text ? `: ${short(text(state.output_text), 80)}` : ""}`;
  };
  const onSelect = (indices: number[]) => {
    const chosen = indices.map((dot) => places[dot]!);
    const ids = unique(chosen.map((i) => text(map.column("run_id")[i])));
    fragment.set({ run: ids.slice(0, 24).join(","), at: chosen.length === 1 ? String(map.column("sequence_number")[chosen[0]!]) : undefined, cluster: undefined });
  };
  const sampled = study.sampled.find((note) => note.startsWith("clusters.map"));
  return (
    <Section
      title="Where the states lie"
      note={
        <>
          t-SNE of n = {places.length.toLocaleString("en")} states under {embedder}: neighbours are kept, distances between groups mean little.
          {sampled && <b class="sampled"> Sampled: {sampled}.</b>}
        </>
      }
    >
      <div class="controls">
        <Select label="Colour" name="colour" value={by} choices={COLOURINGS} />
      </div>
      <Scatter label={`Map of ${places.length} states under ${embedder}, coloured by ${by}`} dots={dots} colours={colours} background={dark ? "#1b1e22" : "#ffffff"} selected={selected} told={told} onSelect={onSelect} />
      <ul class="legend">
        {legend.map((kind, i) =>
          kind.key && by === "cluster" ? (
            <li key={i}>
              <button type="button" class={cluster === kind.key ? "on" : ""} aria-pressed={cluster === kind.key} onClick={() => fragment.set({ cluster: cluster === kind.key ? undefined : kind.key })}>
                <i style={{ background: kind.colour }} />
                <span dir="auto">{kind.name}</span>
              </button>
            </li>
          ) : (
            <li key={i}>
              <i style={{ background: kind.colour }} />
              {kind.name}
            </li>
          ),
        )}
      </ul>
    </Section>
  );
}

interface DriftProps {
  embedder: string;
  networks: string[];
  all: string[];
  tints: string[];
  runs: string[];
  at: number | undefined;
}

function Drift({ embedder, networks, all, tints, runs, at }: DriftProps) {
  const summary = (table("drift.summary")?.where({ embedder }) ?? []).filter((row) => networks.includes(text(row.network)));
  if (!summary.length)
    return (
      <Section title="How far they drift">
        <Missing stages={["embed", "drift"]} what="No distance to the first state has been measured." tables={["drift"]} />
      </Section>
    );
  const bands = (table("drift.bands")?.all() ?? []).filter((row) => row.embedder === embedder && row.claim === "ordered");
  const most = Math.max(...summary.map((row) => number(row.q75)), ...bands.map((row) => number(row.high)));
  const own = (table("drift")?.all() ?? []).filter((row) => row.embedder === embedder && runs.includes(text(row.run_id)));
  const [first, last] = [Math.min, Math.max].map((most) => most(...summary.map((row) => number(row.sequence_number)))) as [number, number];
  const nulls = table("drift.nulls")?.all() ?? [];
  return (
    <Section
      title="How far they drift"
      note={
        <>
          Cosine distance to the run's first state. Line: median over runs; shade: the middle half of the runs. {bands.length > 0 ? "Grey: where 95 % of the medians lie if the later states are shuffled (the null of “ordered in time”)." : isThere("drift.bands") ? "No null band: too few runs for one." : ""} Dotted: the median of one shuffle. Dark: the selected run{runs.length > 1 ? "s" : ""}.
        </>
      }
    >
      {networks.map((network) => {
        const rows = summary.filter((row) => row.network === network);
        if (!rows.length) return null;
        const observed = rows.filter((row) => row.control === "observed").toSorted((a, b) => number(a.sequence_number) - number(b.sequence_number));
        const shuffled = rows.filter((row) => row.control === "shuffled").toSorted((a, b) => number(a.sequence_number) - number(b.sequence_number));
        const band = bands.filter((row) => row.network === network);
        const lines = own.filter((row) => row.network === network);
        const tint = tints[all.indexOf(network)]!;
        const counts = observed.map((row) => number(row.runs));
        const test = nulls.find((row) => row.embedder === embedder && row.network === network && row.claim === "ordered");
        const degenerate = text(own.find((row) => row.network === network)?.degenerate ?? test?.degenerate);
        return (
          <figure key={network} class="multiple">
            <figcaption>
              <b>{network}</b>
              <span>
                n = {Math.max(...counts)}
                {Math.min(...counts) < Math.max(...counts) && ` to ${Math.min(...counts)}`} runs
                {test?.p_holm != null && `; ordered in time: p = ${shown(test.p_holm, 2)} (Holm)`}
                {test?.reason != null && `; no test: ${test.reason}`}
                {degenerate && `; degenerate: ${degenerate}`}
              </span>
            </figcaption>
            <Chart
              label={`Drift of ${network}`}
              deps={[rows, runs.join(), at, most]}
              onPick={(row) => fragment.set({ at: String((row as Row).sequence_number) })}
              plot={() => ({
                height: networks.length > 2 ? 130 : 190,
                marginLeft: 40,
                x: { label: "state", domain: [first, last], ticks: 6, tickFormat: "d" },
                y: { label: null, domain: [0, most * 1.05 || 1], grid: true, ticks: 4 },
                marks: [
                  Plot.areaY(observed, { x: "sequence_number", y1: "q25", y2: "q75", fill: tint, fillOpacity: 0.22 }),
                  Plot.areaY(band, { x: "sequence_number", y1: "low", y2: "high", fill: "currentColor", fillOpacity: 0.2 }),
                  ...["low", "high"].map((y) => Plot.lineY(band, { x: "sequence_number", y, stroke: "currentColor", strokeOpacity: 0.5, strokeWidth: 0.75 })),
                  Plot.lineY(shuffled, { x: "sequence_number", y: "q50", stroke: tint, strokeDasharray: "2,3" }),
                  Plot.lineY(observed, { x: "sequence_number", y: "q50", stroke: tint, strokeWidth: 2 }),
                  Plot.lineY(lines, { x: "sequence_number", y: "cosine_distance", z: "run_id", stroke: "currentColor", strokeWidth: 1.25 }),
                  ...(at === undefined ? [] : [Plot.ruleX([at], { stroke: "#D55E00" }), Plot.dot(lines.filter((row) => row.sequence_number === at), { x: "sequence_number", y: "cosine_distance", fill: "#D55E00", r: 4 })]),
                  Plot.tip(observed, Plot.pointerX({ x: "sequence_number", y: "q50", title: (row: Row) => `state ${row.sequence_number}\nmedian ${shown(row.q50)} (${shown(row.q25)} to ${shown(row.q75)})\nn = ${row.runs} runs` })),
                ],
              })}
            />
          </figure>
        );
      })}
    </Section>
  );
}

function Strip({ rows, at, run, others }: { rows: Row[]; at: number | undefined; run: string; others: string[] }) {
  const start = rows[0]!;
  const pick = (n: number) => fragment.set({ run: unique([run, ...others]).join(","), at: String(n), cluster: undefined });
  const onKeyDown = (event: Keys) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const place = rows.findIndex((row) => row.sequence_number === at);
    const next = rows[Math.min(rows.length - 1, Math.max(0, place + move))]!;
    pick(number(next.sequence_number));
    event.currentTarget.querySelector(`[data-state="${next.sequence_number}"]`)?.scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  const ended = start.stop_reason === "repeat" ? `came back to a state: a loop of ${start.loop_length}` : "ended by its length";
  return (
    <div class="run" data-run={run}>
      <h3>
        <Words text={text(start.prompt)} most={140} />
      </h3>
      <p class="caption">
        {start.network}, prompt {text(start.prompt_id)}, {rows.filter((row) => number(row.sequence_number) >= 0).length} states, {ended}
      </p>
      <div class="strip states" role="group" tabIndex={0} aria-label={`States of ${text(start.prompt_id)}: arrow keys move`} onKeyDown={onKeyDown}>
        {rows.map((row) => {
          const n = number(row.sequence_number);
          const source = row.type === "IMAGE" ? picture(`state/${row.network}/${row.output_key}`) : undefined;
          return (
            <button key={n} type="button" tabIndex={-1} data-state={n} class={`${n === at ? "on" : ""} ${row.type === "IMAGE" ? "" : "text"}`} aria-pressed={n === at} onClick={() => pick(n)}>
              {row.type === "IMAGE" ? source ? <img src={source} alt={`State ${n}`} loading="lazy" /> : <span class="none">no picture</span> : <span class="said" dir="auto">{short(text(n < 0 ? row.prompt : row.output_text), 160)}</span>}
              <span>{n < 0 ? "prompt" : n}</span>
            </button>
          );
        })}
      </div>
    </div>
  );
}
