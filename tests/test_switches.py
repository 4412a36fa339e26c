"""The switches of DiffusionDet in the whole detector: free when off, silent at first, and then doing what they say."""

import pytest
import torch
from small_detector import CLASSES, awaken, make_batch, make_detector, opinionated, random_boxes

from noisebox.config import Sampling
from noisebox.diffusion.categorical import one_hot
from noisebox.randomness import normal
from noisebox.training.checkpoint import load_weights

D3PM = {"label_state": True, "label_d3pm": True}
GEOMETRY = {"geo_feat": {"enabled": True}}
LEARNED_BIAS = {"geo_bias": {"kind": "mlp"}}
NO_EXCHANGE = [{"disable_self_attn": True}, {"geo_bias": {"topk": 1}}, {"geo_bias": {"kind": "mlp", "topk": 1}}]
# Each switch that brings parameters, and what their names share.
PARAMETERS = {
    "label_state": ({"label_state": True}, "label_embedding"),
    "d3pm": ({**D3PM, "label_kernel": "uniform", "use_distribution": True}, "label_embedding"),
    "gaussian labels": ({**D3PM, "label_kernel": "gaussian"}, "label_embedding"),
    "geo_feat": (GEOMETRY, ".geo_feat."),
    "geo_feat fading": ({"geo_feat": {"enabled": True, "schedule": "fade"}}, ".geo_feat."),
    "geo_bias": (LEARNED_BIAS, ".geo_bias."),
    "quality_head": ({"quality_head": True}, ".quality."),
}


def say(model, boxes, t=400, labels=None):
    """What the model says, in the mode it is in, of boxes (2, P, 4) in the images 1 and 2, all at the time t."""
    batch = make_batch([1, 2])
    whwh, every = batch.image_whwh, torch.arange(2)
    with torch.no_grad():
        return model.head(model.encode(batch), boxes, torch.tensor([t, t]), every, whwh, labels)


def some_labels(proposals, step=1):
    """One-hot states (2, proposals, K + 1) of every label in turn."""
    return one_hot(torch.arange(2 * proposals).view(2, -1) * step % (CLASSES + 1), CLASSES)


def loss_of(terms):
    return sum(term for name, term in terms.items() if name.startswith("loss_"))


def grown(parent, **switches):
    """A detector with switches on, other weights, and then all that fits of its parent's; with the load report."""
    model = make_detector(seed=1, **switches)
    report = load_weights(model, {"model": parent.state_dict()}, "parent.pth")
    return model.train(parent.training), report


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("switch", PARAMETERS)
def test_new_parameters_leave_a_parents_function_as_it_is(switch, training):
    switches, named = PARAMETERS[switch]
    parent = opinionated(make_detector()).train(training)
    model, report = grown(parent, **switches)
    own = [name for name in model.state_dict() if named in name]
    assert report.new == tuple(own) != ()
    assert report.loaded == tuple(parent.state_dict())
    assert report.unused == ()
    boxes = random_boxes(2, 20)
    before = say(parent, boxes)
    after = say(model, boxes, labels=some_labels(20) if switches.get("label_state") else None)
    # A bias of zeros takes another kernel of attention, which rounds otherwise.
    tolerance = 1e-3 if switch == "geo_bias" else 0.0
    assert torch.allclose(after.logits, before.logits, rtol=0, atol=tolerance)
    assert torch.allclose(after.boxes_xyxy, before.boxes_xyxy, rtol=1e-5 if tolerance else 0.0, atol=tolerance)


