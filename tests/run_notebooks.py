"""Run every notebook with nbdev's tester, each in a process of its own, several side by side as `course run` does, the longest first, and print what each took.

Notebooks that shared a process would share dtype, environment and modules. On Linux the processes are forked from one that has imported torch and fastai
already and has computed nothing, which saves each of them some seconds. Each has one thread: on two cores, two processes with two threads each are ten
times slower.

    python tests/run_notebooks.py [--jobs 2] [name ...]
"""
import argparse, multiprocessing, os, sys, tempfile, time
for k,v in dict(OMP_NUM_THREADS='1', OMP_WAIT_POLICY='PASSIVE').items(): os.environ.setdefault(k, v) # read once, when torch is imported
from importlib import import_module
from pathlib import Path
from course_lib.core import active_profile
from course_lib.runner import cell_minutes, full_name, longest_first, notebooks, side_by_side

root = Path(__file__).resolve().parent.parent


def run(nb):
    "Name, whether it passed, seconds, and what was said"
    from nbdev.test import test_nb
    t0 = time.time()
    with tempfile.TemporaryFile('w+', errors='replace') as f:
        for o in (1, 2): os.dup2(f.fileno(), o)
        try: ok = test_nb(nb, skip_flags=(), cell_timeout=60*cell_minutes, basepath=root)[0]
        except BaseException as e: ok = print(f'{type(e).__name__}: {e}', file=f, flush=True)
        f.seek(0)
        return full_name(nb), bool(ok), time.time()-t0, f.read()


if __name__ == '__main__':
    p = argparse.ArgumentParser()
    p.add_argument('names', nargs='*')
    p.add_argument('--jobs', type=int, default=0)
    args, profile = p.parse_args(), active_profile()
    todo = [o for o in notebooks() if not args.names or any(full_name(o).startswith(n) or o.stem.startswith(n) for n in args.names)]
    if not todo: sys.exit('run_notebooks: no notebook matches')
    jobs, _ = side_by_side(len(todo), profile, args.jobs)
    how = 'fork' if sys.platform == 'linux' else 'spawn'
    if how == 'fork': import_module('fastai.vision.all') # once for all
    failed = []
    with multiprocessing.get_context(how).Pool(jobs, maxtasksperchild=1) as pool:
        for name,ok,seconds,said in pool.imap_unordered(run, longest_first(todo, profile)):
            print(f"{name:<32} {'ok' if ok else 'FAILED'}  {seconds:.0f} s", *([] if ok else [said]), sep='\n' if not ok else '', flush=True)
            if not ok: failed.append(name)
    print(f'{len(todo)-len(failed)} passed, {len(failed)} failed')
    sys.exit(bool(failed))
