import { signal, type Signal } from "@preact/signals";
import { Stream, type Link, type Listener } from "./stream/stream";
import type { FromWorker, ToWorker } from "./stream/worker";

/** How the page's event stream fares; the header shows it. */
export const link: Signal<Link> = signal("connecting");

/** A tab without the shared worker, hidden for so long, gives its connection back. */
const HIDDEN_MS = 30_000;

interface Transport {
  add: (listener: Listener) => () => void;
}

/** Hear topics of `runs` (null: of all) until the answer is called; the names of the handlers are the topics. */
export function listen(
  runs: readonly string[] | null,
  handlers: Readonly<Record<string, (data: never) => void>>,
): () => void {
  const topics = Object.keys(handlers).filter((name) => name !== "reset");
  return transport().add({
    wish: { runs, topics },
    hear: (topic, data) => handlers[topic]?.(data as never),
    link: (now) => (link.value = now),
  });
}

let chosen: Transport | null = null;
const transport = (): Transport => (chosen ??= "SharedWorker" in globalThis ? shared() : own());

/** By way of the worker that all tabs share. */
function shared(): Transport {
  const worker = new SharedWorker(new URL("./stream/worker.ts", import.meta.url), { type: "module", name: "events" });
  const send = (message: ToWorker): void => worker.port.postMessage(message);
  const listeners = new Map<number, Listener>();
  const elsewhere = new Map<number, () => void>();
  let next = 0;
  worker.port.onmessage = ({ data: message }: MessageEvent<FromWorker>) => {
    if (message.kind === "link") link.value = message.link;
    else listeners.get(message.key)?.hear(message.topic, message.data);
  };
  worker.onerror = () => {
    // It did not load: each tab for itself, then.
    const instead = (chosen = own());
    listeners.forEach((listener, key) => elsewhere.set(key, instead.add(listener)));
  };
  const lock = crypto.randomUUID?.();
  // Only secure contexts (https, localhost) have locks.
  if (lock && "locks" in navigator) {
    void navigator.locks.request(lock, () => {
      send({ kind: "alive", lock }); // not before it is held: the worker would take it at once
      return new Promise(() => undefined);
    });
  }
  addEventListener("pagehide", () => send({ kind: "bye" }));
  addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    listeners.forEach((listener, key) => {
      send({ kind: "listen", key, wish: listener.wish });
      listener.hear("reset", {});
    });
  });
  return {
    add: (listener) => {
      const key = next++;
      listeners.set(key, listener);
      send({ kind: "listen", key, wish: listener.wish });
      return () => {
        listeners.delete(key);
        elsewhere.get(key)?.();
        send({ kind: "leave", key });
      };
    },
  };
}

/** In the tab itself. */
function own(): Transport {
  const stream = new Stream();
  const listeners = new Set<Listener>();
  let parted = false;
  let timer = 0;
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (document.hidden) {
      timer = window.setTimeout(() => {
        parted = true;
        listeners.forEach((listener) => stream.remove(listener));
      }, HIDDEN_MS);
    } else if (parted) {
      parted = false;
      listeners.forEach((listener) => {
        stream.add(listener);
        listener.hear("reset", {});
      });
    }
  });
  return {
    add: (listener) => {
      listeners.add(listener);
      stream.add(listener);
      return () => {
        listeners.delete(listener);
        stream.remove(listener);
      };
    },
  };
}
