import { computed, signal } from "@preact/signals";
import * as api from "../api";
import { listen } from "../events";
import { session } from "../session";
import { view } from "../url";
import { matches, ordered } from "./order";

/** All runs, newest first. */
export class RunsStore {
  readonly loaded = signal(false);
  readonly error = signal<api.Problem | null>(null);
  private readonly byId = signal<ReadonlyMap<string, api.RunSummary>>(new Map());
  private readonly filter = computed(() => view.value.filter);
  private readonly sort = computed(() => view.value.sort);
  readonly shown = computed(() =>
    ordered(
      [...this.byId.value.values()].filter((run) => matches(run, this.filter.value)),
      this.sort.value,
    ),
  );
  readonly total = computed(() => this.byId.value.size);

  private pending: api.RunSummary[] = [];
  private timer = 0;

  start(): () => void {
    const close = listen(null, { runs: (run: api.RunSummary) => this.queue(run), reset: () => void this.load() });
    void this.load();
    return () => {
      close();
      clearTimeout(this.timer);
    };
  }

  async load(): Promise<void> {
    try {
      let page: string | null = null;
      const fresh: api.RunSummary[] = [];
      do {
        const answer = await api.runs(page);
        fresh.push(...answer.runs);
        page = answer.next_page_token;
        this.byId.value = new Map([...this.byId.peek(), ...answer.runs.map((run) => [run.id, run] as const)]);
        this.loaded.value = true;
      } while (page);
      this.byId.value = new Map(fresh.map((run) => [run.id, run]));
      this.error.value = null;
    } catch (error) {
      const problem = api.Problem.of(error);
      if (problem.status === 401) session.value = "needed";
      this.error.value = problem;
    }
  }

  /** A cluster reports many runs a second; the table changes four times a second. */
  private queue(run: api.RunSummary): void {
    this.pending.push(run);
    this.timer ||= window.setTimeout(() => {
      this.timer = 0;
      this.byId.value = new Map([...this.byId.peek(), ...this.pending.map((r) => [r.id, r] as const)]);
      this.pending = [];
    }, 250);
  }
}
