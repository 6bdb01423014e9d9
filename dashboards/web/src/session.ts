import { computed, signal } from "@preact/signals";
import * as api from "./api";

/** Whether the server wants a token first. */
export const session = signal<"unknown" | "needed" | "open">("unknown");
export const about = signal<{ version: string; role: string } | null>(null);

/** A viewer may look and not touch; the server refuses it anyway. */
export const mayAct = computed(() => about.value?.role !== "viewer");

/** Submitting a job runs code. */
export const isAdmin = computed(() => about.value?.role === "admin");

export async function enter(token: string): Promise<void> {
  await api.signIn(token);
  await greet();
}

export async function leave(): Promise<void> {
  await api.signOut();
  session.value = "needed";
}

async function greet(): Promise<void> {
  about.value = await api.version();
  session.value = "open";
}

/** Opened as `/#token=…`: trade the token for a cookie and take it out of the address before anything else. */
export async function arrive(): Promise<void> {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token !== null) history.replaceState(null, "", location.pathname + location.search);
  try {
    await (token === null ? greet() : enter(token));
  } catch (error) {
    // Any other failure is shown by the view, which meets it too.
    session.value = api.Problem.of(error).status === 401 ? "needed" : "open";
  }
}
