// Joins the newer part of a figure with what is drawn: an update of a live run sends one column, not all of them.

const TYPES = { f8: Float64Array, f4: Float32Array, i4: Int32Array, u1: Uint8Array };
const STEP_ARRAYS = { heatmap: ["x", "z", "customdata", "text"], scatter: ["x", "y", "customdata"] };

/** Returns the whole traces of a figure; null if its newer part does not continue the `drawn` traces. */
export function mergeFigure(drawn, { data, since, begins }) {
  if (since === undefined) return data;
  if (drawn?.length !== data.length) return null;
  const merged = data.map((trace, i) => mergeTrace(drawn[i], trace, since, begins[i]));
  return merged.every(Boolean) ? merged : null;
}

function mergeTrace(old, trace, since, begins) {
  const x = decode(old.x);
  if (x[0] !== begins || identity(old) !== identity(trace)) return null;
  const index = x.findIndex((value) => value >= since);
  const kept = index < 0 ? x.length : index;
  const names = STEP_ARRAYS[trace.type].filter((name) => name in trace);
  const arrays = names.map((name) => [name, mergeArrays(decode(old[name]), decode(trace[name]), kept)]);
  return { ...trace, ...Object.fromEntries(arrays) };
}

/** What must be equal for two traces to be the same: the name of a line, the rows of a heatmap. */
const identity = ({ type, name, meta, y }) => JSON.stringify([type, name, meta, type === "heatmap" ? y : null]);

/** The first `kept` entries of `old`, then `newer`; of two-dimensional arrays row by row. */
function mergeArrays(old, newer, kept) {
  const twoDimensional = Array.isArray(old[0]) || ArrayBuffer.isView(old[0]);
  return twoDimensional ? old.map((row, i) => mergeRow(row, newer[i], kept)) : mergeRow(old, newer, kept);
}

function mergeRow(old, newer, kept) {
  if (Array.isArray(old)) return [...old.slice(0, kept), ...newer];
  const merged = new old.constructor(kept + newer.length);
  merged.set(old.subarray(0, kept));
  merged.set(newer, kept);
  return merged;
}

/** Plotly's typed-array encoding as one array or as an array of rows; other arrays are returned unchanged. */
export function decode(value) {
  if (value.bdata === undefined) return value;
  const flat = new TYPES[value.dtype](Uint8Array.from(atob(value.bdata), (c) => c.charCodeAt(0)).buffer);
  if (!value.shape) return flat;
  const [rows, width] = value.shape.split(",").map(Number);
  return Array.from({ length: rows }, (_, i) => flat.subarray(i * width, (i + 1) * width));
}
