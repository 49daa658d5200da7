// What TensorBoard loads first: plotly.js, by far the largest part, begins to load before the rest of the page.

import { plotly } from "./api.js";

plotly().catch(() => {}); // the page asks again, and says what is wrong

/** TensorBoard calls this once, in the tab's own frame. */
export async function render() {
  const page = await import("./page.js");
  await page.render();
}
