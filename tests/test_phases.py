"What lesson 11's module promises: bad phases are refused, fits leave nothing behind, schedules stay what they are"
import math
from functools import partial
import numpy as np, pytest, torch
from fastcore.basics import AttrDict
from fastai.vision.all import SGD, Adam, Callback, DataLoader, DataLoaders, Learner, OptimWrapper, RMSProp
from torch import nn
from course_lib.core import CourseError
from course_lib.phase_parts import carry_state
from course_lib.phases import (AverageWeights, Shrink, TrainingPhase, decay_curves, phases_1cycle, phases_sgdr, phases_step, plan_steps, small_net,
    three_groups)


def dls(n=64, bs=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=g)
    items = list(zip(x, x.sum(1, keepdim=True)))
    return DataLoaders(*(DataLoader(items, bs=bs, num_workers=0, shuffle=False, device='cpu') for _ in range(2)))


def learner(data=None, **kwargs):
    torch.manual_seed(0)
    data = data or dls()
    learn = Learner(data, nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), loss_func=nn.MSELoss(), **kwargs)
    learn.no_logging().__enter__(); learn.no_bar().__enter__()
    return learn


@pytest.mark.parametrize('kwargs, say', [
    (dict(epochs=0), 'epochs = 0'), (dict(epochs=-1), 'epochs'), (dict(epochs=math.nan), 'epochs'), (dict(epochs='two'), 'epochs'),
    (dict(lr=-.1), 'lr = -0.1'), (dict(lr=math.inf), 'lr'), (dict(lr=(.1, .2, .3), lr_decay='linear'), 'two: '), (dict(lr='fast'), 'lr'),
    (dict(lr=(.1, .01)), 'lr_decay'), (dict(lr=.1, lr_decay='exponential'), 'never gets to zero'), (dict(lr_decay='sine'), 'none, linear'),
    (dict(momentum=1.), 'below one'), (dict(momentum=(.9, .8)), 'momentum_decay'), (dict(wd=-1), 'wd'), (dict(lr=[]), 'lr'),
    (dict(lr=slice(0, .1)), 'above zero')])
def test_bad_phase(kwargs, say):
    "One line, with what was given and what was expected"
    with pytest.raises(CourseError, match=say) as e: TrainingPhase(**{'epochs': 1, **kwargs})
    assert '\n' not in str(e.value) and 'Expected' in str(e.value)


@pytest.mark.parametrize('decay', decay_curves)
def test_ends(decay):
    "Every decay begins at its start and ends at its end, for groups too, and never leaves what is between"
    p = TrainingPhase(1, lr=([.1, .2], [.01, .4]) if decay != 'none' else [.1, .2], lr_decay=decay)
    assert p.at(0, 2)['lr'] == pytest.approx([.1, .2])
    assert p.at(1, 2)['lr'] == pytest.approx([.1, .2] if decay == 'none' else [.01, .4])
    way = np.array([p.at(t, 2)['lr'] for t in np.linspace(0, 1, 50)])
    assert (way >= np.array([.01, .2]) - 1e-9).all() and (way <= np.array([.1, .4]) + 1e-9).all()
    assert (np.diff(way[:,0]) <= 1e-12).all() and (np.diff(way[:,1]) >= -1e-12).all()


def test_plan_loses_no_step():
    "However a whole is cut up, the parts sum up to it"
    rng = np.random.default_rng(0)
    for _ in range(50):
        parts = rng.dirichlet(np.ones(4)) * 5 + .05
        starts, passes = plan_steps([TrainingPhase(float(o)) for o in parts], [23]*4)
        assert starts[-1] == sum(n for _,n in passes) == int(parts.sum()*23 + .5)
        assert all(n == 23 for _,n in passes[:-1])


def test_too_short():
    with pytest.raises(CourseError, match='phase 2 has 0.01 epochs of 8 batches'): learner().fit_phases([TrainingPhase(1), TrainingPhase(.01)])


@pytest.mark.parametrize('phases', [[], [1], None, 'cosine'])
def test_no_phases(phases):
    with pytest.raises(CourseError, match='list of TrainingPhases'): learner().fit_phases(phases)


def test_bad_arguments():
    learn = learner()
    with pytest.raises(CourseError, match='2 DataLoaders for 1 phases'): learn.fit_phases([TrainingPhase(1)], dls_list=[dls(), dls()])
    with pytest.raises(CourseError, match='lr has 3 values, and the model has 1 group'): learn.fit_phases([TrainingPhase(1, lr=[.1, .2, .3])])
    with pytest.raises(CourseError, match='SGD has no sqr_mom'): learn.fit_phases([TrainingPhase(1, SGD, sqr_mom=.9)])
    wrapped = partial(OptimWrapper, opt=torch.optim.Adagrad)
    with pytest.raises(CourseError, match='Adagrad has no momentum'): learn.fit_phases([TrainingPhase(1, wrapped, momentum=.9)])


