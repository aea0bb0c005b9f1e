"""Training on MNIST from files, as fastai does it, and from the tensor cache: seconds and images per second, side by side.

Three comparisons in one run, all with the same random padding for each picture by itself (pad 3, crop 28):
the input alone, a training epoch of the 12,126-parameter network, and a training epoch of the ResNet. The stock pipeline is
measured with 0 and with 2 workers, and the better one counts. Whole epochs over all training pictures, after a short warm-up;
each pair is repeated in turn and the medians are compared. The accuracies after the epoch are printed beside.

    python benchmarks/mnist_input.py [--profile full] [--repeats 3] [--keep]

Writes _runs/bench/mnist_input-PROFILE.json (with --keep also results/benchmarks/); run on a quiet machine.
"""
import statistics, time
from fastcore.script import call_parse


def loaders(path, bs, kind, workers=0):
    "fastai's DataLoaders of the digits: `stock` reads files, `tensor` the cache"
    from fastai.vision.all import (CategoryBlock, CropPad, DataBlock, GrandparentSplitter, ImageBlock, Normalize, PILImageBW,
        RandomCrop, get_image_files, parent_label)
    from course_lib.resnet import mnist_dls
    if kind == 'tensor': return mnist_dls(path, bs)
    block = DataBlock((ImageBlock(PILImageBW), CategoryBlock), get_items=get_image_files, get_y=parent_label,
        splitter=GrandparentSplitter('training', 'testing'), item_tfms=[CropPad(34), RandomCrop(28)], batch_tfms=[Normalize()])
    return block.dataloaders(path, bs=bs, val_bs=4*bs, num_workers=workers)


def input_seconds(dls):
    t0 = time.perf_counter()
    for b in dls.train: pass
    return time.perf_counter() - t0


def epoch_seconds(dls, model, lr, seed):
    "Seconds of one training epoch (validation not counted), and the accuracy after it"
    from fastai.vision.all import Callback
    from course_lib.core import seed_everything
    from course_lib.resnet import course_learner
    class Clock(Callback):
        def before_train(self): self.t0 = time.perf_counter()
        def after_train(self): self.seconds = time.perf_counter() - self.t0
    seed_everything(seed)
    clock = Clock()
    learn = course_learner(dls, model(), cbs=clock)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, lr)
    return clock.seconds, float(learn.recorder.values[-1][-1])


@call_parse
def main(
    profile:str='',     # full (60,000 images) or sample (default: full where it is at hand or can be fetched)
    repeats:int=3,      # how often each measurement is taken
    keep:bool=False     # also write results/benchmarks
):
    "Compare the stock pipeline with the tensor cache"
    from common import about, keep_result, spread
    from course_lib.core import CourseError, lesson_settings
    from course_lib.data import get_data
    from course_lib.resnet import resnet_ish, simple_cnn
    try: path, profile = get_data('mnist', profile or 'full'), profile or 'full'
    except CourseError as e:
        if profile: raise
        print(f'{e}\nThe sample instead')
        path, profile = get_data('mnist', 'sample'), 'sample'
    cfg = lesson_settings('01', profile)
    ways = {f'stock, {o} workers': loaders(path, cfg.bs, 'stock', o) for o in (0, 2)} | {'tensor cache': loaders(path, cfg.bs, 'tensor')}
    n = len(ways['tensor cache'].train)*cfg.bs
    head, res = about(profile=profile, images=n, repeats=repeats), {}
    input_seconds(ways['tensor cache'])
    for task,model,lr in (('input alone', None, 0), ('CNN, 12,126 parameters', simple_cnn, cfg.lr), ('ResNet', resnet_ish, cfg.lr_deep)):
        got = {k: [] for k in ways}
        for r in range(repeats):
            for k,dls in ways.items(): got[k].append((input_seconds(dls), 0.) if model is None else epoch_seconds(dls, model, lr, r))
        med = {k: statistics.median(o[0] for o in v) for k,v in got.items()}
        stock = min(v for k,v in med.items() if k.startswith('stock'))
        res[task] = dict(seconds={k: [round(o[0], 3) for o in v] for k,v in got.items()}, images_per_second={k: round(n/v) for k,v in med.items()},
                         ratio=round(stock/med['tensor cache'], 2), accuracy={k: [round(o[1], 4) for o in v] for k,v in got.items()} if model else None)
        print(f'\n{task}')
        for k,v in got.items():
            acc = f"   accuracy {statistics.mean(o[1] for o in v):.4f}" if model else ''
            print(f'  {k:<18} {spread([o[0] for o in v])} {n/med[k]:10,.0f} images/s{acc}')
        print(f"  {res[task]['ratio']:.1f} times the images per second of the better stock pipeline", flush=True)
    keep_result(f'mnist_input-{profile}', dict(head, results=res), keep)
