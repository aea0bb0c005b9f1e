"""Every model, loss, training step and figure function on a CUDA card that is not there: a tensor left on the CPU fails here, without a card.

What is tried is found by rule, below: whatever is public in the package's modules and is a module of torch, or is called like a loss, a
measure, a step, a learner or a figure, needs a case; so does every module that uses torch, and every lesson."""
import ast, inspect, re
from types import SimpleNamespace
import matplotlib.pyplot as plt, numpy as np, pytest, torch
from fastai.vision.all import DataLoader, DataLoaders
from PIL import Image
from torch import nn

from card import Card, cuda, modules, stand_in
from fastcore.basics import AttrDict
from course_lib import (core, cyclegan, darknet, fairness, feature_loss, gan, harmonize, kept_weights, metrics,
    models, pairs, phases, pointer, processes, resnet, restore, rnn, show, style, unet, wgan)
from course_lib import tensors as cached
from course_lib.apps import style_files
from course_lib.core import lesson_settings, lessons
from course_lib.unet import small_encoder

named = re.compile(r'loss|penalty|bce|gap|score|psnr|ssim|gram|error|iou|acc|variation|distance|confusion|_step$|step_|learner$|segmenter|'
    r'^(show|draw|plot)_', re.I)
draws = re.compile(r'show_grid\(|plt\.|imshow|fromarray|\.numpy\(')
no_tensors = { # called so, and without a tensor in them
    'steps.as_picture', 'steps.smooth_field',
    'fairness.error_rates', 'runner.run_cells', 'core.CourseError', 'samples.kit.as_image', 'samples.bedrooms.bedroom', 'pairs.tell_scores',
    'phases.phases_step', 'restore.grid_step', 'restore.old_squares', 'restore.torn_squares',
    'samples.photos.digit_image', 'samples.things.draw_thing', 'harmonize.histogram_at',
    'runner.explain_error', 'diagrams.draw_unrolled', 'diagrams.draw_loop', 'diagrams.draw_both', 'diagrams.draw_schematic',
    'show.as_jpeg', 'show.beside', 'models.save_learner', 'pictures.open_mask'}


def public():
    for m,mod in modules.items():
        for k in getattr(mod, '__all__', []):
            v = getattr(mod, k)
            if getattr(v, '__module__', None) == mod.__name__ and (inspect.isclass(v) or inspect.isfunction(v)): yield f'{m}.{k}', v


def meant(k, v):
    "Does the rule ask for a case of it?"
    if inspect.isclass(v) and issubclass(v, nn.Module): return True
    return bool(named.search(k.split('.')[-1]) or inspect.isfunction(v) and draws.search(inspect.getsource(v)))


def uses_torch(mod): return any(isinstance(o, ast.Import) and 'torch' in [a.name for a in o.names] for o in ast.parse(inspect.getsource(mod)).body)


# --- what a case may use: all of it on the card

def pics(*sz): return torch.rand(*sz, device=cuda)
def ids(*sz): return torch.zeros(sz, dtype=torch.long, device=cuda)
def cfg(lesson, **kwargs): return lesson_settings(lesson, 'sample', **kwargs)
def there(net): return net.to(cuda)
def adam(net): return torch.optim.Adam(net.parameters(), 1e-3)


def tensors(o):
    if isinstance(o, torch.Tensor): yield o
    elif isinstance(o, dict): yield from tensors(list(o.values()))
    elif isinstance(o, (list, tuple)):
        for p in o: yield from tensors(p)


def on_card(o):
    "Everything that came out lies on the card; a way back from it stays there"
    outs = list(tensors(o))
    assert all(t.device == cuda for t in outs), [t.device for t in outs]
    slopes = [t.float().sum() for t in outs if t.requires_grad]
    if slopes: sum(slopes).backward()
    return outs


def here(o):
    "What is for the CPU lies there"
    assert all(t.device.type == 'cpu' for t in tensors(o))


def learns(learn):
    "A fit of one batch, and validation of one"
    there(learn.model)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    state = [v for s in learn.opt.state.values() for v in s.values() if isinstance(v, torch.Tensor) and v.ndim]
    for t in [*learn.model.parameters(), *(p.grad for p in learn.model.parameters() if p.grad is not None), *state]: assert t.device == cuda
    assert any(p.grad is not None for p in learn.model.parameters())


