"What lesson 04's modules promise: pairs, split, crops, scores, the two steps, the game, and answers that stand alone"
import json
from pathlib import Path
import numpy as np, pytest, torch, torch.nn.functional as F
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure
from course_lib import gan, metrics
from course_lib.core import CourseError, lesson_settings, runs_home
from course_lib.gan import (FilmStrip, InputUnet, critic_bce, critic_dls, critic_learner, critic_step, gan_learner, gen_learner, generator_loss,
    generator_step, make_generator, one_side, patch_critic, save_preds)
from course_lib.models import imagenet_norm
from course_lib.pairs import (CropAlike, crappy_variant, crops_each, enlarged, held_out, make_pairs, pair_dls, pair_files, photo_of,
    photo_scores)
from course_lib.unet import small_encoder

tiny = dict(size=32, crop=32, bs=32, variants=1, crappifier='downscale(16) jpeg(20)', epochs_open=1, nf_critic=4, bs_critic=32, epochs_critic=1,
    epochs_gan=1)

def settings(**changed): return lesson_settings('04', 'sample', **{**tiny, **changed})


@pytest.fixture
def cfg(): return settings()


def picture(f, seed=0, size=(40, 40)):
    f.parent.mkdir(parents=True, exist_ok=True)
    a = np.random.default_rng(seed).integers(0, 256, (size[1]//4, size[0]//4, 3), dtype=np.uint8)
    Image.fromarray(a).resize(size).save(f)
    return f


# pairs and their split

def test_pairs_by_name(tmp_path):
    hr, lr = tmp_path/'hr', tmp_path/'lr'
    with pytest.raises(CourseError, match='no file matches'): pair_files(hr, lr, '*.png')
    for n in ('a', 'b'): picture(hr/f'{n}.png')
    picture(lr/'a.png')
    with pytest.raises(CourseError, match='no crappy twin of b.png .1 of 2'): pair_files(hr, lr, '*.png')
    picture(lr/'b.png')
    assert {k.name: v.name for k,v in pair_files(hr, lr, '*.png').items()} == {'a.png': 'a.png', 'b.png': 'b.png'}


def test_variants_differ(cfg):
    "Each twin of a photograph is made crappy with a seed of its own, and lies where `crappy_variant` looks for it"
    root, pairs = make_pairs(settings(variants=2, crappifier='gaussian_noise(20)'), name='twice')
    good, crappy = next(iter(pairs.items()))
    a, b = (np.asarray(Image.open(crappy_variant(good, crappy, root, k))) for k in (0, 1))
    assert crappy_variant(good, crappy, root, 0) == crappy and (a != b).any()


def test_patches_stay_with_their_photograph(tmp_path):
    "Where no folder says it, a hash of the photograph's name does: all its patches lie on one side, about a tenth of the photographs out"
    side = lambda i: {held_out(tmp_path/'images'/f'photo{i}'/f'{j}.png', tmp_path) for j in range(3)}
    sides = [side(i) for i in range(400)]
    assert all(len(o) == 1 for o in sides) and 20 < sum(o == {True} for o in sides) < 60
    assert held_out(tmp_path/'valid'/'a.png', tmp_path) and not held_out(tmp_path/'train'/'a.png', tmp_path)
    assert photo_of(tmp_path/'images'/'cat'/'1.png', tmp_path) == 'cat' == photo_of(tmp_path/'images'/'cat.png', tmp_path)


def test_no_photograph_on_both_sides(cfg):
    root, pairs = make_pairs(cfg)
    dls = pair_dls(pairs, root, cfg)
    good = {v: k for k,v in pairs.items()}
    train, valid = ({photo_of(good[o], root) for o in ds.items} for ds in (dls.train_ds, dls.valid_ds))
    assert train and valid and not train & valid and len(train | valid) == len({photo_of(o, root) for o in pairs})
    assert pair_dls(pairs, root, settings(bs=1000)).bs == len(dls.train_ds)//8
    with pytest.raises(CourseError, match='none of the .* is held out'): pair_dls({k: v for k,v in pairs.items() if not held_out(k, root)}, root, cfg)


def test_input_and_target_belong_together(cfg):
    "Every validation pair is the crappy file beside its own photograph"
    root, pairs = make_pairs(cfg)
    dls = pair_dls(pairs, root, cfg)
    good = {v: k for k,v in pairs.items()}
    xs, ys = (torch.cat(o) for o in zip(*((imagenet_norm(x, back=True), imagenet_norm(y, back=True)) for x,y in dls.valid)))
    square = lambda f: np.asarray(Image.open(f).convert('RGB').resize((32, 32), Image.Resampling.BILINEAR))
    for i,f in list(enumerate(dls.valid_ds.items))[::7]:
        for x,p in ((xs[i], f), (ys[i], good[f])):
            assert np.abs(x.permute(1,2,0).numpy()*255 - square(p)).mean() < 2


def test_crops_alike(tmp_path):
    "A picture that is its own twin stays so in training, crop, flip, zoom and light included; and each has its own place"
    root, cfg = tmp_path/'hr', settings(size=64, crop=16, bs=16, max_zoom=1.5)
    files = [picture(root/'train'/f'{i}.png', i, (64, 64)) for i in range(60)] + [picture(root/'valid'/'v.png', 99, (64, 64))]
    copies = {f: picture(tmp_path/'lr'/'0'/f.relative_to(root), i, (64, 64)) for i,f in enumerate(files[:60])}
    copies[files[60]] = picture(tmp_path/'lr'/'0'/'valid'/'v.png', 99, (64, 64))
    dls = pair_dls(copies, root, cfg)
    assert len(dls.train_ds) == 60*16 == 60*crops_each(False, cfg) and len(dls.valid_ds) == crops_each(True, cfg) == 1
    for _ in range(3):
        xb, yb = dls.train.one_batch()
        assert xb.shape == (16, 3, 16, 16) and torch.allclose(xb, yb, atol=1e-5)
    x = torch.arange(64*64.).view(1, 1, 64, 64).expand(32, 3, -1, -1)
    from fastai.vision.all import TensorImage
    crop = CropAlike(16)
    a, b = crop((TensorImage(x), TensorImage(x+1)), split_idx=0)
    assert torch.equal(a+1, b) and len(set(a[:,0,0,0].tolist())) > 16 and (a[0,0,1] - a[0,0,0]).unique().tolist() == [64]
    assert crop((TensorImage(x), TensorImage(x)), split_idx=1)[0].shape[-1] == 64, 'held-out pictures are left whole'


# scores

def test_scores_are_means_over_pictures():
    "Over more pictures than are computed at a time: the mean of what scikit-image and torchmetrics say to each"
    g = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.rand(21, 3, 8, 8, generator=g), size=32, mode='bilinear')
    y = (x + torch.linspace(.01, .3, 21)[:,None,None,None]*torch.randn(x.shape, generator=g)).clip(0, 1)
    psnr = np.mean([peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1.) for a,b in zip(x, y)])
    ssim = structural_similarity_index_measure(y, x, data_range=1.).item()
    assert photo_scores(imagenet_norm(y), imagenet_norm(x)) == {'psnr': pytest.approx(psnr, abs=.001), 'ssim': pytest.approx(ssim, abs=1e-4)}


