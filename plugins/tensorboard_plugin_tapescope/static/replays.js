// Steps that were run again by `tapescope replay`, below the findings of a run.

import { h, sentence } from "./dom.js";
import { count, formatNumber, formatStep } from "./format.js";

const PIXEL_SIZE = 64; // CSS pixels of the longer side of an image
const MOST_NUMBERS = 8;
const EXAMPLE_COLUMNS = {
  Example: "Index of the example in the training data",
  Loss: "Loss of this example alone",
  "Gradient norm": "L2 norm of the gradient of this example's loss",
  Inputs: "What the model was given",
};
const VARIANT_COLUMNS = {
  Change: "What was different when the step was run again",
  "Loss after": "Loss of the other examples after the step",
};

/** Makes the section of all replayed steps of a run. */
export function replaySection(replays) {
  return h("section", { class: "replays", "aria-label": "Replayed steps" }, replays.map(replayCard));
}

function replayCard(replay) {
  const far = replay.difference === null ? "" : `, by up to ${formatNumber(100 * replay.difference, 2)} %`;
  const result = replay.reproduced ? "reproduced to the bit" : `not reproduced${far}`;
  const layer = replay.first_layer;
  const changed = layer ? ` The first layer that ${layer.reason === "grown" ? "has grown" : "is not finite"} is \`${layer.layer}\`.` : "";
  return h(
    "article",
    { class: "replay" },
    h("h3", {}, `Step ${formatStep(replay.step)}, run again`, h("span", { class: `chip ${replay.reproduced ? "ended" : "warning"}` }, result)),
    h("p", {}, sentence(`Loss ${number(replay.loss)}, gradient norm ${number(replay.gradient_norm)}.${changed}`)),
    h("p", { class: "kind" }, `The heaviest of ${count(replay.count, "example")}`),
    table(Object.entries(EXAMPLE_COLUMNS), replay.examples.map(exampleRow)),
    replay.variants.length ? h("p", { class: "kind" }, "The step with one change, and the loss of the other examples after it") : null,
    replay.variants.length ? table(Object.entries(VARIANT_COLUMNS), replay.variants.map((v) => [v.change, number(v.loss_after)])) : null,
    replay.notes.map((note) => h("p", { class: "advice" }, sentence(note))),
  );
}

function exampleRow({ index, loss, gradient_norm, inputs }) {
  return [String(index), number(loss), number(gradient_norm), h("span", { class: "inputs" }, inputs.map(input))];
}

const number = (value) => (value === null ? "not finite" : formatNumber(value));

function table(titles, rows) {
  const head = h("tr", {}, titles.map(([title, definition]) => h("th", { scope: "col", title: definition }, title)));
  return h("table", {}, h("thead", {}, head), h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell) => h("td", {}, cell))))));
}

/** Makes an image of an array [H, W], [H, W, 1] or [H, W, 3], and text of any other. */
function input({ name, shape, values }) {
  const size = imageSize(shape, values.length);
  if (!size) {
    const more = values.length > MOST_NUMBERS ? ", …" : "";
    return h("span", {}, `${name}: ${values.slice(0, MOST_NUMBERS).map(number).join(", ")}${more}`);
  }
  const canvas = h("canvas", { width: size.width, height: size.height, role: "img", "aria-label": name, title: name });
  const scale = PIXEL_SIZE / Math.max(size.width, size.height);
  canvas.style.setProperty("width", `${size.width * scale}px`);
  const image = new ImageData(pixels(values, size.channels), size.width, size.height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Returns width, height and channels if an array can be drawn as an image, else null. */
export function imageSize(shape, length) {
  const [height, width, channels = 1] = shape;
  const isImage = (shape.length === 2 || shape.length === 3) && (channels === 1 || channels === 3);
  return isImage && Math.min(height, width) > 1 && height * width * channels === length ? { width, height, channels } : null;
}

/** Returns RGBA bytes: the values from their least to their largest; those that are not finite are red. */
export function pixels(values, channels) {
  const finite = values.filter((value) => value !== null);
  const low = finite.reduce((a, b) => Math.min(a, b), Infinity);
  const range = finite.reduce((a, b) => Math.max(a, b), -Infinity) - low || 1;
  const bytes = new Uint8ClampedArray((4 * values.length) / channels);
  for (let pixel = 0; pixel < bytes.length / 4; pixel++) {
    const parts = [0, 1, 2].map((c) => values[pixel * channels + (channels === 3 ? c : 0)]);
    const colour = parts.includes(null) ? [217, 48, 37] : parts.map((value) => (255 * (value - low)) / range);
    bytes.set([...colour, 255], 4 * pixel);
  }
  return bytes;
}
