"""Run every notebook under nbdev-test, each in a process of its own, several at a time, and print what each took.

nbdev-test runs a notebook in an in-process shell; notebooks that share a worker would share dtype, environment and modules.

    python tests/run_notebooks.py [--n-workers 2] [name ...]
"""
import argparse, os, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

nbs = Path(__file__).resolve().parent.parent/'nbs'


def run(nb):
    t0 = time.time()
    cmd = [Path(sys.executable).with_name('nbdev-test'), nb]
    try: res = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=nbs.parent, timeout=4*1800)
    except subprocess.TimeoutExpired as e: ok, said = False, f'stopped after {e.timeout} s\n{e.stdout or ""}'
    else: ok, said = res.returncode == 0 and 'Success.' in res.stdout, res.stdout
    print(f"{nb.stem:<32} {'ok' if ok else 'FAILED'}  {time.time()-t0:.0f} s", flush=True)
    if not ok: print(said, flush=True)
    return ok


if __name__ == '__main__':
    p = argparse.ArgumentParser()
    p.add_argument('names', nargs='*')
    p.add_argument('--n-workers', type=int, default=min(2, os.cpu_count() or 1))
    args = p.parse_args()
    todo = [o for o in sorted(nbs.rglob('*.ipynb')) if not any(n[0] in '._' for n in o.relative_to(nbs).parts)]
    todo = [o for o in todo if not args.names or any(o.relative_to(nbs).as_posix().startswith(n) or o.stem.startswith(n) for n in args.names)]
    if not todo: sys.exit('run_notebooks: no notebook matches')
    with ThreadPoolExecutor(args.n_workers) as ex: passed = list(ex.map(run, todo))
    print(f'{sum(passed)} passed, {len(passed)-sum(passed)} failed')
    sys.exit(not all(passed))
