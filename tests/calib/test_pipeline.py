"""Whole calibrations: what the output holds, who can load it, and what it says about itself."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SIZES
from reference import load, log_probabilities

from deltart.calib import layout
from deltart.calib.dataset import read_dataset
from deltart.calib.pipeline import calibrate
from deltart.export.checkpoint import Checkpoint
from deltart.export.formats import is_skipped
from deltart.export.pipeline import account, export_checkpoint
from deltart.export.spec import read_spec
from deltart.export.synthetic import synthesize
from deltart.runtime.backends.ort import OrtBackend
from tests_calib import VOCAB, write_tiny

Made = Callable[[str], Path]
METHODS = ("absmax", "mse", "hessian")
