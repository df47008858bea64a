"""Checkpoints of other tools with random weights, small, and with well spread scores and boxes."""

import math

import torch

from tests.detector.importers import published

CHANNELS = 64  # of the neck: two per group of the normalised heads
HIDDEN = 32  # of the second stage
CLASSES = ("cat", "dog", "owl")
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
IMAGE = (100, 150)  # padded to 128 x 160, which the upper strides do not divide


class State(dict):
    """Tensors by name, filled at random."""

    def __init__(self, seed=0):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.fit = {}

    def normal(self, *shape, deviation=1.0):
        return torch.randn(*shape, generator=self.generator) * deviation

    def conv(self, name, inputs, outputs, side, bias=True, deviation=None):
        scale = math.sqrt(2 / (inputs * side * side))
        self[f"{name}.weight"] = self.normal(outputs, inputs, side, side, deviation=scale)
        if bias:
            self[f"{name}.bias"] = self.normal(outputs, deviation=0.05)
        if deviation is not None:
            self.fit[name] = deviation

    def linear(self, name, inputs, outputs, deviation=None):
        self[f"{name}.weight"] = self.normal(outputs, inputs, deviation=math.sqrt(2 / inputs))
        self[f"{name}.bias"] = self.normal(outputs, deviation=0.05)
        if deviation is not None:
            self.fit[name] = deviation

    def norm(self, name, channels, scale=1.0):
        self[f"{name}.weight"] = scale * (1 + self.normal(channels, deviation=0.1))
        self[f"{name}.bias"] = self.normal(channels, deviation=0.1)
        self[f"{name}.running_mean"] = self.normal(channels, deviation=0.1)
        self[f"{name}.running_var"] = 1 + self.normal(channels, deviation=0.1).abs()
        self[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def group_norm(self, name, channels):
        self[f"{name}.weight"] = 1 + self.normal(channels, deviation=0.1)
        self[f"{name}.bias"] = self.normal(channels, deviation=0.1)

    def resnet(self, names, depth):
        """The body; returns the channels of its four stages."""
        self.conv(names.stem, 3, 64, 7, bias=False)
        self.norm(names.stem_norm, 64)
        inputs, bottleneck = 64, depth >= 50
        channels = []
        for stage, blocks in enumerate(BLOCKS[depth]):
            width = 64 << stage
            outputs = 4 * width if bottleneck else width
            for block in range(blocks):
                start = names.layer.format(stage + names.first, block)
                widths = (inputs, width, width, outputs) if bottleneck else (inputs, width, width)
                sides = (1, 3, 1) if bottleneck else (3, 3)
                for index, side in enumerate(sides, start=1):
                    self.conv(f"{start}.conv{index}", widths[index - 1], widths[index], side, bias=False)
                    last = index == len(sides)
                    self.norm(f"{start}.{names.norm.format(index)}", widths[index], 0.3 if last else 1.0)
                if inputs != outputs or (stage and not block):
                    self.conv(f"{start}.{names.shortcut}", inputs, outputs, 1, bias=False)
                    self.norm(f"{start}.{names.shortcut_norm}", outputs)
                inputs = outputs
            channels.append(outputs)
        return channels


def mmdet_neck(state, body, extra=None):
    for index, channels in enumerate(body):
        state.conv(f"neck.lateral_convs.{index}.conv", channels, CHANNELS, 1)
        state.conv(f"neck.fpn_convs.{index}.conv", CHANNELS, CHANNELS, 3)
    if extra is not None:
        state.conv("neck.fpn_convs.3.conv", extra, CHANNELS, 3)
        state.conv("neck.fpn_convs.4.conv", CHANNELS, CHANNELS, 3)


def mmdet_faster_rcnn(depth=18, seed=0):
    state = State(seed)
    mmdet_neck(state, state.resnet(published.MMDETECTION, depth))
    state.conv("rpn_head.rpn_conv", CHANNELS, CHANNELS, 3)
    two_stages(state, "rpn_head.rpn_cls", "rpn_head.rpn_reg", "roi_head.bbox_head", ("shared_fcs.0", "shared_fcs.1"))
    return state


def two_stages(state, rpn_class, rpn_box, head, fc, names=("fc_cls", "fc_reg")):
    classes = len(CLASSES)
    state.conv(rpn_class, CHANNELS, 3, 1, deviation=1.0)
    state.conv(rpn_box, CHANNELS, 12, 1, deviation=0.3)
    state[f"{rpn_box}.bias"][2] = -5.0  # boxes of the first anchor become as narrow as the tool lets them
    state.linear(f"{head}.{fc[0]}", CHANNELS * 49, HIDDEN, deviation=1.0)
    state.linear(f"{head}.{fc[1]}", HIDDEN, HIDDEN, deviation=1.0)
    name_of_class, name_of_box = names
    prefix = head if names[0].startswith("fc") else "roi_heads.box_predictor"
    state.linear(f"{prefix}.{name_of_class}", HIDDEN, classes + 1, deviation=0.7)
    state.linear(f"{prefix}.{name_of_box}", HIDDEN, 4 * classes, deviation=1.0)
    state[f"{prefix}.{name_of_box}.bias"][3] = -23.0  # and boxes of the first class as low


def mmdet_retinanet(depth=18, seed=0):
    state = State(seed)
    body = state.resnet(published.MMDETECTION, depth)
    mmdet_neck(state, body[1:], extra=body[-1])
    for branch in ("cls_convs", "reg_convs"):
        for index in range(4):
            state.conv(f"bbox_head.{branch}.{index}.conv", CHANNELS, CHANNELS, 3)
    dense_head(state, "bbox_head.retina_cls", "bbox_head.retina_reg")
    return state


def dense_head(state, class_name, box_name):
    state.conv(class_name, CHANNELS, 9 * len(CLASSES), 3, deviation=1.0)
    state.conv(box_name, CHANNELS, 36, 3, deviation=0.3)
    state[f"{class_name}.bias"] -= 2
    state[f"{box_name}.bias"][2] = -5.0


def grouped_heads(state):
    for branch in ("cls_convs", "reg_convs"):
        for index in range(4):
            state.conv(f"bbox_head.{branch}.{index}.conv", CHANNELS, CHANNELS, 3, bias=False)
            state.group_norm(f"bbox_head.{branch}.{index}.gn", CHANNELS)
    for level in range(5):
        state[f"bbox_head.scales.{level}.scale"] = torch.tensor(1.0 + 0.1 * level)


def mmdet_fcos(depth=18, seed=0, improved=False):
    state = State(seed)
    body = state.resnet(published.MMDETECTION, depth)
    mmdet_neck(state, body[1:], extra=CHANNELS)
    grouped_heads(state)
    state.conv("bbox_head.conv_cls", CHANNELS, len(CLASSES), 3, deviation=1.0)
    state["bbox_head.conv_cls.bias"] -= 2
    state.conv("bbox_head.conv_reg", CHANNELS, 4, 3, deviation=1.5 if improved else 0.5)
    state["bbox_head.conv_reg.bias"] += 2.0 if improved else 3.0
    state.conv("bbox_head.conv_centerness", CHANNELS, 1, 3, deviation=1.0)
    return state


def mmdet_gfl(depth=18, seed=0):
    state = State(seed)
    body = state.resnet(published.MMDETECTION, depth)
    mmdet_neck(state, body[1:], extra=CHANNELS)
    grouped_heads(state)
    state.conv("bbox_head.gfl_cls", CHANNELS, len(CLASSES), 3, deviation=1.0)
    state["bbox_head.gfl_cls.bias"] -= 2
    state.conv("bbox_head.gfl_reg", CHANNELS, 4 * 17, 3, deviation=2.0)
    # Short distances: nearly all boxes of the upper levels would be the whole image otherwise.
    state["bbox_head.gfl_reg.bias"] -= 0.7 * torch.arange(17).repeat(4)
    state["bbox_head.integral.project"] = torch.linspace(0, 16, 17)
    return state


def d2_neck(state, body, first):
    for number, channels in enumerate(body, start=first):
        state.conv(f"backbone.fpn_lateral{number}", channels, CHANNELS, 1)
        state.conv(f"backbone.fpn_output{number}", CHANNELS, CHANNELS, 3)


def d2_faster_rcnn(depth=50, seed=0):
    state = State(seed)
    d2_neck(state, state.resnet(published.DETECTRON2, depth), 2)
    rpn = "proposal_generator.rpn_head"
    state.conv(f"{rpn}.conv", CHANNELS, CHANNELS, 3)
    names = ("cls_score", "bbox_pred")
    two_stages(state, f"{rpn}.objectness_logits", f"{rpn}.anchor_deltas", "roi_heads.box_head", ("fc1", "fc2"), names)
    return state


def d2_retinanet(depth=50, seed=0):
    state = State(seed)
    body = state.resnet(published.DETECTRON2, depth)
    d2_neck(state, body[1:], 3)
    state.conv("backbone.top_block.p6", body[-1], CHANNELS, 3)
    state.conv("backbone.top_block.p7", CHANNELS, CHANNELS, 3)
    for branch in ("cls", "bbox"):
        for index in range(4):
            state.conv(f"head.{branch}_subnet.{2 * index}", CHANNELS, CHANNELS, 3)
    dense_head(state, "head.cls_score", "head.bbox_pred")
    return state


def picture(seed=0):
    """An RGB image, (3, H, W) uint8, of smooth colours."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 9, 13, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, size=IMAGE, mode="bilinear")[0].round().to(torch.uint8)


def network_input(image, mean, std, bgr=False):
    """The input as the tools make it: normalised values of 0..255, then zeros up to multiples of 32, float64."""
    values = image.double()
    if bgr:
        values = values.flip(0)
    values = (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    bottom, right = (-side % 32 for side in image.shape[-2:])
    return torch.nn.functional.pad(values, (0, right, 0, bottom))[None]
