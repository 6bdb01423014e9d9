import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Stream, union, type Listener } from "../src/stream/stream";

/** An EventSource that a test drives. */
class Source extends EventTarget {
  static readonly CLOSED = 2;
  static all: Source[] = [];
  readyState = 0;
  onopen: () => void = () => undefined;
  onerror: () => void = () => undefined;
  readonly query: URLSearchParams;

  constructor(url: string) {
    super();
    this.query = new URL(url, "http://here").searchParams;
    Source.all.push(this);
  }

  close(): void {
    this.readyState = Source.CLOSED;
  }

  open(): void {
    this.readyState = 1;
    this.onopen();
  }

  say(topic: string, data: unknown, lastEventId: string): void {
    this.dispatchEvent(new MessageEvent(topic, { data: JSON.stringify(data), lastEventId }));
  }
}

const latest = (): Source => Source.all.at(-1)!;
const heard: string[] = [];
const listener = (name: string, runs: string[] | null, topics: string[]): Listener => ({
  wish: { runs, topics },
  hear: (topic, data) => heard.push(`${name} ${topic} ${JSON.stringify(data)}`),
  link: () => undefined,
});

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal("EventSource", Source);
  Source.all = [];
  heard.length = 0;
});
afterEach(() => vi.useRealTimers());

test("one connection asks for what all want, and each hears its own", () => {
  const stream = new Stream();
  stream.add(listener("list", null, ["runs"]));
  stream.add(listener("a", ["a"], ["metrics"]));
  stream.add(listener("b", ["b"], ["metrics", "changes"]));
  vi.runAllTimers();
  expect(Source.all).toHaveLength(1);
  expect(latest().query.getAll("run")).toEqual(["a", "b"]);
  expect(latest().query.get("topic")).toBe("changes,metrics");
  expect(latest().query.get("everywhere")).toBe("runs");
  latest().open();
  latest().say("metrics", { run: "a" }, "1-1");
  latest().say("changes", { run: "a" }, "1-2");
  latest().say("runs", { id: "b" }, "1-3");
  expect(heard).toEqual(['a metrics {"run":"a"}', 'list runs {"id":"b"}']);
});

test("another wish goes on after the last event; the same wish opens nothing", () => {
  const stream = new Stream();
  stream.add(listener("a", ["a"], ["metrics"]));
  vi.runAllTimers();
  latest().open();
  latest().say("metrics", { run: "a" }, "1-7");
  stream.add(listener("again", ["a"], ["metrics"]));
  vi.runAllTimers();
  expect(Source.all).toHaveLength(1);
  stream.add(listener("b", ["b"], ["metrics"]));
  vi.runAllTimers();
  expect(Source.all).toHaveLength(2);
  expect(latest().query.get("last_event_id")).toBe("1-7");
  latest().open();
  expect(heard.filter((line) => line.includes("reset"))).toEqual([]);
});

test("a refused connection is tried again with the last id; without one the state is to be loaded anew", () => {
  const stream = new Stream();
  stream.add(listener("a", ["a"], ["metrics"]));
  vi.runAllTimers();
  latest().open();
  latest().readyState = Source.CLOSED;
  latest().onerror();
  vi.runAllTimers();
  expect(Source.all).toHaveLength(2);
  latest().open();
  expect(heard).toEqual(["a reset {}"]);
});

test("who has left hears nothing, and the last one closes the connection", () => {
  const stream = new Stream();
  const one = listener("a", ["a"], ["metrics"]);
  stream.add(one);
  vi.runAllTimers();
  const source = latest();
  stream.remove(one);
  source.say("metrics", { run: "a" }, "1-1");
  vi.runAllTimers();
  expect(heard).toEqual([]);
  expect(source.readyState).toBe(Source.CLOSED);
});

test("a union names each run and topic once", () => {
  expect(union([{ runs: ["b", "a"], topics: ["x"] }, { runs: ["a"], topics: ["x", "w"] }])).toEqual({
    runs: ["a", "b"],
    topics: ["w", "x"],
    everywhere: [],
  });
});
