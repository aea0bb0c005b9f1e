"A result is called what it is, and only what is full stands under full"
import json, shutil, time
import pytest
from course_lib.cli import answers, results
from course_lib.report import results_rows
from course_lib.core import CourseError, lesson_settings, runs_home
from course_lib.results import (answers_table, expected_minutes, load_answers, load_results, mean_sd,
    record, run_kind, save_answer)
from course_lib.data import get_data
from course_lib.runner import headline

lesson, N = '01_mnist_resnet', 70_000


def recorded(profile='full', n=N, acc=.99, **changed): return record(lesson, lesson_settings(lesson, profile, **changed), n, acc_cnn=acc)

def row(**kwargs): # the row of the first figure: sample, full
    return next(o for o in results_rows(**kwargs)[0] if '3 epochs' in o[1] and 'CNN' in o[1] and 'seeds' not in o[1])[3:]

def notes(): return '\n'.join(results_rows()[1])


@pytest.mark.parametrize('n,changed,kind', [(N, {}, 'full'), (N, dict(seed=3), 'full'), (N, dict(epochs=2), 'reduced'), (N, dict(bs=64), 'reduced'),
    (N-1, {}, 'reduced'), (N, dict(dataset='human_numbers'), 'reduced')])
def test_kinds(n, changed, kind): assert run_kind(lesson_settings(lesson, 'full', **changed), n, N) == kind

@pytest.mark.parametrize('changed,kind', [({}, 'sample'), (dict(seed=3), 'sample'), (dict(device='cpu'), 'sample'), (dict(epochs=9), 'own'),
    (dict(bs=128), 'own'), (dict(dataset='human_numbers'), 'own')])
def test_sample_kinds(changed, kind):
    "The sample is called so with its own data and settings only, and never full"
    cfg = lesson_settings(lesson, 'sample', **changed)
    assert run_kind(cfg, N, N) == kind and run_kind(cfg, N, N, as_made=False) == 'own'
    assert run_kind(cfg, N, N, changed=list(changed)) == 'sample', 'what an experiment changes by itself is no other run'


@pytest.fixture
def digits(): return get_data('mnist', 'sample')


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


def test_outdated_sample(clone, digits):
    "A sample result from other settings than today's is not shown as ours"
    recorded('sample', 1797, acc=.95)
    assert row() == ['0.9500', '–']
    p = clone/'settings.ini'
    p.write_text(p.read_text().replace('\nepochs = 3\n', '\nepochs = 4\n'))
    assert row() == ['–', '–'] and 'other settings' in notes()


@pytest.fixture
def own_data(tmp_path, monkeypatch, digits):
    "A sample's folder that may be written into"
    shutil.copytree(digits, tmp_path/'data'/'sample'/'mnist')
    monkeypatch.setenv('COURSE_DATA', str(tmp_path/'data'))
    return tmp_path/'data'/'sample'/'mnist'


def test_other_data_is_not_ours(clone, own_data, capsys):
    "As many files under the same names, one of them another picture: the run is the reader's own, is said to be, and is not kept"
    recorded('sample', 1797, acc=.95)
    assert row() == ['0.9500', '–'] and not notes()
    (runs_home()/'results'/f'{lesson}-sample-cpu.json').unlink()
    a, b = sorted((own_data/'training'/'3').iterdir())[:2]
    shutil.copy(b, a)
    recorded('sample', 1797, acc=.77)
    assert row() == ['–', '–'] and 'own run (1,797 of 1,797 items of mnist' in notes() and '0.7700' in notes()
    results(keep=True)
    assert 'not kept: 01_mnist_resnet-own-cpu.json' in capsys.readouterr().out and not list((clone/'results').glob('*.json'))


def test_own_settings_are_not_ours(clone, digits):
    "Settings edited in place are in force, and the run is the reader's own: an earlier sample result is not overwritten"
    recorded('sample', 1797, acc=.95)
    p = clone/'settings.ini'
    p.write_text(p.read_text().replace('\nepochs = 3\n', '\nepochs = 4\n'))
    assert lesson_settings(lesson).epochs == 4
    recorded('sample', 1797, acc=.77)
    assert {o['kind']: o['figures']['acc_cnn'] for o in load_results('01')} == dict(sample=.95, own=.77)
    assert row() == ['–', '–'] and '0.7700' in notes()


def test_own_answers_are_not_ours(clone, digits):
    "An experiment's own change leaves it what it is; a change of the reader's does not"
    for changed,by_itself,kind in ((dict(lr=.2), ['lr'], 'sample'), (dict(lr=.2), [], 'own'), (dict(lr=.2, bs=32), ['lr'], 'own')):
        got = save_answer(lesson, 'CNN, 3 epochs', [dict(accuracy=.5)], lesson_settings(lesson, 'sample', **changed), 1797, [1], 1., changed=by_itself)
        assert got['kind'] == kind
    assert not [o for o in results_rows()[0] if 'CNN, 3 epochs, 1 seed' in o[1]] and 'own: CNN, 3 epochs: accuracy 0.5000' in notes()


