import { signal, type Signal } from "@preact/signals";
import { eventsPath } from "./api";
import { parse } from "./http";

export type Link = "connecting" | "live" | "broken";

/** How the page's one event stream fares; the header shows it. */
export const link: Signal<Link> = signal("connecting");

const RETRY_MS = 2000;
const HIDDEN_MS = 30_000;

/**
 * One EventSource that outlives refused reconnections. The browser itself retries a dropped connection, but gives up
 * for good on an HTTP error (an API that restarts), so that case is retried here with the last id as a query. A tab
 * hidden for a while gives its connection back: HTTP/1.1 allows six an origin, however many tabs are open.
 */
export function listen(run: string | null, handlers: Readonly<Record<string, (data: never) => void>>): () => void {
  let source: EventSource | null = null;
  let lastId = "";
  let timer = 0;
  let opened = false;

  const open = (): void => {
    clearTimeout(timer);
    source?.close();
    link.value = "connecting";
    source = new EventSource(
      eventsPath(
        run,
        Object.keys(handlers).filter((name) => name !== "reset"),
        lastId,
      ),
    );
    source.onopen = () => {
      // Reconnected with no id to go on from: something may have been missed.
      if (opened && !lastId) handlers.reset?.({} as never);
      opened = true;
      link.value = "live";
    };
    source.onerror = () => {
      link.value = "broken";
      if (source?.readyState === EventSource.CLOSED) timer = window.setTimeout(open, RETRY_MS);
    };
    for (const [name, handle] of Object.entries(handlers)) {
      source.addEventListener(name, (event: MessageEvent<string>) => {
        lastId = event.lastEventId || lastId;
        handle(parse(event.data) as never);
      });
    }
  };

  const close = (): void => {
    clearTimeout(timer);
    source?.close();
    source = null;
  };

  const visibility = (): void => {
    clearTimeout(timer);
    if (document.hidden) timer = window.setTimeout(close, HIDDEN_MS);
    else if (source === null || source.readyState === EventSource.CLOSED) open();
  };

  document.addEventListener("visibilitychange", visibility);
  open();
  return () => {
    document.removeEventListener("visibilitychange", visibility);
    close();
  };
}
