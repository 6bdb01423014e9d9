/** Requests and answers: strict JSON, ETags, problems in the words of RFC 9457. */

/** A failed request, in the words of RFC 9457. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    detail: string,
    readonly fields: Readonly<Record<string, string>> = {},
  ) {
    super(detail);
  }

  static of(error: unknown): Problem {
    return error instanceof Problem ? error : new Problem(0, "unreachable", "The server did not answer.");
  }
}

const NOT_FINITE: Readonly<Record<string, number>> = { NaN, Infinity, "-Infinity": -Infinity };

/** Strict JSON has no NaN: the API sends the three words, which no name or reason in the contract equals. */
export function parse<T>(text: string): T {
  return JSON.parse(text, (_, value: unknown) =>
    typeof value === "string" && value in NOT_FINITE ? NOT_FINITE[value] : value,
  ) as T;
}

export const ROOT = "/api/v1";

interface Ask {
  method?: string;
  body?: unknown;
  /** The revision that a change is made on; 0: nothing may be there yet, "*": whatever is there. */
  match?: number | "*";
  signal?: AbortSignal;
}

export async function problem(answer: Response): Promise<Problem> {
  const text = await answer.text();
  const json = answer.headers.get("content-type")?.includes("json") ?? false;
  const body = json
    ? parse<{ code?: string; title?: string; detail?: string; errors?: { field: string; message: string }[] }>(text)
    : {};
  return new Problem(
    answer.status,
    body.code ?? "",
    body.detail || body.title || `${answer.status} ${answer.statusText}`,
    Object.fromEntries((body.errors ?? []).map((e) => [e.field, e.message])),
  );
}

export async function ask<T>(path: string, { method = "GET", body, match, signal }: Ask = {}): Promise<T> {
  const headers = new Headers({ Accept: "application/json" });
  if (body !== undefined) headers.set("Content-Type", "application/json");
  if (match === 0) headers.set("If-None-Match", "*");
  else if (match !== undefined) headers.set("If-Match", match === "*" ? "*" : `"${match}"`);
  const answer = await fetch(path, {
    method,
    headers,
    body: body === undefined ? null : JSON.stringify(body),
    signal: signal ?? null,
    credentials: "same-origin",
  });
  if (!answer.ok) throw await problem(answer);
  const text = await answer.text();
  return (text ? parse(text) : undefined) as T;
}

export const query = (pairs: readonly (readonly [string, string | number])[]): string =>
  new URLSearchParams(pairs.map(([k, v]) => [k, String(v)])).toString();