@pytest.mark.parametrize("switch", PARAMETERS)
def test_a_grown_detector_finds_what_its_parent_finds(switch):
    parent, batch = opinionated(make_detector()), make_batch([1, 2])
    model, _ = grown(parent, **PARAMETERS[switch][0])
    found, expected = (each.detect(each.encode(batch), batch, [0], Sampling(steps=1))[0] for each in (model, parent))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours.boxes_xyxy, theirs.boxes_xyxy, rtol=0, atol=0.01)
        assert torch.allclose(ours.scores, theirs.scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("switch", PARAMETERS)
def test_new_parameters_learn_within_two_steps(switch):
    switches, named = PARAMETERS[switch]
    model, _ = grown(make_detector().train(), **switches)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer, batch = torch.optim.Adam(model.parameters(), lr=1e-3), make_batch([1, 2])
    for step in range(2):
        optimizer.zero_grad()
        loss_of(model(batch, 0, step)).backward()
        optimizer.step()
    learned = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert {name for name in before if named in name} <= learned


def test_a_head_without_self_attention_leaves_a_parents_attention_unused():
    _, report = grown(make_detector(), disable_self_attn=True)
    assert report.new == ()
    assert report.unused == tuple(sorted(name for name in make_detector().state_dict() if ".self_attn." in name)) != ()


def test_of_the_same_key_plain_weights_are_drawn_alike():
    """Switches without parameters of their own do not change how a training from scratch begins."""
    plain = make_detector().state_dict()
    for switches in ({"self_attn": "sdpa"}, {"geo_bias": {"kind": "iou", "topk": 3}}, {"aniso_noise": {"sigma_w": 2}}):
        other = make_detector(**switches).state_dict()
        assert list(other) == list(plain)
        assert all(torch.equal(tensor, plain[name]) for name, tensor in other.items())


def test_training_states_are_the_noised_labels_of_objects_first_and_none_for_placeholders():
    """The expected state under the uniform kernel: its highest entry is the label itself, its height the signal."""
    options = {"label_kernel": "uniform", "use_distribution": True, "label_training": "expected"}
    model, ids = make_detector(**D3PM, **options), list(range(12))
    batch = make_batch(ids)
    noisy = model.noisy_proposals(batch, 0, 3)
    assert noisy.t.max() < 980  # later there is too little signal to tell
    for row, target in enumerate(batch.targets):
        labels = [*target.labels.tolist(), *[CLASSES] * (20 - len(target.labels))]
        assert noisy.labels[row].argmax(-1).tolist() == labels
    alpha_bar = model.diffusion.alphas_cumprod[noisy.t].float()
    height = alpha_bar + (1 - alpha_bar) / (CLASSES + 1)
    assert torch.allclose(noisy.labels.amax(-1), height[:, None].expand(-1, 20), atol=1e-5)


@pytest.mark.parametrize("objects", [0, 30])
def test_training_states_of_images_without_or_with_too_many_objects(objects):
    options = {"label_kernel": "uniform", "use_distribution": True, "label_training": "expected"}
    model, batch = make_detector(**D3PM, **options), make_batch([1, 2], objects=objects)
    noisy = model.noisy_proposals(batch, 0, 0)
    x0 = model.diffusion.predict_x0(noisy.x_t, noisy.t, box_noise(batch, 0))
    boxes = model.diffusion.to_boxes(x0, batch.image_whwh)
    for row, target in enumerate(batch.targets):
        labels = noisy.labels[row].argmax(-1)
        if not objects:
            assert (labels == CLASSES).all()
            continue
        for box, label in zip(boxes[row], labels.tolist(), strict=True):
            nearest = (target.boxes_xyxy - box).abs().sum(-1).argmin()
            assert target.labels[nearest] == label  # a box keeps its own label, however the choice fell


def box_noise(batch, step):
    return torch.stack([normal((20, 4), 0, "box noise", step, image_id) for image_id in batch.image_ids])


@pytest.mark.parametrize("t", [0, 999])
def test_a_head_reacts_to_the_label_of_the_proposal_that_carries_it(t):
    model = awaken(make_detector(**D3PM, disable_self_attn=True), 3.0).eval()
    boxes, labels = random_boxes(2, 20), some_labels(20)
    other = labels.clone()
    other[0, 4] = one_hot((labels[0, 4].argmax() + 1) % (CLASSES + 1), CLASSES)
    before, after = say(model, boxes, t, labels), say(model, boxes, t, other)
    changed = (after.logits != before.logits).any(0).any(-1)
    assert changed.nonzero().tolist() == [[0, 4]]
    assert (after.logits[-1] - before.logits[-1])[0, 4].abs().max() > 0.01


def test_a_distribution_is_seen_as_the_expected_embedding():
    model = awaken(make_detector(**D3PM)).eval()
    boxes, blend = random_boxes(2, 20), torch.tensor([0.5, 0.2, 0.2, 0.1]).expand(2, 20, 4)
    table = model.head.label_embedding.weight
    mean = 0.5 * table[0] + 0.2 * table[1] + 0.2 * table[2] + 0.1 * table[3]
    seen = say(model, boxes, labels=blend)
    with torch.no_grad():
        table[2] = mean
    as_label = say(model, boxes, labels=one_hot(torch.full((2, 20), 2), CLASSES))
    assert torch.allclose(seen.logits, as_label.logits, atol=1e-4)


def states_given_to(model, monkeypatch):
    """The label states that the head gets from now on."""
    given, forward = [], model.head.forward

    def watched(*arguments):
        given.append(arguments[5])
        return forward(*arguments)

    monkeypatch.setattr(model.head, "forward", watched)
    return given


def test_self_conditioning_shows_half_of_the_images_the_heads_own_answer(monkeypatch):
    model, ids = make_detector(label_state=True, num_proposals=5).train(), list(range(48))
    with torch.no_grad():
        model.head.head_series[-1].class_logits.bias[1] = 50  # sure of class 1 everywhere
    batch = make_batch(ids, objects=1)
    given = states_given_to(model, monkeypatch)
    model(batch, 0, 3)
    first, second = given
    assert (first.argmax(-1) == CLASSES).all()
    labels = second.argmax(-1)
    conditioned = labels[:, 0] == 1
    assert torch.equal(labels, torch.where(conditioned, 1, CLASSES)[:, None].expand(-1, 5))
    assert 12 < conditioned.sum() < 36  # 24 ± 3.5 by the binomial distribution
    model(make_batch(ids[:3:-1], objects=1), 0, 3)
    assert torch.equal(given[3].argmax(-1)[:, 0] == 1, conditioned.flip(0)[:-4])  # a key for each image and step
    model(batch, 0, 4)
    assert not torch.equal(given[5].argmax(-1)[:, 0] == 1, conditioned)


def test_the_heads_first_answer_costs_no_gradient():
    model, batch = make_detector(label_state=True, num_proposals=5).train(), make_batch([1])
    with_gradient = []
    model.head.register_forward_hook(lambda *said: with_gradient.append(said[2].logits.requires_grad))
    loss_of(model(batch, 0, 0)).backward()
    assert with_gradient == [False, True]


def is_one_hot(state):
    return bool(((state == 0) | (state == 1)).all() and (state.sum(-1) == 1).all())


@pytest.mark.parametrize("kernel", ["mask", "uniform"])
@pytest.mark.parametrize("training", ["sampled", "expected"])
def test_with_use_distribution_training_is_as_chosen_and_evaluation_always_expected(kernel, training, monkeypatch):
    options = {"label_kernel": kernel, "use_distribution": True, "label_training": training}
    model, batch = opinionated(make_detector(**D3PM, **options)), make_batch([1, 2])
    given = states_given_to(model, monkeypatch)
    model.train()
    model(batch, 0, 0)
    assert is_one_hot(given.pop()) == (training == "sampled")
    model.eval()
    model.detect(model.encode(batch), batch, [0], Sampling(steps=3))
    for state in given[1:]:
        assert torch.allclose(state.sum(-1), torch.ones(2, 20), atol=1e-5)
        assert (state >= 0).all()
        assert not is_one_hot(state)


def test_without_use_distribution_a_state_is_always_one_label(monkeypatch):
    model, batch = opinionated(make_detector(**D3PM)), make_batch([1, 2])
    given = states_given_to(model, monkeypatch)
    model.train()(batch, 0, 0)
    model.eval().detect(model.encode(batch), batch, [0], Sampling(steps=3))
    assert len(given) == 4
    assert all(is_one_hot(state) for state in given)
    assert (given[1].argmax(-1) == CLASSES).all()  # the mask
    assert (given[3].argmax(-1) < CLASSES).any()


def test_geometry_fades_from_all_to_nothing_as_noise_grows():
    constant = awaken(make_detector(**GEOMETRY)).eval()
    fading, _ = grown(constant, geo_feat={"enabled": True, "schedule": "fade"})
    plain, _ = grown(constant)
    boxes = random_boxes(2, 20)

    def influence(model, t):
        """How far geometry moves the first stage's answer."""
        return (say(model, boxes, t).logits[0] - say(plain, boxes, t).logits[0]).abs().mean().item()

    assert torch.equal(say(fading, boxes, 0).logits, say(constant, boxes, 0).logits)
    assert influence(fading, 999) < 0.01 * influence(constant, 999)
    shares = [influence(fading, t) for t in (0, 250, 500, 750, 999)]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("switches", NO_EXCHANGE)
def test_without_a_graph_proposals_know_nothing_of_each_other(switches):
    model = awaken(make_detector(**switches)).eval()
    boxes = random_boxes(2, 20)
    others = random_boxes(2, 20, seed=1)
    others[:, :5] = boxes[:, :5]
    before, after = say(model, boxes), say(model, others)
    assert torch.allclose(after.logits[:, :, :5], before.logits[:, :, :5], rtol=0, atol=1e-4)
    assert torch.allclose(after.boxes_xyxy[:, :, :5], before.boxes_xyxy[:, :, :5], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("switches", [{}, LEARNED_BIAS, {"geo_bias": {"topk": 8}}, {"self_attn": "sdpa"}])
def test_with_a_graph_they_do(switches):
    model = awaken(make_detector(**switches)).eval()
    boxes = random_boxes(2, 20)
    others = random_boxes(2, 20, seed=1)
    others[:, :5] = boxes[:, :5]
    assert (say(model, others).logits - say(model, boxes).logits)[:, :, :5].abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("switches", [{}, {"geo_bias": {"kind": "iou", "topk": 4}}, *NO_EXCHANGE])
def test_the_order_of_proposals_means_nothing(switches):
    model = awaken(make_detector(**switches)).eval()
    boxes = random_boxes(2, 20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    straight, shuffled = say(model, boxes), say(model, boxes[:, order])
    assert torch.allclose(shuffled.logits, straight.logits[:, :, order], rtol=0, atol=1e-3)


def test_a_sparse_graph_reaches_the_nearest_alone():
    """Two groups of boxes, each of as many as a proposal sees: what happens in one is unknown in the other."""
    model = make_detector(geo_bias={"topk": 4}, num_heads=1).eval()
    corner = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    near = torch.cat((corner, corner + 12), dim=-1)
    boxes = torch.cat((near, near + 50)).expand(2, -1, -1)
    other = boxes.clone()
    other[:, 4:, 2:] += 3.0
    changed = (say(model, other).logits - say(model, boxes).logits)[0].abs().amax(-1) > 1e-4
    assert changed.tolist() == [[False] * 4 + [True] * 4] * 2


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("bias", [{}, {"kind": "distance"}, {"kind": "mlp", "topk": 5}, {"topk": 3}])
def test_sdpa_is_mha_through_the_whole_head(bias, training):
    mha = awaken(make_detector(geo_bias=bias)).train(training)
    sdpa, _ = grown(mha, geo_bias=bias, self_attn="sdpa")
    boxes = random_boxes(2, 20)
    ours, theirs = say(sdpa, boxes), say(mha, boxes)
    assert torch.allclose(ours.logits, theirs.logits, rtol=1e-5, atol=1e-5)
    assert torch.allclose(ours.boxes_xyxy, theirs.boxes_xyxy, rtol=1e-5, atol=1e-3)
