import { useSignal } from "@preact/signals";
import type { ComponentType, JSX } from "preact";
import { useEffect } from "preact/hooks";
import { Failure } from "./notice";
import { Problem } from "../api";

/** A view whose code comes when it is first looked at. */
export function lazy<Props extends object>(load: () => Promise<ComponentType<Props>>): ComponentType<Props> {
  let loaded: ComponentType<Props> | null = null;
  return function Lazy(props: Props): JSX.Element {
    const here = useSignal(loaded !== null);
    const failed = useSignal(false);
    const fetch = (): void => {
      failed.value = false;
      load().then(
        (component) => {
          loaded = component;
          here.value = true;
        },
        () => (failed.value = true),
      );
    };
    useEffect(() => {
      if (!here.peek()) fetch();
    }, []);
    if (failed.value) {
      const gone = new Problem(0, "", "This part of the page did not load; the server may have been updated.");
      return <Failure problem={gone} onRetry={() => location.reload()} />;
    }
    const Component = loaded;
    return here.value && Component ? <Component {...props} /> : <p class="quiet loading" aria-busy="true" />;
  };
}
