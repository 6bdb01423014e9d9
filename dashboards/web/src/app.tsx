import type { JSX } from "preact";
import { useMemo } from "preact/hooks";
import { link } from "./events";
import { RunsPage } from "./runs/page";
import { about, leave, session } from "./session";
import { SignIn } from "./sign-in";
import { isDark, toggle } from "./theme";
import { IconButton } from "./ui/icons";
import { lazy } from "./ui/lazy";
import { Link } from "./ui/link";
import { help, Shortcuts, useShortcuts, type Shortcut } from "./ui/shortcuts";
import { go, view, type PageName } from "./url";

/** By then the list is there, and the next view may come in advance. */
const IDLE_MS = 2000;


// The charts are most of the page: whoever opens a run has them fetched at once, beside the run itself.
const loadRun = () => import("./run/page").then((module) => module.RunPage);
if (view.peek().page === "run") void loadRun();
else setTimeout(() => void loadRun(), IDLE_MS);

const RunPage = lazy<{ id: string }>(loadRun);
const ComparePage = lazy(() => import("./compare/page").then((module) => module.ComparePage));
const JobsPage = lazy(() => import("./jobs/page").then((module) => module.JobsPage));
const JobPage = lazy<{ id: string }>(() => import("./jobs/job").then((module) => module.JobPage));
const ClusterPage = lazy(() => import("./cluster/page").then((module) => module.ClusterPage));

export function App(): JSX.Element {
  return (
    <>
      <a class="skip" href="#main">
        Skip to the content
      </a>
      <TopBar />
      <Shown />
      <Shortcuts />
    </>
  );
}

function Shown(): JSX.Element {
  const { page, run, job, runs } = view.value;
  if (session.value === "needed") return <SignIn />;
  if (session.value === "unknown") return <main id="main" class="loading" aria-busy="true" />;
  switch (page) {
    case "run":
      return <RunPage key={run} id={run!} />;
    case "compare":
      return <ComparePage key={runs.join()} />;
    case "jobs":
      return <JobsPage />;
    case "job":
      return <JobPage key={job} id={job!} />;
    case "cluster":
      return <ClusterPage />;
    case "runs":
      return <RunsPage />;
  }
}

const LINK_WORDS = { connecting: "connecting", live: "live", broken: "reconnecting" } as const;

/** Views that live by the event stream; the others ask now and then. */
const STREAMED: readonly PageName[] = ["runs", "run", "compare"];

const PLACES: readonly { page: PageName; word: string; also: readonly PageName[] }[] = [
  { page: "runs", word: "Runs", also: ["run", "compare"] },
  { page: "jobs", word: "Jobs", also: ["job"] },
  { page: "cluster", word: "Cluster", also: [] },
];

function TopBar(): JSX.Element {
  const open = session.value === "open";
  useShortcuts(
    useMemo((): Shortcut[] => {
      const to = (page: PageName): Shortcut => ({ keys: `g ${page[0]}`, what: `go to ${page}`, run: () => go({ page }) });
      return [to("runs"), to("jobs"), to("cluster"), { keys: "t", what: "light or dark colours", run: toggle }];
    }, []),
  );
  return (
    <header class="top-bar">
      <Link to={{}} class="brand" label="Trimtab: all runs">
        <svg viewBox="0 0 24 24" aria-hidden="true">
          <path class="rudder" d="M2 8.5 14 5.5v13L2 15.5z" />
          <path class="tab" d="m15.5 9.5 7 4.2-7 4.3z" />
        </svg>
        <span>Trimtab</span>
      </Link>
      {open && (
        <nav aria-label="Trimtab">
          {PLACES.map(({ page, word, also }) => (
            <Link
              key={page}
              to={{ page }}
              class={[page, ...also].includes(view.value.page) ? "here" : ""}
              current={view.value.page === page}
              testid={`nav-${page}`}
            >
              {word}
            </Link>
          ))}
        </nav>
      )}
      <span class="spring" />
      {open && STREAMED.includes(view.value.page) && (
        <span class={`link-state ${link.value}`} role="status" data-testid="link" data-link={link.value}>
          {LINK_WORDS[link.value]}
        </span>
      )}
      {about.value && (
        <span class="about num" title={`signed in as ${about.value.role}`}>
          {about.value.version}
        </span>
      )}
      <IconButton name="keys" label="Keys" testid="keys-help" onClick={help} />
      <IconButton
        name={isDark() ? "sun" : "moon"}
        label={isDark() ? "Light colours" : "Dark colours"}
        testid="theme-toggle"
        onClick={toggle}
      />
      {open && about.value && <IconButton name="out" label="Sign out" testid="sign-out" onClick={() => void leave()} />}
    </header>
  );
}
