"""Trains small classical models into a folder. Run by the interpreter of the converter environment `sk`: `python sk_models.py FOLDER`."""

from __future__ import annotations

import functools
import sys
import warnings
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    import lightgbm
    import numpy as np
    import skops.io
    import xgboost
    from sklearn.datasets import load_diabetes, load_digits
    from sklearn.decomposition import PCA
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler

    warnings.filterwarnings("ignore")
    digits, number = load_digits(return_X_y=True)
    digits, number = digits[:600].astype(np.float32), number[:600]
    bmi, progress = load_diabetes(return_X_y=True)
    bmi = bmi.astype(np.float32)

    estimators: dict[str, Any] = {
        "logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(digits, number),
        "forest": RandomForestClassifier(10, random_state=0).fit(digits, number),
        "pca": make_pipeline(SimpleImputer(), MinMaxScaler(), PCA(3, random_state=0)).fit(bmi),
        "ridge": Ridge().fit(bmi, progress),
        "mlp": MLPRegressor(hidden_layer_sizes=(8,), random_state=0, max_iter=50).fit(bmi, progress),
    }
    for name, estimator in estimators.items():
        skops.io.dump(estimator, folder / f"{name}.skops")
    skops.io.dump(make_pipeline(FunctionTransformer(np.log1p), Ridge()).fit(np.abs(bmi), progress), folder / "function.refused")
    skops.io.dump({"partial": functools.partial(print, "x")}, folder / "partial.refused")

    boosted = {"n_estimators": 8, "max_depth": 3}
    for name, data, target, kind in (
        ("digits", digits, number, xgboost.XGBClassifier),
        ("even", digits, number % 2, xgboost.XGBClassifier),
        ("bmi", bmi, progress, xgboost.XGBRegressor),
    ):
        model = kind(**boosted).fit(data, target)
        model.save_model(folder / f"{name}.json")
        model.save_model(folder / f"{name}.ubj")
    for name, data, target, kind in (
        ("digits", digits, number, lightgbm.LGBMClassifier),
        ("even", digits, number % 2, lightgbm.LGBMClassifier),
        ("bmi", bmi, progress, lightgbm.LGBMRegressor),
    ):
        kind(**boosted, verbose=-1).fit(data, target).booster_.save_model(folder / f"{name}.txt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
