// Numbers and names as text.

/** A number with at most `digits` significant digits; "–" if there is none. */
export function formatNumber(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value === "nan" ? "NaN" : value.replace("inf", "Inf");
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(2);
  return value.toLocaleString("en", { maximumSignificantDigits: digits });
}

/** A step with thousands separators. */
export const formatStep = (step) => step.toLocaleString("en");

/** `gradient norm` for `gradient_norm`. */
export const spaced = (name) => name.replaceAll("_", " ");

/** `1 run`, `2 runs`. */
export const count = (n, singular, plural = `${singular}s`) => `${n} ${n === 1 ? singular : plural}`;

/** The text with a capital letter and a full stop. */
export function asSentence(text) {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}