def dls(*batch): return DataLoaders(*[DataLoader([batch], bs=None, num_workers=0) for _ in range(2)], device=cuda)


# --- cases: name → function; what it gives must lie on the card

nets = { # class → a network of it, and its input
    'resnet.PlainOrRes': lambda: (resnet.PlainOrRes(4, 8, 2), pics(2,4,8,8)),
    'resnet.SequentialEx': lambda: (resnet.res_block(4), pics(2,4,8,8)),
    'resnet.MergeLayer': lambda: (resnet.res_block(4, dense=True), pics(2,4,8,8)),
    'resnet.DenseLayer': lambda: (resnet.DenseLayer(4, 2), pics(2,4,8,8)),
    'unet.ShuffleUp': lambda: (unet.ShuffleUp(4, 2, blur=True, norm='weight'), pics(2,4,8,8)),
    'unet.SelfAttention': lambda: (unet.SelfAttention(8), pics(2,8,4,4)),
    'unet.UnetBlock': lambda: (unet.UnetBlock(16, 8, attention=True, norm='spectral'), pics(2,16,4,4), pics(2,8,8,8)),
    'unet.LastCross': lambda: (unet.LastCross(7), pics(2,4,8,8), pics(2,3,8,8)),
    'unet.Unet': lambda: (unet.Unet(small_encoder((8,8,16)), 5, (32,32), bottle=True, attention=True, norm='batch'), pics(2,3,32,32)),
    'restore.ResidualConvs': lambda: (restore.ResidualConvs(4), pics(2,4,8,8)),
    'restore.Restorer': lambda: (restore.Restorer((4, 8), 1, 1), pics(2,3,8,8)),
    'gan.InputUnet': lambda: (a_unet(), pics(2,3,32,32)),
    'feature_loss.ColourUnet': lambda: (feature_loss.colouriser(AttrDict(arch='mobilenet_v2', cut=7, norm='weight')), pics(2,3,32,32)),
    'gan.CriticBlock': lambda: (gan.CriticBlock(4), pics(2,4,8,8)),
    'feature_loss.LossNetwork': lambda: (a_loss_network(), pics(2,3,32,32).requires_grad_()),
    'cyclegan.ResnetBlock': lambda: (cyclegan.ResnetBlock(4), pics(2,4,8,8)),
    'cyclegan.ResnetGenerator': lambda: (cyclegan.ResnetGenerator(4, 1, True), pics(2,3,16,16)),
    'cyclegan.UnetGenerator': lambda: (cyclegan.UnetGenerator(4, 1, True), pics(2,3,16,16)),
    'cyclegan.NLayerDiscriminator': lambda: (cyclegan.NLayerDiscriminator(4), pics(2,3,64,64)),
    'rnn.Model0': lambda: (rnn.Model0(9, 8), ids(2,3)),
    'rnn.Model1': lambda: (rnn.Model1(9, 8), ids(2,6)),
    'rnn.Model2': lambda: (rnn.Model2(9, 8), ids(2,6)),
    'rnn.Model3': lambda: (rnn.Model3(9, 8), ids(2,6)),
    'rnn.Model4': lambda: (rnn.Model4(9, 8), ids(2,6)),
    'rnn.Model5': lambda: (rnn.Model5(9, 8), ids(2,6)),
    'pointer.Dropout': lambda: (pointer.Dropout(.5), pics(2,4)),
    'pointer.TiedLM': lambda: (pointer.TiedLM(9, 8), ids(2,6)),
    'pointer.PointerLM': lambda: (pointer.PointerLM(9, 8), ids(2,6)),
    'darknet.ResLayer': lambda: (darknet.ResLayer(8), pics(2,8,8,8)),
    'darknet.Darknet': lambda: (darknet.Darknet([1, 1], nf=4, stem=darknet.far_stem), pics(2,3,32,32)),
    'darknet.Branches': lambda: (darknet.Branches(8), pics(2,8,8,8)),
    'style.FourierCanvas': lambda: (style.FourierCanvas(pics(1,3,16,16)),),
    'wgan.ConvBlock': lambda: (wgan.ConvBlock(3, 4), pics(2,3,8,8)),
    'wgan.DCGAN_D': lambda: (wgan.DCGAN_D(16, 3, 4, 1), pics(2,3,16,16)),
    'wgan.NearestBlock': lambda: (wgan.NearestBlock(3, 4), pics(2,3,8,8)),
    'wgan.DeconvBlock': lambda: (wgan.DeconvBlock(3, 4), pics(2,3,8,8)),
    'wgan.DCGAN_G': lambda: (wgan.DCGAN_G(16, 5, 3, 4, 1), pics(2,5,1,1)),
    'metrics.FeatureNet': lambda: (metrics.FeatureNet(4), pics(2,3,32,32)),
    'cyclegan.InstanceNorm': lambda: (cyclegan.InstanceNorm(4), pics(2,4,8,8).requires_grad_()),
}
def a_vgg(): return there(models.small_vgg(dict(nf='4 8')))
def a_loss_network(): return feature_loss.LossNetwork(small_encoder((4,8,8)), [0, 1])
def plain(): return there(style.keep_outputs(models.small_vgg(dict(nf='4 4'), head=False))).requires_grad_(False)
def features(low=None): return there(feature_loss.FeatureLoss(a_loss_network(), (5,15), low=low))
def a_wgan(): return wgan.WGAN(*wgan.make_pair(c := cfg('06', sz=16, nf_gen=4, nf_critic=4, bs=4, nz=5)), torch.zeros(8,3,16,16, dtype=torch.uint8), c)
def kept(run): # what a checkpoint does with the parts of a run (a fake tensor cannot be written)
    parts = {k: v for k,v in wgan.wgan_state(run)[0].items() if k != 'place'}
    for o in parts.values(): o.load_state_dict(o.state_dict())
    return list(run.gen.parameters())
