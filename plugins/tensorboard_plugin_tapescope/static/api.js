// The plugin's own routes; http_api.md documents them. Paths are relative, so any --path_prefix works.

/** A route's answer. Throws an Error with the sentence of the server where it refuses. */
export async function get(route, parameters = {}, signal = undefined) {
  const response = await fetch(`./${route}?${encode(parameters)}`, { signal });
  const answer = await response.json().catch(() => ({ error: `TensorBoard answered ${response.status}.` }));
  if (!response.ok) throw new Error(answer.error ?? `TensorBoard answered ${response.status}.`);
  return answer;
}

export function encode(parameters) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) if (one !== "" && one !== undefined) query.append(name, one);
  }
  return query.toString();
}

let library = null;

/** Plotly, loaded once, from this server. */
export function plotly() {
  library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "./plotly.js";
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => reject(new Error("plotly.js could not be loaded from this TensorBoard."));
    document.head.append(script);
  });
  return library;
}
