// The module that TensorBoard loads. plotly.js is by far the largest part, so it is requested before the page.

import { plotly } from "./api.js";

plotly().catch(() => {}); // the page asks again, and shows the error

/** Renders the page. TensorBoard calls this once, in the tab's own frame. */
export async function render() {
  const page = await import("./page.js");
  await page.render();
}
