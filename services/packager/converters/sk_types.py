"""Which types a `.skops` file may name: estimators that ONNX has operators for, and the containers and arrays that they are made of.

The schema of the file is read by itself, before anything of it is loaded. A type, function or way of loading that is not listed refuses
the file: skops's own list trusts far more, functions among it, and has been got round before (CVE-2025-54412, -54413, -54886).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services.packager.converters import Refusal

MAX_SCHEMA_BYTES = 64 * 2**20
MAX_MEMBERS = 20_000
MAX_BYTES = 2 * 2**30
MAX_NODES = 2_000_000

#: Ways of loading that build values and known estimators. Those that call functions, methods or reducers are not among them.
_LOADERS = frozenset(
    {"DictNode", "ListNode", "TupleNode", "JsonNode", "TypeNode", "ObjectNode", "NdArrayNode", "TreeNode", "RandomStateNode"}
    | {"SparseMatrixNode", "BytesNode", "DTypeNode", "DefaultDictNode", "SetNode", "_DictWithDeprecatedKeysNode"}
)
_PLAIN = {
    "builtins": frozenset({"dict", "list", "tuple", "set", "str", "int", "float", "bool", "NoneType", "bytes"}),
    "collections": frozenset({"defaultdict", "OrderedDict"}),
    "numpy": frozenset({"ndarray", "float64", "float32", "int64", "int32", "int8", "uint8", "bool", "bool_", "str_", "dtype"}),
    "numpy.random.mtrand": frozenset({"RandomState"}),
    "scipy.sparse._csr": frozenset({"csr_matrix"}),
    "scipy.sparse": frozenset({"csr_matrix"}),
    "sklearn.tree._tree": frozenset({"Tree"}),
    "sklearn.utils._bunch": frozenset({"Bunch"}),
    "sklearn.neural_network._stochastic_optimizers": frozenset({"AdamOptimizer", "SGDOptimizer"}),
}
_ESTIMATORS = frozenset({
    "LogisticRegression", "LinearRegression", "Ridge", "RidgeClassifier", "Lasso", "ElasticNet", "SGDClassifier", "SGDRegressor",
    "Perceptron",
    "SVC", "SVR", "LinearSVC", "LinearSVR", "NuSVC", "NuSVR",
    "DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor",
    "RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor",
    "AdaBoostClassifier", "AdaBoostRegressor", "BaggingClassifier", "BaggingRegressor", "VotingClassifier", "VotingRegressor",
    "GaussianNB", "BernoulliNB", "MultinomialNB", "ComplementNB", "MLPClassifier", "MLPRegressor",
    "KNeighborsClassifier", "KNeighborsRegressor", "KMeans", "MiniBatchKMeans", "PCA", "TruncatedSVD",
    "LinearDiscriminantAnalysis", "QuadraticDiscriminantAnalysis",
    "StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler", "Normalizer", "Binarizer", "PolynomialFeatures",
    "LabelBinarizer", "LabelEncoder",
    "SimpleImputer", "VarianceThreshold", "Pipeline", "FeatureUnion", "OneVsRestClassifier",
})  # fmt: skip


def check_types(path: Path) -> list[str]:
    """Return the names of the types in a skops file, all of which are allowed. Raises `Refusal`."""
    found: set[str] = set()
    wrong: set[str] = set()
    for node in _nodes(_schema(path)):
        module, name, loader = node.get("__module__"), node.get("__class__"), node.get("__loader__")
        text = f"{module}.{name}"
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refusal("MODEL_MALFORMED", "The skops file names a type that is none.")
        found.add(text)
        if not _is_allowed(module, name) or (loader is not None and loader not in _LOADERS):
            wrong.add(text if loader in _LOADERS or loader is None else f"{text} ({loader})")
    if wrong:
        shown = ", ".join(sorted("".join(char if char.isprintable() else "?" for char in one)[:80] for one in wrong)[:10])
        raise Refusal(
            "TYPE_NOT_ALLOWED",
            f"The skops file names types that are not on the list: {shown}. Export the model with skl2onnx and push the ONNX file.",
        )
    return sorted(found)


def _is_allowed(module: str, name: str) -> bool:
    if name in _PLAIN.get(module, ()):
        return True
    return module.startswith("sklearn.") and name in _ESTIMATORS


def _schema(path: Path) -> Any:
    """The parsed schema of the file, whose members are counted and measured first."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS or sum(one.file_size for one in members) > MAX_BYTES:
                raise Refusal("ARCHIVE_TOO_LARGE", f"The skops file holds more than {MAX_MEMBERS} members, or {MAX_BYTES} bytes.")
            with archive.open("schema.json") as file:
                data = file.read(MAX_SCHEMA_BYTES + 1)
            if len(data) > MAX_SCHEMA_BYTES:
                raise Refusal("ARCHIVE_TOO_LARGE", f"The schema of the skops file is larger than {MAX_SCHEMA_BYTES} bytes.")
            return json.loads(data)
    except (zipfile.BadZipFile, KeyError, ValueError, RecursionError, NotImplementedError, EOFError, RuntimeError) as error:
        raise Refusal("MODEL_MALFORMED", "This is no skops file, or a damaged one. Write it again with skops.io.dump.") from error


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Every object of the schema that names a type, without recursion."""
    pending, seen = [schema], 0
    while pending:
        item = pending.pop()
        seen += 1
        if seen > MAX_NODES:
            raise Refusal("MODEL_TOO_COMPLEX", f"The skops file describes more than {MAX_NODES} values.")
        if isinstance(item, dict):
            if "__class__" in item or "__module__" in item:
                yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
