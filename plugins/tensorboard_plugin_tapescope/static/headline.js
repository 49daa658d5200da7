// The headline of the overview: how many runs have errors or warnings, and their states.

import { count } from "./format.js";

/** Returns the headline's level, text and details for the summaries of runs. */
export function summarize(runs) {
  const withErrors = runs.filter((run) => run.findings.error).length;
  const withWarnings = runs.filter((run) => !run.findings.error && run.findings.warning).length;
  const inState = (state) => runs.filter((run) => run.state === state).length;
  const unreadable = runs.filter((run) => run.problems.length).length;
  const checked = runs.filter((run) => run.looked && !run.problems.length).length;
  const unchecked = runs.length - checked - unreadable;
  const details = [
    inState("training") && `${inState("training")} training`,
    inState("stalled") && `${inState("stalled")} stalled`,
    unreadable && `${unreadable} not fully readable`,
    unchecked && checked && `${unchecked} not checked by the rules`,
  ];
  const text = headlineText(runs.length, withErrors, withWarnings, checked);
  return { level: level(withErrors, withWarnings || unreadable, checked), text, details: details.filter(Boolean).join(", ") };
}

function headlineText(total, withErrors, withWarnings, checked) {
  const runs = count(total, "run");
  if (withErrors) return `${withErrors} of ${runs} ${withErrors === 1 ? "has" : "have"} errors`;
  if (withWarnings) return `${withWarnings} of ${runs} ${withWarnings === 1 ? "has" : "have"} warnings`;
  if (!checked) return `No findings recorded in ${runs}`;
  return checked === total ? `No errors or warnings in ${runs}` : `No errors or warnings in ${checked} of ${runs}`;
}

function level(errors, warnings, checked) {
  if (errors) return "error";
  if (warnings) return "warning";
  return checked ? "good" : "plain";
}
