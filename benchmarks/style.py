"""Style transfer, ours and a plain textbook version: evaluations per second, and the loss that each reaches, side by side.

Both start from the same soft noise, ask the same network with the same weights, and go down the same combined loss. The textbook
version is the one of most notebooks: the whole convolutional part of the network with its batch norms, hooks on the block ends,
the picture's own normalised pixels as parameters, and `torch.optim.LBFGS` as it comes, in steps of twenty. Ours has its norms
folded, runs only as far as it has to, keeps the memory order that convolutions like, and paints on a `FourierCanvas`.

The speed is measured first, in short runs that take turns; the medians are compared. Then both run once for their losses: the
textbook version for --long evaluations, ours for --short. A run passes if our loss is at most the other's and we are at least
1.2 times as fast.

    python benchmarks/style.py [--arch vgg16_bn] [--size 256] [--long 500] [--short 300] [--repeats 3] [--threads 2] [--keep]

Writes _runs/bench/style.json (with --keep also results/benchmarks/); run on a quiet machine. Without ImageNet weights
the network has random ones of unit variance, and the line says so.
"""
import math, statistics, time
from fastcore.script import call_parse


class Textbook:
    "A plain version: one pass through all layers for each evaluation, LBFGS in steps of twenty on normalised pixels"
    def __init__(self, net, content, painting, layers, block, weight):
        import torch
        self.net, self.layers, self.block, self.weight, self.kept = net, layers, block, weight, {}
        self.hooks = [net[i].register_forward_hook(lambda m, inp, out, i=i: self.kept.update({i: out})) for i in layers]
        self.mean, self.std = (torch.tensor(o, device=content.device)[:,None,None] for o in ([.485,.456,.406], [.229,.224,.225]))
        with torch.no_grad():
            self.content = self.features(self.normed(content))[block].clone()
            self.grams = [self.gram(o) for o in self.features(self.normed(painting))]

    def normed(self, x): return (x-self.mean)/self.std
    def gram(self, x):
        n, c, h, w = x.shape
        f = x.reshape(n*c, h*w)
        return f @ f.t() / (n*c*h*w)

    def features(self, x):
        self.net(x)
        return [self.kept[i] for i in self.layers]

    def loss(self, x): # relative squared errors, as ours
        import torch.nn.functional as F
        got = self.features(x)
        style = sum(F.mse_loss(self.gram(o), t)/t.square().mean() for o,t in zip(got, self.grams))*self.weight/len(got)
        return style + F.mse_loss(got[self.block], self.content)/self.content.square().mean()

    def run(self, start, evals):
        import torch
        x, losses, times = self.normed(start).clone().requires_grad_(), [], []
        opt = torch.optim.LBFGS([x])
        def closure():
            opt.zero_grad()
            loss = self.loss(x)
            loss.backward()
            losses.append(loss.item()); times.append(time.perf_counter())
            return loss
        while len(losses) < evals: opt.step(closure)
        return losses[:evals], times[:evals]

    def close(self):
        for o in self.hooks: o.remove()


def networks(arch, pretrained, pictures, device):
    "The same weights twice: as torchvision has them, and as our judge keeps them"
    import copy, torch
    from course_lib.models import imagenet_norm, imagenet_weights, torchvision_encoder
    from course_lib.feature_loss import fold_norms, judge_encoder
    from course_lib.style import keep_outputs, lsuv_
    weights = None if arch == 'course' else imagenet_weights(arch, pretrained)
    net = judge_encoder(arch, pretrained)[0] if arch == 'course' else torchvision_encoder(arch, weights)
    trained = 'CIFAR-10' if arch == 'course' else 'ImageNet' if weights else ''
    keep_outputs(net).eval().requires_grad_(False)
    ours = fold_norms(copy.deepcopy(net))
    if not trained: net = copy.deepcopy(lsuv_(ours, imagenet_norm(pictures.cpu())))
    return net.to(device), ours.to(device, memory_format=torch.channels_last), trained or 'random'


@call_parse
def main(
    arch:str='vgg16_bn',    # The network: a name in torchvision.models, or course: lesson 10's
    pretrained:str='auto',  # no, auto or yes
    size:int=256,           # Side of the pictures
    long:int=500,           # Evaluations of the textbook version
    short:int=300,          # Evaluations of ours
    weight:float=5.,        # Of the style
    repeats:int=3,          # Turns in which the speed is measured
    speed_evals:int=12,     # Evaluations in each of them; the first two are not counted
    threads:int=2,          # Of a CPU
    content:str='cat', style:str='night', # Pictures of the sample
    keep:bool=False         # Also write results/benchmarks
):
    "Compare our style transfer with a plain one"
    import torch
    from common import about, keep_result, spread
    from course_lib.core import course_device, seed_everything
    from course_lib.data import get_data
    from course_lib.models import half_dtype
    from course_lib.style import FourierCanvas, block_ends, open_picture, optimise, picture_batch, soft_noise, transfer_loss
    torch.set_num_threads(threads)
    device, path = course_device(), get_data('style_images', 'sample')
    c, p = (picture_batch(open_picture(path/o), (size, size), device) for o in (f'content_{content}.png', f'style_{style}.png'))
    seed_everything(0)
    net, judge, trained = networks(arch, pretrained, torch.cat([c, p]), device)
    layers, start = block_ends(judge), soft_noise((size, size), 8, 0, device)
    block = min(3 if arch.startswith('vgg') else 2, len(layers)-1)
    textbook = Textbook(net, c, p, layers, block, weight)
    loss = transfer_loss(judge, c, p, block, weight, half_dtype(device))
    def ours(evals):
        times = []
        losses = optimise(loss, FourierCanvas(start), evals, each=lambda *args: times.append(time.perf_counter()))[1]
        return losses, times
    ways = {'textbook': lambda n: textbook.run(start, n), 'ours': ours}
    head = about(device, arch=arch, weights=trained, size=size, style_weight=weight, content=content, style=style, threads=threads, repeats=repeats)
    same = textbook.loss(textbook.normed(start)).item(), loss(start).item()
    assert math.isclose(*same, rel_tol=1e-3 if half_dtype(device) is None else .05), f'not the same loss at the start: {same}'
    rates = {k: [] for k in ways}
    for _ in range(repeats):
        for k,f in ways.items():
            ts = f(speed_evals)[1]
            rates[k].append((len(ts)-2)/(ts[-1]-ts[1]))
    med = {k: statistics.median(v) for k,v in rates.items()}
    ratio = med['ours']/med['textbook']
    for k,v in rates.items(): print(f'  {k:<9} {spread(v, "evaluations/s")}')
    print(f'  {ratio:.2f} times as many (wanted: 1.2)', flush=True)
    got = {k: ways[k](n)[0] for k,n in (('textbook', long), ('ours', short))}
    low = {k: min(v) for k,v in got.items()}
    for k,v in got.items(): print(f'  {k:<9} {v[0]:8.4f} → {low[k]:.4f}, the lowest of {len(v)} evaluations')
    passed = low['ours'] <= low['textbook'] and ratio >= 1.2
    print('passed' if passed else 'NOT passed')
    textbook.close()
    res = dict(head, evaluations_per_second={k: [round(o, 3) for o in v] for k,v in rates.items()},
        ratio=round(ratio, 3), loss={k: round(v, 5) for k,v in low.items()}, evaluations=dict(textbook=long, ours=short), passed=passed,
        curve={k: [round(o, 4) for o in v[::10]] for k,v in got.items()})
    keep_result('style', res, keep)
