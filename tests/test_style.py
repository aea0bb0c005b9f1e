"What lesson 08 promises beside its own text: pictures that cannot be read, losses that look at their argument, runs that are stopped"
import math, os
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from torch import nn

from course_lib import style as S
from course_lib.core import CourseError
from course_lib.data import get_data
from course_lib.feature_loss import gram_matrix
from course_lib.style import (FourierCanvas, block_ends, features, keep_colours, loss_network, match_colours, open_picture,
    optimise, picture_batch, sizes_up_to, soft_noise, style_terms, picture_loss, transfer, transfer_loss)
from course_lib.apps.style_files import save_picture, style_file

rand = lambda *sz, seed=0: torch.rand(*sz, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope='module')
def pics(): return rand(1, 3, 48, 48), soft_noise((48, 48), 5, 1)


@pytest.fixture(scope='module')
def judge(pics):
    torch.manual_seed(0)
    return loss_network('course', 'auto', torch.cat(pics), torch.device('cpu'))[0]


@pytest.fixture
def files(tmp_path):
    for i,o in enumerate(('photo', 'painting')): save_picture(soft_noise((40, 60), 5, i), tmp_path/f'{o}.png')
    return tmp_path/'photo.png', tmp_path/'painting.png'


def test_huge_jpeg_is_reduced(tmp_path, capsys):
    "More pixels than Pillow opens by itself: made smaller on the way, with a line that says so"
    Image.new('L', (16000, 12000), 99).save(tmp_path/'huge.jpg')
    im = open_picture(tmp_path/'huge.jpg', 256)
    assert 256 <= max(im.size) < 512 and im.mode == 'RGB' and abs(np.asarray(im).mean() - 99) < 1
    assert 'huge.jpg: 16,000×12,000 pixels, opened at 2,000×1,500' in capsys.readouterr().out
    assert Image.MAX_IMAGE_PIXELS is not None


def test_huge_png_is_refused(tmp_path):
    "What cannot be reduced while it is decoded is refused before it is decoded"
    Image.new('1', (12000, 12000)).save(tmp_path/'huge.png')
    with pytest.raises(CourseError, match='12,000×12,000 pixels are too many'): open_picture(tmp_path/'huge.png', 256)
    assert Image.MAX_IMAGE_PIXELS is not None


@pytest.mark.parametrize('data', [b'', b'no picture', b'\x89PNG\r\n\x1a\n' + b'\0'*40])
def test_no_picture(tmp_path, data):
    (tmp_path/'x.png').write_bytes(data)
    with pytest.raises(CourseError, match='not a picture that can be read'): open_picture(tmp_path/'x.png')


