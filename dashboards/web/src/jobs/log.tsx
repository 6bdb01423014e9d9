import "../styles/log.css";
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import * as api from "../api";
import { Icon } from "../ui/icons";

/** Characters kept in the document; a browser grows slow with more. */
const KEPT = 500_000;
const RETRY_MS = 3000;
/** How near to the end counts as being there [px]. */
const NEAR_END = 40;

/** Without the colours of terminals, and without what progress bars have written over. */
const plain = (text: string): string =>
  text.replace(/\x1b\[[0-9;?]*[A-Za-z]/g, "").replace(/\r\n/g, "\n").replace(/[^\n]*\r(?=[^\n])/g, "");

/**
 * What a job prints, as it prints it. A hidden tab gives its connection back (HTTP/1.1 allows six an origin) and goes on
 * where it was.
 */
export function Log({ job, over = false }: { job: string; over?: boolean }): JSX.Element {
  const box = useRef<HTMLPreElement>(null);
  const state = useSignal<"following" | "ended" | "waiting">("following");
  const problem = useSignal("");
  const stuck = useSignal(true);
  const empty = useSignal(true);

  useEffect(() => {
    let skip = 0;
    let timer = 0;
    let abort = new AbortController();
    // The line that is not ended yet: a progress bar may go back to its start.
    const line = document.createTextNode("");
    box.current!.replaceChildren(line);
    const write = (text: string): void => {
      const element = box.current!;
      skip += [...text].length;
      empty.value = false;
      const full = plain(line.data + text);
      const end = full.lastIndexOf("\n") + 1;
      if (end > 0) line.before(full.slice(0, end));
      line.data = full.slice(end);
      while (element.textContent.length > KEPT && element.childNodes.length > 1) element.firstChild!.remove();
      if (stuck.peek()) element.scrollTop = element.scrollHeight;
    };
    const follow = async (): Promise<void> => {
      abort = new AbortController();
      state.value = "following";
      try {
        for await (const text of api.followLogs(job, skip, abort.signal)) write(text);
        problem.value = "";
        state.value = "ended";
      } catch (error) {
        if (abort.signal.aborted) return;
        const failed = api.Problem.of(error);
        problem.value = failed.message;
        state.value = "waiting";
        if (failed.status === 0 || failed.status >= 500) timer = window.setTimeout(() => void follow(), RETRY_MS);
      }
    };
    const visibility = (): void => {
      if (state.peek() === "ended") return;
      clearTimeout(timer);
      abort.abort();
      if (!document.hidden) void follow();
    };
    void follow();
    document.addEventListener("visibilitychange", visibility);
    return () => {
      document.removeEventListener("visibilitychange", visibility);
      clearTimeout(timer);
      abort.abort();
    };
  }, [job]);

  // Ray may hold the stream of a job that is over open for long.
  const ended = over || state.value === "ended";
  const onScroll = (): void => {
    const element = box.current!;
    stuck.value = element.scrollHeight - element.scrollTop - element.clientHeight < NEAR_END;
  };
  return (
    <div class="log" data-testid="log" data-state={state.value}>
      <header>
        <span class="quiet" role="status">
          {state.value === "waiting" ? "not followed" : ended ? "all that it printed" : "following"}
        </span>
        <span class="spring" />
        {!stuck.value && (
          <button
            type="button"
            onClick={() => box.current!.scrollTo({ top: box.current!.scrollHeight })}
            data-testid="log-end"
          >
            <Icon name="down" />
            to the end
          </button>
        )}
      </header>
      {problem.value && (
        <p class="alert error" role="alert">
          {problem.value}
        </p>
      )}
      {empty.value && !problem.value && (
        <p class="quiet">{state.value === "ended" ? "It printed nothing." : "Waiting for what it prints…"}</p>
      )}
      <pre ref={box} tabIndex={0} role="region" aria-label={`Log of ${job}`} onScroll={onScroll} hidden={empty.value} />
    </div>
  );
}
