"""What several twins are made of. Images are `(N, C, h, w)`."""

from torch import nn
from torch.nn import functional

MEAN = (0.4488, 0.4371, 0.4040)


def mean_like(x):
    """The mean colour, in the precision of `x`."""
    return x.new_tensor(MEAN)[None, :, None, None]


def conv(wide, out, kernel=3, **options):
    """A convolution that keeps the size."""
    padding = options.get("dilation", 1) * (kernel - 1) // 2
    return nn.Conv2d(wide, out, kernel, padding=padding, **options)


def upsampler(channels, scale):
    """A convolution and a shuffle; the first has weights."""
    return nn.Sequential(conv(channels, 3 * scale**2), nn.PixelShuffle(scale))


class Conv3XC(nn.Module):
    """SPAN's convolution. form: "train" has the branches, "deploy" the fused one, "both" both.

    With both, training runs the branches and evaluation the fused convolution.
    """

    def __init__(self, wide, out, gain=2, form="train"):
        super().__init__()
        if form != "deploy":
            self.sk = conv(wide, out, 1)
            self.conv = nn.Sequential(
                conv(wide, gain * wide, 1),
                nn.Conv2d(gain * wide, gain * out, 3),
                conv(gain * out, out, 1),
            )
        if form != "train":
            self.eval_conv = conv(wide, out)
        self.form = form

    def forward(self, x):
        if self.form == "deploy" or (self.form == "both" and not self.training):
            return self.eval_conv(x)
        return self.conv(functional.pad(x, (1, 1, 1, 1))) + self.sk(x)
