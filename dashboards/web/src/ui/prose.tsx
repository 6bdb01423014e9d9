import type { JSX } from "preact";
import { spans } from "../format";

/** Text as docstrings have it: what stands between backticks is code. */
export const Prose = ({ text }: { text: string }): JSX.Element => (
  <>{spans(text).map((span, i) => (span.code ? <code key={i}>{span.text}</code> : span.text))}</>
);
