"""What the paper measured: He et al., 2015, arXiv 1512.03385v1."""

TABLE_6 = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}
"""Test error of residual networks with option A on CIFAR-10, in %."""

TABLE_6_110 = "6.61 ± 0.16"
"""Of ResNet-110 over five runs."""

TABLE_2 = {("plain", 18): 27.94, ("plain", 34): 28.54, ("resnet", 18): 27.88, ("resnet", 34): 25.03}
"""Top-1 error on ImageNet's validation set, 10-crop, in %; residual networks with option A."""

TABLE_3 = {"A": 25.03, "B": 24.52, "C": 24.19}
"""Top-1 error of ResNet-34 on ImageNet's validation set, 10-crop, in %, by shortcut option."""

FIGURE_6_PLAIN_110 = 60
"""Figure 6 does not show plain-110, whose error is higher than this, in %."""

TABLE_7 = {"VGG-16": (73.2, 70.4), "ResNet-101": (76.4, 73.8)}
"""mAP of Faster R-CNN on the test sets of VOC 2007 and 2012, in %, by backbone."""

TABLE_8 = {"VGG-16": (41.5, 21.2), "ResNet-101": (48.4, 27.2)}
"""mAP of Faster R-CNN on COCO's validation set at IoU .5, and averaged over IoU .5 to .95, in %."""
