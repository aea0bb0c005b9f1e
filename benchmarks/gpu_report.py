"""All that only a card can show, in at most ten minutes: one part after the other, the most important first.

    make gpu-report                                    (python benchmarks/gpu_report.py [--minutes 10] [--only "tests cifar"] [--keep])

Parts: `device` (what it is, and what it can do) · `tests` (tests/gpu) · `lessons` (every lesson at `sample` on the card, several at once) ·
`cifar` (lesson 10's network and schedule on the whole of CIFAR-10: accuracy and seconds of the first seed, alone on the card) · `seeds`
(three seeds at the same time: accuracy) · `full` (lessons 01, 09 and 11 with the lectures' data and schedules) · `cyclegan`, `style`,
`feature_loss` (the benchmarks beside textbook versions). Parts of one stage run at the same time; seconds that are reported as such come from
stages with one part. Each part writes PART.json as soon as it is done, so a run that is cut short keeps what it had; a part that fails
says so in its file, with the end of what it printed. What the lessons of `full` record is in its file whole.

Data is looked for where fastai looks (FASTAI_HOME); a part without its data fails, the others go on. Writes _runs/gpu/DEVICE/ (--keep: results/gpu/DEVICE/).
"""
import json, os, re, signal, subprocess, sys, tempfile, time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from fastcore.script import call_parse

root = Path(__file__).resolve().parent.parent


def shell(cmd, timeout, **env):
    "Run a command in the clone; gives (exit code or None where time ran out, what it printed, seconds). Its children end with it"
    t0, env = time.time(), {**os.environ, 'PYTHONUNBUFFERED': '1', **{k: str(v) for k,v in env.items()}}
    path = os.pathsep.join(o for o in (str(root), os.environ.get('PYTHONPATH')) if o)
    with tempfile.TemporaryFile() as f: # a pipe would stay open as long as any child lives
        p = subprocess.Popen(cmd, cwd=root, env={**env, 'PYTHONPATH': path}, stdout=f, stderr=subprocess.STDOUT, start_new_session=True)
        try: code = p.wait(timeout)
        except subprocess.TimeoutExpired: code = None
        finally:
            with suppress(ProcessLookupError): os.killpg(p.pid, signal.SIGKILL)
            p.wait()
        f.seek(0)
        return code, f.read().decode(errors='replace'), time.time()-t0


def told(code, out, seconds, most=3000):
    "What a part's file says of a command: how it ended, and the end of what it printed where it failed"
    res = dict(ok=code == 0, seconds=round(seconds, 1))
    return res if code == 0 else {**res, 'ended': 'out of time' if code is None else f'exit {code}', 'tail': out[-most:]}


def python(code, *args): return [sys.executable, '-c', code, *map(str, args)]


def device(job):
    "Name, memory, types, and the speed of one large product"
    code = '''
import json, time, torch
from course_lib.core import course_device, device_name
from course_lib.results import versions
dev = course_device()
n = 4096 if dev.type == 'cuda' else 256
sync = torch.cuda.synchronize if dev.type == 'cuda' else lambda: None
def tflops(dtype):
    x = torch.randn(n, n, device=dev, dtype=dtype)
    for _ in range(3): x @ x
    sync(); t0 = time.perf_counter()
    for _ in range(10): x @ x
    sync()
    return round(10*2*n**3/(time.perf_counter()-t0)/1e12, 2)
cuda = dict(capability=torch.cuda.get_device_capability(), memory_GB=round(torch.cuda.get_device_properties(0).total_memory/1e9, 1),
    bf16_in_hardware=torch.cuda.is_bf16_supported(including_emulation=False)) if dev.type == 'cuda' else {}
print('RESULT', json.dumps(dict(device=device_name(), kind=dev.type, **cuda, versions=versions(),
    TFLOP_s=dict(float32=tflops(torch.float32), bfloat16=tflops(torch.bfloat16)))))'''
    return job.result(python(code))


def tests(job):
    "tests/gpu: how many passed, failed and were skipped"
    if not job.cuda: return dict(ok=True, skipped='tests/gpu needs CUDA')
    code, out, s = shell([sys.executable, '-m', 'pytest', '-vv', '--tb=short', '-p', 'no:cacheprovider', 'tests/gpu'], job.left(), COURSE_TEST_GPU=1)
    ended = re.findall(r'^(tests/gpu/\S+) (PASSED|FAILED|ERROR|SKIPPED)', out, flags=re.M)
    return {**told(code, out, s, 20_000), 'counts': Counter(o for _,o in ended), 'failures': [k for k,o in ended if o in ('FAILED', 'ERROR')]}


