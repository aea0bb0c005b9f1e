"""What running all lessons takes, on this machine at this hour: quiet, and beside one busy process.

Each way starts with an empty data folder, as after a fresh clone, and runs the lessons as `course run` does: side by side, the longest
first. Machines differ by four times and the same one by two from hour to hour, so a calibration is taken before and after: the
milliseconds of one convolution, forward and backward, of a fixed size and with one thread. `in_calibrations` is a way's time in those; `in_lesson_01` in
runs of lesson 01 alone, with one thread, in the same hour.

    python benchmarks/course.py [--lessons "01 09"] [--jobs 2] [--keep]

Writes _runs/bench/course.json (with --keep also results/benchmarks/); run on a quiet machine.
"""
import json, os, statistics, subprocess, sys, tempfile, time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from fastcore.script import call_parse

convolution = '''
import statistics, time, torch
torch.set_num_threads(1)
x, conv, took = torch.randn(16, 64, 32, 32, requires_grad=True), torch.nn.Conv2d(64, 64, 3, padding=1), []
for _ in range(40):
    t0 = time.perf_counter()
    conv(x).sum().backward()
    took.append(time.perf_counter()-t0)
print(1000*statistics.median(took))'''


def calibration():
    "Milliseconds of the fixed convolution"
    return round(float(subprocess.run([sys.executable, '-c', convolution], capture_output=True, text=True, check=True).stdout), 2)


@contextmanager
def busy():
    "A process that computes without a pause"
    p = subprocess.Popen([sys.executable, '-c', 'while True: pass'])
    try: yield
    finally:
        p.kill()
        p.wait()


def measure(todo, jobs, threads, around, tmp):
    "Seconds of all lessons together and of each, and the calibration before and after"
    from course_lib.cli import run_lessons
    home = Path(tempfile.mkdtemp(dir=tmp))
    os.environ['COURSE_DATA'] = str(home/'data')
    with around():
        before, t0 = calibration(), time.perf_counter()
        done, errors = run_lessons(todo, 'sample', home/'out', jobs, threads)
        took, cal = time.perf_counter()-t0, [before, calibration()]
    bad = [o['lesson'] for o in done if o['status'] != 'ok']
    if errors or bad or len(done) < len(todo): raise SystemExit(f"course: not measured, for not all lessons ended well: {', '.join(bad) or errors}")
    return dict(seconds=round(took, 1), calibration_ms=cal, in_calibrations=round(1000*took/statistics.mean(cal)), lessons={o['lesson']: round(o['seconds'], 1) for o in done})


@call_parse
def main(
    lessons:str='', # these alone, such as "01 09" (default: all)
    jobs:int=0,     # lessons at the same time (default: as `course run` does)
    keep:bool=False # also write results/benchmarks
):
    "Measure `course run`"
    from course_lib.cli import find_notebook, lesson_notebooks, side_by_side
    from course_lib.core import clone_root, device_name, runs_home
    from course_lib.results import versions
    from course_lib.files import write_atomic
    todo = [find_notebook(o) for o in lessons.split()] or lesson_notebooks()
    jobs, threads = side_by_side(len(todo), 'sample', jobs)
    res = dict(profile='sample', cores=os.cpu_count(), jobs=jobs, threads=threads, device=device_name(), versions=versions())
    with tempfile.TemporaryDirectory() as tmp:
        alone = measure([find_notebook('01')], 1, 1, nullcontext, tmp)
        res['lesson 01 alone'] = alone
        for name,around in dict(quiet=nullcontext, busy=busy).items():
            res[name] = got = measure(todo, jobs, threads, around, tmp)
            got['in_lesson_01'] = round(got['seconds']/alone['seconds'], 2)
            print(f"{name}: {len(todo)} lessons, {jobs} side by side, {got['seconds']/60:.1f} minutes, {got['in_lesson_01']} times lesson 01, calibration {got['calibration_ms']} ms", flush=True)
    out = json.dumps(res, indent=1)+'\n'
    write_atomic(runs_home()/'bench'/'course.json', out)
    if keep and clone_root(): write_atomic(clone_root()/'results'/'benchmarks'/'course.json', out)
