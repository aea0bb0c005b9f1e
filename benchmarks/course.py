"""What running all lessons takes, on this machine at this hour: quiet, and beside one busy process.

Each way starts with an empty data folder, as after a fresh clone, and runs the lessons as `course run` does. Machines differ by four times
and the same one by two from hour to hour, so a calibration is taken before and after: the milliseconds of one convolution, forward and
backward, of a fixed size, with one thread. `in_calibrations` is a way's time in those, `in_lesson_01` in runs of lesson 01 alone, with one thread.

    python benchmarks/course.py [--lessons "01 09"] [--jobs 2] [--keep]

Writes _runs/bench/course.json (with --keep also results/benchmarks/); run on a quiet machine.
"""
import os, statistics, subprocess, sys, tempfile, time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from fastcore.script import call_parse
from fastcore.xtras import modified_env
from common import about, keep_result
from course_lib.core import CourseError
from course_lib.runner import find_notebook, lesson_notebooks, run_lessons, side_by_side

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


def measure(todo, jobs, threads, around):
    "Seconds of all lessons together and of each, and the calibration before and after"
    with tempfile.TemporaryDirectory() as home, around(), modified_env('OMP_NUM_THREADS', COURSE_DATA=f'{home}/data'):
        before, t0 = calibration(), time.perf_counter()
        done, errors, stopped = run_lessons(todo, 'sample', Path(home)/'out', jobs, threads)
        took, cal = time.perf_counter()-t0, [before, calibration()]
    if stopped: raise KeyboardInterrupt
    bad = [o['lesson'] for o in done if o['status'] != 'ok'] + errors
    if bad: raise CourseError(f'not measured, since not all lessons ended well: {bad}')
    each = {o['lesson']: round(o['seconds'], 1) for o in done}
    return dict(seconds=round(took, 1), calibration_ms=cal, in_calibrations=round(1000*took/statistics.mean(cal)), lessons=each)


@call_parse
def main(
    lessons:str='', # these alone, such as "01 09" (default: all)
    jobs:int=0,     # lessons at the same time (default: as `course run` does)
    keep:bool=False # also write results/benchmarks
):
    "Measure `course run`"
    todo = [find_notebook(o) for o in lessons.split()] or lesson_notebooks()
    jobs, threads = side_by_side(len(todo), 'sample', jobs)
    res = about(profile='sample', cores=os.cpu_count(), lessons_at_once=jobs, threads=threads)
    res['lesson 01 alone'] = alone = measure([find_notebook('01')], 1, 1, nullcontext)
    lesson_01, = alone['lessons'].values() # without the time in which Jupyter is imported here
    for name,around in dict(quiet=nullcontext, busy=busy).items():
        got = res[name] = measure(todo, jobs, threads, around)
        got['in_lesson_01'] = round(got['seconds']/lesson_01, 2)
        print(f"{name}: {len(todo)} lessons in {got['seconds']} s, {got['in_lesson_01']} times lesson 01, "
              f"{got['in_calibrations']} calibrations of {got['calibration_ms']} ms", flush=True)
    keep_result('course', res, keep)