def lesson(job, name, profile):
    "One notebook in a kernel of its own: how it ended, and the figures that it recorded"
    command = python('from course_lib.cli import course; course()', 'run', name, '--profile', profile, '--out', job.runs/name)
    code, out, s = shell(command, job.left(), COURSE_DEVICE=job.kind,
        OMP_NUM_THREADS=2 if job.cuda else 1)
    got = [json.loads(o.read_text()) for o in (job.runs/name/'results').glob('*.json')]
    whole = {'record': got[-1]} if got and profile == 'full' else {}
    return {**told(code, out, s), **({'kind': got[-1]['kind'], 'figures': got[-1]['figures'], **whole} if got else {})}


def lessons(job):
    "All lessons at `sample`, several at once"
    from course_lib.runner import lesson_notebooks, longest_first
    todo = [o.stem for o in longest_first(lesson_notebooks(), 'sample')]
    return many_lessons(job, 'lessons', todo[:1] if job.short else todo, 'sample', job.jobs)


def many_lessons(job, part, names, profile, jobs):
    "Lessons side by side; the part's file grows with each that is done"
    res = dict(ok=False, jobs=jobs, lessons={})
    with ThreadPoolExecutor(jobs) as ex:
        for o in as_completed({ex.submit(lambda n: (n, lesson(job, n, profile)), name) for name in names}):
            name, got = o.result()
            res['lessons'][name] = got
            job.write(part, res)
    return {**res, 'ok': all(o['ok'] for o in res['lessons'].values())}


def darknet(job, *seeds):
    "Lesson 10's network and schedule, a process a seed"
    code = '''
import json, sys, time
from course_lib.core import device_name, lesson_settings, seed_everything
from course_lib.darknet import cifar_dls, cifar_learner, darknet_of, fit_darknet
from course_lib.data import get_data
profile, epochs, seed = sys.argv[1:]
cfg, t0 = lesson_settings('10', profile), time.perf_counter()
epochs = int(epochs) or cfg.epochs
seed_everything(int(seed))
dls = cifar_dls(get_data(cfg.dataset, cfg.profile), cfg.bs)
learn = cifar_learner(dls, darknet_of(cfg), cfg)
with learn.no_bar(), learn.no_logging(): seconds = fit_darknet(learn, epochs, cfg.lr)
loss, acc = (round(float(o), 4) for o in learn.recorder.values[-1][-2:])
keep = ('bs', 'lr', 'nf', 'groups', 'zero', 'wd', 'speed')
print('RESULT', json.dumps(dict(seed=int(seed), accuracy=acc, valid_loss=loss, epoch_seconds=round(seconds/epochs, 2), epochs=epochs,
    training_seconds=round(seconds, 1), all_seconds=round(time.perf_counter()-t0, 1), device=device_name(), settings={k: cfg[k] for k in keep})))'''
    cmd = lambda seed: python(code, 'sample' if job.short else 'full', 1 if job.short else 0, seed)
    with ThreadPoolExecutor(len(seeds)) as ex: res = list(ex.map(lambda o: job.result(cmd(o)), seeds))
    return dict(ok=all(o['ok'] for o in res), alone_on_the_card=len(seeds) == 1, runs=res)


def cifar(job): return darknet(job, 1)

def seeds(job): return darknet(job, 1, 2, 3)


def full(job):
    "The lectures' data and schedules"
    todo = ['11'] if job.short else ['01', '09', '11']
    return many_lessons(job, 'full', todo, 'sample' if job.short else 'full', 3)


def bench(name, *short):
    "A benchmark as it is, or with the arguments that make it short"
    def _f(job):
        runs = job.runs/name
        code, out, s = shell([sys.executable, f'benchmarks/{name}.py', *(short if job.short else ())], job.left(), COURSE_RUNS=runs, COURSE_DEVICE=job.kind)
        got = [json.loads(o.read_text()) for o in (runs/'bench').glob('*.json')]
        return {**told(code, out, s), **(dict(result=got[0]) if got else {})}
    return _f


