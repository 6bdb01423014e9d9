import type { ComponentChildren, JSX } from "preact";
import type { Problem } from "../api";
import { Prose } from "./prose";

/** An empty view that says what to do about it. */
export const Notice = ({
  title,
  children,
  testid,
}: {
  title: string;
  children: ComponentChildren;
  testid: string;
}): JSX.Element => (
  <section class="notice" data-testid={testid}>
    <h2>{title}</h2>
    {children}
  </section>
);

export const Failure = ({ problem, onRetry }: { problem: Problem; onRetry: () => void }): JSX.Element => (
  <section class="notice failure" role="alert" data-testid="error">
    <h2>{problem.status === 404 ? "Not found" : "This did not load"}</h2>
    <p>
      <Prose text={problem.message} />
      {problem.status ? ` (${problem.status})` : ""}
    </p>
    <button type="button" onClick={onRetry}>
      Try again
    </button>
  </section>
);
