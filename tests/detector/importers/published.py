"""Detectors of other tools in plain torch, written from their papers and documentation, to compare imports with.

All is computed in float64.

Nothing of the library is used here. A network is a dict of tensors under the names of the tool, which `resnet`,
`pyramid` and the heads below compute with; `torchvision.ops` gives only RoIAlign and non-maximum suppression.
"""

import math
from itertools import product

import torch
import torch.nn.functional as F
from torchvision.ops import nms, roi_align

STRIDES = (8, 16, 32, 64, 128)
LIMIT = math.log(1000 / 16)


class Names:
    """Where a tool keeps the parts of a ResNet; `{}` is a number."""

    def __init__(self, stem, stem_norm, layer, norm, shortcut, shortcut_norm, first):
        self.stem, self.stem_norm, self.layer = stem, stem_norm, layer
        self.norm, self.shortcut, self.shortcut_norm, self.first = norm, shortcut, shortcut_norm, first


MMDETECTION = Names(
    "backbone.conv1", "backbone.bn1", "backbone.layer{}.{}", "bn{}", "downsample.0", "downsample.1", first=1
)
DETECTRON2 = Names(
    "backbone.bottom_up.stem.conv1",
    "backbone.bottom_up.stem.conv1.norm",
    "backbone.bottom_up.res{}.{}",
    "conv{}.norm",
    "shortcut",
    "shortcut.norm",
    first=2,
)


