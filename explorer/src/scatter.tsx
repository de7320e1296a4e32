/** A map of many points, drawn by the graphics card: pan, zoom, press a point, or draw a lasso with shift held. */
import * as Plot from "@observablehq/plot";
import createScatterplot from "regl-scatterplot";
import { useEffect, useRef, useState } from "preact/hooks";
import { Chart } from "./ui";

export interface Dots {
  x: number[];
  y: number[];
  category: number[]; // place in `colours`
}

interface ScatterProps {
  label: string;
  dots: Dots;
  colours: string[];
  background: string;
  selected: number[];
  told: (index: number) => string;
  onSelect: (indices: number[]) => void;
}

const FEW = 5000; // points of the chart that stands in where there is no WebGL

export function Scatter({ label, dots, colours, background, selected, told, onSelect }: ScatterProps) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const plot = useRef<ReturnType<typeof createScatterplot>>(undefined);
  const [hover, setHover] = useState(-1);
  const [broken, setBroken] = useState(false);
  const latest = useRef({ onSelect, dots });
  latest.current = { onSelect, dots };

  useEffect(() => {
    const element = canvas.current;
    if (!element) return;
    if (!document.createElement("canvas").getContext("webgl")) {
      setBroken(true);
      return;
    }
    const made = createScatterplot({ canvas: element, width: "auto", height: "auto", lassoInitiator: false, pointOutlineWidth: 2 });
    plot.current = made;
    made.subscribe("select", ({ points }: { points: number[] }) => latest.current.onSelect(points));
    made.subscribe("pointOver", (i: number) => setHover(i));
    made.subscribe("pointOut", () => setHover(-1));
    return () => made.destroy();
  }, []);

  useEffect(() => {
    const made = plot.current;
    if (!made) return;
    const count = dots.x.length;
    const size = count > 50_000 ? 2 : count > 5_000 ? 3 : count > 500 ? 5 : 8;
    made.set({
      backgroundColor: background,
      colorBy: "valueA",
      pointColor: colours.length > 1 ? colours : [colours[0]!, colours[0]!],
      pointColorActive: "#D55E00",
      pointColorHover: "#D55E00",
      pointSize: size,
      pointSizeSelected: 4,
      opacity: count > 20_000 ? 0.6 : 0.85,
    });
    const drawn = made.draw({ x: scaled(dots.x), y: scaled(dots.y), valueA: dots.category }, { zDataType: "categorical" });
    void drawn.then(() => {
      if (selected.length) made.select(selected, { preventEvent: true });
      canvas.current!.dataset.drawn = String(count);
    });
  }, [dots, colours.join(), background]);

  useEffect(() => {
    const made = plot.current;
    if (!made || !made.get("points")?.length) return;
    if (selected.length) made.select(selected, { preventEvent: true });
    else made.deselect({ preventEvent: true });
  }, [selected.join()]);

  if (broken) return <Instead label={label} dots={dots} colours={colours} selected={selected} told={told} onSelect={onSelect} />;
  return (
    <div class="map">
      <div>
        <canvas ref={canvas} role="img" aria-label={label} data-selected={selected.length} />
      </div>
      <p class="hover" aria-hidden="true">
        {hover >= 0 && hover < dots.x.length ? told(hover) : "press a point; drag to move, wheel to zoom, shift and drag for a lasso"}
      </p>
    </div>
  );
}

/** To -1 ... 1, as the drawing wants it. */
function scaled(values: number[]): number[] {
  let [low, high] = [Infinity, -Infinity];
  for (const v of values) {
    if (v < low) low = v;
    if (v > high) high = v;
  }
  const span = high - low || 1;
  return values.map((v) => 1.9 * ((v - low) / span) - 0.95);
}

function Instead({ label, dots, colours, selected, told, onSelect }: Omit<ScatterProps, "background">) {
  const every = Math.ceil(dots.x.length / FEW);
  const indices = dots.x.map((_, i) => i).filter((i) => i % every === 0);
  return (
    <>
      <Chart
        label={label}
        deps={[dots, selected.join()]}
        onPick={(i) => onSelect([i as number])}
        plot={(width) => ({
          height: Math.min(width, 460),
          axis: null,
          marks: [
            Plot.dot(indices, { x: (i: number) => dots.x[i], y: (i: number) => dots.y[i], r: 2.5, fill: (i: number) => colours[dots.category[i]!] }),
            Plot.dot(selected, { x: (i: number) => dots.x[i], y: (i: number) => dots.y[i], r: 7, stroke: "#D55E00", strokeWidth: 2 }),
            Plot.tip(indices, Plot.pointer({ x: (i: number) => dots.x[i], y: (i: number) => dots.y[i], title: told })),
          ],
        })}
      />
      <p class="caption">
        This browser has no WebGL: {every > 1 ? `one in ${every} of the points is` : "the points are"} drawn without it.
      </p>
    </>
  );
}
