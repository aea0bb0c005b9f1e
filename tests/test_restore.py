"Restoring photographs: weights that say what they are, any size, tiles, files of every kind, and the command line"
import json, os, struct, sys, tracemalloc
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from course_lib import restore
from course_lib.core import CourseError
from course_lib.metrics import psnr
from course_lib.pictures import open_photo
from course_lib.restore import (box_file, box_patches, box_settings, generator, load_model, model_kinds, photo_unet, read_weights, restore_files,
    restore_photo, save_model, tile_starts, tile_weights, try_box)
from course_lib.samples.photos import photo_sources

small = dict(widths=[8,8,16,16])


@pytest.fixture
def model():
    "An untrained network: the identity"
    torch.manual_seed(0)
    return photo_unet(small).eval()


@pytest.fixture(scope='module')
def cat(): return open_photo(photo_sources()['cat'][0])[0]


@pytest.fixture
def saved(model, tmp_path): return save_model(tmp_path/'m.safetensors', model, small, dict(psnr=1.5))


def parts_of(path):
    "The header and the numbers of a safetensors file"
    data = path.read_bytes()
    n = struct.unpack('<Q', data[:8])[0]
    return json.loads(data[8:8+n]), data[8+n:]


def written(path, head, body):
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + body)
    return path


# weights

def test_there_and_back(saved, model):
    "Numbers, settings and figures come back, and nothing is half-written"
    back, about = load_model(saved)
    assert all(torch.equal(a, b.cpu()) for a,b in zip(model.state_dict().values(), back.state_dict().values()))
    assert (about.kind, about.settings, about.figures) == ('photo_unet', small, dict(psnr=1.5))
    assert set(about.versions) >= {'python', 'torch'} and [o.name for o in saved.parent.iterdir()] == [saved.name]
    assert not back.training and not any(p.requires_grad for p in back.parameters())


def test_half(model, tmp_path):
    "Half the size, the same to three digits, and 32 bits again when loaded"
    files = [save_model(tmp_path/f'{o}.safetensors', model, small, half=o) for o in (False, True)]
    assert files[1].stat().st_size < .65*files[0].stat().st_size
    for a,b in zip(model.parameters(), load_model(files[1])[0].parameters()):
        assert b.dtype == torch.float32 and torch.allclose(a, b.cpu(), rtol=2e-3, atol=1e-6)


def test_never_unpickles(tmp_path):
    "A pickle is refused, and its code does not run"
    class Bomb:
        def __reduce__(self): return Path.touch, (tmp_path/'ran',)
    torch.save(dict(w=Bomb()), tmp_path/'m.safetensors')
    with pytest.raises(CourseError, match='no weights in the safetensors format'): load_model(tmp_path/'m.safetensors')
    assert not (tmp_path/'ran').exists()


@pytest.mark.parametrize('n', [0, 5, 100, -1])
def test_cut_off(saved, n):
    saved.write_bytes(saved.read_bytes()[:n])
    with pytest.raises(CourseError, match='cut off'): read_weights(saved)


def test_a_flipped_bit(saved):
    data = bytearray(saved.read_bytes())
    data[-1000] ^= 1
    saved.write_bytes(data)
    with pytest.raises(CourseError, match='damaged'): read_weights(saved)


def test_of_another_program(saved, tmp_path):
    "A safetensors file without our words in it"
    head, body = parts_of(saved)
    head['__metadata__'] = {'format': 'pt'}
    with pytest.raises(CourseError, match='which network'): load_model(written(tmp_path/'o.safetensors', head, body))


@pytest.mark.parametrize('change, said', [(dict(kind='resnet'), "'resnet' is no kind"), (dict(settings=dict(widths=[8,8,16,24])), r'is \(.*expected'),
    (dict(settings=dict(widths=[8,16])), r'and \d+ more')])
def test_says_what_differs(saved, tmp_path, change, said):
    "Another network than the one that the settings make: the first differences, and the versions where those differ too"
    head, body = parts_of(saved)
    about = json.loads(head['__metadata__']['course_lib'])
    head['__metadata__']['course_lib'] = json.dumps({**about, **change, 'versions': {**about['versions'], 'torch': '1.0'}})
    with pytest.raises(CourseError, match=said) as e: load_model(written(tmp_path/'o.safetensors', head, body))
    if 'settings' in change: assert 'torch 1.0 then' in str(e.value)