def a_cyclegan(): return cyclegan.CycleGAN(cfg('07', ngf=4, ndf=4, blocks=1, skip=0, ema=.9))
def photo(): return Image.new('RGB', (40, 32), (90, 120, 40))
def rooms(n): return torch.zeros(n,3,32,32, dtype=torch.uint8)

losses = {
    'feature_loss.make_loss_network': lambda: list(feature_loss.make_loss_network(cfg('05', judge='squeezenet1_1'), pics(2,3,64,64))[0].parameters()),
    'fairness.camera': lambda: fairness.camera(pics(2,1,8,8), ids(2) > 0, 0),
    'rnn.WordAccuracy': lambda: metric(rnn.WordAccuracy(), pics(2,6,9), ids(2,6)),
    'rnn.WordPerplexity': lambda: metric(rnn.WordPerplexity(), pics(2,6,9), ids(2,6)),
    'pairs.photo_scores': lambda: pairs.photo_scores(pics(2,3,16,16), pics(2,3,16,16)),
    'gan.critic_bce': lambda: gan.critic_bce(critic(), pics(2,3,64,64), pics(2,3,64,64)),
    'gan.generator_loss': lambda: gan.generator_loss(critic(), pics(2,3,64,64).requires_grad_(), pics(2,3,64,64)),
    'gan.fine_detail': lambda: gan.fine_detail(pics(2,3,16,16)),
    'feature_loss.FeatureLoss': lambda: features()(pics(2,3,32,32).requires_grad_(), pics(2,3,32,32)),
    'feature_loss.make_loss': lambda: feature_loss.make_loss(cfg('05', judge='vgg11_bn'), pics(2,3,64,64))[0](
        pics(2,3,64,64).requires_grad_(), pics(2,3,64,64)),
    'feature_loss.gram_matrix': lambda: feature_loss.gram_matrix(pics(2,4,8,8).requires_grad_()),
    'feature_loss.restoration_scores': lambda: feature_loss.restoration_scores(pics(2,3,16,16), pics(2,3,16,16)),
    'wgan.gradient_penalty': lambda: wgan.gradient_penalty(there(wgan.DCGAN_D(16, 3, 4)), pics(2,3,16,16), pics(2,3,16,16)),
    'darknet.judge_loss': lambda: darknet.judge_loss(a_vgg(), pics(4,3,32,32), ids(4), SimpleNamespace(smooth=.1)),
    'darknet.judge_accuracy': lambda: darknet.judge_accuracy(a_vgg(), SimpleNamespace(tensors=lambda: (pics(4,3,32,32), ids(4)))),
    'wgan.wgan_gap': lambda: wgan.wgan_gap(pics(4), pics(4)),
    'wgan.fake_score': lambda: wgan.fake_score(pics(4)),
    'cyclegan.gan_loss': lambda: cyclegan.gan_loss(pics(2,1,4,4).requires_grad_(), True),
    'cyclegan.critic_loss': lambda: cyclegan.critic_loss(there(cyclegan.NLayerDiscriminator(4)), pics(2,3,64,64), pics(2,3,64,64)),
    'style.relative_error': lambda: style.relative_error(pics(2,4,8,8).requires_grad_(), pics(1,4,8,8)),
    'style.picture_loss': lambda: style.picture_loss(net := plain(), [style.content_term(net, pics(1,3,16,16), 3)])(pics(1,3,16,16).requires_grad_()),
    'style.transfer_loss': lambda: style.transfer_loss(plain(), pics(1,3,32,32), pics(1,3,32,32), 1)(pics(1,3,32,32).requires_grad_()),
    'style.match_colours': lambda: style.match_colours(pics(1,3,16,16), pics(1,3,16,16)),
    'style.keep_colours': lambda: style.keep_colours(pics(1,3,16,16), pics(1,3,16,16)),
    'harmonize.object_gram': lambda: harmonize.object_gram(pics(4,9).requires_grad_()),
    'harmonize.histogram_match': lambda: harmonize.histogram_match(pics(4,9), pics(4,7)),
    'harmonize.tv_weight': lambda: harmonize.tv_weight(pics(1,3,8,8)),
    'rnn.last_word_loss': lambda: rnn.last_word_loss(pics(2,9).requires_grad_(), ids(2,6)),
    'rnn.word_scores': lambda: rnn.word_scores(there(pointer.TiedLM(9, 8)), ids(2,6)),
    'rnn.guesses': lambda: here(rnn.guesses(there(rnn.Model5(9, 8)), torch.zeros(200, dtype=torch.long), 4, 6)),
    'darknet.channel_stats': lambda: darknet.channel_stats(pics(2,3,8,8).byte()),
    'tensors.random_crop': lambda: [cached.random_crop(pics(4,1,8,8), 3, mode=o) for o in ('zeros', 'reflect')],
    'models.in_half': lambda: models.in_half(lambda x: [x*2], pics(2,3,8,8).requires_grad_(), torch.float16),
    'unet.SceneLoss': lambda: [unet.SceneLoss(1)(x := pics(2,4,8,8).requires_grad_(), ids(2,8,8)), unet.SceneLoss(1).decodes(x)],
    'unet.confusion': lambda: unet.confusion(ids(2,8,8), ids(2,8,8), 4, 1),
    'unet.class_iou': lambda: unet.class_iou(pics(4,4)),
    'unet.pixel_accuracy': lambda: unet.pixel_accuracy(pics(4,4)),
    'unet.mean_iou': lambda: unet.mean_iou(pics(4,4)),
    'unet.most_frequent': lambda: unet.most_frequent(SimpleNamespace(loaders=[SimpleNamespace(tensors=lambda: (None, ids(3,8,8)))]*2), 4, 1),
    'unet.SceneMetric': lambda: metric(unet.SceneMetric(unet.mean_iou, 4, 1), pics(2,4,8,8), ids(2,8,8)),
    'style.loss_network': lambda: style.loss_network('squeezenet1_1', 'no', pics(1,3,64,64), cuda)[0](pics(1,3,32,32)),
    'harmonize.square_variation': lambda: harmonize.square_variation(pics(1,3,8,8)),
    'metrics.psnr': lambda: metrics.psnr(pics(2,3,16,16), pics(2,3,16,16)),
    'metrics.ssim': lambda: metrics.ssim(pics(2,3,16,16), pics(2,3,16,16)),
    'metrics.kernel_distance': lambda: metrics.kernel_distance(there(metrics.FeatureNet(4)).eval(), rooms(4), rooms(4)),
    'metrics.net_features': lambda: here(metrics.net_features(there(metrics.FeatureNet(4)).eval(), rooms(4))),
    'metrics.nearest_pictures': lambda: here(metrics.nearest_pictures(rooms(2), rooms(4))),
    'metrics.normal_pictures': lambda: here(metrics.normal_pictures(rooms(60).to(cuda), 4)),
    'metrics.corrupted': lambda: metrics.corrupted(pics(8,3,16,16)),
    'cyclegan.generator_losses': lambda: cyclegan.generator_losses(a_cyclegan(), pics(1,3,32,32), pics(1,3,32,32))[0],
    'cyclegan.critic_losses': lambda: cyclegan.critic_losses(a_cyclegan(), *pics(2,1,3,32,32), pics(2,1,3,32,32)),
    'metrics.predict_all': lambda: here(metrics.predict_all(there(nn.Conv2d(3, 4, 3)), torch.zeros(5,3,8,8))),
}
def metric(m, pred, y):
    m.reset()
    m.accumulate(SimpleNamespace(pred=pred, y=y))
    return float(m.value)
