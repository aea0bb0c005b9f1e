"""The feature loss as the lecture writes it and as the lesson makes it fast: one pass forward and backward, side by side.

Both compare the same two batches with the same VGG-16 (with batch norm, frozen, random statistics in its norms, no downloads) at
the same three layers with the same weights. The plain version runs the whole network twice and copies what its hooks keep; ours cuts
it, folds its batch norms, and lays it out with the channels last. They take turns, after a pass each that is not counted; the medians
are compared. Whether the results agree is checked in the same run, to 1e-4 of the loss (on a card without TF32).

    python benchmarks/feature_loss.py [--repeats 9] [--bs 4] [--size 128] [--judge vgg16_bn] [--keep]

Writes _runs/bench/feature_loss.json (with --keep also results/benchmarks/); run on a quiet machine.
"""
import statistics, time
from fastcore.script import call_parse


def plain_loss(net, hooks, wgts, pred, targ, gram=5e3):
    "The loss as the lecture has it: the whole network, hooks, copies of the target's features"
    import torch.nn.functional as F
    def see(x, copied=False):
        net(x)
        return [h.stored.clone() if copied else h.stored for h in hooks]
    def gram_of(x):
        n, c, h, w = x.shape
        x = x.reshape(n, c, -1)
        return x @ x.transpose(1, 2) / (c*h*w)
    wanted, got = see(targ, copied=True), see(pred)
    parts = [F.l1_loss(pred, targ)]
    parts += [F.l1_loss(a, b)*w for a,b,w in zip(got, wanted, wgts)]
    parts += [F.l1_loss(gram_of(a), gram_of(b))*w**2*gram for a,b,w in zip(got, wanted, wgts)]
    return sum(parts)


def a_judge(arch):
    "A network of torchvision's with norms that do something"
    from torch import nn
    from course_lib.models import torchvision_encoder
    net = torchvision_encoder(arch).eval().requires_grad_(False)
    for m in net.modules():
        if not isinstance(m, nn.BatchNorm2d): continue
        m.running_mean.normal_(0, .3); m.running_var.uniform_(.5, 2); m.weight.uniform_(.5, 1.5); m.bias.normal_(0, .3)
    return net


def passed(f, pred, targ, sync):
    "Seconds of one pass forward and backward, the loss, and the gradient"
    x = pred.clone().requires_grad_()
    sync()
    t0 = time.perf_counter()
    loss = f(x, targ)
    loss.backward()
    sync()
    return time.perf_counter()-t0, loss.item(), x.grad


@call_parse
def main(
    repeats:int=9,         # how often each is measured
    bs:int=4,              # pictures in the batch
    size:int=128,          # their side
    judge:str='vgg16_bn',  # a network of torchvision's
    threads:int=1,         # threads of the CPU
    keep:bool=False        # also write results/benchmarks
):
    "Measure both losses in turn"
    import torch
    from common import about, keep_result, spread
    from course_lib.core import course_device, seed_everything
    from course_lib.feature_loss import FeatureLoss, LossNetwork
    from course_lib.unet import Hooks, before_it_shrinks, layer_shapes
    torch.set_num_threads(threads)
    seed_everything(42)
    dev, wgts = course_device(), [5, 15, 2]
    sync = torch.cuda.synchronize if dev.type == 'cuda' else lambda: None
    net = a_judge(judge)
    ids = before_it_shrinks(layer_shapes(net))[2:5]
    ours = FeatureLoss(LossNetwork(net, ids), wgts[:len(ids)]).to(dev)
    pred, targ = torch.randn(2, bs, 3, size, size, device=dev)
    head = about(dev, judge=judge, layers=ids, bs=bs, size=size, threads=threads, repeats=repeats)
    with Hooks(net.to(dev)[i] for i in ids) as hooks:
        ways = {'plain': lambda x, y: plain_loss(net, hooks, wgts, x, y), 'ours': ours}
        got = {k: [passed(f, pred, targ, sync)] for k,f in ways.items()} # not counted
        for _ in range(repeats):
            for k,f in ways.items(): got[k].append(passed(f, pred, targ, sync))
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False): # a card multiplies in 10 bits by default: both in 23 to be compared
            exact = {k: passed(f, pred, targ, sync) for k,f in ways.items()}
    seconds = {k: [round(o[0], 4) for o in v[1:]] for k,v in got.items()}
    median = {k: statistics.median(v) for k,v in seconds.items()}
    (_, a, ga), (_, b, gb) = (exact[k] for k in ('plain', 'ours'))
    off = abs(a-b)/abs(a)
    cosine = torch.nn.functional.cosine_similarity(ga.flatten(), gb.flatten(), dim=0).item()
    res = dict(head, seconds=seconds, median=median, ratio=round(median['plain']/median['ours'], 3), loss_differs_by=off, cosine_of_gradients=round(cosine, 6))
    for k,v in seconds.items(): print(f'  {k:<6} {spread(v, digits=3)}')
    print(f"{res['ratio']:.2f} times as fast; the losses differ by {off:.1e} of their size; cosine of the gradients {cosine:.5f}")
    if off > 1e-4: raise SystemExit('the two losses do not agree')
    keep_result('feature_loss', res, keep)
