"""SMT, by team BBox: HAT-L and MambaIRv2-L, each over eight flips and turns, fused as bytes.

    LR ─ eight turns ─ mirrored to the next multiple of 16 ─ HAT ── mean ─ bytes ─┬─ fused
     └── eight turns ─ windows of five sides ─ MambaIRv2 ─ weighted mean ─ bytes ─┘

Made for quality: of every picture HAT sees eight turns, MambaIRv2 eight turns in five ways to cut
it; ways that cut it alike are run, and counted, once. The factsheet gives 31.97 dB in the testing
phase of the NTIRE 2025 image super-resolution challenge (x4).
Factsheet and code differ: the "adaptive weighted fusion" weighs each of the two pictures by its
closeness to their mean, from which both are equally far, so that it is `⌊(a + b) / 2⌋` always. The
"sliding windows" do not slide: the picture is cut, and each window sees a tenth of a side around
itself. The released code draws the kinds of MambaIRv2's tokens with fresh noise; here the best kind
wins, and `--size mambairv2.noise=true` draws. No trained weights are published.
"""

from esrjax.method import Ensemble, Member

METHOD = Ensemble(
    members={
        "hat": Member(self_ensemble=True, mirrored=16),
        "mambairv2": Member(
            self_ensemble=True, windows={100: 1.0, 200: 1.0, 300: 1.2, 400: 0.8, 500: 0.8}
        ),
    },
    fusion="adaptive",
    team="BBox",
    paper="NTIRE 2025 image super-resolution challenge, team 15 (SMT)",
    license="Apache-2.0",
    card=__doc__,
    reported={"params": 75_712_586, "macs": 104_479_589_176_320},
)
