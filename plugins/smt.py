"""SMT, by team BBox: HAT-L and MambaIRv2-L, each with x8 self-ensemble, fused as uint8 images.

    LR ─ x8 self-ensemble ─ padded to the next multiple of 16 ─ HAT ── mean ─ uint8 ─┬─ fused
     └── x8 self-ensemble ─ windows of five sizes ─ MambaIRv2 ─ weighted mean ─ uint8 ┘

Made for quality, not speed: HAT runs on eight flips and rotations of an image, MambaIRv2 on eight
flips and rotations in five window sizes; window sizes that give the same windows are run, and
counted, once. The factsheet gives 31.97 dB in the testing phase of the NTIRE 2025 image
super-resolution challenge (x4).

Factsheet and code differ: the "adaptive weighted fusion" weighs each of the two images by its
closeness to their mean, from which both are equally far, so it always is `⌊(a + b) / 2⌋`. The
"sliding windows" do not slide: the image is cut into windows, each extended by a tenth of its side.
The released code samples the classes of MambaIRv2's tokens with fresh noise; here they are the
argmax, and `--hparam mambairv2.eval_noise=true` samples. No trained weights are published.
"""

from esrjax.method import Ensemble, Member

METHOD = Ensemble(
    members={
        "hat": Member(self_ensemble=True, pad_multiple=16),
        "mambairv2": Member(
            self_ensemble=True, windows={100: 1.0, 200: 1.0, 300: 1.2, 400: 0.8, 500: 0.8}
        ),
    },
    fusion="adaptive",
    team="BBox",
    paper="NTIRE 2025 image super-resolution challenge, team 15 (SMT)",
    license="Apache-2.0",
    description=__doc__,
    reported={"params": 75_712_586, "macs": 104_479_589_176_320},
)
