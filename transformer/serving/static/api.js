// What the server is asked. Errors come as one sentence for the reader.

import { say } from "./state.js";

// Waits as long as a busy server asks for, and asks again. `waiting` is told the seconds.
export async function ask(path, body, signal, waiting) {
  const headers = { "Content-Type": "application/json" };
  const options = body && { method: "POST", headers, body: JSON.stringify(body) };
  const answer = await fetch(path, { ...options, signal }).catch((error) => {
    throw signal?.aborted ? error : new Error(say("gone"));
  });
  if (answer.ok) return answer.json();
  if (answer.status !== 429) throw new Error(await refusal(answer));
  const seconds = Math.max(1, Number(answer.headers.get("Retry-After")));
  waiting?.(seconds);
  await new Promise((resolve) => { setTimeout(resolve, 1000 * seconds); });
  signal?.throwIfAborted();
  return ask(path, body, signal, waiting);
}

async function refusal(answer) {
  const { error = answer.statusText } = await answer.json().catch(() => ({}));
  return answer.status === 413 ? say("long", error) : say("refused", answer.status, error);
}
