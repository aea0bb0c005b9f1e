"Files of one's own: `dataset` in settings.ini may be a path, whatever the lesson, and a lesson goes on to its end with them"
import json, os, re
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from course_lib.core import CourseError, lesson_settings, lessons
from course_lib.data import at_hand, data_state, dataset, get_data
from course_lib.own import hold_out, own_layouts
from course_lib.pairs import held_out, make_pairs, matching, pair_dls
from course_lib.results import claim, record, run_kind

root = Path(__file__).resolve().parent.parent


def picture(w=40, h=30, seed=0, mode='RGB'):
    "Left half dark, right half light, with grain"
    a = np.random.default_rng(seed).integers(0, 60, (h, w, 3)).astype(np.uint8)
    a[:, w//2:] += 150
    return Image.fromarray(a).convert(mode)


def save(path, im=None, turned=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if turned: exif[0x0112] = 6
    (im or picture(seed=len(str(path)))).save(path, **({'exif': exif} if turned else {}))
    return path


@pytest.fixture
def set_dataset(tmp_path):
    "Name a path as a lesson's dataset in a settings.ini of the working folder; gives the lesson's settings"
    def _f(lesson, path, profile='sample', **more):
        name = next(o for o in lessons() if o.startswith(lesson))
        lines = ['[course]', f"profile = {profile}", *[f'{k} = {v}' for k,v in more.pop('course', {}).items()], f'[{name}.{profile}]', f'dataset = {path}']
        (tmp_path/'settings.ini').write_text('\n'.join([*lines, *(f'{k} = {v}' for k,v in more.items())]))
        return lesson_settings(lesson)
    return _f


@pytest.fixture
def photos(tmp_path):
    "Eight photographs as people have them: large and small, grey, turned, in folders, and a ninth that is cut off"
    src = tmp_path/'my photos'
    for i,(sz,mode) in enumerate([((200, 150), 'RGB'), ((90, 200), 'L'), ((130, 131), 'RGB'), ((400, 40), 'RGB')]*2):
        save(src/('trip é' if i > 5 else '')/f'{i}.{"png" if i == 3 else "jpg"}', picture(*sz, seed=i, mode=mode), turned=i == 2)
    whole = (src/'0.jpg').read_bytes()
    (src/'cut.jpg').write_bytes(whole[:len(whole)//2])
    return src


def laid(path): return sorted(o.relative_to(path).as_posix() for o in path.rglob('*') if o.is_file() and o.name[0] != '.')


# The setting

@pytest.mark.parametrize('profile', ['sample', 'full'])
def test_every_lesson_takes_a_path(set_dataset, tmp_path, profile):
    "A path is an answer in each lesson that has a dataset and at either profile, and such a run is its own kind, whatever its settings"
    (tmp_path/'some').mkdir()
    for name in lessons():
        cfg = set_dataset(name, tmp_path/'some', profile)
        like, _, path = cfg.dataset.partition(':')
        assert like in own_layouts and Path(path) == (tmp_path/'some').resolve() and like in lessons()[name].sample['dataset']
        assert run_kind(cfg, 8, 8) == run_kind({**cfg, **lessons()[name].lecture, 'dataset': cfg.dataset}, 8, 8) == 'own'


def test_where_a_path_begins(set_dataset, tmp_path, monkeypatch):
    "At the home folder, at the root, or at the repository's folder; a word without a slash is a name in the registry"
    monkeypatch.setenv('HOME', str(tmp_path))
    said = {o: set_dataset('06', o).dataset.partition(':')[2] for o in ('~/a', '/b/c', './nbs', 'data/mine')}
    assert said == {'~/a': str((tmp_path/'a').resolve()), '/b/c': '/b/c', './nbs': str(root/'nbs'), 'data/mine': str(root/'data'/'mine')}
    with pytest.raises(CourseError, match='or the path of files of your own'): get_data(set_dataset('06', 'bedroom').dataset, 'sample')


def test_settings_of_the_shipped_data(set_dataset, photos, tmp_path):
    "Patterns and names that belong to the shipped data make way for the reader's files, and those that the reader has set stay"
    assert set_dataset('04', photos).files == set_dataset('04', photos, 'full').files == '**/*'
    assert set_dataset('05', photos, files='*.jpg').files == '*.jpg'
    for o in ('content_me.jpg', 'style_b.png', 'style_a.png'): save(tmp_path/'two'/o)
    for profile in ('sample', 'full'):
        cfg = set_dataset('08', tmp_path/'two', profile)
        assert (cfg.content_name, cfg.style_name) == ('me', 'a')
    assert set_dataset('08', tmp_path/'two', style_name='b').style_name == 'b'
    as_shipped = {k: (cfg.files, cfg.get('content_name')) for k in ('sample', 'full') for cfg in [lesson_settings('04', k, dataset='photos')]}
    assert as_shipped == dict(sample=('*/*/*.png', None), full=('images/*.jpg', None))


def test_recorded_as_own(set_dataset, photos):
    "A result says whose files it is from, and goes to no column"
    cfg = set_dataset('03', photos)
    res = record('03', cfg, n=8, psnr=20)
    assert (res['kind'], res['n'], res['N']) == ('own', 8, 8)
    from course_lib.report import results_rows
    rows, notes = results_rows()
    assert any(o.startswith('03_crappify, own run (8 of 8 items of photos:') for o in notes)
    assert not any('20.0000' in o for r in rows for o in r)


def test_what_the_registry_says_of_a_path(set_dataset, photos):
    "`course data` and 00 ask about it as about any dataset"
    cfg = set_dataset('04', photos)
    for profile in ('sample', 'full'):
        assert at_hand(cfg.dataset, profile) == photos and data_state(cfg.dataset, profile) == 'here'
        assert not at_hand('photos:/no/where', profile)
    assert dataset(cfg.dataset).title == 'Files of your own'


# The layouts

def test_held_out():
    "A part that stays the same, at least one and never all"
    assert [len(hold_out(map(str, range(n)), .2)) for n in (1, 2, 3, 8, 50)] == [0, 1, 1, 2, 10]
    assert [len(hold_out(map(str, range(4)), o)) for o in (.01, .9)] == [1, 3]
    assert hold_out('abcdefgh', .3) == hold_out('hgfedcba', .3)


def test_share_is_a_setting(set_dataset, photos):
    "`held_out` in [course]; a folder is laid out again when it changes, and when a file does"
    def held(**kw): return [o for o in laid(get_data(set_dataset('04', photos, **kw).dataset)) if o.startswith('valid/')]
    assert len(held()) == 2 and len(held(course=dict(held_out=.5))) == 4
    save(photos/'more.jpg'); save(photos/'more2.jpg'); save(photos/'more3.jpg')
    assert len(held(course=dict(held_out=.5))) == 6 # of eleven
    with pytest.raises(CourseError, match='held_out = 2'): set_dataset('04', photos, course=dict(held_out=2))


def test_photographs(set_dataset, photos, capsys):
    "Lessons 03 to 05: all that can be read, what cannot is named once, pairs of any size become batches, and the originals stay"
    before = {o: o.read_bytes() for o in photos.rglob('*.*')}
    cfg = set_dataset('04', photos, variants=1, crappifier='downscale(40)')
    path, pairs = make_pairs(cfg)
    assert len(pairs) == 8 and 'left out cut.jpg (cut off or damaged)' in capsys.readouterr().out
    dls = pair_dls(pairs, path, cfg)
    xb, yb = dls.one_batch()
    assert xb.shape == yb.shape and xb.shape[1:] == (3, cfg.crop, cfg.crop) and len(dls.valid_ds) == 2
    get_data(cfg.dataset)
    assert 'left out' not in capsys.readouterr().out and before == {o: o.read_bytes() for o in photos.rglob('*.*')}


def test_several_patterns(set_dataset, photos):
    "`files` takes patterns with commas between them, which begin at the reader's folder"
    def names(files): return sorted(o.name for o in matching(get_data(set_dataset('04', photos, files=files).dataset), files))
    assert names('*.png') == ['3.png'] and names('trip é/*.jpg') == ['6.jpg', '7.jpg'] and names('*.png, trip é/6*') == ['3.png', '6.jpg']
    with pytest.raises(CourseError, match='no file matches'): make_pairs(set_dataset('04', photos, files='*.tif'))


def test_folders_that_say_it(set_dataset, tmp_path):
    "Where there are folders train and valid, these are the parts"
    for o in ('train/a.jpg', 'train/b.jpg', 'valid/c.jpg'): save(tmp_path/'ours'/o)
    path = get_data(set_dataset('05', tmp_path/'ours').dataset)
    assert {o: held_out(path/o, path) for o in laid(path)} == {'train/a.jpg': False, 'train/b.jpg': False, 'valid/c.jpg': True}


@pytest.mark.parametrize('lesson', ['01', '10'])
def test_class_folders(set_dataset, tmp_path, lesson):
    "Pictures of any size become the lesson's, upright; every class is on both sides, and few pictures make small batches"
    from course_lib import darknet, resnet
    for k in ('ants', 'bees'):
        for i in range(6): save(tmp_path/'insects'/k/('old' if i == 5 else '')/f'{i}.jpg', picture(50 + i, 40, seed=i), turned=i == 0)
    (tmp_path/'insects'/'ants'/'broken.jpg').write_bytes(b'none')
    cfg = set_dataset(lesson, tmp_path/'insects')
    make, shape = (resnet.mnist_dls, (1, 28, 28)) if lesson == '01' else (darknet.cifar_dls, (3, 32, 32))
    dls = make(get_data(cfg.dataset), cfg.bs)
    xb, yb = dls.one_batch()
    assert [*dls.vocab] == ['ants', 'bees'] and xb.shape[1:] == shape and len(dls.train_ds) + len(dls.valid_ds) == 12
    for o in dls.train_ds, dls.valid_ds: assert {int(y) for _,y in o} == {0, 1}
    turned = np.asarray(Image.open(next(get_data(cfg.dataset).glob('*/*/0.jpg'))).convert('L'), float)
    assert turned[16:].mean() > turned[:12].mean() + 80 # left and right have become top and bottom


def test_two_kinds(set_dataset, tmp_path):
    "Lesson 07: two folders with whatever names, some of each kept for the test"
    from course_lib.cyclegan import UnalignedDataset, fixed_pairs
    for k,n in dict(apples=7, oranges=3).items():
        for i in range(n): save(tmp_path/'fruit'/k/f'{i}.jpg', picture(60 + i, 50))
    cfg = set_dataset('07', tmp_path/'fruit')
    path = get_data(cfg.dataset)
    train, test = (UnalignedDataset(path, o, cfg.load, cfg.sz) for o in ('train', 'test'))
    assert [len(o) for o in (train.a, train.b, test.a, test.b)] == [6, 2, 1, 1]
    assert {os.path.basename(os.path.dirname(os.readlink(o))) for o in train.files_a} == {'apples'}
    assert [len(o) for o in fixed_pairs(cfg, path)] == [1, 1]


def test_a_folder_for_the_wgan(set_dataset, tmp_path):
    "Lesson 06: any folder of pictures"
    from course_lib.wgan import bedroom_tensors
    for i in range(210): save(tmp_path/'rooms'/str(i%3)/f'{i}.png', picture(20, 16, seed=i))
    x, held = bedroom_tensors(set_dataset('06', tmp_path/'rooms', held=100))
    assert (len(x), len(held), *x.shape[1:]) == (110, 100, 3, 32, 32)
    with pytest.raises(CourseError, match='Expected at least twice as many'): bedroom_tensors(set_dataset('06', tmp_path/'rooms', held=200))


def test_a_photograph_and_a_painting(set_dataset, tmp_path):
    "Lesson 08: two files, a strip among them"
    from course_lib.style import open_picture, style_files
    save(tmp_path/'art'/'content_me.jpg', picture(90, 60)); save(tmp_path/'art'/'style_frieze.webp', picture(400, 40))
    cfg = set_dataset('08', tmp_path/'art')
    files = style_files(get_data(cfg.dataset), cfg)
    assert [o.stem for o in files] == ['content_me', 'style_frieze'] and open_picture(files[1]).size == (400, 40)


@pytest.mark.parametrize('codes', [False, True])
def test_images_and_masks(set_dataset, tmp_path, codes):
    "Lesson 02: masks with any numbers become classes, 255 is Void; with codes.txt they are taken as they are"
    from course_lib.scenes import scene_codes
    from course_lib.unet import scene_dls
    for i in range(5):
        save(tmp_path/'cells'/'images'/f'{i}.jpg', picture(40, 30, seed=i))
        a = np.full((30, 40), 1 if codes else 7, np.uint8)
        a[:5], a[20:] = 0 if codes else 255, 2 if codes else 90
        save(tmp_path/'cells'/'masks'/f'{i}.png', Image.fromarray(a))
    if codes: (tmp_path/'cells'/'codes.txt').write_text('Void\ncell\nwall\n')
    path = get_data(set_dataset('02', tmp_path/'cells').dataset)
    assert scene_codes(path) == (['Void', 'cell', 'wall'] if codes else ['7', '90', 'Void'])
    y = scene_dls(path, 2, (30, 40)).one_batch()[1]
    assert [int(y[0, i, 20]) for i in (2, 10, 25)] == ([0, 1, 2] if codes else [2, 0, 1])


def test_two_numbers_are_two_classes(set_dataset, tmp_path):
    "Masks of nothing but 0 and 255 have two classes, and no pixel is Void"
    for i in range(3):
        save(tmp_path/'bw'/'images'/f'{i}.jpg', picture(16, 16))
        save(tmp_path/'bw'/'labels'/f'{i}_P.png', Image.fromarray(np.array([[0, 255]]*2, np.uint8)).resize((16, 16), 0))
    path = get_data(set_dataset('02', tmp_path/'bw').dataset)
    assert {*np.unique(np.asarray(Image.open(path/'labels'/'0_P.png')))} == {0, 1} and (path/'codes.txt').read_text().split() == ['0', '255', 'Void']


def test_a_text(set_dataset, tmp_path):
    "Lesson 09: a text file; its last lines are held out, and a word that the rest does not have is xxunk in both"
    from course_lib.rnn import number_ids
    book = tmp_path/'book.txt'
    book.write_text('\n'.join(['Der Hund sieht die Katze.']*40 + ['Die Katze sieht einen Hund.']*9 + ['Das Pferd, nicht.']), encoding='utf-8')
    train, valid, vocab, lines = number_ids(get_data(set_dataset('09', book).dataset))
    assert len(lines) == 10 and lines[-1].startswith('xxunk xxunk xxunk') and {'der', 'katze', 'xxunk'} < {*vocab}
    (tmp_path/'zahlen').mkdir()
    for k,o in dict(train='eins zwei\nzwei drei', valid='drei eins').items(): (tmp_path/'zahlen'/f'{k}.txt').write_text(o)
    assert number_ids(get_data(set_dataset('09', tmp_path/'zahlen').dataset))[3] == ['drei eins'] # two lists stay as they are


@pytest.mark.parametrize('lesson', ['01', '02', '04', '07', '08', '09', '10'])
def test_another_layout_is_refused(set_dataset, tmp_path, lesson):
    "A folder that is not as the lesson wants it: which, and what was expected"
    save(tmp_path/'odd'/'one.jpg')
    for path in (tmp_path/'odd', tmp_path/'nowhere'):
        with pytest.raises(CourseError) as e: get_data(set_dataset(lesson, path).dataset)
        like = lesson_settings(lesson).dataset.partition(':')[0]
        assert str(path) in str(e.value) and f'Expected {own_layouts[like]}' in str(e.value) and '\n' not in str(e.value)


def test_names_as_files_have_them(set_dataset, tmp_path):
    "Blanks, line ends and bytes that are no text in a name are no hindrance"
    for o in ('a b.jpg', 'new\nline.jpg', os.fsdecode(b'\xff.jpg'), 'UPPER.JPG'): save(tmp_path/'odd names'/o)
    assert len(laid(get_data(set_dataset('03', tmp_path/'odd names').dataset))) == 4
    from course_lib.wgan import listed_pictures
    path = get_data(set_dataset('06', tmp_path/'odd names').dataset)
    assert all(o.exists() for o in listed_pictures(path)) and len(listed_pictures(path)) == 4


def test_without_links(set_dataset, photos, monkeypatch):
    "Where the system makes no links, files are copied"
    def none(*args, **kwargs): raise OSError
    monkeypatch.setattr(Path, 'symlink_to', none)
    path = get_data(set_dataset('03', photos).dataset)
    assert len(laid(path)) == 8 and not any(o.is_symlink() for o in path.rglob('*'))


# To the end

def test_a_claim_about_the_sample(monkeypatch, capsys):
    "It stops the lesson as it is shipped where a program runs it, and is said where settings, data or code are the reader's"
    shipped = lesson_settings('06', 'sample')
    with pytest.raises(AssertionError, match='nearer'): claim(False, 'nearer', shipped)
    for k,o in dict(nearer=dict(epochs=1), further=dict(dataset='bedrooms:/x'), other=dict(seed=7)).items(): claim(False, k, {**shipped, **o})
    assert capsys.readouterr().out == 'Not so here: nearer\nNot so here: further\nNot so here: other\n'
    monkeypatch.delenv('COURSE_RUNS'); monkeypatch.delenv('IN_TEST', raising=False)
    claim(False, 'edited', shipped); claim(True, 'right', shipped)
    assert capsys.readouterr().out == 'Not so here: edited\n'


def cells(lesson):
    "Its code cells, by their names"
    found = json.loads(next((root/'nbs').glob(f'{lesson}_*.ipynb')).read_text(encoding='utf-8'))['cells']
    return {c['id']: ''.join(c['source']) for c in found if c['cell_type'] == 'code'}


def test_what_rests_on_the_sample_is_a_claim():
    "No assertion of a lesson says that it rests on the sample: `claim` is for that, and goes on"
    words = r"assert .*, '[^'\n]*(sample|one seed)"
    bad = {(p.name, k) for p in (root/'nbs').glob('[01]*.ipynb') for k,v in cells(p.stem.split('_')[0]).items() if re.search(words, v)}
    assert {o for o in bad if not o[0].startswith(('02_', '04_', '05_'))} == set() # these ask for the sample first


def test_a_wrong_head_fails_at_once():
    "Lesson 01: before the training, and with the two shapes"
    space = dict(torch=torch, device='cpu', xb=torch.zeros(4, 1, 28, 28))
    from fastcore.test import test_eq
    exec(cells('01')['71166b45'].split('\nlearn =')[0], space | dict(test_eq=test_eq), space)
    space['test_eq'] = test_eq
    from course_lib.resnet import conv2, short_cnn
    assert space['check_head'](short_cnn())
    with pytest.raises(AssertionError, match=r'(?s)4, 9.*4, 10'):
        space['check_head'](torch.nn.Sequential(conv2(1, 8), conv2(8, 16), conv2(16, 32), conv2(32, 16), conv2(16, 9), torch.nn.Flatten()))


def run_to_the_end(lesson, without=()):
    "A lesson's cells, one after the other, in this process and in the working folder; `without`: cells that only show what is kept"
    import matplotlib.pyplot as plt
    plt.switch_backend('agg')
    space = dict(__name__='__main__', display=lambda *args: None)
    for k,v in cells(lesson).items():
        if k not in without: exec(compile(v, f'{lesson}, {k}', 'exec'), space)
        plt.close('all')
    return space


def test_lesson_with_two_small_folders(set_dataset, tmp_path, monkeypatch):
    "Lesson 07 from its first cell to its last, with seven pictures of one kind and four of another"
    for k,n in dict(apples=7, oranges=4).items():
        for i in range(n): save(tmp_path/'fruit'/k/f'{i}.jpg', picture(60 + i, 50, seed=i))
    set_dataset('07', tmp_path/'fruit', epochs=1, epochs_decay=0, sz=32, load=32, ngf=4, ndf=4)
    monkeypatch.setattr('course_lib.data.make_sample', lambda name: tmp_path) # the drawn horses would take half a minute
    assert run_to_the_end('07', without=['07a00004'])['res']['kind'] == 'own'


def test_lesson_with_another_language(set_dataset, tmp_path):
    "Lesson 09 from its first cell to its last, with numbers in German, in one file"
    units = 'null eins zwei drei vier fünf sechs sieben acht neun'.split()
    def number(n): return ' '.join(o for k,name in ((1000, 'tausend'), (100, 'hundert'), (10, 'zig'), (1, '')) if (d := n//k%10) for o in (units[d], name) if o)
    (tmp_path/'zahlen.txt').write_text('\n'.join(number(n) for n in range(1, 9000)), encoding='utf-8')
    epochs = {f'epochs_{o}': 1 for o in ('words', 'every', 'state', 'gru')}
    set_dataset('09', tmp_path/'zahlen.txt', nh=8, **epochs)
    space = run_to_the_end('09')
    assert 'tausend' in space['vocab'] and 'xxunk' not in space['vocab']