def test_minutes_follow_the_settings(clone, digits, monkeypatch):
    "What is expected is what the same settings took, and where nothing is known of these, what was different is said"
    from course_lib import results as module
    def took(minutes, **changed):
        monkeypatch.setitem(module._started, lesson, module.time.time() - 60*minutes)
        recorded('sample', 1797, **changed)
    assert 'no run' in expected_minutes('01', 'sample')
    took(2)
    assert expected_minutes('01', 'sample').startswith('2.0 minutes on') and 'other settings' not in expected_minutes('01', 'sample')
    p, text = clone/'settings.ini', (clone/'settings.ini').read_text()
    p.write_text(text.replace('\nepochs = 3\n', '\nepochs = 30\n'))
    assert 'with other settings: epochs 3, now 30' in expected_minutes('01', 'sample')
    took(11)
    assert expected_minutes('01', 'sample').startswith('11.0 minutes on') and 'other settings' not in expected_minutes('01', 'sample')
    p.write_text(text)
    assert expected_minutes('01', 'sample').startswith('2.0 minutes on')


def test_headline(tmp_path):
    "What a lesson has just recorded, each figure by its own name"
    (tmp_path/'results').mkdir()
    (tmp_path/'results'/'04_gan_superres-own-cpu.json').write_text(json.dumps(dict(figures=dict(psnr_gan=26.5, ssim_gan=.7))))
    assert headline('04_gan_superres', tmp_path, 0) == 'psnr_gan 26.500, ssim_gan 0.700' and not headline('04_gan_superres', tmp_path, time.time()+9)


def test_mean_and_deviation():
    "Of the seeds that have the figure; a single seed has no deviation"
    rows = [dict(colours=.0189, only_here=1.), dict(colours=.0197)]
    assert {k: mean_sd(rows, k) for k in ('colours', 'only_here', 'nothing')} == dict(colours='0.0193 ± 0.0006', only_here='1.0000', nothing='')
    assert mean_sd([dict(gap=-.5), dict(gap=-.1)], 'gap', '.1f') == '-0.3 ± 0.3'


@pytest.mark.parametrize('seeds', [0, -1])
def test_no_seeds(clone, seeds):
    with pytest.raises(CourseError, match=f'--seeds {seeds}: nothing would be run'): answers('01', seeds=seeds)
    with pytest.raises(CourseError, match='no seed'): answered([])
    assert not load_answers('01')


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
    "The whole table into results/README.md, a short one into README.md; nothing else in them changes"
    recorded(acc=.9871)
    pages = clone/'README.md', clone/'results'/'README.md'
    for p in pages: p.write_text('# A\n<!-- results -->\nold\n<!-- /results -->\nB\n')
    results(keep=True, readme=True)
    short, whole = (p.read_text() for p in pages)
    for o in (short, whole): assert o.startswith('# A\n') and o.endswith('\nB\n') and 'old' not in o
    assert '| 0.9871 |' in whole and '| 0.9871 |' not in short and len(short) < len(whole)/2


def test_keep_needs_a_clone(monkeypatch):
    monkeypatch.setattr('course_lib.cli.clone_root', lambda: None)
    with pytest.raises(CourseError, match='clone'): results(keep=True)


def answered(accs, n=N, profile='full', name='CNN, 3 epochs', keep=False, **changed):
    rows = [dict(accuracy=a, valid_loss=1-a) for a in accs]
    return save_answer(lesson, name, rows, lesson_settings(lesson, profile, **changed), n, list(range(1, len(accs)+1)), 90., keep=keep)


def test_answers_mean_and_deviation(clone):
    "The mean over the seeds, and the standard deviation beside it"
    answered([.98, .94, .96])
    assert any(o[1].startswith('accuracy, CNN, 3 epochs, 3 seeds') and o[4] == '0.9600 ± 0.0200' for o in results_rows()[0])
    table = answers_table(lesson, ['CNN, 3 epochs', 'not run'], ['accuracy', 'valid_loss']).splitlines()
    assert len(table) == 4 and table[3].startswith('| not run | not run yet |')
    assert '| 0.9600 ± 0.0200 | 0.0400 ± 0.0200 | 3 | full |' in table[2]


@pytest.mark.parametrize('how', [dict(n=1000), dict(epochs=1), dict(profile='sample', n=1797)])
def test_answers_that_are_not_full(clone, digits, how):
    "The column of full results takes no answer from a part of the data or from the sample; a reduced one is a note"
    answered([.99, .98], **how)
    rows = [o[3:] for o in results_rows()[0] if 'seeds' in o[1]]
    sample = how.get('profile') == 'sample'
    assert rows == ([['0.9850 ± 0.0071', '–']] if sample else [])
    assert sample or any('reduced' in o and '0.9850 ± 0.0071' in o for o in results_rows()[1])


def test_kept_though_not_full(clone, digits):
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
    assert any('0.9850 ± 0.0071' in o for o in results_rows()[0])
