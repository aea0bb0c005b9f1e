"The command line from end to end: real kernels, lessons that fail, die or are stopped, and input that is wrong"
import json, os, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
import pytest
from conftest import patience, write_nb
from course_lib import cli, runner
from course_lib.core import CourseError
from course_lib.results import load_answers

LESSONS = [f'{i:02d}' for i in range(1, 12)]

lesson_run = '''
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler) # a job in the background is born deaf to it
exec(sys.argv.pop(1))
from course_lib import cli, runner
root = Path(sys.argv.pop(1))
runner.clone_root = lambda: root
cli.course()
'''


@pytest.fixture
def nbs(tmp_path, monkeypatch):
    "Lessons of our own instead of the course's: `nbs(name=[cells])`"
    def _f(**lessons):
        for k,v in lessons.items(): write_nb(tmp_path/'mine'/'nbs'/f'{k[1:]}.ipynb', *v)
        monkeypatch.setattr(runner, 'clone_root', lambda: tmp_path/'mine')
        return tmp_path/'mine'
    return _f


def outputs(path): return [''.join(o.get('text', '')) for c in json.loads(path.read_text())['cells'] for o in c.get('outputs', [])]


def test_goes_on_past_a_failing_lesson(nbs, tmp_path, capsys):
    "Failed and died lessons are shown, counted and told apart, and the last one still runs"
    nbs(_01_fails=['x = 6', 'def half(y):\n    return y/0\nhalf(x)', 'print("never")'], _02_dies=['import os; os._exit(1)'],
        _03_works=['import os; print("profile", os.environ["COURSE_PROFILE"])'])
    assert cli.run(profile='sample', out=str(tmp_path/'out')) == 2
    out = capsys.readouterr().out
    assert 'cell 3 failed: ZeroDivisionError: division by zero' in out
    assert '  | half(x)' in out and 'return y/0' in out and '\x1b[' not in out
    assert '02_dies  died' in out and 'cell 2: the kernel died' in out
    table = out[out.index('lesson '):]
    assert [[*l.split()[:2]] for l in table.splitlines()[2:5]] == [['01_fails', 'failed'], ['02_dies', 'died'], ['03_works', 'ok']]
    for o in ('01_fails', '02_dies', '03_works'): assert '<html' in (tmp_path/'out'/f'{o}.html').read_text()
    assert 'never\n' not in outputs(tmp_path/'out'/'01_fails.ipynb')
    assert outputs(tmp_path/'out'/'03_works.ipynb') == ['profile sample\n']
    assert 'ZeroDivisionError' in (tmp_path/'out'/'01_fails.html').read_text()


meets = """
import time
from pathlib import Path
Path("{0}").touch()
end = time.time()+{2}
while not Path("{1}").exists(): assert time.time() < end, "alone"
"""

def test_two_at_once(nbs, tmp_path, capsys):
    "Two lessons that wait for each other, and one that fails beside them: all end, and the table is in the order of the lessons, not of their ends"
    a, b = (str(tmp_path/o) for o in 'ab')
    nbs(_01_waits=[meets.format(a, b, patience), meets.format(a, tmp_path/'out'/'03_waits.html', patience)],
        _02_fails=['1/0'], _03_waits=[meets.format(b, a, patience)])
    assert cli.run('03', '01', '02', profile='sample', out=str(tmp_path/'out'), jobs=3) == 1
    out = capsys.readouterr().out
    table = out[out.index('lesson '):]
    assert [l.split()[:2] for l in table.splitlines()[2:5]] == [['01_waits', 'ok'], ['02_fails', 'failed'], ['03_waits', 'ok']]
    assert '\r' not in out and 'starting' not in out and out.count('01_waits') == 2 # when it is done, and in the table


def test_one_at_a_time(nbs, tmp_path):
    "`--jobs 1`: none begins before the one before it has ended"
    cell = 'import time; from pathlib import Path; f = Path("%s"); assert not f.exists(); f.touch(); time.sleep(1); f.unlink()' % (tmp_path/'busy')
    nbs(_01_a=[cell], _02_b=[cell], _03_c=[cell])
    assert cli.run(profile='sample', out=str(tmp_path/'out'), jobs=1) == 0


