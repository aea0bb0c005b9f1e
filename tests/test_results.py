"A result is called what it is, and only what is full stands under full"
import json
import pytest
from course_lib.cli import results, results_rows
from course_lib.core import (CourseError, answers_table, lesson_settings, load_answers, load_results, record, run_kind, runs_home,
    save_answer)

lesson, N = '01_mnist_resnet', 70_000


def recorded(profile='full', n=N, acc=.99, **changed): return record(lesson, lesson_settings(lesson, profile, **changed), n, acc_cnn=acc)

def row(**kwargs): # the row of the first figure: sample, full
    return next(o for o in results_rows(**kwargs)[0] if '3 epochs' in o[1] and 'CNN' in o[1] and 'seeds' not in o[1])[3:]

def notes(): return '\n'.join(results_rows()[1])


@pytest.mark.parametrize('n,changed,kind', [(N, {}, 'full'), (N, dict(seed=3), 'full'), (N, dict(epochs=2), 'reduced'), (N, dict(bs=64), 'reduced'),
    (N-1, {}, 'reduced'), (N, dict(dataset='human_numbers'), 'reduced')])
def test_kinds(n, changed, kind): assert run_kind(lesson_settings(lesson, 'full', **changed), n, N) == kind

def test_sample_is_never_full(): assert run_kind(lesson_settings(lesson, 'sample', bs=128), N, N) == 'sample'


def test_recorded_and_loaded(clone):
    "What a run has recorded says how it was made, and is found again"
    recorded(acc=.987)
    res, = load_results('01')
    assert res['file'] == runs_home()/'results'/f'{lesson}-full-cpu.json'
    assert (res['kind'], res['n'], res['N'], res['seed'], res['figures']) == ('full', N, N, 42, {'acc_cnn': .987})
    assert res['settings']['bs'] == 128 and res['device_kind'] == 'cpu' and 'torch' in res['versions']


def test_full_run_is_shown(clone):
    recorded(acc=.9871)
    assert row() == ['–', '0.9871'] and notes() == ''


@pytest.mark.parametrize('how', [dict(epochs=1), dict(n=1000)])
def test_reduced_is_never_full(clone, how):
    "A shortened run is listed below, as what it is, and does not push a full one out"
    recorded(acc=.5555, **how)
    assert row() == ['–', '–'] and 'reduced run' in notes() and '0.5555' in notes()
    recorded(acc=.9871)
    assert row() == ['–', '0.9871'] and '0.5555' in notes()


def test_outdated_sample(clone):
    "A sample result from other settings than today's is not shown as ours"
    recorded('sample', 1797, acc=.95)
    assert row() == ['0.9500', '–']
    p = clone/'settings.ini'
    p.write_text(p.read_text().replace('\nepochs = 3\n', '\nepochs = 4\n'))
    assert row() == ['–', '–'] and 'other settings' in notes()


def test_keep(clone, capsys):
    "`--keep` copies this machine's results into the clone; before that the README's table does not know them"
    recorded(acc=.9871)
    assert row(kept_only=True) == ['–', '–'] and not list((clone/'results').glob('*.json'))
    for _ in range(2): results(keep=True)
    assert f'kept results/{lesson}-full-cpu.json' in capsys.readouterr().out
    kept, = (clone/'results').glob('*.json')
    assert json.loads(kept.read_text())['figures'] == {'acc_cnn': .9871}
    assert row(kept_only=True) == ['–', '0.9871']


def test_readme_is_written(clone):
    recorded(acc=.9871)
    (clone/'README.md').write_text('# A\n<!-- results -->\nold\n<!-- /results -->\nB\n')
    results(keep=True, readme=True)
    text = (clone/'README.md').read_text()
    assert text.startswith('# A\n') and text.endswith('\nB\n') and '| 0.9871 |' in text and 'old' not in text


def test_keep_needs_a_clone(monkeypatch):
    monkeypatch.setattr('course_lib.cli.clone_root', lambda: None)
    with pytest.raises(CourseError, match='clone'): results(keep=True)


def answered(accs, n=N, profile='full', name='CNN, 3 epochs', keep=False, **changed):
    rows = [dict(accuracy=a, valid_loss=1-a) for a in accs]
    return save_answer(lesson, name, rows, lesson_settings(lesson, profile, **changed), n, list(range(1, len(accs)+1)), 90., keep=keep)


def test_answers_mean_and_worst(clone):
    "The mean over the seeds, and the worst beside it: the lowest accuracy, the highest loss"
    answered([.98, .94, .96])
    assert any(o[1].startswith('CNN, 3 epochs, 3 seeds') and o[4] == '0.9600 (0.9400)' for o in results_rows()[0])
    table = answers_table(lesson, ['CNN, 3 epochs', 'not run'], ['accuracy', 'valid_loss']).splitlines()
    assert len(table) == 4 and table[3].startswith('| not run | not run yet |')
    assert '| 0.9600 (0.9400) | 0.0400 (0.0600) | 3 | full | 1.5 |' in table[2]


@pytest.mark.parametrize('how', [dict(n=1000), dict(epochs=1), dict(profile='sample', n=1797)])
def test_answers_that_are_not_full(clone, how):
    "The column of full results takes no answer from a part of the data or from the sample; a reduced one is a note"
    answered([.99, .98], **how)
    rows = [o[3:] for o in results_rows()[0] if 'seeds' in o[1]]
    sample = how.get('profile') == 'sample'
    assert rows == ([['0.9850 (0.9800)', '–']] if sample else [])
    assert sample or any('reduced' in o and '0.9850 (0.9800)' in o for o in results_rows()[1])


def test_kept_though_not_full(clone):
    "A maintainer may keep what is not full, but never in the place of what is"
    answered([.91], profile='sample', n=1797, keep=True)
    assert load_answers(lesson, clone/'results'/'answers'/'01.json')['CNN, 3 epochs']['kind'] == 'sample'
    answered([.99])
    answered([.92], profile='sample', n=1797, keep=True)
    assert load_answers(lesson, clone/'results'/'answers'/'01.json')['CNN, 3 epochs']['kind'] == 'full'


def test_one_of_several_settings():
    "The lecture's setting may be any of a list: pretrained weights were asked for, and were there"
    cfg = lesson_settings('02', 'full')
    for v,kind in (('auto', 'full'), ('yes', 'full'), ('no', 'reduced')): assert run_kind({**cfg, 'pretrained': v}, 1402, 1402) == kind


def test_answers_beside_each_other(clone):
    answered([.9], name='a')
    answered([.8], name='b')
    assert {k: v['rows'][0]['accuracy'] for k,v in load_answers(lesson).items()} == {'a': .9, 'b': .8}


def test_sample_answers_spare_full_ones(clone):
    "An experiment that is tried on the sample does not replace the kept answer at full scale"
    answered([.99, .98])
    answered([.91], profile='sample', n=1797)
    assert any('0.9850 (0.9800)' in o for o in results_rows()[0])
