// What is new of a figure, put behind what is drawn already: a live run sends a column a record, not all of them.

const TYPES = { f8: Float64Array, f4: Float32Array, i4: Int32Array, u1: Uint8Array };
const ALONG = { heatmap: ["x", "z", "customdata", "text"], scatter: ["x", "y", "customdata"] };

/** The traces of a figure, whole; null where what is new does not fit what was `drawn`. */
export function whole(drawn, { data, since, begins }) {
  if (since === undefined) return data;
  if (drawn?.length !== data.length) return null;
  const joined = data.map((trace, i) => behind(drawn[i], trace, since, begins[i]));
  return joined.every(Boolean) ? joined : null;
}

function behind(old, trace, since, begins) {
  const x = decoded(old.x);
  if (x[0] !== begins || label(old) !== label(trace)) return null;
  const at = x.findIndex((value) => value >= since);
  const kept = at < 0 ? x.length : at;
  const join = (a, b) => (Array.isArray(a[0]) || ArrayBuffer.isView(a[0]) ? a.map((row, i) => append(row, b[i], kept)) : append(a, b, kept));
  const names = ALONG[trace.type].filter((name) => name in trace);
  return { ...trace, ...Object.fromEntries(names.map((name) => [name, join(decoded(old[name]), decoded(trace[name]))])) };
}

/** What has to be the same: the name of a line, the rows of a heatmap. */
const label = ({ type, name, meta, y }) => JSON.stringify([type, name, meta, type === "heatmap" ? y : null]);

function append(row, more, kept) {
  if (Array.isArray(row)) return [...row.slice(0, kept), ...more];
  const all = new row.constructor(kept + more.length);
  all.set(row.subarray(0, kept));
  all.set(more, kept);
  return all;
}

/** Plotly's typed encoding as one array, or as an array of rows; what is decoded stays as it is. */
function decoded(value) {
  if (value.bdata === undefined) return value;
  const flat = new TYPES[value.dtype](Uint8Array.from(atob(value.bdata), (c) => c.charCodeAt(0)).buffer);
  if (!value.shape) return flat;
  const [rows, width] = value.shape.split(",").map(Number);
  return Array.from({ length: rows }, (_, i) => flat.subarray(i * width, (i + 1) * width));
}
