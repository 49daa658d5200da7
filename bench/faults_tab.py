"""10,000 requests over every route to tabs over 400 spoiled sets of runs; 10,000 layers and a million units."""

import os
import random
import resource
import sys
import warnings

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

from bench.faults import Row, told
from tests.plugin.hostile import SMALL, Tab, good, request, spoiled
from tests.plugin.synthetic import Spec

REQUESTS = 25
"""To each set of runs."""


def fuzzed(sets: int) -> Row:
    """No answer but 200, 400 and 404, and a good run beside the spoiled ones answers as it does alone."""
    failed, codes, disturbed = [], {200: 0, 400: 0, 404: 0}, 0
    alone = Tab({"good": good()})
    for seed in range(sets):
        rng = random.Random(seed)
        runs = {f"bad {i}": spoiled(rng, good(SMALL._replace(replicas=rng.choice([1, 2])))) for i in range(3)}
        tab = Tab({"good": good(), **runs})
        for _ in range(REQUESTS):
            route, asked = request(rng, ["good", *runs])
            try:
                codes[tab.checked(route, **asked).status_code] += 1
            except Exception as error:  # as a server would answer with a 500
                failed.append(f"{seed} {route} {asked}: {error}")
        mine, other = (t.get("view", view="flow", run="good").data for t in (tab, alone))
        disturbed += mine != other
    for line in failed[:5]:
        print(line[:300], file=sys.stderr)
    told_ = ", ".join(f"{n} x {code}" for code, n in codes.items())
    promise = f"{sets * REQUESTS} requests over all routes, to {sets} sets of spoiled runs"
    return Row(promise, f"{told_}, {len(failed)} x 500; {disturbed} good runs disturbed", not failed and not disturbed)


def large() -> Row:
    """Views of a run of 10,000 layers and of one of a million units: the largest answer, and the memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wide, many = good(Spec(depth=10_000, units=1, histograms=False), 3), good(Spec(2, 1_000_000, histograms=False), 2)
    tab = Tab({"wide": wide, "many": many})
    asked = [("flow", "wide"), ("budget", "wide"), ("layer", "wide"), ("layer", "many"), ("flow", "many")]
    sizes = [len(tab.checked("view", view=view, run=run).data) for view, run in asked]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    seen = f"largest answer {max(sizes) / 2**20:.1f} MiB, memory grows by {grown:.0f} MiB"
    return Row("10,000 layers, 1,000,000 units", seen, max(sizes) < 16 << 20 and grown < 1024)


def main() -> None:
    """The rows of the table."""
    warnings.simplefilter("ignore", RuntimeWarning)  # numbers at the end of float32
    told([fuzzed(20 if "--quick" in sys.argv else 400), large()])


if __name__ == "__main__":
    main()
