/** The explorer: one page over a finished, or half finished, study. */
import { render } from "preact";
import { useEffect } from "preact/hooks";
import { study } from "./data";
import * as fragment from "./fragment";
import "./style.css";
import { Answers, Problems, useDark } from "./ui";
import { Benchmark } from "./views/benchmark";
import { Bits } from "./views/bits";
import { Blocks } from "./views/blocks";
import { Refiner } from "./views/refiner";
import { Study } from "./views/study";
import { Trajectories } from "./views/trajectories";

const VIEWS = {
  study: { title: "Study", question: "What was run, and what was said and painted in it?", stages: ["generate"], view: Study },
  blocks: { title: "Blocks", question: "What does each block of the network do to the picture?", stages: ["blocks", "ablate"], view: Blocks },
  bits: { title: "Bits", question: "Which layers need their bits, and what does a budget buy?", stages: ["calibrate", "sensitivity", "plan"], view: Bits },
  benchmark: { title: "Benchmark", question: "What does quantization save, and what does it cost?", stages: ["benchmark"], view: Benchmark },
  trajectories: { title: "Trajectories", question: "Where do text and pictures go when each is made of the other?", stages: ["trajectories", "drift", "cluster", "topology"], view: Trajectories },
  refiner: { title: "Refiner", question: "What can be told from a few parts of a picture?", stages: ["refine"], view: Refiner },
};
type Name = keyof typeof VIEWS;
const NAMES = Object.keys(VIEWS) as Name[];

function App() {
  fragment.useFragment();
  const dark = useDark();
  const name = fragment.chosen("view", NAMES) as Name;
  const theme = fragment.chosen("theme", ["auto", "light", "dark"]);
  const { question, stages, view: View } = VIEWS[name];
  useEffect(() => {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
  }, [dark]);
  useEffect(() => {
    document.title = `${VIEWS[name].title} · ${study.experiment} · ditscope`;
  }, [name]);
  const next = { auto: dark ? "light" : "dark", light: "dark", dark: "light" }[theme];
  return (
    <>
      <header>
        <div class="head">
          <a class="skip" href="#main" onClick={(event) => { event.preventDefault(); document.getElementById("main")!.focus(); }}>
            to the view
          </a>
          <p class="brand">
            <b>ditscope</b> <span>{study.experiment}</span>
          </p>
          <nav aria-label="Views">
            {NAMES.map((other, i) => (
              <a key={other} href={`#${elsewhere({ view: other })}`} aria-current={other === name ? "page" : undefined} title={`key ${i + 1}`}>
                {VIEWS[other].title}
              </a>
            ))}
          </nav>
          <button type="button" class="theme" onClick={() => fragment.set({ theme: next })} aria-label={`Switch to ${next} colours`}>
            {dark ? "☀" : "☾"}
          </button>
        </div>
      </header>
      <main id="main" tabIndex={-1}>
        <h1>{question}</h1>
        <Problems stages={["publish"]} />
        <Answers stages={stages} />
        <View key={name} />
      </main>
      <footer>
        Made by ditscope {study.version} from the tables of the study “{study.experiment}”. Keys: 1 to 6 for the views, / to search, t for light or dark; arrow keys in strips and on
        sliders. The address holds what you see: copy it to show it.
      </footer>
    </>
  );
}

/** The fragment of another view: what both views can use stays. */
function elsewhere(values: Record<string, string>): string {
  const kept: Record<string, string> = {};
  for (const key of ["theme", "model"]) {
    const value = fragment.get(key);
    if (value) kept[key] = value;
  }
  return new URLSearchParams({ ...kept, ...values }).toString();
}

addEventListener("keydown", (event) => {
  const target = event.target as HTMLElement;
  if (event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "SELECT", "TEXTAREA"].includes(target.tagName)) {
    if (!(target as HTMLInputElement).type || (target as HTMLInputElement).type !== "range" || !/^[1-6]$/.test(event.key)) return;
  }
  const view = NAMES[Number(event.key) - 1];
  if (view) location.hash = elsewhere({ view });
  else if (event.key === "t") fragment.set({ theme: document.documentElement.dataset.theme === "dark" ? "light" : "dark" });
  else if (event.key === "/") {
    event.preventDefault();
    fragment.set({ view: "study" }, true);
    requestAnimationFrame(() => document.getElementById("search")?.focus());
  }
});

render(<App />, document.getElementById("app")!);
document.documentElement.dataset.ready = "1";