def critic(): return there(gan.patch_critic(4))

steps = {
    'resnet.course_learner': lambda: learns(resnet.course_learner(dls(pics(4,1,28,28), ids(4)), resnet.resnet_ish())),
    'gan.gen_learner': lambda: learns(gan.gen_learner(dls(pics(2,3,64,64), pics(2,3,64,64)), gan.make_generator(cfg('04'))[0])),
    'gan.critic_learner': lambda: learns(gan.critic_learner(dls(pics(2,3,64,64), ids(2)), gan.lesson_critic(cfg('04')))),
    'gan.gan_learner': lambda: learns(a_game()),
    'gan.critic_step': lambda: gan.critic_step(generator(), c := critic(), adam(c), pics(2,3,64,64), pics(2,3,64,64)),
    'gan.generator_step': lambda: gan.generator_step(g := generator(), critic(), adam(g), pics(2,3,64,64), pics(2,3,64,64)),
    'feature_loss.feature_learner': lambda: learns(feature_loss.feature_learner(dls(pics(2,3,32,32), pics(2,3,32,32)), generator(),
        features(models.half_dtype(cuda)))),
    'wgan.wgan_critic_step': lambda: wgan.wgan_critic_step(there(wgan.DCGAN_G(16, 5, 3, 4)), c := there(wgan.DCGAN_D(16, 3, 4)),
        adam(c), pics(2,3,16,16), pics(2,5,1,1)),
    'wgan.wgan_gen_step': lambda: wgan.wgan_gen_step(g := there(wgan.DCGAN_G(16, 5, 3, 4)), there(wgan.DCGAN_D(16, 3, 4)), adam(g), pics(2,5,1,1)),
    'wgan.WGAN': lambda: wgan.fit_wgan(a_wgan(), 2, quiet=True),
    'cyclegan.CycleGAN': lambda: a_cyclegan().F(pics(1,3,32,32)),
    'style.optimise': lambda: style.optimise(style.transfer_loss(plain(), pics(1,3,32,32), pics(1,3,32,32), 1, half=models.half_dtype(cuda)),
        style.FourierCanvas(pics(1,3,32,32)), 2, opt=torch.optim.Adam)[0],
    'harmonize.first_pass': lambda: harmonize.nearest_places(pics(1,4,6,6), pics(1,4,6,6), pics(36) > .5),
    'harmonize.style_at': lambda: harmonize.style_at(pics(1,4,6,6), ids(36), pics(36) > .5, 1.)(pics(1,4,6,6).requires_grad_()),
    'rnn.words_learner': lambda: learns(rnn.words_learner(dls(ids(4,6), ids(4,6)), rnn.Model5(9, 8))),
    'darknet.cifar_learner': lambda: learns(darknet.cifar_learner(dls(pics(4,3,32,32), ids(4)), darknet.Darknet([1, 1], nf=4), cfg('10', speed='fast'))),
    'phases.fit_phases': lambda: phased([phases.TrainingPhase(1, lr=.1), phases.TrainingPhase(1, lr=.1)]),
    'restore.restore_photo': lambda: restore.restore_photo(there(restore.Restorer((8,16), 1, 1)), photo(), most=1, tile=64, overlap=32) and None,
    'unet.segmenter': lambda: learns(unet.segmenter(dls(pics(2,3,32,32), ids(2,32,32)), unet.Unet(small_encoder((8,8,16)), 3, (32,32)), ['a', 'Void', 'b'])),
    'phases.AverageWeights': lambda: phased([phases.TrainingPhase(2, lr=.1)], cbs=phases.AverageWeights()),
    'metrics.train_feature_net': lambda: metrics.train_feature_net(rooms(16), 2, 8).head.weight,
    'checkpoints.load_checkpoint': lambda: kept(a_wgan()),
    'processes.share_gradients': lambda: processes.share_gradients(a_wgan().gen.parameters()),
    'cyclegan.cycle_step': lambda: cyclegan.cycle_step(a_cyclegan(), pics(1,3,32,32), pics(1,3,32,32)),
    'metrics.domain_classifier': lambda: metrics.domain_classifier([(torch.zeros(3,16,16),)*2]*4, 2)[0].weight,
}
def a_unet(): return gan.InputUnet(small_encoder((8,8,16)), 3, (64,64), bottle=True, blur=True, y_range=(-3,3))
def generator(): return there(a_unet())
def a_game():
    batch = pics(2,3,64,64), pics(2,3,64,64)
    halves = gan.gen_learner(dls(*batch), generator()), gan.critic_learner(dls(*batch), critic())
    return gan.gan_learner(*halves, cfg('04'), gan.FilmStrip(batch[0]))
