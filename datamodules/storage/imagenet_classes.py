"""The 1000 classes of ImageNet (ILSVRC 2012 to 2017) in the two orders that are used for labels.

The challenge numbers them from 1 in its own order: in ILSVRC2012_validation_ground_truth.txt, in map_clsloc.txt and in
the downsampled releases. Class folders, and therefore nearly all models, number the sorted WordNet IDs from 0.
"""

from pathlib import Path

import numpy as np

# WordNet IDs in the challenge's order: the first is number 1 (kit fox), the last number 1000 (dumbbell).
BY_NUMBER = Path(__file__).with_name("imagenet_challenge_order.txt").read_text().split()

SORTED = sorted(BY_NUMBER)

# Index into the sorted IDs, 0 to 999, of the challenge's number i + 1; int64 (1000,).
SORTED_INDEX = np.argsort(np.argsort(BY_NUMBER))
