/** The state of the page, in the fragment of its address: a link shows another reader the same. */
import { useEffect, useState } from "preact/hooks";

const listeners = new Set<() => void>();
let state = read();

function read(): Map<string, string> {
  return new Map(new URLSearchParams(location.hash.replace(/^#/, "")));
}

addEventListener("hashchange", () => {
  state = read();
  listeners.forEach((tell) => tell());
});

export function get(name: string): string | undefined {
  return state.get(name);
}

/** Set values; an empty one is taken out. `step` makes an entry of the history that "back" returns from. */
export function set(values: Record<string, string | undefined>, step = false): void {
  for (const [name, value] of Object.entries(values)) {
    if (value) state.set(name, value);
    else state.delete(name);
  }
  const hash = `#${new URLSearchParams([...state]).toString()}`;
  if (step) history.pushState(null, "", hash);
  else history.replaceState(null, "", hash);
  listeners.forEach((tell) => tell());
}

/** Draw the component anew when the fragment changes. */
export function useFragment(): void {
  const [, again] = useState(0);
  useEffect(() => {
    const tell = () => again((n) => n + 1);
    listeners.add(tell);
    return () => void listeners.delete(tell);
  }, []);
}

/** One of `choices` by its name in the fragment; the first where it names none of them. */
export function chosen(name: string, choices: string[], otherwise = choices[0] ?? ""): string {
  const value = state.get(name);
  return value !== undefined && choices.includes(value) ? value : otherwise;
}

export function chosenNumber(name: string, least: number, most: number, otherwise: number): number {
  const value = Number(state.get(name) ?? NaN);
  return Number.isFinite(value) ? Math.min(most, Math.max(least, value)) : otherwise;
}
