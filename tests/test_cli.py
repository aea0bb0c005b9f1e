"The command line from end to end: real kernels, lessons that fail, die or are stopped, and input that is wrong"
import json, os, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
import pytest
from course_lib import cli
from course_lib.core import CourseError, load_answers

LESSONS = [f'{i:02d}' for i in range(1, 12)]

lesson_run = '''
import sys
from pathlib import Path
from course_lib import cli
root = Path(sys.argv.pop(1))
cli.clone_root = lambda: root
cli.lessons = lambda: dict.fromkeys(sorted(o.stem for o in (root/'nbs').glob('*.ipynb')))
cli.course()
'''


def write_nb(path, *cells):
    from nbformat import v4, write
    path.parent.mkdir(parents=True, exist_ok=True)
    write(v4.new_notebook(cells=[v4.new_markdown_cell('# A lesson'), *map(v4.new_code_cell, cells)]), path)


@pytest.fixture
def nbs(tmp_path, monkeypatch):
    "Lessons of our own instead of the course's: `nbs(name=[cells])`"
    def _f(**lessons):
        for k,v in lessons.items(): write_nb(tmp_path/'mine'/'nbs'/f'{k[1:]}.ipynb', *v)
        monkeypatch.setattr(cli, 'clone_root', lambda: tmp_path/'mine')
        monkeypatch.setattr(cli, 'lessons', lambda: dict.fromkeys(k[1:] for k in lessons))
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


def start_run(tmp_path, *args):
    env = {**os.environ, 'COURSE_RUNS': str(tmp_path/'out')}
    return subprocess.Popen([sys.executable, '-c', lesson_run, tmp_path/'mine', 'run', *args], cwd=tmp_path, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def test_exit_code(nbs, tmp_path):
    "A process that ran a failing lesson says so to the shell, and one that did not is content"
    nbs(_01_fails=['1/0'], _02_works=['print(1)'])
    for name,code in (('01', 1), ('02', 0)):
        p = start_run(tmp_path, name)
        out, err = p.communicate(timeout=100)
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


def test_ctrl_c(nbs, tmp_path):
    "The table of what is finished, exit code 130, no traceback, no kernel left, and no further lesson"
    pid = tmp_path/'pid'
    nbs(_01_first=['print(1)'], _02_long=[f'import os, time; open({str(pid)!r}, "w").write(str(os.getpid())+"!")', 'time.sleep(100)'], _03_last=['print(3)'])
    p = start_run(tmp_path)
    try:
        assert wait_for(lambda: pid.exists() and pid.read_text().endswith('!'), 60)
        time.sleep(1)
        os.killpg(p.pid, signal.SIGINT)
        out, err = p.communicate(timeout=60)
    finally:
        if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)
    kernel = int(pid.read_text()[:-1])
    assert wait_for(lambda: not alive(kernel), 20), 'the kernel lives on'
    assert p.returncode == 130 and 'Traceback' not in out+err, out+err
    assert 'stopped by Ctrl-C' in out and '01_first  ok' in out[out.index('lesson '):]
    assert 'died' not in out and not (tmp_path/'out'/'03_last.ipynb').exists()


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
    monkeypatch.setattr(cli, 'lesson_module', lambda *args: SimpleNamespace(answers={}, train=print))
    with pytest.raises(CourseError, match="'ful'.*sample.*full"): call()


def test_answers(clone, monkeypatch, capsys):
    "Experiments run once a seed, are kept, and are not run again unless they are named"
    ran = []
    def fn(cfg, seed): ran.append(seed); return dict(accuracy=seed/10)
    monkeypatch.setattr(cli, 'lesson_module', lambda *args: SimpleNamespace(answers={'one': fn}))
    for _ in range(2): cli.answers('01', profile='sample', seeds=2)
    assert ran == [1, 2]
    assert load_answers('01')['one']['rows'] == [{'accuracy': .1}, {'accuracy': .2}] and load_answers('01')['one']['n'] == 1797
    cli.answers('01', 'one', profile='sample', seeds=1)
    assert ran == [1, 2, 1]
    with pytest.raises(CourseError, match='two.*one'): cli.answers('01', 'two', profile='sample')


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
    from course_lib.crappify import apply, parse_steps
    want = apply(parse_steps(steps), Image.open(photos/'1.jpg'), 3, '1.jpg')
    got = Image.open(tmp_path/'out'/'1.jpg')
    assert got.size == want.size == (60, 48) and (tmp_path/'out'/'0.jpg').exists() and not (tmp_path/'out'/'list.txt').exists()


def test_crappify_a_broken_file(course, photos, tmp_path):
    "The others are made, and the shell hears of it"
    (photos/'2.jpg').write_bytes((photos/'1.jpg').read_bytes()[:2000])
    res = course('crappify', photos, tmp_path/'out')
    assert res.returncode == 1 and '2 made' in res.stdout and '2.jpg' in res.stdout and 'Traceback' not in res.stderr


@pytest.mark.parametrize('args, said', [(['photos', 'out', '--steps', 'jepg(3)'], "character 1: there is no step 'jepg'"), (['photos', 'out', '--steps', 'mine'], "no crappifier 'mine'"),
    (['nowhere', 'out'], 'no such folder'), (['photos', 'photos'], 'lie in it'), (['photos', 'out', '--workers', '-1'], 'workers = -1'), (['photos', 'out', '--steps', 'jpeg(10'], 'never closed')])
def test_crappify_errors(course, one_line, photos, args, said): assert said in one_line(course('crappify', *args))


def test_doctor(capsys, tmp_path, monkeypatch):
    "Versions, device, data, and what full would download"
    from fastai.vision.all import Config
    monkeypatch.setattr('course_lib.data.fastai_cfg', lambda: Config(tmp_path/'fastai', 'config.ini', create=dict(data='data', archive='archive')))
    cli.doctor()
    out = capsys.readouterr().out
    for o in ('torch', 'device    cpu', 'GiB in the machine', 'profile   sample', 'would download 15.7 MB', '01_mnist_resnet'): assert o in out
