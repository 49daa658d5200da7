// Requests to the plugin's routes, which http_api.md documents. Paths are relative, so any --path_prefix works.

/** Returns a route's response. Throws an Error with the server's sentence if the request fails. */
export async function get(route, parameters = {}, signal = undefined) {
  const response = await fetch(`./${route}?${encode(parameters)}`, { signal });
  const content = await response.json().catch(() => ({ error: `TensorBoard answered ${response.status}.` }));
  if (!response.ok) throw new Error(content.error ?? `TensorBoard answered ${response.status}.`);
  return content;
}

/** Returns parameters as a query string: an array several times, empty and undefined ones not at all. */
export function encode(parameters) {
  const query = new URLSearchParams();
  for (const [name, values] of Object.entries(parameters)) {
    for (const value of [values].flat()) if (value !== "" && value !== undefined) query.append(name, value);
  }
  return query.toString();
}

let library = null;

/** Returns Plotly, loaded once from this server. */
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
