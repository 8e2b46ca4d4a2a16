"""The SSA head and its training loss against a plain version of the published arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cgrseg.config.schema import Config, LossConfig
from cgrseg.datasets import get_spec
from cgrseg.errors import ConfigError, WeightsError
from cgrseg.inference import Predictor
from cgrseg.inference.fast.network import fast_form
from cgrseg.models import create_model, load_model, load_weights
from cgrseg.models.ssa_head import SSAHead, SSAOutput
from cgrseg.training.module import TrainingModule, build_model
from cgrseg.training.resuming import restore_weights
from cgrseg.training.run_log import read_table
from cgrseg.training.runner import train
from cgrseg.training.ssa_loss import SSALoss, mask_dice_loss
from cgrseg.variants import VARIANTS
from tests.inference.fixtures import photo
from tests.training.small_run import small_config, write_dataset

CLASSES, WIDTH, IGNORED = 5, 16, 255
SIZES = replace(VARIANTS["cgrseg_t"], channels=WIDTH, context_blocks=1)


@pytest.fixture
def head() -> SSAHead:
    torch.manual_seed(0)
    made = SSAHead(SIZES, (6, 8, 10), CLASSES, 0.0).double().eval()
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name.startswith("conv_seg"):
                value.normal_(0, 0.5)  # so that initial predictions differ
    return made


@pytest.fixture
def features() -> list[Tensor]:
    draws = torch.Generator().manual_seed(1)
    sizes = ((6, 4, 6), (8, 2, 3), (10, 1, 2))
    return [torch.randn(2, *size, generator=draws, dtype=torch.float64) for size in sizes]


@pytest.fixture
def label() -> Tensor:
    """(2, 32, 48); class 4 is nowhere, class 3 in one image, and some pixels are ignored."""
    cells = torch.randint(0, 3, (2, 8, 12), generator=torch.Generator().manual_seed(2))
    cells[0, 2:5, 4:9] = 3
    cells[1, :3] = IGNORED
    return cells.repeat_interleave(4, 1).repeat_interleave(4, 2)


def project(module: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    squeeze, _, expand = module.children()
    hidden = squeeze.weight @ torch.cat([first, second])
    return expand.weight @ hidden.clamp(min=0) + expand.bias


def cosines(x: Tensor, prototypes: list[list[Tensor]]) -> Tensor:
    return torch.stack(
        [
            torch.stack(
                [
                    15 * torch.einsum("mhw,m->hw", image, each) / (image.norm(dim=0) * each.norm())
                    for each in of_image
                ]
            )
            for image, of_image in zip(x, prototypes, strict=True)
        ]
    )


def plain_outputs(head: SSAHead, features: list[Tensor], label: Tensor) -> SSAOutput:
    """Class by class and image by image."""
    x = head.linear_fuse(head.reconstruct(features))
    weight, learned = head.conv_seg.weight[:, :, 0, 0], head.center_pos.weight
    initial = head.conv_seg(x)
    position = F.conv2d(
        x, head.get_feat_pos.weight, head.get_feat_pos.bias, padding=1, groups=WIDTH
    )
    probability = initial.exp() / initial.exp().sum(1, keepdim=True)
    small = label[:, ::8, ::8]
    semantic, spatial, final = [], [], []
    guided_spatial, guided_final = [], []
    guided_semantic = []
    for k in range(CLASSES):
        inside = small == k
        mean = x.movedim(1, -1)[inside].mean(0) if inside.any() else weight[k].detach()
        guided_semantic.append(project(head.gt_center_content_proj, mean, weight[k]))
    for n in range(len(x)):
        for k in range(CLASSES):
            share = probability[n, k]
            mean = (share * x[n]).sum((1, 2)) / share.sum()
            semantic.append(project(head.center_content_proj, mean, weight[k]))
            share = initial[n, k].exp() / initial[n, k].exp().sum()
            where = (share * position[n]).sum((1, 2))
            spatial.append(project(head.center_pos_proj, learned[k], where))
            final.append(head.center_proj.weight @ (semantic[-1] + spatial[-1]))
            inside = small[n] == k
            where = position[n][:, inside].mean(1) if inside.any() else learned[k].detach()
            guided_spatial.append(project(head.gt_center_pos_proj, where, learned[k]))
            total = guided_semantic[k] + guided_spatial[-1]
            guided_final.append(head.gt_center_proj.weight @ total)

    def by_image(values: list[Tensor]) -> list[list[Tensor]]:
        return [values[:CLASSES], values[CLASSES:]]

    return SSAOutput(
        cosines(x + position, by_image(final)),
        initial,
        cosines(x + position, by_image(guided_final)),
        torch.stack(semantic).view(2, CLASSES, WIDTH),
        torch.stack(guided_semantic)[None],
        torch.stack(spatial).view(2, CLASSES, WIDTH),
        torch.stack(guided_spatial).view(2, CLASSES, WIDTH),
    )


def plain_terms(output: SSAOutput, label: Tensor) -> dict[str, Tensor]:
    labeled = int((label != IGNORED).sum())

    def enlarged(logits: Tensor) -> Tensor:
        return F.interpolate(logits, size=label.shape[1:], mode="bilinear")

    def cross_entropy(logits: Tensor, pixels: int) -> Tensor:
        summed = F.cross_entropy(enlarged(logits), label, ignore_index=IGNORED, reduction="sum")
        return summed / pixels

    def dice(logits: Tensor) -> Tensor:
        losses = []
        for n, shares in enumerate(enlarged(logits).sigmoid()):
            known = label[n] != IGNORED
            for k in label[n].unique():
                if k != IGNORED:
                    share, truth = shares[k][known], (label[n] == k)[known].double()
                    overlap = (2 * share @ truth + 1) / (share.sum() + truth.sum() + 1)
                    losses.append(1 - overlap)
        return torch.stack(losses).mean()

    def response() -> Tensor:
        small = label[:, ::8, ::8]
        teacher, student = output.guided_logits.detach().softmax(1), output.logits.log_softmax(1)
        sums: dict[tuple[int, bool], list[Tensor]] = {}
        for n, row, column in np.ndindex(*small.shape):
            own = int(small[n, row, column])
            if own == IGNORED:
                continue
            near = small[n, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
            p = teacher[n, :, row, column]
            target = 0.5 * p
            target[own] = target[own] + 0.5
            loss = -(target @ student[n, :, row, column])
            entropy = -(p @ (p + 1e-12).log())
            sums.setdefault((own, bool((near != own).any())), []).append(
                torch.stack([entropy * loss, entropy])
            )
        means = {key: torch.stack(found).sum(0) for key, found in sums.items()}
        classes = {own for own, _ in means}
        halves = [loss / (entropy + 1e-12) / 2 for loss, entropy in means.values()]
        return torch.stack(halves).sum() / len(classes)

    def semantic() -> Tensor:
        excess = []
        for n in range(2):
            for k in range(CLASSES):
                shares = []
                for centers in (output.semantic[n], output.guided_semantic[0].detach()):
                    unit = [center / center.norm() for center in centers]
                    scores = torch.stack([15 * unit[k] @ other.detach() for other in unit])
                    shares.append(scores.exp() / scores.exp().sum())
                above = [(a - b).clamp(min=0) for a, b in zip(*shares, strict=True)]
                excess.append(sum(v for j, v in enumerate(above) if j != k))
        return torch.stack([torch.as_tensor(value) for value in excess]).mean()

    return {
        "loss_ce": cross_entropy(output.logits, label.numel()),
        "loss_ssa_initial": cross_entropy(output.initial, labeled),
        "loss_ssa_guided": cross_entropy(output.guided_logits, labeled),
        "loss_ssa_dice": dice(output.logits) + dice(output.guided_logits),
        "loss_ssa_response": response(),
        "loss_ssa_semantic": semantic(),
        "loss_ssa_spatial": -(
            output.guided_spatial.detach().softmax(2) * output.spatial.log_softmax(2)
        )
        .sum(2)
        .mean(),
    }


PUBLISHED = {"semantic": 10.0, "spatial": 0.4}


def test_outputs_terms_and_gradients_are_those_of_the_published_arithmetic(
    head: SSAHead, features: list[Tensor], label: Tensor
) -> None:
    inputs = [value.requires_grad_() for value in features]
    ours = head.forward_with_truth(inputs, label, IGNORED)
    theirs = plain_outputs(head, inputs, label)
    for name, found, expected in zip(ours._fields, ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=name)
    assert torch.equal(head(inputs)[0], ours.logits)
    assert len(ours.logits.argmax(1).unique()) > 1
    terms, expected_terms = SSALoss(LossConfig(), CLASSES)(ours, label), plain_terms(theirs, label)
    assert terms.keys() == {"loss", *expected_terms}
    for name, expected in expected_terms.items():
        torch.testing.assert_close(terms[name], expected, rtol=1e-9, atol=1e-9, msg=name)
        assert float(expected.detach()) > 1e-3, name
    total = torch.stack(
        [
            PUBLISHED.get(name.removeprefix("loss_ssa_"), 1.0) * value
            for name, value in expected_terms.items()
        ]
    ).sum()
    torch.testing.assert_close(terms["loss"], total, rtol=1e-9, atol=0)
    over = [*head.parameters(), *inputs]
    gradients = torch.autograd.grad(terms["loss"], over)  # none of them is unused
    for found, expected in zip(gradients, torch.autograd.grad(total, over), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)


def test_single_precision_and_half_precision_are_close(
    head: SSAHead, features: list[Tensor], label: Tensor
) -> None:
    output = head.forward_with_truth(features, label, IGNORED)
    loss = SSALoss(LossConfig(), CLASSES)
    output = SSAOutput(*(value.detach() for value in output))
    exact = {name: float(value) for name, value in loss(output, label).items()}
    for kind, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        found = loss(SSAOutput(*(value.to(kind) for value in output)), label)
        assert {name: float(value) for name, value in found.items()} == pytest.approx(
            exact, rel=tolerance, abs=tolerance
        )
        assert found["loss"].dtype == torch.float32


def test_sums_over_many_cells_stay_within_float16() -> None:
    torch.manual_seed(0)
    head = SSAHead(SIZES, (6, 8, 10), CLASSES, 0.0).eval()
    with torch.no_grad():
        head.linear_fuse.bn.bias.fill_(20.0)  # 8,192 cells of 20 exceed 65,504
    features = [torch.randn(1, c, 64 // s, 128 // s) for c, s in ((6, 1), (8, 2), (10, 4))]
    label = torch.zeros(1, 64, 128, dtype=torch.int64)
    exact = head.forward_with_truth(features, label, IGNORED)
    with torch.autocast("cpu", torch.float16):
        found = head.forward_with_truth(features, label, IGNORED)
    for name, one, other in zip(exact._fields, found, exact, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.02, atol=0.05, msg=name)


def test_weight_zero_leaves_a_term_out_and_the_others_as_they_are(
    head: SSAHead, features: list[Tensor], label: Tensor
) -> None:
    output = head.forward_with_truth(features, label, IGNORED)
    every = SSALoss(LossConfig(), CLASSES)(output, label)
    few = LossConfig.model_validate(
        {"ssa": {"dice_weight": 0, "response_weight": 0, "semantic_weight": 2}}
    )
    some = SSALoss(few, CLASSES)(output, label)
    assert every.keys() - some.keys() == {"loss_ssa_dice", "loss_ssa_response"}
    taken = every["loss"] - every["loss_ssa_dice"] - every["loss_ssa_response"]
    torch.testing.assert_close(some["loss"], taken - 8 * every["loss_ssa_semantic"])


def test_every_trainable_parameter_has_a_gradient(tmp_path: Path) -> None:
    """Several processes wait for the gradient of each."""
    ssa = {"guided_weight": 0.0, "dice_weight": 0.0}
    config = small_config(tmp_path, tmp_path, model__head="ssa", loss__ssa=ssa)
    frozen = []
    for config.loss.ssa.guided_weight, config.loss.ssa.dice_weight in ((0, 0), (1, 0), (0, 1)):
        network = build_model(config, get_spec("synthetic"))
        label = torch.arange(2 * 64 * 64).view(2, 64, 64) % 3
        output = network.train().forward_with_truth(torch.randn(2, 3, 64, 64), label)
        SSALoss(config.loss, network.num_classes)(output, label)["loss"].backward()
        trained = {name for name, p in network.named_parameters() if p.requires_grad}
        assert trained == {name for name, p in network.named_parameters() if p.grad is not None}
        frozen.append({name for name, _ in network.named_parameters()} - trained)
    assert frozen[0] and not frozen[1] and not frozen[2]
    assert all(name.startswith("decode_head.gt_") for name in frozen[0])


def test_nothing_labeled_is_no_loss_of_pixels(head: SSAHead, features: list[Tensor]) -> None:
    label = torch.full((2, 32, 48), IGNORED)
    terms = SSALoss(LossConfig(), CLASSES)(head.forward_with_truth(features, label, IGNORED), label)
    terms["loss"].backward()
    for name in ("ce", "ssa_initial", "ssa_guided", "ssa_dice", "ssa_response"):
        assert float(terms[f"loss_{name}"].detach()) == 0.0
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in head.parameters())


def test_dice_of_more_masks_than_are_computed_at_once() -> None:
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 20, 2, 3, generator=draws, requires_grad=True)
    label = torch.randint(0, 20, (3, 16, 24), generator=draws)
    found = mask_dice_loss(logits, label, IGNORED)
    share = F.interpolate(logits, size=(16, 24), mode="bilinear").sigmoid()
    truth = F.one_hot(label, 20).movedim(3, 1).float()
    overlap = (2 * (share * truth).sum((2, 3)) + 1) / (share + truth).sum((2, 3)).add(1)
    expected = (1 - overlap)[truth.sum((2, 3)) > 0].mean()
    torch.testing.assert_close(found, expected)
    one, other = (torch.autograd.grad(value, logits)[0] for value in (found, expected))
    torch.testing.assert_close(one, other)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ssa")
    data = write_dataset(folder / "data")
    train(
        small_config(
            data,
            folder / "run",
            model__head="ssa",
            schedule__max_iters=2,
            train__precision="bf16",
            train__evaluate=True,
            train__eval_interval=2,
        ),
        device="cpu",
    )
    return folder / "run"


def test_a_training_logs_every_term_and_records_the_head(run: Path) -> None:
    rows = read_table(run / "metrics.csv")
    assert len(rows) == 2
    for row in rows:
        names = ("initial", "guided", "dice", "response", "semantic", "spatial")
        parts = [PUBLISHED.get(name, 1.0) * float(row[f"loss_ssa_{name}"]) for name in names]
        total = math.fsum([float(row["loss_ce"]), *parts])
        assert float(row["loss"]) == pytest.approx(total, rel=1e-5)
    stored = torch.load(run / "latest.pth", weights_only=True)
    assert stored["meta"]["head"] == stored["meta"]["config"]["model"]["head"] == "ssa"


def test_predictions_are_those_of_the_plain_network(run: Path) -> None:
    model = load_model(run / "best.pth", verbose=False)
    assert model.head == "ssa" and model.options()["head"] == "ssa"
    picture = photo(64, 64)
    found = Predictor.from_pretrained(run / "best.pth")(picture)
    scaled = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    mean, std = (
        torch.tensor(v)[:, None, None] for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    )
    x = (scaled - mean) / std
    with torch.inference_mode():
        logits = model(x)
        fast = fast_form(model)(x)
    torch.testing.assert_close(fast, logits, rtol=1e-4, atol=1e-4)
    wanted = F.interpolate(logits, size=(64, 64), mode="bilinear")[0].argmax(0)
    assert (found.labels == wanted.numpy()).mean() > 0.999


def test_one_head_refuses_the_other(run: Path, tmp_path: Path) -> None:
    network = create_model("cgrseg_t", 3, context_blocks=1)
    torch.save(network.state_dict(), tmp_path / "dpg.pth")
    for path, head, other in (
        (run / "best.pth", "dpg", "ssa"),
        (tmp_path / "dpg.pth", "ssa", "dpg"),
    ):
        target = create_model("cgrseg_t", 3, context_blocks=1, head=head)
        before = {name: value.clone() for name, value in target.state_dict().items()}
        with pytest.raises(WeightsError) as caught:
            load_weights(target, path, verbose=False)
        message = str(caught.value)
        assert str(path) in message
        assert f"weights of cgrseg_t with 1 context blocks, {other} head" in message
        assert f"expected: weights of cgrseg_t with 1 context blocks, {head} head" in message
        assert f"cgrseg.load_model({str(path)!r})" in message and 'part="backbone"' in message
        assert all(torch.equal(before[name], v) for name, v in target.state_dict().items())
        report = load_weights(target, path, part="backbone", verbose=False)
        assert not report.missing


def test_a_run_resumes_with_its_own_head_only(run: Path) -> None:
    stored = torch.load(run / "latest.pth", weights_only=True)
    with pytest.raises(ConfigError, match=r"\(ssa head\)\s+expected: cgrseg_t, dpg head") as told:
        network = create_model("cgrseg_t", 3, context_blocks=1)
        config = Config.model_validate(stored["meta"]["config"])
        restore_weights(TrainingModule(network, config, 3), stored)
    assert "resume with model.head=ssa" in str(told.value)
    assert "model.pretrained" in str(told.value) and "load-from" not in str(told.value)


def test_the_constant_of_the_published_loss_is_not_needed(run: Path, tmp_path: Path) -> None:
    network = load_model(run / "best.pth", verbose=False)
    constant = "decode_head.ssa_loss.criterion.empty_weight"
    published = {**network.state_dict(), constant: torch.ones(4)}
    torch.save(published, tmp_path / "published.pth")
    report = load_weights(network, tmp_path / "published.pth", verbose=False)
    assert constant in report.expected_unused and not report.unexpected
    torch.save({**published, "decode_head.more": torch.ones(4)}, tmp_path / "more.pth")
    with pytest.raises(WeightsError, match=r"ssa head has no place \(1 in all\)"):
        load_weights(network, tmp_path / "more.pth", verbose=False)


def test_another_number_of_classes_keeps_all_but_what_is_per_class(run: Path) -> None:
    target = create_model("cgrseg_t", 4, context_blocks=1, head="ssa")
    report = load_weights(target, run / "best.pth", verbose=False)
    names = ("conv_seg.weight", "conv_seg.bias", "center_pos.weight")
    assert report.fresh == [f"decode_head.{name}" for name in names]