class Hypers(Callback):
    "Notes what the optimiser was told at each step"
    order, run_valid = 90, False
    def __init__(self, *names): self.names, self.seen = names, []
    def after_batch(self): self.seen.append(tuple(round(self.opt.hypers[0].get(o, math.nan), 6) for o in self.names))


def test_a_phase_keeps_its_settings_to_itself():
    "What a phase sets is as it was before in the next one, in the next fit, and after a fault"
    see, learn = Hypers('sqr_mom', 'eps', 'wd'), learner(opt_func=Adam)
    phases = [TrainingPhase(1, sqr_mom=.9, wd=.3), TrainingPhase(1, eps=.1), TrainingPhase(1)]
    learn.fit_phases(phases, cbs=see)
    assert see.seen == [(.9, 1e-5, .3)]*8 + [(.99, .1, .01)]*8 + [(.99, 1e-5, .01)]*8
    see = Hypers('sqr_mom', 'wd')
    for _ in range(2): learn.fit_phases([TrainingPhase(1, sqr_mom=.5, wd=.2)], cbs=see) # the last phase, too
    learn.fit_phases([TrainingPhase(1)], cbs=see)
    assert see.seen == [(.5, .2)]*16 + [(.99, .01)]*8
    with pytest.raises(RuntimeError, match='cable'): learn.fit_phases([TrainingPhase(2, sqr_mom=.5)], cbs=Fail())
    assert learn.opt.hypers[0]['sqr_mom'] == .99


def test_another_optimiser_begins_with_its_own():
    "What one optimiser was set back to is nothing for the next"
    see = Hypers('sqr_mom')
    rms = lambda: TrainingPhase(1, partial(RMSProp, sqr_mom=.7))
    learner(opt_func=Adam).fit_phases([TrainingPhase(1, sqr_mom=.5), rms(), rms()], cbs=see)
    assert see.seen == [(.5,)]*8 + [(.7,)]*16


class Fail(Callback):
    order = 90
    def after_batch(self):
        if self.phase_scheduler.step == 11: raise RuntimeError('cable')


def test_a_fault_leaves_the_learner_usable():
    "Its own data is back, the callbacks are gone, what was done is known, and it trains on"
    one, two = dls(), dls(32)
    learn = learner(one)
    n = len(learn.cbs)
    with pytest.raises(RuntimeError, match='cable'): learn.fit_phases([TrainingPhase(1), TrainingPhase(1)], dls_list=[one, two], cbs=Fail())
    assert learn.dls is one and len(learn.cbs) == n and len(learn.phase_log.lr) == 11
    assert learn.phase_log.lr.shape == learn.phase_log.mom.shape == (11, 1) # so far
    learn.fit_phases([TrainingPhase(1, lr=.1)])
    assert len(learn.phase_log.lr) == 8


def test_other_data():
    "Each phase sees its own batches, and validates on its own"
    class See(Callback):
        order, seen, valid = 90, [], []
        def after_batch(self): (self.seen if self.training else self.valid).append(len(self.xb[0]))
    small, large = dls(bs=4), dls(bs=16)
    learn, see = learner(), See()
    learn.fit_phases([TrainingPhase(1.5, SGD), TrainingPhase(1, SGD)], dls_list=[small, large], cbs=see)
    assert see.seen == [4]*24 + [16]*4 and see.valid == [4]*32 + [16]*4
    assert len(learn.recorder.values) == 3


def test_whole_pass_across_phases():
    "A phase that begins in the middle of a pass goes on there: each item has its turn once"
    class See(Callback):
        run_valid, seen = False, []
        def before_batch(self): self.seen.append(self.xb[0].clone())
    see, data = See(), dls()
    learner(data).fit_phases([TrainingPhase(.25, SGD), TrainingPhase(.75, SGD)], cbs=see)
    assert torch.equal(torch.cat(see.seen), torch.cat([b[0] for b in data.valid]))


def test_momentum_is_not_ignored():
    "SGD made without momentum gets one when a phase asks for it"
    def end(**kwargs):
        learn = learner(opt_func=SGD)
        learn.fit_phases([TrainingPhase(1, lr=.01, **kwargs)])
        return learn.model[0].weight.detach()
    assert not torch.allclose(end(), end(momentum=.9), atol=1e-3)
    assert not torch.allclose(end(momentum=.5), end(momentum=.9), atol=1e-3)
    ready = learner(opt_func=partial(SGD, mom=.9))
    ready.fit(1, .01)
    assert torch.equal(ready.model[0].weight.detach(), end(momentum=.9))


