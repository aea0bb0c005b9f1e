"Wrong settings give one line that names the file, the section, the key and what was expected"
import os
import pytest
from course_lib.core import CourseError, active_profile, course_device, lesson_settings, read_settings

def error(f, *args, **kwargs):
    with pytest.raises(CourseError) as e: f(*args, **kwargs)
    assert '\n' not in str(e.value)
    return str(e.value)


wrong = [
    ('an unknown lesson',    '[99_nothing]\nbs = 1',                   ['[99_nothing]', '01_mnist_resnet']),
    ('an unknown profile section', '[01_mnist_resnet.fast]\nbs = 1',   ['[01_mnist_resnet.fast]', 'LESSON.sample']),
    ('an unknown key',       '[01_mnist_resnet]\nbatch = 1',           ['[01_mnist_resnet]', 'batch', 'bs']),
    ('a word for a number',  '[01_mnist_resnet]\nepochs = three',      ['[01_mnist_resnet]', 'epochs', 'three', 'a whole number from 1 to 10000']),
    ('a fraction',           '[01_mnist_resnet.full]\nbs = 2.5',       ['[01_mnist_resnet.full]', 'bs', '2.5', 'a whole number from 1 to 8192']),
    ('a word for a rate',    '[01_mnist_resnet]\nlr = fast',           ['[01_mnist_resnet]', 'lr', 'fast', 'a number from 0 to 100']),
    ('not a number',         '[01_mnist_resnet]\nlr = nan',            ['lr', 'nan', 'a number from 0 to 100']),
    ('too low',              '[01_mnist_resnet.sample]\nbs = 0',       ['[01_mnist_resnet.sample]', 'bs', 'from 1 to 8192']),
    ('too high',             '[01_mnist_resnet]\nlr = 101',            ['lr', '101', 'from 0 to 100']),
    ('nothing',              '[01_mnist_resnet]\nlr =',                ['lr', '(nothing)', 'a number']),
    ('an unknown profile',   'profile = ful',                          ['[course]', 'profile', 'ful', 'one of sample, full']),
    ('an unknown device',    'device = gpu',                           ['[course]', 'device', 'gpu', 'one of auto, cpu, cuda, mps']),
    ('not read by the lesson', '[01_mnist_resnet]\nwd = 0.1',          ['[01_mnist_resnet] wd', 'is not read there', 'epochs_deep']),
    ('not read in a profile', '[08_style_transfer.sample]\nbs = 4',    ['[08_style_transfer.sample] bs', 'is not read there', 'style_px']),
    ('of a lesson, for all',  'bs = 4',                                ['[course] bs', 'is not read there', 'profile, device, seed']),
    ('of all, for a lesson',  '[01_mnist_resnet]\ndevice = cpu',       ['[01_mnist_resnet] device', 'is not read there']),
    ('a key given twice',    'seed = 1\nseed = 2',                     ["'seed'", "'course'", 'already exists']),
    ('a section given twice', '[01_mnist_resnet]\n[01_mnist_resnet]',  ["'01_mnist_resnet'", 'already exists']),
    ('a line without =',     'seed 1',                                 ['seed 1', 'key = value']),
]

@pytest.mark.parametrize('text,words', [o[1:] for o in wrong], ids=[o[0] for o in wrong])
def test_wrong_file(tmp_path, text, words):
    (tmp_path/'settings.ini').write_text(f'[course]\n{text}\n')
    e = error(read_settings)
    for o in [str(tmp_path/'settings.ini'), *words]: assert o in e


def test_lines_outside_sections(tmp_path):
    (tmp_path/'settings.ini').write_text('seed = 1\n[course]\n')
    e = error(read_settings)
    assert str(tmp_path/'settings.ini') in e and '[section]' in e


def test_not_text(tmp_path):
    "A file in another encoding is named too"
    (tmp_path/'settings.ini').write_bytes('[course]\n; für später\nseed = 1\n'.encode('latin-1'))
    assert str(tmp_path/'settings.ini') in error(read_settings)


def test_another_alphabet(tmp_path):
    "UTF-16, as Windows calls Unicode: named, and not passed over as if there were no such file"
    (tmp_path/'settings.ini').write_text('[course]\nseed = 7\n', encoding='utf-16')
    assert str(tmp_path/'settings.ini') in error(read_settings)


def test_byte_order_mark(tmp_path):
    "As Notepad writes it"
    (tmp_path/'settings.ini').write_text('[course]\nseed = 7\n', encoding='utf-8-sig')
    assert read_settings()['course']['seed'] == 7


def test_changed_file_counts_at_once(tmp_path):
    "What was read is kept only for as long as the file holds the same text, whatever its time says"
    f = tmp_path/'settings.ini'
    f.write_text('[course]\nseed = 1\n')
    before = f.stat()
    assert [read_settings()['course']['seed'] for _ in range(2)] == [1, 1]
    f.write_text('[course]\nseed = 2\n')
    os.utime(f, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read_settings()['course']['seed'] == lesson_settings('01').seed == 2
    f.write_text('[course]\nseed = two\n')
    for _ in range(2): assert 'two' in error(read_settings)
    f.unlink()
    assert read_settings()['course']['seed'] == 42


def test_profile_from_environment(monkeypatch):
    monkeypatch.setenv('COURSE_PROFILE', 'full')
    assert active_profile() == 'full'
    monkeypatch.setenv('COURSE_PROFILE', 'ful')
    e = error(active_profile)
    for o in ('COURSE_PROFILE', "'ful'", 'sample', 'full ('): assert o in e


def test_profile_as_argument():
    "A profile that does not exist is refused wherever it comes from"
    e = error(lesson_settings, '01', 'ful')
    for o in ("'ful'", 'sample', 'full'): assert o in e


def test_device_from_environment(monkeypatch):
    monkeypatch.setenv('COURSE_DEVICE', 'abacus')
    e = error(course_device)
    for o in ('COURSE_DEVICE', "'abacus'", 'cpu'): assert o in e


def test_unknown_names():
    assert "'99'" in error(lesson_settings, '99') and '01_mnist_resnet' in error(lesson_settings, '99')
    assert 'batch' in error(lesson_settings, '01', batch=3) and 'bs' in error(lesson_settings, '01', batch=3)


def test_own_settings_win(tmp_path):
    "The nearest file above the working folder is merged key by key, and the more special section wins"
    (tmp_path/'settings.ini').write_text('[course]\nseed = 7\n[01_mnist_resnet]\nepochs = 4 ; two more\n[01_mnist_resnet.sample]\nbs = 32\n')
    cfg, full = lesson_settings('01'), lesson_settings('01', 'full')
    assert (cfg.seed, cfg.epochs, cfg.bs, cfg.lr) == (7, 4, 32, .1)
    assert (full.seed, full.epochs, full.bs) == (7, 4, 128)


def test_command_line(tmp_path, course, one_line):
    (tmp_path/'settings.ini').write_text('[course]\n[01_mnist_resnet]\nepochs = three\n')
    line = one_line(course('run', '01'))
    for o in (str(tmp_path/'settings.ini'), '[01_mnist_resnet]', 'epochs', 'three', 'a whole number'): assert o in line


def test_command_line_profile(course, one_line):
    line = one_line(course('run', '01', COURSE_PROFILE='ful'))
    for o in ("'ful'", 'sample', 'full ('): assert o in line