def test_longest_first(monkeypatch):
    "By this profile's seconds, this machine's last run counting; a lesson that nothing is known of is taken for a short one"
    run = lambda lesson, profile, seconds: dict(lesson=lesson, seconds=seconds, settings=dict(profile=profile))
    monkeypatch.setattr(runner, 'load_results', lambda: [run('01_a', 'sample', 100), run('01_a', 'full', 9999),
        run('01_a', 'sample', 50), run('03_c', 'sample', 70), run('04_d', 'sample', None)])
    assert [o.stem for o in runner.longest_first([Path(f'{o}.ipynb') for o in ('01_a', '02_b', '03_c', '04_d')], 'sample')] == ['03_c', '01_a', '02_b', '04_d']


@pytest.mark.parametrize('cores, gb, device, profile, omp, jobs, want', [
    (2, 9, 'cpu', 'sample', '', 0, (2, 1)), (1, 9, 'cpu', 'sample', '', 0, (1, 1)), (4, 9, 'cpu', 'sample', '', 0, (2, 2)),
    (16, 99, 'cpu', 'sample', '', 0, (8, 2)),
    (16, 5, 'cpu', 'sample', '', 0, (3, 2)), (16, .1, 'cpu', 'sample', '', 0, (1, 2)), (2, 9, 'cpu', 'sample', '2', 0, (1, 2)),
    (2, 9, 'cpu', 'sample', '1', 0, (2, 1)),
    (2, 9, 'cpu', 'sample', '', 1, (1, 2)), (2, .1, 'cpu', 'sample', '', 4, (4, 1)), (16, 99, 'cuda', 'sample', '', 0, (1, 0)),
    (16, 99, 'cuda', 'sample', '', 3, (3, 0)),
    (16, 99, 'cpu', 'full', '', 0, (1, 0)), (64, 999, 'cpu', 'sample', '', 0, (11, 2))])
def test_side_by_side(monkeypatch, cores, gb, device, profile, omp, jobs, want):
    "Half the cores, two on two, one on a card and at full; what fits into the memory; the user's word counts"
    import psutil
    monkeypatch.setattr(runner, 'num_cpus', lambda: cores)
    monkeypatch.setattr(runner, 'course_device', lambda: SimpleNamespace(type=device))
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: SimpleNamespace(available=gb*1e9))
    monkeypatch.setenv('OMP_NUM_THREADS', omp)
    assert runner.side_by_side(11, profile, jobs) == want


@pytest.mark.parametrize('mine', [{}, {'OMP_NUM_THREADS': '3', 'OMP_WAIT_POLICY': 'ACTIVE'}], ids=['ours', 'the user\'s'])
def test_threads_of_a_kernel(monkeypatch, mine):
    "What the user has set stays"
    for o in ('OMP_NUM_THREADS', 'OMP_WAIT_POLICY'): monkeypatch.delenv(o, raising=False)
    for k,v in mine.items(): monkeypatch.setenv(k, v)
    assert runner.kernel_env('sample', 'runs', 2).items() >= {'OMP_NUM_THREADS': '2', 'OMP_WAIT_POLICY': 'PASSIVE', **mine}.items()
    assert mine or 'OMP_NUM_THREADS' not in runner.kernel_env('full', 'runs')


def test_a_cell_that_takes_too_long(nbs, tmp_path, monkeypatch, capsys):
    "One line that says which, and the next lesson runs; at full scale there is no limit"
    monkeypatch.setattr(runner, 'cell_minutes', 3/60)
    nbs(_01_slow=['x = 1', 'import time; time.sleep(1000)'], _02_next=['print(2)'])
    assert cli.run(profile='sample', out=str(tmp_path/'out')) == 1
    out = capsys.readouterr().out
    line, = [o for o in out.splitlines() if 'minutes' in o]
    assert line.startswith('cell 3: not done after 0.05 minutes') and 'Traceback' not in out and '02_next  ok' in out
    monkeypatch.setattr(runner, 'execute', lambda nb, folder, env, each, minutes: print('limit', minutes))
    assert cli.run('02', profile='full', out=str(tmp_path/'out')) == 0 and 'limit None' in capsys.readouterr().out


@pytest.mark.parametrize('jobs', ['-1', 'two'])
def test_jobs_that_are_no_number(course, jobs):
    res = course('run', '01', '--jobs', jobs)
    assert res.returncode and 'jobs' in res.stderr and 'Traceback' not in res.stderr