def norm(state, name, maps):
    values = (state[f"{name}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(maps, *values, training=False, eps=1e-5)


def resnet(state, names, images, caffe=False):
    """The outputs of the four stages, strides 4 to 32."""
    maps = F.relu(norm(state, names.stem_norm, F.conv2d(images, state[f"{names.stem}.weight"], stride=2, padding=3)))
    maps = F.max_pool2d(maps, 3, 2, 1)
    outputs = []
    for stage in range(4):
        block = 0
        while f"{names.layer.format(stage + names.first, block)}.conv1.weight" in state:
            start = names.layer.format(stage + names.first, block)
            maps = residual_block(state, names, start, maps, 2 if stage and not block else 1, caffe)
            block += 1
        outputs.append(maps)
    return outputs


def residual_block(state, names, start, maps, stride, caffe):
    def step(index, value, **options):
        value = F.conv2d(value, state[f"{start}.conv{index}.weight"], **options)
        return norm(state, f"{start}.{names.norm.format(index)}", value)

    if f"{start}.conv3.weight" in state:
        out = F.relu(step(1, maps, stride=stride if caffe else 1))
        out = F.relu(step(2, out, stride=1 if caffe else stride, padding=1))
        out = step(3, out)
    else:
        out = step(2, F.relu(step(1, maps, stride=stride, padding=1)), padding=1)
    if f"{start}.{names.shortcut}.weight" in state:
        maps = F.conv2d(maps, state[f"{start}.{names.shortcut}.weight"], stride=stride)
        maps = norm(state, f"{start}.{names.shortcut_norm}", maps)
    return F.relu(out + maps)


def conv(state, name, maps, **options):
    return fitted(state, name, lambda: F.conv2d(maps, state[f"{name}.weight"], state.get(f"{name}.bias"), **options))


def linear(state, name, features):
    return fitted(state, name, lambda: F.linear(features, state[f"{name}.weight"], state[f"{name}.bias"]))


def fitted(state, name, compute):
    """The output of a layer; if `state["fit"]` names a deviation, its outputs get it, and the bias as their mean."""
    deviation = state.get("fit", {}).pop(name, None)
    if deviation is not None:
        columns = compute().transpose(0, 1).flatten(1) - state[f"{name}.bias"][:, None]
        factor = deviation / columns.std(dim=1).mean()
        state[f"{name}.weight"] *= factor
        state[f"{name}.bias"] -= factor * columns.mean(dim=1)
    return compute()


def pyramid(state, laterals, outputs, body):
    """Levels of the neck from levels of the body: 1 x 1 convolutions, sums from top to bottom, 3 x 3 convolutions."""
    maps = [conv(state, name, level) for name, level in zip(laterals, body, strict=True)]
    for index in range(len(maps) - 2, -1, -1):
        maps[index] = maps[index] + F.interpolate(maps[index + 1], size=maps[index].shape[-2:], mode="nearest")
    return [conv(state, name, level, padding=1) for name, level in zip(outputs, maps, strict=True)]


def anchors(shape, stride, sides, ratios, by_size=False):
    """Anchors around multiples of the stride, (H W A, 4): by cell, then ratio and side, or side and ratio."""
    pairs = [(side, ratio) for ratio, side in product(ratios, sides)]
    if by_size:
        pairs = list(product(sides, ratios))
    boxes = []
    for y, x in product(range(shape[0]), range(shape[1])):
        for side, ratio in pairs:
            width, height = side / math.sqrt(ratio), side * math.sqrt(ratio)
            centre = x * stride, y * stride
            boxes.append([centre[0] - width / 2, centre[1] - height / 2, centre[0] + width / 2, centre[1] + height / 2])
    return torch.tensor(boxes, dtype=torch.float64)


def decoded(boxes, deltas, size, stds=(1.0, 1.0, 1.0, 1.0), both_limits=True):
    """Boxes moved and scaled by deltas, within an image of `size` (height, width)."""
    dx, dy, dw, dh = (deltas * deltas.new_tensor(stds)).unbind(-1)
    low = -LIMIT if both_limits else -math.inf
    dw, dh = dw.clamp(low, LIMIT), dh.clamp(low, LIMIT)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2 + dx * width, (boxes[:, 1] + boxes[:, 3]) / 2 + dy * height
    width, height = width * dw.exp(), height * dh.exp()
    return clipped(torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1), size)


def clipped(boxes, size):
    return boxes.clamp(min=0).minimum(boxes.new_tensor([size[1], size[0]] * 2))


def rows(maps, columns):
    """Outputs of an image's head, (1, A * columns, H, W), as (H W A, columns)."""
    return maps[0].permute(1, 2, 0).reshape(-1, columns)


def suppressed(boxes, scores, labels, threshold, most):
    """Non-maximum suppression of each class by itself, best score first."""
    kept = []
    for label in labels.unique():
        members = torch.where(labels == label)[0]
        kept.append(members[nms(boxes[members], scores[members], threshold)])
    if not kept:
        return boxes, scores, labels
    index = torch.cat(kept)
    index = index[scores[index].argsort(descending=True)][:most]
    return boxes[index], scores[index], labels[index]


def candidates(scores, threshold, most):
    """Rows and classes of the best scores above a threshold, (C,) each."""
    row, label = torch.where(scores > threshold)
    best = scores[row, label].argsort(descending=True)[:most]
    return row[best], label[best]


def proposals(state, conv_name, class_name, box_name, levels, size, both_limits, scale=8):
    boxes, scores, which = [], [], []
    for index, level in enumerate(levels):
        stride = 4 << index
        features = F.relu(conv(state, conv_name, level, padding=1))
        score = rows(conv(state, class_name, features), 1)[:, 0].sigmoid()
        deltas = rows(conv(state, box_name, features), 4)
        best = score.argsort(descending=True)[:1000]
        grid = anchors(level.shape[-2:], stride, [scale * stride], (0.5, 1.0, 2.0))
        boxes.append(decoded(grid[best], deltas[best], size, both_limits=both_limits))
        scores.append(score[best])
        which.append(torch.full((len(best),), index))
    boxes, scores, which = torch.cat(boxes), torch.cat(scores), torch.cat(which)
    real = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return suppressed(boxes[real], scores[real], which[real], 0.7, 1000)[0]


def pooled(levels, boxes):
    """RoIAlign without a shift, as many sampling points as a cell has pixels, from the level of the box's size."""
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = (sides / 56 + 1e-6).log2().floor().clamp(0, 3)
    parts = levels[0].new_zeros(len(boxes), levels[0].shape[1], 7, 7)
    for index in range(4):
        mine = level == index
        parts[mine] = roi_align(levels[index], [boxes[mine]], 7, 1 / (4 << index), 0, aligned=True)
    return parts


def second_stage(state, fc, class_name, box_name, levels, boxes, size, both_limits, most=100):
    features = pooled(levels, boxes).flatten(1)
    for name in fc:
        features = F.relu(linear(state, name, features))
    scores = linear(state, class_name, features).softmax(1)[:, :-1]
    deltas = linear(state, box_name, features)
    row, label = torch.where(scores > 0.05)
    found = decoded(
        boxes[row], deltas.unflatten(1, (-1, 4))[row, label], size, (0.1, 0.1, 0.2, 0.2), both_limits=both_limits
    )
    # The library drops boxes of less than 0.01 pixels, which the tools keep: they overlap with nothing.
    real = (found[:, 2:] - found[:, :2] > 1e-2).all(1)
    return suppressed(found[real], scores[row, label][real], label[real], 0.5, most)


def mmdet_faster_rcnn(state, images, size, caffe=False, most=100, scale=8):
    body = resnet(state, MMDETECTION, images, caffe)
    laterals = [f"neck.lateral_convs.{index}.conv" for index in range(4)]
    levels = pyramid(state, laterals, [f"neck.fpn_convs.{index}.conv" for index in range(4)], body)
    with_p6 = [*levels, levels[-1][..., ::2, ::2]]
    boxes = proposals(state, "rpn_head.rpn_conv", "rpn_head.rpn_cls", "rpn_head.rpn_reg", with_p6, size, True, scale)
    head = "roi_head.bbox_head"
    fc = [f"{head}.shared_fcs.0", f"{head}.shared_fcs.1"]
    return second_stage(state, fc, f"{head}.fc_cls", f"{head}.fc_reg", levels, boxes, size, True, most)


def d2_faster_rcnn(state, images, size, caffe=True):
    body = resnet(state, DETECTRON2, images, caffe)
    numbers = range(2, 6)
    levels = pyramid(
        state, [f"backbone.fpn_lateral{n}" for n in numbers], [f"backbone.fpn_output{n}" for n in numbers], body
    )
    with_p6 = [*levels, levels[-1][..., ::2, ::2]]
    rpn = "proposal_generator.rpn_head"
    boxes = proposals(state, f"{rpn}.conv", f"{rpn}.objectness_logits", f"{rpn}.anchor_deltas", with_p6, size, False)
    fc = ["roi_heads.box_head.fc1", "roi_heads.box_head.fc2"]
    predictor = "roi_heads.box_predictor"
    return second_stage(
        state, fc, f"{predictor}.cls_score", f"{predictor}.bbox_pred", levels, boxes, size, both_limits=False
    )


def mmdet_levels(state, images, caffe, from_body, activation):
    body = resnet(state, MMDETECTION, images, caffe)[1:]
    laterals = [f"neck.lateral_convs.{index}.conv" for index in range(3)]
    levels = pyramid(state, laterals, [f"neck.fpn_convs.{index}.conv" for index in range(3)], body)
    p6 = conv(state, "neck.fpn_convs.3.conv", body[-1] if from_body else levels[-1], stride=2, padding=1)
    p7 = conv(state, "neck.fpn_convs.4.conv", F.relu(p6) if activation else p6, stride=2, padding=1)
    return [*levels, p6, p7]


def retinanet(state, levels, size, classes, towers, class_name, box_name, by_size=False, both_limits=True, most=100):
    found = []
    for stride, level in zip(STRIDES, levels, strict=True):
        outputs = []
        for tower in towers:
            features = level
            for name in tower:
                features = F.relu(conv(state, name, features, padding=1))
            outputs.append(features)
        scores = rows(conv(state, class_name, outputs[0], padding=1), classes).sigmoid()
        deltas = rows(conv(state, box_name, outputs[1], padding=1), 4)
        sides = [4 * stride * 2 ** (third / 3) for third in range(3)]
        grid = anchors(level.shape[-2:], stride, sides, (0.5, 1.0, 2.0), by_size)
        row, label = candidates(scores, 0.05, 1000)
        found.append((decoded(grid[row], deltas[row], size, both_limits=both_limits), scores[row, label], label))
    return suppressed(*(torch.cat(parts) for parts in zip(*found, strict=True)), 0.5, most)


def mmdet_retinanet(state, images, size, caffe=False, most=100):
    levels = mmdet_levels(state, images, caffe, from_body=True, activation=False)
    towers = [[f"bbox_head.{branch}.{index}.conv" for index in range(4)] for branch in ("cls_convs", "reg_convs")]
    classes = len(state["bbox_head.retina_cls.bias"]) // 9
    return retinanet(state, levels, size, classes, towers, "bbox_head.retina_cls", "bbox_head.retina_reg", most=most)


def d2_retinanet(state, images, size, caffe=True):
    body = resnet(state, DETECTRON2, images, caffe)[1:]
    numbers = range(3, 6)
    levels = pyramid(
        state, [f"backbone.fpn_lateral{n}" for n in numbers], [f"backbone.fpn_output{n}" for n in numbers], body
    )
    p6 = conv(state, "backbone.top_block.p6", body[-1], stride=2, padding=1)
    levels += [p6, conv(state, "backbone.top_block.p7", F.relu(p6), stride=2, padding=1)]
    towers = [[f"head.{branch}_subnet.{2 * index}" for index in range(4)] for branch in ("cls", "bbox")]
    classes = len(state["head.cls_score.bias"]) // 9
    return retinanet(
        state, levels, size, classes, towers, "head.cls_score", "head.bbox_pred", by_size=True, both_limits=False
    )


def grouped_towers(state, level):
    outputs = []
    for branch in ("cls_convs", "reg_convs"):
        features = level
        for index in range(4):
            name = f"bbox_head.{branch}.{index}"
            features = conv(state, f"{name}.conv", features, padding=1)
            features = F.relu(F.group_norm(features, 32, state[f"{name}.gn.weight"], state[f"{name}.gn.bias"]))
        outputs.append(features)
    return outputs


def around(points, distances, size):
    return clipped(torch.cat([points - distances[:, :2], points + distances[:, 2:]], dim=1), size)


def grid_points(shape, stride, offset):
    return torch.tensor([[(x + offset) * stride, (y + offset) * stride] for y, x in product(*map(range, shape))])


def mmdet_fcos(state, images, size, caffe=False, improved=False, most=100):
    """The first version, or with `improved` the one with linear distances and centerness on the box branch."""
    found = []
    levels = mmdet_levels(state, images, caffe, from_body=False, activation=True)
    for index, (stride, level) in enumerate(zip(STRIDES, levels, strict=True)):
        classes, boxes = grouped_towers(state, level)
        output = conv(state, "bbox_head.conv_cls", classes, padding=1)
        scores = rows(output, output.shape[1]).sigmoid()
        centerness = conv(state, "bbox_head.conv_centerness", boxes if improved else classes, padding=1)
        centerness = rows(centerness, 1)[:, 0].sigmoid()
        sides = rows(conv(state, "bbox_head.conv_reg", boxes, padding=1), 4) * state[f"bbox_head.scales.{index}.scale"]
        sides = F.relu(sides) * stride if improved else sides.exp()
        row, label = candidates(scores, 0.05, 1000)
        decoded_boxes = around(grid_points(level.shape[-2:], stride, 0.5)[row], sides[row], size)
        found.append((decoded_boxes, scores[row, label] * centerness[row], label))
    return suppressed(*(torch.cat(parts) for parts in zip(*found, strict=True)), 0.5, most)


def mmdet_gfl(state, images, size, caffe=False, most=100):
    found = []
    levels = mmdet_levels(state, images, caffe, from_body=False, activation=False)
    for index, (stride, level) in enumerate(zip(STRIDES, levels, strict=True)):
        classes, boxes = grouped_towers(state, level)
        output = conv(state, "bbox_head.gfl_cls", classes, padding=1)
        scores = rows(output, output.shape[1]).sigmoid()
        sides = conv(state, "bbox_head.gfl_reg", boxes, padding=1) * state[f"bbox_head.scales.{index}.scale"]
        sides = rows(sides, sides.shape[1]).unflatten(1, (4, -1)).softmax(-1)  # (N, 4, M+1)
        sides = (sides * torch.arange(sides.shape[-1])).sum(-1) * stride
        row, label = candidates(scores, 0.05, 1000)
        points = grid_points(level.shape[-2:], stride, 0)[row]
        found.append((around(points, sides[row], size), scores[row, label], label))
    return suppressed(*(torch.cat(parts) for parts in zip(*found, strict=True)), 0.6, most)
