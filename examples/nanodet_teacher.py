"""A detector of another tool as a teacher: NanoDet in ONNX, whose outputs are of no standard layout.

    python examples/nanodet_teacher.py nanodet.onnx --data DATA --unlabelled PHOTOS --out RUN

The student learns the annotations of DATA, and as pseudo-labels what NanoDet detects in PHOTOS, which have none.
NanoDet knows the 80 classes of COCO. The same few lines wrap any other detector.
Needs `pip install "defeat-detection[onnx]"`.
"""

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from onnxruntime import InferenceSession
from torch import Tensor
from torchvision.ops import batched_nms

import defeat

COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,"
    "snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,"
    "fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
VOC = {"motorcycle": "motorbike", "airplane": "aeroplane", "tv": "tvmonitor", "couch": "sofa"}
VOC |= {"dining table": "diningtable", "potted plant": "pottedplant"}


class NanoDet:
    """A `defeat.BoxTeacher` around an ONNX file with a pair of outputs per stride, scores and bins of the sides."""

    classes = tuple(COCO.split(","))

    def __init__(self, path: str, side: int = 416, min_score: float = 0.05) -> None:
        self.session, self.side, self.min_score = InferenceSession(path), side, min_score
        self.input = self.session.get_inputs()[0].name
        self.mean = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
        self.std = torch.tensor([57.375, 57.12, 58.395]).view(3, 1, 1)

    def predict(self, images: Sequence[Tensor]) -> list[defeat.Detections]:
        """Detect objects in RGB images, (3, H, W) uint8."""
        return [self._detect(image) for image in images]

    def _detect(self, image: Tensor) -> defeat.Detections:
        stretched = F.interpolate(image[None].float(), (self.side, self.side), mode="bilinear")
        batch = (stretched.flip(1) - self.mean) / self.std  # BGR
        outputs = [torch.from_numpy(output)[0] for output in self.session.run(None, {self.input: batch.numpy()})]
        scores = {len(output): output for output in outputs if output.shape[1] == len(self.classes)}  # (n, 80)
        bins = {len(output): output for output in outputs if output.shape[1] != len(self.classes)}  # (n, 44)
        boxes = torch.cat([self._boxes(bins[count]) for count in scores])
        best, labels = torch.cat(list(scores.values())).max(dim=1)
        kept = best >= self.min_score
        boxes, best, labels = boxes[kept], best[kept], labels[kept]
        kept = batched_nms(boxes, best, labels, 0.6)[:100]
        height, width = image.shape[-2:]
        scale = torch.tensor([width, height, width, height]) / self.side
        return defeat.Detections(boxes[kept] * scale, best[kept], labels[kept])

    def _boxes(self, bins: Tensor) -> Tensor:
        """Boxes of a square grid, (n, 4) in pixels of the input: distances to the sides, as expected values of bins."""
        cells = round(len(bins) ** 0.5)
        stride = self.side / cells
        values = bins.view(len(bins), 4, -1).softmax(dim=-1)
        distances = stride * values @ torch.arange(values.shape[-1], dtype=torch.float32)
        rows, columns = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
        centres = (torch.stack([columns, rows], dim=-1).view(-1, 2) + 0.5) * stride
        return torch.cat([centres - distances[:, :2], centres + distances[:, 2:]], dim=1)


def main(arguments: Sequence[str] | None = None) -> defeat.RunResult:
    """Train a student; further options are those of `defeat.distill`."""
    parser = argparse.ArgumentParser(description="Distil NanoDet into a student by pseudo-labels.")
    parser.add_argument("file")
    for name, default in {"data": None, "unlabelled": None, "out": None, "backbone": "resnet18", "size": "320"}.items():
        parser.add_argument(f"--{name}", default=default, required=default is None)
    given = parser.parse_args(arguments)
    classes = defeat.open_dataset(given.data, "train").classes
    return defeat.distill(
        teacher=NanoDet(given.file),
        data=given.data,
        unlabelled=given.unlabelled,
        pseudo_labels=0.4,
        class_map={theirs: ours for theirs, ours in VOC.items() if ours in classes},
        backbone=given.backbone,
        size=int(given.size),
        out=given.out,
    )


if __name__ == "__main__":
    main()
