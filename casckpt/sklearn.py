"""casckpt for scikit-learn: fitting in rounds."""

from casckpt.adapters.sklearn import fit as fit
