import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { Problem } from "./api";
import { enter } from "./session";

/** Shown whenever the server answers 401. */
export function SignIn(): JSX.Element {
  const token = useSignal("");
  const problem = useSignal("");
  const submit = async (event: Event): Promise<void> => {
    event.preventDefault();
    problem.value = "";
    try {
      await enter(token.value.trim());
    } catch (error) {
      const { status, message } = Problem.of(error);
      problem.value = status === 401 || status === 403 ? "The server does not know this token." : message;
    }
  };
  return (
    <main class="sign-in" id="main">
      <form class="notice" onSubmit={(event) => void submit(event)} data-testid="token-form">
        <h1>Sign in</h1>
        <p>
          <code>trimtab up</code> prints the page's address with its token. Paste the token here, or open that address.
        </p>
        <label class="field">
          <span>Token</span>
          <input
            type="password"
            autocomplete="current-password"
            autofocus
            value={token.value}
            data-testid="token-input"
            aria-invalid={problem.value !== ""}
            aria-describedby="token-error"
            onInput={(e) => (token.value = e.currentTarget.value)}
          />
        </label>
        {problem.value && (
          <p class="field-error" id="token-error" role="alert" data-testid="token-error">
            {problem.value}
          </p>
        )}
        <footer>
          <button type="submit" class="solid" disabled={token.value.trim() === ""} data-testid="token-submit">
            Enter
          </button>
        </footer>
      </form>
    </main>
  );
}
