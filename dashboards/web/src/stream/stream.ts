/** One EventSource for everybody who listens, whatever each wants to hear. Runs in the shared worker, or in the page. */
import { eventsPath } from "../api";
import { parse } from "../http";

export type Link = "connecting" | "live" | "broken";

/** Topics of some runs, or (null) of all. */
export interface Wish {
  runs: readonly string[] | null;
  topics: readonly string[];
}

export interface Listener {
  wish: Wish;
  /** `reset`: something may have been missed, load the state anew. */
  hear: (topic: string, data: unknown) => void;
  link: (link: Link) => void;
}

const TOPICS = ["metrics", "hparams", "changes", "runs", "alerts", "reset"] as const;
const RETRY_MS = 2000;
/** Wishes that come together, as when a page is left for another, open one connection. */
const GATHER_MS = 20;

/**
 * The browser itself retries a dropped connection with Last-Event-ID, but gives up for good on an HTTP error (an API
 * that restarts): that case is retried here. A changed wish opens another connection, which goes on after the last event.
 */
export class Stream {
  private readonly listeners = new Set<Listener>();
  private source: EventSource | null = null;
  private wanted = "";
  private lastId = "";
  private opened = false;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private link: Link = "connecting";

  add(listener: Listener): void {
    this.listeners.add(listener);
    listener.link(this.link);
    this.later(GATHER_MS);
  }

  remove(listener: Listener): void {
    this.listeners.delete(listener);
    this.later(GATHER_MS);
  }

  private later(ms: number): void {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.connect(), ms);
  }

  private connect(): void {
    const wishes = [...this.listeners].map((listener) => listener.wish);
    const wanted = wishes.length ? JSON.stringify(union(wishes)) : "";
    if (wanted === this.wanted && this.source?.readyState !== EventSource.CLOSED) return;
    this.wanted = wanted;
    this.source?.close();
    this.source = null;
    if (wanted) this.open(union(wishes));
    else [this.lastId, this.opened, this.link] = ["", false, "connecting"];
  }

  private open(wish: Union): void {
    if (this.link !== "live") this.tell("connecting");
    const source = new EventSource(eventsPath(wish, this.lastId));
    this.source = source;
    source.onopen = () => {
      // Opened anew with no id to go on from: something may have been missed.
      if (this.opened && !this.lastId) this.deliver("reset", {});
      this.opened = true;
      this.tell("live");
    };
    source.onerror = () => {
      this.tell("broken");
      if (source.readyState === EventSource.CLOSED) this.later(RETRY_MS);
    };
    for (const topic of TOPICS) {
      source.addEventListener(topic, (event: MessageEvent<string>) => {
        this.lastId = event.lastEventId || this.lastId;
        this.deliver(topic, parse(event.data));
      });
    }
  }

  private deliver(topic: string, data: { run?: string; id?: string }): void {
    const run = data.run ?? data.id ?? "";
    for (const { wish, hear } of this.listeners) {
      if (topic === "reset" || (wish.topics.includes(topic) && (wish.runs?.includes(run) ?? true))) hear(topic, data);
    }
  }

  private tell(link: Link): void {
    this.link = link;
    this.listeners.forEach((listener) => listener.link(link));
  }
}

/** What the server is asked for: topics of the named runs, and topics of every run. */
export interface Union {
  runs: readonly string[];
  topics: readonly string[];
  everywhere: readonly string[];
}

export function union(wishes: readonly Wish[]): Union {
  const all = wishes.filter((wish) => wish.runs === null);
  const some = wishes.filter((wish) => wish.runs !== null);
  const sorted = (words: readonly string[]): string[] => [...new Set(words)].sort();
  return {
    runs: sorted(some.flatMap((wish) => wish.runs ?? [])),
    topics: sorted(some.flatMap((wish) => wish.topics)),
    everywhere: sorted(all.flatMap((wish) => wish.topics)),
  };
}