def test_cut_off_and_missing(tmp_path, files):
    whole = files[0].read_bytes()
    (tmp_path/'cut.png').write_bytes(whole[:len(whole)//2])
    for o in ('cut.png', 'nowhere.png'):
        with pytest.raises(CourseError, match='not a picture that can be read'): open_picture(tmp_path/o)


@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', '1', 'CMYK', 'I;16'])
def test_modes(tmp_path, mode):
    Image.new(mode, (30, 20)).save(tmp_path/f"x.{'jpg' if mode == 'CMYK' else 'png'}")
    assert picture_batch(open_picture(next(tmp_path.glob('x.*'))), 15, 'cpu').shape == (1, 3, 10, 15)


def test_turned_by_exif(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new('RGB', (60, 40)).save(tmp_path/'x.jpg', exif=exif)
    assert open_picture(tmp_path/'x.jpg').size == (40, 60)


@pytest.mark.parametrize('sz', [(4000, 800), (800, 4000), (300, 200)])
def test_painting_is_opened_by_its_shorter_side(tmp_path, sz):
    "What has to cover has enough pixels on its shorter side, where the file has them; by the longer side a strip is left with few"
    Image.new('RGB', sz).save(tmp_path/'x.jpg')
    im = open_picture(tmp_path/'x.jpg', 250, shorter=True)
    assert min(im.size) == min(sz) or 250 <= min(im.size) < 500
    assert abs(im.width/im.height - sz[0]/sz[1]) < .05*sz[0]/sz[1]
    longer = max(open_picture(tmp_path/'x.jpg', 250).size)
    assert 250 <= longer < 500


def test_tool_opens_each_by_its_side(tmp_path, monkeypatch):
    "`course style` asks for the photograph's longer side and for the painting's shorter one"
    from course_lib.apps import style_files as app
    seen, names = {}, [tmp_path/'photo.png', tmp_path/'strip.png']
    for o,sz in zip(names, ((60, 40), (400, 80))): save_picture(soft_noise(sz[::-1], 3, 0), o)
    def note(path, px, shorter=False):
        seen[Path(path).name] = shorter
        return open_picture(path, px, shorter)
    monkeypatch.setattr(app, 'open_picture', note)
    app.style_file(*names, tmp_path/'out.png', size=48, evals=2, arch='course', tell=lambda *a: None)
    assert seen == {'photo.png': False, 'strip.png': True}


def test_save_and_read_back(tmp_path):
    "Colours are not inverted: read back, a picture is within half a level"
    x = rand(1, 3, 20, 30)
    save_picture(x, tmp_path/'x.png')
    assert (picture_batch(Image.open(tmp_path/'x.png'), 30, 'cpu') - x).abs().max() <= .51/255
    assert [o.name for o in tmp_path.iterdir()] == ['x.png']


def test_gram_matrix_by_hand():
    x = rand(2, 4, 5, 6)
    want = torch.stack([torch.tensor([[(a*b).sum() for b in o] for a in o]) for o in x])/(4*5*6)
    torch.testing.assert_close(gram_matrix(x), want)
    assert (torch.linalg.eigvalsh(gram_matrix(x)) > -1e-7).all()


@pytest.mark.parametrize('size', [(32, 48), (33, 47), (64, 64)])
@pytest.mark.parametrize('power', [0, .7, 1.5])
def test_canvas_holds_any_picture(size, power):
    x = rand(2, 3, *size)
    torch.testing.assert_close(FourierCanvas(x, power)(), x, atol=2e-4, rtol=1e-3)


def test_colours_of_a_grey_picture():
    "A picture without any colour, or of one colour alone, gives no infinite numbers"
    for x in (torch.full((1, 3, 8, 8), .5), rand(1, 1, 8, 8).expand(1, 3, 8, 8)):
        assert torch.isfinite(match_colours(x, rand(1, 3, 8, 8))).all()
    torch.testing.assert_close(keep_colours(rand(1, 3, 8, 8), torch.full((1, 3, 8, 8), .5)).std(1), torch.zeros(1, 8, 8), atol=2e-3, rtol=0)


def test_losses_look_at_their_argument(judge, pics):
    loss = transfer_loss(judge, *pics, block=1)
    assert loss(pics[0]) != loss(pics[1])
    style = picture_loss(judge, style_terms(judge, pics[1], block_ends(judge)))
    assert style(pics[1]) < 1e-9 < style(pics[0])
    torch.testing.assert_close(style(torch.cat(pics)), torch.cat([style(o) for o in pics]), rtol=1e-3, atol=1e-6)


def test_no_hook_stays(judge, pics):
    def n(): return sum(len(o._forward_hooks) for o in judge.modules())
    def stop(*args): raise KeyboardInterrupt
    for each in (stop, lambda *args: 1/0):
        with pytest.raises((KeyboardInterrupt, ZeroDivisionError)): optimise(transfer_loss(judge, *pics, block=1), pics[0], 5, each=each)
        assert n() == 0
    with pytest.raises(RuntimeError): features(judge, [19], torch.zeros(1, 3, 2, 2)) # too small to be pooled twice
    assert n() == 0


def test_evaluations_are_counted(judge, pics):
    for opt in (S.lbfgs, torch.optim.LBFGS, lambda ps: torch.optim.Adam(ps, lr=.01)):
        seen = []
        _, losses = optimise(transfer_loss(judge, *pics, block=1), pics[1], 23, opt, each=lambda *a: seen.append(a))
        assert len(losses) == len(seen) == 23 and losses == [o[1] for o in seen]


def test_best_picture_comes_back():
    target = rand(1, 3, 8, 8)
    loss = lambda x: (x-target).square().mean((1,2,3))
    x, losses = optimise(loss, torch.zeros(1, 3, 8, 8), 30, lambda ps: torch.optim.SGD(ps, lr=2000.)) # leaps away
    assert loss(x).item() == pytest.approx(min(o for o in losses if math.isfinite(o)))


def test_a_loss_that_is_no_number(capsys):
    n = iter(range(100))
    x, losses = optimise(lambda x: x.square().mean((1,2,3))*(math.nan if next(n) == 4 else 1), torch.ones(1, 3, 4, 4), 20)
    assert len(losses) == 5 and torch.isfinite(x).all() and 'left the numbers at evaluation 5' in capsys.readouterr().out


@pytest.mark.parametrize('arch,ends', [('squeezenet1_1', [1, 4, 7, 12]), ('vgg16_bn', [5, 12, 22, 32, 42])])
def test_block_ends(arch, ends):
    "The layers before each pooling; the lecture's for its VGG"
    from course_lib.models import torchvision_encoder
    assert block_ends(torchvision_encoder(arch).eval()) == ends


def test_random_judge_has_unit_variance():
    "Batch norms are folded, indices stay, and random weights neither vanish nor explode"
    x = rand(2, 3, 64, 64)
    net, trained = loss_network('vgg16_bn', 'no', x, torch.device('cpu'))
    assert not trained and not any(isinstance(o, nn.BatchNorm2d) for o in net.modules()) and len(net) == 44
    for f in features(net, [3, 20, 40], x): assert .9 < f.std() < 1.1


def test_sizes():
    assert sizes_up_to(256) == [256] and sizes_up_to(257) == [128, 257] and sizes_up_to(40) == [40]
    assert all(a < b for a,b in zip(sizes_up_to(1999), sizes_up_to(1999)[1:])) and sizes_up_to(1999)[-1] == 1999


@pytest.mark.parametrize('size', [0, 31, 2049])
def test_transfer_sizes(judge, size):
    im = Image.new('RGB', (40, 30))
    with pytest.raises(CourseError, match='Expected 32 to 2,048'): transfer(judge, im, im, size)


def test_strips(judge):
    "Too narrow for the judge at the first size: a line, not what its pooling says; a painting may have any shape"
    strip, im = Image.new('RGB', (1000, 12)), Image.new('RGB', (40, 30))
    with pytest.raises(CourseError, match='64×1 pixels are too narrow'): transfer(judge, strip, im, 64, evals=2, block=1)
    assert transfer(judge, im, strip, 64, evals=2, block=1).shape[-2:] == (48, 64)


def test_coarse_to_fine_stages(judge, files):
    seen = []
    x = transfer(judge, *map(Image.open, files), size=96, evals=4, block=1, first=48, each=lambda *a: seen.append((a[0], a[1], a[2], tuple(a[4].shape[-2:]))))
    assert x.shape == (1, 3, 64, 96) and x.min() >= 0 and x.max() <= 1
    assert seen == [(0, i, 4, (32, 48)) for i in (1,2,3,4)] + [(1, i, 2, (64, 96)) for i in (1,2)]


def paint(files, out, **kw): return style_file(*files, out, **{**dict(size=48, evals=6, arch='course', tell=lambda s: None, every=2), **kw})


def test_stopped_and_resumed(files, tmp_path):
    "A stopped run leaves a picture and a state, the next one goes on there, and nothing stays behind"
    def stop(s):
        if 'evaluation 5' in s: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): paint(files, tmp_path/'out.png', tell=stop)
    left = {o.name for o in tmp_path.glob('out*')}
    assert left == {'out.part.npz', 'out-so-far.jpg'} and Image.open(tmp_path/'out-so-far.jpg').size == (48, 32)
    said = []
    paint(files, tmp_path/'out.png', tell=said.append)
    assert 'goes on at size 1, evaluation 4' in said and sum('loss' in o for o in said) == 2
    assert {o.name for o in tmp_path.glob('out*')} == {'out.png'}


@pytest.mark.parametrize('change', [dict(weight=7.), dict(size=40), dict(evals=8)])
def test_other_arguments_start_anew(files, tmp_path, change):
    def stop(s):
        if 'evaluation 3' in s: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): paint(files, tmp_path/'out.png', tell=stop)
    said = []
    paint(files, tmp_path/'out.png', tell=said.append, **change)
    assert not any('goes on' in o for o in said)


@pytest.mark.parametrize('name', ['out.png', 'out.part.npz', 'out-so-far.jpg'])
@pytest.mark.parametrize('way', ['before', 'changed', 'link'])
def test_what_is_not_ours_stays(files, tmp_path, name, way):
    "A result, a state or a picture so far that this command did not make, or that was changed since: told before the work, and left"
    def stop(s):
        if 'evaluation 5' in s: raise KeyboardInterrupt
    paint(files, tmp_path/'out.png')
    with pytest.raises(KeyboardInterrupt): paint(files, tmp_path/'out.png', tell=stop)
    assert {o.name for o in tmp_path.glob('out*')} == {'out.png', 'out.part.npz', 'out-so-far.jpg'}
    if way == 'before': (tmp_path/'.course_made.jsonl').unlink()
    if way == 'changed': (tmp_path/name).write_bytes(b'mine')
    if way == 'link':
        (tmp_path/'mine').write_bytes(b'mine')
        (tmp_path/name).unlink()
        (tmp_path/name).symlink_to(tmp_path/'mine')
    before = {o.name: o.read_bytes() for o in tmp_path.glob('[!.]*') if o.is_file()}
    said = f'{"out.png" if way == "before" else name}: is there already.*--out'
    with pytest.raises(CourseError, match=said): paint(files, tmp_path/'out.png', tell=pytest.fail)
    assert {o.name: o.read_bytes() for o in tmp_path.glob('[!.]*') if o.is_file()} == before


@pytest.mark.parametrize('which', [0, 1])
@pytest.mark.parametrize('way', ['itself', 'a hard link', 'a soft link'])
@pytest.mark.parametrize('name', ['out.png', 'out-so-far.jpg', 'out.part.npz'])
def test_never_over_an_input(files, tmp_path, which, way, name):
    "The result, the picture so far and the state are no place for what is read, even if it is ours, by whatever name it is read"
    def stop(s):
        if 'evaluation 5' in s: raise KeyboardInterrupt
    paint(files, tmp_path/'out.png')
    with pytest.raises(KeyboardInterrupt): paint(files, tmp_path/'out.png', tell=stop)
    used = tmp_path/name
    if way != 'itself':
        used = tmp_path/'used.jpg'
        if way == 'a hard link': os.link(tmp_path/name, used)
        else: used.symlink_to(tmp_path/name)
    before = (tmp_path/name).read_bytes()
    read = [used, files[1]] if which == 0 else [files[0], used]
    with pytest.raises(CourseError, match='one of the pictures to read'): paint(read, tmp_path/'out.png', tell=pytest.fail)
    assert (tmp_path/name).read_bytes() == before


def test_picture_so_far_as_photograph(files, tmp_path):
    "What a stopped run left may be painted further, under another name"
    def stop(s):
        if 'evaluation 5' in s: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): paint(files, tmp_path/'out.png', tell=stop)
    paint([tmp_path/'out-so-far.jpg', files[1]], tmp_path/'more.png')
    assert {o.name for o in tmp_path.glob('*o*') if not o.name.startswith('.')} >= {'out-so-far.jpg', 'out.part.npz', 'more.png'}


