"`make gpu-report`, shortened and on the CPU: a file a part, whatever becomes of it"
import json, os, subprocess, sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent


def report(tmp_path, *args):
    cmd = [sys.executable, root/'benchmarks'/'gpu_report.py', '--out', tmp_path/'report', *map(str, args)]
    return subprocess.run(cmd, env={**os.environ, 'COURSE_DEVICE': 'cpu'}, capture_output=True, text=True, timeout=1200)


def parts(tmp_path): return {o.stem: json.loads(o.read_text()) for o in (tmp_path/'report').glob('*.json')}


def test_everything_short(tmp_path):
    "Each part measures what it is there for; lesson 10's network trains, and the textbook's loss is ours"
    res = report(tmp_path, '--short', '--only', 'device tests cifar feature_loss')
    got = parts(tmp_path)
    assert res.returncode == 0 and set(got) == {'device', 'tests', 'cifar', 'feature_loss'}, res.stdout+res.stderr
    assert all(o['ok'] and o['short'] for o in got.values())
    assert got['device']['kind'] == 'cpu' and got['device']['TFLOP_s']['float32'] > 0
    run, = got['cifar']['runs']
    assert run['epochs'] == 1 and .1 < run['accuracy'] < .9 and run['training_seconds'] > 0
    assert got['feature_loss']['result']['loss_differs_by'] < 1e-4


def test_what_fails_says_so(tmp_path):
    "Out of time: the part's file is there and says it, and the exit code counts it"
    res = report(tmp_path, '--short', '--only', 'cifar', '--minutes', .1)
    got = parts(tmp_path)['cifar']
    assert res.returncode == 1 and not got['ok'] and got['runs'][0]['ended'] == 'out of time'


def test_one_line(tmp_path, one_line):
    assert 'sees no CUDA' in one_line(report(tmp_path))
    assert 'no part nothing' in one_line(report(tmp_path, '--short', '--only', 'nothing'))
