/** The shared worker: browsers allow six connections an origin over HTTP/1.1, and people have more tabs than that. */
import { Stream, type Link, type Listener, type Wish } from "./stream";

export type ToWorker =
  | { kind: "listen"; key: number; wish: Wish }
  | { kind: "leave"; key: number }
  /** The name of a lock that the tab holds as long as it lives. */
  | { kind: "alive"; lock: string }
  | { kind: "bye" };
export type FromWorker = { kind: "event"; key: number; topic: string; data: unknown } | { kind: "link"; link: Link };

const stream = new Stream();

function serve(port: MessagePort): void {
  const listeners = new Map<number, Listener>();
  const send = (message: FromWorker): void => port.postMessage(message);
  const leave = (key: number): void => {
    const listener = listeners.get(key);
    listeners.delete(key);
    if (listener) stream.remove(listener);
  };
  const leaveAll = (): void => [...listeners.keys()].forEach(leave);
  port.onmessage = ({ data: message }: MessageEvent<ToWorker>) => {
    switch (message.kind) {
      case "listen": {
        const { key, wish } = message;
        const listener: Listener = {
          wish,
          hear: (topic, data) => send({ kind: "event", key, topic, data }),
          link: (link) => send({ kind: "link", link }),
        };
        listeners.set(key, listener);
        stream.add(listener);
        break;
      }
      case "leave":
        leave(message.key);
        break;
      case "alive":
        // A tab that crashes says no goodbye, but its lock is free then.
        void navigator.locks.request(message.lock, leaveAll);
        break;
      case "bye":
        leaveAll();
    }
  };
}

addEventListener("connect", (event) => serve((event as MessageEvent).ports[0]!));