def test_no_room(files, tmp_path, monkeypatch):
    "A folder that cannot be written to, before the work; a list of ours that was cut off is no obstacle"
    (tmp_path/'.course_made.jsonl').write_text('["out.png", "12')
    paint(files, tmp_path/'out.png')
    paint(files, tmp_path/'out.png')
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('tempfile.TemporaryFile', full)
    with pytest.raises(CourseError, match='the disk is full.*--out'): paint(files, tmp_path/'out.png', tell=pytest.fail)


def test_disk_that_fills_up_meanwhile(files, tmp_path, monkeypatch):
    "The line names the folder of the result, wherever the command was started"
    (tmp_path/'out').mkdir()
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('os.fsync', full)
    with pytest.raises(CourseError, match='out: the disk is full.*--out'): paint(files, tmp_path/'out'/'a.png')


def test_colours_kept(files, tmp_path):
    a = paint(files, tmp_path/'a.png', keep=True)
    photo = picture_batch(Image.open(files[0]), (32, 48), 'cpu')
    hue = lambda x: torch.stack([x[:,0]-x[:,1], x[:,1]-x[:,2]])
    assert (hue(picture_batch(Image.open(a), 48, 'cpu')) - hue(photo)).abs().mean() < .02


def test_bad_jobs(files, tmp_path):
    for out,kw,said in (('x.gif', {}, 'ends in .png or .jpg'), ('no/x.png', {}, 'is not there'), ('photo.png', {}, 'one of the pictures to read'),
                        ('x.png', dict(weight=-1.), 'weight = -1'), ('x.png', dict(weight=math.nan), 'weight = nan'), ('x.png', dict(size=9), 'size = 9'),
                        ('x.png', dict(arch='resnet1', pretrained='no'), 'no network of torchvision')):
        with pytest.raises(CourseError, match=said): paint(files, tmp_path/out, **kw)
    assert sorted(o.name for o in tmp_path.glob('*.*')) == ['painting.png', 'photo.png']


def test_command(course, files, tmp_path, one_line):
    res = course('style', files[0], '--style', files[1], '--size', '40', '--evals', '3', '--judge', 'course', '--colour-preserve')
    assert res.returncode == 0, res.stderr
    assert Image.open(tmp_path/'photo-painting.png').size == (40, 27) and 'is painted' in res.stdout
    assert 'Expected --style FILE' in one_line(course('style', files[0]))
    assert 'not a picture' in one_line(course('style', tmp_path/'none.jpg', '--style', files[1], '--judge', 'course'))


def test_sample_pictures():
    assert [o.name for o in sorted(Path(get_data('style_images', 'sample')).glob('*.png'))] == \
        ['content_cat.png', 'content_coffee.png', 'content_rocket.png', 'style_night.png', 'style_noon.png']