def test_settings_asked_for(saved):
    assert load_model(saved, widths=[8,8,16,16])[0] is not None
    with pytest.raises(CourseError, match=r'widths = \[8, 8, 16, 16\], and \[1\]'): load_model(saved, widths=[1])


def test_failed_save_leaves_the_old(saved, model, monkeypatch):
    "When the disk is full, the file from before is there, whole"
    old = saved.read_bytes()
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('os.replace', full)
    with pytest.raises(OSError): save_model(saved, model, small)
    assert saved.read_bytes() == old and [o.name for o in saved.parent.iterdir()] == [saved.name]


def test_generator_of_the_lessons(tmp_path):
    "What lesson 04 trains can be kept too, and restores"
    from course_lib.core import lesson_settings
    cfg = lesson_settings('04', 'sample', size=64)
    gen = generator(cfg).eval()
    back, about = load_model(save_model(tmp_path/'g.safetensors', gen, cfg, kind='generator'))
    im = Image.effect_mandelbrot((90,70), (-2,-1.5,1,1.5), 60).convert('RGB')
    assert about.settings['norm'] == 'weight' and 'generator' in model_kinds
    assert psnr(restore_photo(back, im), restore_photo(gen, im)) > 60


# any size

@pytest.mark.parametrize('size', [(1,1), (1,50), (33,7), (160,96), (97,131)])
def test_sizes(model, cat, size):
    "Any size comes back as itself, to the byte that rounding leaves"
    im = cat.crop((100,100,100+size[0],100+size[1]))
    out = restore_photo(model, im)
    assert out.size == size and abs(np.asarray(out).astype(int)-np.asarray(im)).max() <= 1


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGBA', 'CMYK', 'P', '1', 'I;16', 'F'])
def test_modes(model, mode):
    "Whatever Pillow can hold, at its own brightness"
    grey = Image.fromarray(np.linspace(40, 200, 64*48).reshape(48,64).astype(np.uint8))
    im = Image.fromarray(np.asarray(grey).astype(np.uint16)*257) if mode == 'I;16' else grey.convert(mode)
    out = restore_photo(model, im)
    assert (out.size, out.mode) == ((64,48), 'RGB')
    if mode != '1': assert abs(np.asarray(out).astype(int).mean(-1)-np.asarray(grey)).mean() < 6


def test_upright(model, cat):
    "A photograph that says it lies on its side is set upright"
    im = cat.crop((0,0,80,48))
    im.getexif()[0x0112] = 6
    assert restore_photo(model, im).size == (48,80)


def test_enlarge(model, cat):
    im = cat.crop((0,0,40,30))
    assert restore_photo(model, im, enlarge=2.5).size == (100,75)


@pytest.mark.parametrize('tile, overlap', [(100, 32), (128, 30), (128, 96), (128, 0)])
def test_bad_tiles(model, cat, tile, overlap):
    with pytest.raises(CourseError, match='expected multiples of 16'): restore_photo(model, cat, most=1, tile=tile, overlap=overlap)


@pytest.mark.parametrize('n', [16, 640, 656, 1168, 4000])
def test_tiles_cover(n):
    "Every pixel is in a tile that counts, tiles begin on the grid, and weights sum to one"
    starts, weights, total = tile_starts(n, 640, 128), tile_weights(n, 640, 128), np.zeros(n)
    for s,w in zip(starts, weights):
        assert s % 16 == 0 and s+len(w) <= n
        total[s:s+len(w)] += w
    np.testing.assert_allclose(total, 1, atol=1e-6)
    for s,w in zip(starts[1:], weights[1:]): assert not w[:48].any() # what has seen too little


def test_tiled_is_whole(cat):
    "The box's network, in tiles and as a whole"
    box = load_model(box_file())[0]
    a, b = (np.asarray(restore_photo(box, cat, most=o, tile=256)).astype(int) for o in (1e9, 1))
    assert abs(a-b).max() <= 1 and abs(a-np.asarray(cat)).max() > 1


