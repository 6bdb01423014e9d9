import type { JSX } from "preact";
import { link } from "./events";
import { RunPage } from "./run/page";
import { RunsPage } from "./runs/page";
import { about, leave, session } from "./session";
import { SignIn } from "./sign-in";
import { isDark, toggle } from "./theme";
import { IconButton } from "./ui/icons";
import { go, view } from "./url";

export function App(): JSX.Element | null {
  const { run } = view.value;
  return (
    <>
      <TopBar />
      {session.value === "needed" ? (
        <SignIn />
      ) : session.value === "unknown" ? (
        <main class="loading" aria-busy="true" />
      ) : run === null ? (
        <RunsPage />
      ) : (
        <RunPage key={run} id={run} />
      )}
    </>
  );
}

const LINK_WORDS = { connecting: "connecting", live: "live", broken: "reconnecting" } as const;

function TopBar(): JSX.Element {
  const home = (event: MouseEvent): void => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    go(null);
  };
  const open = session.value === "open";
  return (
    <nav class="top-bar" aria-label="Trimtab">
      <a class="brand" href="/" onClick={home} aria-label="Trimtab: all runs">
        <svg viewBox="0 0 24 24" aria-hidden="true">
          <path class="rudder" d="M2 8.5 14 5.5v13L2 15.5z" />
          <path class="tab" d="m15.5 9.5 7 4.2-7 4.3z" />
        </svg>
        Trimtab
      </a>
      {view.value.run && open && (
        <a class="crumb" href="/" onClick={home} data-testid="all-runs">
          all runs
        </a>
      )}
      <span class="spring" />
      {open && (
        <span class={`link-state ${link.value}`} role="status" data-testid="link" data-link={link.value}>
          {LINK_WORDS[link.value]}
        </span>
      )}
      {about.value && (
        <span class="about num" title={`signed in as ${about.value.role}`}>
          {about.value.version}
        </span>
      )}
      <IconButton
        name={isDark() ? "sun" : "moon"}
        label={isDark() ? "Light colours" : "Dark colours"}
        testid="theme-toggle"
        onClick={toggle}
      />
      {open && about.value && <IconButton name="out" label="Sign out" testid="sign-out" onClick={() => void leave()} />}
    </nav>
  );
}
