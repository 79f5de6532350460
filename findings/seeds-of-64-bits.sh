#!/usr/bin/env bash
# torch's CPU generator takes in half of a 64-bit seed
#
# Expected:  `manual_seed` accepts every integer of 64 bits and `initial_seed` gives it back, so different seeds are
#            different noise.
# Version:   torch 2.13.0, on a CPU. A GPU's generator is another algorithm, which is not looked at here.
# Behaviour: the upper 32 bits are dropped without a word. Its documentation says both that any 32-bit integer is a
#            valid seed and that a seed may be anything in 64 bits, not what happens to the rest.
# Output:    seed 5: -0.4868
#            seed 5 + 2^32: -0.4868, torch says that its seed is 4294967301
#            seed 5 + 2^63: -0.4868, torch says that its seed is 9223372036854775813
#            1000 seeds (run << 32) + 5 start with 1 number; 1000 seeds run + 5 with 1000
# Hurt:      who makes seeds from parts, such as (run << 32) + image, or from hashes of which the upper half tells
#            things apart: all runs draw the same noise. ComfyUI's widget takes seeds of 64 bits, and its samplers'
#            noise comes from this generator.
# To do:     hash the parts to 32 bits (`zlib.crc32`), or keep what differs in the lower half.
set -euo pipefail
PYTHON=${PYTHON:-python3.11}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$PYTHON" -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0
"$folder/bin/python" -W ignore - <<'END'
import torch


def first(seed):
    return torch.randn(1, generator=torch.Generator().manual_seed(seed)).item()


print(f"seed 5: {first(5):.4f}")
for power in (32, 63):
    seed = 5 + 2**power
    said = torch.Generator().manual_seed(seed).initial_seed()
    print(f"seed 5 + 2^{power}: {first(seed):.4f}, torch says that its seed is {said}")
    assert said == seed

high, low = (len({first((run << bits) + 5) for run in range(1000)}) for bits in (32, 0))
print(f"1000 seeds (run << 32) + 5 start with {high} number; 1000 seeds run + 5 with {low}")
assert low > 990
assert high == 1, "the behaviour has changed: the upper half of a seed counts"
END