parts = dict(device=device, tests=tests, lessons=lessons, cifar=cifar, seeds=seeds, full=full,
    cyclegan=bench('cyclegan', '--repeats', '1', '--sz', '32', '--ngf', '8', '--blocks', '1', '--steps', '1'),
    style=bench('style', '--arch', 'course', '--size', '64', '--long', '20', '--short', '20', '--repeats', '1'),
    feature_loss=bench('feature_loss', '--repeats', '1', '--bs', '1', '--size', '64', '--judge', 'vgg11_bn'))
stages = [['device'], ['tests', 'lessons'], ['cifar'], ['cyclegan'], ['style'], ['feature_loss'], ['seeds', 'full']]


def without(o, key):
    "The same without a key, however deep"
    if isinstance(o, dict): return {k: without(v, key) for k,v in o.items() if k != key}
    return [without(x, key) for x in o] if isinstance(o, list) else o


class Job:
    "What every part needs to know"
    def __init__(self, out, runs, end, jobs, kind, short, keep):
        self.out, self.runs, self.end, self.jobs, self.kind, self.short, self.keep = out, runs, end, jobs, kind, short, keep
        git = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=root, capture_output=True, text=True)
        self.commit = git.stdout.strip() if git.returncode == 0 else None
    @property
    def cuda(self): return self.kind == 'cuda'
    def left(self): return max(1, self.end-time.time())
    def write(self, name, res):
        if self.keep: res = without(res, 'tail') # paths of a machine
        tmp = self.out/f'.{name}.new'
        tmp.write_text(json.dumps(res, indent=1)+'\n')
        tmp.replace(self.out/f'{name}.json')
    def result(self, cmd):
        "Run a command that prints RESULT and a JSON object"
        code, out, s = shell(cmd, self.left(), COURSE_DEVICE=self.kind)
        got = [json.loads(o[7:]) for o in out.splitlines() if o.startswith('RESULT ')]
        return {**told(code, out, s), **(got[-1] if got else {})}


def one_part(job, name):
    "Run a part and write its file, whatever comes"
    t0 = time.time()
    try: res = parts[name](job)
    except Exception as e: res = dict(ok=False, ended=f'{type(e).__name__}: {e}')
    job.write(name, dict(part=name, commit=job.commit, short=job.short, minutes=round((time.time()-t0)/60, 2), **res))
    print(f"{name:<14} {'ok' if res['ok'] else 'FAILED'}  {(time.time()-t0)/60:.1f} min", flush=True)
    return res['ok']


@call_parse
def main(
    minutes:float=10,  # after this nothing is begun, and what runs is stopped
    only:str='',       # these parts alone, such as "tests cifar"
    jobs:int=0,        # lessons at the same time (default: half the cores)
    out:str='',        # folder (default: _runs/gpu/DEVICE)
    short:bool=False,  # everything shortened, to try the script itself; runs on a CPU, too
    keep:bool=False    # write to results/gpu/DEVICE
):
    "Measure on a card what only a card can show"
    from course_lib.core import clone_root, course_device, device_name, runs_home
    kind = course_device().type
    if kind != 'cuda' and not short: raise SystemExit('gpu_report: torch sees no CUDA device here. --short tries the script on a CPU')
    home = clone_root()/'results' if keep else runs_home()
    folder = Path(out or home/'gpu'/re.sub(r'\W+', '-', device_name()).strip('-').lower()).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(folder, runs_home()/'gpu-runs', time.time()+60*minutes, jobs or max(1, (os.cpu_count() or 2)//2), kind, short, keep)
    wanted, passed = only.split() or list(parts), []
    if bad := set(wanted)-set(parts): raise SystemExit(f"gpu_report: no part {', '.join(sorted(bad))}. Expected of {', '.join(parts)}")
    for stage in stages:
        todo = [o for o in stage if o in wanted]
        if not todo: continue
        if time.time() > job.end-5: print(f"{' '.join(todo)}: no time is left", flush=True); passed += [False]*len(todo); continue
        with ThreadPoolExecutor(len(todo)) as ex: passed += ex.map(lambda o: one_part(job, o), todo)
    print(f"{sum(passed)} of {len(passed)} parts · {folder}")
    if not all(passed): raise SystemExit(1)
