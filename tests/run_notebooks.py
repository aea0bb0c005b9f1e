"""Run every notebook under nbdev-test, each in a process of its own, several side by side as `course run` does, the longest first, and print what each took.

nbdev-test runs a notebook in an in-process shell; notebooks that share a worker would share dtype, environment and modules.

    python tests/run_notebooks.py [--jobs 2] [name ...]
"""
import argparse, os, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from course_lib.runner import full_name, longest_first, notebooks, side_by_side, threads_env
from course_lib.core import active_profile

root = Path(__file__).resolve().parent.parent


def run(nb, env):
    t0 = time.time()
    cmd = [Path(sys.executable).with_name('nbdev-test'), nb]
    try: res = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root, env=env, timeout=4*1800)
    except subprocess.TimeoutExpired as e: ok, said = False, f'stopped after {e.timeout} s\n{e.stdout or ""}'
    else: ok, said = res.returncode == 0 and 'Success.' in res.stdout, res.stdout
    print('\n'.join([f"{full_name(nb):<32} {'ok' if ok else 'FAILED'}  {time.time()-t0:.0f} s", *([] if ok else [said])]), flush=True)
    return ok


if __name__ == '__main__':
    p = argparse.ArgumentParser()
    p.add_argument('names', nargs='*')
    p.add_argument('--jobs', type=int, default=0)
    args, profile = p.parse_args(), active_profile()
    todo = [o for o in notebooks() if not args.names or any(full_name(o).startswith(n) or o.stem.startswith(n) for n in args.names)]
    if not todo: sys.exit('run_notebooks: no notebook matches')
    jobs, threads = side_by_side(len(todo), profile, args.jobs)
    env = {**threads_env(threads), **os.environ}
    with ThreadPoolExecutor(jobs) as ex:
        futures = [ex.submit(run, o, env) for o in longest_first(todo, profile)]
        try: passed = [o.result() for o in futures]
        except KeyboardInterrupt: # those that run have heard it as well
            ex.shutdown(wait=False, cancel_futures=True)
            sys.exit(130)
    print(f'{sum(passed)} passed, {len(passed)-sum(passed)} failed')
    sys.exit(not all(passed))