def start_run(tmp_path, *args, first='', **env):
    "`course run` in a process of its own, after the code in `first`; a variable that is None is not there"
    env = {k: v for k,v in {**os.environ, 'COURSE_RUNS': str(tmp_path/'out'), **env}.items() if v is not None}
    return subprocess.Popen([sys.executable, '-c', lesson_run, first, tmp_path/'mine', 'run', *args], cwd=tmp_path, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, encoding='utf-8', errors='surrogateescape')


def test_exit_code(nbs, tmp_path):
    "A process that ran a failing lesson says so to the shell, and one that did not is content"
    nbs(_01_fails=['1/0'], _02_works=['print(1)'])
    for name,code in (('01', 1), ('02', 0)):
        p = start_run(tmp_path, name)
        out, err = p.communicate(timeout=patience)
        assert p.returncode == code and 'Traceback (most recent' not in err, out+err


def alive(pid):
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    stat = Path(f'/proc/{pid}/stat') # in a container nobody may collect the dead
    return not (stat.exists() and ') Z ' in stat.read_text())


def wait_for(what, seconds):
    end = time.time()+seconds
    while not (res := what()) and time.time() < end: time.sleep(.1)
    return res


sleeper = 'import subprocess; child = subprocess.Popen(["sleep", "1000"])'

nbclient_hangs = '''
import time
from nbclient import NotebookClient
async def hang(self): time.sleep(1000)
NotebookClient._async_cleanup_kernel = hang
'''

lost_exception = '''
import os
from course_lib import runner
class Goes:
    def __del__(self): os.kill(os.getpid(), signal.SIGINT) # what is raised while an object goes is ignored
real = runner.longest_first
def longest_first(*args):
    Goes()
    return real(*args)
runner.longest_first = longest_first
'''


def stop(p, pids=()):
    "What a run said that was stopped; none of its processes may live on"
    try: out, err = p.communicate(timeout=patience)
    finally:
        if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)
    for o in pids: assert wait_for(lambda: not alive(o), patience), 'a process lives on'
    assert p.returncode == 130 and 'stopped by Ctrl-C' in out, out+err
    return out, err


@pytest.mark.parametrize('first', ['', nbclient_hangs], ids=['as it is', 'nbclient hangs'])
def test_ctrl_c(nbs, tmp_path, first):
    """The table of what is finished, exit code 130, no traceback, no kernel left and nothing that it started, and no further lesson;
    also when the kernel's client does not come back"""
    f = tmp_path/'pids'
    nbs(_01_first=['print(1)'], _02_long=[f'{sleeper}; import os; open({str(f)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}!")', 'child.wait()'],
        _03_last=['print(3)'])
    p = start_run(tmp_path, *(['02', '03'] if first else []), '--jobs', '1', first=first)
    assert wait_for(lambda: f.exists() and f.read_text().endswith('!') or p.poll() is not None, patience)
    os.killpg(p.pid, signal.SIGINT)
    out, err = stop(p, map(int, f.read_text()[:-1].split()))
    assert 'Traceback' not in out+err and 'died' not in out and not (tmp_path/'out'/'03_last.ipynb').exists(), out+err
    if not first: assert '01_first  ok' in out[out.index('lesson '):]


def test_ctrl_c_with_two_running(nbs, tmp_path):
    "Both kernels end, with what they started; what was finished stands in the table, and what had not begun does not begin"
    files = [tmp_path/f'pids{i}' for i in range(2)]
    long = lambda f: [f'{sleeper}; import os; open({str(f)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}!")', 'child.wait()']
    nbs(_01_first=['print(1)'], _02_long=long(files[0]), _03_long=long(files[1]), _04_last=['print(4)'])
    p = start_run(tmp_path, '--jobs', '2')
    assert wait_for(lambda: all(f.exists() and f.read_text().endswith('!') for f in files) or p.poll() is not None, patience)
    os.killpg(p.pid, signal.SIGINT)
    out, err = stop(p, [int(o) for f in files for o in f.read_text()[:-1].split()])
    assert 'Traceback' not in out+err and 'died' not in out and not (tmp_path/'out'/'04_last.ipynb').exists(), out+err
    table = out[out.index('lesson '):]
    assert '01_first  ok' in table and '02_long' not in table and '03_long' not in table