def phased(ps, **kwargs):
    learn = resnet.course_learner(dls(pics(4,1,28,28), ids(4)), there(phases.small_net(4)))
    with learn.no_bar(), learn.no_logging(): learn.fit_phases(ps, **kwargs)
    return list(learn.model.parameters())

figures = {
    'show.to_array': lambda: [show.to_array(o) for o in (pics(3,8,8), pics(1,8,8).requires_grad_(), pics(8,8).byte(), pics(3,8,8).bfloat16())] and None,
    'show.show_grid': lambda: show.show_grid([*pics(2,3,8,8), *pics(2,1,8,8).byte()]) and None,
    'pairs.show_rows': lambda: pairs.show_rows(*pics(3,2,3,8,8)) and None,
    'apps.style_files.save_picture': lambda: style_files.save_picture(pics(1,3,8,8), core.runs_home().parent/'y.png'),
    'kept_weights.weights_digest': lambda: kept_weights.weights_digest(dict(a=pics(3))) and None,
    'cyclegan.cycle_strips': lambda: show.show_grid(cyclegan.cycle_strips(a_cyclegan(), pics(1,3,32,32), pics(1,3,32,32))) and None,
    'cyclegan.save_strips': lambda: cyclegan.save_strips(list(pics(6,3,8,8)), core.runs_home()/'x.png'),
}