def test_few_pictures_at_a_time(monkeypatch):
    "SSIM stacks its input five times over: it is never given all held-out pictures at once"
    seen, ssim = [], metrics.structural_similarity_index_measure
    monkeypatch.setattr(metrics, 'structural_similarity_index_measure', lambda x, y, **kwargs: (seen.append(len(x)), ssim(x, y, **kwargs))[1])
    photo_scores(torch.rand(100, 3, 16, 16), torch.rand(100, 3, 16, 16))
    assert sum(seen) == 100 and max(seen) <= 16


def test_enlarged_by_hand(tmp_path):
    "Of files of unlike sizes, each enlarged as asked"
    pairs = {picture(tmp_path/f'g{i}.png', i, (48, 48+8*i)): picture(tmp_path/f'c{i}.png', i, (16, 24)) for i in range(2)}
    def square(f, how):
        im = Image.open(f); s, (w, h) = min(im.size), im.size
        return np.asarray(im.crop(((w-s)//2, (h-s)//2, (w-s)//2+s, (h-s)//2+s)).resize((32, 32), how))/255
    want = np.mean([peak_signal_noise_ratio(square(g, Image.Resampling.BILINEAR), square(c, Image.Resampling.NEAREST), data_range=1.)
                    for g,c in pairs.items()])
    got = photo_scores(enlarged(pairs.values(), 32, Image.Resampling.NEAREST), enlarged(pairs, 32))
    assert got['psnr'] == pytest.approx(want, abs=1e-3)


# the two steps

class Scale(nn.Module): # a generator of one number, and a critic of two
    def __init__(self, k): super().__init__(); self.k = nn.Parameter(torch.tensor(k)); self.drop = nn.Dropout(.5)
    def forward(self, x): return self.k*x


class Brightness(nn.Module):
    def __init__(self): super().__init__(); self.w, self.b = nn.Parameter(torch.tensor(1.)), nn.Parameter(torch.tensor(0.))
    def forward(self, x): return self.w*x.mean((1,2,3))[:,None] + self.b


def opt(m): return torch.optim.SGD(m.parameters(), .1)


def test_losses_by_hand():
    real, fake, critic = torch.full((2, 3, 4, 4), 2.), torch.full((2, 3, 4, 4), -1.), Brightness()
    soft = lambda x: np.log1p(np.exp(x))
    assert critic_bce(critic, real, fake).item() == pytest.approx((soft(-2) + soft(-1))/2, abs=1e-5)
    assert generator_loss(critic, fake, real, (1., 50.)).item() == pytest.approx(soft(1) + 50*9, rel=1e-5)


def test_critic_step():
    "The critic moves the way that tells the two apart, the generator does not move, and has no gradient"
    gen, critic, xb = Scale(.5), Brightness(), torch.ones(4, 3, 4, 4)
    losses = [critic_step(gen, critic, opt(critic), xb, 2*xb) for _ in range(5)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] and critic.w.item() != 1
    assert gen.k.item() == .5 and gen.k.grad is None and not gen.training and critic.training


def test_generator_step():
    "The generator moves towards the target, the critic does not move, and has no gradient"
    gen, critic, xb = Scale(.5), Brightness(), torch.ones(4, 3, 4, 4)
    o = torch.optim.SGD(gen.parameters(), .005)
    losses = [generator_step(gen, critic, o, xb, 2*xb) for _ in range(5)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] and .5 < gen.k.item() < 2
    assert (critic.w.item(), critic.b.item()) == (1, 0) and critic.w.grad is None and not critic.training and gen.training
    one_side(critic, gen)
    assert critic.training and all(p.requires_grad for p in critic.parameters()) and not gen.k.requires_grad


@pytest.mark.parametrize('n_blocks,size', [(1, 64), (2, 64), (3, 128)])
def test_a_verdict_for_each_patch(n_blocks, size):
    critic = patch_critic(4, n_blocks).eval()
    side = size//2**(n_blocks+1) - 3
    assert critic(torch.randn(2, 3, size, size)).shape == (2, side*side)


def test_critic_on_a_classifier(answers):
    critic, had = answers['backbone_critic']('mobilenet_v2', 'no')
    assert critic(torch.randn(2, 3, 64, 64)).shape == (2, 64) and had is False


# the stages

def test_critics_pictures(cfg, tmp_path):
    "Photographs are 1, what was made of them 0, and both lie on the photograph's side of the split"
    root, pairs = make_pairs(cfg)
    real = list(pairs)
    fake = [picture(tmp_path/p.relative_to(root), 1) for p in real]
    dls = critic_dls(real, fake, root, cfg)
    is_fake, origin = set(fake), dict(zip(fake, real))
    for ds,valid in ((dls.train_ds, False), (dls.valid_ds, True)):
        assert {held_out(origin.get(o, o), root) for o in ds.items} == {valid}
        assert all((int(ds[i][1]) == 0) == (o in is_fake) for i,o in list(enumerate(ds.items))[::9])
    assert dls.vocab[1] == 'photograph' and len(dls.train_ds) + len(dls.valid_ds) == 2*len(real)


class Watching(nn.Module): # gives its input back, and looks at the folder when it is asked
    def __init__(self, folder): super().__init__(); self.folder, self.seen = folder, []
    def forward(self, x):
        self.seen.append(len(list(self.folder.rglob('*.png'))))
        return x


def test_predictions_are_saved_as_they_come(cfg, tmp_path):
    "Each under its own photograph's path, and each batch before the next one is made: no heap of them in memory"
    root, pairs = make_pairs(cfg)
    learn = gen_learner(pair_dls(pairs, root, cfg), Watching(tmp_path/'out'))
    dl = learn.dls.test_dl(list(pairs.values()), with_labels=True)
    files = save_preds(learn.model, dl, list(pairs), root, tmp_path/'out')
    assert learn.model.seen == list(range(0, len(pairs), dl.bs))
    for f,good in list(zip(files, pairs))[::20]:
        want = Image.open(pairs[good]).convert('RGB').resize((32, 32), Image.Resampling.BILINEAR)
        assert f == tmp_path/'out'/good.relative_to(root) and np.abs(np.asarray(Image.open(f), float) - np.asarray(want)).mean() < 2
    for dl, n in ((learn.dls.train, len(learn.dls.train_ds)), (learn.dls.valid, 3)):
        with pytest.raises(CourseError, match='Expected as many, in order'): save_preds(learn.model, dl, list(pairs)[:n], root, tmp_path/'no')
    assert not (tmp_path/'no').exists()


def test_predictions_go_over_no_file(cfg, tmp_path):
    "Neither over one that is there, nor, where two photographs differ in their endings alone, over each other"
    root, pairs = make_pairs(cfg)
    learn = gen_learner(pair_dls(pairs, root, cfg), nn.Identity())
    valid = [o for o in pairs if held_out(o, root)]
    first = tmp_path/valid[0].relative_to(root)
    first.parent.mkdir(parents=True)
    first.write_text('mine')
    with pytest.raises(CourseError, match='would write over a file'): save_preds(learn.model, learn.dls.valid, valid, root, tmp_path)
    assert first.read_text() == 'mine'
    twice = [root/f'a.{i%2 and "png" or "jpg"}' for i in range(len(valid))]
    with pytest.raises(CourseError, match='differ in more than their endings'): save_preds(learn.model, learn.dls.valid, twice, root, tmp_path/'new')


def test_generator_begins_as_the_identity():
    x = imagenet_norm(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))).clip(-2, 2)
    gen = InputUnet(small_encoder((8, 8, 16, 16)), 3, (32, 32), y_range=(-3, 3)).eval()
    assert (gen(x) - x).abs().max() < 1e-3
    with pytest.raises(CourseError, match='needs a y_range'): InputUnet(small_encoder((8, 8, 16, 16)), 3, (32, 32))


def quiet(learn):
    learn.no_bar().__enter__(); learn.no_logging().__enter__()
    return learn


def test_who_does_not_train_stands_still(cfg):
    "In the game, a step of the one side leaves every parameter of the other where it was"
    from fastai.vision.all import Callback
    root, pairs = make_pairs(cfg)
    dls = pair_dls(pairs, root, settings(bs=16))
    torch.manual_seed(0)
    learn_gen, learn_crit = gen_learner(dls, make_generator(cfg)[0]), critic_learner(dls, patch_critic(4, 1))
    strip, moved = FilmStrip(dls.valid.one_batch()[0][:2]), set()
    class Watch(Callback):
        order = 200
        def copies(self): return [[p.detach().clone() for p in m.parameters()] for m in (self.model.generator, self.model.critic)]
        def before_batch(self): self.was = self.copies() if self.training else None
        def after_batch(self):
            if not self.training: return
            which = [any(not torch.equal(p, q) for p,q in zip(a, b)) for a,b in zip(self.was, self.copies())]
            moved.add((strip.sides[-1], *which))
    learn = quiet(gan_learner(learn_gen, learn_crit, cfg, strip))
    learn.adaptive_gan_switcher.critic_thresh = 10 # the two take turns
    learn.fit(2, 1e-3, cbs=Watch())
    assert moved == {(True, True, False), (False, False, True)}
    assert len(strip.frames) == 2 and strip.frames[0].shape == (2, 3, 32, 32) and len(strip.sides) == 2*len(dls.train)


def test_train_writes_no_nan(cfg, monkeypatch):
    "A game that has become NaN is not written over an earlier one"
    file = runs_home()/'models'/'04_gan_superres.pth'
    file.parent.mkdir(parents=True)
    file.write_bytes(b'an earlier run')
    def broken(*args):
        learn = gan_learner(*args)
        learn.fit = lambda *a: next(learn.model.parameters()).data.fill_(torch.nan)
        return learn
    first = lambda cfg: (gen_learner(pair_dls(*make_pairs(cfg)[::-1], cfg), make_generator(cfg)[0]), *make_pairs(cfg)[::-1])
    monkeypatch.setattr(gan, 'train_generator', first)
    monkeypatch.setattr(gan, 'train_critic', lambda cfg, learn, *a: critic_learner(learn.dls, patch_critic(4, 1)))
    monkeypatch.setattr(gan, 'gan_learner', broken)
    with pytest.raises(CourseError, match='04_gan_superres: the training has failed'): gan.train(cfg)
    assert file.read_bytes() == b'an earlier run'


# the answers

@pytest.fixture
def answers(monkeypatch):
    "What the notebook of the experiments defines; it is told to list them, and runs none"
    monkeypatch.setenv('COURSE_ANSWERS', json.dumps(dict(profile='sample', n=0, only_list=True)))
    nb, ns = json.loads((Path(gan.__file__).parents[1]/'nbs'/'answers'/'04_gan_superres.ipynb').read_text(encoding='utf-8')), {}
    for c in nb['cells']:
        if c['cell_type'] == 'code': exec(''.join(c['source']), ns)
    return ns


def test_answers_stand_alone(answers):
    "An experiment gives the same figures whether others ran before it, after it, or not at all"
    ask = answers['ask']
    one = lambda name: ask.figures(name, lesson_settings('04', 'sample', **ask.smallest), 1)
    names = ['the GAN as shown', 'no pre-training']
    def run(order):
        answers['first_stage'].cache_clear()
        return {k: one(k) for k in order}
    forward = run(names)
    torch.rand(7); np.random.rand(3)
    back = run(names[::-1])
    assert forward == back and one('the GAN as shown') == forward['the GAN as shown']
    assert forward[names[0]]['psnr'] != forward[names[1]]['psnr']