def test_ctrl_c_while_the_kernel_starts(nbs, tmp_path):
    "At any moment: here, before there is a kernel to end"
    nbs(_01_long=['import time; time.sleep(1000)'])
    out, err = stop(start_run(tmp_path, first='''
import os
from jupyter_client.provisioning import LocalProvisioner
real = LocalProvisioner.pre_launch
async def pre_launch(self, **kwargs):
    os.kill(os.getpid(), signal.SIGINT)
    return await real(self, **kwargs)
LocalProvisioner.pre_launch = pre_launch
'''))
    assert 'Traceback' not in out+err, out+err


def test_ctrl_c_that_python_ignores(nbs, tmp_path):
    "It comes while Python clears up after an object, where exceptions are ignored, and stops the run all the same"
    nbs(_01_long=['import time; time.sleep(1000)'])
    stop(start_run(tmp_path, first=lost_exception))


def page_of(tmp_path, name='01_any'):
    nb = json.loads((tmp_path/'out'/f'{name}.ipynb').read_text(encoding='utf-8'))
    return [o for c in nb['cells'] for o in c.get('outputs', [])], (tmp_path/'out'/f'{name}.html').read_text(encoding='utf-8')


no_user = '''
import pwd
def nobody(uid): raise KeyError(uid)
pwd.getpwuid = nobody
'''