cases = {
    **{k: lambda f=f: net(*f()) for k,f in nets.items()},
    **losses,
    **steps,
    **figures,
}
def net(model, *inputs): return there(model).train()(*inputs)


# --- the tests

@pytest.fixture
def card(monkeypatch):
    "The default device is a card that is not there; it has bfloat16"
    stand_in(monkeypatch)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True: True)
    monkeypatch.setattr(models, 'can_compile', lambda device: False)
    with Card(): yield
    plt.close('all')


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('k', cases)
def test_on_a_card(card, k): on_card(cases[k]())


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('k', ['cyclegan.cycle_step', 'style.optimise', 'feature_loss.feature_learner', 'feature_loss.make_loss', 'darknet.cifar_learner'])
def test_on_an_old_card(card, k, monkeypatch):
    "Without bfloat16: in float16, with a scaler where there is a step"
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True: including_emulation)
    on_card(cases[k]())


def test_nothing_is_forgotten():
    "What the rule asks for has a case, and every case is there"
    asked = {k for k,v in public() if meant(k, v)} - no_tensors
    assert asked <= set(cases), sorted(asked - set(cases))
    known = {k for k,_ in public()}
    assert no_tensors <= known, sorted(no_tensors - known)
    for k in cases: assert k in known or k == 'phases.fit_phases', k


def test_every_module_and_lesson():
    "Every module that uses torch has a case, and so has every lesson whose network is trained: a step"
    have = {k.rpartition('.')[0] for k in cases}
    without = {m for m,mod in modules.items() if uses_torch(mod)} - have
    assert not without, sorted(without)
    from course_lib.cli import lesson_module
    trained = {lesson_module(o).__name__.split('.')[1] for o in lessons() if hasattr(lesson_module(o), 'train')}
    assert trained <= {k.split('.')[0] for k in steps}, sorted(trained)


class Forgets(nn.Module):
    "Leaves its buffer on the CPU"
    def __init__(self):
        super().__init__()
        self.lin, self.mean = nn.Linear(3, 3), torch.ones(3)
    def forward(self, x): return self.lin(x) + self.mean

class ForgetsOnTheWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x*2
    @staticmethod
    def backward(ctx, g): return g*torch.ones(g.shape)