def test_tiles_take_the_same_memory(model, monkeypatch):
    "The network stubbed out: 12, 24 and 48 megapixels of one width grow by their own bytes and by nothing else; the photograph stays as it is"
    from course_lib import restore
    monkeypatch.setattr(restore, '_through', lambda model, a: 1-a/np.float32(255))
    peaks, grey = [], Image.linear_gradient('L')
    for h in (3000, 6000, 12000):
        im = grey.resize((4000, h)).convert('RGB')
        tracemalloc.start() # what NumPy takes; Pillow's two pictures are not in it
        out = restore_photo(model, im)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        rows = lambda o, y: np.asarray(o.crop((0, y, 4000, y+1))).astype(int)
        for y in (0, 511, 512, 640, h//2, h-1): assert abs(rows(im, y)+rows(out, y)-255).max() <= 1
    assert max(peaks) < 1.05*min(peaks) and max(peaks) < 150e6, peaks


@pytest.mark.skipif(sys.platform == 'win32', reason='no resource module')
def test_twelve_megapixels(python, tmp_path):
    "A large photograph takes a bounded piece of memory, network included"
    code = '''
import resource, sys, numpy as np, torch
from PIL import Image
from course_lib.restore import photo_unet, restore_photo
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform == 'darwin' else 2**10) # a Mac counts bytes
net = photo_unet(dict(widths=[4,4,8,8]))
im = Image.radial_gradient('L').resize((4000,3000)).convert('RGB')
restore_photo(net, im.crop((0,0,64,64)))
before = peak()
out = restore_photo(net, im)
print(out.size[0], out.size[1], int(peak()-before), int(abs(np.asarray(out.reduce(4)).astype(int)-np.asarray(im.reduce(4))).max()))'''
    res = python(code)
    assert res.returncode == 0, res.stderr
    w, h, more, error = map(int, res.stdout.split())
    assert (w, h) == (4000, 3000) and error <= 1
    assert more < 700, f'{more} MB'


# files

@pytest.fixture
def album(tmp_path, cat):
    "A folder with photographs of many kinds, two that are broken, and a text"
    d = tmp_path/'album'
    (d/'sub').mkdir(parents=True)
    im = cat.crop((120,60,200,120))
    im.save(d/'a.jpg', quality=95)
    turned = Image.Exif()
    turned[0x0112] = 6
    im.save(d/'sub'/'turned.jpg', quality=95, exif=turned)
    im.convert('RGBA').save(d/'clear.png')
    im.convert('CMYK').save(d/'print.tif')
    (d/'cut.jpg').write_bytes((d/'a.jpg').read_bytes()[:900])
    (d/'text.jpg').write_text('not a photograph')
    (d/'.hidden.jpg').write_bytes((d/'a.jpg').read_bytes())
    return d


def state(d): return {str(p.relative_to(d)): p.read_bytes() for p in d.rglob('*') if p.is_file() and p.name != '.course_made.jsonl'}


def test_folder(album, model, tmp_path):
    "All that can be read is there under its own name, the rest is told, the album is untouched"
    before = state(album)
    rep = restore_files([album], model, tmp_path/'out')
    assert sorted(state(tmp_path/'out')) == ['a.jpg', 'clear.png', 'print.tif.png', 'sub/turned.jpg']
    assert (rep.made, rep.kept, sorted(o for o,_ in rep.left_out)) == (4, 0, ['cut.jpg', 'text.jpg'])
    assert Image.open(tmp_path/'out'/'sub'/'turned.jpg').size == (60,80)
    assert state(album) == before


def test_goes_on(album, model, tmp_path):
    "What is there is kept, what is missing or empty is made, and all of it anew when that is asked for"
    restore_files([album], model, tmp_path/'out')
    whole = state(tmp_path/'out')
    (tmp_path/'out'/'a.jpg').write_bytes(b'')
    (tmp_path/'out'/'clear.png').unlink()
    rep = restore_files([album], model, tmp_path/'out')
    assert (rep.made, rep.kept) == (2, 2) and state(tmp_path/'out') == whole
    assert restore_files([album], model, tmp_path/'out', again=True).made == 4


@pytest.mark.parametrize('again', [False, True])
@pytest.mark.parametrize('how', ['before', 'changed', 'link', 'folder'])
def test_what_is_not_ours_stays(album, model, tmp_path, how, again):
    "A file that was there before, a result that was edited since, a link, a folder of the same name: reported and left, and the rest is made"
    out = tmp_path/'out'
    out.mkdir()
    if how == 'changed': restore_files([album], model, out)
    if how == 'link': (out/'a.jpg').symlink_to(tmp_path/'nowhere')
    elif how == 'folder': (out/'a.jpg').mkdir()
    else: (out/'a.jpg').write_bytes(b'mine')
    rep = restore_files([album], model, out, again=again)
    assert (rep.made, rep.kept) == ((0, 3) if how == 'changed' and not again else (3, 0))
    assert [w for f,w in rep.left_out if f == str(album/'a.jpg')] == ['where its result would go lies a file that was not made here, or was changed since']
    if how == 'link': assert (out/'a.jpg').is_symlink()
    elif how == 'folder': assert (out/'a.jpg').is_dir()
    else: assert (out/'a.jpg').read_bytes() == b'mine'


@pytest.mark.parametrize('what', ['settings', 'weights', 'photograph'])
def test_made_anew_when_anything_differs(album, model, tmp_path, what):
    "Other settings, other weights, or a photograph that was edited, even with the size and the time that it had"
    out = tmp_path/'out'
    restore_files([album], model, out)
    before, kwargs = state(out), {}
    if what == 'settings': kwargs = dict(enlarge=2)
    if what == 'weights':
        with torch.no_grad(): model.head[0].bias.add_(.5)
    if what == 'photograph':
        st, data = (album/'a.jpg').stat(), (album/'a.jpg').read_bytes()
        Image.new('RGB', (80,60), 'teal').save(album/'a.jpg')
        new = (album/'a.jpg').read_bytes()
        (album/'a.jpg').write_bytes(new + b'\0'*(len(data)-len(new)))
        os.utime(album/'a.jpg', ns=(st.st_atime_ns, st.st_mtime_ns))
        assert (album/'a.jpg').stat().st_size == len(data)
    changed = {'a.jpg'} if what == 'photograph' else set(before)
    rep = restore_files([album], model, out, **kwargs)
    assert (rep.made, rep.kept) == (len(changed), 4-len(changed))
    assert {k for k,v in state(out).items() if v != before[k]} == changed
    assert restore_files([album], model, out, **kwargs).kept == 4


def test_files_that_cannot_be_made(album, model, tmp_path):
    "A name that would be too long, a pipe, a result too wide for its format: a line each, and the rest goes on"
    (album/f"{'n'*251}.tif").write_bytes((album/'print.tif').read_bytes())
    os.mkfifo(album/'pipe.jpg')
    (album/'sick.jpg').symlink_to('/proc/self/mem') # whose bytes cannot be read
    (tmp_path/'out').mkdir(); (tmp_path/'out'/'cats').write_text('a file where a folder should be')
    (album/'cats').mkdir(); (album/'cats'/'young.jpg').write_bytes((album/'a.jpg').read_bytes())
    Image.new('RGB', (16500, 2)).save(album/'wide.jpg')
    rep = restore_files([album], model, tmp_path/'out', enlarge=4)
    why = {Path(f).name[:8]: w for f,w in rep.left_out}
    assert rep.made == 4 and why['n'*8] == 'the name of its result would be too long' and why['pipe.jpg'] == 'not a plain file'
    assert 'cannot be written as .jpg' in why['wide.jpg'], why
    assert 'File exists' in why['young.jp'] and ('cannot be read' in why['sick.jpg'] or 'not a plain file' in why['sick.jpg'])


def test_no_place_to_write(album, model, tmp_path):
    "One line that names the setting"
    (tmp_path/'file').write_text('')
    with pytest.raises(CourseError, match='cannot be written to .*--out'): restore_files([album], model, tmp_path/'file'/'out')


@pytest.mark.parametrize('way', ['itself', 'a link', 'a folder of links'])
def test_never_over_the_input(album, model, tmp_path, way):
    "Not by its own name, not through a link, not with insistence"
    out = album
    if way == 'a link': out = tmp_path/'link'; out.symlink_to(album)
    if way == 'a folder of links':
        out = tmp_path/'links'
        out.mkdir()
        for o in ('a.jpg', 'clear.png'): (out/o).symlink_to(album/o)
    before = state(album)
    rep = restore_files([album/'a.jpg', album/'clear.png'], model, out, again=True)
    assert rep.made == 0 and len(rep.left_out) == 2 and state(album) == before


def test_out_inside_the_album(album, model):
    "Results inside the folder are not restored again"
    for made in (4, 0): assert restore_files([album], model, album/'better').made == made
    assert not (album/'better'/'better').exists()


def test_two_of_one_name(album, model, tmp_path):
    "Two photographs of one name: the first is made, the second is told"
    (tmp_path/'b').mkdir()
    (tmp_path/'b'/'a.jpg').write_bytes((album/'a.jpg').read_bytes())
    rep = restore_files([album/'a.jpg', tmp_path/'b'/'a.jpg'], model, tmp_path/'out')
    assert rep.made == 1 and 'another one is called a.jpg' in rep.left_out[0][1]


def test_missing(model, tmp_path):
    with pytest.raises(CourseError, match='no such file'): restore_files([tmp_path/'no.jpg'], model, tmp_path/'out')
    assert not (tmp_path/'out').exists()


def test_disk_full(album, model, tmp_path, monkeypatch):
    "Said in one line; no file is half there"
    import os
    real, n = os.replace, []
    def full(a, b):
        n.append(a)
        if len(n) > 1: raise OSError(28, 'No space left on device')
        real(a, b)
    monkeypatch.setattr('os.replace', full)
    with pytest.raises(CourseError, match='the disk is full.*--out'): restore_files([album], model, tmp_path/'out')
    assert sorted(o.name for o in (tmp_path/'out').iterdir()) == ['.course_made.jsonl', 'a.jpg']
    monkeypatch.setattr('os.replace', real)
    rep = restore_files([album], model, tmp_path/'out')
    assert (rep.made, rep.kept) == (3, 1)


# the model in the box

def test_the_box(cat):
    "Small, made by the settings that stand in the module, with a card of its own figures"
    tensors, about = read_weights(box_file())
    card = box_file().with_suffix('.md').read_text()
    assert box_file().stat().st_size < 5e6 and about.sha256[:16] in card
    for o in ('widths', 'damage'): assert about.settings[o] == box_settings[o]
    trials = about.figures['trials']
    gains = {'fewer pixels (64 of 128)': .5, 'JPEG of quality 20': -.1, 'noise (12 of 255)': .1, 'blur (1.2 pixels)': .5, 'writing': 3, 'the mixture it trained on': .8}
    for name,least in gains.items():
        assert trials[name][1] > trials[name][0] + least, name
        assert f'| {name} | {trials[name][0]:.2f} | {trials[name][1]:.2f} |' in card


@pytest.mark.parametrize('name,least', [('noise (12 of 255)', .1), ('blur (1.2 pixels)', .5), ('writing', 3)])
def test_the_box_measured_again(name, least, monkeypatch):
    "The weights that are kept do what their card says: measured anew on the held-out squares"
    model, about = load_model(box_file())
    monkeypatch.setattr(restore, 'box_trials', {name: restore.box_trials[name]})
    (before, after), = try_box(model).values()
    assert [before, after] == pytest.approx(about.figures['trials'][name], abs=.1) and after > before + least


def test_other_weights_would_be_noticed(monkeypatch):
    "The test above can fail: with a head that has not been trained nothing is gained"
    model, _ = load_model(box_file())
    monkeypatch.setattr(restore, 'box_trials', {'writing': restore.box_trials['writing']})
    monkeypatch.setattr(restore, 'box_patches', lambda *args: box_patches(*args)[:12])
    for p in model.head.parameters(): torch.nn.init.zeros_(p)
    (before, after), = try_box(model).values()
    assert after < before + 1


@pytest.mark.parametrize('name', ['cat', 'coffee', 'portrait'])
def test_leaves_good_ones_alone(name):
    "A held-out photograph that nothing is wrong with is hardly changed"
    im = open_photo(photo_sources()[name][0])[0].crop((100,100,356,356))
    assert psnr(restore_photo(load_model(box_file())[0], im), im) > 35


@pytest.mark.parametrize('out, said', [('notes.safetensors', 'no weights in the safetensors format'), ('README.safetensors', 'README.md: the card would take its place'),
    ('photo.jpg', 'ends in .safetensors'), ('file/box.safetensors', 'cannot be written to .*--out')])
def test_box_over_nothing(tmp_path, monkeypatch, out, said):
    "Neither the weights nor their card go over a file that is something else; that is said before the training"
    from course_lib import restore
    monkeypatch.setattr(restore, 'box_dls', lambda *args: pytest.fail('it trains'))
    files = {o: f'my {o}' for o in ('notes.safetensors', 'README.md', 'photo.jpg', 'file')}
    for k,v in files.items(): (tmp_path/k).write_text(v)
    with pytest.raises(CourseError, match=said): restore.train_box(tmp_path/out)
    assert {k: (tmp_path/k).read_text() for k in files} == files


# the command line

def test_course_restore(course, album, tmp_path):
    "The model that comes with the course; a bad file in the table, and the shell hears of it; then nothing is left to do"
    for said,code in (('4 made, 0 kept from before, 2 left out', 1), ('0 made, 4 kept from before, 2 left out', 1)):
        res = course('restore', album, '--out', tmp_path/'out')
        assert res.returncode == code and said in res.stdout and 'Traceback' not in res.stderr, res.stdout+res.stderr
    table = [o.split() for o in res.stdout.splitlines() if o.rstrip().endswith(('cut.jpg', 'text.jpg'))]
    assert [o[-1] for o in table] == ['cut.jpg', 'text.jpg']


def test_course_restore_with_a_model(course, album, saved, tmp_path):
    res = course('restore', album/'a.jpg', '--model', saved, '--out', tmp_path/'out', '--enlarge', '2')
    assert res.returncode == 0, res.stderr
    assert Image.open(tmp_path/'out'/'a.jpg').size == (160,120)
    assert '1 made' in course('restore', album/'a.jpg', '--model', saved, '--out', tmp_path/'out').stdout
    assert Image.open(tmp_path/'out'/'a.jpg').size == (80,60)


@pytest.mark.parametrize('args, said', [((), 'no photograph was named'), (('no.jpg',), 'no such file'), (('.', '--model', 'no.safetensors'), 'no such file'),
    (('.', '--enlarge', '99'), 'from 1 to 8')])
def test_course_restore_errors(course, one_line, args, said): assert said in one_line(course('restore', *args))


def test_no_weights_of_nan(model, tmp_path):
    "A network that training has spoilt is not written over a good one"
    save_model(tmp_path/'m.safetensors', model, small)
    good = (tmp_path/'m.safetensors').read_bytes()
    next(model.parameters()).data.fill_(torch.inf)
    with pytest.raises(CourseError, match='m.safetensors: the training has failed'): save_model(tmp_path/'m.safetensors', model, small)
    assert (tmp_path/'m.safetensors').read_bytes() == good


@pytest.mark.parametrize('said', ['CUDA out of memory. Tried to allocate', 'MPS backend out of memory (MPS allocated: 9.0 GB)'])
def test_no_room_on_the_device(tmp_path, model, cat, said):
    "A picture that does not fit is left out, whatever the device calls it; another error is none of that"
    cat.save(tmp_path/'cat.png')
    def full(x): raise RuntimeError(said)
    model.forward = full
    rep = restore_files([tmp_path/'cat.png'], model, tmp_path/'out', shown=False)
    assert "does not fit into the device's memory" in str(rep.notes) and not list(tmp_path.rglob('out/*.png'))
    said = 'shapes differ'
    with pytest.raises(RuntimeError, match='shapes differ'): restore_files([tmp_path/'cat.png'], model, tmp_path/'out', shown=False)
