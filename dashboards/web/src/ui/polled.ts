import { type Signal, signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { Problem } from "../api";
import { session } from "../session";

/** What a view asks for again and again: the last answer, and what has gone wrong since. */
export interface Polled<T> {
  readonly last: Signal<T | null>;
  readonly problem: Signal<Problem | null>;
  readonly load: () => Promise<void>;
}

export function polled<T>(ask: () => Promise<T>): Polled<T> {
  const last = signal<T | null>(null);
  const problem = signal<Problem | null>(null);
  const load = async (): Promise<void> => {
    try {
      last.value = await ask();
      problem.value = null;
    } catch (error) {
      problem.value = Problem.of(error);
      if (problem.value.status === 401) session.value = "needed";
    }
  };
  return { last, problem, load };
}

/** Asks at once, then every `ms` while the tab is in sight, under `title`. */
export function usePolled({ load }: Polled<unknown>, ms: number, title: string): void {
  useEffect(() => {
    document.title = `${title} · Trimtab`;
    void load();
    const timer = setInterval(() => document.hidden || void load(), ms);
    return () => clearInterval(timer);
  }, [load]);
}