@pytest.mark.parametrize('first, env', [('', dict(MPLBACKEND='svg', PYTHONIOENCODING='latin-1')), (no_user, dict(HOME=None, PYTHONIOENCODING='utf-8:strict')),
    ('', dict(HOME='file', MPLBACKEND='Qt')), ('', dict(TMPDIR='long', LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0', MPLBACKEND='agg'))],
    ids=lambda o: ' '.join(map(str, o)) if isinstance(o, dict) else bool(o))
def test_any_terminal_any_home(nbs, tmp_path, first, env):
    "A figure, text that the terminal cannot show, a name that is not UTF-8: the page has them, and the run says ok"
    if 'HOME' in env and env['HOME']:
        env = {**env, 'HOME': str(tmp_path/'file'/'home')}
        (tmp_path/'file').write_text('')
    if 'TMPDIR' in env:
        env = {**env, 'TMPDIR': str(tmp_path/('d'*100))}
        Path(env['TMPDIR']).mkdir()
    nbs(_01_any=['import matplotlib.pyplot as plt; plt.plot([1, 2]);', 'print("█ → 水", "\\udcff")'])
    p = start_run(tmp_path, first=first, **env)
    out, err = p.communicate(timeout=patience)
    assert p.returncode == 0 and '01_any  ok' in out and 'Traceback' not in err, out+err
    outs, html = page_of(tmp_path)
    assert any('image/png' in o.get('data', {}) for o in outs) and 'data:image/png;base64' in html
    assert '█ → 水' in ''.join(''.join(o.get('text', '')) for o in outs) and '█ → 水' in html
    if 'latin-1' in env.values(): assert '--' in out and '─' not in out


@pytest.mark.parametrize('enc', ['ascii', 'utf-8:strict'])
def test_other_commands_on_any_terminal(course, tmp_path, enc):
    "Results, and a report about a file whose name is no text"
    res = course('results', PYTHONIOENCODING=enc)
    assert res.returncode == 0 and 'lesson' in res.stdout, res.stderr
    name = os.fsdecode(b'\xff\xe9.jpg')
    try: (tmp_path/'in').mkdir(); (tmp_path/'in'/name).write_text('no picture')
    except OSError: pytest.skip('this file system has names in UTF-8 only')
    res = course('restore', tmp_path/'in', '--out', tmp_path/'out', PYTHONIOENCODING=enc)
    assert res.returncode == 1 and '1 left out' in res.stdout and 'Traceback' not in res.stderr, res.stderr


def test_notebooks_in_folders(nbs):
    "A notebook in a folder is found by its own name or the folder's; a lesson's number means the lesson, and hidden copies are nobody's"
    path = nbs(_01_any=['print(1)'])/'nbs'
    for o in ('answers/01_any', 'samples/toys', '.ipynb_checkpoints/02_old'): write_nb(path/f'{o}.ipynb', 'print(2)')
    meant = {'01': '01_any', '1': '01_any', '01_any': '01_any', 'toys': 'samples/toys', 'samples/toys': 'samples/toys',
        **dict.fromkeys(('answers/01', 'answers/01_any'), 'answers/01_any')}
    assert {o: runner.full_name(runner.find_notebook(o)) for o in meant} == meant
    for o in ('02', 'answers/toys', ''):
        with pytest.raises(CourseError, match='no notebook'): runner.find_notebook(o)


def test_what_runs_without_a_name(nbs):
    "The numbered notebooks by rule: the start, lessons and their continuations; nothing in a folder, and nothing without a number"
    path = nbs(_00_start=['0'], _01_any=['1'], _01b_more=['1'], _12_new=['12'], _notes=['0'])/'nbs'
    write_nb(path/'lib'/'03_lib.ipynb', '3')
    assert [runner.full_name(o) for o in runner.lesson_notebooks()] == ['00_start', '01_any', '01b_more', '12_new']


def test_answers_beside_their_lesson(nbs, tmp_path, capsys):
    "A lesson and its answers have the same name and two executed copies, pages and rows; what the lesson took says nothing about the answers"
    path = nbs(_01_any=['print("lesson")'])/'nbs'
    write_nb(path/'answers'/'01_any.ipynb', 'print("answers")')
    assert cli.run('01', 'answers/01', profile='sample', out=str(tmp_path/'out')) == 0
    assert outputs(tmp_path/'out'/'01_any.ipynb') == ['lesson\n'] and outputs(tmp_path/'out'/'answers-01_any.ipynb') == ['answers\n']
    assert {o.name for o in (tmp_path/'out').glob('*.html')} == {'01_any.html', 'answers-01_any.html'}
    out = capsys.readouterr().out
    assert [l.split()[0] for l in out[out.index('lesson '):].splitlines()[2:4]] == ['01_any', 'answers/01_any']


def test_a_kernel_is_ended(nbs, tmp_path):
    "It is not asked to end itself: then it closes its sockets in one thread while another one may use them, and says so in a traceback"
    nbs(_01_any=[f'import atexit; from pathlib import Path; atexit.register(Path({str(tmp_path/"asked")!r}).touch); print("done")'])
    assert cli.run(profile='sample', out=str(tmp_path/'out')) == 0
    assert outputs(tmp_path/'out'/'01_any.ipynb') == ['done\n'] and not (tmp_path/'asked').exists()


def test_run_leaves_what_is_not_ours(nbs, tmp_path, capsys):
    "An executed copy that somebody has edited, and a page that was there before, stay; the new ones get a number; those that are ours are written over"
    nbs(_01_any=['print(1)'], _02_other=['print(2)'])
    (tmp_path/'out').mkdir()
    (tmp_path/'out'/'02_other.html').write_text('my page')
    for _ in range(2): assert cli.run(profile='sample', out=str(tmp_path/'out')) == 0
    assert '02_other in ' in (said := capsys.readouterr().out) and 'this run is in 02_other-2' in said
    nb = (tmp_path/'out'/'01_any.ipynb').read_text() + ' '
    (tmp_path/'out'/'01_any.ipynb').write_text(nb)
    assert cli.run('01', profile='sample', out=str(tmp_path/'out')) == 0
    assert (tmp_path/'out'/'01_any.ipynb').read_text() == nb and (tmp_path/'out'/'02_other.html').read_text() == 'my page'
    assert {o.name for o in (tmp_path/'out').glob('[!.]*')} == {'01_any.ipynb', '01_any.html', '01_any-2.ipynb', '01_any-2.html',
        '02_other.html', '02_other-2.ipynb', '02_other-2.html'}


def test_run_into_the_notebooks(nbs, tmp_path):
    "Refused, and under a link's name too"
    path = nbs(_01_any=['print(1)'])/'nbs'
    (tmp_path/'link').symlink_to(path)
    before = (path/'01_any.ipynb').read_bytes()
    for o in (path, tmp_path/'link'):
        with pytest.raises(CourseError, match='the notebooks themselves.*--out'): cli.run(profile='sample', out=str(o))
    assert (path/'01_any.ipynb').read_bytes() == before and [o.name for o in path.iterdir()] == ['01_any.ipynb']


def test_run_without_room(nbs, tmp_path, monkeypatch, capsys):
    "A folder that cannot be: before anything runs. A disk that becomes full: a line, and the table of what is done"
    nbs(_01_any=['print(1)'], _02_other=['print(2)'])
    (tmp_path/'file').write_text('')
    with pytest.raises(CourseError, match='cannot be written to.*--out or COURSE_RUNS'): cli.run(profile='sample', out=str(tmp_path/'file'/'out'))
    real = os.replace
    def full(a, b):
        if '02_other' in str(b): raise OSError(28, 'No space left on device')
        real(a, b)
    monkeypatch.setattr('os.replace', full)
    assert cli.run(profile='sample', out=str(tmp_path/'out')) == 1
    out = capsys.readouterr().out
    assert 'the disk is full. Make room there, or choose another place with --out or COURSE_RUNS' in out and '01_any  ok' in out[out.index('lesson '):]


@pytest.mark.parametrize('args, said', [(('restore', 'photos', '--out', 'file/out'), '--out'), (('run', '01', '--out', 'file/x'), '--out')])
def test_no_place_to_write(course, photos, one_line, tmp_path, args, said):
    "One line that names what to change"
    (tmp_path/'file').write_text('')
    line = one_line(course(*args, COURSE_DATA=str(tmp_path/'file'/'data')))
    assert 'cannot be written to' in line and said in line


def test_no_place_for_data(course, tmp_path):
    "A line a dataset, and the shell hears of it"
    (tmp_path/'file').write_text('')
    res = course('data', 'human_numbers', 'mnist', COURSE_DATA=str(tmp_path/'file'/'data'))
    assert res.returncode == 2 and res.stdout.count('or set COURSE_DATA to another folder') == 2 and 'Traceback' not in res.stderr


def test_reader_leaves():
    "`course results | head -1` ends without a traceback"
    code = 'from course_lib.cli import course; course()'
    p = subprocess.Popen([sys.executable, '-u', '-c', code, 'results'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p.stdout.close()
    assert 'Traceback' not in p.stderr.read() and p.wait() == 0


def test_help_lists_commands(course):
    for args in (['--help'], []):
        res = course(*args)
        assert res.returncode == 0
        for o in ('run', 'data', 'results', 'answers', 'train', 'crappify', 'style', 'doctor'): assert f'\n  {o} ' in res.stdout


def test_help_of_a_command(course):
    out = course('run', '--help').stdout
    for o in ('--profile', '--out', 'Lessons to run'): assert o in out


def test_unknown_command(course, one_line):
    line = one_line(course('runn'))
    assert "'runn'" in line and 'run, data, results' in line


def test_unknown_lesson(course, one_line):
    line = one_line(course('run', '77'))
    assert "'77'" in line and '01_mnist_resnet' in line


def test_data(capsys, data_folder):
    "Name, count, bytes, place and licence"
    assert cli.data('human_numbers', profile='sample') == 0
    line = capsys.readouterr().out.splitlines()[-1]
    for o in ('human_numbers', ' 2 ', 'kB', str(data_folder/'sample'/'human_numbers'), 'a list of numbers'): assert o in line


def test_data_that_is_unknown(capsys):
    "Said, counted, and the next one is made all the same"
    assert cli.data('nosuch', 'human_numbers', profile='sample') == 1
    out = capsys.readouterr().out
    assert "'nosuch'" in out and '\nhuman_numbers ' in out


@pytest.mark.parametrize('call', [lambda: cli.data(profile='ful'), lambda: cli.data('mnist', profile='ful'),
    lambda: cli.answers('01', profile='ful', only_list=True), lambda: cli.train('01', profile='ful')], ids=['data', 'data mnist', 'answers', 'train'])
def test_unknown_profile(call, monkeypatch):
    "Refused wherever it is given, with the two that exist"
    monkeypatch.setattr(cli, 'lesson_module', lambda *args: SimpleNamespace(train=print))
    with pytest.raises(CourseError, match="'ful'.*sample.*full"): call()


@pytest.fixture
def asked(clone):
    "A clone with two experiments in its notebook of answers; gives what ran"
    (clone/'nbs'/'answers').mkdir()
    write_nb(clone/'nbs'/'answers'/'01_mnist_resnet.ipynb', """
import random
from course_lib.results import Answers
ask, ran = Answers('01', epochs=1), []""", """
@ask('one', lr=.2)
def one(cfg, seed): return dict(accuracy=seed/10, lr=cfg.lr, epochs=cfg.epochs, drawn=random.random())
@ask('real', full=True)
def real(cfg, seed): return dict(accuracy=1)""", "ask.run()")
    return clone


def test_answers(asked, capsys):
    "Experiments run once a seed, with their own settings, are kept, and are not run again unless they are named; one that needs the full data waits for it"
    for _ in range(2): cli.answers('01', profile='sample', seeds=2)
    assert [o.split(':')[0] for o in capsys.readouterr().out.splitlines()] == ['one, seed 1', 'one, seed 2']
    got = load_answers('01')
    assert set(got) == {'one'} and got['one']['n'] == 1797 and got['one']['kind'] == 'sample'
    assert [(o['accuracy'], o['lr'], o['epochs']) for o in got['one']['rows']] == [(.1, .2, 3), (.2, .2, 3)]
    cli.answers('01', 'one', profile='sample', seeds=1)
    assert load_answers('01')['one']['rows'] == got['one']['rows'][:1] # seeded by itself
    cli.answers('01', profile='full', only_list=True)
    assert capsys.readouterr().out.splitlines()[1:] == ['one', 'real']
    with pytest.raises(CourseError, match='two.*one'): cli.answers('01', 'two', profile='sample')
    with pytest.raises(CourseError, match='real.*one'): cli.answers('01', 'real', profile='sample')


@pytest.fixture
def own_cells(clone, course, python):
    "A clone with one cell in its answers' notebook: `own_cells(cell, *args)` runs `course answers 01` in a process of its own, from another folder"
    def _f(cell, *args, run=python):
        write_nb(clone/'nbs'/'answers'/'01_mnist_resnet.ipynb', 'one = 1', cell)
        code = ('import sys; from pathlib import Path; from course_lib import cli, core, results, runner\n'
                f'for o in (cli, core, results, runner): o.clone_root = lambda: Path({str(clone)!r})\ncli.course()')
        return run(code, 'answers', '01', *args)
    return _f


ask_two = """
import matplotlib.pyplot as plt, os
from pathlib import Path
from course_lib.core import lesson_settings
from course_lib.results import Answers
ask = Answers('01')
@ask('a, b')
def first(cfg, seed): return dict(accuracy=1)
@ask('c')
def second(cfg, seed): return dict(accuracy=2)
plt.plot([1, 2]); plt.show
print(plt.get_backend(), Path('../../settings.ini').exists(), Path.cwd().name, lesson_settings('01').profile)
ask.run()"""

@pytest.mark.parametrize('args, ran', [(['--only', 'c'], ['c']), (['a, b', '--only', 'c'], ['a, b', 'c']), ([], ['a, b', 'c'])])
def test_answers_by_name(own_cells, args, ran):
    "By `--only` and without it; figures go nowhere, relative paths begin at the notebook, and its cells have the profile that was asked for"
    res = own_cells(ask_two, *args, '--seeds', '1', '--profile', 'sample')
    first, *lines = res.stdout.splitlines()
    assert res.returncode == 0 and first == 'agg True answers sample', res.stderr
    assert sorted(o.split(', seed')[0] for o in lines) == ran


def test_answers_have_the_profile(own_cells):
    res = own_cells(ask_two, '--profile', 'full', '--only-list')
    assert res.stdout.splitlines() == ['agg True answers full', 'a, b', 'c'], res.stderr


def test_an_error_in_the_answers(own_cells, one_line):
    "A line that names the notebook and the cell, for what the reader can mend; the failing line itself, for anything else"
    line = one_line(own_cells("from course_lib.core import CourseError; raise CourseError('no such thing')", '--profile', 'sample'))
    assert line == 'course answers: answers/01_mnist_resnet, cell 3: no such thing'
    res = own_cells('x = 1\nx/0', '--profile', 'sample')
    assert res.returncode == 1 and res.stderr.endswith('ZeroDivisionError: division by zero\nanswers/01_mnist_resnet, cell 3, line 2: x/0\n')


def test_ctrl_c_in_the_answers(own_cells, tmp_path):
    "No traceback, and the exit code that shells expect"
    hear = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n'
    def begin(code, *args): return subprocess.Popen([sys.executable, '-c', hear+code, *args], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    p = own_cells(f'import time; open({str(tmp_path/"begun")!r}, "w"); time.sleep(1000)', '--profile', 'sample', run=begin)
    assert wait_for(lambda: (tmp_path/'begun').exists() or p.poll() is not None, patience)
    os.killpg(p.pid, signal.SIGINT)
    out, err = stop(p)
    assert 'Traceback' not in err, err


def test_answers_as_a_notebook(asked, capsys):
    "Every experiment once, at its smallest, and nothing is kept"
    cli.run_cells(asked/'nbs'/'answers'/'01_mnist_resnet.ipynb')
    assert 'one, seed 1: accuracy 0.1000, lr 0.2000, epochs 1.0000' in capsys.readouterr().out and not load_answers('01')


def test_train_calls_the_module(monkeypatch):
    got = []
    monkeypatch.setattr(cli, 'lesson_module', lambda *args: SimpleNamespace(train=got.append))
    cli.train('01', profile='sample')
    assert (got[0].lesson, got[0].bs) == ('01_mnist_resnet', 64)
    monkeypatch.setattr(cli, 'lesson_module', lambda *args: SimpleNamespace())
    with pytest.raises(CourseError, match='nothing to train'): cli.train('01', profile='sample')


@pytest.mark.parametrize('lesson', [o for o in LESSONS if hasattr(cli.lesson_module(o), 'train')])
def test_train_under_torchrun(monkeypatch, lesson):
    "Lessons 07 and 10 take several processes, the others refuse in a line"
    mod, ran = cli.lesson_module(lesson), []
    def train(cfg): ran.append(lesson)
    train.__dict__.update(mod.train.__dict__)
    monkeypatch.setattr(mod, 'train', train)
    monkeypatch.setenv('WORLD_SIZE', '2')
    if lesson not in ('07', '10'):
        with pytest.raises(CourseError, match='one process'): cli.train(lesson, profile='sample')
    else: cli.train(lesson, profile='sample')
    assert ran == [lesson]*(lesson in ('07', '10'))


@pytest.fixture
def photos(tmp_path):
    "A folder with two photographs, one that is cut off, and a list"
    from PIL import Image
    (tmp_path/'photos').mkdir()
    for i in range(2): Image.effect_mandelbrot((150, 120), (-2, -1.5, 1+i, 1.5), 60).convert('RGB').save(tmp_path/'photos'/f'{i}.jpg')
    (tmp_path/'photos'/'list.txt').write_text('0.jpg 1.jpg')
    return tmp_path/'photos'


def test_crappify(course, photos, tmp_path):
    "From a folder to its crappy twin, and again with nothing to do; what is left out stands in a table"
    from PIL import Image
    steps = 'downscale(48) jpeg(10,70) text'
    for said in ('2 made, 0 kept from before, 1 left out', '0 made, 2 kept from before, 1 left out'):
        res = course('crappify', photos, tmp_path/'out', '--steps', steps, '--seed', '3', '--workers', '2')
        assert res.returncode == 0 and res.stdout.splitlines()[0] == said, res.stderr
        assert [o for o in res.stdout.splitlines() if 'not a picture' in o][0].split() == 'not a picture left out 1 list.txt'.split()
    from course_lib.crappify import crappify_photo, parse_steps
    want = crappify_photo(parse_steps(steps), Image.open(photos/'1.jpg'), 3, '1.jpg')
    got = Image.open(tmp_path/'out'/'1.jpg')
    assert got.size == want.size == (60, 48) and (tmp_path/'out'/'0.jpg').exists() and not (tmp_path/'out'/'list.txt').exists()


def test_crappify_a_broken_file(course, photos, tmp_path):
    "The others are made, and the shell hears of it"
    (photos/'2.jpg').write_bytes((photos/'1.jpg').read_bytes()[:2000])
    res = course('crappify', photos, tmp_path/'out')
    assert res.returncode == 1 and '2 made' in res.stdout and '2.jpg' in res.stdout and 'Traceback' not in res.stderr


@pytest.mark.parametrize('args, said', [(['photos', 'out', '--steps', 'jepg(3)'], "character 1: there is no step 'jepg'"),
    (['photos', 'out', '--steps', 'mine'], "no step 'mine'"),
    (['nowhere', 'out'], 'no such folder'), (['photos', 'photos'], 'lie in it'), (['photos', 'out', '--workers', '-1'], 'workers = -1'),
    (['photos', 'out', '--steps', 'jpeg(10'], 'never closed')])
def test_crappify_errors(course, one_line, photos, args, said): assert said in one_line(course('crappify', *args))


def test_doctor(capsys):
    "Versions, device, data, and what full would download"
    cli.doctor()
    out = capsys.readouterr().out
    for o in ('torch', 'device    cpu', 'GiB in the machine', 'profile   sample', 'would download 15.7 MB', '01_mnist_resnet'): assert o in out