def test_it_would_be_seen(card):
    "A tensor left on the CPU fails: on the way there, on the way back, in a figure, and as a result"
    with pytest.raises(RuntimeError, match='device'): on_card(net(Forgets(), pics(2,3)))
    with pytest.raises(RuntimeError, match='device'): on_card(ForgetsOnTheWayBack.apply(pics(2,3).requires_grad_()))
    with pytest.raises(TypeError, match='numpy'): np.asarray(pics(3,8,8).byte())
    with pytest.raises(TypeError, match='numpy'): plt.figure().gca().imshow(pics(8,8))
    with pytest.raises(AssertionError): on_card(torch.zeros(3))
    with pytest.raises(AssertionError): here(pics(3))


# --- what a device can

@pytest.mark.parametrize('device,has,want', [('cuda', True, torch.bfloat16), ('cuda', False, torch.float16), ('mps', False, None), ('meta', False, None)])
def test_half_dtype(monkeypatch, device, has, want):
    "What a card only emulates does not count"
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True: has or including_emulation)
    assert models.half_dtype(torch.device(device)) is want


def test_half_dtype_of_a_cpu(monkeypatch):
    for o in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'): monkeypatch.setattr(torch.cpu, o, lambda: False)
    assert models.half_dtype(torch.device('cpu')) is None
    monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: True)
    assert models.half_dtype(torch.device('cpu')) is torch.bfloat16


def test_scaler(monkeypatch):
    "CycleGAN scales its gradients where it works in float16, and nowhere else"
    made = []
    monkeypatch.setattr(torch.amp, 'GradScaler', lambda device, enabled: made.append(enabled))
    monkeypatch.setattr(cyclegan.CycleGAN, 'to', lambda self, *args, **kwargs: self)
    monkeypatch.setattr(cyclegan, 'memory_layout', lambda device: torch.channels_last)
    for dev,low,half in (('cuda', torch.float16, 'auto'), ('cuda', torch.bfloat16, 'auto'), ('cuda', torch.float16, 'no'), ('cpu', torch.bfloat16, 'auto')):
        monkeypatch.setattr(cyclegan, 'course_device', lambda: SimpleNamespace(type=dev))
        monkeypatch.setattr(cyclegan, 'half_dtype', lambda device: low)
        gan = cyclegan.CycleGAN(cfg('07', ngf=4, ndf=4, blocks=1, half=half))
        assert gan.low is (low if half == 'auto' else None)
    assert made == [True, False, False, False]


def test_mps_only_when_asked_for(monkeypatch):
    "`auto` takes CUDA or the CPU"
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    for cuda_too,want in ((False, 'cpu'), (True, 'cuda')):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda_too)
        monkeypatch.setenv('COURSE_DEVICE', 'auto')
        assert core.course_device().type == want
        monkeypatch.setenv('COURSE_DEVICE', 'mps')
        assert core.course_device().type == 'mps'


def test_channels_last_in_one_place(monkeypatch):
    "On MPS nothing is laid with its channels last: one function is asked by all"
    monkeypatch.setattr(models, 'course_device', lambda: torch.device('mps'))
    assert models.memory_layout() is torch.contiguous_format and models.channels_last() == []
    monkeypatch.setattr(models, 'course_device', lambda: torch.device('cpu'))
    assert models.memory_layout() is torch.channels_last and len(models.channels_last()) == 1
    for m,mod in modules.items():
        said = re.findall(r'ChannelsLast|torch\.channels_last', inspect.getsource(mod))
        assert not said or m in ('models', 'unet'), (m, said) # the U-Net follows what comes in


def test_no_context_for_a_name(monkeypatch, tmp_path, capsys):
    "`course run` asks another process for the card's name: here CUDA never begins"
    from course_lib import cli, runner
    (tmp_path/'nbs').mkdir()
    (tmp_path/'nbs'/'01_x.ipynb').write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    monkeypatch.setattr(runner, 'clone_root', lambda: tmp_path)
    monkeypatch.setattr(runner, 'execute', lambda *args: None)
    for o in (cli, runner): monkeypatch.setattr(o, 'course_device', lambda: cuda)
    monkeypatch.setattr(core, 'course_device', lambda: cuda)
    def begun(*args): raise AssertionError('CUDA began in this process')
    for o in ('get_device_name', 'init', '_lazy_init', 'get_device_properties'): monkeypatch.setattr(torch.cuda, o, begun)
    assert cli.run('01', profile='sample', out=str(tmp_path/'out')) == 0
    assert core.device_name(torch.device('cpu')) in capsys.readouterr().out # what the other process takes for its default device
