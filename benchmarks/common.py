"""What every benchmark says of itself, how it tells several measurements of one thing, and where its result goes."""
import json, statistics
from course_lib.core import clone_root, device_name, runs_home
from course_lib.files import write_atomic
from course_lib.results import versions


def about(device=None, **settings):
    "Machine, versions and settings of a measurement; printed as well"
    res = dict(device=device_name(device), versions=versions(), **settings)
    print(*(f'{k}: {" ".join(map(str, v.values())) if k == "versions" else v}' for k,v in res.items()), sep=', ', flush=True)
    return res


def spread(values, unit='s', digits=2):
    "Median, and in brackets the lowest and the highest"
    lo, mid, hi = (f'{o:,.{digits}f}' for o in (min(values), statistics.median(values), max(values)))
    return f'{mid:>8} {unit} ({lo} to {hi})'


def keep_result(name, res, keep):
    "Write a measurement to _runs/bench, and with `keep` to results/benchmarks as well"
    for home in [runs_home()/'bench', *([clone_root()/'results'/'benchmarks'] if keep and clone_root() else [])]:
        print(write_atomic(home/f'{name}.json', json.dumps(res, indent=1, ensure_ascii=False)+'\n'))
