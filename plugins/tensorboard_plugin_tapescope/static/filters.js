// Filters of findings.

/** Returns the findings of a severity and a rule; an empty filter lets all pass. */
export function filterFindings(findings, { severity, rule }) {
  return findings.filter((finding) => (!severity || finding.severity === severity) && (!rule || finding.rule === rule));
}

/** Returns the rules of findings in alphabetical order, each with its number of findings. */
export function countRules(findings) {
  const counts = new Map();
  for (const { rule } of findings) counts.set(rule, (counts.get(rule) ?? 0) + 1);
  return [...counts].sort(([a], [b]) => a.localeCompare(b));
}