def test_optimiser_is_kept():
    "Partials that say the same are the same optimiser; the learner's weight decay comes back after a phase with its own"
    learn = learner(wd=.01)
    seen = []
    class See(Callback):
        order = 60
        def after_batch(self):
            if self.training: seen.append((id(self.opt), self.opt.hypers[0]['wd']))
    f = lambda: partial(Adam, sqr_mom=.9)
    learn.fit_phases([TrainingPhase(1, f()), TrainingPhase(1, f(), wd=.3), TrainingPhase(1, f())], cbs=See())
    assert len({o for o,_ in seen}) == 1 and [w for _,w in seen[::8]] == [.01, .3, .01]


def test_state_goes_along():
    "After a change of optimiser the averages are those of the one before; frozen groups stay frozen"
    learn = learner(splitter=lambda m: [list(o.parameters()) for o in m])
    learn.create_opt(); learn.freeze()
    first = learn.model[0].weight.detach().clone()
    learn.fit_phases([TrainingPhase(1, RMSProp, lr=1e-3), TrainingPhase(.125, Adam, lr=1e-3)])
    state = learn.opt.state[learn.model[1].weight]
    assert torch.equal(first, learn.model[0].weight) and learn.opt.frozen_idx == 1
    assert state['step'] == 9 and 'grad_avg' in state


def test_torch_optimisers():
    "torch's own optimisers can be phases too; their state begins anew"
    learn = learner()
    learn.fit_phases([TrainingPhase(1, SGD, momentum=.9), TrainingPhase(1, partial(OptimWrapper, opt=torch.optim.SGD, momentum=.5), lr=.01, momentum=.9)])
    assert learn.phase_log.opts == ['SGD', 'SGD'] and learn.opt.hypers[0]['mom'] == .9
    assert carry_state(learn.opt, SGD(list(learn.model.parameters()), lr=1., mom=.9)) == []


def test_from_sgd_to_adam():
    "Adam's squares begin at zero there, so its count of steps must as well: the first update is the rate, and not nine times as much"
    w = nn.Parameter(torch.zeros(3))
    sgd, adam = SGD([w], lr=0., mom=.9), Adam([w], lr=.1, mom=.9, wd=0.)
    for _ in range(200): w.grad = torch.full_like(w, 2.); sgd.step()
    assert carry_state(sgd, adam, 200) == []
    adam.step()
    assert torch.allclose(w, torch.tensor(-.1), atol=1e-3)


def test_average():
    "The model ends with the mean of the weights after each step of the phase; without that phase it is left alone"
    taken = []
    class Take(Callback):
        order, run_valid = 64, False
        def after_batch(self):
            if self.phase_scheduler.k == 1: taken.append(self.model[1].weight.detach().clone())
    learn = learner()
    learn.fit_phases([TrainingPhase(1, SGD, lr=.05), TrainingPhase(1, SGD, lr=.05)], cbs=[Take(), AverageWeights()])
    assert len(taken) == 8 and torch.allclose(learn.model[1].weight, torch.stack(taken).mean(0), atol=1e-6)
    assert not torch.allclose(learn.model[1].weight, taken[-1], atol=1e-4)


def test_average_measures_batch_norm():
    "Running statistics are those of the averaged weights over the training data"
    data = dls()
    learn = learner(data)
    learn.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    learn.fit_phases([TrainingPhase(2, SGD, lr=.2)], cbs=AverageWeights())
    x = torch.cat([b[0] for b in data.valid])
    assert torch.allclose(learn.model[1].running_mean, learn.model[0](x).mean(0), atol=1e-5)


def schedule(phases, batches=100, groups=1):
    "Rates and momentums of all steps"
    starts, _ = plan_steps(phases, [batches]*len(phases))
    rows = [p.at((i-a)/(b-a), groups) for p,a,b in zip(phases, starts, starts[1:]) for i in range(a, b)]
    return AttrDict({k: np.array([o[k] for o in rows]) for k in ('lr', 'mom')})


def test_known_schedules():
    s = schedule(phases_sgdr(slice(.01, .1), num_cycle=2), groups=2)
    assert s.lr[0] == pytest.approx([1e-4, 1e-3]) and s.lr[5] == pytest.approx([.01, .1]) and s.lr[100] == pytest.approx([.01, .1])
    s = schedule(phases_1cycle(2, [.1, 1.]), 50, groups=2)
    assert len(s.lr) == 100 and s.lr.max(0) == pytest.approx([.1, 1.]) and s.lr[0] == pytest.approx([.01, .1])
    assert s.mom.min() == pytest.approx(.85)
    assert np.unique(schedule(phases_step([1, 1, 1], .1), 10).lr.round(9)).tolist() == [.001, .01, .1]


def test_shrink():
    x = torch.rand(2, 1, 28, 28)
    from fastai.vision.all import TensorImageBW
    y = Shrink(14)(TensorImageBW(x))
    assert type(y) is TensorImageBW and y.shape == (2, 1, 14, 14)
    assert torch.allclose(y.mean((2, 3)), x.mean((2, 3)), atol=.02)
    assert small_net()(y).shape == (2, 10) and len(three_groups(small_net())) == 3
